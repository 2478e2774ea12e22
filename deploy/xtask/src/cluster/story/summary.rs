//! What the story found: promises with what was seen, and figures, for people and for machines.

use std::fmt;

use serde::Serialize;

use crate::tally::Tally;

/// One promise.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Finding {
    /// What was promised.
    promise: String,
    held: bool,
    /// What was seen.
    seen: String,
}

/// All of them. Fields are added, never renamed; those that `lbctl lab -o json` has too mean the same.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Summary {
    /// `demo` or `test`.
    pub(super) run: &'static str,
    pub(super) nodes: u8,
    pub(super) seconds: f64,
    /// Short connections and sessions, without those during power cuts.
    pub(super) connections: u64,
    /// Of these, not opened or not answered.
    pub(super) failed: u64,
    /// Pods behind the VIPs.
    pub(super) pods: u32,
    /// Those that answered.
    pub(super) pods_used: usize,
    /// Every pod saw the client's own address and port.
    pub(super) client_address_preserved: bool,
    /// Bytes of transfers, both ways.
    pub(super) bytes: u64,
    /// TCP segments that the client sent with them.
    pub(super) segments: u64,
    /// Of these, sent again.
    pub(super) retransmits: u64,
    /// Datagrams of streams, and those without an answer.
    pub(super) udp_sent: u64,
    pub(super) udp_lost: u64,
    /// Long connections to pods that no rollout replaces, and those that broke.
    pub(super) sessions_on_living_pods: u64,
    pub(super) broken: u64,
    /// Longest wait for an answer on those.
    pub(super) longest_wait_ms: u64,
    /// Packets passed on to another candidate, and held back, during rollouts.
    pub(super) relayed: u64,
    pub(super) held_back: u64,
    /// From `kubectl apply` to the address in the status.
    pub(super) address_ms: Spread,
    /// From `kubectl apply` to the first byte through the VIP.
    pub(super) first_byte_ms: Spread,
    /// From the first connection that fails to the next that does not, when the announcer loses its power.
    pub(super) failover_ms: Spread,
    /// Promises, in the order in which they were tried.
    pub(super) findings: Vec<Finding>,
    /// Those that do not hold; empty: all is well.
    pub(super) not_held: Vec<String>,
}

/// Some figures of a kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Spread {
    pub(super) median: u64,
    pub(super) max: u64,
    /// How many there are.
    pub(super) of: usize,
}

impl Spread {
    /// Of two in the middle, the upper one is the median.
    pub(super) fn of(figures: &[u64]) -> Self {
        let mut sorted = figures.to_vec();
        sorted.sort_unstable();
        Self {
            median: sorted.get(sorted.len() / 2).copied().unwrap_or(0),
            max: sorted.last().copied().unwrap_or(0),
            of: sorted.len(),
        }
    }
}

impl Summary {
    pub(super) fn new(run: &'static str, nodes: u8) -> Self {
        Self {
            run,
            nodes,
            client_address_preserved: true,
            ..Self::default()
        }
    }

    /// Notes whether a promise held, and says so at once.
    pub(super) fn note(&mut self, promise: &str, held: bool, seen: impl Into<String>) {
        let finding = Finding {
            promise: promise.to_owned(),
            held,
            seen: seen.into(),
        };
        eprintln!("{finding}");
        if !held {
            self.not_held.push(promise.trim().to_owned());
        }
        self.findings.push(finding);
    }

    pub(super) fn all_held(&self) -> bool {
        self.not_held.is_empty()
    }

    /// A pass or a failure for each promise.
    pub(crate) fn tally(&self) -> Tally {
        let mut tally = Tally::default();
        for finding in &self.findings {
            tally.add(Tally::one(finding.held));
        }
        tally
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { median, max, of } = self;
        write!(f, "median {median} ms, maximum {max} ms of {of}")
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = if self.held { "held    " } else { "NOT HELD" };
        write!(f, "{mark}  {:55}  {}", self.promise, self.seen)
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { nodes, seconds, .. } = self;
        writeln!(f, "\nA cluster of {nodes} nodes, {seconds:.0} s:")?;
        self.findings
            .iter()
            .try_for_each(|finding| writeln!(f, "  {finding}"))?;
        match self.not_held.len() {
            0 => write!(f, "Every promise held."),
            broken => write!(f, "Promises that did not hold: {broken}."),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_is_the_upper_one_of_two() {
        let spread = |median, max, of| Spread { median, max, of };
        assert_eq!(Spread::of(&[4, 1, 3, 2]), spread(3, 4, 4));
        assert_eq!(Spread::of(&[]), spread(0, 0, 0));
    }

    #[test]
    fn a_promise_that_does_not_hold_is_a_failure() {
        let mut summary = Summary::new("test", 3);
        summary.note("one", true, "");
        assert!(summary.all_held());
        summary.note("  two", false, "2 failed");
        assert_eq!(summary.not_held, ["two"]);
        assert_eq!(summary.tally().to_string(), "1 passed, 1 failed, 0 skipped");
    }
}
