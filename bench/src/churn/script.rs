//! What happens in a run: changes by name, alone or two at the same instant, and the long script that the published figures
//! of others are compared by.

use std::fmt;

use lb_ebpf::abi::OLDER_MAX;

use super::client::Manner;
use super::queue::{MS, Nanos, SECOND};
use super::router::Ecmp;
use super::segment::Transport;

/// Something that changes in a cluster.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) enum Change {
    /// All pods are replaced, one after the other.
    Rollout,
    ScaleUp,
    ScaleDown,
    /// So many more pods that the table gets another size.
    Resize,
    Weights,
    /// Other pods altogether; the old ones go on.
    Selector,
    /// The same pods under another port.
    TargetPort,
    /// Some pods are unready for a while.
    Readiness,
    /// A node with pods loses its power.
    Crash,
    /// A node without pods loses its power.
    Kill,
    /// A new node.
    Join,
    /// Agents end and start again.
    Restart,
    /// A node is taken for dead by the others, for a while.
    Suspicion,
    /// Agents do not hear the API server for a while.
    Partition,
    /// The router sends flows elsewhere.
    Rehash,
    /// A node hands over and leaves.
    Drain,
}

impl Change {
    /// Those of singles and pairs.
    pub(super) const ALL: [Self; 15] = [
        Self::Rollout,
        Self::ScaleUp,
        Self::ScaleDown,
        Self::Resize,
        Self::Weights,
        Self::Selector,
        Self::TargetPort,
        Self::Readiness,
        Self::Crash,
        Self::Kill,
        Self::Join,
        Self::Restart,
        Self::Suspicion,
        Self::Partition,
        Self::Rehash,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Rollout => "rollout",
            Self::ScaleUp => "scale-up",
            Self::ScaleDown => "scale-down",
            Self::Resize => "resize",
            Self::Weights => "weights",
            Self::Selector => "selector",
            Self::TargetPort => "target-port",
            Self::Readiness => "readiness",
            Self::Crash => "crash",
            Self::Kill => "kill",
            Self::Join => "join",
            Self::Restart => "restart",
            Self::Suspicion => "suspicion",
            Self::Partition => "partition",
            Self::Rehash => "rehash",
            Self::Drain => "drain",
        }
    }

    /// Changes who serves.
    fn is_of_pool(self) -> bool {
        matches!(
            self,
            Self::Rollout
                | Self::ScaleUp
                | Self::ScaleDown
                | Self::Resize
                | Self::Weights
                | Self::Selector
                | Self::TargetPort
                | Self::Readiness
        )
    }

    /// Changes where flows enter, by a re-hash or the loss of a balancer.
    fn moves_flows(self) -> bool {
        matches!(self, Self::Rehash | Self::Kill | Self::Crash)
    }
}

/// How many flows of a thousand are of which kind; the others are short ones.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Mix {
    pub(super) long: u64,
    pub(super) quiet: u64,
    /// What long ones ask.
    pub(super) questions: u32,
}

/// A Service of a script.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Pool {
    pub(super) name: &'static str,
    pub(super) transport: Transport,
    pub(super) pods: u32,
    /// Its part of all flows, of a thousand.
    pub(super) share: u64,
}

/// A run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Script {
    pub(super) name: String,
    /// What happens when.
    pub(super) changes: Vec<(Nanos, Change)>,
    pub(super) pools: Vec<Pool>,
    /// Nodes at the start.
    pub(super) nodes: u8,
    pub(super) flows: u32,
    /// Flows begin until then, evenly.
    pub(super) arrivals: Nanos,
    /// From here on clients close.
    pub(super) closing: Nanos,
    pub(super) mix: Mix,
    pub(super) ecmp: Ecmp,
    /// A rollout replaces a pod every so often.
    pub(super) rollout_every: Nanos,
    /// Pods that end live so long, and some far longer.
    pub(super) grace: Nanos,
}

/// When the changes of singles and pairs happen.
const CHANGE_AT: Nanos = 30 * SECOND;
/// Rollouts one after the other: two occupants more than a slot remembers beside its current one.
const ROLLOUTS: usize = OLDER_MAX + 2;
/// A pool of eight is replaced within this, one pod a second.
const ROLLOUT: Nanos = 10 * SECOND;

/// What makes a run larger or smaller.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Scale {
    /// Nodes at the start.
    pub(super) nodes: u8,
    /// Flows of a single or a pair.
    pub(super) flows: u32,
    /// Flows of the long script.
    pub(super) design: u32,
    pub(super) ecmp: Ecmp,
}

impl Script {
    /// Changes at the same instant, in a small cluster whose table sizes are easy to leave.
    fn of(changes: &[Change], scale: &Scale) -> Self {
        let names: Vec<&str> = changes.iter().map(|change| change.as_str()).collect();
        Self {
            name: names.join("+"),
            changes: changes.iter().map(|change| (CHANGE_AT, *change)).collect(),
            pools: vec![
                pool("web", Transport::Tcp, 8, 550),
                pool("api", Transport::Tcp, 5, 300),
                pool("dns", Transport::Udp, 4, 150),
            ],
            nodes: scale.nodes,
            flows: scale.flows,
            arrivals: 70 * SECOND,
            closing: 125 * SECOND,
            mix: Mix {
                long: 350,
                quiet: 100,
                questions: Manner::LONG.questions,
            },
            ecmp: scale.ecmp,
            rollout_every: 1500 * MS,
            grace: 45 * SECOND,
        }
    }

    /// Rollouts one after the other, and pods that live on until all flows have ended: the first ones have left their slots'
    /// history by then, and nothing but pins finds their flows. Then flows enter elsewhere.
    fn rollouts(scale: &Scale) -> Self {
        let mut changes: Vec<(Nanos, Change)> = (CHANGE_AT..)
            .step_by(ROLLOUT as usize)
            .map(|at| (at, Change::Rollout))
            .take(ROLLOUTS)
            .collect();
        changes.push((CHANGE_AT + 6 * ROLLOUT, Change::Rehash));
        Self {
            name: "rollouts".to_owned(),
            changes,
            rollout_every: SECOND,
            grace: 240 * SECOND,
            ..Self::of(&[], scale)
        }
    }

    /// All 100 pods replaced in ten minutes, one drain, one crash, two joins.
    fn design(scale: &Scale) -> Self {
        let minute = 60 * SECOND;
        Self {
            name: "design".to_owned(),
            changes: vec![
                (10 * SECOND, Change::Rollout),
                (2 * minute, Change::Drain),
                (4 * minute, Change::Join),
                (6 * minute, Change::Crash),
                (8 * minute, Change::Join),
            ],
            pools: vec![
                pool("web", Transport::Tcp, 70, 650),
                pool("api", Transport::Tcp, 20, 300),
                pool("dns", Transport::Udp, 10, 50),
            ],
            nodes: scale.nodes,
            flows: scale.design,
            arrivals: 10 * minute,
            closing: 11 * minute,
            mix: Mix {
                long: 40,
                quiet: 10,
                questions: 40,
            },
            ecmp: scale.ecmp,
            rollout_every: 6 * SECOND,
            grace: 90 * SECOND,
        }
    }

    /// All scripts: singles, pairs, many rollouts, and the long one.
    pub(super) fn all(scale: &Scale) -> Vec<Self> {
        let singles = Change::ALL.iter().map(|change| Self::of(&[*change], scale));
        let pairs = Change::ALL.iter().enumerate().flat_map(|(at, first)| {
            let others = &Change::ALL[at + 1..];
            others
                .iter()
                .map(move |second| Self::of(&[*first, *second], scale))
        });
        let others = [Self::rollouts(scale), Self::design(scale)];
        singles.chain(pairs).chain(others).collect()
    }

    /// Whether connection tables and stateless balancers cannot keep all flows: who serves changes, and flows enter
    /// elsewhere.
    pub(super) fn must_break_controls(&self) -> bool {
        let any = |of: fn(Change) -> bool| self.changes.iter().any(|(_, change)| of(*change));
        any(Change::is_of_pool) && any(Change::moves_flows)
    }

    /// Whether tables alone cannot find all flows: slots have had more occupants than they remember.
    pub(super) fn must_break_without_pins(&self) -> bool {
        let changes = self.changes.iter();
        let rollouts = changes.filter(|(_, change)| *change == Change::Rollout);
        rollouts.count() > OLDER_MAX
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

fn pool(name: &'static str, transport: Transport, pods: u32, share: u64) -> Pool {
    Pool {
        name,
        transport,
        pods,
        share,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCALE: Scale = Scale {
        nodes: 8,
        flows: 100,
        design: 1000,
        ecmp: Ecmp::Modulo,
    };

    #[test]
    fn every_pair_is_there_once_and_names_are_different() {
        let scripts = Script::all(&SCALE);
        assert_eq!(scripts.len(), 15 + 15 * 14 / 2 + 2);
        let names: std::collections::BTreeSet<_> = scripts.iter().map(|s| &s.name).collect();
        assert_eq!(names.len(), scripts.len());
    }

    #[test]
    fn controls_must_break_when_the_pool_changes_and_flows_move() {
        let must = Script::all(&SCALE).into_iter();
        let must: Vec<_> = must
            .filter(Script::must_break_controls)
            .map(|script| script.name)
            .collect();
        assert_eq!(must.len(), 8 * 3 + 2);
        assert!(must.contains(&"rollout+rehash".to_owned()));
        assert!(!must.contains(&"kill+rehash".to_owned()));
    }

    #[test]
    fn pins_are_needed_where_slots_forget_pods_that_live() {
        let scripts = Script::all(&SCALE).into_iter();
        let scripts: Vec<Script> = scripts.filter(Script::must_break_without_pins).collect();
        let [script] = &scripts[..] else {
            panic!("{scripts:?}");
        };
        assert_eq!(script.name, "rollouts");
        let (first, _) = script.changes[0];
        assert!(first + script.grace / 2 > script.closing);
    }
}
