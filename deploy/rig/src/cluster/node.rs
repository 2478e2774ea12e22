//! A node: container runtime, kubelet, service proxy, and the part of a network plugin.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use serde_json::json;

use super::control::{PROXY, kubelet_user};
use super::{Cluster, fabric, plan};
use crate::binaries::Program;
use crate::machine::{Machine, wait_until};

const CONTAINERD_LIMIT: Duration = Duration::from_secs(30);
const REGISTER_LIMIT: Duration = Duration::from_secs(90);
const READY_LIMIT: Duration = Duration::from_mins(2);

/// The image of every pod's sandbox, which is also a box of tools for tests.
pub const TOOLS_IMAGE: &str = "localhost/tools:1";

/// Everything else is containerd's default, below `/var` and `/run`, which each node has for itself. Where root may not
/// lower the score by which the kernel picks victims when memory is short, runc ends when it tries, hence the second line.
const CONTAINERD: &str = r#"version = 2

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/tools:1"
  restrict_oom_score_adj = true

[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "/usr/lib/cni"
  conf_dir = "/run/cni"
"#;

impl Cluster {
    /// Boots a node as far as it gets without the API server, unless it runs.
    pub(super) fn boot_node(&self, index: u8) -> anyhow::Result<()> {
        let node = self.node(index);
        node.boot()?;
        fabric::node_cable(&self.fabric(), &node, index)?;
        let config = self.state.join("containerd.toml");
        std::fs::write(&config, CONTAINERD)
            .with_context(|| format!("write {}", config.display()))?;
        let cni = node.inside("mkdir").args(["-p", "/run/cni"]).status();
        ensure!(
            cni.is_ok_and(|status| status.success()),
            "make /run/cni on {}",
            node.name()
        );
        let args = ["--config".to_owned(), config.display().to_string()];
        node.start(Path::new(CONTAINERD_PROGRAM), &args)?;
        let answers = || {
            let mut ctr = node.inside("ctr");
            ctr.arg("version")
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            Ok(ctr.status().is_ok_and(|status| status.success()))
        };
        wait_until(
            CONTAINERD_LIMIT,
            &format!("containerd on {}", node.name()),
            answers,
        )
        .with_context(|| node.log_tail("containerd"))?;
        self.load_into(&node, &self.tools_image()?)
    }

    /// Starts kubelet and service proxy, unless they run; true if the kubelet did not.
    pub(super) fn start_kubelet(&self, index: u8) -> anyhow::Result<bool> {
        let node = self.node(index);
        let started = node.daemon(Program::Kubelet.name()).is_none();
        let config = self.state.join(format!("{}-kubelet.json", node.name()));
        std::fs::write(&config, self.kubelet_config(&node))
            .with_context(|| format!("write {}", config.display()))?;
        let (four, six) = plan::node_addresses(index);
        let kubelet = [
            format!("--config={}", config.display()),
            self.kubeconfig_with_token(&kubelet_user(node.name()))?,
            format!("--node-ip={four},{six}"),
            format!("--hostname-override={}", node.name()),
        ];
        node.start(&self.binaries.path(Program::Kubelet), &kubelet)?;
        let proxy = [
            self.kubeconfig_with_token(PROXY)?,
            "--proxy-mode=nftables".to_owned(),
            format!("--cluster-cidr={}", plan::POD_RANGES),
            format!("--hostname-override={}", node.name()),
            // That setting can be written in the first network namespace only.
            "--conntrack-max-per-core=0".to_owned(),
        ];
        node.start(&self.binaries.path(Program::KubeProxy), &proxy)?;
        Ok(started)
    }

    /// Does what a network plugin's own agent does: gives pods addresses from the ranges that the controllers gave to
    /// the node, and tells the router where these are.
    pub(super) fn connect_pods(&self, index: u8) -> anyhow::Result<()> {
        let node = self.node(index);
        let mut ranges = Vec::new();
        wait_until(
            REGISTER_LIMIT,
            &format!("the pod ranges of {}", node.name()),
            || {
                let spec = self.node_object(node.name())?.spec.unwrap_or_default();
                ranges = spec.pod_cidrs.unwrap_or_default();
                Ok(ranges.len() == 2)
            },
        )
        .with_context(|| node.log_tail(Program::Kubelet.name()))?;
        fabric::pod_routes(&self.fabric(), &node, index, &ranges)?;
        let subnets: Vec<_> = ranges
            .iter()
            .map(|range| json!([{ "subnet": range }]))
            .collect();
        let network = json!({
            "cniVersion": "0.4.0",
            "name": "pods",
            "plugins": [{
                "type": "ptp",
                "mtu": plan::POD_MTU,
                "ipam": {
                    "type": "host-local",
                    "ranges": subnets,
                    "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
                },
            }],
        });
        let file = self.state.join(format!("{}-network.json", node.name()));
        std::fs::write(&file, network.to_string())
            .with_context(|| format!("write {}", file.display()))?;
        // A name that appears complete: containerd watches the directory.
        let mut copy = node.inside("sh");
        copy.args([
            "-euc",
            "cp \"$1\" /run/cni/.new && mv /run/cni/.new /run/cni/10-pods.conflist",
            "sh",
        ]);
        crate::machine::must_run(copy.arg(&file))
    }

    /// Waits until the kubelet has said since that moment (seconds since 1970) that the node is ready: the API server
    /// remembers what it said in an earlier life.
    pub(super) fn wait_for_node(&self, index: u8, since: i64) -> anyhow::Result<()> {
        let name = plan::node_name(index);
        wait_until(READY_LIMIT, &format!("{name} to be ready"), || {
            let status = self.node_object(&name)?.status.unwrap_or_default();
            let mut conditions = status.conditions.into_iter().flatten();
            Ok(conditions.any(|condition| {
                let said = condition
                    .last_heartbeat_time
                    .map_or(0, |time| time.0.as_second());
                condition.type_ == "Ready" && condition.status == "True" && said >= since
            }))
        })
        .with_context(|| self.node(index).log_tail(Program::Kubelet.name()))
    }

    fn node_object(&self, name: &str) -> anyhow::Result<Node> {
        let name = name.to_owned();
        self.with_client(|client| async move { Ok(Api::<Node>::all(client).get(&name).await?) })
    }

    fn kubelet_config(&self, node: &Machine) -> String {
        let never = "0%";
        let config = json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": self.tree.path(node.name()),
            "failCgroupV1": false,
            "failSwapOn": false,
            "clusterDomain": "cluster.local",
            "clusterDNS": [plan::ROUTER.0.to_string()],
            "resolvConf": "",
            "volumePluginDir": "/var/lib/kubelet/volume-plugins",
            "authentication": { "x509": { "clientCAFile": self.credentials.path("ca.crt") } },
            // The disk is not the node's own; its filling must not evict pods here.
            "evictionHard": {
                "memory.available": never,
                "nodefs.available": never,
                "nodefs.inodesFree": never,
                "imagefs.available": never,
            },
            "imageGCHighThresholdPercent": 100,
        });
        config.to_string()
    }
}

/// Debian's.
const CONTAINERD_PROGRAM: &str = "/usr/bin/containerd";
