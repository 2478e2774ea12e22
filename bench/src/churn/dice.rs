//! Chance that repeats: numbers from a seed and a purpose, so that adding a use of chance moves no other.

/// What chance decides about. Each purpose has numbers of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Purpose {
    /// What a flow is: its Service, its kind, its start.
    Flow = 1,
    /// What a client sends: sequence numbers, times to think.
    Client,
    /// What a pod does.
    Pod,
    /// Delay, loss and order of packets.
    Network,
    /// When who hears what of the API server.
    Views,
    /// Which pods and nodes an event is about.
    Script,
    /// How the router spreads flows.
    Router,
    /// When agents do what nobody has told them, and how long what they tell each other is under way.
    Agents,
}

/// A generator (`SplitMix64`; Steele, Lea and Flood, OOPSLA 2014).
#[derive(Clone, Debug)]
pub(super) struct Dice(u64);

impl Dice {
    /// The numbers of a purpose under a seed.
    pub(super) fn new(seed: u64, purpose: Purpose) -> Self {
        Self::of(seed, purpose, 0)
    }

    /// Those of one thing among many, such as a flow: they do not depend on what happens to others.
    pub(super) fn of(seed: u64, purpose: Purpose, thing: u64) -> Self {
        let start = mix(seed ^ mix(purpose as u64 ^ mix(thing)));
        Self(start)
    }

    /// Any number.
    pub(super) fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `limit`; 0 if that is 0.
    pub(super) fn below(&mut self, limit: u64) -> u64 {
        ((u128::from(self.word()) * u128::from(limit)) >> 64) as u64
    }

    /// A number from `low` to `high`, both included.
    pub(super) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low) + 1)
    }

    /// Yes so many times in a million.
    pub(super) fn chance(&mut self, per_million: u64) -> bool {
        self.below(1_000_000) < per_million
    }

    /// Takes `count` of `from`, in the order of a shuffle.
    pub(super) fn pick<T: Clone>(&mut self, from: &[T], count: usize) -> Vec<T> {
        let mut rest = from.to_vec();
        let count = count.min(rest.len());
        for at in 0..count {
            let other = at + self.below((rest.len() - at) as u64) as usize;
            rest.swap(at, other);
        }
        rest.truncate(count);
        rest
    }
}

/// The finisher of `SplitMix64`.
pub(super) const fn mix(word: u64) -> u64 {
    let mut z = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_and_purpose_give_the_same_numbers_and_others_give_others() {
        let words = |seed, purpose, thing| {
            let mut dice = Dice::of(seed, purpose, thing);
            [dice.word(), dice.word(), dice.word()]
        };
        let first = words(1, Purpose::Flow, 7);
        assert_eq!(words(1, Purpose::Flow, 7), first);
        for other in [
            words(2, Purpose::Flow, 7),
            words(1, Purpose::Pod, 7),
            words(1, Purpose::Flow, 8),
        ] {
            assert_ne!(other, first);
        }
    }

    #[test]
    fn numbers_keep_their_bounds_and_reach_them() {
        let mut dice = Dice::new(3, Purpose::Network);
        let seen: std::collections::BTreeSet<u64> = (0..1000).map(|_| dice.between(5, 9)).collect();
        assert_eq!(seen, (5..=9).collect());
        assert_eq!(dice.below(0), 0);
    }

    #[test]
    fn a_pick_takes_nobody_twice() {
        let mut dice = Dice::new(3, Purpose::Script);
        let mut picked = dice.pick(&[1, 2, 3, 4, 5], 4);
        picked.sort_unstable();
        picked.dedup();
        assert_eq!(picked.len(), 4);
        assert_eq!(dice.pick(&[1, 2], 9).len(), 2);
    }
}
