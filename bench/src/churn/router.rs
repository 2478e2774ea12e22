//! The router in front: equal-cost paths to the nodes that announce, chosen by a hash of the flow.

use super::dice::mix;
use super::segment::FlowId;
use super::wire::NodeId;

/// Buckets of a resilient router: enough that eight to ten next hops are even.
const BUCKETS: u64 = 512;

/// How a router spreads flows when next hops come and go.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum Ecmp {
    /// Hash modulo the number of next hops: most flows move.
    Modulo,
    /// Buckets that keep their next hop while it is there: few flows move.
    Resilient,
}

impl Ecmp {
    /// As it is asked for.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Modulo => "modulo",
            Self::Resilient => "resilient",
        }
    }
}

/// A router.
#[derive(Debug)]
pub(super) struct Router {
    ecmp: Ecmp,
    /// Changed by a re-hash.
    salt: u64,
    hops: Vec<NodeId>,
    buckets: Vec<NodeId>,
}

impl Router {
    /// Without next hops.
    pub(super) fn new(ecmp: Ecmp, salt: u64) -> Self {
        Self {
            ecmp,
            salt,
            hops: Vec::new(),
            buckets: Vec::new(),
        }
    }

    /// Another hash: nearly every flow goes to another node.
    pub(super) fn rehash(&mut self, salt: u64) {
        self.salt = salt;
    }

    /// A node announces.
    pub(super) fn add(&mut self, node: NodeId) {
        if self.hops.contains(&node) {
            return;
        }
        self.hops.push(node);
        self.hops.sort_unstable();
        if self.buckets.is_empty() {
            self.buckets = vec![node; BUCKETS as usize];
            return;
        }
        // The newcomer takes its share, evenly from all.
        let step = self.hops.len();
        for bucket in self.buckets.iter_mut().step_by(step) {
            *bucket = node;
        }
    }

    /// A node announces no more.
    pub(super) fn remove(&mut self, node: NodeId) {
        self.hops.retain(|hop| *hop != node);
        let mut next = self.hops.iter().cycle();
        for bucket in &mut self.buckets {
            if *bucket == node
                && let Some(hop) = next.next()
            {
                *bucket = *hop;
            }
        }
    }

    /// Where a flow enters; none without next hops.
    pub(super) fn next(&self, flow: FlowId) -> Option<NodeId> {
        let hash = mix(self.salt ^ mix(u64::from(flow.0)));
        match self.ecmp {
            _ if self.hops.is_empty() => None,
            Ecmp::Modulo => {
                let at = hash % self.hops.len() as u64;
                self.hops.get(at as usize).copied()
            }
            Ecmp::Resilient => self.buckets.get((hash % BUCKETS) as usize).copied(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLOWS: u32 = 8000;

    fn router(ecmp: Ecmp) -> Router {
        let mut router = Router::new(ecmp, 1);
        for node in 0..8 {
            router.add(NodeId(node));
        }
        router
    }

    fn places(router: &Router) -> Vec<NodeId> {
        (0..FLOWS)
            .filter_map(|flow| router.next(FlowId(flow)))
            .collect()
    }

    /// How many of a thousand flows that did not enter at `gone` enter elsewhere now.
    fn moved(before: &[NodeId], after: &[NodeId], gone: Option<NodeId>) -> u32 {
        let moved = before
            .iter()
            .zip(after)
            .filter(|(before, after)| before != after && Some(**before) != gone);
        moved.count() as u32 * 1000 / FLOWS
    }

    #[test]
    fn modulo_moves_most_flows_and_buckets_move_those_that_must() {
        for (ecmp, others) in [(Ecmp::Modulo, 700..800), (Ecmp::Resilient, 0..1)] {
            let mut router = router(ecmp);
            let before = places(&router);
            router.remove(NodeId(3));
            let after = places(&router);
            assert!(!after.contains(&NodeId(3)));
            assert!(others.contains(&moved(&before, &after, Some(NodeId(3)))));
        }
    }

    #[test]
    fn a_newcomer_takes_its_share_only_of_buckets() {
        let mut router = router(Ecmp::Resilient);
        let before = places(&router);
        router.add(NodeId(8));
        let share = moved(&before, &places(&router), None);
        assert!((90..140).contains(&share), "{share}");
    }

    #[test]
    fn a_rehash_moves_flows_and_without_next_hops_there_is_no_way() {
        for ecmp in [Ecmp::Modulo, Ecmp::Resilient] {
            let mut router = router(ecmp);
            let before = places(&router);
            router.rehash(2);
            assert!(moved(&before, &places(&router), None) > 800);
            for node in 0..8 {
                router.remove(NodeId(node));
            }
            assert_eq!(router.next(FlowId(1)), None);
        }
    }
}
