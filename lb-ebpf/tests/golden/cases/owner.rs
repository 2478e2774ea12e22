//! The owner node: what comes encapsulated, and what this node makes of it.

use lb_ebpf::abi::{DropReason, Stat, mark};
use lb_ebpf::wire::Be16;

use super::{Case, sent, xdp};
use crate::golden::packet::{ACK, Encap, FIN, Ip, RST, SYN, Tcp, Udp};
use crate::golden::scene::{
    CLIENT_PORT, DNS, HTTP, HTTP_ALSO, L1, L2, Net, OLD_SECRET, POD_PORT, Pod, Proto, R2, R3, Scene,
};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in Net::BOTH {
        for outer in Net::BOTH {
            known(&mut cases, net, outer);
        }
        matching(&mut cases, net);
        congestion(&mut cases, net);
        syn(&mut cases, net);
        half_open(&mut cases, net);
        ends(&mut cases, net);
        in_use(&mut cases, net);
        no_such_pod(&mut cases, net);
    }
    cases
}

fn tcp(flags: u8) -> Tcp {
    Tcp {
        data: b"hello, pod".to_vec(),
        ..Tcp::new(CLIENT_PORT, HTTP, flags)
    }
}

fn delivered(net: Net, pod: Pod, segment: &Tcp) -> Vec<u8> {
    Tcp {
        to: POD_PORT,
        ..segment.clone()
    }
    .frame(&net.ip_to(pod))
}

/// The segment as it comes from node 2 for a pod.
fn arrives(net: Net, pod: Pod, segment: &Tcp) -> Vec<u8> {
    pod.sent_by(net, 2).around(&segment.packet(&net.ip()))
}

fn known(cases: &mut Vec<Case>, net: Net, outer: Net) {
    let ip = net.ip();
    let scene = |proto| Scene::current(L1, &[]).flow(L1, proto);
    let encap = L1.sent_over(net, outer, 2);
    let segment = tcp(ACK);
    cases.push(
        xdp(
            format!("known tcp, {net:?} in {outer:?}"),
            scene(Proto::Tcp),
            encap.around(&segment.packet(&ip)),
        )
        .becomes(delivered(net, L1, &segment))
        .counts(&[Stat::Known]),
    );
    for checksum in [true, false] {
        if !checksum && net == Net::V6 {
            continue;
        }
        let udp = Udp {
            checksum,
            ..Udp::new(CLIENT_PORT, DNS, b"question")
        };
        let out = Udp {
            to: POD_PORT,
            ..udp.clone()
        }
        .frame(&net.ip_to(L1));
        let what = if checksum { "with" } else { "without" };
        cases.push(
            xdp(
                format!("known udp {what} checksum, {net:?} in {outer:?}"),
                scene(Proto::Udp),
                encap.around(&udp.packet(&ip)),
            )
            .becomes(out)
            .counts(&[Stat::Known]),
        );
    }
}

fn matching(cases: &mut Vec<Case>, net: Net) {
    let scene = || Scene::current(L1, &[]).flow(L1, Proto::Tcp);
    let segment = tcp(ACK);
    let inner = segment.packet(&net.ip());
    let good = L1.sent_by(net, 2);
    cases.push(
        xdp(
            format!("the secret before rotation, {net:?}"),
            scene(),
            Encap {
                secret: OLD_SECRET,
                ..good.clone()
            }
            .around(&inner),
        )
        .becomes(delivered(net, L1, &segment))
        .counts(&[Stat::Known]),
    );
    cases.push(xdp(
        format!("another secret, {net:?}"),
        scene(),
        Encap {
            secret: [9; 8],
            ..good.clone()
        }
        .around(&inner),
    ));
    cases.push(
        xdp(
            format!("from a node that is no peer, {net:?}"),
            scene(),
            Encap {
                from: net.node(99),
                ..good.clone()
            }
            .around(&inner),
        )
        .counts(&[Stat::NotAPeer]),
    );
    let mut frame = good.around(&inner);
    let geneve_at = if net == Net::V4 { 42 } else { 62 };
    frame[geneve_at + 6] = 2;
    cases.push(xdp(format!("another vni, {net:?}"), scene(), frame.clone()));
    frame[geneve_at + 6] = 1;
    frame[geneve_at + 11] += 1;
    cases.push(
        xdp(
            format!("option lengths that disagree, {net:?}"),
            scene(),
            frame,
        )
        .drops(DropReason::EncapMalformed),
    );
    let (icmp, echo) = if net == Net::V4 { (1, 8) } else { (58, 128) };
    let odd = good.around(&net.ip().around(
        icmp,
        &[
            echo, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12,
        ],
    ));
    cases.push(
        xdp(format!("neither tcp nor udp inside, {net:?}"), scene(), odd)
            .drops(DropReason::EncapMalformed),
    );
}

fn congestion(cases: &mut Vec<Case>, net: Net) {
    let scene = || Scene::current(L1, &[]).flow(L1, Proto::Tcp);
    let segment = tcp(ACK);
    for (inner, expected) in [
        (0b10, Some(0b11)),
        (0b01, Some(0b11)),
        (0b11, Some(0b11)),
        (0b00, None),
    ] {
        let class = 0b0010_1000 | inner;
        let ip = Ip { class, ..net.ip() };
        let encap = Encap {
            class: 0b0010_1011,
            ..L1.sent_by(net, 2)
        };
        let case = xdp(
            format!("outer ce on inner {inner:02b}, {net:?}"),
            scene(),
            encap.around(&segment.packet(&ip)),
        );
        cases.push(match expected {
            Some(ecn) => {
                let ip = Ip {
                    class: 0b0010_1000 | ecn,
                    ..net.ip_to(L1)
                };
                let out = Tcp {
                    to: POD_PORT,
                    ..segment.clone()
                }
                .frame(&ip);
                case.becomes(out).counts(&[Stat::Known])
            }
            None => case.drops(DropReason::EcnInvalid),
        });
    }
}

fn syn(cases: &mut Vec<Case>, net: Net) {
    let segment = Tcp::new(CLIENT_PORT, HTTP, SYN);
    let admitted = [Stat::Known, Stat::Admitted];
    let case = |name: &str, scene: Scene, pod: Pod, to: Pod| {
        xdp(
            format!("{name}, {net:?}"),
            scene,
            arrives(net, pod, &segment),
        )
        .becomes(delivered(net, to, &segment))
    };
    cases.push(case("syn is admitted", Scene::current(L1, &[]), L1, L1).counts(&admitted));
    cases.push(
        case(
            "syn again before the pod answered",
            Scene::current(L1, &[])
                .half_open(L1, Proto::Tcp, None)
                .first(L1),
            L1,
            L1,
        )
        .counts(&[Stat::Known]),
    );
    cases.push(
        case(
            "syn again goes to the pod that answered",
            Scene::current(L2, &[L1])
                .half_open(L1, Proto::Tcp, Some(5000))
                .first(L1),
            L2,
            L1,
        )
        .counts(&[Stat::Known]),
    );
    cases.push(
        case(
            "syn again, but the pod that answered has forgotten",
            Scene::current(L2, &[L1]).first(L1),
            L2,
            L2,
        )
        .counts(&admitted),
    );
    cases.push(
        case(
            "syn of a known flow: the pod's challenge settles it",
            Scene::current(L1, &[]).flow(L1, Proto::Tcp),
            L1,
            L1,
        )
        .counts(&[Stat::Known]),
    );
    cases.push(
        case(
            "syn of a closing flow opens it again",
            Scene::current(L1, &[]).flow_with(L1, Proto::Tcp, 1, 1),
            L1,
            L1,
        )
        .counts(&admitted),
    );
    cases.push(
        xdp(
            format!("syn for a pod of this node, {net:?}"),
            Scene::current(L1, &[]),
            segment.frame(&net.ip()),
        )
        .becomes(delivered(net, L1, &segment))
        .counts(&admitted),
    );
    let deviation = Encap {
        mark: mark::DEVIATION,
        ..L1.sent_by(net, 2)
    };
    cases.push(
        xdp(
            format!("syn of a deviation, {net:?}"),
            Scene::current(L1, &[]),
            deviation.around(&segment.packet(&net.ip())),
        )
        .becomes(delivered(net, L1, &segment))
        .counts(&admitted),
    );
}

fn half_open(cases: &mut Vec<Case>, net: Net) {
    let scene = || Scene::current(L1, &[]).half_open(L1, Proto::Tcp, Some(5000));
    let segment = |ack| Tcp { ack, ..tcp(ACK) };
    let case = |name: &str, scene: Scene, segment: &Tcp| {
        xdp(format!("{name}, {net:?}"), scene, arrives(net, L1, segment))
    };
    cases.push(
        case("ack of the syn-ack promotes", scene(), &segment(5001))
            .becomes(delivered(net, L1, &segment(5001)))
            .counts(&[Stat::Known, Stat::Promoted]),
    );
    for (name, ack) in [
        ("ack below the syn-ack", 5000),
        ("ack above what the pod sent", 5002),
    ] {
        cases.push(case(name, scene(), &segment(ack)).drops(DropReason::HeldBack));
    }
    let wrapped = || {
        Scene::current(L1, &[]).half_open(L1, Proto::Tcp, None).but(
            "SYN-ACK 4294967295",
            |tables| {
                for entry in tables.v4.half_open.borrow_mut().values_mut() {
                    (entry.answers, entry.isn, entry.high) = (1, [u32::MAX, 0], 0);
                }
                for entry in tables.v6.half_open.borrow_mut().values_mut() {
                    (entry.answers, entry.isn, entry.high) = (1, [u32::MAX, 0], 0);
                }
            },
        )
    };
    cases.push(
        case(
            "ack of a syn-ack at the end of numbers",
            wrapped(),
            &segment(0),
        )
        .becomes(delivered(net, L1, &segment(0)))
        .counts(&[Stat::Known, Stat::Promoted]),
    );
    let two = || {
        scene().but("an older SYN-ACK 9000", |tables| {
            for entry in tables.v4.half_open.borrow_mut().values_mut() {
                (entry.answers, entry.isn[1]) = (2, 9000);
            }
            for entry in tables.v6.half_open.borrow_mut().values_mut() {
                (entry.answers, entry.isn[1]) = (2, 9000);
            }
        })
    };
    cases.push(
        case("ack of the older of two syn-acks", two(), &segment(9001))
            .becomes(delivered(net, L1, &segment(9001)))
            .counts(&[Stat::Known, Stat::Promoted]),
    );
    let unanswered = Scene::current(L1, &[]).half_open(L1, Proto::Tcp, None);
    cases.push(
        case("ack before any syn-ack", unanswered, &segment(5001)).drops(DropReason::HeldBack),
    );
    let reset = Tcp {
        ack: 0,
        ..Tcp::new(CLIENT_PORT, HTTP, RST)
    };
    cases.push(
        case("reset of a half-open flow reaches the pod", scene(), &reset)
            .becomes(delivered(net, L1, &reset))
            .counts(&[Stat::Known]),
    );
    let udp = Udp::new(CLIENT_PORT, DNS, b"again");
    cases.push(
        xdp(
            format!("half-open udp is known, {net:?}"),
            Scene::current(L1, &[]).half_open(L1, Proto::Udp, None),
            L1.sent_by(net, 2).around(&udp.packet(&net.ip())),
        )
        .becomes(
            Udp {
                to: POD_PORT,
                ..udp
            }
            .frame(&net.ip_to(L1)),
        )
        .counts(&[Stat::Known]),
    );
}

fn ends(cases: &mut Vec<Case>, net: Net) {
    let scene = || Scene::current(L1, &[]).flow(L1, Proto::Tcp);
    for (what, flags) in [("fin", FIN | ACK), ("rst", RST)] {
        let segment = Tcp {
            data: Vec::new(),
            ..tcp(flags)
        };
        cases.push(
            xdp(
                format!("{what} of the client is noted, {net:?}"),
                scene(),
                arrives(net, L1, &segment),
            )
            .becomes(delivered(net, L1, &segment))
            .counts(&[Stat::Known]),
        );
    }
    let closing = || Scene::current(L1, &[]).flow_with(L1, Proto::Tcp, 1, 1);
    let segment = Tcp {
        data: Vec::new(),
        ..tcp(ACK)
    };
    cases.push(
        xdp(
            format!("closing flow, nobody else, {net:?}"),
            closing(),
            arrives(net, L1, &segment),
        )
        .becomes(delivered(net, L1, &segment))
        .counts(&[Stat::Known]),
    );
}

fn in_use(cases: &mut Vec<Case>, net: Net) {
    let also = |proto: Proto| {
        Scene::current(L1, &[])
            .flow(L1, proto)
            .but("through port 81", |tables| {
                for flow in tables.v4.flows.borrow_mut().values_mut() {
                    flow.vip_port = Be16::new(HTTP_ALSO);
                }
                for flow in tables.v6.flows.borrow_mut().values_mut() {
                    flow.vip_port = Be16::new(HTTP_ALSO);
                }
            })
    };
    for (what, flags) in [("syn", SYN), ("mid-flow", ACK)] {
        let segment = tcp(flags);
        cases.push(
            xdp(
                format!("tuple in use through another port, {what}, {net:?}"),
                also(Proto::Tcp),
                arrives(net, L1, &segment),
            )
            .drops(DropReason::TupleInUse),
        );
    }
    let half = Scene::current(L1, &[]).half_open(L1, Proto::Tcp, Some(5000));
    let segment = Tcp {
        to: HTTP_ALSO,
        ..tcp(SYN)
    };
    cases.push(
        xdp(
            format!("tuple in use by a half-open flow, {net:?}"),
            half,
            arrives(net, L1, &segment),
        )
        .drops(DropReason::TupleInUse),
    );
}

fn no_such_pod(cases: &mut Vec<Case>, net: Net) {
    // L2's address and port, but another identity: the pod that the balancer means is gone.
    let mut gone = L2.sent_by(net, 2);
    gone.pod.identity = 0x0dea_d0de;
    let segment = Tcp::new(CLIENT_PORT, HTTP, SYN);
    let input = gone.around(&segment.packet(&net.ip()));
    cases.push(
        xdp(
            format!("syn for a pod that is gone, decided afresh for a pod here, {net:?}"),
            Scene::current(L1, &[]),
            input.clone(),
        )
        .becomes(delivered(net, L1, &segment))
        .counts(&[Stat::Known, Stat::Admitted, Stat::DecidedAfresh]),
    );
    let scene = || Scene::current(R3, &[]);
    let again = Encap {
        asked: vec![gone.pod.identity],
        ..sent(&scene(), R3, net, net, Proto::Tcp)
    };
    cases.push(
        xdp(
            format!("syn for a pod that is gone, decided afresh for another node, {net:?}"),
            scene(),
            input,
        )
        .transmits(again.around(&segment.packet(&net.ip())))
        .counts(&[Stat::DecidedAfresh, Stat::Relayed]),
    );
    let twice = Encap {
        asked: vec![R2.identity()],
        ..gone.clone()
    };
    cases.push(
        xdp(
            format!("syn for a pod that is gone, decided once only, {net:?}"),
            Scene::current(L1, &[]),
            twice.around(&segment.packet(&net.ip())),
        )
        .drops(DropReason::NoSuchPod),
    );
}
