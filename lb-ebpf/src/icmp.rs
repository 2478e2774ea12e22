//! ICMP that the balancer itself sends: answers to echo requests for VIPs, and "too big".

use crate::abi::DropReason;
use crate::checksum;
use crate::family::Family;
use crate::frame::Frame;
use crate::subject::IP_AT;
use crate::verdict::Verdict;
use crate::wire::{Be16, Be32, Ethernet, Icmp, Ipv4, Ipv6};

/// Hop limit of what is sent from here (the default of RFC 1700, and of Linux).
const HOPS: u8 = 64;
/// Bytes of the client's packet that "too big" quotes. With headers this stays below 576 (RFC 1812, section 4.3.2.3) and
/// 1280 (RFC 4443, section 2.4 (c)), and one checksum call of the kernel covers it.
const QUOTED: usize = 512;
/// Don't fragment, in the fragment field of IPv4.
const DF: u16 = 0x4000;

/// Types of ICMP and ICMPv6.
mod kind {
    pub(super) const ECHO_REPLY: u8 = 0;
    pub(super) const UNREACHABLE: u8 = 3;
    pub(super) const FRAGMENTATION_NEEDED: u8 = 4;
    pub(super) const ECHO: u8 = 8;
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
fn turn_ethernet<X: Frame>(frame: &mut X) -> Option<()> {
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
#[inline(never)]
pub fn too_big<F: Family, X: Frame>(handle: X::Handle, mtu: u16) -> Verdict {
    let mut frame = X::open(handle);
    if !F::IS_V6 {
        let Some(ip) = frame.read::<Ipv4>(IP_AT) else {
            return DropReason::Truncated.into();
        };
        if ip.fragment.get() & DF == 0 {
            return DropReason::OversizeNoDf.into();
        }
    }
    match try_too_big::<F, X>(&mut frame, mtu) {
        Some(()) => Verdict::TRANSMIT,
        None => DropReason::Truncated.into(),
    }
}

#[inline(always)]
fn try_too_big<F: Family, X: Frame>(frame: &mut X, mtu: u16) -> Option<()> {
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
        kind: if F::IS_V6 {
            kind::TOO_BIG_6
        } else {
            kind::UNREACHABLE
        },
        code: if F::IS_V6 {
            0
        } else {
            kind::FRAGMENTATION_NEEDED
        },
        checksum: Be16::new(0),
        rest: Be32::new(u32::from(mtu)),
    };
    let icmp_at = IP_AT + F::HEADER_LEN;
    let quoted = frame.sum::<QUOTED>(icmp_at + size_of::<Icmp>())?;
    let payload_len = (size_of::<Icmp>() + QUOTED) as u16;
    let word = u64::from(Be16::new(u16::from(icmp.kind) << 8 | u16::from(icmp.code)).raw());
    let mut sum = quoted + word + u64::from(icmp.rest.raw());
    if F::IS_V6 {
        // Pseudo-header (RFC 8200, section 8.1): both addresses, length, next header. Adding an address to a sum is
        // replacing one's complement zero by it.
        let zero = F::Addr::default();
        let zeros = 4 * u64::from(u32::MAX);
        sum += F::delta(zero, F::src(&ip)) - zeros + F::delta(zero, F::dst(&ip)) - zeros;
        sum += u64::from(Be16::new(payload_len).raw())
            + u64::from(Be16::new(u16::from(F::ICMP)).raw());
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
        F::icmp_header(payload_len, HOPS, F::dst(&ip), F::src(&ip)),
    )
}
