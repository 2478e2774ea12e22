//! What happens when events meet, and when. Pure: a timeline is a value, and follows from a seed.

use std::fmt;

use clap::ValueEnum;
use rand::Rng;

use crate::lab::scenario::{CALM_MS, Change, Scenario, Start};

/// Something that happens to a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Event {
    /// Every pod is replaced by a new one, one after the other.
    Rollout,
    /// Three pods more.
    ScaleUp,
    /// Two pods less.
    ScaleDown,
    /// From 10 to 13 pods, between which the table changes its size.
    Resize,
    /// The Service selects other pods.
    Selector,
    /// The Service points to other ports of the same pods.
    TargetPort,
    /// Living pods fail their readiness probes.
    Readiness,
    /// The agents of all nodes with pods are asked to end at the same time, and started again.
    AgentRestart,
    /// A balancer loses power, and the router notices.
    BalancerKill,
    /// A balancer that was not there starts, and the router adds it when its agent is ready.
    Join,
    /// The router moves flows between balancers all the time.
    Rehash,
    /// Gossip and questions of one node get lost while everything else goes on.
    Suspicion,
    /// The agent of one node sees no change of any object for some seconds.
    Partition,
    /// A node with pods loses power: flows of its pods may die.
    NodeCrash,
}

/// The balancer that loses power.
const KILLED: &str = "lb-1";
/// The balancer that joins.
pub(super) const JOINING: &str = "lb-2";
/// The node that nobody hears.
const SUSPECTED: &str = "node-2";
/// The node whose agent sees no changes; a balancer, too.
const PARTITIONED: &str = "node-1";
/// The node that loses power.
const CRASHED: &str = "node-3";
/// Machines that the router sends packets to, so that one is left whichever events meet: two without pods, and a node.
pub(super) const BALANCERS: u8 = 3;

/// From the loss of a balancer's power until the router sends nothing there: three missed hellos of BFD at 100 ms.
const WITHDRAWN_AFTER_MS: u64 = 300;
/// How long agents are away when they restart.
const AGENT_AWAY_MS: u64 = 1_500;
/// How long gossip gets lost: from a suspicion to somewhat longer than it takes to count as down (two seconds).
const UNHEARD_MS: std::ops::Range<u64> = 1_000..5_000;
/// How long an agent sees no changes.
const PARTITIONED_MS: std::ops::Range<u64> = 2_000..5_000;
/// How long, and how often, the router moves flows when that is the event.
const REHASHED_MS: u64 = 4_000;
const REHASH_PAUSE_MS: std::ops::Range<u64> = 50..200;
/// How often it does otherwise: as in scenarios.
const MOVE_PAUSE_MS: std::ops::Range<u64> = 150..1_200;
/// The events of a meeting come so much later, or earlier, than each other at most.
const JITTER_MS: u64 = 50;
/// After the last deed of any event: longer than from a suspicion to down, and than new pods wait for a slot.
const TAIL_MS: u64 = 3_000;

/// A step of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Deed {
    /// Pods or a Service change.
    Change(Change),
    /// The agents of all nodes with pods are asked to end.
    EndAgents,
    /// They are started again.
    StartAgents,
    /// A machine is gone from one instant to the next.
    LosePower(&'static str),
    /// The router sends nothing to a balancer any more.
    Withdraw(&'static str),
    /// A balancer starts.
    Join(&'static str),
    /// The router takes other paths among its balancers.
    MoveEcmp,
    /// Gossip and questions from and to a node get lost.
    Mute(&'static str),
    /// They pass again.
    Unmute(&'static str),
    /// The agent of a machine sees what there was, and no changes.
    Blind(&'static str),
    /// It can see again.
    See(&'static str),
}

/// A deed and when it comes, in milliseconds from the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Moment {
    /// When.
    pub(crate) at_ms: u64,
    /// What.
    pub(crate) deed: Deed,
}

impl Event {
    /// The name on the command line.
    pub(crate) fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// The deeds, from the event's own beginning.
    fn deeds(self, random: &mut impl Rng) -> Vec<Moment> {
        match self {
            Self::Rollout => changes(Scenario::Rollout),
            Self::ScaleUp => changes(Scenario::ScaleUp),
            Self::ScaleDown => changes(Scenario::ScaleDown),
            // More than the scenario adds, so that the size changes beside a scale-down, too.
            Self::Resize => vec![at(0, Deed::Change(Change::Add(3)))],
            Self::Selector => changes(Scenario::Selector),
            Self::TargetPort => changes(Scenario::TargetPort),
            Self::Readiness => changes(Scenario::Readiness),
            Self::AgentRestart => {
                vec![at(0, Deed::EndAgents), at(AGENT_AWAY_MS, Deed::StartAgents)]
            }
            Self::BalancerKill => vec![
                at(0, Deed::LosePower(KILLED)),
                at(WITHDRAWN_AFTER_MS, Deed::Withdraw(KILLED)),
            ],
            Self::Join => vec![at(0, Deed::Join(JOINING))],
            Self::Rehash => moves(0, REHASHED_MS, REHASH_PAUSE_MS, random),
            Self::Suspicion => vec![
                at(0, Deed::Mute(SUSPECTED)),
                at(random.random_range(UNHEARD_MS), Deed::Unmute(SUSPECTED)),
            ],
            Self::Partition => vec![
                at(0, Deed::Blind(PARTITIONED)),
                at(random.random_range(PARTITIONED_MS), Deed::See(PARTITIONED)),
            ],
            Self::NodeCrash => vec![at(0, Deed::LosePower(CRASHED))],
        }
    }

    /// Pods that it needs at the start.
    fn start(self) -> Start {
        match self {
            Self::Resize => Scenario::Resize.start(),
            Self::Selector => Start {
                first: Scenario::Rollout.start().first,
                ..Scenario::Selector.start()
            },
            Self::Rollout
            | Self::ScaleUp
            | Self::ScaleDown
            | Self::TargetPort
            | Self::Readiness
            | Self::AgentRestart
            | Self::BalancerKill
            | Self::Join
            | Self::Rehash
            | Self::Suspicion
            | Self::Partition
            | Self::NodeCrash => Scenario::Rollout.start(),
        }
    }
}

/// Pods at the start of events that meet: enough for each.
pub(super) fn start(events: impl Iterator<Item = Event>) -> Start {
    let pods = |start: &Start| start.first.last().copied();
    let none = Start {
        first: Vec::new(),
        next: 0,
    };
    events.map(Event::start).fold(none, |one, other| Start {
        next: one.next.max(other.next),
        first: if pods(&other) > pods(&one) {
            other.first
        } else {
            one.first
        },
    })
}

/// The deeds of events that begin at the same instant, give or take some milliseconds, after a calm second; the router
/// moves flows all the while. In order.
pub(super) fn timeline(events: impl Iterator<Item = Event>, random: &mut impl Rng) -> Vec<Moment> {
    let mut all = Vec::new();
    for event in events {
        let begin = CALM_MS + random.random_range(0..=JITTER_MS);
        let deeds = event.deeds(random).into_iter();
        all.extend(deeds.map(|Moment { at_ms, deed }| at(begin + at_ms, deed)));
    }
    let end = all.iter().map(|moment| moment.at_ms).max().unwrap_or(0) + TAIL_MS;
    all.extend(moves(0, end, MOVE_PAUSE_MS, random));
    all.sort_by_key(|moment| moment.at_ms);
    all
}

/// What a scenario does, without the calm before it.
fn changes(scenario: Scenario) -> Vec<Moment> {
    let steps = scenario.timeline().into_iter();
    steps
        .map(|step| at(step.at_ms - CALM_MS, Deed::Change(step.change)))
        .collect()
}

/// Moves of the router's ECMP up to a moment; the last is exactly then.
fn moves(
    from_ms: u64,
    to_ms: u64,
    pause_ms: std::ops::Range<u64>,
    random: &mut impl Rng,
) -> Vec<Moment> {
    let mut moments = Vec::new();
    let mut now = from_ms + random.random_range(pause_ms.clone());
    while now < to_ms {
        moments.push(at(now, Deed::MoveEcmp));
        now += random.random_range(pause_ms.clone());
    }
    moments.push(at(to_ms, Deed::MoveEcmp));
    moments
}

fn at(at_ms: u64, deed: Deed) -> Moment {
    Moment { at_ms, deed }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::super::meeting::Meeting;
    use super::*;

    fn all_timelines() -> impl Iterator<Item = (Vec<Event>, Vec<Moment>)> {
        let all = Meeting::pairs().into_iter().chain(Meeting::triples());
        all.zip(0..).map(|(meeting, seed)| {
            let moments = timeline(meeting.events(), &mut StdRng::seed_from_u64(seed));
            (meeting.events().collect(), moments)
        })
    }

    #[test]
    fn moments_are_in_order_and_end_with_a_quiet_while() {
        for (events, moments) in all_timelines() {
            assert!(
                moments.is_sorted_by_key(|moment| moment.at_ms),
                "{events:?}"
            );
            let last = moments.iter().rfind(|moment| moment.deed != Deed::MoveEcmp);
            let last = last.map_or(0, |moment| moment.at_ms);
            assert!(
                moments.last().unwrap().at_ms >= last + TAIL_MS,
                "{events:?}"
            );
        }
    }

    #[test]
    fn all_events_begin_within_the_jitter() {
        for (events, moments) in all_timelines() {
            if events.contains(&Event::Rehash) {
                continue;
            }
            let own = moments
                .iter()
                .filter(|moment| moment.deed != Deed::MoveEcmp);
            let begun = own.filter(|moment| moment.at_ms <= CALM_MS + JITTER_MS);
            assert!(begun.count() >= events.len(), "{events:?}");
        }
    }

    #[test]
    fn a_seed_gives_the_same_timeline_again_and_another_one_does_not() {
        let events = [Event::Suspicion, Event::Rehash];
        let of = |seed| timeline(events.into_iter(), &mut StdRng::seed_from_u64(seed));
        assert_eq!(of(7), of(7));
        assert_ne!(of(7), of(8));
    }

    #[test]
    fn only_pods_that_exist_change() {
        for (events, moments) in all_timelines() {
            let Start { first, next } = start(events.iter().copied());
            let mut pods = first.last().unwrap() + next;
            for moment in moments {
                match moment.deed {
                    Deed::Change(Change::Add(count)) => pods += count,
                    Deed::Change(Change::Succeed(old)) => {
                        assert!(old < pods, "{events:?}");
                        pods += 1;
                    }
                    Deed::Change(Change::Phase(changed, _)) => {
                        assert!(changed.iter().all(|pod| *pod < pods), "{events:?}");
                    }
                    _ => {}
                }
            }
        }
    }

    #[test]
    fn whatever_is_taken_from_a_living_machine_is_given_back() {
        for (events, moments) in all_timelines() {
            let count =
                |of: fn(&Deed) -> bool| moments.iter().filter(|moment| of(&moment.deed)).count();
            let (ended, started) = (
                count(|deed| *deed == Deed::EndAgents),
                count(|deed| *deed == Deed::StartAgents),
            );
            assert_eq!(ended, started, "{events:?}");
            let (muted, unmuted) = (
                count(|deed| matches!(deed, Deed::Mute(_))),
                count(|deed| matches!(deed, Deed::Unmute(_))),
            );
            assert_eq!(muted, unmuted, "{events:?}");
            let (blind, see) = (
                count(|deed| matches!(deed, Deed::Blind(_))),
                count(|deed| matches!(deed, Deed::See(_))),
            );
            assert_eq!(blind, see, "{events:?}");
        }
    }
}
