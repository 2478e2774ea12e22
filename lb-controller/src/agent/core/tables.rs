//! The Services that have, or had, a table, and which of them are to be tried: looking for those costs nothing for all others.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;
use std::time::Instant;

use super::{Origin, Table};
use crate::source::index::Named;

/// All of them by name. To change one, take it out and put it back.
#[derive(Default)]
pub(in crate::agent) struct Tables {
    by_name: BTreeMap<Named, Table>,
    /// Those whose attempt is due now or later.
    pending: BTreeSet<Named>,
    /// How many have each revision.
    revisions: BTreeMap<u64, u32>,
    /// All revisions.
    sum: u64,
}

impl Deref for Tables {
    type Target = BTreeMap<Named, Table>;
    fn deref(&self) -> &Self::Target {
        &self.by_name
    }
}

impl Tables {
    pub(super) fn take(&mut self, named: &Named) -> Option<Table> {
        self.pending.remove(named);
        let table = self.by_name.remove(named)?;
        self.sum = self.sum.wrapping_sub(table.revision);
        if let Some(count) = self.revisions.get_mut(&table.revision) {
            *count -= 1;
            if *count == 0 {
                self.revisions.remove(&table.revision);
            }
        }
        Some(table)
    }

    pub(super) fn put(&mut self, named: Named, table: Table) {
        self.take(&named);
        if table.attempt.due.is_some() {
            self.pending.insert(named.clone());
        }
        self.sum = self.sum.wrapping_add(table.revision);
        *self.revisions.entry(table.revision).or_default() += 1;
        self.by_name.insert(named, table);
    }

    /// How new they are, all together: the same for agents that were told the same, and more with each that is written.
    pub(super) fn revision(&self, origin: &Origin) -> u64 {
        match origin {
            // The API server numbers all writes.
            Origin::Cluster => self.revisions.keys().next_back().copied().unwrap_or(0),
            // Versions of one Service grow.
            Origin::Directory { .. } => self.sum,
        }
    }

    fn pending(&self) -> impl Iterator<Item = (&Named, &Table)> {
        self.pending
            .iter()
            .filter_map(|named| self.by_name.get_key_value(named))
    }

    /// Those to try now.
    pub(super) fn due(&self, now: Instant) -> Vec<Named> {
        let due = self
            .pending()
            .filter(|(_, table)| table.attempt.is_due(now));
        due.map(|(named, _)| named.clone()).collect()
    }

    /// When the next one is to be tried.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.pending()
            .filter_map(|(_, table)| table.attempt.due)
            .min()
    }

    /// Whether one has not been tried yet.
    pub(super) fn are_waiting(&self) -> bool {
        self.pending().any(|(_, table)| table.attempt.is_waiting())
    }
}
