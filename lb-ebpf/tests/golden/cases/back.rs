//! The way back at egress.

use lb_ebpf::abi::Stat;

use super::{Case, egress};
use crate::golden::packet::{self, ACK, FIN, Ip, RST, SYN, Tcp, Udp, frame_back, icmp, mss};
use crate::golden::scene::{CLIENT_PORT, DNS, HTTP, L1, L2, Net, POD_PORT, Proto, Scene};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in Net::BOTH {
        replies(&mut cases, net);
        syn_acks(&mut cases, net);
        ends(&mut cases, net);
        errors(&mut cases, net);
        fragments(&mut cases, net);
        untouched(&mut cases, net);
    }
    cases
}

fn of_pod(segment: &Tcp, net: Net) -> Vec<u8> {
    frame_back(&segment.packet(&net.ip_from(L1)))
}

fn of_vip(segment: &Tcp, net: Net) -> Vec<u8> {
    frame_back(
        &Tcp {
            from: HTTP,
            ..segment.clone()
        }
        .packet(&net.ip_back()),
    )
}

fn tcp(flags: u8) -> Tcp {
    Tcp {
        seq: 5000,
        ack: 1001,
        ..Tcp::new(POD_PORT, CLIENT_PORT, flags)
    }
}

fn replies(cases: &mut Vec<Case>, net: Net) {
    let segment = Tcp {
        data: b"HTTP/1.1 200 OK\r\n\r\n!".to_vec(),
        ..tcp(ACK)
    };
    let known = |proto| Scene::current(L1, &[]).flow(L1, proto);
    cases.push(
        egress(
            format!("tcp reply, {net:?}"),
            known(Proto::Tcp),
            of_pod(&segment, net),
        )
        .becomes(of_vip(&segment, net))
        .counts(&[Stat::Returned]),
    );
    for checksum in [true, false] {
        if !checksum && net == Net::V6 {
            continue;
        }
        let udp = Udp {
            checksum,
            ..Udp::new(POD_PORT, CLIENT_PORT, b"an answer")
        };
        let out = frame_back(
            &Udp {
                from: DNS,
                ..udp.clone()
            }
            .packet(&net.ip_back()),
        );
        let what = if checksum { "with" } else { "without" };
        let input = frame_back(&udp.packet(&net.ip_from(L1)));
        cases.push(
            egress(
                format!("udp reply {what} checksum, {net:?}"),
                known(Proto::Udp),
                input.clone(),
            )
            .becomes(out.clone())
            .counts(&[Stat::Returned]),
        );
        if checksum {
            cases.push(
                egress(
                    format!("first udp reply promotes, {net:?}"),
                    Scene::current(L1, &[]).half_open(L1, Proto::Udp, None),
                    input,
                )
                .becomes(out)
                .counts(&[Stat::Returned, Stat::Promoted]),
            );
        }
    }
    let half = || Scene::current(L1, &[]).half_open(L1, Proto::Tcp, Some(5000));
    cases.push(
        egress(
            format!("any segment but syn-ack promotes, {net:?}"),
            half(),
            of_pod(&segment, net),
        )
        .becomes(of_vip(&segment, net))
        .counts(&[Stat::Returned, Stat::Promoted]),
    );
    // The sum that would be zero is sent as ones (RFC 768): search for the data that makes it so.
    let udp = (0..=u16::MAX)
        .map(|word| Udp::new(POD_PORT, CLIENT_PORT, &word.to_be_bytes()))
        .find(|udp| {
            let bytes = Udp {
                from: DNS,
                ..udp.clone()
            }
            .bytes(&net.ip_back());
            bytes[6..8] == [0xff, 0xff]
        })
        .expect("one word in 65536 does");
    let input = frame_back(&udp.packet(&net.ip_from(L1)));
    let out = frame_back(&Udp { from: DNS, ..udp }.packet(&net.ip_back()));
    cases.push(
        egress(
            format!("udp reply whose checksum becomes zero, {net:?}"),
            known(Proto::Udp),
            input,
        )
        .becomes(out)
        .counts(&[Stat::Returned]),
    );
}

fn syn_acks(cases: &mut Vec<Case>, net: Net) {
    let half = || Scene::current(L1, &[]).half_open(L1, Proto::Tcp, None);
    let limit = if net == Net::V4 { 1376 } else { 1324 };
    let timestamps = [8, 10, 0, 0, 0, 1, 0, 0, 0, 2];
    let options = |value: u16| {
        [
            ("first", mss(value)),
            (
                "behind a no-op, at an odd place",
                [&[1][..], &mss(value), &[3, 3, 7]].concat(),
            ),
            (
                "behind timestamps",
                [&timestamps[..], &mss(value), &[1, 1]].concat(),
            ),
            (
                "behind three no-ops and window scale",
                [&[1, 3, 3, 7, 1, 1][..], &mss(value), &[4, 2]].concat(),
            ),
        ]
    };
    for ((what, high), (_, low)) in options(1460).into_iter().zip(options(limit)) {
        let segment = |options| Tcp {
            options,
            ..tcp(SYN | ACK)
        };
        cases.push(
            egress(
                format!("mss {what}, {net:?}"),
                half(),
                of_pod(&segment(high), net),
            )
            .becomes(of_vip(&segment(low), net))
            .counts(&[Stat::Returned, Stat::MssClamped]),
        );
    }
    for (what, options) in [
        ("mss that is low enough", mss(limit)),
        ("no mss", [&timestamps[..], &[1, 1]].concat()),
        ("no options", Vec::new()),
        (
            "mss behind the end of options",
            [&[0, 0, 0, 0][..], &mss(1460)].concat(),
        ),
        (
            "option of length zero",
            [&[8, 0, 0, 0][..], &mss(1460)].concat(),
        ),
    ] {
        let segment = Tcp {
            options,
            ..tcp(SYN | ACK)
        };
        cases.push(
            egress(format!("{what}, {net:?}"), half(), of_pod(&segment, net))
                .becomes(of_vip(&segment, net))
                .counts(&[Stat::Returned]),
        );
    }
    let again = Scene::current(L1, &[]).half_open(L1, Proto::Tcp, Some(5000));
    let segment = tcp(SYN | ACK);
    cases.push(
        egress(
            format!("syn-ack again, {net:?}"),
            again,
            of_pod(&segment, net),
        )
        .becomes(of_vip(&segment, net))
        .counts(&[Stat::Returned]),
    );
    let other = Scene::current(L1, &[]).half_open(L1, Proto::Tcp, Some(9000));
    cases.push(
        egress(
            format!("syn-ack with another number, {net:?}"),
            other,
            of_pod(&segment, net),
        )
        .becomes(of_vip(&segment, net))
        .counts(&[Stat::Returned]),
    );
    // TCP fast open: data in the SYN-ACK.
    let data = Tcp {
        data: b"at once!".to_vec(),
        ..tcp(SYN | ACK)
    };
    cases.push(
        egress(
            format!("syn-ack with data, {net:?}"),
            half(),
            of_pod(&data, net),
        )
        .becomes(of_vip(&data, net))
        .counts(&[Stat::Returned]),
    );
}

fn ends(cases: &mut Vec<Case>, net: Net) {
    let scene = |client, pod| Scene::current(L1, &[]).flow_with(L1, Proto::Tcp, client, pod);
    for (what, segment, scene) in [
        ("fin of the pod is noted", tcp(FIN | ACK), scene(1, 0)),
        ("reset of the pod is noted", tcp(RST), scene(0, 0)),
        (
            "the pod speaks on after a reset of the client",
            tcp(ACK),
            scene(2, 0),
        ),
        (
            "the pod resets after a reset of the client",
            tcp(RST),
            scene(2, 0),
        ),
    ] {
        cases.push(
            egress(format!("{what}, {net:?}"), scene, of_pod(&segment, net))
                .becomes(of_vip(&segment, net))
                .counts(&[Stat::Returned]),
        );
    }
    let half = || Scene::current(L1, &[]).half_open(L1, Proto::Tcp, None);
    let refused = tcp(RST | ACK);
    cases.push(
        egress(
            format!("refused connection is not promoted, {net:?}"),
            half(),
            of_pod(&refused, net),
        )
        .becomes(of_vip(&refused, net))
        .counts(&[Stat::Returned]),
    );
    let fin = tcp(FIN | ACK);
    cases.push(
        egress(
            format!("fin promotes and is noted, {net:?}"),
            half(),
            of_pod(&fin, net),
        )
        .becomes(of_vip(&fin, net))
        .counts(&[Stat::Returned, Stat::Promoted]),
    );
}

fn errors(cases: &mut Vec<Case>, net: Net) {
    let (kind, code) = if net == Net::V4 { (3, 3) } else { (1, 4) };
    for (proto, known) in [
        (
            Proto::Udp,
            Scene::current(L1, &[]).half_open(L1, Proto::Udp, None),
        ),
        (Proto::Tcp, Scene::current(L1, &[]).flow(L1, Proto::Tcp)),
    ] {
        let quoted = proto.packet(&net.ip_to(L1), POD_PORT);
        let input = icmp(&net.ip_from(L1), kind, code, 0, &quoted);
        // The quoted transport checksum stays the pod's: whoever gets an error compares addresses and ports.
        let mut quoted_vip = proto.packet(&net.ip(), proto.port());
        let at = if net == Net::V4 { 20 } else { 40 } + if proto == Proto::Tcp { 16 } else { 6 };
        quoted_vip[at..at + 2].copy_from_slice(&quoted[at..at + 2]);
        let out = icmp(&net.ip_back(), kind, code, 0, &quoted_vip);
        cases.push(
            egress(
                format!("error of a pod about {proto:?}, {net:?}"),
                known,
                frame_back(&input),
            )
            .becomes(frame_back(&out))
            .counts(&[Stat::Returned]),
        );
        cases.push(egress(
            format!("error of a pod about {proto:?} of no flow, {net:?}"),
            Scene::current(L2, &[]),
            frame_back(&input),
        ));
    }
}

fn fragments(cases: &mut Vec<Case>, net: Net) {
    let udp = Udp::new(POD_PORT, CLIENT_PORT, &[0x5a; 120]);
    let pod = udp.bytes(&net.ip_from(L1));
    let vip = Udp { from: DNS, ..udp }.bytes(&net.ip_back());
    let known = || Scene::current(L1, &[]).flow(L1, Proto::Udp);
    let noted = || {
        use crate::golden::scene::{addr6, be32};
        use lb_ebpf::abi::{FragmentKey, FragmentPorts};
        use lb_ebpf::wire::{Be32, Ports};
        known().but("a first fragment was here", |tables| {
            let (id, proto, pad, ports) = (Be32::new(0x1234), 17, [0; 3], Ports::default());
            let (src, dst) = (be32(L1.address(Net::V4)), be32(Net::V4.client()));
            let vip = be32(Net::V4.vip());
            tables.v4.fragments.borrow_mut().insert(
                FragmentKey {
                    src,
                    dst,
                    id,
                    proto,
                    pad,
                },
                FragmentPorts { ports, vip },
            );
            let (src, dst) = (addr6(L1.address(Net::V6)), addr6(Net::V6.client()));
            let vip = addr6(Net::V6.vip());
            tables.v6.fragments.borrow_mut().insert(
                FragmentKey {
                    src,
                    dst,
                    id,
                    proto,
                    pad,
                },
                FragmentPorts { ports, vip },
            );
        })
    };
    for (what, scene, from, to) in [("first", known(), 0, 64), ("last", noted(), 64, 128)] {
        let input = frame_back(&net.ip_from(L1).fragment(17, &pod, from, to));
        let out = frame_back(&net.ip_back().fragment(17, &vip, from, to));
        cases.push(
            egress(format!("{what} fragment of a reply, {net:?}"), scene, input)
                .becomes(out)
                .counts(&[Stat::Returned]),
        );
    }
    let input = frame_back(&net.ip_from(L1).fragment(17, &pod, 64, 128));
    cases.push(egress(
        format!("last fragment of a reply, the first was not seen, {net:?}"),
        known(),
        input,
    ));
}

fn untouched(cases: &mut Vec<Case>, net: Net) {
    let scene = || Scene::current(L1, &[]).flow(L1, Proto::Tcp);
    let mut case = |name: &str, input: Vec<u8>| {
        cases.push(egress(format!("{name}, {net:?}"), scene(), input));
    };
    let other = Tcp {
        from: 22,
        ..tcp(ACK)
    };
    case("another port of the pod", of_pod(&other, net));
    case(
        "another pod",
        frame_back(&tcp(ACK).packet(&net.ip_from(L2))),
    );
    let elsewhere = Ip {
        dst: net.node(77),
        ..net.ip_from(L1)
    };
    case("another client", frame_back(&tcp(ACK).packet(&elsewhere)));
    let udp = Udp::new(POD_PORT, CLIENT_PORT, b"udp");
    case(
        "another protocol",
        frame_back(&udp.packet(&net.ip_from(L1))),
    );
    let (ask, _) = if net == Net::V4 { (8, 0) } else { (128, 0) };
    case(
        "echo of a pod",
        frame_back(&icmp(&net.ip_from(L1), ask, 0, 7, b"ping")),
    );
    let geneve = L1.sent_by(net, 2);
    case(
        "our own encapsulation",
        geneve.around(&tcp(ACK).packet(&net.ip_from(L1))),
    );
    if net == Net::V4 {
        let ip = net.ip_from(L1);
        case(
            "ipv4 options",
            frame_back(&ip.with_options(6, &tcp(ACK).bytes(&ip), &[1, 1, 1, 0])),
        );
        let mut arp = [packet::ROUTER, packet::NODE].concat();
        arp.extend([0x08, 0x06]);
        arp.extend([0; 46]);
        case("another ethertype", arp);
    }
}
