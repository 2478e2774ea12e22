//! Routes to VIPs that routing daemons export from this node: which there should be, and whether they are.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::{Core, Table};
use crate::admin::Role;
use crate::announce::facts;
use crate::announce::routes::{self, Preference, Routes};
use crate::dataplane::routes::Held;

/// Routes of this node.
#[derive(Default)]
pub(super) struct Routing {
    /// What was computed last; none before enough was known.
    wanted: Option<Routes>,
    held: Held,
    /// How far this node was to be chosen when `wanted` was computed …
    preference: Preference,
    /// … and when what was wanted was there last. VIPs that come and go do not change it.
    carried_out: Option<Preference>,
    /// Something that it depends on has changed since.
    stale: bool,
}

impl Routing {
    fn compare(&mut self) {
        if self.wanted.is_some() && self.wanted == self.held.routes {
            self.carried_out = Some(self.preference);
        }
    }
}

impl Core {
    /// What the table should hold; none: leave it as it is. All tables are looked through for it, so only after a change.
    pub fn routes(&mut self) -> Option<Routes> {
        // What an earlier start has left stays until all that it was for is known again.
        let is_ready = self.has_taken_part() && self.pins.is_complete;
        if is_ready && std::mem::take(&mut self.routing.stale) {
            self.routing.preference = self.preference();
            let routes = routes::wanted(self.routed(), self.routing.preference);
            self.routing.wanted = Some(routes);
            self.routing.compare();
        }
        self.routing.wanted.clone()
    }

    /// Takes in what the table holds.
    pub fn take_routes(&mut self, held: Held) {
        self.routing.held = held;
        self.routing.compare();
    }

    /// Wants routes computed again.
    pub(super) fn route_again(&mut self) {
        self.routing.stale = true;
    }

    /// Routers were told how far this node is to be chosen, or nobody tells them.
    pub(super) fn has_routed(&self) -> bool {
        !self.settings.routes || self.routing.carried_out == Some(self.preference())
    }

    /// Why the table is not as it should be.
    pub(super) fn route_fault(&self) -> Option<&String> {
        self.routing.held.fault.as_ref()
    }

    fn preference(&self) -> Preference {
        let node = self.index.node(&self.settings.node);
        if self.settings.role == Role::Owner || node.is_none_or(facts::is_excluded) {
            return Preference::None;
        }
        Preference::of(self.index.drain(&self.settings.node))
    }

    /// VIPs whose packets this node can take: all their Services are in the maps, and under policy Local have pods here.
    fn routed(&self) -> Vec<IpAddr> {
        let mut vips: BTreeMap<IpAddr, bool> = BTreeMap::new();
        for table in self.tables.values() {
            let Some(spec) = &table.spec else { continue };
            for vip in &spec.vips {
                *vips.entry(*vip).or_insert(true) &= self.serves(table);
            }
        }
        let served = vips.into_iter().filter(|(_, is_served)| *is_served);
        served.map(|(vip, _)| vip).collect()
    }

    fn serves(&self, table: &Table) -> bool {
        let is_local = |spec| {
            let nodes = facts::tabled_nodes(spec);
            nodes.is_empty() && !facts::is_local_table(spec) || nodes.contains(&*self.settings.node)
        };
        table.applied.is_some() && table.spec.as_ref().is_some_and(is_local)
    }
}
