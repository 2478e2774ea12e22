//! Which events can meet, in which order a selection takes their meetings, and what follows from a seed. Pure.

use std::fmt;
use std::str::FromStr;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::event::Event;

/// Two or three different events at the same instant, in the order in which they are listed, so that each meeting is there
/// once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub(crate) struct Meeting {
    first: Event,
    second: Event,
    third: Option<Event>,
}

/// From one pair of a selection to the next: prime to the number of pairs, so that all have their turn, and far enough that
/// neighbours differ in both events.
const PAIR_STRIDE: usize = 37;
/// The same for triples: neighbours differ in all three events.
const TRIPLE_STRIDE: usize = 40;
/// Of so many meetings of a mixed selection, the last is a triple.
const TRIPLE_EVERY: usize = 3;

/// Changes of the pool, or of who is asked for, by which other pods get a slot's flows.
const MOVING: [Event; 7] = [
    Event::Rollout,
    Event::ScaleUp,
    Event::ScaleDown,
    Event::Resize,
    Event::Selector,
    Event::TargetPort,
    Event::Readiness,
];
/// What makes flows meet other balancers, or lose their pods, at the same time: with a change of the pool the worst pairs.
const UPSETTING: [Event; 3] = [Event::Rehash, Event::BalancerKill, Event::NodeCrash];
/// What makes agents know less meanwhile.
const CONFUSING: [Event; 3] = [Event::AgentRestart, Event::Suspicion, Event::Partition];

/// The words name no meeting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NoMeeting(String);

impl Meeting {
    /// The meeting of two or three different events.
    fn of(events: &[Event]) -> Option<Self> {
        let mut sorted = events.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        if sorted.len() != events.len() {
            return None;
        }
        let (first, second, third) = match sorted[..] {
            [first, second] => (first, second, None),
            [first, second, third] => (first, second, Some(third)),
            _ => return None,
        };
        Some(Self {
            first,
            second,
            third,
        })
    }

    /// Every pair.
    pub(crate) fn pairs() -> Vec<Self> {
        let events = Event::value_variants();
        let mut pairs = Vec::new();
        for (at, one) in events.iter().enumerate() {
            let others = events[at + 1..].iter();
            pairs.extend(others.filter_map(|other| Self::of(&[*one, *other])));
        }
        pairs
    }

    /// The worst pairs, each with every event that makes agents know less meanwhile.
    pub(crate) fn triples() -> Vec<Self> {
        let mut triples = Vec::new();
        for moving in MOVING {
            for upsetting in UPSETTING {
                let all = CONFUSING.map(|confusing| Self::of(&[moving, upsetting, confusing]));
                triples.extend(all.into_iter().flatten());
            }
        }
        triples
    }

    /// Every meeting of a selection once, from one that the seed names.
    pub(crate) fn rotation(selection: Selection, seed: u64) -> Vec<Self> {
        let pairs = || turns(&Self::pairs(), PAIR_STRIDE, seed);
        let triples = || turns(&Self::triples(), TRIPLE_STRIDE, seed);
        match selection {
            Selection::Pairs => pairs(),
            Selection::Triples => triples(),
            Selection::Both => {
                let (mut pairs, mut triples) = (pairs().into_iter(), triples().into_iter());
                let mut mixed = Vec::new();
                while pairs.len() + triples.len() > 0 {
                    mixed.extend(pairs.by_ref().take(TRIPLE_EVERY - 1));
                    mixed.extend(triples.next());
                }
                mixed
            }
        }
    }

    /// Its events.
    pub(crate) fn events(self) -> impl Iterator<Item = Event> {
        [self.first, self.second].into_iter().chain(self.third)
    }

    /// The seed of a run of this meeting, from the seed of the command: it runs alike alone and among others (FNV-1a).
    pub(crate) fn seed(self, seed: u64, run: u32) -> u64 {
        let name = self.to_string();
        let bytes = name
            .bytes()
            .chain(seed.to_le_bytes())
            .chain(run.to_le_bytes());
        bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        })
    }
}

/// What a selection takes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Selection {
    Pairs,
    Triples,
    Both,
}

/// All of them once, from one that the seed names, a stride apart.
fn turns(all: &[Meeting], stride: usize, seed: u64) -> Vec<Meeting> {
    let count = all.len();
    let first = (seed % count as u64) as usize;
    (0..count)
        .map(|turn| all[(first + turn * stride) % count])
        .collect()
}

impl fmt::Display for Meeting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.events().map(Event::name).collect();
        f.write_str(&names.join(","))
    }
}

impl FromStr for Meeting {
    type Err = NoMeeting;

    fn from_str(text: &str) -> Result<Self, NoMeeting> {
        let event = |name: &str| Event::from_str(name.trim(), false).ok();
        let events: Option<Vec<Event>> = text.split(',').map(event).collect();
        let meeting = events.and_then(|events| Self::of(&events));
        meeting.ok_or_else(|| NoMeeting(text.to_owned()))
    }
}

impl fmt::Display for NoMeeting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = Event::value_variants().iter().map(|e| e.name()).collect();
        write!(
            f,
            "`{}` names no events that meet: name two or three different ones with commas between them, of {}",
            self.0,
            names.join(", ")
        )
    }
}

impl std::error::Error for NoMeeting {}

impl From<Meeting> for String {
    fn from(meeting: Meeting) -> Self {
        meeting.to_string()
    }
}

impl TryFrom<String> for Meeting {
    type Error = NoMeeting;

    fn try_from(text: String) -> Result<Self, NoMeeting> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn set(of: Vec<Meeting>) -> BTreeSet<Meeting> {
        of.into_iter().collect()
    }

    #[test]
    fn every_pair_and_every_triple_is_there_once() {
        for (meetings, count) in [
            (Meeting::pairs(), 14 * 13 / 2),
            (Meeting::triples(), 7 * 3 * 3),
        ] {
            assert_eq!(meetings.len(), count);
            assert_eq!(set(meetings).len(), count);
        }
    }

    #[test]
    fn a_rotation_begins_where_the_seed_says_and_gives_every_meeting_its_turn() {
        for (selection, all) in [
            (Selection::Pairs, Meeting::pairs()),
            (Selection::Triples, Meeting::triples()),
        ] {
            let mut firsts = BTreeSet::new();
            for seed in 0..all.len() as u64 {
                let rotation = Meeting::rotation(selection, seed);
                firsts.insert(rotation[0]);
                assert_eq!(set(rotation), set(all.clone()));
            }
            assert_eq!(firsts, set(all));
        }
    }

    #[test]
    fn a_mixed_rotation_has_every_meeting_and_a_triple_in_every_third_place() {
        let mixed = Meeting::rotation(Selection::Both, 7);
        let is_triple: Vec<bool> = mixed[..6].iter().map(|it| it.third.is_some()).collect();
        assert_eq!(is_triple, [false, false, true, false, false, true]);
        let all = Meeting::pairs().into_iter().chain(Meeting::triples());
        assert_eq!(set(mixed), all.collect());
    }

    #[test]
    fn a_meeting_is_read_in_any_order_and_never_of_the_same_event_twice() {
        for (text, shown) in [
            ("join,rollout", "rollout,join"),
            (
                "rollout,balancer-kill,agent-restart",
                "rollout,agent-restart,balancer-kill",
            ),
        ] {
            let meeting: Meeting = text.parse().unwrap();
            assert_eq!(meeting.to_string(), shown);
            assert_eq!(meeting.to_string().parse(), Ok(meeting));
        }
        for text in ["join", "join,join", "join,rollout,join", "join,flood", ""] {
            assert!(text.parse::<Meeting>().is_err(), "{text}");
        }
        assert!("join,rollout,rehash,readiness".parse::<Meeting>().is_err());
    }

    #[test]
    fn runs_have_seeds_of_their_own() {
        let all = Meeting::rotation(Selection::Both, 0);
        let seeds = all
            .iter()
            .flat_map(|meeting| (0..3).map(|run| meeting.seed(1, run)));
        assert_eq!(seeds.collect::<BTreeSet<_>>().len(), 3 * all.len());
    }
}
