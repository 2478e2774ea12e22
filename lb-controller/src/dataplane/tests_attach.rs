//! Programs on interfaces and the way to other nodes, in network namespaces. Needs root; says so and passes without.

use std::collections::BTreeSet;
use std::net::{IpAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::attach::{self, Attacher, Interface, ModeChoice, Settings};
use super::bpf::BpfDataplane;
use super::egress::{Egress, EgressKind};
use super::links::{Links, XdpMode};
use super::network;
use super::next_hop::{NextHops, NoNextHop};
use super::sys;
use super::testing::{BpfDir, in_namespace, ip, is_root, namespace_id, output};
use super::tests::open;
use crate::model::template::NextHop;

/// Makes `up0` with a default route, and its other end.
fn uplink() {
    ip("link add up0 type veth peer name up1");
    ip("addr add 10.1.0.1/24 dev up0");
    ip("addr add fd00:1::1/64 dev up0 nodad");
    ip("link set up0 up");
    ip("link set up1 up");
    ip("route add default via 10.1.0.2");
}

pub(super) fn runtime() -> tokio::runtime::Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

pub(super) fn links() -> Arc<Links> {
    runtime().block_on(async {
        let (_keep, nobody) = watch::channel(BTreeSet::new());
        let network = network::follow(nobody, CancellationToken::new())
            .await
            .unwrap();
        network.links.borrow().clone()
    })
}

fn start(dir: &BpfDir, settings: Settings) -> (BpfDataplane, Attacher) {
    let (maps, programs) = open(dir);
    let attacher = Attacher::new(programs, maps.pins(), settings).unwrap();
    (maps, attacher)
}

fn one(report: &[Interface]) -> Interface {
    assert_eq!(report.len(), 1, "{report:?}");
    report[0].clone()
}

fn link_id(maps: &BpfDataplane, interface: &Interface) -> u32 {
    let path = maps.pins().link(&format!("xdp-{}", interface.ifindex));
    let fd = sys::open(&path).unwrap();
    sys::link_info(fd.as_fd()).unwrap().id
}

#[test]
fn networks_on_the_link_are_those_that_routes_lead_to_without_a_router() {
    if !is_root("networks_on_the_link_are_those_that_routes_lead_to_without_a_router") {
        return;
    }
    in_namespace(|| {
        uplink();
        ip("route add 198.51.100.0/24 via 10.1.0.2");
        ip("route add 203.0.113.0/24 dev up0");
        let on_link = || {
            let links = links();
            let up0 = links.by_name("up0").unwrap();
            let shown: Vec<_> = up0.on_link.iter().map(ToString::to_string).collect();
            shown
        };
        assert_eq!(on_link(), ["10.1.0.0/24", "203.0.113.0/24", "fd00:1::/64"]);
        ip("addr add 192.0.2.9/26 dev up0");
        ip("addr add 192.0.2.200/32 dev up0");
        ip("route del 203.0.113.0/24 dev up0");
        assert_eq!(on_link(), ["10.1.0.0/24", "192.0.2.0/26", "fd00:1::/64"]);
    });
}

#[test]
fn restarted_agent_replaces_the_program_in_the_link_that_stayed() {
    if !is_root("restarted_agent_replaces_the_program_in_the_link_that_stayed") {
        return;
    }
    in_namespace(|| {
        uplink();
        let dir = BpfDir::new();
        let (maps, mut attacher) = start(&dir, Settings::default());
        let first = one(attacher.reconcile(&links()));
        assert_eq!(first.name, "up0");
        assert_eq!(first.problem, None);
        assert_eq!(first.xdp.unwrap().mode, XdpMode::Native);
        assert_eq!(first.egress, Some(EgressKind::Tcx));
        let link = link_id(&maps, &first);
        assert_eq!(one(attacher.reconcile(&links())), first);
        drop((maps, attacher));

        let left = links().by_name("up0").unwrap().xdp.unwrap();
        assert_eq!(left.id, first.xdp.unwrap().id);
        let (maps, mut attacher) = start(&dir, Settings::default());
        let second = one(attacher.reconcile(&links()));
        assert_eq!(second.problem, None);
        assert_eq!(link_id(&maps, &second), link);
        let replaced = second.xdp.unwrap();
        assert_ne!(replaced.id, left.id);
        assert_eq!(links().by_name("up0").unwrap().xdp, Some(replaced));
    });
}

#[test]
fn somebody_elses_program_is_named_and_left_alone() {
    if !is_root("somebody_elses_program_is_named_and_left_alone") {
        return;
    }
    in_namespace(|| {
        uplink();
        let (theirs, ours) = (BpfDir::new(), BpfDir::new());
        let (_theirs, mut other) = start(&theirs, Settings::default());
        let before = one(other.reconcile(&links()));
        let (_maps, mut attacher) = start(&ours, Settings::default());
        let interface = one(attacher.reconcile(&links()));
        assert_eq!(interface.xdp, None);
        let problem = interface.problem.unwrap();
        assert!(
            problem.starts_with(
                "interface up0 already runs the XDP program bowline_xdp of another agent (native mode"
            ),
            "{problem}"
        );
        assert_eq!(links().by_name("up0").unwrap().xdp, before.xdp);

        // Nor is what belongs to an agent that runs taken away under its feet.
        attach::detach(&theirs.path().join("bowline")).unwrap_err();
    });
}

#[test]
fn interface_that_goes_and_comes_back_gets_its_programs_again() {
    if !is_root("interface_that_goes_and_comes_back_gets_its_programs_again") {
        return;
    }
    in_namespace(|| {
        uplink();
        let dir = BpfDir::new();
        let settings = Settings {
            interfaces: vec!["up0".into()],
            ..Settings::default()
        };
        let (maps, mut attacher) = start(&dir, settings);
        let first = one(attacher.reconcile(&links()));
        assert_eq!(first.problem, None);
        ip("link del up0");
        let gone = one(attacher.reconcile(&links()));
        assert_eq!((gone.ifindex, gone.xdp), (0, None));
        assert!(
            gone.problem
                .unwrap()
                .contains("interface up0 does not exist")
        );
        assert_eq!(std::fs::read_dir(maps.pins().links()).unwrap().count(), 0);
        uplink();
        let back = one(attacher.reconcile(&links()));
        assert_eq!(back.problem, None);
        assert_ne!(back.ifindex, first.ifindex);
        assert_eq!(links().by_name("up0").unwrap().xdp, back.xdp);
    });
}

#[test]
fn generic_mode_is_used_when_asked_for() {
    if !is_root("generic_mode_is_used_when_asked_for") {
        return;
    }
    in_namespace(|| {
        uplink();
        let dir = BpfDir::new();
        let settings = Settings {
            mode: ModeChoice::Only(XdpMode::Generic),
            ..Settings::default()
        };
        let (_maps, mut attacher) = start(&dir, settings);
        let interface = one(attacher.reconcile(&links()));
        assert_eq!(interface.problem, None);
        assert_eq!(interface.xdp.unwrap().mode, XdpMode::Generic);
        assert_eq!(links().by_name("up0").unwrap().xdp, interface.xdp);
    });
}

#[test]
fn interfaces_no_longer_named_are_let_go_and_lost_default_routes_are_not() {
    if !is_root("interfaces_no_longer_named_are_let_go_and_lost_default_routes_are_not") {
        return;
    }
    in_namespace(|| {
        uplink();
        let dir = BpfDir::new();
        let (maps, mut attacher) = start(&dir, Settings::default());
        attacher.reconcile(&links());
        ip("route del default");
        let kept = one(attacher.reconcile(&links()));
        assert!(kept.xdp.is_some());
        drop((maps, attacher));
        let settings = Settings {
            interfaces: vec!["up1".into()],
            ..Settings::default()
        };
        let (_maps, mut attacher) = start(&dir, settings);
        attacher.reconcile(&links());
        let links = links();
        assert_eq!(links.by_name("up0").unwrap().xdp, None);
        assert!(links.by_name("up1").unwrap().xdp.is_some());
    });
}

#[test]
fn filter_is_replaced_in_place_where_there_is_no_tcx_and_detached_with_the_rest() {
    if !is_root("filter_is_replaced_in_place_where_there_is_no_tcx_and_detached_with_the_rest") {
        return;
    }
    in_namespace(|| {
        uplink();
        let dir = BpfDir::new();
        let settings = Settings {
            egress: Egress::Filter,
            ..Settings::default()
        };
        let filters = || output("tc", "filter show dev up0 egress");
        for _start in 0..2 {
            let (_maps, mut attacher) = start(&dir, settings.clone());
            let interface = one(attacher.reconcile(&links()));
            assert_eq!(interface.egress, Some(EgressKind::Clsact));
            assert_eq!(interface.problem, None);
            assert_eq!(filters().matches("handle 0xb0 ").count(), 1);
            output("tc", "qdisc del dev up0 clsact");
            attacher.reconcile(&links());
            assert_eq!(filters().matches("handle 0xb0 ").count(), 1);
        }
        attach::detach(&dir.path().join("bowline")).unwrap();
        assert!(!filters().contains("bowline_egress"));
        assert!(!dir.path().join("bowline").exists());
    });
}

/// Waits until the next hops satisfy `done`.
async fn next_hops_where(
    next_hops: &mut watch::Receiver<Arc<NextHops>>,
    what: &str,
    done: impl FnMut(&Arc<NextHops>) -> bool,
) -> Arc<NextHops> {
    tokio::time::timeout(Duration::from_secs(10), next_hops.wait_for(done))
        .await
        .unwrap_or_else(|_| panic!("{what} within ten seconds"))
        .unwrap()
        .clone()
}

/// Runs `here` while a second namespace holds the other end of `up0`, with 10.1.0.2 on it and an echo of UDP packets.
fn beside_another_node(here: impl FnOnce()) {
    let (there_tx, there) = mpsc::channel();
    let (moved_tx, moved) = mpsc::channel::<()>();
    let (ready_tx, ready) = mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            in_namespace(move || {
                there_tx.send(namespace_id()).unwrap();
                moved.recv().unwrap();
                ip("addr add 10.1.0.2/24 dev up1");
                ip("addr add fd00:1::2/64 dev up1 nodad");
                ip("link set up1 address 02:00:00:00:00:99");
                ip("link set up1 up");
                let socket = UdpSocket::bind("10.1.0.2:7").unwrap();
                ready_tx.send(()).unwrap();
                let mut packet = [0; 8];
                while let Ok((len, from)) = socket.recv_from(&mut packet) {
                    if len == 0 {
                        return;
                    }
                    socket.send_to(&packet[..len], from).unwrap();
                }
            });
        });
        ip(&format!("link set up1 netns {}", there.recv().unwrap()));
        moved_tx.send(()).unwrap();
        ready.recv().unwrap();
        let _end = EndOfEcho;
        here();
    });
}

/// Ends the echo, and so its namespace, however the test ends.
struct EndOfEcho;

impl Drop for EndOfEcho {
    fn drop(&mut self) {
        let _ = UdpSocket::bind("0.0.0.0:0").and_then(|socket| socket.send_to(&[], "10.1.0.2:7"));
    }
}

#[test]
fn no_packet_is_lost_while_programs_are_replaced() {
    if !is_root("no_packet_is_lost_while_programs_are_replaced") {
        return;
    }
    in_namespace(|| {
        uplink();
        beside_another_node(|| {
            let (done, stop) = mpsc::channel::<()>();
            std::thread::scope(|scope| {
                let client = scope.spawn(move || {
                    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                    socket
                        .set_read_timeout(Some(Duration::from_secs(2)))
                        .unwrap();
                    let (mut sent, mut lost) = (0_u64, 0_u64);
                    while stop.try_recv() == Err(mpsc::TryRecvError::Empty) {
                        let packet = sent.to_ne_bytes();
                        socket.send_to(&packet, "10.1.0.2:7").unwrap();
                        sent += 1;
                        let mut echo = [0; 8];
                        if socket.recv(&mut echo).is_err() || echo != packet {
                            lost += 1;
                        }
                    }
                    (sent, lost)
                });
                let dir = BpfDir::new();
                let mut programs = BTreeSet::new();
                for _start in 0..10 {
                    let (_maps, mut attacher) = start(&dir, Settings::default());
                    let interface = one(attacher.reconcile(&links()));
                    programs.insert(interface.xdp.unwrap().id);
                }
                drop(done);
                let (sent, lost) = client.join().unwrap();
                assert_eq!((programs.len(), lost), (10, 0), "{sent} sent");
                assert!(sent > 100, "{sent} sent");
            });
        });
    });
}

#[test]
fn next_hops_follow_neighbours_routes_and_links() {
    if !is_root("next_hops_follow_neighbours_routes_and_links") {
        return;
    }
    in_namespace(|| {
        uplink();
        beside_another_node(|| runtime().block_on(follow_them()));
    });
}

async fn follow_them() {
    let (beside, behind, own): (IpAddr, IpAddr, IpAddr) = (
        [10, 1, 0, 2].into(),
        [192, 0, 2, 9].into(),
        [10, 1, 0, 1].into(),
    );
    let beside6: IpAddr = "fd00:1::2".parse().unwrap();
    let (wanted, asked) = watch::channel(BTreeSet::from([beside, behind, own, beside6]));
    let stop = CancellationToken::new();
    let mut network = network::follow(asked, stop.clone()).await.unwrap();
    let hops = &mut network.next_hops;
    let resolved = next_hops_where(hops, "neighbours resolved", |hops| {
        hops[&beside].is_ok() && hops[&beside6].is_ok()
    })
    .await;
    let NextHop {
        ifindex,
        src: _,
        dst,
        mtu,
    } = resolved[&beside].clone().unwrap();
    assert_eq!(
        Some(ifindex),
        network
            .links
            .borrow()
            .by_name("up0")
            .map(|link| link.ifindex)
    );
    assert_eq!((dst, mtu), ([2, 0, 0, 0, 0, 0x99], 1500));
    assert_eq!(resolved[&behind], resolved[&beside]);
    assert_eq!(resolved[&beside6], resolved[&beside]);
    assert_eq!(resolved[&own], Err(NoNextHop::Own { address: own }));

    ip("route change default via 10.1.0.2 mtu 1280");
    next_hops_where(hops, "route's MTU", |hops| {
        hops[&behind].as_ref().is_ok_and(|hop| hop.mtu == 1280)
    })
    .await;
    ip("link set up0 down");
    next_hops_where(hops, "link down", |hops| hops[&beside].is_err()).await;
    ip("link set up0 up");
    next_hops_where(hops, "link up again", |hops| hops[&beside].is_ok()).await;
    wanted.send_replace(BTreeSet::new());
    next_hops_where(hops, "nothing wanted", |hops| hops.is_empty()).await;
    stop.cancel();
    network.task.await.unwrap();
}
