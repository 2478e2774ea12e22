//! SCTP (RFC 9260): an association from INIT to its end. Its checksum covers ports and no addresses, so ports stay and no
//! checksum is touched.

use lb_ebpf::abi::{DropReason, Stat};

use super::{Case, egress, sent, xdp};
use crate::golden::packet::{self, DATA, INIT, Ip, Sctp, frame, frame_back, icmp};
use crate::golden::scene::{CLIENT_PORT, L1, L2, Net, POD_PORT, Pod, Proto, R2, Scene};

const INIT_ACK: u8 = 2;
const ABORT: u8 = 6;
const SHUTDOWN: u8 = 7;
const SHUTDOWN_ACK: u8 = 8;
const COOKIE_ECHO: u8 = 10;
const COOKIE_ACK: u8 = 11;

/// What the pod wants to be called by.
const POD_TAG: u32 = 0xb0b0_0001;
/// What the client wants to be called by.
const CLIENT_TAG: u32 = 0xc0c0_0001;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in Net::BOTH {
        balanced(&mut cases, net);
        opened(&mut cases, net);
        answered(&mut cases, net);
        ends(&mut cases, net);
        strangers(&mut cases, net);
    }
    cases
}

/// From the client to the VIP.
fn sent_by_client(tag: u32, chunk: u8) -> Sctp {
    Sctp::new(CLIENT_PORT, POD_PORT, tag, chunk, &value(chunk, CLIENT_TAG))
}

/// From the pod to the client.
fn sent_by_pod(chunk: u8) -> Sctp {
    Sctp::new(
        POD_PORT,
        CLIENT_PORT,
        CLIENT_TAG,
        chunk,
        &value(chunk, POD_TAG),
    )
}

/// What a chunk carries. The sender wants to be called by a tag.
fn value(chunk: u8, tag: u32) -> Vec<u8> {
    let words: &[u32] = match chunk {
        // Tag, window, streams, first sequence number.
        INIT => &[tag, 0x0001_0000, 0x000a_000a, 1],
        // The same, and a cookie as a parameter.
        INIT_ACK => &[tag, 0x0001_0000, 0x000a_000a, 1, 0x0007_0008, 0xc00c_1e00],
        // Sequence number, stream, kind of payload, payload.
        DATA => &[1, 0, 0, 0x6461_7461],
        COOKIE_ECHO => &[0xc00c_1e00],
        // Up to where everything has come.
        SHUTDOWN => &[1],
        _ => &[],
    };
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

fn balanced(cases: &mut Vec<Case>, net: Net) {
    for (what, packet) in [
        ("init", sent_by_client(0, INIT)),
        ("data", sent_by_client(POD_TAG, DATA)),
    ] {
        let inner = packet.packet(&net.ip());
        let scene = Scene::current(R2, &[]);
        let out = sent(&scene, R2, net, net, Proto::Sctp).around(&inner);
        cases.push(xdp(format!("sctp {what}, {net:?}"), scene, frame(&inner)).transmits(out));
    }
    let init = sent_by_client(0, INIT).packet(&net.ip());
    let (kind, code, quoted) = match net {
        Net::V4 => (3, 3, 20 + 8),
        Net::V6 => (1, 4, 40 + 8),
    };
    let error = Ip {
        id: 0,
        hops: 64,
        df: false,
        ..net.ip_back()
    };
    cases.push(
        xdp(
            format!("sctp init that nobody serves, {net:?}"),
            Scene::empty(),
            frame(&init),
        )
        .transmits(frame_back(&icmp(&error, kind, code, 0, &init[..quoted])))
        .counts(&[Stat::Refused]),
    );
}

fn opened(cases: &mut Vec<Case>, net: Net) {
    let encap = L1.sent_by(net, 2);
    let init = sent_by_client(0, INIT);
    cases.push(
        xdp(
            format!("sctp init at its owner, {net:?}"),
            Scene::current(L1, &[]),
            encap.around(&init.packet(&net.ip())),
        )
        .becomes(init.frame(&net.ip_to(L1)))
        .counts(&[Stat::Admitted, Stat::Known]),
    );
    let scene = || Scene::current(L1, &[]).half_open(L1, Proto::Sctp, Some(POD_TAG));
    let echo = sent_by_client(POD_TAG, COOKIE_ECHO);
    cases.push(
        xdp(
            format!("sctp cookie with the pod's tag, {net:?}"),
            scene(),
            encap.around(&echo.packet(&net.ip())),
        )
        .becomes(echo.frame(&net.ip_to(L1)))
        .counts(&[Stat::Promoted, Stat::Known]),
    );
    let other = sent_by_client(POD_TAG + 1, COOKIE_ECHO);
    cases.push(
        xdp(
            format!("sctp cookie with another tag, {net:?}"),
            scene(),
            encap.around(&other.packet(&net.ip())),
        )
        .drops(DropReason::HeldBack),
    );
}

/// What the pod sends leaves under the VIP.
fn answered(cases: &mut Vec<Case>, net: Net) {
    let half_open = || Scene::current(L1, &[]).half_open(L1, Proto::Sctp, None);
    let known = || Scene::current(L1, &[]).flow(L1, Proto::Sctp);
    for (what, scene, chunk, stats) in [
        ("init ack", half_open(), INIT_ACK, &[Stat::Returned][..]),
        (
            "cookie ack",
            half_open(),
            COOKIE_ACK,
            &[Stat::Promoted, Stat::Returned],
        ),
        ("data", known(), DATA, &[Stat::Returned]),
        ("shutdown ack", known(), SHUTDOWN_ACK, &[Stat::Returned]),
        ("abort", known(), ABORT, &[Stat::Returned]),
    ] {
        let packet = sent_by_pod(chunk);
        cases.push(
            egress(
                format!("sctp {what} of a pod, {net:?}"),
                scene,
                frame_back(&packet.packet(&net.ip_from(L1))),
            )
            .becomes(frame_back(&packet.packet(&net.ip_back())))
            .counts(stats),
        );
    }
}

fn ends(cases: &mut Vec<Case>, net: Net) {
    for (what, chunk) in [("data", DATA), ("shutdown", SHUTDOWN), ("abort", ABORT)] {
        let packet = sent_by_client(POD_TAG, chunk);
        cases.push(
            xdp(
                format!("sctp {what} of a known association, {net:?}"),
                Scene::current(L1, &[]).flow(L1, Proto::Sctp),
                L1.sent_by(net, 2).around(&packet.packet(&net.ip())),
            )
            .becomes(packet.frame(&net.ip_to(L1)))
            .counts(&[Stat::Known]),
        );
    }
    // An error that a router sends about what the pod has sent.
    let quoted = sent_by_pod(DATA).packet(&net.ip_back());
    let router = Ip::new(net.node(254), net.vip());
    let delivered = Ip::new(net.node(254), L1.address(net));
    let error = |ip: &Ip, quoted: &[u8]| match net {
        Net::V4 => icmp(ip, 3, 4, 1400, &quoted[..28]),
        Net::V6 => icmp(ip, 2, 0, 1400, &quoted[..48]),
    };
    cases.push(
        xdp(
            format!("too big about an sctp packet, {net:?}"),
            Scene::current(L1, &[]).flow(L1, Proto::Sctp),
            frame(&error(&router, &quoted)),
        )
        .becomes(frame(&error(
            &delivered,
            &sent_by_pod(DATA).packet(&net.ip_from(L1)),
        )))
        .counts(&[Stat::IcmpDelivered]),
    );
}

/// An association that this node does not know is looked for at older occupants, and nobody's is held back.
fn strangers(cases: &mut Vec<Case>, net: Net) {
    let data = sent_by_client(POD_TAG, DATA);
    let scene = || Scene::current(L1, &[R2, L2]);
    let asked = |pod: Pod, asked: &[Pod]| packet::Encap {
        asked: asked.iter().map(|pod| pod.identity()).collect(),
        ..sent(&scene(), pod, net, net, Proto::Sctp)
    };
    cases.push(
        xdp(
            format!("sctp association of an older occupant, {net:?}"),
            scene(),
            L1.sent_by(net, 2).around(&data.packet(&net.ip())),
        )
        .transmits(asked(R2, &[L1]).around(&data.packet(&net.ip())))
        .counts(&[Stat::Relayed]),
    );
    cases.push(
        xdp(
            format!("sctp association that nobody knows, {net:?}"),
            Scene::current(L1, &[]),
            L1.sent_by(net, 2).around(&data.packet(&net.ip())),
        )
        .drops(DropReason::HeldBack),
    );
}
