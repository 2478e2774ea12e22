//! The table of routes to VIPs, exported as `deploy/examples/bird.conf` has it: what operators copy who configure BIRD themselves.

use std::fs::File;
use std::thread::sleep;
use std::time::{Duration, Instant};

use lb_controller::announce::routes::{METRIC, METRIC_LAST, Routes, TABLE_DEFAULT};
use lb_controller::dataplane::routes::{Held, keep};
use nix::sched::{CloneFlags, setns};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::lab::{CONFIG, LIMIT, Lab, NODE, PEER, is_possible, namespace};

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

/// The example, with the addresses of the lab.
fn example() -> String {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/examples/bird.conf");
    let example = std::fs::read_to_string(example).unwrap();
    example
        .replace("192.0.2.11", "10.99.0.1")
        .replace("192.0.2.1;", "10.99.0.2;")
        .replace("2001:db8::1;", "fd99::2;")
        // BFD tells the router of a BIRD that restarts, too, and then nothing is kept.
        .replace("neighbor ROUTER6", "bfd off; neighbor ROUTER6")
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
    if !is_possible() {
        return;
    }
    let mut lab = Lab::new(ROUTER);
    std::fs::write(lab.path(NODE, CONFIG), example()).unwrap();
    lab.start(NODE);
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
