//! Who else says that he has a VIP of ours. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::burst::Announced;
use crate::dataplane::claims::Claim;

/// How long a claim is held against somebody: he may be asked rarely.
const CLAIM_AGE_MAX_NS: u64 = 60_000_000_000;

/// Somebody who is no node of ours has claimed a VIP that this node announces.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Conflict {
    /// The VIP.
    pub vip: IpAddr,
    /// The interface that it was heard on.
    pub ifindex: u32,
    /// The other's MAC.
    pub mac: [u8; 6],
}

/// Claims to what this node announces.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Claimed {
    /// By strangers.
    pub conflicts: BTreeSet<Conflict>,
    /// By other nodes, and when last, in nanoseconds of the monotonic clock: whoever heard them must be told again.
    pub by_nodes: BTreeMap<Announced, u64>,
}

/// Sorts the claims that were heard. `nodes` are the MACs of all nodes' interfaces: what they say when a VIP moves is no
/// conflict.
pub fn claimed(
    claims: &[Claim],
    announced: &BTreeSet<Announced>,
    nodes: &BTreeSet<[u8; 6]>,
    now_ns: u64,
) -> Claimed {
    let ours: BTreeMap<_, _> = announced
        .iter()
        .map(|(vip, ifindex, mac)| ((*vip, *ifindex), *mac))
        .collect();
    let mut claimed = Claimed::default();
    for claim in claims {
        let Some(mac) = ours.get(&(claim.vip, claim.ifindex)) else {
            continue;
        };
        if *mac == claim.mac || now_ns.saturating_sub(claim.seen_ns) >= CLAIM_AGE_MAX_NS {
            continue;
        }
        if nodes.contains(&claim.mac) {
            let one = (claim.vip, claim.ifindex, *mac);
            let seen_ns = claimed.by_nodes.entry(one).or_default();
            *seen_ns = claim.seen_ns.max(*seen_ns);
        } else {
            claimed.conflicts.insert(Conflict {
                vip: claim.vip,
                ifindex: claim.ifindex,
                mac: claim.mac,
            });
        }
    }
    claimed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stranger_who_claims_a_vip_that_we_announce_is_a_conflict_and_a_node_is_contradicted() {
        let (vip, other) = ([192, 0, 2, 1].into(), [192, 0, 2, 2].into());
        let (own, peer, stranger) = ([2; 6], [4; 6], [6; 6]);
        let claim = |vip, mac, seen_ns| Claim {
            vip,
            ifindex: 3,
            mac,
            seen_ns,
        };
        let now_ns = 100_000_000_000;
        let claims = [
            claim(vip, stranger, now_ns - 1),
            claim(vip, peer, now_ns - 1),
            claim(vip, own, now_ns - 1),
            claim(other, stranger, now_ns - 1),
            claim(vip, [8; 6], 1),
        ];
        let found = claimed(&claims, &[(vip, 3, own)].into(), &[peer].into(), now_ns);
        let expected = Conflict {
            vip,
            ifindex: 3,
            mac: stranger,
        };
        assert_eq!(
            found,
            Claimed {
                conflicts: [expected].into(),
                by_nodes: [((vip, 3, own), now_ns - 1)].into(),
            }
        );
    }
}
