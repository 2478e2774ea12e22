//! The lab's cluster: the network, pods with their servers, manager and agents, and the objects that describe them.
//! Knows how to change all of that, and nothing of why.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::IpAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use lb_controller::admin;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::ledger::Ledger;
use super::manifests::Manifests;
use super::netns::Namespace;
use super::network::Network;
use super::objects::{Phase, Pod};
use super::plan::Machine;

/// Ports that servers of pods listen on: those of the examples, and others to change to.
const TCP_PORTS: &str = "8080,8081";
/// The same for UDP.
const UDP_PORTS: &str = "5353,5354";
/// Agents are ready, and changes applied, well within this; more is a failure.
pub(crate) const SETTLE_LIMIT: Duration = Duration::from_secs(20);
/// Between two looks at the agents.
const POLL: Duration = Duration::from_millis(25);
/// From a written file to the last agent's maps, with plenty to spare.
const APPLY_TIME: Duration = Duration::from_secs(3);
/// A process that was asked to end has this long.
const END_LIMIT: Duration = Duration::from_secs(5);

/// How the agents run.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// The program with manager and agent.
    pub(crate) controller: PathBuf,
    /// How many machines get packets from the router.
    pub(crate) balancers: u8,
    /// Packets of unknown flows are not passed on: the control that must break connections.
    pub(crate) no_relay: bool,
    /// The `--xdp-mode` of the agents.
    pub(crate) xdp_mode: String,
}

/// The lab's cluster. Its processes are killed when the ledger is swept.
#[derive(Debug)]
pub(crate) struct Cluster {
    settings: Settings,
    ledger: Ledger,
    pins: PathBuf,
    /// What joins everything.
    pub(crate) network: Arc<Network>,
    manifests: Manifests,
    /// In the order of their making.
    pub(crate) pods: Vec<Pod>,
    pods_of: BTreeMap<String, u8>,
    servers: Vec<(Namespace, Child)>,
    manager: Option<Child>,
    agents: BTreeMap<String, Child>,
}

impl Cluster {
    /// Builds the network, and the directory of objects; nothing runs yet.
    pub(crate) fn build(
        name: &str,
        settings: Settings,
        mut ledger: Ledger,
    ) -> anyhow::Result<Self> {
        let network = Network::build(name, settings.balancers, &mut ledger)?;
        let pins = ledger.pins()?;
        for part in ["logs", "sockets"] {
            let path = ledger.directory().join(part);
            std::fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
        }
        let mut manifests = Manifests::create(ledger.directory())?;
        for (machine, _) in &network.machines {
            manifests.node(machine)?;
        }
        Ok(Self {
            settings,
            ledger,
            pins,
            network: Arc::new(network),
            manifests,
            pods: Vec::new(),
            pods_of: BTreeMap::new(),
            servers: Vec::new(),
            manager: None,
            agents: BTreeMap::new(),
        })
    }

    /// What was made, for removing it.
    pub(crate) fn ledger(&mut self) -> &mut Ledger {
        &mut self.ledger
    }

    /// Where objects are written.
    pub(crate) fn manifests(&self) -> &Path {
        self.manifests.directory()
    }

    /// Where the processes' logs are.
    pub(crate) fn logs(&self) -> PathBuf {
        self.ledger.directory().join("logs")
    }

    /// Names of the machines, balancers first.
    pub(crate) fn machines(&self) -> Vec<String> {
        self.network
            .machines
            .iter()
            .map(|(machine, _)| machine.name.clone())
            .collect()
    }

    /// The admin socket of a machine's agent.
    pub(crate) fn socket(&self, machine: &str) -> PathBuf {
        self.ledger
            .directory()
            .join("sockets")
            .join(format!("{machine}.sock"))
    }

    /// Starts the manager.
    pub(crate) fn start_manager(&mut self) -> anyhow::Result<()> {
        let mut command = Command::new(&self.settings.controller);
        command
            .arg("manager")
            .arg("--manifests")
            .arg(self.manifests.directory());
        command.arg("--admin-socket").arg(self.socket("manager"));
        let child = self.spawn(command, &self.network.router, "manager")?;
        self.manager = Some(child);
        Ok(())
    }

    /// Starts the agent of a machine.
    pub(crate) fn start_agent(&mut self, name: &str) -> anyhow::Result<()> {
        let controller = self.settings.controller.clone();
        self.start_agent_of(name, &controller)
    }

    /// Starts the agent of a machine from another build.
    pub(crate) fn start_agent_of(&mut self, name: &str, controller: &Path) -> anyhow::Result<()> {
        let (machine, _) = self.machine(name)?;
        let mut command = Command::new(controller);
        command
            .arg("agent")
            .arg("--manifests")
            .arg(self.manifests.directory());
        command.args(["--node", name, "--role", machine.role.argument()]);
        command.args(["--interface", super::network::LINK]);
        for address in machine.addresses() {
            command
                .arg("--node-address")
                .arg(address.addr().to_string());
        }
        command.arg("--pin-dir").arg(self.pins.join(name));
        command.arg("--admin-socket").arg(self.socket(name));
        command.args(["--xdp-mode", &self.settings.xdp_mode]);
        if self.settings.no_relay {
            command.arg("--no-relay");
        }
        let (_, namespace) = self.machine(name)?;
        let child = self.spawn(command, namespace, name)?;
        self.ledger.process(child.id())?;
        self.agents.insert(name.to_owned(), child);
        Ok(())
    }

    /// Ends the agent of a machine with a signal, and waits until it has ended.
    pub(crate) async fn end_agent(&mut self, name: &str, signal: Signal) -> anyhow::Result<()> {
        let agent = self.agents.remove(name);
        let mut agent = agent.with_context(|| format!("{name} has no agent"))?;
        kill(Pid::from_raw(agent.id().cast_signed()), signal)
            .with_context(|| format!("signal the agent of {name}"))?;
        let started = Instant::now();
        while agent.try_wait().context("wait for an agent")?.is_none() {
            if started.elapsed() > END_LIMIT {
                bail!(
                    "the agent of {name} did not end within {} s of {signal}",
                    END_LIMIT.as_secs()
                );
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// Makes pods with running servers, spread over the nodes. They are in no slice until [`Self::publish`].
    pub(crate) fn add_pods(&mut self, count: usize, app: &str) -> anyhow::Result<Vec<String>> {
        let first = self.pods.len();
        for _ in 0..count {
            let pod = self.next_pod(app)?;
            let namespace =
                self.network
                    .pod(&pod.node, &pod.name, pod.addresses, &mut self.ledger)?;
            let server = self.start_server(&pod, &namespace)?;
            self.ledger.process(server.id())?;
            self.servers.push((namespace, server));
            self.pods.push(pod);
        }
        // Listening is part of being made: the readiness probe, so to say.
        for (_, server) in &mut self.servers[first..] {
            let output = server.stdout.take().context("a server has no output")?;
            let mut line = String::new();
            BufReader::new(output)
                .read_line(&mut line)
                .context("wait for a server")?;
            if line.trim() != "ready" {
                bail!(
                    "a pod's server did not start; see {}",
                    self.ledger.directory().display()
                );
            }
        }
        Ok(self.pods[first..]
            .iter()
            .map(|pod| pod.name.clone())
            .collect())
    }

    /// The next pod, on the node with the fewest.
    fn next_pod(&mut self, app: &str) -> anyhow::Result<Pod> {
        let number = self.pods.len() + 1;
        let nodes = self.network.machines.iter().map(|(machine, _)| machine);
        let nodes = nodes.filter(|machine| machine.pods().is_some());
        let node = nodes.min_by_key(|node| self.pods_of.get(&node.name).copied().unwrap_or(0));
        let node = node.context("there is no node for pods")?;
        let of_node = self.pods_of.entry(node.name.clone()).or_insert(0);
        *of_node = of_node
            .checked_add(1)
            .context("a node has room for 255 pods")?;
        let addresses = node.pod(*of_node).context("there is no node for pods")?;
        Ok(Pod {
            name: format!("pod-{number}"),
            uid: format!("00000000-0000-4000-8000-{number:012}"),
            app: app.to_owned(),
            node: node.name.clone(),
            addresses,
            phase: Phase::Ready,
        })
    }

    fn start_server(&self, pod: &Pod, namespace: &Namespace) -> anyhow::Result<Child> {
        let me = std::env::current_exe().context("find the path of lbctl")?;
        let mut command = Command::new(me);
        command.args(["lab-server", "--pod", &pod.name, "--uid", &pod.uid]);
        command
            .args(["--tcp", TCP_PORTS, "--udp", UDP_PORTS])
            .stdout(Stdio::piped());
        self.spawn(command, namespace, &pod.name)
    }

    /// Changes the phase of pods; seen by nobody until [`Self::publish`].
    pub(crate) fn set_phase(&mut self, names: &[String], phase: Phase) {
        for pod in self.pods.iter_mut().filter(|pod| names.contains(&pod.name)) {
            pod.phase = phase;
        }
    }

    /// Changes a Service; its slices follow at the next [`Self::publish`].
    pub(crate) fn change_service(
        &mut self,
        name: &str,
        change: impl FnOnce(&mut k8s_openapi::api::core::v1::Service),
    ) -> anyhow::Result<()> {
        self.manifests.change_service(name, change)
    }

    /// Writes pods and slices for manager and agents to see.
    pub(crate) fn publish(&mut self) -> anyhow::Result<()> {
        self.manifests.publish(&self.pods)
    }

    /// The name of the pod with this UID; the UID itself if there is none.
    pub(crate) fn name_of(&self, uid: &str) -> String {
        let pod = self.pods.iter().find(|pod| pod.uid == uid);
        pod.map_or(uid, |pod| &pod.name).to_owned()
    }

    /// Asks the agent of a machine.
    pub(crate) async fn ask<T>(&self, machine: &str, path: &'static str) -> anyhow::Result<T>
    where
        T: serde::de::DeserializeOwned + Send + 'static,
    {
        let socket = self.socket(machine);
        let answer = tokio::task::spawn_blocking(move || crate::agent::get(&socket, path));
        answer.await.context("ask an agent")?
    }

    /// The namespaces of all pods.
    pub(crate) fn pod_namespaces(&self) -> impl Iterator<Item = &Namespace> {
        self.servers.iter().map(|(namespace, _)| namespace)
    }

    /// Agents pass packets of unknown flows on.
    pub(crate) fn relays(&self) -> bool {
        !self.settings.no_relay
    }

    /// A copy of the program: as good as another build, since nothing is shared with the first but the pinned maps.
    pub(crate) fn other_build(&self) -> anyhow::Result<PathBuf> {
        let directory = self.ledger.directory().join("bin");
        std::fs::create_dir_all(&directory)
            .with_context(|| format!("make {}", directory.display()))?;
        let copy = directory.join("lb-controller");
        if !copy.exists() {
            std::fs::copy(&self.settings.controller, &copy)
                .with_context(|| format!("copy to {}", copy.display()))?;
        }
        Ok(copy)
    }

    /// Waits until every agent programs what was published last.
    pub(crate) async fn applied(&mut self) -> anyhow::Result<()> {
        // Manager and agents act within milliseconds; agreement on an older version must not be taken for the newest.
        tokio::time::sleep(APPLY_TIME).await;
        self.settled().await
    }

    /// Waits until these agents are ready and agree on every Service.
    pub(crate) async fn settled(&mut self) -> anyhow::Result<()> {
        let started = Instant::now();
        loop {
            let problem = match self.disagreement().await {
                Ok(None) => return Ok(()),
                Ok(Some(problem)) => problem,
                Err(error) => format!("{error:#}"),
            };
            self.check_alive()?;
            if started.elapsed() > SETTLE_LIMIT {
                bail!(
                    "not settled after {} s: {problem}; logs are in {}",
                    SETTLE_LIMIT.as_secs(),
                    self.logs().display()
                );
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Why the cluster is not settled; none: it is.
    async fn disagreement(&self) -> anyhow::Result<Option<String>> {
        let mut digests: BTreeMap<String, Option<String>> = BTreeMap::new();
        for machine in self.machines() {
            let status: admin::Status = self.ask(&machine, "/v1/status").await?;
            if !status.ready || !status.fresh {
                let why = status.not_ready_because.join("; ");
                return Ok(Some(format!("the agent of {machine} is not ready: {why}")));
            }
            let services: admin::Services = self.ask(&machine, "/v1/services").await?;
            for service in services.services {
                let name = format!("{}/{}", service.namespace, service.name);
                if let Some(problem) = service.problem {
                    return Ok(Some(format!("Service {name} on {machine}: {problem}")));
                }
                let known = digests
                    .entry(name.clone())
                    .or_insert(service.digest.clone());
                if *known != service.digest || service.digest.is_none() {
                    return Ok(Some(format!(
                        "{machine} has another table of {name} than others"
                    )));
                }
            }
        }
        Ok(digests
            .is_empty()
            .then(|| "no agent knows a Service".to_owned()))
    }

    /// A process that ended by itself is a failure of the lab.
    fn check_alive(&mut self) -> anyhow::Result<()> {
        let logs = self.logs();
        let manager = self.manager.iter_mut().map(|child| ("manager", child));
        let agents = self
            .agents
            .iter_mut()
            .map(|(name, child)| (name.as_str(), child));
        for (name, child) in manager.chain(agents) {
            if let Some(status) = child.try_wait().context("look after a process")? {
                let log = logs.join(format!("{name}.log"));
                bail!(
                    "lb-controller of {name} ended with {status}: {}; all of it is in {}",
                    last_line(&log),
                    log.display()
                );
            }
        }
        Ok(())
    }

    /// The label `app` that a Service selects.
    pub(crate) fn selected_app(&self, service: &str) -> String {
        self.manifests.selected_app(service)
    }

    /// VIP addresses of a Service as its annotation names them.
    pub(crate) fn vips(&self, service: &str) -> Vec<IpAddr> {
        self.manifests.vips(service)
    }

    fn machine(&self, name: &str) -> anyhow::Result<&(Machine, Namespace)> {
        let mut machines = self.network.machines.iter();
        machines
            .find(|(machine, _)| machine.name == name)
            .with_context(|| format!("there is no machine {name}"))
    }

    /// Starts a process in a namespace, with its errors (and its output, if nobody else takes it) in a log.
    fn spawn(
        &self,
        mut command: Command,
        namespace: &Namespace,
        name: &str,
    ) -> anyhow::Result<Child> {
        let path = self.logs().join(format!("{name}.log"));
        let log = File::options().create(true).append(true).open(&path);
        let log = log.with_context(|| format!("open {}", path.display()))?;
        // A group of its own: Ctrl-C is for lbctl, which then ends everything in order.
        command
            .process_group(0)
            .stdin(Stdio::null())
            .stderr(log.try_clone().context("duplicate a file")?);
        if name == "manager"
            || self
                .network
                .machines
                .iter()
                .any(|(machine, _)| machine.name == name)
        {
            command.stdout(log);
        }
        let program = command.get_program().to_owned();
        namespace.inside(|| {
            // A child inherits the namespaces of the thread that starts it.
            command
                .spawn()
                .with_context(|| format!("start {}", Path::new(&program).display()))
        })
    }
}

fn last_line(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    text.lines().last().unwrap_or("its log is empty").to_owned()
}

impl Drop for Cluster {
    /// Collects what was killed by the sweep; what is kept goes on.
    fn drop(&mut self) {
        let servers = self.servers.iter_mut().map(|(_, server)| server);
        for child in servers
            .chain(&mut self.manager)
            .chain(self.agents.values_mut())
        {
            // Never waits: a process that still runs is to stay.
            let _ = child.try_wait();
        }
    }
}
