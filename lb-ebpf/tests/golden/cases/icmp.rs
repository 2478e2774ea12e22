//! ICMP: echo, packets that are too big, errors about flows.

use lb_ebpf::abi::{DropReason, Stat};

use super::{Case, sent, xdp};
use crate::golden::packet::{self, ACK, Ip, Tcp, Udp, frame, frame_back, icmp};
use crate::golden::scene::{CLIENT_PORT, DNS, HTTP, L1, Net, POD_PORT, Pod, Proto, R2, R3, Scene};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in Net::BOTH {
        echo(&mut cases, net);
        too_big(&mut cases, net);
        errors(&mut cases, net);
    }
    cases
}

fn echo(cases: &mut Vec<Case>, net: Net) {
    let (ask, answer) = match net {
        Net::V4 => (8, 0),
        Net::V6 => (128, 129),
    };
    for (what, data) in [("even", &b"pings"[..]), ("odd", &b"odd ping"[..])] {
        let input = icmp(&net.ip(), ask, 0, 0x0007_0001, data);
        let back = Ip {
            hops: 64,
            ..net.ip_back()
        };
        let output = icmp(&back, answer, 0, 0x0007_0001, data);
        cases.push(
            xdp(
                format!("echo, {what}, {net:?}"),
                Scene::empty(),
                frame(&input),
            )
            .transmits(frame_back(&output))
            .counts(&[Stat::EchoAnswered]),
        );
    }
    let martian = Ip {
        src: if net == Net::V4 {
            packet::v4(127, 0, 0, 1)
        } else {
            "::1".parse().expect("an address")
        },
        ..net.ip()
    };
    let input = icmp(&martian, ask, 0, 7, b"ping");
    cases.push(
        xdp(
            format!("echo of a martian, {net:?}"),
            Scene::empty(),
            frame(&input),
        )
        .drops(DropReason::MartianAddress),
    );
    let other = icmp(
        &net.ip(),
        if net == Net::V4 { 13 } else { 135 },
        0,
        7,
        &[0; 16],
    );
    cases.push(xdp(
        format!("other icmp to the vip, {net:?}"),
        Scene::empty(),
        frame(&other),
    ));
}

fn big(df: bool) -> (Tcp, Ip, Ip) {
    let segment = Tcp {
        data: (0..1420_u16).map(|i| i as u8).collect(),
        ..Tcp::new(CLIENT_PORT, HTTP, ACK)
    };
    (segment, Ip { df, ..Net::V4.ip() }, Net::V6.ip())
}

fn too_big(cases: &mut Vec<Case>, net: Net) {
    let (segment, ip4, ip6) = big(true);
    let ip = if net == Net::V4 { ip4 } else { ip6 };
    let packet = segment.packet(&ip);
    let back = Ip {
        hops: 64,
        id: 0,
        df: false,
        ..net.ip_back()
    };
    let quoted = &packet[..512];
    let told = match net {
        Net::V4 => icmp(&back, 3, 4, 1500 - 84, quoted),
        Net::V6 => icmp(&back, 2, 0, 1500 - 116, quoted),
    };
    cases.push(
        xdp(
            format!("too big with outer headers, {net:?}"),
            Scene::current(R2, &[]),
            frame(&packet),
        )
        .transmits(frame_back(&told))
        .counts(&[Stat::TooBigSent]),
    );
    if net == Net::V4 {
        let (segment, ip, _) = big(false);
        cases.push(
            xdp(
                "too big, may be fragmented",
                Scene::current(R2, &[]),
                segment.frame(&ip),
            )
            .drops(DropReason::OversizeNoDf),
        );
    }
    // The largest packet that fits.
    let overhead = if net == Net::V4 { 60 + 20 } else { 92 + 40 };
    let fits = Tcp {
        data: vec![7; 1500 - overhead - 20],
        ..segment.clone()
    };
    let packet = fits.packet(&ip);
    let scene = || Scene::current(R2, &[]);
    let out = sent(&scene(), R2, net, net, Proto::Tcp).around(&packet);
    assert_eq!(out.len(), 1514);
    cases.push(
        xdp(
            format!("as big as it may be, {net:?}"),
            scene(),
            frame(&packet),
        )
        .transmits(out),
    );
    // Known here: no headers, no limit.
    let segment = Tcp {
        to: POD_PORT,
        ..segment
    };
    cases.push(
        xdp(
            format!("big for a pod of this node, {net:?}"),
            Scene::current(L1, &[]).flow(L1, Proto::Tcp),
            frame(
                &Tcp {
                    to: HTTP,
                    ..segment.clone()
                }
                .packet(&ip),
            ),
        )
        .becomes(segment.frame(&Ip {
            df: ip.df,
            ..net.ip_to(L1)
        }))
        .counts(&[Stat::Known]),
    );
}

/// An error of a router on the way about what `from` sent: the first bytes of it are quoted.
fn error(net: Net, to: std::net::IpAddr, quoted: &[u8]) -> Vec<u8> {
    let router = Ip::new(net.node(250), to);
    match net {
        Net::V4 => icmp(&router, 3, 4, 1400, quoted),
        Net::V6 => icmp(&router, 2, 0, 1400, quoted),
    }
}

fn answers(net: Net, from: Option<Pod>, proto: Proto) -> Vec<u8> {
    let (ip, port) = match from {
        Some(pod) => (net.ip_from(pod), POD_PORT),
        None => (net.ip_back(), proto.port()),
    };
    proto.answer(&Ip { id: 7, ..ip }, port)
}

fn errors(cases: &mut Vec<Case>, net: Net) {
    for proto in Proto::BOTH {
        let quoted = answers(net, None, proto);
        let input = error(net, net.vip(), &quoted);
        let scene = || Scene::current(R2, &[]);
        let out = sent(&scene(), R2, net, net, proto).around(&input);
        cases.push(
            xdp(
                format!("error about {proto:?} goes where the flow goes, {net:?}"),
                scene(),
                frame(&input),
            )
            .transmits(out),
        );
        // Inside, the quoted transport checksum stays the VIP's, as the sender of the error saw it.
        let expected = |bytes: usize| {
            let mut quoted_pod = answers(net, Some(L1), proto);
            let at = if net == Net::V4 { 20 } else { 40 };
            let sum_at = at + if proto == Proto::Tcp { 16 } else { 6 };
            let vip = answers(net, None, proto);
            quoted_pod[sum_at..sum_at + 2].copy_from_slice(&vip[sum_at..sum_at + 2]);
            frame(&error(net, L1.address(net), &quoted_pod[..bytes]))
        };
        let short = if net == Net::V4 { 28 } else { 48 };
        for (what, bytes) in [("all", quoted.len()), ("eight bytes", short)] {
            let input = error(net, net.vip(), &quoted[..bytes]);
            let known = Scene::current(L1, &[]).flow(L1, proto);
            cases.push(
                xdp(
                    format!("error about {proto:?} is delivered, {what} quoted, {net:?}"),
                    known,
                    L1.sent_by(net, 2).around(&input),
                )
                .becomes(expected(bytes))
                .counts(&[Stat::IcmpDelivered]),
            );
        }
        let input = error(net, net.vip(), &quoted);
        cases.push(
            xdp(
                format!("error about {proto:?} here, {net:?}"),
                Scene::current(L1, &[]).flow(L1, proto),
                frame(&input),
            )
            .becomes(expected(quoted.len()))
            .counts(&[Stat::IcmpDelivered]),
        );
        let scene = || Scene::current(L1, &[R3]);
        let mut passed = sent(&scene(), R3, net, net, proto);
        passed.asked = vec![L1.identity()];
        cases.push(
            xdp(
                format!("error about unknown {proto:?} is passed on, {net:?}"),
                scene(),
                L1.sent_by(net, 2).around(&input),
            )
            .transmits(passed.around(&input))
            .counts(&[Stat::Relayed]),
        );
        cases.push(
            xdp(
                format!("error about {proto:?} that nobody knows, {net:?}"),
                Scene::current(L1, &[]),
                L1.sent_by(net, 2).around(&input),
            )
            .drops(DropReason::IcmpUnknownFlow),
        );
    }
    let foreign = Udp::new(DNS, CLIENT_PORT, b"not of the vip").packet(&Ip {
        src: net.node(77),
        ..net.ip_back()
    });
    cases.push(
        xdp(
            format!("error about a packet of somebody else, {net:?}"),
            Scene::current(R2, &[]),
            frame(&error(net, net.vip(), &foreign)),
        )
        .drops(DropReason::IcmpMalformed),
    );
    cases.push(
        xdp(
            format!("error without a quoted packet, {net:?}"),
            Scene::current(R2, &[]),
            frame(&error(net, net.vip(), &[0; 12])),
        )
        .drops(DropReason::IcmpMalformed),
    );
}
