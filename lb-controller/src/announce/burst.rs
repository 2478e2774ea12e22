//! When to tell the network where a VIP is: at once, and a few times more, since nobody confirms. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// A VIP that this node announces on an interface: address, interface index, MAC.
pub type Announced = (IpAddr, u32, [u8; 6]);

/// Pauses between the packets of a burst: the first is sent at once; the others are for those that did not hear it, or
/// whose port was not forwarding yet.
const PAUSES: [Duration; 4] = [
    Duration::from_millis(200),
    Duration::from_millis(300),
    Duration::from_millis(500),
    Duration::from_secs(1),
];

/// Two nodes that differ about who announces a VIP contradict each other no more often than this.
const CONTRADICT_PAUSE: Duration = Duration::from_secs(1);

/// Bursts under way.
#[derive(Clone, Debug, Default)]
pub struct Bursts {
    announced: BTreeSet<Announced>,
    /// When to send next, and how many pauses are behind.
    due: BTreeMap<Announced, (Instant, usize)>,
    /// Claims of others that were contradicted, and when.
    contradicted: BTreeMap<Announced, (u64, Instant)>,
}

impl Bursts {
    /// What the maps held at the start: others know it already.
    pub fn adopt(&mut self, announced: &BTreeSet<Announced>) {
        self.announced.clone_from(announced);
    }

    /// What is announced from now on. What is new gets a burst, what is gone is not spoken of any more.
    pub fn set(&mut self, announced: &BTreeSet<Announced>, now: Instant) {
        self.due.retain(|one, _| announced.contains(one));
        for new in announced.difference(&self.announced) {
            self.due.insert(*new, (now, 0));
        }
        self.contradicted.retain(|one, _| announced.contains(one));
        self.announced.clone_from(announced);
    }

    /// Another node has claimed a VIP, at a time of any clock that only grows: whoever heard it is told again, soon if not at
    /// once.
    pub fn contradict(&mut self, one: Announced, claimed: u64, now: Instant) {
        let is_open = match self.contradicted.get(&one) {
            Some((last, at)) => claimed > *last && now >= *at + CONTRADICT_PAUSE,
            None => true,
        };
        if is_open && self.announced.contains(&one) {
            self.contradicted.insert(one, (claimed, now));
            self.due.insert(one, (now, 0));
        }
    }

    /// Everything is told again: others may have been told something else meanwhile.
    pub fn repeat(&mut self, now: Instant) {
        self.due = self.announced.iter().map(|one| (*one, (now, 0))).collect();
    }

    /// What to send now.
    pub fn take(&mut self, now: Instant) -> Vec<Announced> {
        let due: Vec<_> = self
            .due
            .iter()
            .filter(|(_, (at, _))| *at <= now)
            .map(|(one, (_, sent))| (*one, *sent))
            .collect();
        for (one, sent) in &due {
            match PAUSES.get(*sent) {
                Some(pause) => _ = self.due.insert(*one, (now + *pause, sent + 1)),
                None => _ = self.due.remove(one),
            }
        }
        due.into_iter().map(|(one, _)| one).collect()
    }

    /// When there will be something to send.
    pub fn next(&self) -> Option<Instant> {
        self.due.values().map(|(at, _)| *at).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(n: u8) -> Announced {
        ([192, 0, 2, n].into(), 2, [2, 0, 0, 0, 0, 1])
    }

    #[test]
    fn a_new_vip_is_told_five_times_within_two_seconds() {
        let start = Instant::now();
        let mut bursts = Bursts::default();
        bursts.adopt(&[one(9)].into());
        bursts.set(&[one(1), one(9)].into(), start);
        let mut sent = Vec::new();
        while let Some(at) = bursts.next() {
            assert_eq!(bursts.take(at), [one(1)]);
            sent.push((at - start).as_millis());
        }
        assert_eq!(sent, [0, 200, 500, 1000, 2000]);
    }

    #[test]
    fn a_vip_that_is_lost_is_not_spoken_of_any_more() {
        let now = Instant::now();
        let mut bursts = Bursts::default();
        bursts.set(&[one(1)].into(), now);
        bursts.take(now);
        bursts.set(&BTreeSet::new(), now);
        assert_eq!(bursts.next(), None);
        // And one that comes back is new.
        bursts.set(&[one(1)].into(), now);
        assert_eq!(bursts.take(now), [one(1)]);
    }

    #[test]
    fn each_claim_of_another_node_is_contradicted_and_no_two_within_a_second() {
        let start = Instant::now();
        let mut bursts = Bursts::default();
        bursts.adopt(&[one(1)].into());
        bursts.set(&[one(1)].into(), start);
        bursts.contradict(one(2), 5, start);
        assert_eq!(bursts.next(), None, "not ours");
        let mut sent = Vec::new();
        // The claim stays in sight, and a second one comes within the burst.
        for ms in 0_u64..6000 {
            let now = start + Duration::from_millis(ms);
            bursts.contradict(one(1), if ms < 700 { 5 } else { 6 }, now);
            if !bursts.take(now).is_empty() {
                sent.push(ms);
            }
        }
        assert_eq!(sent, [0, 200, 500, 1000, 1200, 1500, 2000, 3000]);
    }

    #[test]
    fn everything_can_be_told_again() {
        let now = Instant::now();
        let mut bursts = Bursts::default();
        bursts.adopt(&[one(1), one(2)].into());
        assert_eq!(bursts.next(), None);
        bursts.repeat(now);
        assert_eq!(bursts.take(now), [one(1), one(2)]);
    }
}
