//! Questions about VIPs on the link, claims of others, and liveness probes.

use lb_ebpf::abi::{AnnouncedKey, Announcement, DropReason, PROBE_PORT, Stat};
use lb_ebpf::neighbour::{arp, discovery};
use lb_ebpf::probe;
use lb_ebpf::wire::{Be32, Mac};

use super::{Case, xdp};
use crate::golden::packet::{Ip, NODE, ROUTER, Udp, frame, frame_back, icmp, tagged};
use crate::golden::scene::{NOW_NS, Net, SECOND, SECRET, Scene, addr6, mac};

/// The interface of test runs.
const HERE: u32 = 1;
const BROADCAST: [u8; 6] = [0xff; 6];
/// Somebody who has nothing to say about VIPs.
const STRANGER: u8 = 66;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    arp_requests(&mut cases);
    arp_claims(&mut cases);
    solicitations(&mut cases);
    advertisements(&mut cases);
    for net in Net::BOTH {
        probes(&mut cases, net);
    }
    cases
}

fn announced(scene: Scene, ifindex: u32) -> Scene {
    scene.but(&format!("announced on interface {ifindex}"), |tables| {
        for net in Net::BOTH {
            let addr = addr6(net.vip());
            let value = Announcement {
                mac: Mac::from_bytes(NODE),
                pad: [0; 2],
            };
            tables
                .announced
                .insert(AnnouncedKey { addr, ifindex }, value);
        }
    })
}

fn announcer() -> Scene {
    announced(Scene::empty(), HERE)
}

fn silent_for(scene: Scene, seconds: u64, more_ns: u64) -> Scene {
    let age_ns = seconds * SECOND + more_ns;
    scene.but(&format!("agent silent for {age_ns} ns"), |tables| {
        tables.stamp.stamped_ns = NOW_NS - age_ns;
    })
}

fn v4(address: std::net::IpAddr) -> [u8; 4] {
    match address {
        std::net::IpAddr::V4(address) => address.octets(),
        std::net::IpAddr::V6(_) => panic!("IPv4 is meant"),
    }
}

fn v6(address: std::net::IpAddr) -> [u8; 16] {
    match address {
        std::net::IpAddr::V6(address) => address.octets(),
        std::net::IpAddr::V4(_) => panic!("IPv6 is meant"),
    }
}

/// ARP in a frame: operation, sender, target.
fn arp_frame(
    to: [u8; 6],
    operation: u8,
    sender: ([u8; 6], [u8; 4]),
    target: ([u8; 6], [u8; 4]),
) -> Vec<u8> {
    [
        &to[..],
        &sender.0,
        &[0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, operation],
        &sender.0,
        &sender.1,
        &target.0,
        &target.1,
    ]
    .concat()
}

fn arp_requests(cases: &mut Vec<Case>) {
    let (vip, router) = (v4(Net::V4.vip()), v4(Net::V4.node(254)));
    let ask = |to, sender| arp_frame(to, 1, (ROUTER, sender), ([0; 6], vip));
    let answer = |sender| arp_frame(ROUTER, 2, (NODE, vip), (ROUTER, sender));
    let answered = &[Stat::NeighbourAnswered];
    cases.extend(vec![
        xdp("arp request for a vip", announcer(), ask(BROADCAST, router))
            .transmits(answer(router))
            .counts(answered),
        xdp("arp refresh by unicast", announcer(), ask(NODE, router))
            .transmits(answer(router))
            .counts(answered),
        xdp("arp probe for a vip", announcer(), ask(BROADCAST, [0; 4]))
            .transmits(answer([0; 4]))
            .counts(answered),
        xdp(
            "arp request with padding",
            announcer(),
            [ask(BROADCAST, router), vec![0; 18]].concat(),
        )
        .transmits([answer(router), vec![0; 18]].concat())
        .counts(answered),
        xdp(
            "arp request behind a tag",
            announcer(),
            tagged(&ask(BROADCAST, router), &[7]),
        )
        .transmits(tagged(&answer(router), &[7]))
        .counts(answered),
        xdp(
            "arp request, agent silent for three seconds",
            silent_for(announcer(), 2, SECOND - 100_000_000),
            ask(BROADCAST, router),
        )
        .transmits(answer(router))
        .counts(answered),
        xdp(
            "arp request, agent silent for longer",
            silent_for(announcer(), 3, 1),
            ask(BROADCAST, router),
        )
        .drops(DropReason::AnnouncerStale),
        xdp(
            "arp request for a vip of another node",
            Scene::empty(),
            ask(BROADCAST, router),
        )
        .drops(DropReason::NotAnnounced),
        xdp(
            "arp probe for a vip of another node",
            Scene::empty(),
            ask(BROADCAST, [0; 4]),
        )
        .drops(DropReason::NotAnnounced),
        xdp(
            "arp request where the vip is not announced",
            announced(Scene::empty(), HERE + 1),
            ask(BROADCAST, router),
        )
        .drops(DropReason::NotAnnounced),
        xdp(
            "arp request for somebody else",
            announcer(),
            arp_frame(
                BROADCAST,
                1,
                (ROUTER, router),
                ([0; 6], v4(Net::V4.node(1))),
            ),
        ),
        xdp("arp cut short", announcer(), {
            let mut bytes = ask(BROADCAST, router);
            bytes.truncate(40);
            bytes
        }),
        xdp("arp of another kind of link", announcer(), {
            let mut bytes = ask(BROADCAST, router);
            bytes[15] = 6;
            bytes
        }),
    ]);
}

fn arp_claims(cases: &mut Vec<Case>) {
    let (vip, stranger) = (v4(Net::V4.vip()), mac(STRANGER));
    let seen = &[Stat::ClaimSeen];
    let announcement = |mac: [u8; 6], form| arp::frame(form, vip, mac).to_vec();
    cases.extend(vec![
        xdp(
            "arp announcement of another",
            announcer(),
            announcement(stranger, arp::Form::Announcement),
        )
        .counts(seen),
        xdp(
            "arp announcement as a reply",
            announcer(),
            announcement(stranger, arp::Form::Reply),
        )
        .counts(seen),
        xdp(
            "arp announcement, not announced here",
            Scene::empty(),
            announcement(stranger, arp::Form::Announcement),
        )
        .counts(seen),
        xdp(
            "arp announcement of this node itself",
            announcer(),
            announcement(NODE, arp::Form::Announcement),
        ),
        xdp(
            "arp reply of another to this node",
            announcer(),
            arp_frame(NODE, 2, (stranger, vip), (NODE, v4(Net::V4.node(1)))),
        )
        .counts(seen),
        xdp(
            "arp probe of another announcer",
            announcer(),
            announcement(stranger, arp::Form::Probe),
        )
        .transmits(arp_frame(stranger, 2, (NODE, vip), (stranger, [0; 4])))
        .counts(&[Stat::NeighbourAnswered]),
    ]);
}

/// An IPv6 packet on the link.
fn on_link(src: std::net::IpAddr, dst: std::net::IpAddr) -> Ip {
    Ip {
        hops: 255,
        ..Ip::new(src, dst)
    }
}

fn group(net: Net) -> std::net::IpAddr {
    discovery::solicited(v6(net.vip())).0.into()
}

/// Solicitation of the VIP, in a frame from the router.
fn solicitation(ip: &Ip, option: bool) -> Vec<u8> {
    let mut body = v6(Net::V6.vip()).to_vec();
    if option {
        body.extend([1, 1]);
        body.extend(ROUTER);
    }
    frame(&icmp(ip, 135, 0, 0, &body))
}

fn advertisement(to: std::net::IpAddr, to_mac: [u8; 6], from: [u8; 6], flags: u32) -> Vec<u8> {
    let mut body = v6(Net::V6.vip()).to_vec();
    body.extend([2, 1]);
    body.extend(from);
    let ip = on_link(Net::V6.vip(), to);
    let mut bytes = frame_back(&icmp(&ip, 136, 0, flags, &body));
    bytes[..6].copy_from_slice(&to_mac);
    bytes[6..12].copy_from_slice(&from);
    bytes
}

fn solicitations(cases: &mut Vec<Case>) {
    let router = Net::V6.node(254);
    let answer = || advertisement(router, ROUTER, NODE, 0x6000_0000);
    let answered = &[Stat::NeighbourAnswered];
    let ask = || solicitation(&on_link(router, group(Net::V6)), true);
    let all: std::net::IpAddr = "ff02::1".parse().expect("an address");
    let unspecified: std::net::IpAddr = "::".parse().expect("an address");
    let vip = v6(Net::V6.vip());
    let hopped = Ip {
        hops: 254,
        ..on_link(router, group(Net::V6))
    };
    cases.extend(vec![
        xdp("solicitation for a vip", announcer(), ask())
            .transmits(answer())
            .counts(answered),
        xdp(
            "solicitation by unicast",
            announcer(),
            solicitation(&on_link(router, Net::V6.vip()), true),
        )
        .transmits(answer())
        .counts(answered),
        xdp(
            "solicitation without a mac",
            announcer(),
            solicitation(&on_link(router, Net::V6.vip()), false),
        )
        .transmits(answer())
        .counts(answered),
        xdp(
            "solicitation of somebody who wants the vip",
            announcer(),
            discovery::probe(vip, mac(STRANGER)),
        )
        .transmits(advertisement(
            all,
            [0x33, 0x33, 0, 0, 0, 1],
            NODE,
            0x2000_0000,
        ))
        .counts(answered),
        xdp(
            "solicitation behind a tag",
            announcer(),
            tagged(&ask(), &[7]),
        )
        .transmits(tagged(&answer(), &[7]))
        .counts(answered),
        xdp(
            "solicitation, agent silent",
            silent_for(announcer(), 4, 0),
            ask(),
        )
        .drops(DropReason::AnnouncerStale),
        xdp(
            "solicitation for a vip of another node",
            Scene::empty(),
            ask(),
        )
        .drops(DropReason::NotAnnounced),
        xdp(
            "solicitation by unicast for a vip of another node",
            Scene::empty(),
            solicitation(&on_link(router, Net::V6.vip()), true),
        )
        .drops(DropReason::NotAnnounced),
        xdp(
            "solicitation from beyond the link",
            announcer(),
            solicitation(&hopped, true),
        )
        .drops(DropReason::NeighbourMalformed),
        xdp(
            "solicitation of a group",
            announcer(),
            solicitation(&on_link(all, group(Net::V6)), true),
        )
        .drops(DropReason::NeighbourMalformed),
        xdp(
            "solicitation for somebody else",
            announcer(),
            frame(&icmp(
                &on_link(unspecified, group(Net::V6)),
                135,
                0,
                0,
                &v6(Net::V6.node(1)),
            )),
        ),
    ]);
}

fn advertisements(cases: &mut Vec<Case>) {
    let (node, stranger) = (Net::V6.node(1), mac(STRANGER));
    let seen = &[Stat::ClaimSeen];
    let mut bare = advertisement(node, NODE, stranger, 0x6000_0000);
    bare.truncate(bare.len() - 8);
    cases.extend(vec![
        xdp(
            "advertisement of another",
            announcer(),
            discovery::announcement(v6(Net::V6.vip()), stranger),
        )
        .counts(seen),
        xdp("advertisement without a mac", announcer(), bare).counts(seen),
        xdp(
            "advertisement of this node itself",
            announcer(),
            discovery::announcement(v6(Net::V6.vip()), NODE),
        ),
        xdp(
            "advertisement, not announced here",
            Scene::empty(),
            discovery::announcement(v6(Net::V6.vip()), stranger),
        )
        .counts(seen),
    ]);
}

fn secret() -> [Be32; 2] {
    let b = SECRET;
    [
        Be32::from_bytes([b[0], b[1], b[2], b[3]]),
        Be32::from_bytes([b[4], b[5], b[6], b[7]]),
    ]
}

fn probes(cases: &mut Vec<Case>, net: Net) {
    let nonce = 0x0123_4567_89ab_cdef;
    let question = probe::question(secret(), nonce);
    let ip = Ip::new(net.node(2), net.node(1));
    let ask = |ip: &Ip, data: &[u8]| Udp::new(40_123, PROBE_PORT, data).frame(ip);
    // The kernel's clock goes on between the stamp and the probe; a stamp that was never made has no age.
    let never = |scene: Scene| {
        scene.but("no agent has been there", |tables| {
            tables.stamp = lb_ebpf::abi::Stamp::default();
        })
    };
    let data = [
        b"bowline!",
        &SECRET[..],
        &nonce.to_be_bytes(),
        &u64::MAX.to_be_bytes(),
    ]
    .concat();
    assert_eq!(probe::age_ns(&data, secret(), nonce), Some(probe::NEVER));
    let back = Ip {
        hops: 64,
        id: 0,
        df: false,
        ..Ip::new(net.node(1), net.node(2))
    };
    let answer = Udp::new(PROBE_PORT, 40_123, &data).packet(&back);
    let mut other = question;
    other[8] ^= 1;
    cases.extend(vec![
        xdp(
            format!("liveness probe, {net:?}"),
            never(Scene::empty()),
            ask(&ip, &question),
        )
        .transmits(frame_back(&answer))
        .counts(&[Stat::ProbeAnswered]),
        xdp(
            format!("liveness probe of another cluster, {net:?}"),
            Scene::empty(),
            ask(&ip, &other),
        ),
        xdp(
            format!("answer to a liveness probe, {net:?}"),
            Scene::empty(),
            ask(&ip, &data),
        ),
        xdp(
            format!("liveness probe for another node, {net:?}"),
            Scene::empty(),
            ask(&Ip::new(net.node(2), net.node(3)), &question),
        ),
        xdp(
            format!("liveness probe with something behind, {net:?}"),
            Scene::empty(),
            ask(&ip, &[&question[..], b"more"].concat()),
        ),
        xdp(
            format!("something short to the port of the probe, {net:?}"),
            Scene::empty(),
            ask(&ip, b"short"),
        ),
    ]);
}
