//! Where the record of a service is found: a table of words with open addressing, read without a call.
//!
//! A lookup in one of the kernel's hash maps costs three calls, and under some mitigations each return is a forced
//! misprediction: 34 ns of a packet's 57 on the machine where this was measured, against 1 for this.
//!
//! ```text
//! word     = tag (upper 32 bits, odd) | index of the record (lower 32 bits);  0: empty;  TOMBSTONE: was one
//! position = upper bits of the key's hash, then the next ones, at most PROBES_MAX of them
//! ```
//!
//! A record is immutable while a word names it and until a grace period after; words are replaced by one aligned store.
//! So a reader sees the old record, the new one or none. The hash needs no secret: who chooses keys chooses VIPs and
//! ports of Services, and the number of probes is bounded.
//!
//! Knows nothing of maps.

use crate::abi::{ServiceKey4, ServiceKey6, capacity};

/// Words looked at before a key counts as missing. At most a quarter of the words is in use at default sizes; a longer
/// run is refused to the writer, and has not come up in tests with 32,768 keys.
pub const PROBES_MAX: u32 = 24;
/// A word that no key has any more, but that others lie behind.
pub const TOMBSTONE: u64 = 2 << 32;

const MASK: u32 = capacity::DIRECTORY - 1;
const _: () = assert!(capacity::DIRECTORY.is_power_of_two());
const SHIFT: u32 = 64 - capacity::DIRECTORY.ilog2();
/// Odd, without structure: the golden ratio, and constants of `SplitMix64`.
const FACTORS: [u64; 3] = [
    0x9e37_79b9_7f4a_7c15,
    0xbf58_476d_1ce4_e5b9,
    0x94d0_49bb_1331_11eb,
];

/// A key of a directory.
pub trait Key: Copy + Eq {
    /// A hash whose upper and lower halves are both well mixed.
    fn hash(&self) -> u64;
}

#[inline(always)]
const fn fold(h: u64) -> u64 {
    (h ^ (h >> 32)).wrapping_mul(FACTORS[0])
}

impl Key for ServiceKey4 {
    #[inline(always)]
    fn hash(&self) -> u64 {
        let port = u64::from(self.port.raw()) << 8 | u64::from(self.proto);
        fold((u64::from(self.addr.raw()) << 32 | port).wrapping_mul(FACTORS[0]))
    }
}

impl Key for ServiceKey6 {
    #[inline(always)]
    fn hash(&self) -> u64 {
        let [a, b, c, d] = self.addr.0;
        let port = u64::from(self.port.raw()) << 8 | u64::from(self.proto);
        let high = (u64::from(a.raw()) << 32 | u64::from(b.raw())).wrapping_mul(FACTORS[1]);
        let low = (u64::from(c.raw()) << 32 | u64::from(d.raw())).wrapping_mul(FACTORS[2]);
        fold(
            (high ^ (high >> 32))
                .wrapping_add(low ^ (low >> 32))
                .wrapping_add(port.wrapping_mul(FACTORS[0])),
        )
    }
}

/// The word of a key's record.
#[inline(always)]
pub const fn word(hash: u64, record: u32) -> u64 {
    (tag(hash) as u64) << 32 | record as u64
}

#[inline(always)]
const fn tag(hash: u64) -> u32 {
    hash as u32 | 1
}

/// The position of a key's `n`-th probe.
#[inline(always)]
pub const fn position(hash: u64, n: u32) -> u32 {
    ((hash >> SHIFT) as u32).wrapping_add(n) & MASK
}

/// Index of the record that a word names; `None`: it names none.
#[inline(always)]
pub const fn record(word: u64) -> Option<u32> {
    if word == 0 || word == TOMBSTONE {
        None
    } else {
        Some(word as u32)
    }
}

/// Looks a key up. `word_at` reads a position, `record_at` answers the record at an index if it has this very key.
#[inline(always)]
pub fn find<R>(
    hash: u64,
    word_at: impl Fn(u32) -> Option<u64>,
    record_at: impl Fn(u32) -> Option<R>,
) -> Option<R> {
    let tag = tag(hash);
    let mut n = 0;
    while n < PROBES_MAX {
        let word = word_at(position(hash, n))?;
        if (word >> 32) as u32 == tag
            && let Some(found) = record_at(word as u32)
        {
            return Some(found);
        }
        if word == 0 {
            return None;
        }
        n += 1;
    }
    None
}

/// The first position that a key that is not in the directory may take. `None`: its run is too long.
pub fn vacancy(hash: u64, word_at: impl Fn(u32) -> u64) -> Option<u32> {
    (0..PROBES_MAX)
        .map(|n| position(hash, n))
        .find(|at| record(word_at(*at)).is_none())
}

/// What takes the place of a word that is removed from `at`: nothing, unless another one lies behind it.
pub fn removed(at: u32, word_at: impl Fn(u32) -> u64) -> u64 {
    if word_at(at.wrapping_add(1) & MASK) == 0 {
        0
    } else {
        TOMBSTONE
    }
}

#[cfg(test)]
mod tests {
    use std::vec;
    use std::vec::Vec;

    use super::*;
    use crate::wire::{Addr6, Be16, Be32};

    struct Plain<K> {
        words: Vec<u64>,
        records: Vec<K>,
    }

    impl<K: Key> Plain<K> {
        fn new(first: K) -> Self {
            Self {
                words: vec![0; capacity::DIRECTORY as usize],
                records: vec![first],
            }
        }
        fn word_at(&self, at: u32) -> u64 {
            self.words[at as usize]
        }
        fn get(&self, key: K) -> Option<u32> {
            find(
                key.hash(),
                |at| Some(self.word_at(at)),
                |index| (self.records[index as usize] == key).then_some(index),
            )
        }
        fn insert(&mut self, key: K) {
            let at = vacancy(key.hash(), |at| self.word_at(at)).expect("a short run");
            self.words[at as usize] = word(key.hash(), self.records.len() as u32);
            self.records.push(key);
        }
        fn remove(&mut self, key: K) {
            let record = self.get(key).unwrap();
            let at = (0..PROBES_MAX)
                .map(|n| position(key.hash(), n))
                .find(|at| self.word_at(*at) == word(key.hash(), record))
                .unwrap();
            self.words[at as usize] = removed(at, |at| self.word_at(at));
        }
    }

    fn key4(n: u32) -> ServiceKey4 {
        ServiceKey4 {
            addr: Be32::new(0x0a60_0000 + n / 2),
            port: Be16::new(if n.is_multiple_of(2) { 80 } else { 443 }),
            proto: 6,
            pad: 0,
        }
    }

    fn key6(n: u32) -> ServiceKey6 {
        let zero = Be32::new(0);
        ServiceKey6 {
            addr: Addr6([Be32::new(0xfd00_0096), zero, zero, Be32::new(n / 2)]),
            port: Be16::new(if n.is_multiple_of(2) { 80 } else { 443 }),
            proto: 6,
            pad: 0,
        }
    }

    /// Also shows that runs stay short when all services that there is room for are in.
    #[test]
    fn every_key_is_found_and_no_other() {
        let mut four = Plain::new(ServiceKey4::default());
        let mut six = Plain::new(ServiceKey6::default());
        for n in 0..capacity::SERVICES {
            four.insert(key4(n));
            six.insert(key6(n));
        }
        for n in 0..capacity::SERVICES {
            assert_eq!(four.get(key4(n)), Some(n + 1));
            assert_eq!(six.get(key6(n)), Some(n + 1));
            assert_eq!(four.get(key4(n + capacity::SERVICES)), None);
            assert_eq!(six.get(key6(n + capacity::SERVICES)), None);
        }
    }

    #[test]
    fn a_removed_key_hides_none_behind_it() {
        let mut plain = Plain::new(ServiceKey4::default());
        for n in 0..capacity::SERVICES {
            plain.insert(key4(n));
        }
        for n in (0..capacity::SERVICES).step_by(3) {
            plain.remove(key4(n));
        }
        for n in 0..capacity::SERVICES {
            assert_eq!(plain.get(key4(n)).is_some(), !n.is_multiple_of(3));
        }
    }
}
