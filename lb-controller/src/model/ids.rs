//! Which ids and index ranges of the maps are in use.
//!
//! Choosing one does not take it: it counts as used from the moment the operation that writes it has happened. So a plan
//! that fails half-way leaks nothing, and plans are made, carried out and recorded one at a time.

use std::collections::BTreeMap;

/// Ids in use, one bit each.
#[derive(Clone, Debug, Default)]
pub(super) struct Used {
    words: Vec<u64>,
    limit: u32,
    count: u32,
    /// No id below this word is free.
    full_words: usize,
}

impl Used {
    /// Ids 0 to `limit − 1`, all free.
    pub(super) fn new(limit: u32) -> Self {
        Self {
            words: vec![0; (limit as usize).div_ceil(64)],
            limit,
            count: 0,
            full_words: 0,
        }
    }

    pub(super) fn contains(&self, id: u32) -> bool {
        self.words
            .get(id as usize / 64)
            .is_some_and(|word| word >> (id % 64) & 1 != 0)
    }

    pub(super) fn insert(&mut self, id: u32) {
        if let Some(word) = self.words.get_mut(id as usize / 64) {
            self.count += u32::from(*word >> (id % 64) & 1 == 0);
            *word |= 1 << (id % 64);
        }
        while self.words.get(self.full_words) == Some(&u64::MAX) {
            self.full_words += 1;
        }
    }

    pub(super) fn remove(&mut self, id: u32) {
        if let Some(word) = self.words.get_mut(id as usize / 64) {
            self.count -= u32::from(*word >> (id % 64) & 1 != 0);
            *word &= !(1 << (id % 64));
            self.full_words = self.full_words.min(id as usize / 64);
        }
    }

    /// The first free id from `from` on.
    pub(super) fn free_from(&self, from: u32) -> Option<u32> {
        let first = self.full_words.max(from as usize / 64);
        for (at, word) in self.words.iter().enumerate().skip(first) {
            let below = if at == from as usize / 64 {
                (1 << (from % 64)) - 1
            } else {
                0
            };
            let free = !(word | below);
            if free != 0 {
                let id = at as u32 * 64 + free.trailing_zeros();
                return (id < self.limit).then_some(id);
            }
        }
        None
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = u32> {
        (0..self.limit).filter(|id| self.contains(*id))
    }

    pub(super) fn len(&self) -> u32 {
        self.count
    }
}

/// Contiguous ranges in use.
#[derive(Clone, Debug, Default)]
pub(super) struct Extents {
    /// Start → length.
    used: BTreeMap<u32, u32>,
    limit: u32,
}

impl Extents {
    pub(super) fn new(limit: u32) -> Self {
        Self {
            used: BTreeMap::new(),
            limit,
        }
    }

    /// Start of a free range: behind all others while there is room, else the first gap that is long enough. Ranges in
    /// `taken` are not free either.
    pub(super) fn free(&self, len: u32, taken: &[(u32, u32)]) -> Option<u32> {
        let last = self
            .used
            .last_key_value()
            .map(|(start, len)| (*start, *len));
        let end = taken
            .iter()
            .copied()
            .chain(last)
            .map(|(start, len)| start + len)
            .max();
        let end = end.unwrap_or(0);
        if end.checked_add(len)? <= self.limit {
            return Some(end);
        }
        let mut all: Vec<_> = self
            .used
            .iter()
            .map(|(s, l)| (*s, *l))
            .chain(taken.iter().copied())
            .collect();
        all.sort_unstable();
        let mut at = 0;
        for (start, used) in all {
            if start >= at && start - at >= len {
                return Some(at);
            }
            at = at.max(start + used);
        }
        None
    }

    pub(super) fn insert(&mut self, start: u32, len: u32) {
        if len > 0 {
            self.used.insert(start, len);
        }
    }

    pub(super) fn remove(&mut self, start: u32) {
        self.used.remove(&start);
    }

    /// Length of the range that starts there; 0 if none does.
    pub(super) fn len_at(&self, start: u32) -> u32 {
        self.used.get(&start).copied().unwrap_or(0)
    }

    /// Sum of all lengths.
    pub(super) fn len(&self) -> u32 {
        self.used.values().sum()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn free_ids_are_found_in_order_and_again_after_removal() {
        let mut used = Used::new(130);
        assert_eq!(used.free_from(1), Some(1));
        for id in 0..130 {
            used.insert(id);
        }
        assert_eq!(used.free_from(1), None);
        used.remove(129);
        used.remove(64);
        assert_eq!(
            (used.free_from(1), used.free_from(65)),
            (Some(64), Some(129))
        );
        assert_eq!(used.len(), 128);
    }

    proptest! {
        #[test]
        fn ranges_never_overlap(steps in prop::collection::vec((0..4_u8, 1..40_u32), 1..100)) {
            let mut extents = Extents::new(300);
            let mut ranges: Vec<(u32, u32)> = Vec::new();
            for (kind, len) in steps {
                if kind == 0 && !ranges.is_empty() {
                    let (start, _) = ranges.remove(len as usize % ranges.len());
                    extents.remove(start);
                } else if let Some(start) = extents.free(len, &[]) {
                    prop_assert!(start + len <= 300);
                    prop_assert!(ranges.iter().all(|(s, l)| start + len <= *s || s + l <= start));
                    extents.insert(start, len);
                    ranges.push((start, len));
                } else {
                    let mut free = [true; 300];
                    for (s, l) in &ranges {
                        free[*s as usize..(s + l) as usize].fill(false);
                    }
                    prop_assert!(!free.windows(len as usize).any(|w| w.iter().all(|f| *f)));
                }
            }
        }
    }
}
