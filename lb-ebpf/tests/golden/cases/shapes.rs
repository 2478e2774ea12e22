//! Packets of other shapes: fragments, options, extension headers, VLAN tags.

use lb_ebpf::abi::{DropReason, Stat};

use super::{Case, sent, xdp};
use crate::golden::packet::{ACK, Encap, Ip, Tcp, Udp, frame, frame_back, icmp, tagged};
use crate::golden::scene::{CLIENT_PORT, DNS, HTTP, L1, Net, POD_PORT, Proto, R2, Scene};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in Net::BOTH {
        fragments(&mut cases, net);
        refused_fragments(&mut cases, net);
        tags(&mut cases, net);
    }
    options(&mut cases);
    cases
}

/// The tables after the first fragment of a UDP packet.
fn noted(scene: Scene) -> Scene {
    use crate::golden::scene::{addr6, be32, vip_key4, vip_key6};
    use lb_ebpf::abi::{FragmentKey, FragmentPorts};
    use lb_ebpf::wire::Be32;
    scene.but("a first fragment was here", |tables| {
        let (id, proto, pad) = (Be32::new(0x1234), 17, [0; 3]);
        let (src, dst) = (be32(Net::V4.client()), be32(Net::V4.vip()));
        let ports = vip_key4(Proto::Udp).ports;
        tables.v4.fragments.borrow_mut().insert(
            FragmentKey {
                src,
                dst,
                id,
                proto,
                pad,
            },
            FragmentPorts { ports, vip: dst },
        );
        let (src, dst) = (addr6(Net::V6.client()), addr6(Net::V6.vip()));
        let ports = vip_key6(Proto::Udp).ports;
        tables.v6.fragments.borrow_mut().insert(
            FragmentKey {
                src,
                dst,
                id,
                proto,
                pad,
            },
            FragmentPorts { ports, vip: dst },
        );
    })
}

fn fragments(cases: &mut Vec<Case>, net: Net) {
    let udp = Udp::new(CLIENT_PORT, DNS, &[0x5a; 120]);
    let whole = udp.bytes(&net.ip());
    let (first, last) = (
        net.ip().fragment(17, &whole, 0, 64),
        net.ip().fragment(17, &whole, 64, 128),
    );
    let remote = || Scene::current(R2, &[]);
    let encap = sent(&remote(), R2, net, net, Proto::Udp);
    cases.push(
        xdp(format!("first fragment, {net:?}"), remote(), frame(&first))
            .transmits(encap.around(&first)),
    );
    cases.push(
        xdp(
            format!("last fragment, {net:?}"),
            noted(remote()),
            frame(&last),
        )
        .transmits(encap.around(&last)),
    );
    let delivered = Udp {
        to: POD_PORT,
        ..udp
    }
    .bytes(&net.ip_to(L1));
    let known = || Scene::current(L1, &[]).flow(L1, Proto::Udp);
    let here = L1.sent_by(net, 2);
    for (what, input, out) in [("first", &first, (0, 64)), ("last", &last, (64, 128))] {
        let scene = || {
            if what == "first" {
                known()
            } else {
                noted(known())
            }
        };
        let out = frame(&net.ip_to(L1).fragment(17, &delivered, out.0, out.1));
        cases.push(
            xdp(
                format!("{what} fragment is delivered, {net:?}"),
                scene(),
                here.around(input),
            )
            .becomes(out.clone())
            .counts(&[Stat::Known]),
        );
        cases.push(
            xdp(
                format!("{what} fragment for a pod of this node, {net:?}"),
                scene(),
                frame(input),
            )
            .becomes(out)
            .counts(&[Stat::Known]),
        );
    }
}

fn refused_fragments(cases: &mut Vec<Case>, net: Net) {
    let ip = net.ip();
    let whole = Udp::new(CLIENT_PORT, DNS, &[0x5a; 120]).bytes(&ip);
    let last = ip.fragment(17, &whole, 64, 128);
    let remote = || Scene::current(R2, &[]);
    cases.push(
        xdp(
            format!("last fragment before the first, {net:?}"),
            remote(),
            frame(&last),
        )
        .drops(DropReason::FragmentUnknown),
    );
    cases.push(
        xdp(
            format!("last fragment before the first, encapsulated, {net:?}"),
            Scene::current(L1, &[]),
            L1.sent_by(net, 2).around(&last),
        )
        .drops(DropReason::FragmentUnknown),
    );
    let icmp = ip.fragment(if net == Net::V4 { 1 } else { 58 }, &[8; 64], 0, 32);
    cases.push(
        xdp(format!("fragment of icmp, {net:?}"), remote(), frame(&icmp))
            .drops(DropReason::FragmentUnknown),
    );
    let segment = Tcp {
        data: vec![7; 64],
        ..Tcp::new(CLIENT_PORT, HTTP, ACK)
    }
    .bytes(&ip);
    for (what, from, to) in [("cuts", 0, 8), ("overlaps", 8, 40)] {
        cases.push(
            xdp(
                format!("fragment that {what} the tcp header, {net:?}"),
                noted(remote()),
                frame(&ip.fragment(6, &segment, from, to)),
            )
            .drops(DropReason::FragmentOverlap),
        );
    }
}

fn options(cases: &mut Vec<Case>) {
    let ip = Net::V4.ip();
    let syn = Tcp::new(CLIENT_PORT, HTTP, ACK);
    let packet = ip.with_options(6, &syn.bytes(&ip), &[1, 1, 1, 0]);
    cases.push(
        xdp(
            "ipv4 options to a vip",
            Scene::current(R2, &[]),
            frame(&packet),
        )
        .drops(DropReason::IpOptions),
    );
    cases.push(
        xdp(
            "ipv4 options inside our encapsulation",
            Scene::current(L1, &[]),
            L1.sent_by(Net::V4, 2).around(&packet),
        )
        .drops(DropReason::IpOptions),
    );
    let ip = Net::V6.ip();
    let behind = |next: u8, kind: u8, header: &[u8]| {
        (
            kind,
            ip.around(kind, &[&[next][..], header, &syn.bytes(&ip)].concat()),
        )
    };
    let padding = [0, 1, 4, 0, 0, 0, 0];
    for (kind, packet) in [
        behind(6, 0, &padding),
        behind(6, 60, &padding),
        behind(6, 43, &[0, 253, 0, 0, 0, 0, 0]),
    ] {
        cases.push(
            xdp(
                format!("extension header {kind} to a vip"),
                Scene::current(R2, &[]),
                frame(&packet),
            )
            .drops(DropReason::ExtensionHeader),
        );
    }
}

fn tags(cases: &mut Vec<Case>, net: Net) {
    let ip = net.ip();
    let segment = Tcp::new(CLIENT_PORT, HTTP, ACK);
    let remote = || Scene::current(R2, &[]);
    let known = || Scene::current(L1, &[]).flow(L1, Proto::Tcp);
    let out = sent(&remote(), R2, net, net, Proto::Tcp).around(&segment.packet(&ip));
    let delivered = Tcp {
        to: POD_PORT,
        ..segment.clone()
    }
    .frame(&net.ip_to(L1));
    for ids in [&[100][..], &[200, 100]] {
        let input = tagged(&segment.frame(&ip), ids);
        let depth = ids.len();
        cases.push(
            xdp(
                format!("{depth} tags stay on the way out, {net:?}"),
                remote(),
                input.clone(),
            )
            .transmits(tagged(&out, ids)),
        );
        cases.push(
            xdp(
                format!("{depth} tags stay on delivery, {net:?}"),
                known(),
                input,
            )
            .becomes(tagged(&delivered, ids))
            .counts(&[Stat::Known]),
        );
        let encapsulated = Encap {
            ..L1.sent_by(net, 2)
        }
        .around(&segment.packet(&ip));
        cases.push(
            xdp(
                format!("{depth} tags around our encapsulation, {net:?}"),
                known(),
                tagged(&encapsulated, ids),
            )
            .becomes(tagged(&delivered, ids))
            .counts(&[Stat::Known]),
        );
        let elsewhere = segment.frame(&Ip {
            dst: net.node(200),
            ..ip
        });
        cases.push(xdp(
            format!("{depth} tags, not ours, {net:?}"),
            remote(),
            tagged(&elsewhere, ids),
        ));
        let (ask, answer) = if net == Net::V4 { (8, 0) } else { (128, 129) };
        let back = Ip {
            hops: 64,
            ..net.ip_back()
        };
        cases.push(
            xdp(
                format!("{depth} tags around echo, {net:?}"),
                remote(),
                tagged(&frame(&icmp(&ip, ask, 0, 7, b"ping")), ids),
            )
            .transmits(tagged(
                &frame_back(&icmp(&back, answer, 0, 7, b"ping")),
                ids,
            ))
            .counts(&[Stat::EchoAnswered]),
        );
    }
    let deep = tagged(&segment.frame(&ip), &[300, 200, 100]);
    cases.push(xdp(format!("3 tags, {net:?}"), remote(), deep).drops(DropReason::VlanTooDeep));
    let elsewhere = segment.frame(&Ip {
        dst: net.node(200),
        ..ip
    });
    cases.push(xdp(
        format!("3 tags, not ours, {net:?}"),
        remote(),
        tagged(&elsewhere, &[300, 200, 100]),
    ));
    let unknown = tagged(&Tcp::new(CLIENT_PORT, HTTP, ACK).frame(&ip), &[100]);
    cases.push(
        xdp(
            format!("a tag and held back, {net:?}"),
            Scene::current(L1, &[]),
            unknown,
        )
        .drops(DropReason::HeldBack),
    );
}
