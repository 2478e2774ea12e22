//! A whole cluster: machines made of namespaces, with real containers, a fabric between them, and a client behind the
//! fabric's router. It stays until [`Cluster::down`], whoever started it.

mod control;
mod fabric;
mod faults;
mod node;
mod pass;
pub mod plan;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, ensure};
use kube::Client;

pub use self::node::TOOLS_IMAGE;
use crate::binaries::{Binaries, Program};
use crate::cgroup::Tree;
use crate::credentials::{Credentials, User};
use crate::image::{self, Files, Start};
use crate::machine::{self, Machine, must_run, wait_until};

/// Everything of a cluster ends within this after a SIGKILL.
const END_LIMIT: Duration = Duration::from_secs(30);

/// Where each cluster has its directory: not below /var or /run, which every machine has for itself.
const STATES: &str = "/srv";
/// What names of directories and of cgroups start with.
const PREFIX: &str = "bowline-";

/// Settings that the kubelet changes for the whole kernel; [`Cluster::down`] puts them back.
const KUBELET_CHANGES: [&str; 6] = [
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
];

/// A cluster with a name, running or not. Clusters of different names do not meet, though their addresses are the same.
#[derive(Debug)]
pub struct Cluster {
    state: PathBuf,
    tree: Tree,
    binaries: Binaries,
    credentials: Credentials,
}

/// A running daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// Machine that it runs on.
    pub machine: String,
    /// Name of the program.
    pub daemon: String,
    /// Process id.
    pub pid: i32,
    /// Resident memory.
    pub memory_kib: u64,
}

impl Cluster {
    /// Opens the cluster of this name: small letters, digits and dashes.
    pub fn open(name: &str) -> anyhow::Result<Self> {
        machine::check_here()?;
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        ensure!(
            (1..=20).contains(&name.len()) && name.chars().all(plain),
            "{name:?} is no name of a cluster: 1 to 20 small letters, digits and dashes"
        );
        let name = format!("{PREFIX}{name}");
        let tree = Tree::find(&name)?;
        let binaries = Binaries::ensure(&Program::ALL)?;
        let state = Path::new(STATES).join(&name);
        Ok(Self {
            credentials: Credentials::open(&state.join("pki")),
            state,
            tree,
            binaries,
        })
    }

    /// Boots the control plane, the client and so many nodes, or what of them does not run.
    pub fn up(&self, nodes: u8) -> anyhow::Result<()> {
        ensure!(
            nodes <= plan::NODES_MAX,
            "a cluster has at most {} nodes",
            plan::NODES_MAX
        );
        std::fs::create_dir_all(&self.state)
            .with_context(|| format!("make {}", self.state.display()))?;
        let _lock = self.lock()?;
        self.save_settings()?;
        self.tree.create()?;
        control::credentials(&self.state)?;
        self.kubeconfig()?;
        let fabric = self.fabric();
        fabric.boot()?;
        fabric::switch(&fabric)?;
        self.start_api_server_process()?;
        std::thread::scope(|scope| {
            let client = scope.spawn(|| self.boot_client());
            let nodes: Vec<_> = (1..=nodes)
                .map(|index| scope.spawn(move || self.boot_node(index)))
                .collect();
            self.wait_for_api_server()?;
            self.start_controllers()?;
            joined(client)?;
            nodes.into_iter().try_for_each(joined)
        })?;
        std::thread::scope(|scope| {
            let nodes: Vec<_> = (1..=nodes)
                .map(|index| scope.spawn(move || self.join_node(index)))
                .collect();
            nodes.into_iter().try_for_each(joined)
        })
    }

    fn boot_client(&self) -> anyhow::Result<()> {
        let client = self.client();
        client.boot()?;
        fabric::client_cable(&self.fabric(), &client)
    }

    fn join_node(&self, index: u8) -> anyhow::Result<()> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = now.map_or(0, |now| now.as_secs().cast_signed());
        let since = if self.start_kubelet(index)? { now } else { 0 };
        self.connect_pods(index)?;
        self.wait_for_node(index, since)
    }

    /// Removes everything that [`Self::up`] made, also after a crash of it; does nothing if there is nothing.
    pub fn down(&self) -> anyhow::Result<()> {
        if self.state.is_dir() {
            let _lock = self.lock()?;
            self.end()?;
            self.restore_settings()?;
            std::fs::remove_dir_all(&self.state)
                .with_context(|| format!("remove {}", self.state.display()))?;
        }
        self.end()
    }

    fn end(&self) -> anyhow::Result<()> {
        wait_until(END_LIMIT, "the processes to end", || Ok(self.tree.kill("")))?;
        self.tree.remove("")
    }

    /// Whether it runs: its control plane at least has been booted.
    pub fn is_up(&self) -> bool {
        self.fabric().init().is_some()
    }

    /// Names of all clusters that have left something on this machine, running or not.
    pub fn names() -> Vec<String> {
        let entries = std::fs::read_dir(STATES).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries
            .filter(|entry| entry.path().join("pki").is_dir())
            .filter_map(|entry| Some(entry.file_name().to_str()?.strip_prefix(PREFIX)?.to_owned()))
            .collect();
        names.sort();
        names
    }

    /// The machine of a name, if a cluster has one of that name.
    pub fn machine(&self, name: &str) -> anyhow::Result<Machine> {
        let known =
            [plan::FABRIC, plan::CLIENT].contains(&name) || plan::node_index(name).is_some();
        ensure!(
            known,
            "no machine is called {name}: there are fabric, client, node1, node2 and so on"
        );
        Ok(self.named(name))
    }

    /// Switch, router and control plane.
    pub fn fabric(&self) -> Machine {
        self.named(plan::FABRIC)
    }

    /// The client behind the router.
    pub fn client(&self) -> Machine {
        self.named(plan::CLIENT)
    }

    /// A node, counted from 1.
    pub fn node(&self, index: u8) -> Machine {
        self.named(&plan::node_name(index))
    }

    /// The nodes that run.
    pub fn nodes(&self) -> Vec<Machine> {
        let nodes = (1..=plan::NODES_MAX).map(|index| self.node(index));
        nodes.filter(|node| node.init().is_some()).collect()
    }

    fn named(&self, name: &str) -> Machine {
        Machine::new(name, &self.state, &self.tree)
    }

    /// The administrator's kubeconfig, for programs on the fabric's network.
    pub fn kubeconfig(&self) -> anyhow::Result<PathBuf> {
        self.credentials.for_user(&plan::server(), &User::Admin)
    }

    /// A kubeconfig for any user, for programs on the fabric's network.
    pub fn kubeconfig_of(&self, user: &User) -> anyhow::Result<PathBuf> {
        self.credentials.for_user(&plan::server(), user)
    }

    fn kubeconfig_with_token(&self, user: &str) -> anyhow::Result<String> {
        let path = self.credentials.with_token(&plan::server(), user)?;
        Ok(format!("--kubeconfig={}", path.display()))
    }

    /// `kubectl` as administrator; files are those of this machine.
    pub fn kubectl(&self) -> anyhow::Result<Command> {
        let program = self.binaries.path(Program::Kubectl);
        let mut command = self.fabric().on_network(&program.display().to_string());
        command.arg("--kubeconfig").arg(self.kubeconfig()?);
        command.arg("--cache-dir").arg(self.state.join("kubectl"));
        Ok(command)
    }

    /// Does something with the API server as administrator, on a thread of the fabric's network.
    pub fn with_client<T, F>(&self, work: impl FnOnce(Client) -> F + Send) -> anyhow::Result<T>
    where
        T: Send,
        F: Future<Output = anyhow::Result<T>>,
    {
        let config = self.kubeconfig()?;
        self.fabric().work_on_network(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime.context("start a runtime")?.block_on(async {
                let client = crate::credentials::client(&config).await?;
                work(client).await
            })
        })
    }

    /// Imports an image archive into every node that runs.
    pub fn load(&self, archive: &Path) -> anyhow::Result<()> {
        let nodes = self.nodes();
        std::thread::scope(|scope| {
            let nodes: Vec<_> = nodes
                .iter()
                .map(|node| scope.spawn(|| self.load_into(node, archive)))
                .collect();
            nodes.into_iter().try_for_each(joined)
        })
    }

    fn load_into(&self, node: &Machine, archive: &Path) -> anyhow::Result<()> {
        let Self { .. } = self;
        let file = File::open(archive).with_context(|| format!("open {}", archive.display()))?;
        let mut ctr = node.inside("ctr");
        ctr.args(["--namespace", "k8s.io", "images", "import", "-"]);
        ctr.stdin(file).stdout(std::process::Stdio::null());
        must_run(&mut ctr)
            .with_context(|| format!("load {} into {}", archive.display(), node.name()))
    }

    /// The archive of [`TOOLS_IMAGE`], made if it is not there.
    fn tools_image(&self) -> anyhow::Result<PathBuf> {
        let archive = self.state.join("tools.tar");
        if !archive.is_file() {
            let start = Start {
                arguments: vec!["sleep".to_owned(), "infinity".to_owned()],
                ..Start::default()
            };
            image::write(&archive, TOOLS_IMAGE, &tools()?, &start)?;
        }
        Ok(archive)
    }

    /// What runs.
    pub fn running(&self) -> Vec<Running> {
        let mut all = Vec::new();
        let machines = self
            .tree
            .children("")
            .into_iter()
            .filter_map(|name| self.machine(&name).ok());
        for machine in machines {
            for daemon in machine.daemons() {
                let Some(pid) = machine.daemon(&daemon) else {
                    continue;
                };
                all.push(Running {
                    machine: machine.name().to_owned(),
                    daemon,
                    pid,
                    memory_kib: memory_kib(pid),
                });
            }
        }
        all
    }

    /// One `up` or `down` at a time.
    fn lock(&self) -> anyhow::Result<File> {
        let lock =
            File::open(&self.state).with_context(|| format!("open {}", self.state.display()))?;
        lock.lock().context("wait for another run")?;
        Ok(lock)
    }

    fn save_settings(&self) -> anyhow::Result<()> {
        let saved = self.state.join("settings");
        if saved.is_file() {
            return Ok(());
        }
        let read = |name: &&str| {
            Some(format!(
                "{name} {}",
                std::fs::read_to_string(setting(name)).ok()?
            ))
        };
        let text: String = KUBELET_CHANGES.iter().filter_map(read).collect();
        std::fs::write(&saved, text).with_context(|| format!("write {}", saved.display()))
    }

    fn restore_settings(&self) -> anyhow::Result<()> {
        let Ok(text) = std::fs::read_to_string(self.state.join("settings")) else {
            return Ok(());
        };
        for (name, value) in text.lines().filter_map(|line| line.split_once(' ')) {
            std::fs::write(setting(name), value)
                .with_context(|| format!("set {name} to {value}"))?;
        }
        Ok(())
    }
}

fn setting(name: &str) -> PathBuf {
    Path::new("/proc/sys").join(name)
}

fn memory_kib(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}

fn joined<T>(thread: std::thread::ScopedJoinHandle<'_, anyhow::Result<T>>) -> anyhow::Result<T> {
    thread
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Debian's static busybox under all its names.
fn tools() -> anyhow::Result<Files> {
    let busybox = Path::new("/usr/bin/busybox");
    let busybox = if busybox.is_file() {
        busybox
    } else {
        Path::new("/bin/busybox")
    };
    let mut files = Files::default();
    files
        .program("/bin/busybox", busybox)
        .context("is Debian's busybox-static installed?")?;
    let names = machine::output_of(Command::new(busybox).arg("--list"))?;
    for name in names.lines().filter(|name| *name != "busybox") {
        files.link(format!("/bin/{name}"), "busybox");
    }
    files.directory("/tmp", 0o1777);
    files.file("/etc/passwd", "root:x:0:0:root:/:/bin/sh\n", 0o644);
    Ok(files)
}
