//! Claims of others to VIPs, as the programs note them: who said on the wire that a VIP is at which MAC, and when.
//!
//! Knows nothing of who is right: on a node that does not announce a VIP, the announcer's own words are among them.

use std::net::IpAddr;

use lb_ebpf::abi::{self, map};

use super::ApplyError;
use super::pin::{PinDir, PinError};
use super::sys::More;
use super::table::HashTable;
use crate::model::plan::address_of;

/// Somebody said that a VIP is at a MAC that this node does not announce on that interface.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Claim {
    /// The VIP.
    pub vip: IpAddr,
    /// The interface that it was heard on.
    pub ifindex: u32,
    /// The MAC that was claimed.
    pub mac: [u8; 6],
    /// When it was heard last, in nanoseconds of the monotonic clock (coarse: some milliseconds).
    pub seen_ns: u64,
}

/// The map of claims.
pub struct Claims(HashTable<abi::Claim, u64>);

impl Claims {
    pub(super) fn open(pins: &PinDir) -> Result<Self, PinError> {
        HashTable::open(pins, map::CLAIMS).map(Self)
    }

    /// All that are remembered, at most [`abi::capacity::CLAIMS`].
    pub fn read(&self) -> Result<Vec<Claim>, ApplyError> {
        let mut claims = Vec::new();
        self.0.scan(|key, seen_ns| {
            claims.push(Claim {
                vip: address_of(key.addr),
                ifindex: key.ifindex,
                mac: key.mac.to_bytes(),
                seen_ns: *seen_ns,
            });
            More::Yes
        })?;
        Ok(claims)
    }

    /// Forgets a claim that was dealt with.
    pub fn forget(&self, claim: &Claim) -> Result<(), ApplyError> {
        self.0.remove(&abi::Claim {
            addr: crate::model::plan::mapped(claim.vip),
            ifindex: claim.ifindex,
            mac: lb_ebpf::wire::Mac::from_bytes(claim.mac),
            pad: [0; 2],
        })
    }
}
