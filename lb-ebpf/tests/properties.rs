//! What holds for every packet, not for chosen ones: checksums stay right, nothing panics, what passes is not touched, and
//! no packet walks among nodes for ever.

#[path = "golden/mod.rs"]
#[expect(dead_code, reason = "golden packets use more of it")]
mod golden;

use std::collections::BTreeMap;

use golden::cases::Case;
use golden::host::{self, Outgoing};
use golden::packet::{self, ACK, DATA, Ip, SYN, Sctp, Tcp, Udp, frame, frame_back};
use golden::scene::{
    CLIENT_PORT, L1, NOW_NS, Net, POD_PORT, PODS, Pod, Proto, R2, SECOND, Scene, addr6, backend_at,
    be32, vip_key4, vip_key6,
};
use lb_ebpf::abi::{CANDIDATES_MAX, LocalKey, LocalPod, Stat, mark};
use lb_ebpf::back;
use lb_ebpf::frame::{Buffer, Packet};
use lb_ebpf::path;
use lb_ebpf::tables::memory::Memory;
use lb_ebpf::verdict::Action;
use lb_ebpf::wire::Be16;
use proptest::prelude::*;

fn net() -> impl Strategy<Value = Net> {
    prop_oneof![Just(Net::V4), Just(Net::V6)]
}

fn proto() -> impl Strategy<Value = Proto> {
    prop_oneof![Just(Proto::Tcp), Just(Proto::Udp), Just(Proto::Sctp)]
}

/// Any segment of a known flow: header fields and data.
fn transport(proto: Proto, ip: &Ip, from: u16, to: u16, seq: u32, data: &[u8]) -> Vec<u8> {
    match proto {
        Proto::Tcp => Tcp {
            seq,
            data: data.to_vec(),
            ..Tcp::new(from, to, ACK)
        }
        .packet(ip),
        Proto::Udp => Udp::new(from, to, data).packet(ip),
        Proto::Sctp => Sctp::new(from, to, seq, DATA, data).packet(ip),
    }
}

thread_local! {
    /// Made once; their tables change from packet to packet.
    static CASES: Vec<Case> = golden::cases::all().into_iter().flat_map(|(_, cases)| cases).collect();
}

/// Runs the XDP program's function.
fn xdp(tables: &Memory, bytes: &[u8]) -> (Action, Vec<u8>) {
    let packet = Packet::new(bytes);
    let verdict = path::run(&mut Buffer(&packet), tables).action();
    (verdict, packet.bytes())
}

proptest! {
    #[test]
    fn delivery_keeps_checksums_right(
        net in net(), proto in proto(), class: u8, hops in 1..=255_u8, id: u16, seq: u32,
        data in proptest::collection::vec(any::<u8>(), 0..600),
    ) {
        let scene = Scene::current(L1, &[]).flow(L1, proto);
        let ip = Ip { class, hops, id, ..net.ip() };
        let input = transport(proto, &ip, CLIENT_PORT, proto.port(), seq, &data);
        let ip = Ip { class, hops, id, ..net.ip_to(L1) };
        let output = frame(&transport(proto, &ip, CLIENT_PORT, POD_PORT, seq, &data));
        let (verdict, bytes) = xdp(&scene.tables, &frame(&input));
        prop_assert_eq!((verdict, bytes), (Action::Pass, output.clone()));
        // Nor does encapsulation on the way change anything.
        let (verdict, bytes) = xdp(&scene.tables, &L1.sent_by(net, 2).around(&input));
        prop_assert_eq!((verdict, bytes), (Action::Pass, output));
    }

    #[test]
    fn the_way_back_keeps_checksums_right(
        net in net(), proto in proto(), class: u8, hops in 1..=255_u8, id: u16, seq: u32,
        data in proptest::collection::vec(any::<u8>(), 0..600),
    ) {
        let scene = Scene::current(L1, &[]).flow(L1, proto);
        let ip = Ip { class, hops, id, ..net.ip_from(L1) };
        let packet = Packet::new(&frame_back(&transport(proto, &ip, POD_PORT, CLIENT_PORT, seq, &data)));
        back::reply(&mut Outgoing(Buffer(&packet)), &scene.tables);
        let ip = Ip { class, hops, id, ..net.ip_back() };
        prop_assert_eq!(packet.bytes(), frame_back(&transport(proto, &ip, proto.port(), CLIENT_PORT, seq, &data)));
    }

    #[test]
    fn encapsulation_is_undone_by_the_owner(
        net in net(), outer in net(), proto in proto(), class: u8, seq: u32,
        data in proptest::collection::vec(any::<u8>(), 0..600),
    ) {
        let balancer = Scene::current(R2, &[]).outer(outer);
        let ip = Ip { class, ..net.ip() };
        let input = transport(proto, &ip, CLIENT_PORT, proto.port(), seq, &data);
        let (verdict, sent) = xdp(&balancer.tables, &frame(&input));
        prop_assert_eq!(verdict, Action::Transmit);
        // The same pod as its own node knows it.
        let owner = seen_from(2, Scene::current(R2, &[]).flow(R2, proto));
        let (verdict, bytes) = xdp(&owner, &sent);
        let ip = Ip { class, ..net.ip_to(R2) };
        prop_assert_eq!(verdict, Action::Pass);
        prop_assert_eq!(&bytes[14..], transport(proto, &ip, CLIENT_PORT, POD_PORT, seq, &data));
    }

    /// Valid packets with a few bytes changed, cut or made longer get further than noise.
    #[test]
    fn no_packet_panics_and_what_passes_is_not_touched(
        which: proptest::sample::Index, egress: bool,
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..6),
        len in proptest::option::of(any::<proptest::sample::Index>()),
        more in proptest::collection::vec(any::<u8>(), 0..20),
    ) {
        CASES.with(|cases| {
            let case = which.get(cases);
        let mut input = case.input.clone();
        for (at, byte) in changes {
            let at = at.index(input.len());
            input[at] = byte;
        }
        if let Some(len) = len {
            input.truncate(len.index(input.len()));
        }
        input.extend(more);
            harmless(&case.tables.tables, &input, egress)
        })?;
    }

    #[test]
    fn noise_is_harmless(bytes in proptest::collection::vec(any::<u8>(), 0..200), egress: bool) {
        harmless(&Scene::current(L1, &[R2]).tables, &bytes, egress)?;
    }
}

fn harmless(tables: &Memory, input: &[u8], egress: bool) -> Result<(), TestCaseError> {
    let before = host::state(tables);
    let known = |tables: &Memory| tables.stat(Stat::Known) + tables.stat(Stat::IcmpDelivered);
    let (known_before, returned_before) = (known(tables), tables.stat(Stat::Returned));
    let packet = Packet::new(input);
    if egress {
        back::reply(&mut Outgoing(Buffer(&packet)), tables);
        let returned = tables.stat(Stat::Returned) > returned_before;
        prop_assert!(returned || packet.bytes() == input);
        return Ok(());
    }
    let verdict = path::run(&mut Buffer(&packet), tables).action();
    let dropped = |counts: &BTreeMap<String, u64>| -> u64 {
        counts
            .iter()
            .filter(|(name, _)| name.starts_with("drop "))
            .map(|(_, count)| count)
            .sum()
    };
    let after = host::state(tables);
    let drops = dropped(&after.counts) - dropped(&before.counts);
    prop_assert_eq!(drops, u64::from(matches!(verdict, Action::Drop(_))));
    let delivered = known(tables) > known_before;
    if verdict == Action::Pass && !delivered {
        prop_assert_eq!(packet.bytes(), input);
    }
    Ok(())
}

/// The tables of a scene as node `number` has them: its own pods are local, its own address is its.
fn seen_from(number: u8, scene: Scene) -> Memory {
    let mut tables = scene.tables;
    tables.config.node4 = be32(Net::V4.node(number));
    tables.config.node6 = addr6(Net::V6.node(number));
    tables.peers.insert(addr6(Net::V4.node(1)));
    tables.peers.insert(addr6(Net::V6.node(1)));
    tables.v4.locals.clear();
    tables.v6.locals.clear();
    for pod in PODS {
        for net in Net::BOTH {
            tables
                .backends
                .insert(pod.backend(net), backend_at(number, pod, net, net));
        }
        if pod.1 == number {
            add_local(&mut tables, pod);
        }
    }
    tables
}

fn add_local(tables: &mut Memory, pod: Pod) {
    let (port, pad) = (Be16::new(POD_PORT), 0);
    let local = |net| LocalPod {
        identity: pod.identity(),
        backend: pod.backend(net),
    };
    let addr = be32(pod.address(Net::V4));
    tables
        .v4
        .locals
        .insert(LocalKey { addr, port, pad }, local(Net::V4));
    let addr = addr6(pod.address(Net::V6));
    tables
        .v6
        .locals
        .insert(LocalKey { addr, port, pad }, local(Net::V6));
}

/// What one node's slots say, of the current and two previous tables: places in [`PODS`], newest first.
type View = [[usize; 4]; 3];

fn view() -> impl Strategy<Value = View> {
    proptest::array::uniform3(proptest::array::uniform4(0..PODS.len()))
}

/// What a node knows of the flow with each of its pods: nothing, the flow, the closing flow.
fn knowledge() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(
        prop_oneof![6 => Just(0_u8), 1 => Just(1_u8), 2 => Just(2_u8)],
        PODS.len(),
    )
}

fn node(number: u8, view: &View, knowledge: &[u8], proto: Proto) -> Memory {
    let pods = |slot: &[usize; 4]| slot.map(|place| PODS[place]);
    let [current, first, second] = view.map(|slot| pods(&slot));
    let mut scene = Scene::current(current[0], &current[1..])
        .previous(1, first[0], &first[1..])
        .previous(2, second[0], &second[1..]);
    for (pod, known) in PODS.into_iter().zip(knowledge) {
        scene = match known {
            1 if pod.1 == number => scene.flow(pod, proto),
            2 if pod.1 == number => scene.flow_with(pod, proto, 1, 1),
            _ => scene,
        };
    }
    seen_from(number, scene)
}

/// What an encapsulated packet says: the node that it goes to, the mark, and who was asked.
fn addressed(frame: &[u8], net: Net) -> (u8, u8, Vec<u32>) {
    let (to, geneve, address) = match net {
        Net::V4 => (frame[33], 42, 4),
        Net::V6 => (frame[53], 62, 16),
    };
    let words = usize::from(frame[geneve + 11] & 0x1f);
    let list = geneve + 12 + 4 + address + 12;
    let end = geneve + 12 + 4 * words;
    let asked = frame[list..end]
        .chunks(4)
        .map(|word| u32::from_be_bytes([word[0], word[1], word[2], word[3]]));
    (to, frame[geneve + 12], asked.collect())
}

/// Asking at most [`CANDIDATES_MAX`] nodes, then going back to a closing owner or to be admitted, which may ask once more.
const HOPS_MAX: usize = CANDIDATES_MAX + 2;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn walks_among_nodes_end(
        net in net(), proto in proto(), first in any::<bool>(), held in any::<bool>(),
        views in proptest::collection::vec(view(), 8), knowledge in knowledge(),
    ) {
        let nodes: Vec<Memory> = views
            .iter()
            .enumerate()
            .map(|(place, view)| node(place as u8 + 1, view, &knowledge, proto))
            .collect();
        if held {
            for tables in &nodes {
                tables.v4.held.borrow_mut().insert(vip_key4(proto), NOW_NS - 2 * SECOND);
                tables.v6.held.borrow_mut().insert(vip_key6(proto), NOW_NS - 2 * SECOND);
            }
        }
        let flags = if first { SYN } else { ACK };
        let packet = match proto {
            Proto::Tcp => Tcp::new(CLIENT_PORT, proto.port(), flags).frame(&net.ip()),
            Proto::Udp => Udp::new(CLIENT_PORT, proto.port(), b"walk").frame(&net.ip()),
            Proto::Sctp => {
                let chunk = if first { packet::INIT } else { DATA };
                Sctp::new(CLIENT_PORT, proto.port(), 1, chunk, b"walk").frame(&net.ip())
            }
        };
        let (mut verdict, mut bytes) = xdp(&nodes[0], &packet);
        let mut before: Vec<u32> = Vec::new();
        let mut hops = 0;
        while verdict == Action::Transmit {
            hops += 1;
            let (to, mark, asked) = addressed(&bytes, net);
            prop_assert!(hops <= HOPS_MAX, "{hops} hops, asked {asked:08x?}");
            prop_assert!(asked.len() <= CANDIDATES_MAX);
            prop_assert!(asked.starts_with(&before), "{asked:08x?} after {before:08x?}");
            let last = mark & mark::ADMIT != 0 || mark >> mark::CLOSING_SHIFT & mark::CLOSING_MASK != 0;
            let mut unique = asked.clone();
            unique.sort_unstable();
            unique.dedup();
            prop_assert!(last || unique.len() == asked.len(), "asked twice: {asked:08x?}");
            before = asked;
            (verdict, bytes) = xdp(&nodes[usize::from(to) - 1], &bytes);
        }
        // Whoever knows the flow and is a candidate everywhere gets it, or it is dropped for a reason; never passed on raw.
        let delivered: u64 = nodes.iter().map(|tables| tables.stat(Stat::Known)).sum();
        prop_assert_eq!(delivered, u64::from(verdict == Action::Pass));
    }

    /// I1: with the same tables everywhere, a packet of a known flow reaches its owner, whoever else may be asked before.
    #[test]
    fn a_flow_finds_its_owner(net in net(), proto in proto(), view in view(), owner in any::<proptest::sample::Index>(), at in 1..=8_u8) {
        let mut candidates: Vec<Pod> = Vec::new();
        for pod in view.iter().flatten().map(|place| PODS[*place]) {
            if !candidates.contains(&pod) {
                candidates.push(pod);
            }
        }
        candidates.truncate(CANDIDATES_MAX);
        let owner = *owner.get(&candidates);
        let mut knowledge = vec![0; PODS.len()];
        knowledge[PODS.iter().position(|pod| *pod == owner).unwrap()] = 1;
        let nodes: Vec<Memory> = (1..=8).map(|number| node(number, &view, &knowledge, proto)).collect();
        let packet = frame(&proto.packet(&net.ip(), proto.port()));
        let (mut verdict, mut bytes) = xdp(&nodes[usize::from(at) - 1], &packet);
        let mut last = at;
        while verdict == Action::Transmit {
            last = addressed(&bytes, net).0;
            (verdict, bytes) = xdp(&nodes[usize::from(last) - 1], &bytes);
        }
        prop_assert_eq!(verdict, Action::Pass);
        prop_assert_eq!(last, owner.1);
        prop_assert_eq!(&bytes[14..], proto.packet(&net.ip_to(owner), POD_PORT));
    }
}
