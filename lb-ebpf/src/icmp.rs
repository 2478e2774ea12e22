//! ICMP that the balancer itself sends: answers to echo requests for VIPs, "too big", and "port unreachable".

use crate::abi::{DropReason, Limited};
use crate::checksum;
use crate::family::{Family, HOPS};
use crate::frame::Frame;
use crate::subject::IP_AT;
use crate::tables::Shared;
use crate::verdict::Verdict;
use crate::wire::{Be16, Be32, Ethernet, Icmp, Ipv4, Ipv6, Udp};

/// Bytes of the client's packet that "too big" quotes. With headers this stays below 576 (RFC 1812, section 4.3.2.3) and
/// 1280 (RFC 4443, section 2.4 (c)), and one checksum call of the kernel covers it.
const QUOTED: usize = 512;
/// Don't fragment, in the fragment field of IPv4.
const DF: u16 = 0x4000;

/// Types of ICMP and ICMPv6.
mod kind {
    pub(super) const ECHO_REPLY: u8 = 0;
    pub(super) const UNREACHABLE: u8 = 3;
    pub(super) const PORT_UNREACHABLE: u8 = 3;
    pub(super) const FRAGMENTATION_NEEDED: u8 = 4;
    pub(super) const ECHO: u8 = 8;
    pub(super) const UNREACHABLE_6: u8 = 1;
    pub(super) const PORT_UNREACHABLE_6: u8 = 4;
    pub(super) const TOO_BIG_6: u8 = 2;
    pub(super) const ECHO_6: u8 = 128;
    pub(super) const ECHO_REPLY_6: u8 = 129;
}

/// Whether the packet is an echo request.
#[inline(always)]
pub fn is_echo<F: Family, X: Frame>(frame: &X) -> bool {
    let wanted = if F::IS_V6 { kind::ECHO_6 } else { kind::ECHO };
    frame
        .read::<Icmp>(IP_AT + F::HEADER_LEN)
        .is_some_and(|icmp| icmp.kind == wanted && icmp.code == 0)
}

/// Turns an echo request into its reply, in place (RFC 792; RFC 4443, section 4.2).
#[inline(always)]
pub fn echo<F: Family, X: Frame>(frame: &mut X) -> Verdict {
    match try_echo::<F, X>(frame) {
        Some(()) => Verdict::TRANSMIT,
        None => DropReason::Truncated.into(),
    }
}

#[inline(always)]
fn try_echo<F: Family, X: Frame>(frame: &mut X) -> Option<()> {
    let at = IP_AT + F::HEADER_LEN;
    let icmp = frame.read::<Icmp>(at)?;
    let reply = if F::IS_V6 {
        kind::ECHO_REPLY_6
    } else {
        kind::ECHO_REPLY
    };
    // The type is the first byte of its checksum word.
    let old = Be16::new(u16::from(icmp.kind) << 8).raw();
    let new = Be16::new(u16::from(reply) << 8).raw();
    let sum = checksum::update(
        icmp.checksum.raw(),
        checksum::delta(u32::from(old), u32::from(new)),
    );
    frame.write(
        at,
        Icmp {
            kind: reply,
            checksum: Be16::from_raw(sum),
            ..icmp
        },
    )?;
    if F::IS_V6 {
        let ip = frame.read::<Ipv6>(IP_AT)?;
        frame.write(
            IP_AT,
            Ipv6 {
                src: ip.dst,
                dst: ip.src,
                hops: HOPS,
                ..ip
            },
        )?;
    } else {
        let ip = frame.read::<Ipv4>(IP_AT)?;
        let old = Be16::new(u16::from(ip.ttl) << 8).raw();
        let new = Be16::new(u16::from(HOPS) << 8).raw();
        let sum = checksum::update(
            ip.checksum.raw(),
            checksum::delta(u32::from(old), u32::from(new)),
        );
        frame.write(
            IP_AT,
            Ipv4 {
                src: ip.dst,
                dst: ip.src,
                ttl: HOPS,
                checksum: Be16::from_raw(sum),
                ..ip
            },
        )?;
    }
    turn_ethernet(frame)
}

/// Swaps the MAC addresses.
#[inline(always)]
pub(crate) fn turn_ethernet<X: Frame>(frame: &mut X) -> Option<()> {
    let ethernet = frame.read::<Ethernet>(0)?;
    frame.write(
        0,
        Ethernet {
            src: ethernet.dst,
            dst: ethernet.src,
            ..ethernet
        },
    )
}

/// Tells the client that its packet is too big: fragmentation needed (RFC 1191, section 4) or packet too big (RFC 4443,
/// section 3.2). IPv4 that may be fragmented gets no answer and is dropped.
#[inline(always)]
pub fn too_big<F: Family, X: Frame, T: Shared>(handle: X::Handle, tables: T, mtu: u32) -> Verdict {
    let mut frame = X::open(handle);
    if !F::IS_V6 {
        let Some(ip) = frame.read::<Ipv4>(IP_AT) else {
            return DropReason::Truncated.into();
        };
        if ip.fragment.get() & DF == 0 {
            return DropReason::OversizeNoDf.into();
        }
    }
    let (kind, code) = if F::IS_V6 {
        (kind::TOO_BIG_6, 0)
    } else {
        (kind::UNREACHABLE, kind::FRAGMENTATION_NEEDED)
    };
    error::<F, X, T, QUOTED>(&mut frame, tables, kind, code, Be32::new(mtu))
}

/// Tells the client that nobody serves the port of its datagram (RFC 1122, section 4.1.3.1; RFC 4443, section 3.1).
#[inline(always)]
pub fn port_unreachable<F: Family, X: Frame, T: Shared>(frame: &mut X, tables: T) -> Verdict {
    if frame.read::<Udp>(IP_AT + F::HEADER_LEN).is_none() {
        return DropReason::Truncated.into();
    }
    // The headers, which is as much as RFC 792 asks for, and all that a client looks at: a datagram may have no more.
    let none = Be32::new(0);
    if F::IS_V6 {
        let (kind, code) = (kind::UNREACHABLE_6, kind::PORT_UNREACHABLE_6);
        error::<F, X, T, 48>(frame, tables, kind, code, none)
    } else {
        let (kind, code) = (kind::UNREACHABLE, kind::PORT_UNREACHABLE);
        error::<F, X, T, 28>(frame, tables, kind, code, none)
    }
}

/// Turns a packet into an error about it, which quotes its first `QUOTED` bytes; not more often than the limit allows.
#[inline(always)]
fn error<F: Family, X: Frame, T: Shared, const QUOTED: usize>(
    frame: &mut X,
    tables: T,
    kind: u8,
    code: u8,
    rest: Be32,
) -> Verdict {
    if !tables.take(Limited::IcmpError, tables.now_ns()) {
        return DropReason::IcmpRate.into();
    }
    match write_error::<F, X, QUOTED>(frame, kind, code, rest) {
        Some(()) => Verdict::TRANSMIT,
        None => DropReason::Truncated.into(),
    }
}

#[inline(always)]
fn write_error<F: Family, X: Frame, const QUOTED: usize>(
    frame: &mut X,
    kind: u8,
    code: u8,
    rest: Be32,
) -> Option<()> {
    let ethernet = frame.read::<Ethernet>(0)?;
    let ip = frame.read::<F::Header>(IP_AT)?;
    let added = const { F::HEADER_LEN + size_of::<Icmp>() };
    let len = const { IP_AT + F::HEADER_LEN + size_of::<Icmp>() + QUOTED };
    frame.move_head(-(added as i32))?;
    frame.move_tail(len as i32 - frame.len() as i32)?;
    frame.write(
        0,
        Ethernet {
            src: ethernet.dst,
            dst: ethernet.src,
            ..ethernet
        },
    )?;
    let icmp = Icmp {
        kind,
        code,
        checksum: Be16::new(0),
        rest,
    };
    let icmp_at = IP_AT + F::HEADER_LEN;
    let quoted = frame.sum::<QUOTED>(icmp_at + size_of::<Icmp>())?;
    let payload_len = (size_of::<Icmp>() + QUOTED) as u16;
    let word = u64::from(Be16::new(u16::from(icmp.kind) << 8 | u16::from(icmp.code)).raw());
    let mut sum = quoted + word + u64::from(icmp.rest.raw());
    if F::IS_V6 {
        sum += pseudo_header::<F>(&ip, F::ICMP, payload_len);
    }
    frame.write(
        icmp_at,
        Icmp {
            checksum: Be16::from_raw(!checksum::fold(sum)),
            ..icmp
        },
    )?;
    frame.write(
        IP_AT,
        F::header(F::ICMP, payload_len, F::dst(&ip), F::src(&ip)),
    )
}

/// The sum of the pseudo-header of an answer to `ip` (RFC 9293, section 3.1; RFC 8200, section 8.1): both addresses,
/// protocol and length.
#[inline(always)]
pub(crate) fn pseudo_header<F: Family>(ip: &F::Header, proto: u8, payload_len: u16) -> u64 {
    F::sum(F::src(ip))
        + F::sum(F::dst(ip))
        + u64::from(Be16::new(u16::from(proto)).raw())
        + u64::from(Be16::new(payload_len).raw())
}
