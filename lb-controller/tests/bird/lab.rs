//! A node and a router with a cable between them, and a BIRD on each: namespaces and processes, no decisions.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Longest wait for anything.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);
/// Names of BIRD's files, as the agent has them.
pub(crate) const CONFIG: &str = "bird.conf";
const SOCKET: &str = "bird.ctl";

/// Whether labs can be had here; says why not.
pub(crate) fn is_possible() -> bool {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: making namespaces needs root");
        return false;
    }
    if Command::new("bird").arg("--version").output().is_err() {
        eprintln!("skipped: no bird on this machine (Debian package bird2)");
        return false;
    }
    true
}

/// A node and a router, a cable between them, and a BIRD on each. Namespaces have no names: each is that of a process.
pub(crate) struct Lab {
    dir: tempfile::TempDir,
    pub(crate) holders: [Child; 2],
    birds: [Option<Child>; 2],
}

/// The network namespace of a process.
pub(crate) fn namespace(of: &Child) -> PathBuf {
    PathBuf::from(format!("/proc/{}/ns/net", of.id()))
}

pub(crate) const NODE: usize = 0;
pub(crate) const PEER: usize = 1;

fn succeed(command: &mut Command) {
    let status = command.status().unwrap();
    assert!(status.success(), "{command:?}");
}

impl Lab {
    /// With a BIRD at the router, and none at the node so far.
    pub(crate) fn new(router: &str) -> Self {
        let mut lab = Self::without_router();
        std::fs::write(lab.path(PEER, CONFIG), router).unwrap();
        lab.start(PEER);
        lab
    }

    /// With nothing at either.
    pub(crate) fn without_router() -> Self {
        let holder = || {
            let mut command = Command::new("unshare");
            command.args(["--net", "sleep", "infinity"]);
            command.spawn().unwrap()
        };
        let lab = Self {
            dir: tempfile::tempdir().unwrap(),
            holders: [holder(), holder()],
            birds: [None, None],
        };
        let own = std::fs::read_link("/proc/self/ns/net").unwrap();
        lab.until("namespaces are there", || {
            let all = lab.holders.iter();
            all.clone().all(|holder| {
                let namespace = std::fs::read_link(namespace(holder));
                namespace.is_ok_and(|namespace| namespace != own)
            })
        });
        let [node, peer] = lab.holders.each_ref().map(Child::id);
        let mut cable = Command::new("ip");
        let ends = format!("link add cable netns {node} type veth peer name cable netns {peer}");
        succeed(cable.args(ends.split(' ')));
        for of in [NODE, PEER] {
            let host = of + 1;
            lab.ip(of, "link set lo up");
            lab.ip(of, &format!("address add 10.99.0.{host}/24 dev cable"));
            lab.ip(of, &format!("address add fd99::{host}/64 dev cable nodad"));
            lab.ip(of, "link set cable up");
        }
        lab
    }

    /// A program in a namespace.
    pub(crate) fn inside(&self, of: usize, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        let net = format!("--net={}", namespace(&self.holders[of]).display());
        command.args([&net, program]);
        command
    }

    pub(crate) fn ip(&self, of: usize, words: &str) {
        succeed(self.inside(of, "ip").args(words.split(' ')));
    }

    pub(crate) fn path(&self, of: usize, what: &str) -> PathBuf {
        let directory = self.dir.path().join(["node", "router"][of]);
        std::fs::create_dir_all(&directory).unwrap();
        directory.join(what)
    }

    pub(crate) fn start(&mut self, of: usize) {
        self.start_with(of, &["-f"]);
    }

    /// Like the container beside an agent: what routers have kept is to stay there until all is told again.
    pub(crate) fn recover(&mut self, of: usize) {
        self.start_with(of, &["-f", "-R"]);
    }

    fn start_with(&mut self, of: usize, options: &[&str]) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.path(of, "bird.log"))
            .unwrap();
        let mut command = self.inside(of, "bird");
        command
            .args(options)
            .arg("-c")
            .arg(self.path(of, CONFIG))
            .arg("-s")
            .arg(self.path(of, SOCKET));
        let child = command.stdin(Stdio::null()).stderr(log).spawn().unwrap();
        self.birds[of] = Some(child);
    }

    /// It does nothing any more, and its sockets stay.
    pub(crate) fn freeze(&self, of: usize) {
        let child = self.birds[of].as_ref().unwrap();
        let pid = Pid::from_raw(child.id().cast_signed());
        kill(pid, Signal::SIGSTOP).unwrap();
    }

    /// Ends as it does to be started again.
    pub(crate) fn replace(&mut self, of: usize) {
        self.ask(of, "graceful restart");
        self.birds[of].take().unwrap().wait().unwrap();
    }

    pub(crate) fn ask(&self, of: usize, question: &str) -> String {
        let mut command = Command::new("birdc");
        command.arg("-s").arg(self.path(of, SOCKET));
        let told = command.args(question.split_whitespace()).output().unwrap();
        String::from_utf8_lossy(&told.stdout).into_owned()
    }

    /// What the router says of a route.
    pub(crate) fn learnt(&self, prefix: &str) -> String {
        self.ask(PEER, &format!("show route all {prefix}"))
    }

    /// For who looks into a failure.
    pub(crate) fn state(&self) -> String {
        let of = |of: usize| {
            let log = std::fs::read_to_string(self.path(of, "bird.log")).unwrap_or_default();
            let asked = [
                self.ask(of, "show protocols all"),
                self.ask(of, "show route all"),
            ];
            format!("{}:\n{log}\n{}", ["node", "router"][of], asked.join("\n"))
        };
        format!("{}\n{}", of(NODE), of(PEER))
    }

    pub(crate) fn until(&self, what: &str, holds: impl Fn() -> bool) -> Duration {
        self.until_told(|| what.to_owned(), holds)
    }

    /// The same, with a sentence that is only made if it does not come true.
    pub(crate) fn until_told(
        &self,
        what: impl Fn() -> String,
        holds: impl Fn() -> bool,
    ) -> Duration {
        let start = Instant::now();
        while !holds() {
            assert!(
                start.elapsed() < LIMIT,
                "{}, not within {LIMIT:?}:\n{}",
                what(),
                self.state()
            );
            sleep(Duration::from_millis(10));
        }
        start.elapsed()
    }

    pub(crate) fn is_learnt(&self, prefix: &str) -> bool {
        self.learnt(prefix).contains("BGP.origin")
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for child in self.birds.iter_mut().flatten() {
            _ = child.kill();
            _ = child.wait();
        }
        for holder in &mut self.holders {
            _ = holder.kill();
            _ = holder.wait();
        }
    }
}
