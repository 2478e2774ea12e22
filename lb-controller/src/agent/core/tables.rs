//! The Services that have, or had, a table, and which of them are to be tried: looking for those costs nothing for all others.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;
use std::time::Instant;

use super::Table;
use crate::source::index::Named;

/// All of them by name. To change one, take it out and put it back.
#[derive(Default)]
pub(in crate::agent) struct Tables {
    by_name: BTreeMap<Named, Table>,
    /// Those whose attempt is due now or later.
    pending: BTreeSet<Named>,
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
        self.by_name.remove(named)
    }

    pub(super) fn put(&mut self, named: Named, table: Table) {
        if table.attempt.due.is_some() {
            self.pending.insert(named.clone());
        }
        self.by_name.insert(named, table);
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
