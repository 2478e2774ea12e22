//! Flows that nobody here knows: passed on, returned to a closing owner, held back, or admitted. One file: its cases
//! are those of `golden/relay.txt`, in that order.

use lb_ebpf::abi::{DropReason, Limited, Stat, backend_flag, config_flag, mark};

use super::{Case, sent, xdp};
use crate::golden::packet::{ACK, Encap, RST, SYN, Tcp, Udp};
use crate::golden::scene::{
    CLIENT_PORT, DNS, HTTP, L1, L2, L3, NOW_NS, Net, POD_PORT, Pod, Proto, R2, R3, R4, R5, R6, R7,
    R8, SECOND, Scene,
};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in Net::BOTH {
        walk(&mut cases, net);
        ends_of_walks(&mut cases, net);
        closing(&mut cases, net);
        held(&mut cases, net);
        admit(&mut cases, net);
        admission_elsewhere(&mut cases, net);
        limits(&mut cases, net);
    }
    cases
}

fn segment() -> Tcp {
    Tcp {
        data: b"who knows me?".to_vec(),
        ..Tcp::new(CLIENT_PORT, HTTP, ACK)
    }
}

fn delivered(net: Net, pod: Pod) -> Vec<u8> {
    Tcp {
        to: POD_PORT,
        ..segment()
    }
    .frame(&net.ip_to(pod))
}

fn identities(pods: &[Pod]) -> Vec<u32> {
    pods.iter().map(|pod| pod.identity()).collect()
}

/// The segment from node 8 for L1, after `asked`.
fn arrives(net: Net, asked: &[Pod], mark: u8) -> Vec<u8> {
    let encap = Encap {
        asked: identities(asked),
        mark,
        ..L1.sent_by(net, 8)
    };
    encap.around(&segment().packet(&net.ip()))
}

/// The segment as this node passes it on.
fn passed(scene: &Scene, net: Net, to: Pod, asked: &[Pod], mark: u8) -> Vec<u8> {
    let encap = Encap {
        asked: identities(asked),
        mark,
        ..sent(scene, to, net, net, Proto::Tcp)
    };
    encap.around(&segment().packet(&net.ip()))
}

fn walk(cases: &mut Vec<Case>, net: Net) {
    // Each row: who was asked before this node, and whom it asks next.
    let order = [R2, R3, R4, R5, R6];
    for count in 0..5 {
        let scene = || {
            Scene::current(L1, &[R2, R3, R4])
                .previous(1, R5, &[R2, R6])
                .previous(2, R7, &[L1, R8])
        };
        let before = &order[..count];
        let asked = order[count];
        let after = [before, &[L1]].concat();
        let case = xdp(
            format!("unknown flow, {count} asked before, {net:?}"),
            scene(),
            arrives(net, before, 0),
        );
        cases.push(
            case.transmits(passed(&scene(), net, asked, &after, 0))
                .counts(&[Stat::Relayed]),
        );
    }
    let scene = || Scene::current(R2, &[L1, R3]);
    cases.push(
        xdp(
            format!("unknown flow, newest candidate first, {net:?}"),
            scene(),
            arrives(net, &[], 0),
        )
        .transmits(passed(&scene(), net, R2, &[L1], 0))
        .counts(&[Stat::Relayed]),
    );
    let scene = || {
        Scene::current(L1, &[]).but("substitute R4", |tables| {
            for (id, net) in [(1, Net::V4), (4, Net::V6)] {
                tables.sets.get_mut(&id).expect("there").substitute = R4.backend(net);
            }
        })
    };
    cases.push(
        xdp(
            format!("unknown flow, the substitute is asked last, {net:?}"),
            scene(),
            arrives(net, &[], 0),
        )
        .transmits(passed(&scene(), net, R4, &[L1], 0))
        .counts(&[Stat::Relayed]),
    );
    let scene = || Scene::current(L1, &[L2, L3]).flow(L3, Proto::Tcp);
    cases.push(
        xdp(
            format!("pods of this node are asked in place, {net:?}"),
            scene(),
            arrives(net, &[], 0),
        )
        .becomes(delivered(net, L3))
        .counts(&[Stat::Known, Stat::AskedInPlace, Stat::AskedInPlace]),
    );
    let scene = || Scene::current(L1, &[L2, R3]);
    cases.push(
        xdp(
            format!("asked in place, then another node, {net:?}"),
            scene(),
            arrives(net, &[R4], 0),
        )
        .transmits(passed(&scene(), net, R3, &[R4, L1, L2], 0))
        .counts(&[Stat::AskedInPlace, Stat::Relayed]),
    );
    let scene = || Scene::current(L1, &[L2]).half_open(L2, Proto::Tcp, Some(5000));
    cases.push(
        xdp(
            format!("half-open with a pod asked in place, {net:?}"),
            scene(),
            arrives(net, &[], 0),
        )
        .becomes(delivered(net, L2))
        .counts(&[Stat::Known, Stat::AskedInPlace, Stat::Promoted]),
    );
    let scene = || {
        Scene::current(L1, &[R2, R3]).but("no next hop to R2", |tables| {
            tables
                .backends
                .get_mut(&R2.backend(net))
                .expect("there")
                .flags |= backend_flag::NO_NEXT_HOP;
        })
    };
    cases.push(
        xdp(
            format!("candidate without next hop is left out, {net:?}"),
            scene(),
            arrives(net, &[], 0),
        )
        .transmits(passed(&scene(), net, R3, &[L1], 0))
        .counts(&[Stat::Relayed]),
    );
}

fn ends_of_walks(cases: &mut Vec<Case>, net: Net) {
    // Five asked before; this node is the sixth, and the list is full.
    let full = Scene::current(L1, &[R7]);
    cases.push(
        xdp(
            format!("list is full, {net:?}"),
            full,
            arrives(net, &[R2, R3, R4, R5, R6], 0),
        )
        .drops(DropReason::HeldBack),
    );
    let full = Scene::current(L1, &[R7]);
    cases.push(
        xdp(
            format!("six asked, asked again, {net:?}"),
            full,
            arrives(net, &[R2, R3, R4, R5, R6, R8], 0),
        )
        .drops(DropReason::HeldBack),
    );
    let asked = Scene::current(L1, &[R2, R3]);
    cases.push(
        xdp(
            format!("nobody is asked twice, {net:?}"),
            asked,
            arrives(net, &[R2, R3], 0),
        )
        .drops(DropReason::HeldBack),
    );
    let off = Scene::current(L1, &[R2]).but("relay off", |tables| {
        tables.config.flags |= config_flag::RELAY_OFF;
    });
    cases.push(
        xdp(format!("relay off, {net:?}"), off, arrives(net, &[], 0)).drops(DropReason::HeldBack),
    );
    let limit = Scene::current(L1, &[R2]).but("no relays left", |tables| {
        tables.config.relays_per_second = 0;
        tables.left[Limited::Relay as usize].set(0);
    });
    cases.push(
        xdp(format!("relay limit, {net:?}"), limit, arrives(net, &[], 0))
            .drops(DropReason::RelayRate),
    );
}

fn closing(cases: &mut Vec<Case>, net: Net) {
    let scene = || Scene::current(L1, &[R2]).flow_with(L1, Proto::Tcp, 1, 1);
    // The second of those asked is this one: its place is 2.
    cases.push(
        xdp(
            format!("closing flow is passed on with its owner, {net:?}"),
            scene(),
            arrives(net, &[R3], 0),
        )
        .transmits(passed(
            &scene(),
            net,
            R2,
            &[R3, L1],
            2 << mark::CLOSING_SHIFT,
        ))
        .counts(&[Stat::Relayed]),
    );
    let reset = || Scene::current(L1, &[R2]).flow_with(L1, Proto::Tcp, 2, 0);
    cases.push(
        xdp(
            format!("reset flow is closing too, {net:?}"),
            reset(),
            arrives(net, &[], 0),
        )
        .transmits(passed(&reset(), net, R2, &[L1], 1 << mark::CLOSING_SHIFT))
        .counts(&[Stat::Relayed]),
    );
    let last = || Scene::current(R2, &[L1]);
    cases.push(
        xdp(
            format!("nobody else: back to the closing owner, {net:?}"),
            last(),
            arrives(net, &[R3, R2], 2 << mark::CLOSING_SHIFT),
        )
        .transmits(passed(
            &last(),
            net,
            R2,
            &[R3, R2, L1],
            2 << mark::CLOSING_SHIFT,
        ))
        .counts(&[Stat::Relayed]),
    );
    cases.push(
        xdp(
            format!("closing owner gets it back, {net:?}"),
            scene(),
            arrives(net, &[L1, R2], 1 << mark::CLOSING_SHIFT),
        )
        .becomes(delivered(net, L1))
        .counts(&[Stat::Known]),
    );
    // The list has no place left to note the closing owner in: it is the end of the walk.
    cases.push(
        xdp(
            format!("closing owner at the end of a full list, {net:?}"),
            scene(),
            arrives(net, &[R3, R4, R5, R6, R7, R8], 0),
        )
        .becomes(delivered(net, L1))
        .counts(&[Stat::Known]),
    );
    let forgotten = || Scene::current(L2, &[]).flow_with(L1, Proto::Tcp, 1, 1);
    cases.push(
        xdp(
            format!("closing owner that the tables no longer name, {net:?}"),
            forgotten(),
            arrives(net, &[], 0),
        )
        .becomes(delivered(net, L1))
        .counts(&[Stat::AskedInPlace, Stat::Known]),
    );
    let knows = || Scene::current(L1, &[R2]).flow(L1, Proto::Tcp);
    cases.push(
        xdp(
            format!("a node that knows the flow wins over a closing owner, {net:?}"),
            knows(),
            arrives(net, &[R2], 1 << mark::CLOSING_SHIFT),
        )
        .becomes(delivered(net, L1))
        .counts(&[Stat::Known]),
    );
}

fn held(cases: &mut Vec<Case>, net: Net) {
    let scene = || Scene::current(L1, &[]);
    let case =
        |name: &str, scene: Scene| xdp(format!("{name}, {net:?}"), scene, arrives(net, &[], 0));
    cases.push(case("first sight", scene()).drops(DropReason::HeldBack));
    cases
        .push(case("second sight too early", scene().held(SECOND / 4)).drops(DropReason::HeldBack));
    cases.push(
        case("second sight", scene().held(2 * SECOND))
            .becomes(delivered(net, L1))
            .counts(&[Stat::Known, Stat::HeldBackDelivered, Stat::Admitted]),
    );
    cases
        .push(case("second sight too late", scene().held(31 * SECOND)).drops(DropReason::HeldBack));
    let gap = scene()
        .held(2 * SECOND)
        .but("fresh for one second", |tables| {
            tables.stamp.fresh_since_ns = NOW_NS - SECOND;
        });
    cases.push(case("first sight in another fresh period", gap).drops(DropReason::HeldBack));
    cases.push(
        case(
            "no pods at all, and nothing to wait for",
            Scene::empty().held(2 * SECOND),
        )
        .drops(DropReason::NoBackend),
    );
    let stale = scene()
        .held(2 * SECOND)
        .but("stamp of two seconds ago", |tables| {
            tables.stamp.stamped_ns = NOW_NS - 2 * SECOND;
        });
    cases.push(case("agent is not heard", stale).drops(DropReason::NotFresh));
    let not = scene()
        .held(2 * SECOND)
        .but("not fresh", |tables| tables.stamp.fresh_since_ns = 0);
    cases.push(case("node is not fresh", not).drops(DropReason::NotFresh));
    let reset = Tcp::new(CLIENT_PORT, HTTP, RST);
    cases.push(
        xdp(
            format!("reset of an unknown flow, {net:?}"),
            scene().held(2 * SECOND),
            L1.sent_by(net, 8).around(&reset.packet(&net.ip())),
        )
        .drops(DropReason::HeldBack),
    );
    let remote = || Scene::current(R2, &[L1]).held(2 * SECOND);
    cases.push(
        case(
            "second sight, for the current pod of another node",
            remote(),
        )
        .transmits(passed(&remote(), net, R2, &[L1], 0))
        .counts(&[Stat::Relayed]),
    );
    cases.push(
        xdp(
            format!("second sight, current pod was asked, {net:?}"),
            remote(),
            arrives(net, &[R2], 0),
        )
        .transmits(passed(&remote(), net, R2, &[R2, L1], mark::ADMIT))
        .counts(&[Stat::Relayed, Stat::HeldBackDelivered]),
    );
    cases.push(
        xdp(
            format!("admitted by another node, {net:?}"),
            scene(),
            arrives(net, &[L1, R2], mark::ADMIT),
        )
        .becomes(delivered(net, L1))
        .counts(&[Stat::Known, Stat::Admitted]),
    );
}

fn admit(cases: &mut Vec<Case>, net: Net) {
    let udp = Udp::new(CLIENT_PORT, DNS, b"new");
    let out = |pod| {
        Udp {
            to: POD_PORT,
            ..udp.clone()
        }
        .frame(&net.ip_to(pod))
    };
    let from = |asked: &[Pod], mark| {
        let encap = Encap {
            asked: identities(asked),
            mark,
            ..L1.sent_by(net, 8)
        };
        encap.around(&udp.packet(&net.ip()))
    };
    cases.push(
        xdp(
            format!("new udp flow, {net:?}"),
            Scene::current(L1, &[]),
            from(&[], 0),
        )
        .becomes(out(L1))
        .counts(&[Stat::Known, Stat::Admitted]),
    );
    let scene = || Scene::current(L1, &[R2]);
    let passed = Encap {
        asked: identities(&[L1]),
        ..sent(&scene(), R2, net, net, Proto::Udp)
    };
    cases.push(
        xdp(
            format!("new udp flow asks the older occupant first, {net:?}"),
            scene(),
            from(&[], 0),
        )
        .transmits(passed.around(&udp.packet(&net.ip())))
        .counts(&[Stat::Relayed]),
    );
    let scene = || Scene::current(R2, &[L1]);
    let passed = Encap {
        asked: identities(&[R2, L1]),
        mark: mark::ADMIT,
        ..sent(&scene(), R2, net, net, Proto::Udp)
    };
    cases.push(
        xdp(
            format!("new udp flow that nobody knows goes to the current pod, {net:?}"),
            scene(),
            from(&[R2], 0),
        )
        .transmits(passed.around(&udp.packet(&net.ip())))
        .counts(&[Stat::Relayed]),
    );
    cases.push(
        xdp(
            format!("new udp flow is admitted where it is sent, {net:?}"),
            Scene::current(L1, &[R2]),
            from(&[L1, R2], mark::ADMIT),
        )
        .becomes(out(L1))
        .counts(&[Stat::Known, Stat::Admitted]),
    );
    cases.push(
        xdp(
            format!("new udp flow, all older occupants here, {net:?}"),
            Scene::current(L1, &[L2, L3]),
            udp.frame(&net.ip()),
        )
        .becomes(out(L1))
        .counts(&[
            Stat::Known,
            Stat::Admitted,
            Stat::AskedInPlace,
            Stat::AskedInPlace,
        ]),
    );
}

/// Who has sent the datagram has heard of a pod that this node has not heard of yet, or not any more.
fn admission_elsewhere(cases: &mut Vec<Case>, net: Net) {
    let udp = Udp::new(CLIENT_PORT, DNS, b"new");
    let mut gone = L2.sent_by(net, 8);
    gone.pod.identity = 0x0dea_d0de;
    gone.mark = mark::ADMIT;
    let named = gone.pod.identity;
    let comes = |asked: &[u32]| {
        let encap = Encap {
            asked: asked.to_vec(),
            ..gone.clone()
        };
        encap.around(&udp.packet(&net.ip()))
    };
    let here = Udp {
        to: POD_PORT,
        ..udp.clone()
    };
    cases.push(
        xdp(
            format!("admission for a pod that is gone goes to a pod here, {net:?}"),
            Scene::current(L1, &[]),
            comes(&[named]),
        )
        .becomes(here.frame(&net.ip_to(L1)))
        .counts(&[Stat::Known, Stat::Admitted, Stat::DecidedAfresh]),
    );
    let scene = || Scene::current(R3, &[]);
    let passed = Encap {
        asked: vec![named, R2.identity(), named],
        mark: mark::ADMIT,
        ..sent(&scene(), R3, net, net, Proto::Udp)
    };
    cases.push(
        xdp(
            format!("admission for a pod that is gone goes to another node, {net:?}"),
            scene(),
            comes(&[named, R2.identity()]),
        )
        .transmits(passed.around(&udp.packet(&net.ip())))
        .counts(&[Stat::DecidedAfresh, Stat::Relayed]),
    );
    let full = [1, 2, 3, 4, 5, 6];
    for (what, asked) in [
        ("twice", &[named, R2.identity(), named][..]),
        ("and the list is full", &full),
    ] {
        cases.push(
            xdp(
                format!("admission for a pod that is gone, {what}, {net:?}"),
                scene(),
                comes(asked),
            )
            .drops(DropReason::NoSuchPod),
        );
    }
}

fn limits(cases: &mut Vec<Case>, net: Net) {
    let full = Scene::current(L1, &[]).half_open(L1, Proto::Tcp, Some(5000));
    let segment = Tcp {
        ack: 5001,
        ..segment()
    };
    let case = xdp(
        format!("other port of the client is another flow, {net:?}"),
        full,
        L1.sent_by(net, 8).around(
            &Tcp {
                from: 40_001,
                ..segment
            }
            .packet(&net.ip()),
        ),
    );
    cases.push(case.drops(DropReason::HeldBack));
    let syn = Tcp::new(CLIENT_PORT, 443, SYN);
    let elsewhere = L1.sent_by(net, 8).around(&syn.packet(&net.ip()));
    cases.push(
        xdp(
            format!("encapsulated syn of a port without a service, {net:?}"),
            Scene::current(L1, &[]),
            elsewhere,
        )
        .becomes(
            Tcp {
                to: POD_PORT,
                ..syn
            }
            .frame(&net.ip_to(L1)),
        )
        .counts(&[Stat::Known, Stat::Admitted]),
    );
}
