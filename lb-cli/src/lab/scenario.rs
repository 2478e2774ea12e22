//! What is done to the pods, and when. Pure: a timeline is a value.

use clap::ValueEnum;

use super::objects::Phase;

/// Something that happens to a cluster while connections are open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scenario {
    /// Every pod is replaced by a new one, one after the other.
    Rollout,
    /// Every pod is replaced five times: more history than tables remember, so that it is handed off and retired.
    #[value(name = "rollout-5")]
    Rollouts,
    /// From 2 to 5 pods.
    #[value(name = "scale-2-5")]
    ScaleUp,
    /// From 5 to 3 pods.
    #[value(name = "scale-5-3")]
    ScaleDown,
    /// From 10 to 11 pods, at which the table changes its size.
    #[value(name = "scale-10-11")]
    Resize,
    /// The Service selects other pods.
    Selector,
    /// Living pods fail their readiness probes.
    Readiness,
    /// The Service points to other ports of the same pods.
    TargetPort,
    /// The table changes its size and every pod is replaced; then nothing happens, until all of it is forgotten: minutes.
    Forgetting,
    /// Twice every pod is replaced, the second time beside a flood of first packets from addresses that nobody has.
    Flood,
    /// Every balancer is drained and put to use again while every pod is replaced; then one once more, and loses its power.
    Drain,
    /// A balancer is drained fifteen times, and each time manager, agent or peer fails in another phase.
    DrainFaults,
    /// Agents are killed, and started again.
    AgentKill,
    /// Agents are asked to end, and started again.
    AgentRestart,
    /// Agents are asked to end, and another build is started.
    AgentUpgrade,
}

/// One change. Pods are numbered from 0 in the order of their making.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// New pods that the Service selects.
    Add(usize),
    /// A new pod that the Service selects, on another node than this one that it is to replace.
    Succeed(usize),
    /// Pods enter a phase.
    Phase(Vec<usize>, Phase),
    /// The Service selects the pods of [`NEXT`] instead of those of [`FIRST`].
    SwitchSelector,
    /// The Service's target ports become the other ones.
    SwitchTargetPorts,
}

/// A change and when it comes, in milliseconds from the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    /// When.
    pub(crate) at_ms: u64,
    /// What.
    pub(crate) change: Change,
}

/// Label of the pods that the Service selects at first.
pub(crate) const FIRST: &str = "web";
/// Label of the pods that it selects after a switch.
pub(crate) const NEXT: &str = "web-next";

/// Before anything changes: connections are watched, and the router moves its ECMP.
pub(crate) const CALM_MS: u64 = 1_000;
/// After the last change: new pods wait up to two seconds for a slot to become free before the table grows.
pub(crate) const TAIL_MS: u64 = 6_000;

/// Pods at the start: how many of [`FIRST`] in each step, as sizes of tables depend on the way there, and how many of
/// [`NEXT`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Start {
    /// Pods of [`FIRST`] after each step.
    pub(crate) first: Vec<usize>,
    /// Pods of [`NEXT`], each on another node than the pod of [`FIRST`] with the same number.
    pub(crate) next: usize,
}

impl Scenario {
    /// How the cluster is set up.
    pub(crate) fn start(self) -> Start {
        let (first, next) = match self {
            Self::Rollout
            | Self::Rollouts
            | Self::Readiness
            | Self::TargetPort
            | Self::Flood
            | Self::Drain
            | Self::DrainFaults
            | Self::AgentKill
            | Self::AgentRestart
            | Self::AgentUpgrade => (vec![6], 0),
            Self::ScaleUp => (vec![2], 0),
            Self::ScaleDown => (vec![5], 0),
            // 5 pods get 509 rows, which are kept up to 10 pods; the eleventh needs 2039.
            Self::Resize | Self::Forgetting => (vec![5, 10], 0),
            Self::Selector => (vec![5], 5),
        };
        Start { first, next }
    }

    /// What happens; empty for those that are about agents, and for flood and drain, which have their own ways.
    pub(crate) fn timeline(self) -> Vec<Step> {
        let at = CALM_MS;
        match self {
            Self::Rollout => rollout(at, 0..6),
            Self::Rollouts => rollout(at, 0..5 * 6),
            Self::ScaleUp => vec![step(at, Change::Add(3))],
            Self::ScaleDown => leave(at, vec![3, 4]),
            Self::Resize => vec![step(at, Change::Add(1))],
            Self::Selector => vec![step(at, Change::SwitchSelector)],
            Self::Readiness => vec![
                step(at, Change::Phase(vec![0], Phase::Unready)),
                step(at + 700, Change::Phase(vec![2], Phase::Unready)),
                step(at + 1_400, Change::Phase(vec![4], Phase::Unready)),
                step(at + 4_000, Change::Phase(vec![2], Phase::Ready)),
            ],
            Self::TargetPort => vec![step(at, Change::SwitchTargetPorts)],
            Self::Forgetting => {
                let mut steps = vec![step(at, Change::Add(1))];
                steps.extend(rollout(at + 3_500, 0..11));
                steps
            }
            Self::Flood
            | Self::Drain
            | Self::DrainFaults
            | Self::AgentKill
            | Self::AgentRestart
            | Self::AgentUpgrade => Vec::new(),
        }
    }

    /// It is about agents, not about pods.
    pub(crate) fn is_about_agents(self) -> bool {
        match self {
            Self::AgentKill | Self::AgentRestart | Self::AgentUpgrade => true,
            Self::Rollout
            | Self::Rollouts
            | Self::ScaleUp
            | Self::ScaleDown
            | Self::Resize
            | Self::Selector
            | Self::Readiness
            | Self::TargetPort
            | Self::Forgetting
            | Self::Flood
            | Self::Drain
            | Self::DrainFaults => false,
        }
    }

    /// The name on the command line.
    pub(crate) fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// The story of plain `lbctl lab`, with 6 pods at the start: a rollout, three pods more, three pods less.
pub(crate) fn demonstration() -> Vec<Step> {
    let mut steps = rollout(CALM_MS, 0..6);
    let after = |steps: &[Step]| steps.last().map_or(0, |step| step.at_ms) + 3_500;
    steps.push(step(after(&steps), Change::Add(3)));
    steps.extend(leave(after(&steps), vec![12, 13, 14]));
    steps
}

/// A rollout of pods with these numbers, after the calm.
pub(crate) fn replacing(old: std::ops::Range<usize>) -> Vec<Step> {
    rollout(CALM_MS, old)
}

/// Each of the old pods gets a successor, is told to end, and leaves.
fn rollout(at_ms: u64, old: std::ops::Range<usize>) -> Vec<Step> {
    let mut steps = Vec::new();
    for (at, pod) in (at_ms..).step_by(700).zip(old) {
        steps.push(step(at, Change::Succeed(pod)));
        steps.push(step(at + 250, Change::Phase(vec![pod], Phase::Terminating)));
        steps.push(step(at + 500, Change::Phase(vec![pod], Phase::Gone)));
    }
    steps
}

fn leave(at_ms: u64, pods: Vec<usize>) -> Vec<Step> {
    vec![
        step(at_ms, Change::Phase(pods.clone(), Phase::Terminating)),
        step(at_ms + 500, Change::Phase(pods, Phase::Gone)),
    ]
}

fn step(at_ms: u64, change: Change) -> Step {
    Step { at_ms, change }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_timelines() -> impl Iterator<Item = (usize, Vec<Step>)> {
        Scenario::value_variants()
            .iter()
            .map(|scenario| {
                let start = scenario.start();
                (
                    start.first.last().copied().unwrap() + start.next,
                    scenario.timeline(),
                )
            })
            .chain([(6, demonstration())])
    }

    #[test]
    fn steps_are_in_order() {
        for (_, steps) in all_timelines() {
            assert!(steps.is_sorted_by_key(|step| step.at_ms), "{steps:?}");
        }
    }

    #[test]
    fn only_pods_that_exist_change() {
        for (mut pods, steps) in all_timelines() {
            for step in steps {
                match step.change {
                    Change::Add(count) => pods += count,
                    Change::Succeed(old) => {
                        assert!(old < pods);
                        pods += 1;
                    }
                    Change::Phase(changed, _) => assert!(changed.iter().all(|pod| *pod < pods)),
                    Change::SwitchSelector | Change::SwitchTargetPorts => {}
                }
            }
        }
    }
}
