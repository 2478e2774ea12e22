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
use crate::wire::Be16;

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
    /// The key as it lies in memory, in words that its alignment allows to load.
    type Words: Copy;

    /// Those words. Comparing them takes half as many instructions as comparing fields.
    fn words(&self) -> Self::Words;
    /// Whether a record's words are these.
    fn same(ours: &Self::Words, record: &Self::Words) -> bool;
    /// A hash whose upper and lower halves are both well mixed.
    fn hash(words: &Self::Words) -> u64;
}

/// Port, protocol and padding of a key, as they lie in memory.
#[inline(always)]
fn tail(port: Be16, proto: u8) -> u32 {
    const { assert!(cfg!(target_endian = "little")) };
    u32::from(port.raw()) | u32::from(proto) << 16
}

#[inline(always)]
const fn fold(h: u64) -> u64 {
    (h ^ (h >> 32)).wrapping_mul(FACTORS[0])
}

impl Key for ServiceKey4 {
    type Words = [u32; 2];

    #[inline(always)]
    fn words(&self) -> [u32; 2] {
        [self.addr.raw(), tail(self.port, self.proto)]
    }

    #[inline(always)]
    fn same(ours: &[u32; 2], record: &[u32; 2]) -> bool {
        ours[0] == record[0] && ours[1] == record[1]
    }

    #[inline(always)]
    fn hash([addr, tail]: &[u32; 2]) -> u64 {
        fold((u64::from(*tail) << 32 | u64::from(*addr)).wrapping_mul(FACTORS[0]))
    }
}

impl Key for ServiceKey6 {
    type Words = [u32; 5];

    #[inline(always)]
    fn words(&self) -> [u32; 5] {
        let [a, b, c, d] = self.addr.0;
        let tail = tail(self.port, self.proto);
        [a.raw(), b.raw(), c.raw(), d.raw(), tail]
    }

    #[inline(always)]
    fn same(ours: &[u32; 5], record: &[u32; 5]) -> bool {
        // The lower half first: VIPs of one prefix differ there.
        ours[3] == record[3]
            && ours[4] == record[4]
            && ours[2] == record[2]
            && ours[1] == record[1]
            && ours[0] == record[0]
    }

    #[inline(always)]
    fn hash([a, b, c, d, tail]: &[u32; 5]) -> u64 {
        let high = (u64::from(*a) << 32 | u64::from(*b)).wrapping_mul(FACTORS[1]);
        let low = (u64::from(*c) << 32 | u64::from(*d)).wrapping_mul(FACTORS[2]);
        fold(
            (high ^ (high >> 32))
                .wrapping_add(low ^ (low >> 32))
                .wrapping_add(u64::from(*tail).wrapping_mul(FACTORS[0])),
        )
    }
}

/// The hash of a key, see [`Key::hash`].
pub fn hash<K: Key>(key: &K) -> u64 {
    K::hash(&key.words())
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

/// Looks a key up. `word_at` reads a position, which is below [`capacity::DIRECTORY`]; `record_at` answers the record at an index if it has this very key.
#[inline(always)]
pub fn find<R>(
    hash: u64,
    word_at: impl Fn(u32) -> u64,
    record_at: impl Fn(u32) -> Option<R>,
) -> Option<R> {
    let tag = tag(hash);
    let mut n = 0;
    while n < PROBES_MAX {
        let word = word_at(position(hash, n));
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
    use crate::wire::{Addr6, Be32};

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
                hash(&key),
                |at| self.word_at(at),
                |index| (self.records[index as usize] == key).then_some(index),
            )
        }
        fn insert(&mut self, key: K) {
            let at = vacancy(hash(&key), |at| self.word_at(at)).expect("a short run");
            self.words[at as usize] = word(hash(&key), self.records.len() as u32);
            self.records.push(key);
        }
        fn remove(&mut self, key: K) {
            let record = self.get(key).unwrap();
            let at = (0..PROBES_MAX)
                .map(|n| position(hash(&key), n))
                .find(|at| self.word_at(*at) == word(hash(&key), record))
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
