//! The table of routes to VIPs, exported by a real BIRD as `deploy/examples/bird.conf` has it, and learnt by another one that plays
//! the router.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use lb_controller::announce::routes::{METRIC, METRIC_LAST, Routes, TABLE_DEFAULT};
use lb_controller::dataplane::routes::{Held, keep};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Longest wait for anything.
const LIMIT: Duration = Duration::from_secs(20);
const VIP: &str = "198.51.100.1/32";
const VIP6: &str = "2001:db8:100::1/128";

/// What the router's BIRD is told: it learns, follows RFC 8326, and keeps routes of a peer that restarts.
const ROUTER: &str = "
router id 10.99.0.2;
log stderr all;
protocol device {}
protocol bfd { interface \"*\" { interval 100 ms; multiplier 3; }; }
filter from_nodes {
    if (65535, 0) ~ bgp_community then bgp_local_pref = 0;
    accept;
}
template bgp nodes {
    local as 64500;
    graceful restart on;
    bfd on;
    connect retry time 1;
    connect delay time 1;
}
protocol bgp node4 from nodes {
    neighbor 10.99.0.1 as 64501;
    ipv4 { import filter from_nodes; export none; };
}
protocol bgp node6 from nodes {
    bfd off;
    neighbor fd99::1 as 64501;
    ipv6 { import filter from_nodes; export none; };
}
";

/// A node and a router, a cable between them, and a BIRD on each. Namespaces have no names: each is that of a process.
struct Lab {
    dir: tempfile::TempDir,
    holders: [Child; 2],
    birds: [Option<Child>; 2],
}

/// The network namespace of a process.
fn namespace(of: &Child) -> PathBuf {
    PathBuf::from(format!("/proc/{}/ns/net", of.id()))
}

const NODE: usize = 0;
const PEER: usize = 1;

fn succeed(command: &mut Command) {
    let status = command.status().unwrap();
    assert!(status.success(), "{command:?}");
}

impl Lab {
    fn new() -> Self {
        let holder = || {
            let mut command = Command::new("unshare");
            command.args(["--net", "sleep", "infinity"]);
            command.spawn().unwrap()
        };
        let mut lab = Self {
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
        let [node, router] = lab.holders.each_ref().map(Child::id);
        let mut cable = Command::new("ip");
        let ends = format!("link add cable netns {node} type veth peer name cable netns {router}");
        succeed(cable.args(ends.split(' ')));
        for of in [NODE, PEER] {
            let host = of + 1;
            lab.ip(of, "link set lo up");
            lab.ip(of, &format!("address add 10.99.0.{host}/24 dev cable"));
            lab.ip(of, &format!("address add fd99::{host}/64 dev cable nodad"));
            lab.ip(of, "link set cable up");
        }
        let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/examples/bird.conf");
        let example = std::fs::read_to_string(example).unwrap();
        let node = example
            .replace("192.0.2.11", "10.99.0.1")
            .replace("192.0.2.1;", "10.99.0.2;")
            .replace("2001:db8::1;", "fd99::2;")
            // BFD tells the router of a BIRD that restarts, too, and then nothing is kept.
            .replace("neighbor ROUTER6", "bfd off; neighbor ROUTER6");
        std::fs::write(lab.path(NODE, "conf"), node).unwrap();
        std::fs::write(lab.path(PEER, "conf"), ROUTER).unwrap();
        lab.start(NODE);
        lab.start(PEER);
        lab
    }

    /// A program in a namespace.
    fn inside(&self, of: usize, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        let net = format!("--net={}", namespace(&self.holders[of]).display());
        command.args([&net, program]);
        command
    }

    fn ip(&self, of: usize, words: &str) {
        succeed(self.inside(of, "ip").args(words.split(' ')));
    }

    fn path(&self, of: usize, what: &str) -> PathBuf {
        self.dir.path().join(format!("{of}.{what}"))
    }

    fn start(&mut self, of: usize) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.path(of, "log"))
            .unwrap();
        let mut command = self.inside(of, "bird");
        command
            .args(["-f", "-c"])
            .arg(self.path(of, "conf"))
            .arg("-s")
            .arg(self.path(of, "socket"));
        let child = command.stdin(Stdio::null()).stderr(log).spawn().unwrap();
        self.birds[of] = Some(child);
    }

    /// It does nothing any more, and its sockets stay.
    fn freeze(&self, of: usize) {
        let child = self.birds[of].as_ref().unwrap();
        let pid = Pid::from_raw(child.id().cast_signed());
        kill(pid, Signal::SIGSTOP).unwrap();
    }

    /// Ends as it does to be started again.
    fn replace(&mut self, of: usize) {
        self.ask(of, "graceful restart");
        self.birds[of].take().unwrap().wait().unwrap();
    }

    fn ask(&self, of: usize, question: &str) -> String {
        let mut command = Command::new("birdc");
        command.arg("-s").arg(self.path(of, "socket"));
        let told = command.args(question.split_whitespace()).output().unwrap();
        String::from_utf8_lossy(&told.stdout).into_owned()
    }

    /// What the router says of a route.
    fn learnt(&self, prefix: &str) -> String {
        self.ask(PEER, &format!("show route all {prefix}"))
    }

    /// For who looks into a failure.
    fn state(&self) -> String {
        let of = |of: usize| {
            let log = std::fs::read_to_string(self.path(of, "log")).unwrap_or_default();
            let asked = [
                self.ask(of, "show protocols all"),
                self.ask(of, "show route all"),
            ];
            format!("{}:\n{log}\n{}", ["node", "router"][of], asked.join("\n"))
        };
        format!("{}\n{}", of(NODE), of(PEER))
    }

    fn until(&self, what: &str, holds: impl Fn() -> bool) -> Duration {
        let start = Instant::now();
        while !holds() {
            assert!(
                start.elapsed() < LIMIT,
                "{what}, not within {LIMIT:?}:\n{}",
                self.state()
            );
            sleep(Duration::from_millis(10));
        }
        start.elapsed()
    }

    fn is_learnt(&self, prefix: &str) -> bool {
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

/// What an agent does in the node's namespace, until it is dropped.
struct Keeper {
    wanted: watch::Sender<Option<Routes>>,
    held: watch::Receiver<Held>,
    stop: CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Keeper {
    fn start(lab: &Lab) -> Self {
        let wanted = watch::Sender::new(None);
        let (told, held) = watch::channel(Held::default());
        let stop = CancellationToken::new();
        let namespace = namespace(&lab.holders[NODE]);
        let (follow, ended) = (wanted.subscribe(), stop.clone());
        let thread = std::thread::spawn(move || {
            setns(File::open(namespace).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
            let mut builder = tokio::runtime::Builder::new_current_thread();
            let runtime = builder.enable_all().build().unwrap();
            runtime.block_on(keep(TABLE_DEFAULT, follow, told, ended));
        });
        Self {
            wanted,
            held,
            stop,
            thread: Some(thread),
        }
    }

    fn want(&self, routes: &Routes) {
        self.wanted.send_replace(Some(routes.clone()));
        let start = Instant::now();
        while self.held.borrow().routes.as_ref() != Some(routes) {
            let held = self.held.borrow().clone();
            assert!(start.elapsed() < LIMIT, "{:?}", held.fault);
            sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.stop.cancel();
        _ = self.thread.take().unwrap().join();
    }
}

fn routes(prefixes: &[&str], metric: u32) -> Routes {
    let prefixes = prefixes.iter();
    prefixes
        .map(|prefix| (prefix.parse().unwrap(), metric))
        .collect()
}

#[test]
fn a_router_learns_vips_prefers_others_to_a_node_that_leaves_and_keeps_what_restarts() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: making namespaces needs root");
        return;
    }
    if Command::new("bird").arg("--version").output().is_err() {
        eprintln!("skipped: no bird on this machine (Debian package bird2)");
        return;
    }
    let mut lab = Lab::new();
    let keeper = Keeper::start(&lab);
    keeper.want(&routes(&[VIP, VIP6], METRIC));
    lab.until("the router learns both VIPs", || {
        lab.is_learnt(VIP) && lab.is_learnt(VIP6)
    });
    assert!(
        lab.learnt(VIP).contains("BGP.local_pref: 100"),
        "{}",
        lab.learnt(VIP)
    );

    // De-preferred, then withdrawn, then back.
    keeper.want(&routes(&[VIP, VIP6], METRIC_LAST));
    lab.until("the router prefers others", || {
        let told = [lab.learnt(VIP), lab.learnt(VIP6)];
        let is_last = |told: &String| {
            told.contains("BGP.community: (65535,0)") && told.contains("BGP.local_pref: 0")
        };
        told.iter().all(is_last)
    });
    keeper.want(&Routes::new());
    lab.until("VIPs are withdrawn", || {
        !lab.is_learnt(VIP) && !lab.is_learnt(VIP6)
    });
    keeper.want(&routes(&[VIP], METRIC));
    lab.until("the router learns the VIP again", || lab.is_learnt(VIP));

    // The agent ends, and BIRD is configured anew: nothing happens to routes or sessions.
    drop(keeper);
    let since = |lab: &Lab| lab.ask(PEER, "show protocols node4");
    let before = since(&lab);
    let told = lab.ask(NODE, "configure");
    assert!(told.contains("Reconfigured"), "{told}");
    sleep(Duration::from_millis(300));
    assert!(lab.is_learnt(VIP));
    assert_eq!(since(&lab), before);
    let keeper = Keeper::start(&lab);

    // BIRD is replaced: without BFD the router keeps routes meanwhile (RFC 4724).
    keeper.want(&routes(&[VIP, VIP6], METRIC));
    lab.until("the router learns both again", || lab.is_learnt(VIP6));
    lab.replace(NODE);
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(1) {
        assert!(lab.is_learnt(VIP6), "{}", lab.state());
        sleep(Duration::from_millis(50));
    }
    lab.start(NODE);
    lab.until("sessions are up again", || {
        let told = lab.ask(PEER, "show protocols");
        told.matches("Established").count() == 2
    });
    lab.until("both routes are there", || {
        lab.is_learnt(VIP) && lab.is_learnt(VIP6)
    });

    // A thousand VIPs.
    let all: Routes = (0..1000_u32)
        .map(|number| {
            let address = std::net::Ipv4Addr::from_bits(0xc612_0000 + number);
            (ipnet::IpNet::from(std::net::IpAddr::from(address)), METRIC)
        })
        .collect();
    let count = || lab.ask(PEER, "show route count");
    let start = Instant::now();
    keeper.want(&all);
    let installed = start.elapsed();
    lab.until("a thousand VIPs", || {
        count().contains("1000 of 1000 routes")
    });
    eprintln!(
        "a thousand VIPs: in the table after {installed:?}, at the router after {:?}",
        start.elapsed()
    );
    let start = Instant::now();
    keeper.want(&routes(&[VIP], METRIC));
    lab.until("one VIP", || {
        count().contains("1 of 1 routes for 1 networks in table master4")
    });
    eprintln!("and gone from there after {:?}", start.elapsed());

    // The node is silent from one instant to the next, and BFD notices.
    lab.freeze(NODE);
    let took = lab.until("the router forgets a silent node", || !lab.is_learnt(VIP));
    eprintln!("a silent node is left after {took:?}");
}
