//! Delivering to a pod of this node: the VIP becomes the pod, in addresses, ports and checksums; then the host's stack
//! carries the packet on, and the CNI's policy applies.

use crate::abi::{DropReason, Stat};
use crate::checksum;
use crate::family::Family;
use crate::frame::Frame;
use crate::own::{Target, Work};
use crate::subject::{IP_AT, Kind, Subject};
use crate::verdict::Verdict;
use crate::wire::{Be16, Icmp, Ipv4, Ports, protocol};

/// Where the checksum of a TCP header is.
const TCP_CHECKSUM: usize = 16;
/// Where the checksum of a UDP header is.
const UDP_CHECKSUM: usize = 6;

/// Rewrites the packet for the pod and passes it to the stack.
#[inline(always)]
pub fn to_pod<F: Family, X: Frame>(frame: &mut X, work: &Work<F::Addr>) -> Verdict {
    let Work {
        subject,
        target: Target { pod, port, .. },
        ..
    } = work;
    let (pod, port) = (*pod, *port);
    let rewritten = match subject.kind {
        Kind::Packet => packet::<F, X>(frame, subject, pod, port),
        Kind::LaterFragment => destination::<F, X>(frame, pod),
        Kind::IcmpError => icmp_error::<F, X>(frame, pod, port),
    };
    match rewritten {
        Some(()) => Verdict::PASS,
        None => DropReason::Truncated.into(),
    }
}

/// The counter of a delivery.
pub const fn stat(kind: Kind) -> Stat {
    match kind {
        Kind::Packet | Kind::LaterFragment => Stat::Known,
        Kind::IcmpError => Stat::IcmpDelivered,
    }
}

#[inline(always)]
fn destination<F: Family, X: Frame>(frame: &mut X, pod: F::Addr) -> Option<()> {
    let ip = frame.read::<F::Header>(IP_AT)?;
    frame.write(IP_AT, F::with_dst(ip, pod))
}

#[inline(always)]
fn packet<F: Family, X: Frame>(
    frame: &mut X,
    subject: &Subject<F::Addr>,
    pod: F::Addr,
    port: Be16,
) -> Option<()> {
    let ports = subject.tuple.ports;
    if subject.tuple.proto == protocol::SCTP {
        // Its checksum covers ports and no addresses, so ports stay: the manager sees to it that they are equal.
        return destination::<F, X>(frame, pod);
    }
    let delta = F::delta(subject.tuple.dst, pod)
        + checksum::delta(u32::from(ports.dst.raw()), u32::from(port.raw()));
    if usize::from(subject.transport_at) == IP_AT + F::HEADER_LEN {
        transport(
            frame,
            IP_AT + F::HEADER_LEN,
            subject.tuple.proto,
            ports,
            port,
            delta,
        )?;
    } else {
        // Behind the one extension header that is accepted: fragment.
        transport(
            frame,
            IP_AT + F::HEADER_LEN + 8,
            subject.tuple.proto,
            ports,
            port,
            delta,
        )?;
    }
    destination::<F, X>(frame, pod)
}

#[inline(always)]
fn transport<X: Frame>(
    frame: &mut X,
    at: usize,
    proto: u8,
    ports: Ports,
    port: Be16,
    delta: u64,
) -> Option<()> {
    let checksum_at = at
        + if proto == protocol::TCP {
            TCP_CHECKSUM
        } else {
            UDP_CHECKSUM
        };
    let old = frame.read::<u16>(checksum_at)?;
    if let Some(new) = updated(proto, old, delta) {
        frame.write(checksum_at, new)?;
    }
    frame.write(at, Ports { dst: port, ..ports })
}

/// A transport checksum after a change; `None`: the packet has none (RFC 768: zero means none, and a sum that happens to
/// be zero is sent as ones).
#[inline(always)]
fn updated(proto: u8, old: u16, delta: u64) -> Option<u16> {
    if proto == protocol::TCP {
        return Some(checksum::update(old, delta));
    }
    if old == 0 {
        return None;
    }
    let new = checksum::update(old, delta);
    Some(if new == 0 { 0xffff } else { new })
}

/// An ICMP error: the VIP stands in its destination and as the source of the quoted packet. The quoted transport
/// checksum is left alone: whoever gets an error compares addresses and ports (RFC 5927, section 4), and eight quoted
/// bytes do not hold TCP's.
#[inline(always)]
fn icmp_error<F: Family, X: Frame>(frame: &mut X, pod: F::Addr, port: Be16) -> Option<()> {
    let icmp_at = IP_AT + F::HEADER_LEN;
    let quoted_at = icmp_at + size_of::<Icmp>();
    let ports_at = quoted_at + F::HEADER_LEN;
    let quoted = frame.read::<F::Header>(quoted_at)?;
    let ports = frame.read::<Ports>(ports_at)?;
    let vip = F::src(&quoted);
    let address = F::delta(vip, pod);
    let mut delta = address + checksum::delta(u32::from(ports.src.raw()), u32::from(port.raw()));
    if F::IS_V6 {
        // The pseudo-header of ICMPv6 covers the destination (RFC 4443, section 2.3).
        delta += address;
        frame.write(quoted_at + F::SRC_AT, pod)?;
    } else {
        let at = quoted_at + core::mem::offset_of!(Ipv4, checksum);
        let old = frame.read::<u16>(at)?;
        let new = checksum::update(old, address);
        delta += checksum::delta(u32::from(old), u32::from(new));
        frame.write(at, new)?;
        frame.write(quoted_at + F::SRC_AT, pod)?;
    }
    frame.write(ports_at, Ports { src: port, ..ports })?;
    let icmp = frame.read::<Icmp>(icmp_at)?;
    let checksum = Be16::from_raw(checksum::update(icmp.checksum.raw(), delta));
    frame.write(icmp_at, Icmp { checksum, ..icmp })?;
    destination::<F, X>(frame, pod)
}
