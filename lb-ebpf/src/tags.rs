//! VLAN tags (IEEE 802.1Q): taken off packets that concern this node, so that nothing else has to know of them, and put back on
//! what goes out again.

use core::mem::offset_of;

use crate::abi::{DropReason, VLAN_DEPTH_MAX};
use crate::family::{Family, V4, V6};
use crate::frame::Frame;
use crate::neighbour::{arp, discovery};
use crate::subject;
use crate::tables::{AllTables, Tables};
use crate::verdict::Verdict;
use crate::wire::{Be16, Be32, Ipv6, Mac, ethertype};

/// VLAN tags of a packet, taken off in front of the decision and put back after it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tags {
    /// How many.
    depth: u32,
    /// Tag protocol and tag control, outermost first.
    tags: [[Be16; 2]; VLAN_DEPTH_MAX],
}

/// Both MAC addresses.
type Macs = [Mac; 2];

#[inline(always)]
pub(crate) fn is_tag(kind: Be16) -> bool {
    kind == ethertype::VLAN || kind == ethertype::VLAN_OUTER
}

/// Takes the VLAN tags off a packet for one of our VIPs or for this node's own address; any other stays as it is, with
/// depth 0.
#[inline(always)]
pub(crate) fn untag<X: Frame, T: AllTables>(
    handle: X::Handle,
    tables: T,
    tags: &mut Tags,
) -> Verdict {
    match try_untag(&mut X::open(handle), tables, tags) {
        Ok(()) => Verdict::PASS,
        Err(reason) => reason.into(),
    }
}

#[inline(always)]
fn try_untag<X: Frame, T: AllTables>(
    frame: &mut X,
    tables: T,
    tags: &mut Tags,
) -> Result<(), DropReason> {
    tags.depth = 0;
    let Some(outer) = frame.read::<[Be16; 2]>(12) else {
        return Ok(());
    };
    let Some(inner) = frame.read::<[Be16; 2]>(16) else {
        return Ok(());
    };
    tags.tags = [outer, inner];
    let kind = inner[0];
    if !is_tag(kind) {
        if !concerns_us(frame, tables, kind, 18) {
            return Ok(());
        }
        return strip(frame, tags, 1);
    }
    let Some(kind) = frame.read::<Be16>(20) else {
        return Ok(());
    };
    if !is_tag(kind) {
        if !concerns_us(frame, tables, kind, 22) {
            return Ok(());
        }
        return strip(frame, tags, 2);
    }
    let Some(kind) = frame.read::<Be16>(24) else {
        return Ok(());
    };
    if concerns_us(frame, tables, kind, 26) {
        Err(DropReason::VlanTooDeep)
    } else {
        Ok(())
    }
}

/// Takes `depth` tags off the front, and keeps the MAC addresses.
#[inline(always)]
fn strip<X: Frame>(frame: &mut X, tags: &mut Tags, depth: u32) -> Result<(), DropReason> {
    let macs = frame.read::<Macs>(0).ok_or(DropReason::Truncated)?;
    frame
        .move_head(4 * depth as i32)
        .ok_or(DropReason::Truncated)?;
    frame.write(0, macs).ok_or(DropReason::Truncated)?;
    tags.depth = depth;
    Ok(())
}

/// Whether the packet is for a VIP or for this node, or asks for a VIP.
#[inline(always)]
fn concerns_us<X: Frame, T: AllTables>(frame: &X, tables: T, kind: Be16, at: usize) -> bool {
    let config = tables.config();
    if kind == ethertype::IPV4 {
        let Some(dst) = frame.read::<Be32>(at + V4::DST_AT) else {
            return false;
        };
        dst == config.node4
            || Tables::<V4>::service(&tables, &subject::vip_key::<V4>(dst)).is_some()
    } else if kind == ethertype::IPV6 {
        let Some(dst) = frame.read(at + V6::DST_AT) else {
            return false;
        };
        dst == config.node6
            || Tables::<V6>::service(&tables, &subject::vip_key::<V6>(dst)).is_some()
            || asks_for_vip6(frame, tables, at)
    } else if kind == ethertype::ARP {
        let Some(target) = frame.read::<[Be16; 2]>(at + arp::TARGET_AT) else {
            return false;
        };
        let key = subject::vip_key::<V4>(Be32::from_halves(target));
        Tables::<V4>::service(&tables, &key).is_some()
    } else {
        false
    }
}

/// Whether the IPv6 packet at `at` is neighbour discovery about a VIP.
#[inline(always)]
fn asks_for_vip6<X: Frame, T: AllTables>(frame: &X, tables: T, at: usize) -> bool {
    let icmp_at = at + V6::HEADER_LEN;
    let is_about_neighbour = frame
        .read::<u8>(icmp_at)
        .is_some_and(discovery::is_about_neighbour);
    let next = frame.read::<u8>(at + offset_of!(Ipv6, next));
    if !is_about_neighbour || next != Some(V6::ICMP) {
        return false;
    }
    let Some(target) = frame.read(icmp_at + discovery::TARGET_AT) else {
        return false;
    };
    Tables::<V6>::service(&tables, &subject::vip_key::<V6>(target)).is_some()
}

/// Puts the tags back.
#[inline(always)]
pub(crate) fn retag<X: Frame>(frame: &mut X, tags: &Tags) -> Result<(), DropReason> {
    if tags.depth == 0 {
        return Ok(());
    }
    let macs = frame.read::<Macs>(0).ok_or(DropReason::Truncated)?;
    let by = if tags.depth == 1 { -4 } else { -8 };
    frame.move_head(by).ok_or(DropReason::NoHeadroom)?;
    frame.write(0, macs).ok_or(DropReason::Truncated)?;
    frame.write(12, tags.tags[0]).ok_or(DropReason::Truncated)?;
    if tags.depth > 1 {
        frame.write(16, tags.tags[1]).ok_or(DropReason::Truncated)?;
    }
    Ok(())
}
