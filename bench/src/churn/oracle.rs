//! What became of flows: a flow belongs to the pod that has answered first, and is broken when it is reset or silent while
//! that pod lives.

use std::collections::BTreeMap;

use super::client::End;
use super::queue::Nanos;
use super::segment::FlowId;

/// Broken flows that are told one by one.
const TOLD_MAX: usize = 20;

/// What the oracle says of a flow that has ended.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Fate {
    /// As its client wanted.
    Closed,
    /// Its pod died: nobody's fault.
    PodDied,
    /// Never answered: no pod has owned it.
    Unanswered,
    /// Reset, silent, refused or gone to another pod, while its own lived.
    Broken(End),
}

/// The fate of a flow. `owner_died` says whether the pod that it belongs to is dead.
pub(super) fn fate(end: End, owner_died: bool) -> Fate {
    match end {
        End::Closed => Fate::Closed,
        End::Unanswered => Fate::Unanswered,
        End::Reset | End::Silent | End::Strayed if owner_died => Fate::PodDied,
        End::Reset | End::Silent | End::Strayed | End::Refused => Fate::Broken(end),
    }
}

/// A broken flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Broken {
    pub(super) flow: FlowId,
    pub(super) how: End,
    pub(super) at: Nanos,
    pub(super) owner: Option<u32>,
}

/// What became of all flows of a run.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(super) struct Tally {
    fates: BTreeMap<Fate, u64>,
    /// The first ones, for people.
    pub(super) told: Vec<Broken>,
    /// Segments of flows that reached another pod than their own, which lived.
    pub(super) strayed: u64,
    /// Flows of which a packet was held back, and whose pods lived.
    pub(super) delayed: u64,
}

impl Tally {
    /// Notes the end of a flow.
    pub(super) fn note(&mut self, ended: Broken, owner_died: bool) {
        let fate = fate(ended.how, owner_died);
        *self.fates.entry(fate).or_default() += 1;
        if matches!(fate, Fate::Broken(_)) && self.told.len() < TOLD_MAX {
            self.told.push(ended);
        }
    }

    /// All flows that have ended.
    pub(super) fn flows(&self) -> u64 {
        self.fates.values().sum()
    }

    /// How many had a fate.
    pub(super) fn count(&self, fate: Fate) -> u64 {
        self.fates.get(&fate).copied().unwrap_or(0)
    }

    /// Those that are broken.
    pub(super) fn broken(&self) -> u64 {
        let broken = self.fates.iter();
        broken
            .filter(|(fate, _)| matches!(fate, Fate::Broken(_)))
            .map(|(_, count)| count)
            .sum()
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (at, (fate, count)) in self.fates.iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            write!(f, "{comma}{count} {}", name(*fate))?;
        }
        if self.strayed > 0 {
            write!(f, "; {} segments reached another pod", self.strayed)?;
        }
        if self.delayed > 0 {
            write!(f, "; {} were held back for a moment", self.delayed)?;
        }
        Ok(())
    }
}

fn name(fate: Fate) -> &'static str {
    match fate {
        Fate::Closed => "closed",
        Fate::PodDied => "lost with their pod",
        Fate::Unanswered | Fate::Broken(End::Unanswered) => "never answered",
        Fate::Broken(End::Closed | End::Reset) => "reset",
        Fate::Broken(End::Refused) => "refused",
        Fate::Broken(End::Silent) => "silent",
        Fate::Broken(End::Strayed) => "gone to another pod",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_is_broken_only_while_its_pod_lives() {
        for end in [End::Reset, End::Silent, End::Strayed] {
            assert_eq!(fate(end, false), Fate::Broken(end));
            assert_eq!(fate(end, true), Fate::PodDied);
        }
        assert_eq!(fate(End::Closed, false), Fate::Closed);
        assert_eq!(fate(End::Unanswered, false), Fate::Unanswered);
        assert_eq!(fate(End::Refused, false), Fate::Broken(End::Refused));
    }

    #[test]
    fn a_tally_counts_each_fate_and_tells_the_broken_ones() {
        let mut tally = Tally::default();
        let ended = |how| Broken {
            flow: FlowId(1),
            how,
            at: 5,
            owner: Some(2),
        };
        tally.note(ended(End::Closed), false);
        tally.note(ended(End::Reset), false);
        tally.note(ended(End::Reset), true);
        tally.note(ended(End::Silent), false);
        assert_eq!((tally.flows(), tally.broken()), (4, 2));
        assert_eq!(tally.told, [ended(End::Reset), ended(End::Silent)]);
        assert_eq!(
            tally.to_string(),
            "1 closed, 1 lost with their pod, 1 reset, 1 silent"
        );
    }
}
