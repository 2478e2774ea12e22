//! The control plane on the fabric: what is started, with which arguments.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;

use super::{Cluster, plan};
use crate::binaries::Program;
use crate::credentials::{ADMIN, Credentials};
use crate::machine::wait_until;

/// Some three seconds on an idle machine.
const READY_LIMIT: Duration = Duration::from_secs(90);

const CONTROLLERS: &str = "system:kube-controller-manager";
const SCHEDULER: &str = "system:kube-scheduler";
/// User of kube-proxy.
pub(super) const PROXY: &str = "system:kube-proxy";

/// Names of Services and pods; everything else is refused, for nothing here leaves the machine.
const COREFILE: &str = "\
. {
    errors
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        kubeconfig {$KUBECONFIG}
    }
}
";

/// User of a kubelet.
pub(super) fn kubelet_user(node: &str) -> String {
    format!("system:node:{node}")
}

/// Opens the cluster's keys and tokens, or makes them.
pub(super) fn credentials(state: &Path) -> anyhow::Result<Credentials> {
    let directory = state.join("pki");
    if !directory.is_dir() {
        let fresh = state.join("pki.new");
        let made = Credentials::create(&fresh, &plan::server_addresses())?;
        let mut users = vec![(ADMIN.to_owned(), "system:masters")];
        users.extend([CONTROLLERS, SCHEDULER, PROXY].map(|user| (user.to_owned(), "")));
        users.extend(
            (1..=plan::NODES_MAX)
                .map(|index| (kubelet_user(&plan::node_name(index)), "system:nodes")),
        );
        made.write_tokens(&users)?;
        std::fs::rename(&fresh, &directory)
            .with_context(|| format!("rename to {}", directory.display()))?;
    }
    Ok(Credentials::open(&directory))
}

impl Cluster {
    /// Starts etcd and the API server, unless they run.
    pub(super) fn start_api_server_process(&self) -> anyhow::Result<()> {
        let fabric = self.fabric();
        let etcd = [
            "--data-dir=/var/lib/etcd",
            "--unsafe-no-fsync",
            "--log-level=warn",
        ];
        fabric.start(&self.binaries.path(Program::Etcd), &etcd.map(str::to_owned))?;
        let file = |name| self.credentials.path(name).display().to_string();
        let args = [
            "--etcd-servers=http://127.0.0.1:2379".to_owned(),
            format!("--bind-address={}", plan::ROUTER.0),
            format!("--advertise-address={}", plan::ROUTER.0),
            format!("--tls-cert-file={}", file("apiserver.crt")),
            format!("--tls-private-key-file={}", file("apiserver.key")),
            "--cert-dir=/run/kubernetes".to_owned(),
            format!("--token-auth-file={}", file("tokens")),
            "--authorization-mode=Node,RBAC".to_owned(),
            "--enable-admission-plugins=NodeRestriction".to_owned(),
            "--allow-privileged".to_owned(),
            format!("--service-cluster-ip-range={}", plan::SERVICE_RANGES),
            "--enable-aggregator-routing".to_owned(),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            format!("--service-account-key-file={}", file("accounts.pub")),
            format!(
                "--service-account-signing-key-file={}",
                file("accounts.key")
            ),
            format!(
                "--kubelet-client-certificate={}",
                file("kubelet-client.crt")
            ),
            format!("--kubelet-client-key={}", file("kubelet-client.key")),
            "--kubelet-preferred-address-types=InternalIP".to_owned(),
        ];
        fabric.start(&self.binaries.path(Program::KubeApiserver), &args)
    }

    /// Waits until the API server answers.
    pub fn wait_for_api_server(&self) -> anyhow::Result<()> {
        let ready = || {
            self.with_client(|client| async move {
                let request = http::Request::get("/readyz").body(Vec::new())?;
                client.request_text(request).await?;
                Ok(true)
            })
        };
        wait_until(READY_LIMIT, "the API server", ready)
            .with_context(|| self.fabric().log_tail(Program::KubeApiserver.name()))
    }

    /// Starts everything that works through the API server, unless it runs.
    pub(super) fn start_controllers(&self) -> anyhow::Result<()> {
        let fabric = self.fabric();
        let config = |user| self.kubeconfig_with_token(user);
        let controllers = [
            config(CONTROLLERS)?,
            "--leader-elect=false".to_owned(),
            "--use-service-account-credentials".to_owned(),
            format!(
                "--service-account-private-key-file={}",
                self.credentials.path("accounts.key").display()
            ),
            format!(
                "--root-ca-file={}",
                self.credentials.path("ca.crt").display()
            ),
            "--flex-volume-plugin-dir=/var/lib/volume-plugins".to_owned(),
            format!("--service-cluster-ip-range={}", plan::SERVICE_RANGES),
            "--allocate-node-cidrs".to_owned(),
            format!("--cluster-cidr={}", plan::POD_RANGES),
        ];
        fabric.start(
            &self.binaries.path(Program::KubeControllerManager),
            &controllers,
        )?;
        let scheduler = [config(SCHEDULER)?, "--leader-elect=false".to_owned()];
        fabric.start(&self.binaries.path(Program::KubeScheduler), &scheduler)?;
        let corefile = self.state.join("Corefile");
        std::fs::write(&corefile, COREFILE)
            .with_context(|| format!("write {}", corefile.display()))?;
        let dns = ["--conf".to_owned(), corefile.display().to_string()];
        let admin = self.kubeconfig()?.display().to_string();
        fabric.start_with(
            &self.binaries.path(Program::Coredns),
            &dns,
            &[("KUBECONFIG", admin)],
        )
    }
}
