//! A control plane without nodes: etcd and the API server on a loopback address of their own, and the controllers and
//! the scheduler if wanted. Nodes and pods are objects that a test writes; nobody runs them and nobody removes them.

use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use kube::Client;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::binaries::{Binaries, Program};
use crate::credentials::{ADMIN, Credentials, User, client};
use crate::daemon::{Daemon, Keeper};

/// How long a program may take to answer; some three seconds on an idle machine.
const START_LIMIT: Duration = Duration::from_secs(90);
/// Between two looks at a program that starts.
const POLL: Duration = Duration::from_millis(50);
/// Loopback addresses tried before giving up.
const ADDRESSES_TRIED_MAX: u32 = 16;
/// Ranges of cluster addresses, as in most clusters: IPv4 first.
const SERVICE_RANGES: &str = "10.96.0.0/16,fd00:96::/112";

/// Which controllers run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Controllers {
    /// None: objects are what tests write, slices included. Namespaces that are deleted stay.
    #[default]
    None,
    /// All but those that would mark, evict or collect what runs on nodes that nobody drives, and those that give pod
    /// ranges: slices follow from Pods, pods from Deployments, and deletion of namespaces and owners works.
    WithoutNodes,
}

/// What a control plane is made of.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Controllers to run.
    pub controllers: Controllers,
    /// Run the scheduler, too.
    pub scheduler: bool,
    /// More arguments of the API server, such as `--max-requests-inflight=5`.
    pub api_server: Vec<String>,
}

/// A running control plane; all of it ends when it is dropped.
pub struct ControlPlane {
    // The order of fields is the order of their ends: clients of etcd first, then who started them, then their files.
    controllers: Option<Daemon>,
    scheduler: Option<Daemon>,
    api_server: Option<Daemon>,
    etcd: Option<Daemon>,
    keeper: Keeper,
    binaries: Binaries,
    credentials: Credentials,
    address: Ipv4Addr,
    options: Options,
    client: Client,
    directory: TempDir,
}

impl ControlPlane {
    /// Starts etcd and the API server, and waits until it is ready. Several may run at the same time.
    pub async fn start() -> anyhow::Result<Self> {
        Self::start_with(Options::default()).await
    }

    /// Starts what the options name.
    pub async fn start_with(options: Options) -> anyhow::Result<Self> {
        let binaries = Binaries::ensure(&programs(&options))?;
        let directory = tempfile::Builder::new()
            .prefix("bowline-control-plane-")
            .tempdir()
            .context("make a directory")?;
        let address = free_address()?;
        let credentials = Credentials::create(
            &directory.path().join("pki"),
            &[address.into(), service_address()],
        )?;
        let users = [ADMIN, CONTROLLERS, SCHEDULER].map(|user| {
            let group = if user == ADMIN { "system:masters" } else { "" };
            (user.to_owned(), group)
        });
        credentials.write_tokens(&users)?;
        let admin = credentials.for_user(&server(address), &User::Admin)?;
        let mut plane = Self {
            controllers: None,
            scheduler: None,
            api_server: None,
            etcd: None,
            keeper: Keeper::new()?,
            binaries,
            credentials,
            address,
            options,
            client: client(&admin).await?,
            directory,
        };
        plane.start_etcd().await?;
        plane.start_api_server().await?;
        plane.start_controllers()?;
        Ok(plane)
    }

    /// A client with all rights.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// A client with the rights that RBAC gives to a user.
    pub async fn client_as(&self, user: &User) -> anyhow::Result<Client> {
        client(&self.kubeconfig(user)?).await
    }

    /// Writes a kubeconfig for a user; it lives as long as the control plane.
    pub fn kubeconfig(&self, user: &User) -> anyhow::Result<PathBuf> {
        self.credentials.for_user(&self.server(), user)
    }

    /// Where the API server listens, as `https://127.…:6443`.
    pub fn server(&self) -> String {
        server(self.address)
    }

    /// `kubectl` as administrator.
    pub fn kubectl(&self) -> anyhow::Result<std::process::Command> {
        let mut command = std::process::Command::new(self.binaries.path(Program::Kubectl));
        command
            .arg("--kubeconfig")
            .arg(self.kubeconfig(&User::Admin)?);
        command
            .arg("--cache-dir")
            .arg(self.directory.path().join("kubectl"));
        Ok(command)
    }

    /// Where logs are, one file per program.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Starts the API server, if it does not run, and waits until it is ready.
    pub async fn start_api_server(&mut self) -> anyhow::Result<()> {
        if self.api_server.is_none() {
            let args = self.api_server_args();
            self.api_server = Some(self.run(Program::KubeApiserver, &args)?);
        }
        let start = Instant::now();
        loop {
            let ready = self.client.request_text(get("/readyz")?).await;
            let daemon = self
                .api_server
                .as_mut()
                .context("the API server was stopped")?;
            match ready {
                Ok(_) => return Ok(()),
                Err(error) if start.elapsed() > START_LIMIT => {
                    bail!(
                        "the API server is not ready: {error}; {}",
                        daemon.log_tail()
                    );
                }
                Err(_) => daemon.check()?,
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Ends the API server as a crash does: connections are reset, new ones are refused.
    pub fn kill_api_server(&mut self) {
        self.api_server = None;
    }

    /// Stops the API server without closing anything: connections stay and nobody answers, as with a machine that
    /// hangs. [`Self::resume_api_server`] ends it.
    pub fn freeze_api_server(&self) -> anyhow::Result<()> {
        self.signal_api_server(Signal::SIGSTOP)
    }

    /// Ends [`Self::freeze_api_server`].
    pub fn resume_api_server(&self) -> anyhow::Result<()> {
        self.signal_api_server(Signal::SIGCONT)
    }

    fn signal_api_server(&self, signal: Signal) -> anyhow::Result<()> {
        self.api_server
            .as_ref()
            .context("the API server does not run")?
            .signal(signal)
    }

    /// Ends etcd and starts it again with the same data.
    pub async fn restart_etcd(&mut self) -> anyhow::Result<()> {
        self.etcd = None;
        self.start_etcd().await
    }

    /// Forgets all versions of objects but the present one. After a restart of the API server, whoever wants to go on
    /// watching from an older version has to list again.
    pub async fn compact(&self) -> anyhow::Result<()> {
        let etcd = self.etcd_client()?;
        // Base64 of one byte 0: the smallest key. Only the revision of the answer matters.
        let range = json!({ "key": "AA==", "limit": 1, "count_only": true });
        let answer: Value = etcd
            .request(post("/v3/kv/range", &range)?)
            .await
            .context("ask etcd")?;
        let revision = answer["header"]["revision"]
            .as_str()
            .context("etcd names no revision")?;
        let compaction = json!({ "revision": revision, "physical": true });
        let _: Value = etcd
            .request(post("/v3/kv/compaction", &compaction)?)
            .await
            .context("compact etcd")?;
        Ok(())
    }

    async fn start_etcd(&mut self) -> anyhow::Result<()> {
        let data = self.directory.path().join("etcd");
        let peer = format!("http://{}:2380", self.address);
        let args = [
            format!("--data-dir={}", data.display()),
            "--unsafe-no-fsync".to_owned(),
            "--log-level=warn".to_owned(),
            format!("--listen-client-urls={}", self.etcd_url()),
            format!("--advertise-client-urls={}", self.etcd_url()),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster=default={peer}"),
        ];
        let mut daemon = self.run(Program::Etcd, &args)?;
        let etcd = self.etcd_client()?;
        let start = Instant::now();
        while etcd.request_text(get("/health")?).await.is_err() {
            daemon.check()?;
            ensure!(
                start.elapsed() < START_LIMIT,
                "etcd does not answer: {}",
                daemon.log_tail()
            );
            tokio::time::sleep(POLL).await;
        }
        self.etcd = Some(daemon);
        Ok(())
    }

    fn start_controllers(&mut self) -> anyhow::Result<()> {
        if self.options.controllers == Controllers::WithoutNodes {
            let config = self.credentials.with_token(&self.server(), CONTROLLERS)?;
            let mut args = controller_args(&config);
            args.push(format!(
                "--service-account-private-key-file={}",
                self.file("accounts.key")
            ));
            args.push(format!("--root-ca-file={}", self.file("ca.crt")));
            self.controllers = Some(self.run(Program::KubeControllerManager, &args)?);
        }
        if self.options.scheduler {
            let config = self.credentials.with_token(&self.server(), SCHEDULER)?;
            let args = [
                format!("--kubeconfig={}", config.display()),
                "--leader-elect=false".to_owned(),
                "--secure-port=0".to_owned(),
            ];
            self.scheduler = Some(self.run(Program::KubeScheduler, &args)?);
        }
        Ok(())
    }

    fn api_server_args(&self) -> Vec<String> {
        let mut args = vec![
            format!("--etcd-servers={}", self.etcd_url()),
            format!("--bind-address={}", self.address),
            "--secure-port=6443".to_owned(),
            // Nobody reaches it through a Service, and a loopback address would be refused as an endpoint.
            "--advertise-address=192.0.2.1".to_owned(),
            "--endpoint-reconciler-type=none".to_owned(),
            format!("--tls-cert-file={}", self.file("apiserver.crt")),
            format!("--tls-private-key-file={}", self.file("apiserver.key")),
            format!("--cert-dir={}", self.directory.path().join("pki").display()),
            format!("--token-auth-file={}", self.file("tokens")),
            "--authorization-mode=Node,RBAC".to_owned(),
            format!("--service-cluster-ip-range={SERVICE_RANGES}"),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            format!("--service-account-key-file={}", self.file("accounts.pub")),
            format!(
                "--service-account-signing-key-file={}",
                self.file("accounts.key")
            ),
            "--allow-privileged".to_owned(),
        ];
        if self.options.controllers == Controllers::None {
            // Nobody makes the account `default`, without which this one refuses every Pod.
            args.push("--disable-admission-plugins=ServiceAccount".to_owned());
        }
        args.extend(self.options.api_server.iter().cloned());
        args
    }

    fn run(&self, program: Program, args: &[String]) -> anyhow::Result<Daemon> {
        let log = self
            .directory
            .path()
            .join(format!("{}.log", program.name()));
        self.keeper.start(&self.binaries.path(program), args, &log)
    }

    fn file(&self, name: &str) -> String {
        self.credentials.path(name).display().to_string()
    }

    fn etcd_url(&self) -> String {
        format!("http://{}:2379", self.address)
    }

    /// etcd speaks JSON over HTTP beside gRPC, and the client of Kubernetes takes any server.
    fn etcd_client(&self) -> anyhow::Result<Client> {
        let url = self.etcd_url().parse().context("etcd's address")?;
        Client::try_from(kube::Config::new(url)).context("make a client of etcd")
    }
}

const CONTROLLERS: &str = "system:kube-controller-manager";
const SCHEDULER: &str = "system:kube-scheduler";

fn programs(options: &Options) -> Vec<Program> {
    let mut needed = vec![Program::Etcd, Program::KubeApiserver, Program::Kubectl];
    if options.controllers != Controllers::None {
        needed.push(Program::KubeControllerManager);
    }
    if options.scheduler {
        needed.push(Program::KubeScheduler);
    }
    needed
}

fn controller_args(config: &Path) -> Vec<String> {
    // Nodes here are objects that no kubelet keeps alive: nobody shall declare them dead or collect their pods.
    let away = [
        "node-lifecycle-controller",
        "node-ipam-controller",
        "taint-eviction-controller",
        "pod-garbage-collector-controller",
    ];
    let away: Vec<String> = away.iter().map(|name| format!("-{name}")).collect();
    vec![
        format!("--kubeconfig={}", config.display()),
        "--leader-elect=false".to_owned(),
        "--secure-port=0".to_owned(),
        "--use-service-account-credentials".to_owned(),
        format!("--controllers=*,{}", away.join(",")),
        format!("--service-cluster-ip-range={SERVICE_RANGES}"),
        // Tests write faster than people do; the usual limits would be what they measure.
        "--concurrent-service-endpoint-syncs=10".to_owned(),
        "--kube-api-qps=200".to_owned(),
        "--kube-api-burst=400".to_owned(),
    ]
}

fn server(address: Ipv4Addr) -> String {
    format!("https://{address}:6443")
}

/// The first cluster address: that of the Service `kubernetes`.
fn service_address() -> IpAddr {
    Ipv4Addr::new(10, 96, 0, 1).into()
}

/// A loopback address that nobody uses, so that all ports are the usual ones and rigs do not meet.
fn free_address() -> anyhow::Result<Ipv4Addr> {
    /// Addresses that this process has taken.
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    // Processes that run at the same time start far apart: 22 bits of process id, times a number without pattern.
    let first = std::process::id().wrapping_mul(0x9e37_79b1);
    for _ in 0..ADDRESSES_TRIED_MAX {
        let taken = TAKEN.fetch_add(1, Ordering::Relaxed);
        let [_, a, b, c] = (first >> 8).wrapping_add(taken).to_be_bytes();
        // Away from 127.0.x.x, where people and systemd-resolved are.
        let address = Ipv4Addr::new(127, a | 0x80, b, c);
        let free = |port: u16| TcpListener::bind((address, port)).is_ok();
        if [2379, 2380, 6443].into_iter().all(free) {
            return Ok(address);
        }
    }
    bail!("{ADDRESSES_TRIED_MAX} loopback addresses are all in use")
}

fn get(path: &str) -> anyhow::Result<http::Request<Vec<u8>>> {
    http::Request::get(path)
        .body(Vec::new())
        .context("make a request")
}

fn post(path: &str, body: &Value) -> anyhow::Result<http::Request<Vec<u8>>> {
    let request = http::Request::post(path).header("content-type", "application/json");
    request
        .body(body.to_string().into_bytes())
        .context("make a request")
}
