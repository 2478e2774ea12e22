//! Shapes: everything that a table depends on, and when a service gets another table size.
//!
//! Knows nothing of pods: slots are numbers here.

use std::hash::Hasher;
use std::sync::Arc;

use lb_ebpf::abi::{SLOTS_MAX, hash_fields};
use siphasher::sip::SipHasher24;

use super::maglev;

/// The table sizes there are. Primes, so that every step is a permutation, each about twice the one before.
pub const LADDER: [u32; 12] = [
    509, 1021, 2039, 4093, 8191, 16381, 32749, 65537, 131_071, 262_139, 524_287, 1_048_573,
];

/// Rows per slot that a newly chosen size has at least.
pub const ROWS_PER_SLOT: u32 = 100;
/// A size is kept until there are fewer rows per slot than this …
pub const ROWS_PER_SLOT_MIN: u32 = 50;
/// … or more than this.
pub const ROWS_PER_SLOT_MAX: u32 = 400;

/// Number of rows of a table: one of the [`LADDER`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct TableSize(u32);

impl TableSize {
    /// The size for a table that is new: the smallest with [`ROWS_PER_SLOT`].
    pub fn choose(slots: u16) -> Self {
        let wanted = u32::from(slots) * ROWS_PER_SLOT;
        let largest = LADDER[LADDER.len() - 1];
        Self(
            LADDER
                .into_iter()
                .find(|size| *size >= wanted)
                .unwrap_or(largest),
        )
    }

    /// The size for a table that had `self` before: the same while the number of slots is near enough, since another
    /// size moves most rows.
    #[must_use]
    pub fn keep_or_choose(self, slots: u16) -> Self {
        let slots = u32::from(slots);
        let few = slots * ROWS_PER_SLOT_MIN > self.0;
        // The smallest size has no smaller one to go to.
        let many = slots * ROWS_PER_SLOT_MAX < self.0 && self.0 > LADDER[0];
        if few || many {
            Self::choose(slots as u16)
        } else {
            self
        }
    }

    /// The number of rows.
    pub fn get(self) -> u32 {
        self.0
    }
}

impl TryFrom<u32> for TableSize {
    type Error = ShapeError;
    fn try_from(rows: u32) -> Result<Self, ShapeError> {
        if LADDER.contains(&rows) {
            Ok(Self(rows))
        } else {
            Err(ShapeError::Size(rows))
        }
    }
}

/// Why something is not a shape.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ShapeError {
    /// Not one of the [`LADDER`].
    #[error("{0} is not a table size")]
    Size(u32),
    /// More than [`SLOTS_MAX`].
    #[error("{0} slots are more than {SLOTS_MAX}")]
    Slots(usize),
    /// Not from 1 to [`Weight::MAX`].
    #[error("weight {0} is not from 1 to {max}", max = Weight::MAX)]
    Weight(u32),
    /// Not one per slot.
    #[error("{weights} weights for {slots} slots")]
    Weights {
        /// How many weights.
        weights: usize,
        /// How many slots.
        slots: u16,
    },
}

/// What the flow hash covers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub enum HashFields {
    /// Addresses, ports and protocol.
    #[default]
    FiveTuple,
    /// Addresses only: `sessionAffinity: ClientIP`.
    Addresses,
}

impl HashFields {
    /// The value in maps.
    pub fn to_abi(self) -> u32 {
        match self {
            Self::FiveTuple => hash_fields::FIVE_TUPLE,
            Self::Addresses => hash_fields::ADDRESSES,
        }
    }
}

/// The share of a slot, 1 to 256.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Weight(u16);

impl Weight {
    /// The weight of a pod that asks for none.
    pub const ONE: Self = Self(1);
    /// The largest.
    pub const MAX: u16 = 256;

    /// The number.
    pub fn get(self) -> u16 {
        self.0
    }
}

impl Default for Weight {
    fn default() -> Self {
        Self::ONE
    }
}

impl TryFrom<u32> for Weight {
    type Error = ShapeError;
    fn try_from(weight: u32) -> Result<Self, ShapeError> {
        match u16::try_from(weight) {
            Ok(w @ 1..=Self::MAX) => Ok(Self(w)),
            Ok(_) | Err(_) => Err(ShapeError::Weight(weight)),
        }
    }
}

/// The weights of a shape's slots, divided by what they have in common, so that equal shares are equal shapes.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Weights(Option<Arc<[u16]>>);

impl Weights {
    /// Weights by slot.
    pub fn new(weights: &[Weight]) -> Self {
        let common = weights.iter().fold(0, |common, w| gcd(w.0, common));
        if weights.iter().all(|w| w.0 == common) {
            return Self(None);
        }
        Self(Some(weights.iter().map(|w| w.0 / common).collect()))
    }

    /// The weights by slot; none if all are equal.
    pub fn each(&self) -> Option<&[u16]> {
        self.0.as_deref()
    }
}

fn gcd(a: u16, b: u16) -> u16 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// What a table depends on, and nothing else: equal shapes have equal rows on every node (I7).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Shape {
    slots: u16,
    weights: Weights,
    size: TableSize,
    seed: u64,
    fields: HashFields,
}

impl Shape {
    /// A shape of `slots` slots. `weights` must be equal ones or one per slot.
    pub fn new(
        slots: u16,
        weights: Weights,
        size: TableSize,
        seed: u64,
        fields: HashFields,
    ) -> Result<Self, ShapeError> {
        if usize::from(slots) > SLOTS_MAX {
            return Err(ShapeError::Slots(usize::from(slots)));
        }
        match weights.each() {
            Some(each) if each.len() != usize::from(slots) => Err(ShapeError::Weights {
                weights: each.len(),
                slots,
            }),
            Some(_) | None => Ok(Self {
                slots,
                weights,
                size,
                seed,
                fields,
            }),
        }
    }

    /// How many slots.
    pub fn slots(&self) -> u16 {
        self.slots
    }
    /// Their weights.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }
    /// How many rows.
    pub fn size(&self) -> TableSize {
        self.size
    }
    /// The seed of the permutations.
    pub fn seed(&self) -> u64 {
        self.seed
    }
    /// What the flow hash covers.
    pub fn fields(&self) -> HashFields {
        self.fields
    }

    /// Digest of what the rows depend on: the algorithm and everything here but the hash fields, so that services with and without affinity
    /// share rows. Kept in the `regions` map; every node and every version computes the same.
    pub fn digest(&self) -> u64 {
        let Self {
            slots,
            weights,
            size,
            seed,
            fields: _,
        } = self;
        let mut hasher = SipHasher24::new_with_keys(0, 0);
        hasher.write(&[maglev::VERSION]);
        hasher.write(&slots.to_le_bytes());
        hasher.write(&size.get().to_le_bytes());
        hasher.write(&seed.to_le_bytes());
        for weight in weights.each().unwrap_or_default() {
            hasher.write(&weight.to_le_bytes());
        }
        hasher.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(rows: u32) -> TableSize {
        TableSize::try_from(rows).unwrap()
    }

    #[test]
    fn sizes_have_a_hundred_rows_per_slot() {
        let sizes = [0, 1, 5, 6, 10, 11, 655, 656, 1000, 5000].map(|n| TableSize::choose(n).get());
        assert_eq!(
            sizes,
            [
                509, 509, 509, 1021, 1021, 2039, 65537, 131_071, 131_071, 524_287
            ]
        );
    }

    #[test]
    fn size_is_kept_while_slots_are_near() {
        let after = |rows, slots| size(rows).keep_or_choose(slots).get();
        assert_eq!([after(509, 10), after(509, 11)], [509, 2039]);
        assert_eq!([after(2039, 6), after(2039, 5)], [2039, 509]);
        assert_eq!(after(509, 1), 509, "there is no smaller one");
        assert_eq!(after(1021, 11), 1021, "a table of ten takes an eleventh");
    }

    #[test]
    fn equal_shares_are_equal_shapes() {
        let weights = |w: &[u32]| {
            Weights::new(
                &w.iter()
                    .map(|w| Weight::try_from(*w).unwrap())
                    .collect::<Vec<_>>(),
            )
        };
        assert_eq!(weights(&[7, 7, 7]), Weights::default());
        assert_eq!(weights(&[256, 128]), weights(&[2, 1]));
        assert_eq!(weights(&[2, 1]).each(), Some(&[2, 1][..]));
        assert_eq!(weights(&[]), Weights::default());
    }

    #[test]
    fn weights_and_slots_out_of_range_are_refused() {
        assert_eq!(Weight::try_from(0), Err(ShapeError::Weight(0)));
        assert_eq!(Weight::try_from(257), Err(ShapeError::Weight(257)));
        let shape = |slots| {
            Shape::new(
                slots,
                Weights::default(),
                size(509),
                0,
                HashFields::FiveTuple,
            )
        };
        assert_eq!(shape(5001), Err(ShapeError::Slots(5001)));
        assert!(shape(5000).is_ok());
    }

    #[test]
    fn digests_that_every_node_must_agree_on() {
        let shape = |slots, weights, seed, fields| {
            Shape::new(slots, weights, size(509), seed, fields)
                .unwrap()
                .digest()
        };
        let plain = shape(3, Weights::default(), 0, HashFields::FiveTuple);
        assert_eq!(plain, 8_785_120_359_525_158_032);
        assert_eq!(
            plain,
            shape(3, Weights::default(), 0, HashFields::Addresses)
        );
        assert_ne!(
            plain,
            shape(3, Weights::default(), 1, HashFields::FiveTuple)
        );
        let one = Weight::ONE;
        let two = Weight::try_from(2).unwrap();
        let weighted = shape(3, Weights::new(&[one, two, one]), 0, HashFields::FiveTuple);
        assert_eq!(weighted, 4_906_027_356_304_756_679);
    }
}
