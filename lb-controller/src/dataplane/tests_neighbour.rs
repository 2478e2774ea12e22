//! Announced VIPs on a real link: two nodes with programs, and a client's stack beside them. Needs root; says so and passes
//! without.

use std::any::Any;
use std::collections::BTreeSet;
use std::net::{IpAddr, UdpSocket};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use lb_ebpf::abi::{self, DropReason, Stat, service_flag};
use lb_ebpf::neighbour::{arp, discovery};
use lb_ebpf::wire::Mac;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Dataplane;
use super::attach::{Attacher, ModeChoice, Settings};
use super::bpf::BpfDataplane;
use super::claims::Claims;
use super::links::XdpMode;
use super::packet::PacketSocket;
use super::stamp::StampWriter;
use super::testing::{BpfDir, in_namespace, ip, is_root, namespace_id, output};
use super::tests::open;
use super::tests_attach::{links, runtime};
use crate::agent::stamp::{STAMP_PERIOD, monotonic_ns};
use crate::announce::{Conflict, Telling, claimed, tell};
use crate::model::op::Op;
use crate::model::plan::{mapped, service_key};

const VIP4: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 9, 0, 100));
const VIP6: &str = "2001:db8:9::1:64";
/// What must come true does so within this time.
const PATIENCE: Duration = Duration::from_secs(20);
const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xc];

fn vips() -> [IpAddr; 2] {
    [VIP4, VIP6.parse().unwrap()]
}

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace, and a thread in it.
struct Machine {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Machine {
    /// With `eth0` on the segment of the calling thread's namespace.
    fn new(number: u8) -> Self {
        let (jobs, received) = mpsc::channel::<Job>();
        let thread = thread::spawn(move || {
            in_namespace(move || received.into_iter().for_each(|job| job()));
        });
        let machine = Self {
            jobs: Some(jobs),
            thread: Some(thread),
        };
        let id = machine.run(namespace_id);
        ip(&format!(
            "link add port{number} type veth peer name eth0 netns {id}"
        ));
        ip(&format!("link set port{number} master segment up"));
        machine.run(move || {
            ip(&format!("link set eth0 address 02:00:00:00:00:0{number:x}"));
            ip(&format!("addr add 10.9.0.{number}/24 dev eth0"));
            ip(&format!("addr add 2001:db8:9::{number}/64 dev eth0 nodad"));
            ip("link set eth0 up");
            // Whoever gets no answer asks again soon, and does not give up while this machine is busy.
            for family in ["ipv4", "ipv6"] {
                let neigh = format!("/proc/sys/net/{family}/neigh/eth0");
                std::fs::write(format!("{neigh}/retrans_time_ms"), "200").unwrap();
                std::fs::write(format!("{neigh}/ucast_solicit"), "15").unwrap();
            }
        });
        machine
    }

    fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (answer, answered) = mpsc::channel();
        let job = Box::new(move || _ = answer.send(job()));
        self.jobs.as_ref().unwrap().send(job).unwrap();
        answered.recv().expect("the job has panicked, see above")
    }

    fn output(&self, program: &'static str, words: String) -> String {
        self.run(move || output(program, &words))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            let ended: Result<(), Box<dyn Any + Send>> = thread.join();
            assert!(
                ended.is_ok() || thread::panicking(),
                "a machine has panicked"
            );
        }
    }
}

/// An agent's sign of life, as long as it lives.
struct Heart {
    /// Whether it beats, and whom to tell once that can be seen.
    orders: Option<mpsc::Sender<(bool, mpsc::Sender<()>)>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Heart {
    fn new(stamp: StampWriter) -> Self {
        let (orders, received) = mpsc::channel::<(bool, mpsc::Sender<()>)>();
        let thread = thread::spawn(move || {
            let (mut age_ns, mut asked) = (0, None::<mpsc::Sender<()>>);
            loop {
                stamp.write(monotonic_ns() - age_ns, 0);
                if let Some(asked) = asked.take() {
                    asked.send(()).unwrap();
                }
                match received.recv_timeout(STAMP_PERIOD) {
                    Ok((beats, done)) => {
                        age_ns = if beats {
                            0
                        } else {
                            2 * abi::STAMP_ANNOUNCES_NS
                        };
                        asked = Some(done);
                    }
                    Err(mpsc::RecvTimeoutError::Timeout) => {}
                    Err(mpsc::RecvTimeoutError::Disconnected) => return,
                }
            }
        });
        Self {
            orders: Some(orders),
            thread: Some(thread),
        }
    }

    fn set(&self, beats: bool) {
        let (done, is_done) = mpsc::channel();
        self.orders.as_ref().unwrap().send((beats, done)).unwrap();
        is_done.recv().unwrap();
    }
}

impl Drop for Heart {
    fn drop(&mut self) {
        drop(self.orders.take());
        if let Some(thread) = self.thread.take() {
            // It only sleeps and stores.
            _ = thread.join();
        }
    }
}

/// A machine with the programs, that knows the VIPs.
struct Node {
    maps: BpfDataplane,
    heart: Heart,
    claims: Claims,
    ifindex: u32,
    mac: [u8; 6],
    _attacher: Attacher,
    machine: Machine,
    _dir: BpfDir,
}

impl Node {
    fn new(number: u8) -> Self {
        let machine = Machine::new(number);
        let dir = BpfDir::new();
        let (mut maps, programs) = open(&dir);
        let settings = Settings {
            interfaces: vec!["eth0".to_owned()],
            mode: ModeChoice::Only(XdpMode::Generic),
            ..Settings::default()
        };
        let mut attacher = Attacher::new(programs, maps.pins(), settings).unwrap();
        let (attacher, ifindex) = machine.run(move || {
            // Were a question to reach a stack, it would answer.
            for vip in vips() {
                ip(&format!("addr add {vip} dev lo"));
            }
            let report = attacher.reconcile(&links());
            let ifindex = report.iter().find(|one| one.xdp.is_some()).unwrap().ifindex;
            (attacher, ifindex)
        });
        for vip in vips() {
            let value = abi::ServiceEntry {
                flags: service_flag::VIP,
                ..abi::ServiceEntry::default()
            };
            let key = service_key(vip, 0, 0);
            maps.apply(&Op::Service { key, value }).unwrap();
        }
        Self {
            heart: Heart::new(maps.open_stamp().unwrap()),
            claims: maps.open_claims().unwrap(),
            maps,
            ifindex,
            mac: [2, 0, 0, 0, 0, number],
            _attacher: attacher,
            machine,
            _dir: dir,
        }
    }

    fn lives(&self, lives: bool) {
        self.heart.set(lives);
    }

    fn announces(&mut self, announces: bool) {
        for vip in vips() {
            let key = abi::AnnouncedKey {
                addr: mapped(vip),
                ifindex: self.ifindex,
            };
            let value = abi::Announcement {
                mac: Mac::from_bytes(self.mac),
                pad: [0; 2],
            };
            let op = if announces {
                Op::Announce { key, value }
            } else {
                Op::RemoveAnnounce { key }
            };
            self.maps.apply(&op).unwrap();
        }
    }

    fn announced(&self) -> BTreeSet<crate::announce::Announced> {
        vips().map(|vip| (vip, self.ifindex, self.mac)).into()
    }

    /// Tells the network for a moment, and looks at the groups of the interface meanwhile.
    fn tells(&self) -> String {
        let announced = self.announced();
        self.machine.run(move || {
            runtime().block_on(async {
                let telling = Telling {
                    announced,
                    ..Telling::default()
                };
                let (_keep, told) = watch::channel(telling);
                let stop = CancellationToken::new();
                let telling = tokio::spawn(tell(told, stop.clone()));
                // The first packets of a burst go out at once.
                tokio::time::sleep(Duration::from_millis(300)).await;
                stop.cancel();
                let groups = output("ip", "maddr show dev eth0");
                telling.await.unwrap();
                groups
            })
        })
    }

    fn dropped(&mut self, reason: DropReason) -> u64 {
        self.maps.counters().unwrap().drops[reason as usize]
    }

    fn counted(&mut self, stat: Stat) -> u64 {
        self.maps.counters().unwrap().stats[stat as usize]
    }
}

/// What the client's stack knows of a VIP: state and MAC.
fn neighbour(client: &Machine, vip: IpAddr) -> String {
    client.output("ip", format!("neigh show to {vip} dev eth0"))
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "not in time: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// The client forgets both VIPs and sends to them: it asks by broadcast and multicast.
fn client_asks(client: &Machine) {
    client.run(|| {
        for vip in vips() {
            output("ip", &format!("neigh flush to {vip} dev eth0"));
            let any: IpAddr = match vip {
                IpAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
                IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
            };
            UdpSocket::bind((any, 0))
                .unwrap()
                .send_to(&[1], (vip, 9))
                .unwrap();
        }
    });
}

/// The client holds its entry to be doubtful and asks the one that it knows, by unicast.
fn client_refreshes(client: &Machine, mac: [u8; 6]) {
    for vip in vips() {
        client.output(
            "ip",
            format!(
                "neigh replace {vip} lladdr {} nud probe dev eth0",
                text(mac)
            ),
        );
    }
}

fn knows(client: &Machine, mac: [u8; 6]) -> bool {
    vips()
        .into_iter()
        .all(|vip| neighbour(client, vip).contains(&text(mac)))
}

#[test]
fn only_the_announcer_answers_and_a_takeover_moves_the_clients_entry() {
    if !is_root("only_the_announcer_answers_and_a_takeover_moves_the_clients_entry") {
        return;
    }
    in_namespace(|| {
        ip("link add segment type bridge");
        ip("link set segment up");
        let (mut a, mut b) = (Node::new(0xa), Node::new(0xb));
        let client = Machine::new(0xc);
        a.announces(true);
        the_announcer_answers_all_kinds_of_questions(&client, &mut a, &mut b);
        nobody_else_answers_a_refresh(&client, &mut b);
        a_takeover_moves_the_entry(&client, &mut a, &mut b);
        claims_of_strangers_are_conflicts(&client, &b);
        without_a_sign_of_life_nobody_answers(&client, &mut b);
    });
}

fn the_announcer_answers_all_kinds_of_questions(client: &Machine, a: &mut Node, b: &mut Node) {
    client_asks(client);
    until("the client knows the announcer", || knows(client, a.mac));
    // The other one has met the questions and kept them from its stack.
    assert!(b.dropped(DropReason::NotAnnounced) >= 2);
    assert_eq!(b.counted(Stat::NeighbourAnswered), 0);
    client_refreshes(client, a.mac);
    until("a unicast question is answered", || {
        let entries = vips().map(|vip| neighbour(client, vip));
        entries.iter().all(|entry| entry.contains("REACHABLE"))
    });
    // Somebody who wants the address for himself is told; Linux gives it up then.
    client.run(|| ip(&format!("addr add {VIP6}/128 dev eth0")));
    until("the client's probe is answered", || {
        let shown = client.output("ip", "-6 addr show dev eth0".to_owned());
        shown.contains("dadfailed")
    });
    client.run(|| ip(&format!("addr del {VIP6}/128 dev eth0")));
    let before = a.counted(Stat::NeighbourAnswered);
    send(
        client,
        arp::frame(arp::Form::Probe, [10, 9, 0, 100], CLIENT_MAC).to_vec(),
    );
    until("an ARP probe is answered", || {
        a.counted(Stat::NeighbourAnswered) > before
    });
    assert_eq!(b.counted(Stat::NeighbourAnswered), 0);
}

/// The client sends a frame.
fn send(client: &Machine, frame: Vec<u8>) {
    client.run(move || {
        let ifindex = links().by_name("eth0").unwrap().ifindex;
        PacketSocket::open().unwrap().send(ifindex, &frame).unwrap();
    });
}

fn nobody_else_answers_a_refresh(client: &Machine, b: &mut Node) {
    let before = b.dropped(DropReason::NotAnnounced);
    client_refreshes(client, b.mac);
    until("the client gives up whom it knew", || {
        let entries = vips().map(|vip| neighbour(client, vip));
        entries.iter().all(|entry| !entry.contains(&text(b.mac)))
    });
    assert!(b.dropped(DropReason::NotAnnounced) >= before + 2);
}

fn a_takeover_moves_the_entry(client: &Machine, a: &mut Node, b: &mut Node) {
    client_asks(client);
    until("the client knows the first announcer", || {
        knows(client, a.mac)
    });
    a.announces(false);
    b.announces(true);
    let groups = b.tells();
    until("the client's entries have moved", || knows(client, b.mac));
    let group = discovery::solicited(match VIP6.parse().unwrap() {
        IpAddr::V6(vip) => vip.octets(),
        IpAddr::V4(_) => unreachable!("it is written with colons"),
    });
    assert!(groups.contains(&text(group.1)), "{groups}");
    // The first one has heard it, and knows a node by that MAC.
    let heard = a.claims.read().unwrap();
    let macs: BTreeSet<_> = heard.iter().map(|claim| claim.mac).collect();
    assert_eq!(macs, [b.mac].into());
    let nodes = [a.mac, b.mac].into();
    let said = claimed(&heard, &a.announced(), &nodes, monotonic_ns());
    assert_eq!((said.conflicts.len(), said.by_nodes.len()), (0, 2));
}

fn claims_of_strangers_are_conflicts(client: &Machine, b: &Node) {
    send(
        client,
        arp::frame(arp::Form::Announcement, [10, 9, 0, 100], CLIENT_MAC).to_vec(),
    );
    until("the claim is noted", || {
        let heard = b.claims.read().unwrap();
        let said = claimed(&heard, &b.announced(), &[b.mac].into(), monotonic_ns());
        let conflict = Conflict {
            vip: VIP4,
            ifindex: b.ifindex,
            mac: CLIENT_MAC,
        };
        said.conflicts.contains(&conflict)
    });
}

fn without_a_sign_of_life_nobody_answers(client: &Machine, b: &mut Node) {
    b.lives(false);
    let answered = b.counted(Stat::NeighbourAnswered);
    client_asks(client);
    until("the client has asked in vain", || {
        let entries = vips().map(|vip| neighbour(client, vip));
        entries.iter().all(|entry| entry.contains("FAILED"))
    });
    assert!(b.dropped(DropReason::AnnouncerStale) >= 2);
    assert_eq!(b.counted(Stat::NeighbourAnswered), answered);
    b.lives(true);
    client_asks(client);
    until("a new sign of life is enough", || knows(client, b.mac));
}
