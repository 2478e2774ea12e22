//! Who answers for a VIP on the link: ARP (RFC 826) over IPv4, neighbour discovery (RFC 4861) over IPv6.
//!
//! The announcer answers, and only while its agent gives signs of life. Every other question about a VIP is dropped, so that
//! no stack on any node answers it. Announcements and replies pass: stacks learn from them where a VIP has moved.
//! Somebody who claims a VIP for another MAC is noted, and the agent finds out who it is.

pub mod arp;
pub mod discovery;

use crate::abi::{AnnouncedKey, Claim, DropReason, STAMP_ANNOUNCES_NS, Stat};
use crate::family::Family;
use crate::subject;
use crate::tables::{Shared, Tables};
use crate::wire::{Addr6, Mac};

/// Whether an address is a VIP.
#[inline(always)]
fn is_vip<F: Family, T: Tables<F>>(tables: T, addr: F::Addr) -> bool {
    tables.service(&subject::vip_key::<F>(addr)).is_some()
}

/// The MAC to answer with for a VIP on an interface.
#[inline(always)]
fn mac_of<T: Shared>(tables: T, addr: Addr6, ifindex: u32) -> Result<Mac, DropReason> {
    let Some(announced) = tables.announced(&AnnouncedKey { addr, ifindex }) else {
        return Err(DropReason::NotAnnounced);
    };
    let age_ns = tables.now_ns().saturating_sub(tables.stamp().stamped_ns);
    if age_ns > STAMP_ANNOUNCES_NS {
        return Err(DropReason::AnnouncerStale);
    }
    Ok(announced.mac)
}

/// Notes that a VIP is claimed for a MAC, unless it is the one that this node announces.
#[inline(always)]
fn claimed<T: Shared>(tables: T, addr: Addr6, ifindex: u32, mac: Mac) {
    let announced = tables.announced(&AnnouncedKey { addr, ifindex });
    if announced.is_some_and(|announced| announced.mac == mac) {
        return;
    }
    let claim = Claim {
        addr,
        ifindex,
        mac,
        pad: [0; 2],
    };
    tables.insert_claim(&claim, tables.now_ns());
    tables.count(Stat::ClaimSeen);
}
