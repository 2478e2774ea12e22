//! Routes to VIPs that routing daemons export from this node: which there should be, and whether they are.

use std::collections::BTreeMap;
use std::hash::Hasher;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use siphasher::sip::SipHasher24;

use super::{Core, Table};
use crate::admin::{self, Role};
use crate::announce::bgp::config::Config;
use crate::announce::bgp::plan::{Own, Plan, Vip, plan};
use crate::announce::bgp::{self, ESTABLISHED};
use crate::announce::facts;
use crate::announce::routes::{self, Preference, Routes};
use crate::dataplane::routes::Held;
use crate::source::parse::Kind;

/// Kinds that only BGP depends on.
pub(super) const KINDS: [Kind; 2] = [Kind::BGPPeer, Kind::BGPAdvertisement];

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
    /// What BIRD is to do; none before enough was known, or if there is no BIRD.
    config: Option<Config>,
    /// What BIRD does.
    bird: bgp::Told,
    /// Objects that are wrong.
    faults: Vec<(String, String)>,
    /// Something that it depends on has changed since.
    stale: bool,
}

impl Routing {
    fn compare(&mut self) {
        if self.wanted.is_some() && self.wanted == self.held.routes {
            self.carried_out = Some(self.preference);
        }
    }

    /// BIRD does what it is to do. One that is not there tells nobody anything, and nothing waits for it.
    fn is_configured(&self) -> bool {
        !self.bird.answers || self.bird.config == self.config
    }
}

impl Core {
    /// What the table should hold; none: leave it as it is. All tables are looked through for it, so only after a change.
    pub fn routes(&mut self) -> Option<Routes> {
        // What an earlier start has left stays until all that it was for is known again.
        let is_ready = self.has_taken_part() && self.pins.is_complete;
        if is_ready && std::mem::take(&mut self.routing.stale) {
            self.routing.preference = self.preference();
            let prefixes = self.prefixes();
            let routes = routes::wanted(prefixes, self.routing.preference);
            self.routing.wanted = Some(routes);
            self.routing.compare();
        }
        self.routing.wanted.clone()
    }

    /// What BIRD is to do; none: leave it as it is. As of the last time that [`Self::routes`] was asked.
    pub fn bird(&self) -> Option<Config> {
        self.routing.config.clone()
    }

    /// Takes in what BIRD does.
    pub fn take_bird(&mut self, told: bgp::Told) {
        self.routing.bird = told;
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
        let Some(_) = self.settings.route_table else {
            return true;
        };
        self.routing.carried_out == Some(self.preference()) && self.routing.is_configured()
    }

    /// What is wrong with peers, advertisements, and BIRD.
    pub(super) fn bgp_faults(&self) -> impl Iterator<Item = &(String, String)> {
        self.routing.faults.iter().chain(&self.routing.bird.faults)
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

    /// What this node announces. Where BIRD is configured from here, advertisements decide; other daemons are given all, and filter
    /// as whoever configures them likes.
    fn prefixes(&mut self) -> Vec<IpNet> {
        let vips = self.routed();
        let (Some(table), true) = (self.settings.route_table, self.settings.bird) else {
            let served = vips.iter().filter(|(_, vip)| vip.is_served);
            return served.map(|(address, _)| IpNet::from(*address)).collect();
        };
        let own = Own {
            node: &self.settings.node,
            table,
            router_id: self
                .own
                .v4
                .unwrap_or_else(|| router_id(&self.settings.node)),
        };
        let Plan {
            prefixes,
            mut config,
            faults,
        } = plan(&self.index, own, &vips);
        if self.settings.role == Role::Owner {
            config.peers.clear();
        }
        self.routing.config = Some(config);
        self.routing.faults = faults;
        prefixes.into_iter().collect()
    }

    /// VIPs that have tables, and whether this node can take their packets: all their Services are in the maps, and under policy Local
    /// have pods here.
    fn routed(&self) -> BTreeMap<IpAddr, Vip> {
        let mut vips: BTreeMap<IpAddr, Vip> = BTreeMap::new();
        for (named, table) in self.tables.iter() {
            let Some(spec) = &table.spec else { continue };
            for address in &spec.vips {
                let vip = vips.entry(*address).or_insert_with(|| Vip {
                    is_served: true,
                    ..Vip::default()
                });
                vip.services.insert(named.clone());
                vip.is_local |= facts::is_local_table(spec);
                vip.is_served &= self.serves(table);
            }
        }
        vips
    }

    fn serves(&self, table: &Table) -> bool {
        let is_local = |spec| {
            let nodes = facts::tabled_nodes(spec);
            nodes.is_empty() && !facts::is_local_table(spec) || nodes.contains(&*self.settings.node)
        };
        table.applied.is_some() && table.spec.as_ref().is_some_and(is_local)
    }
}

impl Core {
    /// See [`admin::Routes`].
    pub(in crate::agent) fn shown_routes(&self) -> Option<admin::Routes> {
        let table = self.settings.route_table?;
        let Routing {
            wanted, held, bird, ..
        } = &self.routing;
        let count = |routes: &Option<Routes>| routes.as_ref().map_or(0, Routes::len);
        let sessions = bird.sessions.iter().map(|session| admin::BgpSession {
            peer: session.peer.clone(),
            state: session.state.clone(),
            is_up: session.state == ESTABLISHED,
            since: session
                .since
                .and_then(|seconds| jiff::Timestamp::from_second(seconds).ok()),
            exported: session.exported,
            error: session.error.clone(),
        });
        Some(admin::Routes {
            table,
            wanted: count(wanted),
            installed: count(&held.routes),
            bird: self.settings.bird.then(|| admin::Bird {
                answers: bird.answers,
                configured: bird.answers && self.routing.is_configured(),
                sessions: sessions.collect(),
            }),
        })
    }
}

/// A name among routers for a node without an IPv4 address: any that no other node has (RFC 6286).
fn router_id(node: &str) -> Ipv4Addr {
    let mut hasher = SipHasher24::new_with_key(b"bowline routerid");
    hasher.write(node.as_bytes());
    let [.., a, b, c] = hasher.finish().to_be_bytes();
    // Of 0.0.0.0/8, so that it is nobody's address, and not 0.0.0.0.
    Ipv4Addr::new(0, a, b, c.max(1))
}
