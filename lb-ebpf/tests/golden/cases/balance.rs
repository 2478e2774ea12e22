//! The balancer: to which pod, with which headers, and what it leaves alone.

use lb_ebpf::abi::{DropReason, Limited, SLOT_DEVIATES, Stat, backend_flag, mark};

use super::{Case, sent, xdp};
use crate::golden::packet::{
    self, ACK, Encap, FIN, Ip, PSH, RST, SYN, Tcp, Udp, frame, frame_back, icmp,
};
use crate::golden::scene::{
    CLIENT_PORT, DNS, HTTP, L1, Net, POD_PORT, Proto, R2, R3, R4, SECOND, Scene, mac,
};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in Net::BOTH {
        for outer in Net::BOTH {
            remote(&mut cases, net, outer);
        }
        details(&mut cases, net);
        ways(&mut cases, net);
        local(&mut cases, net);
        refused(&mut cases, net);
        nobody(&mut cases, net);
        missing(&mut cases, net);
    }
    not_ours(&mut cases);
    cases
}

fn tcp(flags: u8) -> Tcp {
    Tcp::new(CLIENT_PORT, HTTP, flags)
}

fn remote(cases: &mut Vec<Case>, net: Net, outer: Net) {
    let scene = || Scene::current(R2, &[R3]).outer(outer);
    let ip = net.ip();
    let to = |proto| sent(&scene(), R2, net, outer, proto);
    for (what, segment) in [
        ("syn", tcp(SYN)),
        (
            "mid-flow",
            Tcp {
                data: b"hello".to_vec(),
                ..tcp(ACK | PSH)
            },
        ),
    ] {
        let out = to(Proto::Tcp).around(&segment.packet(&ip));
        cases.push(
            xdp(
                format!("tcp {what}, {net:?} in {outer:?}"),
                scene(),
                segment.frame(&ip),
            )
            .transmits(out),
        );
    }
    let udp = Udp::new(CLIENT_PORT, 53, b"a question");
    let out = to(Proto::Udp).around(&udp.packet(&ip));
    cases.push(
        xdp(
            format!("udp, {net:?} in {outer:?}"),
            scene(),
            udp.frame(&ip),
        )
        .transmits(out),
    );
}

fn details(cases: &mut Vec<Case>, net: Net) {
    let ip = net.ip();
    let scene = || Scene::current(R2, &[]);
    let marked = Ip {
        class: 0b1011_1001,
        ..ip
    };
    let packet = tcp(ACK).packet(&marked);
    let encap = packet::Encap {
        class: marked.class,
        ..sent(&scene(), R2, net, net, Proto::Tcp)
    };
    cases.push(
        xdp(
            format!("dscp and ecn are copied, {net:?}"),
            scene(),
            frame(&packet),
        )
        .transmits(encap.around(&packet)),
    );

    // 54 or 74 bytes and padding: it follows the packet, outside of what the headers count.
    let packet = tcp(FIN | ACK).packet(&ip);
    let padding = [0; 6];
    let out = sent(&scene(), R2, net, net, Proto::Tcp).around(&packet);
    cases.push(
        xdp(
            format!("padding of a short frame, {net:?}"),
            scene(),
            [frame(&packet), padding.to_vec()].concat(),
        )
        .transmits([out, padding.to_vec()].concat()),
    );
}

/// Deviating slots, other interfaces, pods of this node.
fn ways(cases: &mut Vec<Case>, net: Net) {
    let ip = net.ip();
    let scene = || Scene::current(R2, &[]);
    let older_over_substitute = || {
        scene().but("the slot deviates to R3, R2 is agreed", |tables| {
            for (slot, net) in [(0, Net::V4), (3, Net::V6)] {
                let set = tables.slots[slot].set;
                tables.slots[slot].first = R3.backend(net);
                tables.slots[slot].set = set | SLOT_DEVIATES;
                let set = tables.sets.get_mut(&set).expect("made with the slot");
                set.current = R2.backend(net);
                set.substitute = R3.backend(net);
            }
        })
    };
    for (flags, pod, mark, counts) in [
        (SYN, R3, mark::DEVIATION, &[Stat::Deviated][..]),
        (ACK, R2, 0, &[]),
    ] {
        let packet = tcp(flags).packet(&ip);
        let out = Encap {
            mark,
            ..sent(&scene(), pod, net, net, Proto::Tcp)
        };
        cases.push(
            xdp(
                format!("flags {flags} while the slot deviates, {net:?}"),
                older_over_substitute(),
                frame(&packet),
            )
            .transmits(out.around(&packet))
            .counts(counts),
        );
    }

    let elsewhere = || {
        scene().but("R2 is behind interface 1", |tables| {
            tables
                .backends
                .get_mut(&R2.backend(net))
                .expect("there")
                .ifindex = 1;
        })
    };
    let packet = tcp(ACK).packet(&ip);
    let out = sent(&scene(), R2, net, net, Proto::Tcp).around(&packet);
    cases.push(
        xdp(
            format!("out of another interface, {net:?}"),
            elsewhere(),
            frame(&packet),
        )
        .redirects(out),
    );

    let reset = tcp(RST | ACK).packet(&ip);
    let out = sent(&scene(), R2, net, net, Proto::Tcp).around(&reset);
    cases.push(
        xdp(
            format!("reset goes to the pod, {net:?}"),
            scene(),
            frame(&reset),
        )
        .transmits(out),
    );
}

fn local(cases: &mut Vec<Case>, net: Net) {
    let ip = net.ip();
    let known = || Scene::current(L1, &[]).flow(L1, Proto::Tcp);
    let segment = Tcp {
        data: b"hello".to_vec(),
        ..tcp(ACK)
    };
    let delivered = Tcp {
        to: POD_PORT,
        ..segment.clone()
    }
    .frame(&net.ip_to(L1));
    cases.push(
        xdp(
            format!("pod of this node without headers, {net:?}"),
            known(),
            segment.frame(&ip),
        )
        .becomes(delivered)
        .counts(&[Stat::Known]),
    );
    let marked = Ip { class: 0b11, ..ip };
    let delivered = Tcp {
        to: POD_PORT,
        ..segment.clone()
    }
    .frame(&Ip {
        class: 0b11,
        ..net.ip_to(L1)
    });
    cases.push(
        xdp(
            format!("congestion mark of the client stays, {net:?}"),
            known(),
            segment.frame(&marked),
        )
        .becomes(delivered)
        .counts(&[Stat::Known]),
    );
    let stale = known().held(SECOND);
    let delivered = Tcp {
        to: POD_PORT,
        ..segment.clone()
    }
    .frame(&net.ip_to(L1));
    cases.push(
        xdp(
            format!("known flow is not asked about hold-back, {net:?}"),
            stale,
            segment.frame(&ip),
        )
        .becomes(delivered)
        .counts(&[Stat::Known]),
    );
}

/// The IP header of what a node says in the VIP's name.
fn answer(net: Net) -> Ip {
    Ip {
        hops: 64,
        id: 0,
        df: false,
        ..net.ip_back()
    }
}

/// A reset that acknowledges everything before `ack`.
fn reset(net: Net, ack: u32) -> Vec<u8> {
    let segment = Tcp {
        seq: 0,
        ack,
        window: 0,
        ..Tcp::new(HTTP, CLIENT_PORT, RST | ACK)
    };
    frame_back(&segment.packet(&answer(net)))
}

fn refused(cases: &mut Vec<Case>, net: Net) {
    let ip = net.ip();
    let vacant = || Scene::current(R2, &[R3]).vacant();
    let segment = tcp(ACK).packet(&ip);
    let out = sent(&vacant(), R3, net, net, Proto::Tcp).around(&segment);
    cases.push(
        xdp(
            format!("no current pod: flows of the older one go on, {net:?}"),
            vacant(),
            frame(&segment),
        )
        .transmits(out),
    );
    cases.push(
        xdp(
            format!("no current pod: no new flows, {net:?}"),
            vacant(),
            tcp(SYN).frame(&ip),
        )
        .transmits(reset(net, 1001))
        .counts(&[Stat::Refused]),
    );
}

/// Nobody serves: what opens a flow is refused, anything else dropped.
fn nobody(cases: &mut Vec<Case>, net: Net) {
    let ip = net.ip();
    cases.push(
        xdp(
            format!("no backend, {net:?}"),
            Scene::empty(),
            tcp(SYN).frame(&ip),
        )
        .transmits(reset(net, 1001))
        .counts(&[Stat::Refused]),
    );
    let with_data = Tcp {
        options: vec![34, 6, 0xf0, 0xf1, 0xf2, 0xf3, 1, 1],
        data: b"early".to_vec(),
        ..tcp(SYN)
    };
    cases.push(
        xdp(
            format!("no backend, syn with data, {net:?}"),
            Scene::empty(),
            with_data.frame(&ip),
        )
        .transmits(reset(net, 1001 + 5))
        .counts(&[Stat::Refused]),
    );
    cases.push(
        xdp(
            format!("no backend, middle of a flow, {net:?}"),
            Scene::empty(),
            tcp(ACK).frame(&ip),
        )
        .drops(DropReason::NoBackend),
    );
    cases.push(
        xdp(
            format!("no backend, first fragment, {net:?}"),
            Scene::empty(),
            frame(&ip.fragment(
                17,
                &Udp::new(CLIENT_PORT, DNS, b"0123456789").bytes(&ip),
                0,
                16,
            )),
        )
        .drops(DropReason::NoBackend),
    );
    for data in [&b""[..], b"who are you, and why do you not answer me"] {
        let datagram = Udp::new(CLIENT_PORT, DNS, data).packet(&ip);
        let quoted = &datagram[..if net == Net::V4 { 28 } else { 48 }];
        let (kind, code) = if net == Net::V4 { (3, 3) } else { (1, 4) };
        cases.push(
            xdp(
                format!("no backend, {} bytes of udp, {net:?}", data.len()),
                Scene::empty(),
                frame(&datagram),
            )
            .transmits(frame_back(&icmp(&answer(net), kind, code, 0, quoted)))
            .counts(&[Stat::Refused]),
        );
    }
    let silent = Scene::empty().but("no ICMP errors left", |tables| {
        tables.config.icmp_errors_per_second = 0;
        tables.left[Limited::IcmpError as usize].set(0);
    });
    cases.push(
        xdp(
            format!("no backend, limit of errors, {net:?}"),
            silent,
            Udp::new(CLIENT_PORT, DNS, b"").frame(&ip),
        )
        .drops(DropReason::IcmpRate),
    );
    // Rows and slots 0 are another Service's.
    let never = Scene::current(R2, &[]).but("the Service never had a pod", |tables| {
        for entry in tables.v4.services.values_mut() {
            entry.current.size = 0;
        }
        for entry in tables.v6.services.values_mut() {
            (entry.current.size, entry.slots) = (0, 0);
        }
    });
    cases.push(
        xdp(
            format!("another service's pods are not taken, {net:?}"),
            never,
            tcp(SYN).frame(&ip),
        )
        .transmits(reset(net, 1001))
        .counts(&[Stat::Refused]),
    );
}

/// Tables that lack what they name.
fn missing(cases: &mut Vec<Case>, net: Net) {
    let ip = net.ip();
    let packet = tcp(SYN).frame(&ip);
    let unused =
        Scene::current(R2, &[]).but("backends are not there", |tables| tables.backends.clear());
    cases.push(
        xdp(
            format!("slot names an unused backend, {net:?}"),
            unused,
            packet.clone(),
        )
        .drops(DropReason::TableFault),
    );
    let lost = Scene::current(R2, &[]).but("no next hop to R2", |tables| {
        tables
            .backends
            .get_mut(&R2.backend(net))
            .expect("there")
            .flags |= backend_flag::NO_NEXT_HOP;
    });
    cases.push(
        xdp(format!("no next hop, {net:?}"), lost, packet.clone()).drops(DropReason::NoNextHop),
    );
    let short = packet[..packet.len() - 4].to_vec();
    cases.push(
        xdp(
            format!("shorter than its header says, {net:?}"),
            Scene::current(R2, &[]),
            short,
        )
        .drops(DropReason::Truncated),
    );
    let no_rows = Scene::current(R2, &[]).but("no rows", |tables| {
        for entry in tables
            .v4
            .services
            .values_mut()
            .chain(tables.v6.services.values_mut())
        {
            entry.current.rows = u32::MAX - 3;
        }
    });
    cases.push(
        xdp(format!("tables contradict, {net:?}"), no_rows, packet).drops(DropReason::TableFault),
    );
    let martians = match net {
        Net::V4 => vec![
            packet::v4(127, 0, 0, 1),
            packet::v4(224, 0, 0, 1),
            packet::v4(0, 0, 0, 0),
        ],
        Net::V6 => vec!["::1", "ff02::1", "::ffff:203.0.113.7", "::"]
            .into_iter()
            .map(|address| address.parse().expect("an address"))
            .collect(),
    };
    for src in martians {
        let packet = tcp(SYN).frame(&Ip { src, ..ip });
        cases.push(
            xdp(format!("martian {src}"), Scene::current(R2, &[]), packet)
                .drops(DropReason::MartianAddress),
        );
    }
}

fn not_ours(cases: &mut Vec<Case>) {
    let scene = || Scene::current(R2, &[R4]);
    let mut untouched = |name: String, input: Vec<u8>| cases.push(xdp(name, scene(), input));
    for net in Net::BOTH {
        let other = Ip {
            dst: net.node(200),
            ..net.ip()
        };
        untouched(
            format!("tcp to another address, {net:?}"),
            tcp(SYN).frame(&other),
        );
        let port = Tcp::new(CLIENT_PORT, 443, SYN);
        untouched(
            format!("a port of the vip without a service, {net:?}"),
            port.frame(&net.ip()),
        );
        let whole = Udp::new(CLIENT_PORT, 53, &[7; 64]).bytes(&other);
        untouched(
            format!("first fragment to another address, {net:?}"),
            frame(&other.fragment(17, &whole, 0, 32)),
        );
        untouched(
            format!("later fragment to another address, {net:?}"),
            frame(&other.fragment(17, &whole, 32, 72)),
        );
        let echo = if net == Net::V4 { 8 } else { 128 };
        untouched(
            format!("echo to another address, {net:?}"),
            frame(&packet::icmp(&other, echo, 0, 7, b"ping")),
        );
        let geneve = Udp::new(50_000, 6081, &[0, 0, 0x65, 0x58, 0, 0, 9, 0]);
        let to_node = Ip {
            dst: net.node(1),
            ..net.ip()
        };
        untouched(
            format!("geneve of other software, {net:?}"),
            geneve.frame(&to_node),
        );
        untouched(
            format!("geneve to another address, {net:?}"),
            geneve.frame(&other),
        );
        let udp_lite = net.ip().around(136, &[0, 80, 0, 80, 0, 8, 0, 0]);
        untouched(
            format!("another protocol to the vip, {net:?}"),
            frame(&udp_lite),
        );
    }
    let other = Ip {
        dst: Net::V4.node(200),
        ..Net::V4.ip()
    };
    let options = other.with_options(6, &tcp(SYN).bytes(&other), &[1, 1, 1, 0]);
    untouched(
        String::from("ipv4 options to another address"),
        frame(&options),
    );
    let other = Ip {
        dst: Net::V6.node(200),
        ..Net::V6.ip()
    };
    let hop_by_hop = [&[6, 0, 1, 4, 0, 0, 0, 0][..], &tcp(SYN).bytes(&other)].concat();
    untouched(
        String::from("extension header to another address"),
        frame(&other.around(0, &hop_by_hop)),
    );
    let mut arp = [packet::NODE, packet::ROUTER].concat();
    arp.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1]);
    arp.extend([&packet::ROUTER[..], &[198, 51, 100, 254]].concat());
    arp.extend([&[0; 6][..], &[198, 51, 100, 2], &[0; 18]].concat());
    untouched(String::from("arp for another address"), arp);
    let lldp = [
        &[1, 0x80, 0xc2, 0, 0, 0x0e][..],
        &mac(9),
        &[0x88, 0xcc, 0, 0],
    ]
    .concat();
    untouched(String::from("another ethertype"), lldp);
    untouched(
        String::from("nothing but ethernet"),
        frame(&[0x45])[..14].to_vec(),
    );
}
