//! Whether a balancer may apply a version: one that forgets owners comes after the pins of their flows.
//!
//! Every version names, for each node that ever handed flows of the Service off, how far that node's pins must be known.
//! Positions only grow, so a version may be left out, and a restart of the owner's agent (whose first snapshot has all flows
//! that are pinned) is beyond everything that the agent before it has said.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;

use super::pins::Position;
use crate::api::service_table::Watermark;

/// What a balancer knows of other nodes.
pub struct Known<'a> {
    /// How far a writer's pins are in the map.
    pub received: &'a dyn Fn(&str) -> Option<Position>,
    /// Whether a writer's stream is up.
    pub reachable: &'a dyn Fn(&str) -> bool,
    /// Whether a Node object is gone: its pods are dead, and nobody waits for their flows.
    pub dead: &'a dyn Fn(&str) -> bool,
}

/// Whether a version may be applied.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Gate {
    /// It may.
    Open,
    /// Not yet: the older version stays, which knows more owners.
    Waits {
        /// Writers whose streams are up and will bring what is missing.
        streams: BTreeSet<Arc<str>>,
        /// Writers that cannot be reached: another balancer may have what is missing, and is asked for a copy.
        copies: BTreeSet<Arc<str>>,
    },
}

/// Whether a version with these watermarks may be applied.
pub fn gate(watermarks: &BTreeMap<String, Watermark>, known: &Known<'_>) -> Gate {
    let mut streams = BTreeSet::new();
    let mut copies = BTreeSet::new();
    for (node, watermark) in watermarks {
        let is_reached = (known.received)(node).is_some_and(|at| at >= Position::from(*watermark));
        if is_reached || (known.dead)(node) {
            continue;
        }
        let of = if (known.reachable)(node) {
            &mut streams
        } else {
            &mut copies
        };
        of.insert(node.as_str().into());
    }
    if streams.is_empty() && copies.is_empty() {
        Gate::Open
    } else {
        Gate::Waits { streams, copies }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::pins::{Incarnation, Seq};

    fn position(incarnation: u64, seq: u64) -> Position {
        Position {
            incarnation: Incarnation(incarnation),
            seq: Seq(seq),
        }
    }

    /// The gate of a version with watermarks (node, incarnation, seq) at a balancer that has received others. Nodes in
    /// `away` have no stream, those in `dead` no Node object.
    fn gated(
        watermarks: &[(&str, u64, u64)],
        received: &[(&str, u64, u64)],
        away: &str,
        dead: &str,
    ) -> Gate {
        let watermark = |(node, incarnation, seq): &(&str, u64, u64)| {
            let (incarnation, seq) = (*incarnation, *seq);
            ((*node).to_owned(), Watermark { incarnation, seq })
        };
        let received: BTreeMap<&str, Position> = received
            .iter()
            .map(|(n, i, s)| (*n, position(*i, *s)))
            .collect();
        gate(
            &watermarks.iter().map(watermark).collect(),
            &Known {
                received: &|node| received.get(node).copied(),
                reachable: &|node| !away.contains(node),
                dead: &|node| dead.contains(node),
            },
        )
    }

    fn waits(streams: &[&str], copies: &[&str]) -> Gate {
        let set = |nodes: &[&str]| nodes.iter().map(|node| Arc::from(*node)).collect();
        Gate::Waits {
            streams: set(streams),
            copies: set(copies),
        }
    }

    #[test]
    fn a_version_without_watermarks_is_applied_at_once() {
        assert_eq!(gated(&[], &[], "", ""), Gate::Open);
    }

    #[test]
    fn a_version_waits_for_the_pins_that_stand_in_for_what_it_forgets() {
        let wanted = [("a", 5, 7), ("b", 2, 1)];
        assert_eq!(
            gated(&wanted, &[("a", 5, 6)], "b", ""),
            waits(&["a"], &["b"])
        );
        assert_eq!(
            gated(&wanted, &[("a", 5, 7), ("b", 1, 9)], "", ""),
            waits(&["b"], &[])
        );
        assert_eq!(
            gated(&wanted, &[("a", 5, 7), ("b", 2, 1)], "ab", ""),
            Gate::Open
        );
    }

    #[test]
    fn a_later_start_of_the_owner_is_beyond_the_watermark() {
        assert_eq!(gated(&[("a", 5, 7)], &[("a", 6, 0)], "", ""), Gate::Open);
    }

    #[test]
    fn nobody_waits_for_the_dead() {
        assert_eq!(gated(&[("a", 5, 7)], &[], "a", "a"), Gate::Open);
    }
}
