//! Neighbour discovery for IPv6 VIPs (RFC 4861), and the packets that an announcer sends of itself.

use super::{claimed, is_vip, mac_of};
use crate::abi::{DropReason, Stat};
use crate::checksum;
use crate::family::{Family, V6};
use crate::frame::Frame;
use crate::icmp;
use crate::subject::IP_AT;
use crate::tables::AllTables;
use crate::verdict::Verdict;
use crate::wire::{
    Addr6, Be16, Be32, Ethernet, Icmp, Ipv6, LinkAddress, Mac, Neighbour, ethertype, protocol,
};

/// Types of `ICMPv6`.
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// Options: whose MAC is told.
const TARGET_LINK: u8 = 2;
/// Flags of an advertisement: an answer; replaces what is known.
const SOLICITED: u32 = 1 << 30;
const OVERRIDE: u32 = 1 << 29;
/// Shows that a packet comes from the same link (RFC 4861, section 3.1).
const HOPS: u8 = 255;

const ICMP_AT: usize = IP_AT + V6::HEADER_LEN;
const OPTION_AT: usize = ICMP_AT + size_of::<Neighbour>();
/// Bytes of an advertisement with its option.
const ADVERTISEMENT_LEN: usize = size_of::<Neighbour>() + size_of::<LinkAddress>();
/// Bytes of an advertisement with its headers, Ethernet included.
pub const LEN: usize = ICMP_AT + ADVERTISEMENT_LEN;
/// Bytes of a solicitation of [`probe`] with its headers.
pub const PROBE_LEN: usize = OPTION_AT;

/// Where the target address is behind the IPv6 header.
pub(crate) const TARGET_AT: usize = core::mem::offset_of!(Neighbour, target);

/// Everybody on the link (RFC 4291, section 2.7.1), and its MAC (RFC 2464, section 7).
const ALL_NODES: Addr6 = Addr6([
    Be32::new(0xff02_0000),
    Be32::new(0),
    Be32::new(0),
    Be32::new(1),
]);
const ALL_NODES_MAC: Mac = Mac::from_bytes([0x33, 0x33, 0, 0, 0, 1]);

/// Whether an ICMP type is one of neighbour discovery about a neighbour.
#[inline(always)]
pub(crate) const fn is_about_neighbour(kind: u8) -> bool {
    kind == SOLICITATION || kind == ADVERTISEMENT
}

/// A solicitation for a VIP is answered or dropped, anything else passes.
#[inline(always)]
pub fn arrive<X: Frame, T: AllTables>(handle: X::Handle, tables: T) -> Verdict {
    let mut frame = X::open(handle);
    let Some(ip) = frame.read::<Ipv6>(IP_AT) else {
        return Verdict::PASS;
    };
    let Some(neighbour) = frame.read::<Neighbour>(ICMP_AT) else {
        return Verdict::PASS;
    };
    let target = neighbour.target;
    if !is_vip::<V6, T>(tables, target) {
        return Verdict::PASS;
    }
    let ifindex = frame.ifindex();
    if neighbour.icmp.kind == ADVERTISEMENT {
        if let Some(mac) = told_mac(&frame) {
            claimed(tables, target, ifindex, mac);
        }
        return Verdict::PASS;
    }
    if neighbour.icmp.kind != SOLICITATION {
        return Verdict::PASS;
    }
    // What a stack would discard silently (section 7.1.1), checksums apart: Ethernet has its own, and those of local senders
    // are not written yet where XDP sits on a virtual interface.
    if ip.hops != HOPS || neighbour.icmp.code != 0 || is_multicast(ip.src) {
        return DropReason::NeighbourMalformed.into();
    }
    let mac = match mac_of(tables, target, ifindex) {
        Ok(mac) => mac,
        Err(reason) => return reason.into(),
    };
    let Some(asker) = frame.read::<Ethernet>(0) else {
        return Verdict::PASS;
    };
    // A probe of somebody who wants the address himself has no source: all are told (section 7.2.4).
    let is_probe = ip.src == Addr6::default();
    let answer = Answer {
        vip: target,
        mac,
        to: if is_probe { ALL_NODES } else { ip.src },
        to_mac: if is_probe { ALL_NODES_MAC } else { asker.src },
        flags: if is_probe {
            OVERRIDE
        } else {
            OVERRIDE | SOLICITED
        },
    };
    match answer.write(&mut frame) {
        Some(()) => {
            tables.count(Stat::NeighbourAnswered);
            Verdict::TRANSMIT
        }
        None => DropReason::NeighbourMalformed.into(),
    }
}

#[inline(always)]
const fn is_multicast(addr: Addr6) -> bool {
    addr.0[0].to_bytes()[0] == 0xff
}

/// The MAC that an advertisement tells; its sender's if it names none.
#[inline(always)]
fn told_mac<X: Frame>(frame: &X) -> Option<Mac> {
    let option = frame.read::<LinkAddress>(OPTION_AT);
    match option.filter(|option| option.kind == TARGET_LINK && option.len == 1) {
        Some(option) => Some(option.mac),
        None => frame.read::<Ethernet>(0).map(|ethernet| ethernet.src),
    }
}

/// An advertisement of a VIP.
#[derive(Clone, Copy)]
struct Answer {
    vip: Addr6,
    mac: Mac,
    to: Addr6,
    to_mac: Mac,
    flags: u32,
}

impl Answer {
    /// Writes it over a packet of any length.
    #[inline(always)]
    fn write<X: Frame>(&self, frame: &mut X) -> Option<()> {
        frame.move_tail(LEN as i32 - frame.len() as i32)?;
        let (ethernet, ip) = self.headers();
        frame.write(0, ethernet)?;
        frame.write(IP_AT, ip)?;
        let option = LinkAddress {
            kind: TARGET_LINK,
            len: 1,
            mac: self.mac,
        };
        frame.write(OPTION_AT, option)?;
        let checksum = Be16::from_raw(!checksum::fold(self.sum(&ip)));
        let icmp = Icmp {
            kind: ADVERTISEMENT,
            code: 0,
            checksum,
            rest: Be32::new(self.flags),
        };
        let target = self.vip;
        frame.write(ICMP_AT, Neighbour { icmp, target })
    }

    #[inline(always)]
    fn headers(&self) -> (Ethernet, Ipv6) {
        let ethernet = Ethernet {
            dst: self.to_mac,
            src: self.mac,
            kind: ethertype::IPV6,
        };
        let ip = V6::header(protocol::ICMP6, ADVERTISEMENT_LEN as u16, self.vip, self.to);
        (ethernet, Ipv6 { hops: HOPS, ..ip })
    }

    /// The one's complement sum of pseudo-header and message.
    #[inline(always)]
    fn sum(&self, ip: &Ipv6) -> u64 {
        let Mac([a, b, c]) = self.mac;
        icmp::pseudo_header::<V6>(ip, protocol::ICMP6, ADVERTISEMENT_LEN as u16)
            + u64::from(Be16::new(u16::from(ADVERTISEMENT) << 8).raw())
            + u64::from(Be32::new(self.flags).raw())
            + V6::sum(self.vip)
            + u64::from(Be16::new(u16::from(TARGET_LINK) << 8 | 1).raw())
            + u64::from(a.raw())
            + u64::from(b.raw())
            + u64::from(c.raw())
    }
}

/// Frames that a node sends of itself.
#[cfg(any(test, feature = "host"))]
#[expect(
    clippy::missing_panics_doc,
    reason = "they write into packets that are made as long as what is written"
)]
mod own {
    use std::vec::Vec;

    use super::{
        ALL_NODES, ALL_NODES_MAC, Answer, HOPS, ICMP_AT, LEN, OVERRIDE, PROBE_LEN, SOLICITATION,
    };
    use crate::checksum;
    use crate::family::{Family, V6};
    use crate::frame::{Buffer, Frame, Packet};
    use crate::icmp;
    use crate::subject::IP_AT;
    use crate::wire::{
        Addr6, Be16, Be32, Ethernet, Icmp, Ipv6, Mac, Neighbour, ethertype, protocol,
    };

    /// Tells everybody on the link that a MAC has the VIP from now on (RFC 4861, section 7.2.6).
    pub fn announcement(vip: [u8; 16], mac: [u8; 6]) -> Vec<u8> {
        let packet = Packet::new(&[0; LEN]);
        let answer = Answer {
            vip: Addr6::from_bytes(vip),
            mac: Mac::from_bytes(mac),
            to: ALL_NODES,
            to_mac: ALL_NODES_MAC,
            flags: OVERRIDE,
        };
        answer
            .write(&mut Buffer(&packet))
            .expect("the packet has the length of an advertisement");
        packet.bytes()
    }

    /// Asks whether anybody has the VIP, without telling an address of one's own (RFC 4862, section 5.4.2).
    pub fn probe(vip: [u8; 16], mac: [u8; 6]) -> Vec<u8> {
        let target = Addr6::from_bytes(vip);
        let (group, group_mac) = solicited(vip);
        let len = size_of::<Neighbour>() as u16;
        let ip = Ipv6 {
            hops: HOPS,
            ..V6::header(
                protocol::ICMP6,
                len,
                Addr6::default(),
                Addr6::from_bytes(group),
            )
        };
        let sum = icmp::pseudo_header::<V6>(&ip, protocol::ICMP6, len)
            + u64::from(Be16::new(u16::from(SOLICITATION) << 8).raw())
            + V6::sum(target);
        let ethernet = Ethernet {
            dst: Mac::from_bytes(group_mac),
            src: Mac::from_bytes(mac),
            kind: ethertype::IPV6,
        };
        let icmp = Icmp {
            kind: SOLICITATION,
            code: 0,
            checksum: Be16::from_raw(!checksum::fold(sum)),
            rest: Be32::new(0),
        };
        let packet = Packet::new(&[0; PROBE_LEN]);
        let mut frame = Buffer(&packet);
        frame
            .write(0, ethernet)
            .and_then(|()| frame.write(IP_AT, ip))
            .and_then(|()| frame.write(ICMP_AT, Neighbour { icmp, target }))
            .expect("the packet has the length of a solicitation");
        packet.bytes()
    }

    /// The multicast group that questions about an address are sent to (RFC 4291, section 2.7.1), and its MAC (RFC 2464,
    /// section 7). Whoever announces the address must be in it, or network cards and switches leave questions out.
    pub fn solicited(vip: [u8; 16]) -> ([u8; 16], [u8; 6]) {
        let [.., a, b, c] = vip;
        let group = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c];
        (group, [0x33, 0x33, 0xff, a, b, c])
    }
}

#[cfg(any(test, feature = "host"))]
pub use own::{announcement, probe, solicited};
