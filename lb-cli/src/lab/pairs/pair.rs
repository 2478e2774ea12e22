//! Which pairs of events there are, in which order a selection takes them, and what follows from a seed. Pure.

use std::fmt;
use std::str::FromStr;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::event::Event;

/// Two different events at the same instant; the one that is listed first comes first, so that each pair is there once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub(crate) struct Pair(Event, Event);

/// From one pair of a selection to the next: prime to the number of pairs, so that all have their turn, and far enough that
/// neighbours differ in both events.
const STRIDE: usize = 37;

/// The words name no pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NoPair(String);

impl Pair {
    /// The pair of two different events.
    fn of(one: Event, other: Event) -> Option<Self> {
        (one != other).then(|| Self(one.min(other), one.max(other)))
    }

    /// Every pair.
    pub(crate) fn all() -> Vec<Self> {
        let events = Event::value_variants();
        let mut pairs = Vec::new();
        for (at, one) in events.iter().enumerate() {
            pairs.extend(
                events[at + 1..]
                    .iter()
                    .filter_map(|other| Self::of(*one, *other)),
            );
        }
        pairs
    }

    /// Every pair once, from one that the seed names.
    pub(crate) fn rotation(seed: u64) -> Vec<Self> {
        let all = Self::all();
        let count = all.len();
        let first = (seed % count as u64) as usize;
        (0..count)
            .map(|turn| all[(first + turn * STRIDE) % count])
            .collect()
    }

    /// Both events.
    pub(crate) fn events(self) -> [Event; 2] {
        [self.0, self.1]
    }

    /// The seed of a run of this pair, from the seed of the command: a pair runs alike alone and among others (FNV-1a).
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

impl fmt::Display for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{}", self.0, self.1)
    }
}

impl FromStr for Pair {
    type Err = NoPair;

    fn from_str(text: &str) -> Result<Self, NoPair> {
        let no_pair = || NoPair(text.to_owned());
        let (one, other) = text.split_once(',').ok_or_else(no_pair)?;
        let event = |name: &str| Event::from_str(name.trim(), false).map_err(|_| no_pair());
        Self::of(event(one)?, event(other)?).ok_or_else(no_pair)
    }
}

impl fmt::Display for NoPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = Event::value_variants().iter().map(|e| e.name()).collect();
        write!(
            f,
            "`{}` is no pair: name two different events with a comma between them, of {}",
            self.0,
            names.join(", ")
        )
    }
}

impl std::error::Error for NoPair {}

impl From<Pair> for String {
    fn from(pair: Pair) -> Self {
        pair.to_string()
    }
}

impl TryFrom<String> for Pair {
    type Error = NoPair;

    fn try_from(text: String) -> Result<Self, NoPair> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_pair_is_there_once() {
        let pairs = Pair::all();
        assert_eq!(pairs.len(), 14 * 13 / 2);
        assert_eq!(pairs.iter().collect::<BTreeSet<_>>().len(), pairs.len());
    }

    #[test]
    fn a_rotation_begins_where_the_seed_says_and_gives_every_pair_its_turn() {
        let all: BTreeSet<Pair> = Pair::all().into_iter().collect();
        let mut firsts = BTreeSet::new();
        for seed in 0..all.len() as u64 {
            let rotation = Pair::rotation(seed);
            firsts.insert(rotation[0]);
            assert_eq!(rotation.into_iter().collect::<BTreeSet<_>>(), all);
        }
        assert_eq!(firsts, all);
    }

    #[test]
    fn a_pair_is_read_in_any_order_and_never_of_one_event() {
        let pair: Pair = "join,rollout".parse().unwrap();
        assert_eq!(pair.to_string(), "rollout,join");
        assert_eq!(pair.to_string().parse(), Ok(pair));
        assert!("join,join".parse::<Pair>().is_err());
        assert!("join".parse::<Pair>().is_err());
        assert!("join,flood".parse::<Pair>().is_err());
    }

    #[test]
    fn runs_have_seeds_of_their_own() {
        let pairs = Pair::all();
        let seeds = pairs
            .iter()
            .flat_map(|pair| (0..3).map(|run| pair.seed(1, run)));
        assert_eq!(seeds.collect::<BTreeSet<_>>().len(), 3 * pairs.len());
    }
}
