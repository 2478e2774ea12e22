use super::*;
use crate::model::shape::{HashFields, TableSize, Weight, Weights};
use ::maglev::ConsistentHasher as _;
use proptest::prelude::*;
use std::hash::Hasher;

fn shape(slots: u16, weights: &[u32], size: u32, seed: u64) -> Shape {
    let weights: Vec<_> = weights
        .iter()
        .map(|w| Weight::try_from(*w).unwrap())
        .collect();
    let size = TableSize::try_from(size).unwrap();
    Shape::new(
        slots,
        Weights::new(&weights),
        size,
        seed,
        HashFields::FiveTuple,
    )
    .unwrap()
}

fn equal(slots: u16, size: u32) -> Rows {
    rows(&shape(slots, &[], size, 0))
}

/// Rows by slot.
fn counts(rows: &[u16], slots: u16) -> Vec<u32> {
    let mut counts = vec![0; usize::from(slots)];
    for slot in rows {
        counts[usize::from(*slot)] += 1;
    }
    counts
}

fn digest(rows: &[u16]) -> u64 {
    let mut hasher = siphasher::sip::SipHasher24::new_with_keys(0, 0);
    for row in rows {
        hasher.write(&row.to_le_bytes());
    }
    hasher.finish()
}

/// The permutation of a slot, written out.
fn permutation(walk: Walk, size: u32) -> Vec<u32> {
    let prime = prime_at_least(size.div_ceil(64));
    let mut rows = Vec::new();
    for round in 0..4 {
        let class = usize::from(walk.class + round) % 4;
        let bits = PARTITION[usize::from(walk.partition)][class].rotate_left(walk.turned.into());
        for n in 0..prime {
            let word =
                (u64::from(walk.start) + u64::from(n) * u64::from(walk.step)) % u64::from(prime);
            let bits = (0..64).filter(|bit| bits >> bit & 1 != 0);
            rows.extend(
                bits.map(|bit| word as u32 * 64 + bit)
                    .filter(|row| *row < size),
            );
        }
    }
    rows
}

/// Maglev as in the paper: the next row of the slot's permutation that is free.
fn step_by_step(shape: &Shape, mut turn: impl FnMut() -> usize) -> Vec<u16> {
    const FREE: u16 = u16::MAX;
    let size = shape.size().get();
    let prime = prime_at_least(size.div_ceil(64));
    let slots = 0..u32::from(shape.slots());
    let permutations = slots.map(|slot| permutation(Walk::of(shape.seed(), slot, prime), size));
    let mut permutations: Vec<_> = permutations.map(Vec::into_iter).collect();
    let mut rows = vec![FREE; size as usize];
    for _ in 0..size {
        let slot = turn();
        let row = permutations[slot]
            .find(|row| rows[*row as usize] == FREE)
            .unwrap();
        rows[row as usize] = slot as u16;
    }
    rows
}

#[test]
fn classes_are_partitions() {
    for classes in &PARTITION {
        assert_eq!(classes.iter().fold(0, |all, class| all ^ class), u64::MAX);
        assert!(classes.iter().all(|class| class.count_ones() == 16));
    }
}

#[test]
fn every_slot_has_a_permutation_of_all_rows() {
    for (slot, size) in [(0, 509), (1, 509), (7, 1021), (4999, 8191)] {
        let prime = prime_at_least(size / 64 + 1);
        let mut rows = permutation(Walk::of(3, slot, prime), size);
        rows.sort_unstable();
        assert_eq!(rows, (0..size).collect::<Vec<_>>());
    }
}

#[test]
fn golden_vectors_that_every_node_must_agree_on() {
    let first: Vec<u16> = equal(5, 509)[..16].to_vec();
    assert_eq!(first, [0, 2, 4, 0, 0, 2, 0, 0, 0, 4, 3, 0, 0, 0, 0, 0]);
    let digests = [
        digest(&equal(1, 509)),
        digest(&equal(5, 509)),
        digest(&equal(1000, 131_071)),
        digest(&rows(&shape(3, &[1, 2, 256], 509, 7))),
    ];
    let expected = [
        7_264_261_502_235_948_955,
        981_824_976_394_813_515,
        16_742_645_680_328_233_459,
        6_291_103_901_391_490_021,
    ];
    assert_eq!(digests, expected);
}

#[test]
fn no_slots_make_no_rows() {
    assert_eq!(equal(0, 509).len(), 0);
}

#[test]
fn every_size_of_the_ladder_fills() {
    for size in crate::model::shape::LADDER {
        let counts = counts(&equal(7, size), 7);
        assert_eq!(counts.iter().sum::<u32>(), size);
        assert!(
            counts.iter().all(|n| size / 7 <= *n && *n <= size / 7 + 1),
            "{counts:?}"
        );
    }
}

#[test]
fn a_slot_that_leaves_moves_little_more_than_its_rows() {
    // The paper's permutations move 1.56 % of 65537 rows for 1 of 100, where 1 % is needed.
    for (slots, size, percent) in [(5, 509, 27.0), (10, 1021, 16.0), (100, 65537, 1.9)] {
        let (before, after) = (equal(slots, size), equal(slots - 1, size));
        let moved = before
            .iter()
            .zip(after.iter())
            .filter(|(a, b)| a != b)
            .count();
        let moved = f64::from(moved as u32) * 100.0 / f64::from(size);
        assert!(moved <= percent, "{slots} slots: {moved} %");
    }
}

#[test]
fn balance_and_disruption_are_no_worse_than_the_crate_maglev() {
    let theirs = |n: u16| {
        let maglev = ::maglev::Maglev::with_capacity(0..n, 2039);
        (0..4000_u32)
            .map(|key| *maglev.get(&key).unwrap())
            .collect::<Vec<u16>>()
    };
    let ours = |n: u16| {
        let rows = equal(n, 2039);
        (0..4000_u64)
            .map(|key| rows[scale((mix(key) >> 32) as u32, 2039) as usize])
            .collect::<Vec<u16>>()
    };
    let moved = |a: Vec<u16>, b: Vec<u16>| a.iter().zip(&b).filter(|(a, b)| a != b).count();
    let spread = |keys: &[u16]| {
        let counts = counts(keys, 20);
        counts.iter().max().unwrap() - counts.iter().min().unwrap()
    };
    assert!(spread(&ours(20)) <= spread(&theirs(20)) * 3 / 2);
    assert!(moved(ours(20), ours(19)) <= moved(theirs(20), theirs(19)) * 3 / 2);
}

#[test]
fn a_weight_below_a_mean_of_two_still_counts() {
    // One of 64 weighs two: it has twice the rows of the others, which a mean rounded down to one would hide.
    let mut weights = [1; 64];
    weights[10] = 2;
    let counts = counts(&rows(&shape(64, &weights, 8191, 0)), 64);
    assert!((251..=253).contains(&counts[10]), "{}", counts[10]);
    assert!(
        counts
            .iter()
            .enumerate()
            .all(|(n, c)| n == 10 || (125..=127).contains(c))
    );
}

#[test]
fn a_slot_that_deserves_less_than_a_row_has_one() {
    let mut weights = [256; 10];
    weights[3] = 1;
    assert_eq!(counts(&rows(&shape(10, &weights, 1021, 0)), 10)[3], 1);
}

#[test]
fn one_changed_weight_moves_few_rows() {
    let table = |w| {
        let mut weights = [1; 100];
        weights[42] = w;
        rows(&shape(100, &weights, 16381, 0))
    };
    let moved = table(1)
        .iter()
        .zip(table(2).iter())
        .filter(|(a, b)| a != b)
        .count();
    assert!(
        moved * 100 <= 16381 * 3,
        "{moved} of 16381 where 162 are needed"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn same_rows_as_stepping_one_by_one(slots in 1..200_u16, at in 0..4_usize, seed: u64) {
        let shape = shape(slots, &[], crate::model::shape::LADDER[at], seed);
        prop_assert_eq!(&*rows(&shape), step_by_step(&shape, rounds(usize::from(slots))));
    }

    #[test]
    fn same_rows_as_stepping_one_by_one_with_weights(
        weights in prop::collection::vec(1..=256_u32, 2..60), at in 0..4_usize, seed: u64,
    ) {
        let shape = shape(weights.len() as u16, &weights, crate::model::shape::LADDER[at], seed);
        if let Some(each) = shape.weights().each() {
            let mut calendar = Calendar::new(each);
            prop_assert_eq!(&*rows(&shape), step_by_step(&shape, || calendar.turn()));
        }
    }

    #[test]
    fn equal_slots_differ_by_one_row(slots in 1..500_u16, seed: u64) {
        let counts = counts(&rows(&shape(slots, &[], 4093, seed)), slots);
        let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
        prop_assert!(most - least <= 1);
    }

    #[test]
    fn rows_are_proportional_to_weights(weights in prop::collection::vec(1..=256_u32, 1..40)) {
        let size = TableSize::choose(weights.len() as u16).get();
        let counts = counts(&rows(&shape(weights.len() as u16, &weights, size, 0)), weights.len() as u16);
        let total: u32 = weights.iter().sum();
        for (weight, count) in weights.iter().zip(&counts) {
            let exact = f64::from(size) * f64::from(*weight) / f64::from(total);
            prop_assert!((f64::from(*count) - exact).abs() <= 2.0, "{count} rows for {exact}");
            prop_assert!(*count >= 1);
        }
    }

    #[test]
    fn a_calendar_of_equal_weights_is_a_round(weight in 1..=256_u16, slots in 1..50_usize) {
        let weights = vec![weight; slots];
        let (mut calendar, mut rounds) = (Calendar::new(&weights), rounds(slots));
        for _ in 0..200 {
            prop_assert_eq!(calendar.turn(), rounds());
        }
    }
}
