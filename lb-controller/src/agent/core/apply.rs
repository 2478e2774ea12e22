//! What is done to the maps, in the order that [`super`] says. Each step starts from what was recorded, so it can be
//! repeated after any failure.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Core, Table, view};
use crate::agent::chain;
use crate::api::service_table::ServiceTableSpec;
use crate::dataplane::{ApplyError, Contents};
use crate::model::op::Op;
use crate::model::plan;

/// What nothing names is freed this long after it became so, in one batch: freeing waits for a grace period.
const COLLECT_DELAY: Duration = Duration::from_millis(500);

/// How much of a table is done again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Again {
    /// Compared with the maps.
    Plan,
    /// Turned into ids, too: it depends on which nodes are suspected.
    Decode,
}

impl Core {
    /// What is not known does not exist.
    fn complete(&self) -> bool {
        self.listed && self.files.complete()
    }

    pub(super) fn apply(&mut self, ops: &[Op]) -> Result<(), ApplyError> {
        for op in ops {
            self.dataplane.apply(op)?;
            self.installed.record(op);
        }
        Ok(())
    }

    pub(super) fn apply_tables(&mut self, now: Instant, until: Instant) {
        for named in self.tables.due(now) {
            if Instant::now() >= until {
                break;
            }
            let Some(mut table) = self.tables.take(&named) else {
                continue;
            };
            if let Some(again) = self.gate_table(&mut table, now) {
                table.attempt.due = Some(again);
                self.pins.gated.insert(named.clone());
                self.tables.put(named, table);
                continue;
            }
            let started = Instant::now();
            let was_applied = table.applied.is_some();
            let outcome = self.apply_table(&mut table);
            self.work
                .apply_seconds
                .observe(started.elapsed().as_secs_f64());
            self.work.applies[usize::from(outcome.is_ok())] += 1;
            table.attempt.record(outcome, now);
            if was_applied != table.applied.is_some() {
                self.announce.want(now);
            }
            self.last_apply = Some(jiff::Timestamp::now());
            self.collect_soon(now);
            if table.spec.is_some() || table.fault.is_some() || table.attempt.due.is_some() {
                self.tables.put(named, table);
            }
        }
    }

    /// Brings the maps in line with one table.
    fn apply_table(&mut self, table: &mut Table) -> Result<(), String> {
        let Some(spec) = &table.spec else {
            // A file that was never good says nothing: what the maps hold stays.
            if table.fault.is_none() {
                let ops = self.installed.plan_removal(&table.uid);
                self.apply(&ops).map_err(|error| chain(&error))?;
                table.decoded = None;
                table.applied = None;
            }
            return Ok(());
        };
        let mut decoded = match table.decoded.take() {
            Some(decoded) => decoded,
            None => self.installed.decode(spec).map_err(|error| chain(&error))?,
        };
        decoded.streams_up = self.streams_up(&spec.nodes);
        let decoded = &*table.decoded.insert(decoded);
        let ops = self
            .installed
            .plan(decoded)
            .map_err(|error| chain(&error))?;
        self.apply(&ops).map_err(|error| chain(&error))?;
        if table.applied != Some(spec.version) {
            tracing::info!(
                service = table.uid,
                version = spec.version,
                operations = ops.len(),
                "table applied"
            );
            table.applied = Some(spec.version);
            self.report_applied(table);
        }
        Ok(())
    }

    /// When to look again at a version that may not be applied yet; none if it may.
    fn gate_table(&mut self, table: &mut Table, now: Instant) -> Option<Instant> {
        let Table { spec, gated, .. } = table;
        let spec = spec.as_ref()?;
        let again = self.gate_of(spec, gated, now)?;
        if table.decoded.is_none() {
            // Why not is said when it is applied.
            table.decoded = self.installed.decode(spec).ok();
        }
        // Such as the version that an agent finds in its maps when it starts.
        let forgets = |service| self.installed.forgets(service);
        if !table.decoded.as_ref().is_some_and(forgets) {
            *gated = None;
            return None;
        }
        Some(again)
    }

    /// Has the tables looked at again that depend on something else than their own changes.
    pub(super) fn tables_again(
        &mut self,
        now: Instant,
        again: Again,
        which: impl Fn(&ServiceTableSpec) -> bool,
    ) {
        let tables = self.tables.iter();
        let concerned = tables.filter(|(_, table)| table.spec.as_ref().is_some_and(&which));
        let concerned: Vec<_> = concerned.map(|(named, _)| named.clone()).collect();
        for named in concerned {
            if let Some(mut table) = self.tables.take(&named) {
                if again == Again::Decode {
                    table.decoded = None;
                }
                table.attempt.want(now);
                self.tables.put(named, table);
            }
        }
    }

    /// Pins have come that versions may have waited for.
    pub(super) fn tables_wait_no_more(&mut self, now: Instant) {
        for named in std::mem::take(&mut self.pins.gated) {
            if let Some(mut table) = self.tables.take(&named) {
                table.attempt.due = Some(now);
                self.tables.put(named, table);
            }
        }
    }

    /// Other nodes are suspected than before: slots with pods there deviate, or do no more.
    pub(super) fn suspect(&mut self, changed: &BTreeSet<Arc<str>>, now: Instant) {
        self.tables_again(now, Again::Decode, |spec| {
            spec.nodes
                .iter()
                .any(|node| changed.contains(node.as_str()))
        });
        self.common.want(now);
    }

    /// Brings the maps in line with what all Services share.
    pub(super) fn apply_common(&mut self) -> Result<(), ApplyError> {
        let Some(secrets) = self.secrets.clone() else {
            return Ok(());
        };
        self.installed.set_view(view::of(self, &secrets));
        self.opinion_again(Instant::now());
        let complete = self.complete();
        let config = self.installed.plan_config(view::config(self, &secrets));
        self.apply(config.as_slice())?;
        self.configured = true;
        let peers = self.installed.plan_peers(complete);
        self.apply(&peers)?;
        let backends = self.installed.plan_backends();
        self.apply(&backends)?;
        Ok(())
    }

    /// Brings the list of this node's pod ports in line, and ends the flows of dead pods.
    pub(super) fn apply_locals(&mut self) -> Result<(), ApplyError> {
        // Who is not known to be alive is dead only if everybody is known.
        if !self.complete() {
            return Ok(());
        }
        let alive = view::living(self);
        let wanted: Vec<_> = self.decoded().collect();
        let locals = self.installed.plan_locals(&alive, &wanted);
        self.apply(&locals)
    }

    /// All tables that ids were chosen for.
    pub(in crate::agent) fn decoded(&self) -> impl Iterator<Item = &plan::Service> {
        self.tables
            .values()
            .filter_map(|table| table.decoded.as_ref())
    }

    /// Something may have lost its last name: a table changed, or a pod that no table named any more has died.
    pub(super) fn collect_soon(&mut self, now: Instant) {
        self.tidy.due.get_or_insert(now + COLLECT_DELAY);
    }

    /// Removes what no table names, then frees what nothing names.
    pub(super) fn apply_tidy(&mut self, now: Instant) {
        if self.tidy.is_due(now) {
            let outcome = self.tidy();
            self.tidy
                .record(outcome.map_err(|error| chain(&error)), now);
        }
    }

    fn tidy(&mut self) -> Result<(), ApplyError> {
        // While some table says nothing yet, it may be the one that names an entry.
        let says_something = |table: &Table| {
            table.decoded.is_some() || (table.spec.is_none() && table.fault.is_none())
        };
        if self.tables.values().all(says_something) {
            let stale = self.installed.plan_stale(self.decoded());
            self.apply(&stale)?;
        }
        self.apply_locals()?;
        let idle = self.installed.plan_pin_flags();
        self.apply(&idle)?;
        let orphans = self.pins_of_nobody();
        self.apply(&orphans)?;
        let unnamed = self.installed.collect(self.decoded());
        self.apply(&unnamed)
    }

    /// Compares what the maps hold with what was written.
    pub(super) fn check_drift(&mut self) {
        match self.dataplane.read() {
            Ok(contents) => {
                self.work.drift_checks += 1;
                self.work.drift_entries = self.drift(&contents);
                if self.work.drift_entries > 0 {
                    let entries = self.work.drift_entries;
                    tracing::error!(
                        entries,
                        "the maps hold something else than was written; restart the agent"
                    );
                }
            }
            Err(error) => tracing::warn!(error = chain(&error), "the maps can not be read back"),
        }
    }

    /// How many entries differ from what was written.
    pub(super) fn drift(&self, contents: &Contents) -> u64 {
        view::drift(contents, &self.installed.contents())
    }
}
