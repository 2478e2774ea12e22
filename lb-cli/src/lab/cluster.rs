//! The lab's cluster: the network, pods with their servers, manager and agents, and the objects that describe them.
//! Knows how to change all of that, and nothing of why.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::IpAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context, bail};
use authority::handoff::{self, Holder};

use super::flood;
use super::ledger::{CERTIFICATES, FROZEN, Ledger, VIEWS};
use super::manifests::Manifests;
use super::netns::Namespace;
use super::network::Network;
use super::objects::{Phase, Pod};
use super::plan::Machine;

/// Ports that servers of pods listen on: those of the examples, and others to change to.
const TCP_PORTS: &str = "8080,8081";
/// The same for UDP.
const UDP_PORTS: &str = "5353,5354";

/// How the agents run.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// The program with manager and agent.
    pub(crate) controller: PathBuf,
    /// How many machines get packets from the router.
    pub(crate) balancers: u8,
    /// The router learns by BGP where to send packets.
    pub(crate) bird: bool,
    /// Packets of unknown flows are not passed on: the control that must break connections.
    pub(crate) no_relay: bool,
    /// The `--xdp-mode` of the agents.
    pub(crate) xdp_mode: String,
}

/// Where a new pod goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// To the node with the fewest pods.
    FewestPods,
    /// To another node than that of an older pod, given by its number: packets of the older one's flows then meet a node
    /// that has to pass them on.
    AwayFrom(usize),
}

/// The lab's cluster. Its processes are killed when the ledger is swept.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(super) settings: Settings,
    pub(super) ledger: Ledger,
    /// What joins everything.
    pub(crate) network: Arc<Network>,
    pub(super) manifests: Manifests,
    /// In the order of their making.
    pub(crate) pods: Vec<Pod>,
    pods_of: BTreeMap<String, u8>,
    servers: Vec<(Namespace, Child)>,
    pub(super) manager: Option<Child>,
    pub(super) agents: BTreeMap<String, Child>,
    pub(super) birds: Vec<Child>,
    /// Machines that have not joined, or have lost power.
    pub(super) absent: BTreeSet<String>,
}

impl Cluster {
    /// Builds the network, and the directory of objects; nothing runs yet.
    pub(crate) fn build(
        name: &str,
        settings: Settings,
        mut ledger: Ledger,
    ) -> anyhow::Result<Self> {
        let network = Network::build(name, settings.balancers, &mut ledger)?;
        for part in ["logs", "sockets", CERTIFICATES, VIEWS, FROZEN] {
            let path = ledger.directory().join(part);
            // Of an earlier run; there need not be any.
            let _ = std::fs::remove_dir_all(&path);
            std::fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
        }
        let nodes = network.machines.iter();
        let nodes = nodes.map(|(machine, _)| machine.name.as_str());
        let certificates = ledger.directory().join(CERTIFICATES);
        handoff::write(&certificates, nodes, SystemTime::now()).context("make certificates")?;
        let mut manifests = Manifests::create(ledger.directory())?;
        for (machine, _) in &network.machines {
            manifests.node(machine)?;
        }
        let cluster = Self {
            settings,
            ledger,
            network: Arc::new(network),
            manifests,
            pods: Vec::new(),
            pods_of: BTreeMap::new(),
            servers: Vec::new(),
            manager: None,
            agents: BTreeMap::new(),
            birds: Vec::new(),
            absent: BTreeSet::new(),
        };
        cluster.make_views()?;
        Ok(cluster)
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

    /// Names of the machines that are there, balancers first.
    pub(crate) fn machines(&self) -> Vec<String> {
        self.network
            .machines
            .iter()
            .map(|(machine, _)| machine.name.clone())
            .filter(|name| self.is_there(name))
            .collect()
    }

    /// The admin socket of a machine's agent.
    pub(crate) fn socket(&self, machine: &str) -> PathBuf {
        self.ledger
            .directory()
            .join("sockets")
            .join(format!("{machine}.sock"))
    }

    /// Where the certificates of the streams between nodes are: of the manager, or of one machine's agent.
    pub(super) fn certificates(&self, holder: Holder<'_>) -> PathBuf {
        holder.directory(&self.ledger.directory().join(CERTIFICATES))
    }

    /// Makes pods with running servers, one at each place. They are in no slice until [`Self::publish`].
    pub(crate) fn add_pods(
        &mut self,
        places: impl IntoIterator<Item = Place>,
        app: &str,
    ) -> anyhow::Result<Vec<String>> {
        let first = self.pods.len();
        for place in places {
            let pod = self.next_pod(app, place)?;
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

    /// The next pod, where it was asked for.
    fn next_pod(&mut self, app: &str, place: Place) -> anyhow::Result<Pod> {
        let number = self.pods.len() + 1;
        let nodes = self.network.machines.iter().map(|(machine, _)| machine);
        let nodes = nodes.filter(|machine| machine.pods().is_some());
        // Nothing starts on a machine without power.
        let nodes: Vec<&Machine> = nodes.filter(|node| self.is_there(&node.name)).collect();
        let fewest = || {
            let count = |node: &&&Machine| self.pods_of.get(&node.name).copied().unwrap_or(0);
            nodes.iter().min_by_key(count)
        };
        let node = match place {
            Place::FewestPods => fewest(),
            Place::AwayFrom(pod) => {
                let old = self
                    .pods
                    .get(pod)
                    .context("a pod succeeds one that does not exist")?;
                match nodes.iter().position(|node| node.name == old.node) {
                    Some(at) => nodes.get((at + 1) % nodes.len()),
                    None => fewest(),
                }
            }
        };
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

    /// Makes the machine that floods come from.
    pub(crate) fn stranger(&mut self) -> anyhow::Result<Namespace> {
        self.network.stranger(flood::sources(), &mut self.ledger)
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

    /// The namespaces of all pods.
    pub(crate) fn pod_namespaces(&self) -> impl Iterator<Item = &Namespace> {
        self.servers.iter().map(|(namespace, _)| namespace)
    }

    /// Agents pass packets of unknown flows on.
    pub(crate) fn relays(&self) -> bool {
        !self.settings.no_relay
    }

    /// The label `app` that a Service selects.
    pub(crate) fn selected_app(&self, service: &str) -> String {
        self.manifests.selected_app(service)
    }

    /// VIP addresses of a Service as its annotation names them.
    pub(crate) fn vips(&self, service: &str) -> Vec<IpAddr> {
        self.manifests.vips(service)
    }

    pub(super) fn machine(&self, name: &str) -> anyhow::Result<&(Machine, Namespace)> {
        let mut machines = self.network.machines.iter();
        machines
            .find(|(machine, _)| machine.name == name)
            .with_context(|| format!("there is no machine {name}"))
    }

    /// Starts a process in a namespace, with its errors (and its output, if nobody else takes it) in a log.
    pub(super) fn spawn(
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

impl Drop for Cluster {
    /// Collects what was killed by the sweep; what is kept goes on.
    fn drop(&mut self) {
        let servers = self.servers.iter_mut().map(|(_, server)| server);
        for child in servers
            .chain(&mut self.manager)
            .chain(self.agents.values_mut())
            .chain(&mut self.birds)
        {
            // Never waits: a process that still runs is to stay.
            let _ = child.try_wait();
        }
    }
}
