//! Whom a Service serves and where: source ranges, and `externalTrafficPolicy: Local`.

use std::net::IpAddr;

use lb_ebpf::abi::{DropReason, SourceKey, SourceRange, Stat, service_flag};

use super::{Case, sent, xdp};
use crate::golden::packet::{self, ACK, Encap, Ip, SYN, Tcp, frame, icmp};
use crate::golden::scene::{CLIENT_PORT, HTTP, L1, L2, Net, POD_PORT, Proto, R2, Scene, addr6};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in Net::BOTH {
        ranges(&mut cases, net);
        errors(&mut cases, net);
        local(&mut cases, net);
    }
    cases
}

/// Sets a flag of all Services.
fn flagged(scene: Scene, what: &str, flag: u32) -> Scene {
    scene.but(what, |tables| {
        let four = tables.v4.services.values_mut();
        let entries = four.chain(tables.v6.services.values_mut());
        for entry in entries.filter(|entry| entry.flags & service_flag::VIP == 0) {
            entry.flags |= flag;
        }
    })
}

/// Only sources with the first `bits` bits of `from` are let in.
fn ranged(scene: Scene, from: IpAddr, bits: u32) -> Scene {
    let in_front = if from.is_ipv4() { 32 + 96 } else { 32 };
    let what = format!("only {from}/{bits} is let in");
    flagged(scene, &what, service_flag::SOURCE_RANGES).but("for all ids", |tables| {
        for id in 1..=3 {
            tables.source_ranges.push(SourceRange {
                prefix_len: in_front + bits,
                key: SourceKey::new(id, from.is_ipv6(), addr6(from)),
            });
        }
    })
}

/// The network of the clients, and one beside it.
fn networks(net: Net) -> (IpAddr, IpAddr, u32) {
    match net {
        Net::V4 => (packet::v4(203, 0, 113, 0), packet::v4(203, 0, 112, 0), 24),
        Net::V6 => (packet::v6(0xc, 0), packet::v6(0xd, 0), 64),
    }
}

fn syn(ip: &Ip) -> Vec<u8> {
    Tcp::new(CLIENT_PORT, HTTP, SYN).packet(ip)
}

fn ranges(cases: &mut Vec<Case>, net: Net) {
    let (inside, outside, bits) = networks(net);
    let scene = |from| ranged(Scene::current(R2, &[]), from, bits);
    for (what, packet, proto) in [
        ("syn", syn(&net.ip()), Proto::Tcp),
        ("segment", Proto::Tcp.packet(&net.ip(), HTTP), Proto::Tcp),
        (
            "datagram",
            Proto::Udp.packet(&net.ip(), Proto::Udp.port()),
            Proto::Udp,
        ),
    ] {
        let out = sent(&scene(inside), R2, net, net, proto).around(&packet);
        cases.extend(vec![
            xdp(
                format!("{what} from inside the ranges, {net:?}"),
                scene(inside),
                frame(&packet),
            )
            .transmits(out),
            xdp(
                format!("{what} from outside the ranges, {net:?}"),
                scene(outside),
                frame(&packet),
            )
            .drops(DropReason::SourceRange),
        ]);
    }
    let (other, everything) = match net {
        Net::V4 => (Net::V6, "::".parse().expect("an address")),
        Net::V6 => (Net::V4, packet::v4(0, 0, 0, 0)),
    };
    cases.extend(vec![
        xdp(
            format!("ranges of {other:?} let nobody in over {net:?}"),
            ranged(Scene::current(R2, &[]), everything, 0),
            frame(&syn(&net.ip())),
        )
        .drops(DropReason::SourceRange),
        xdp(
            format!("who is not let in is not refused either, {net:?}"),
            ranged(Scene::empty(), outside, bits),
            frame(&syn(&net.ip())),
        )
        .drops(DropReason::SourceRange),
        xdp(
            format!("a pod of this node is behind the ranges too, {net:?}"),
            ranged(Scene::current(L1, &[]).flow(L1, Proto::Tcp), outside, bits),
            frame(&Proto::Tcp.packet(&net.ip(), HTTP)),
        )
        .drops(DropReason::SourceRange),
        xdp(
            format!("the owner asks for no ranges, {net:?}"),
            ranged(Scene::current(L1, &[]).flow(L1, Proto::Tcp), outside, bits),
            L1.sent_by(net, 2)
                .around(&Proto::Tcp.packet(&net.ip(), HTTP)),
        )
        .becomes(frame(&Proto::Tcp.packet(&net.ip_to(L1), POD_PORT)))
        .counts(&[Stat::Known]),
    ]);
}

/// Errors of a router that is in no range, about what the VIP sent to a client.
fn errors(cases: &mut Vec<Case>, net: Net) {
    let (inside, outside, bits) = networks(net);
    let quoted = Proto::Tcp.answer(&net.ip_back(), HTTP);
    let router = Ip::new(net.node(250), net.vip());
    let error = match net {
        Net::V4 => icmp(&router, 3, 4, 1400, &quoted),
        Net::V6 => icmp(&router, 2, 0, 1400, &quoted),
    };
    let scene = |from| ranged(Scene::current(R2, &[]), from, bits);
    let out = sent(&scene(inside), R2, net, net, Proto::Tcp).around(&error);
    cases.extend(vec![
        xdp(
            format!("error about a client inside the ranges, {net:?}"),
            scene(inside),
            frame(&error),
        )
        .transmits(out),
        xdp(
            format!("error about a client outside the ranges, {net:?}"),
            scene(outside),
            frame(&error),
        )
        .drops(DropReason::SourceRange),
    ]);
}

fn local(cases: &mut Vec<Case>, net: Net) {
    let local = |scene| flagged(scene, "policy Local", service_flag::LOCAL_POLICY);
    let segment = Proto::Tcp.packet(&net.ip(), HTTP);
    let datagram = Proto::Udp.packet(&net.ip(), Proto::Udp.port());
    for (what, packet) in [
        ("syn", syn(&net.ip())),
        ("segment", segment.clone()),
        ("datagram", datagram),
    ] {
        cases.push(
            xdp(
                format!("policy Local, nobody serves here: {what}, {net:?}"),
                local(Scene::empty()),
                frame(&packet),
            )
            .drops(DropReason::NoLocalBackend),
        );
    }
    cases.extend(vec![
        xdp(
            format!("policy Local, a pod of this node serves, {net:?}"),
            local(Scene::current(L1, &[]).flow(L1, Proto::Tcp)),
            frame(&segment),
        )
        .becomes(frame(&Proto::Tcp.packet(&net.ip_to(L1), POD_PORT)))
        .counts(&[Stat::Known]),
        xdp(
            format!("policy Local, the tables have forgotten the owner, {net:?}"),
            local(Scene::current(L1, &[]).flow(L2, Proto::Tcp).first(L2)),
            frame(&segment),
        )
        .becomes(frame(&Proto::Tcp.packet(&net.ip_to(L2), POD_PORT)))
        .counts(&[Stat::Known]),
        xdp(
            format!("policy Local, nobody takes new flows, an old one lives, {net:?}"),
            local(Scene::current(L1, &[L2]).vacant().flow(L2, Proto::Tcp)),
            frame(&segment),
        )
        .becomes(frame(&Proto::Tcp.packet(&net.ip_to(L2), POD_PORT)))
        .counts(&[Stat::Known]),
        xdp(
            format!("policy Local, nobody takes new flows: syn, {net:?}"),
            local(Scene::current(L1, &[L2]).vacant()),
            frame(&Tcp::new(CLIENT_PORT, HTTP, SYN).packet(&net.ip())),
        )
        .drops(DropReason::NoLocalBackend),
        xdp(
            format!("policy Local, nobody knows the flow, {net:?}"),
            local(Scene::current(L1, &[])),
            frame(&Tcp::new(CLIENT_PORT, HTTP, ACK).packet(&net.ip())),
        )
        .drops(DropReason::HeldBack),
    ]);
    local_elsewhere(cases, net);
}

/// Packets that enter at another node than before.
fn local_elsewhere(cases: &mut Vec<Case>, net: Net) {
    let local = |scene| flagged(scene, "policy Local", service_flag::LOCAL_POLICY);
    let scene = || local(Scene::current(L1, &[R2]));
    let segment = Proto::Tcp.packet(&net.ip(), HTTP);
    let datagram = Proto::Udp.packet(&net.ip(), Proto::Udp.port());
    let passed = Encap {
        asked: vec![L1.identity()],
        ..sent(&scene(), R2, net, net, Proto::Tcp)
    };
    cases.extend(vec![
        xdp(
            format!("policy Local, another node may know the flow, {net:?}"),
            scene(),
            frame(&segment),
        )
        .transmits(passed.around(&segment))
        .counts(&[Stat::Relayed]),
        xdp(
            format!("policy Local, no other node is asked about a closing flow, {net:?}"),
            local(Scene::current(L1, &[R2]).flow_with(L1, Proto::Tcp, 1, 1)),
            frame(&segment),
        )
        .becomes(frame(&Proto::Tcp.packet(&net.ip_to(L1), POD_PORT)))
        .counts(&[Stat::Known]),
        xdp(
            format!("policy Local, another node asks for any pod of this one, {net:?}"),
            local(Scene::current(L1, &[R2]).flow(L2, Proto::Tcp).first(L2)),
            L1.sent_by(net, 2).around(&segment),
        )
        .becomes(frame(&Proto::Tcp.packet(&net.ip_to(L2), POD_PORT)))
        .counts(&[Stat::Known]),
        xdp(
            format!("policy Local, no other node is asked about a datagram, {net:?}"),
            scene(),
            frame(&datagram),
        )
        .becomes(frame(&Proto::Udp.packet(&net.ip_to(L1), POD_PORT)))
        .counts(&[Stat::Admitted, Stat::Known]),
        xdp(
            format!("policy Local, a first packet stays here, {net:?}"),
            scene(),
            frame(&syn(&net.ip())),
        )
        .becomes(frame(
            &Tcp::new(CLIENT_PORT, POD_PORT, SYN).packet(&net.ip_to(L1)),
        ))
        .counts(&[Stat::Admitted, Stat::Known]),
    ]);
}
