//! The table builder: slots in, rows out. Maglev (Eisenbud et al., NSDI 2016, section 3.4) with weighted turns.
//!
//! Every slot has a permutation of all rows (a start and a step, both from the seed and the slot's number; the size is
//! prime, so stepping visits every row once). Slots take turns, and at its turn a slot takes the next row of its
//! permutation that is still free, until no row is. So the result depends on the shape alone (I7): neither on pods nor on
//! the order in which they came.
//!
//! Turns. Slot `i` with weight `w` has its first turn at time 0 and turn `k` at `(k + ½) / w`, which is the rounding of
//! Sainte-Laguë with one row for everybody. Rows are proportional to weights within two rows, also when a slot deserves
//! less than one row. Equal weights give plain rounds.
//!
//! Speed. Most of Maglev's time goes into the last rows: with `f` of `m` rows free a slot looks at `m / f` rows before it
//! finds one. Here a free row costs one bit (the whole set stays in the first-level cache), four steps are tested
//! at a time so that the processor rarely guesses wrong, and the last `√m` rows are not searched at all: a row's place
//! in a permutation is `(row − start) / step mod m`, so the nearest of a few free rows is computed. All of it gives the
//! same rows as stepping one by one; a test compares them.
//!
//! Knows nothing of pods, services or maps.

use std::sync::Arc;

use super::shape::Shape;

/// A table: the slot number of every row. Immutable, shared by all services of its shape.
pub type Rows = Arc<[u16]>;

/// Marks a row that nobody has. Never a slot number: there are at most [`lb_ebpf::abi::SLOTS_MAX`].
const FREE: u16 = u16::MAX;

/// The table of a shape. Empty if the shape has no slots.
pub fn rows(shape: &Shape) -> Rows {
    let size = shape.size().get();
    let slots = u32::from(shape.slots());
    if slots == 0 {
        return Arc::from([]);
    }
    let board = Board::new(size, slots, shape.seed());
    let rows = match shape.weights().each() {
        None => board.fill(rounds(usize::from(shape.slots()))),
        Some(weights) => {
            let mut calendar = Calendar::new(weights);
            board.fill(|| calendar.turn())
        }
    };
    Arc::from(rows)
}

/// A slot's permutation of rows, and how far it has come.
#[derive(Clone, Copy)]
struct Walk {
    /// The next row to look at.
    at: u32,
    /// Distance of two neighbours in the permutation, 1 to size − 1.
    step: u32,
}

impl Walk {
    /// Start and step of a slot: independent halves of one mixed word.
    fn of(seed: u64, slot: u32, size: u32) -> Self {
        let h = mix(seed ^ mix(u64::from(slot)));
        Self {
            at: scale((h >> 32) as u32, size),
            step: 1 + scale(h as u32, size - 1),
        }
    }

    /// Index of the row in `rows` that comes first in this permutation.
    ///
    /// A row is `(row − at) / step mod size` steps away. That is the fraction of `distance × inverse / size` in units of
    /// `1 / size`; as a fraction of 2^64 its error stays below `2 × size / 2^64`, so comparing fractions is exact.
    fn nearest(self, rows: &[u32], size: u32) -> usize {
        let factor = ((u128::from(inverse(self.step, size)) << 64) / u128::from(size)) as u64 + 1;
        let steps = |row: u32| u64::from(row + size - self.at).wrapping_mul(factor);
        let (mut nearest, mut least) = (0, u64::MAX);
        for (index, row) in rows.iter().enumerate() {
            let steps = steps(*row);
            if steps < least {
                (nearest, least) = (index, steps);
            }
        }
        nearest
    }
}

/// `1 / a mod prime`, for `a` from 1 to `prime − 1` (extended Euclid).
fn inverse(a: u32, prime: u32) -> u32 {
    let (mut r, mut next_r) = (i64::from(prime), i64::from(a));
    let (mut t, mut next_t) = (0, 1);
    while next_r != 0 {
        let quotient = r / next_r;
        (r, next_r) = (next_r, r - quotient * next_r);
        (t, next_t) = (next_t, t - quotient * next_t);
    }
    t.rem_euclid(i64::from(prime)) as u32
}

/// `x` of 2^32 scaled to `0..n`.
fn scale(x: u32, n: u32) -> u32 {
    ((u64::from(x) * u64::from(n)) >> 32) as u32
}

/// The finisher of `SplitMix64` (Steele, Lea and Flood, OOPSLA 2014): a bijection of 64 bits.
fn mix(x: u64) -> u64 {
    let mut z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// `a + b mod size`, both below `size`, without a division or a branch.
#[inline]
fn add(a: u32, b: u32, size: u32) -> u32 {
    let sum = a + b;
    sum.min(sum.wrapping_sub(size))
}

/// A table being filled.
struct Board {
    size: u32,
    rows: Vec<u16>,
    /// One bit per row, set while it is free. A power of two of words, so that a masked index is in range.
    free: Vec<u64>,
    left: u32,
    walks: Vec<Walk>,
}

impl Board {
    fn new(size: u32, slots: u32, seed: u64) -> Self {
        let words = (size as usize).div_ceil(64);
        let mut free = vec![0; words.next_power_of_two()];
        free[..words].fill(u64::MAX);
        if !size.is_multiple_of(64) {
            free[words - 1] = (1 << (size % 64)) - 1;
        }
        Self {
            size,
            rows: vec![FREE; size as usize],
            free,
            left: size,
            walks: (0..slots).map(|slot| Walk::of(seed, slot, size)).collect(),
        }
    }

    /// 1 if the row is free, else 0.
    #[inline]
    fn free_bit(&self, row: u32) -> u64 {
        let word = (row >> 6) as usize & (self.free.len() - 1);
        self.free[word] >> (row & 63) & 1
    }

    #[inline]
    fn take(&mut self, slot: usize, row: u32) {
        self.free[(row >> 6) as usize] &= !(1 << (row & 63));
        self.rows[row as usize] = slot as u16;
        self.walks[slot].at = add(row, self.walks[slot].step, self.size);
        self.left -= 1;
    }

    /// One turn while most rows are free: the first look nearly always succeeds.
    #[inline]
    fn turn_early(&mut self, slot: usize) {
        let Walk { mut at, step } = self.walks[slot];
        while self.free_bit(at) == 0 {
            at = add(at, step, self.size);
        }
        self.take(slot, at);
    }

    /// One turn while few rows are free: four looks at a time, then the first that succeeded.
    #[inline]
    fn turn_late(&mut self, slot: usize) {
        let Walk { mut at, step } = self.walks[slot];
        let two = add(step, step, self.size);
        let four = add(two, two, self.size);
        let row = loop {
            let next = add(at, step, self.size);
            let looks = [at, next, add(at, two, self.size), add(next, two, self.size)];
            let mut found = 0;
            for (n, row) in looks.into_iter().enumerate() {
                found |= self.free_bit(row) << n;
            }
            if found != 0 {
                break looks[found.trailing_zeros() as usize & 3];
            }
            at = add(at, four, self.size);
        };
        self.take(slot, row);
    }

    /// Fills the table, asking `turns` whose turn it is.
    fn fill(mut self, mut turns: impl FnMut() -> usize) -> Vec<u16> {
        let tail = self.size.isqrt();
        while self.left > self.size / 2 {
            self.turn_early(turns());
        }
        while self.left > tail {
            self.turn_late(turns());
        }
        let mut rest: Vec<u32> = (0..self.size)
            .filter(|row| self.free_bit(*row) != 0)
            .collect();
        while !rest.is_empty() {
            let slot = turns();
            let nearest = self.walks[slot].nearest(&rest, self.size);
            self.take(slot, rest.swap_remove(nearest));
        }
        self.rows
    }
}

/// Rounds in the order of slot numbers: whose turn it is under equal weights.
fn rounds(slots: usize) -> impl FnMut() -> usize {
    let mut next = 0;
    move || {
        let slot = next;
        next = if next + 1 == slots { 0 } else { next + 1 };
        slot
    }
}

/// Whose turn it is under any weights: slots wait in one queue per round of the heaviest slot.
struct Calendar<'a> {
    weights: &'a [u16],
    heaviest: u32,
    round: u32,
    /// First and last slot of each queue, [`NOBODY`] if it is empty.
    queues: Vec<[u16; 2]>,
    /// The next slot in the same queue.
    behind: Vec<u16>,
    /// Turns that each slot has had.
    turns: Vec<u32>,
}

/// Ends a queue of the calendar.
const NOBODY: u16 = u16::MAX;

/// Queues of the calendar: more than the rounds between two turns of a slot, which are at most one and a half times the
/// largest weight (256).
const QUEUES: usize = 512;

impl<'a> Calendar<'a> {
    fn new(weights: &'a [u16]) -> Self {
        let mut calendar = Self {
            weights,
            heaviest: weights.iter().copied().max().map_or(1, u32::from),
            round: 0,
            queues: vec![[NOBODY; 2]; QUEUES],
            behind: vec![NOBODY; weights.len()],
            turns: vec![0; weights.len()],
        };
        for slot in 0..weights.len() {
            calendar.enqueue(slot as u16, 0);
        }
        calendar
    }

    fn enqueue(&mut self, slot: u16, round: u32) {
        let [first, last] = &mut self.queues[round as usize % QUEUES];
        self.behind[usize::from(slot)] = NOBODY;
        if *first == NOBODY {
            *first = slot;
        } else {
            self.behind[usize::from(*last)] = slot;
        }
        *last = slot;
    }

    /// Takes the next slot and enters its following turn: turn `k` is in round `⌊(k + ½) × heaviest / weight⌋`.
    fn turn(&mut self) -> usize {
        while self.queues[self.round as usize % QUEUES][0] == NOBODY {
            self.round += 1;
        }
        let queue = &mut self.queues[self.round as usize % QUEUES];
        let slot = queue[0];
        queue[0] = self.behind[usize::from(slot)];
        let at = usize::from(slot);
        self.turns[at] += 1;
        let halves = u64::from(2 * self.turns[at] + 1) * u64::from(self.heaviest);
        let round = halves / (2 * u64::from(self.weights[at]));
        self.enqueue(slot, round as u32);
        at
    }
}

#[cfg(test)]
mod tests;
