//! ARP for IPv4 VIPs (RFC 826), probes included (RFC 5227), and the packets that an announcer sends of itself.

use super::{claimed, is_vip, mac_of};
use crate::abi::Stat;
use crate::family::{Family, V4};
use crate::frame::Frame;
use crate::subject::IP_AT;
use crate::tables::AllTables;
use crate::verdict::Verdict;
use crate::wire::{Arp, Be16, Be32, Ethernet, Mac, ethertype};

const ETHERNET: Be16 = Be16::new(1);
const REQUEST: Be16 = Be16::new(1);
const REPLY: Be16 = Be16::new(2);
const BROADCAST: Mac = Mac::from_bytes([0xff; 6]);

/// Bytes of an ARP packet with its Ethernet header.
pub const LEN: usize = 14 + size_of::<Arp>();

/// Where the target address is in an ARP packet.
pub(crate) const TARGET_AT: usize = core::mem::offset_of!(Arp, target);

/// An ARP packet: a request for a VIP is answered or dropped, anything else passes.
#[inline(always)]
pub fn arrive<X: Frame, T: AllTables>(handle: X::Handle, tables: T) -> Verdict {
    let mut frame = X::open(handle);
    let Some(arp) = frame.read::<Arp>(IP_AT) else {
        return Verdict::PASS;
    };
    if arp.hardware != ETHERNET
        || arp.protocol != ethertype::IPV4
        || arp.hardware_len != 6
        || arp.protocol_len != 4
    {
        return Verdict::PASS;
    }
    let ifindex = frame.ifindex();
    let (sender, target) = (Be32::from_halves(arp.sender), Be32::from_halves(arp.target));
    if is_vip::<V4, T>(tables, sender) {
        claimed(tables, V4::mapped(sender), ifindex, arp.sender_mac);
    }
    // Who asks for his own address announces it (RFC 5227, section 2.3).
    if arp.operation != REQUEST || sender == target || !is_vip::<V4, T>(tables, target) {
        return Verdict::PASS;
    }
    let mac = match mac_of(tables, V4::mapped(target), ifindex) {
        Ok(mac) => mac,
        Err(reason) => return reason.into(),
    };
    let answer = Arp {
        operation: REPLY,
        sender_mac: mac,
        sender: arp.target,
        target_mac: arp.sender_mac,
        target: arp.sender,
        ..arp
    };
    let ethernet = Ethernet {
        dst: arp.sender_mac,
        src: mac,
        kind: ethertype::ARP,
    };
    if frame.write(0, ethernet).is_none() || frame.write(IP_AT, answer).is_none() {
        return Verdict::PASS;
    }
    tables.count(Stat::NeighbourAnswered);
    Verdict::TRANSMIT
}

/// What an ARP packet of this node's own is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    /// A gratuitous request: this MAC has the address from now on (RFC 5227, section 2.3).
    Announcement,
    /// The same as a gratuitous reply, which some stacks want (RFC 5944, section 4.6).
    Reply,
    /// Does anybody have the address (RFC 5227, section 2.1.1)?
    Probe,
}

/// The frame that says or asks whose MAC a VIP has, for everybody on the link.
pub fn frame(form: Form, vip: [u8; 4], mac: [u8; 6]) -> [u8; LEN] {
    // RFC 5227 leaves the target's MAC of requests zero; RFC 5944 wants the sender's in replies.
    let (operation, sender, target_mac) = match form {
        Form::Announcement => (REQUEST, vip, [0; 6]),
        Form::Reply => (REPLY, vip, mac),
        Form::Probe => (REQUEST, [0; 4], [0; 6]),
    };
    let mut bytes = [0; LEN];
    let mut rest = &mut bytes[..];
    let parts: [&[u8]; 9] = [
        &BROADCAST.to_bytes(),
        &mac,
        &[0x08, 0x06],
        &[0, 1, 0x08, 0, 6, 4, 0],
        &[operation.get() as u8],
        &mac,
        &sender,
        &target_mac,
        &vip,
    ];
    for part in parts {
        let (here, behind) = rest.split_at_mut(part.len());
        here.copy_from_slice(part);
        rest = behind;
    }
    bytes
}
