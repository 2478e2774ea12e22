//! What this node announces: the choice, carried out on the maps, and what the network is to be told.
//!
//! A VIP is announced once its tables are applied here, and withdrawn before its entries go. What the maps hold at the start
//! stays until the lists are complete and the other agents were heard of or given up.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use super::{Core, Origin, routes, view};
use crate::agent::stamp::monotonic_ns;
use crate::announce::choose::{self, Choice};
use crate::announce::facts::{self, Tabled};
use crate::announce::{Announced, Claimed, Telling, claimed};
use crate::dataplane::ApplyError;
use crate::dataplane::claims::Claim;
use crate::liveness::{Condition, Liveness, MEMBERS_MAX, Members};
use crate::model::secret;
use crate::source::index::{Changed, Named};
use crate::source::parse::Kind;

/// What is known about announcing.
#[derive(Default)]
pub(in crate::agent) struct Announcing {
    /// How the other nodes are.
    pub(in crate::agent) liveness: Arc<Liveness>,
    /// Who announces what.
    pub(super) chosen: BTreeMap<IpAddr, Choice>,
    /// Services of the VIPs that this node was chosen for.
    own: Tabled,
    /// Something that the choice depends on has changed since.
    stale: bool,
    /// What this node announces.
    pub(in crate::agent) announced: BTreeSet<Announced>,
    /// What the maps held at the start.
    adopted: BTreeSet<Announced>,
    /// Advertisements that are wrong.
    pub(super) faults: Vec<(String, String)>,
    /// Who else claims a VIP of ours.
    pub(super) claimed: Claimed,
    /// It was decided at least once who announces what.
    is_decided: bool,
    /// This node takes part in gossip: it was ready once.
    takes_part: bool,
}

/// Kinds that the choice depends on; endpoint slices do under policy Local only.
const KINDS: [Kind; 6] = [
    Kind::Node,
    Kind::Service,
    Kind::AddressPool,
    Kind::L2Advertisement,
    Kind::LoadBalancerNode,
    Kind::NodeDrain,
];

impl Announcing {
    pub(super) fn adopt(announced: BTreeSet<Announced>) -> Self {
        Self {
            adopted: announced.clone(),
            announced,
            ..Self::default()
        }
    }
}

impl Core {
    /// Takes in how the other nodes are.
    pub fn take_liveness(&mut self, liveness: Arc<Liveness>, now: Instant) {
        let states = |liveness: &Liveness| -> Vec<_> {
            let states = liveness.peers.iter();
            states
                .map(|(node, peer)| (Arc::clone(node), peer.may_announce()))
                .collect()
        };
        let before = Arc::clone(&self.announcing.liveness);
        if states(&before) != states(&liveness) || before.settled != liveness.settled {
            self.choose_again(now);
        }
        self.peer_heard = liveness
            .peers
            .values()
            .any(|peer| peer.state == crate::liveness::State::Alive);
        let came = before.unnamed != liveness.unnamed;
        let suspected = (view::suspected(&before), view::suspected(&liveness));
        self.announcing.liveness = liveness;
        self.choose_opinion(now);
        if came {
            // Authenticated by the cluster's key, so their packets may be taken before any object names them.
            self.want_ways();
            self.common.want(now);
        }
        let changed: BTreeSet<_> = suspected
            .0
            .symmetric_difference(&suspected.1)
            .cloned()
            .collect();
        if !changed.is_empty() {
            tracing::info!(suspected = ?suspected.1, "other nodes seem to be down, or do no more");
            self.suspect(&changed, now);
            self.look_for_streams(now);
        }
    }

    /// Takes in who claims VIPs on the wire.
    pub fn take_claims(&mut self, claims: &[Claim]) {
        let macs = self.index.balancers().flat_map(|balancer| {
            let interfaces = balancer.spec.interfaces.iter();
            interfaces.filter_map(|interface| view::mac_of(interface.mac.as_deref()?))
        });
        let macs = macs.collect();
        self.announcing.claimed =
            claimed(claims, &self.announcing.announced, &macs, monotonic_ns());
    }

    /// What the other agents and this one need to know of each other. It takes part from when it is ready to announce.
    pub fn members(&mut self) -> Members {
        self.announcing.takes_part |= self.listed && self.configured && !self.is_waiting();
        let Some(secrets) = self.secrets.as_ref().filter(|_| self.announcing.takes_part) else {
            return Members::default();
        };
        Members {
            own: self.own,
            key: Some(secrets.gossip),
            secret: secret::encap_secret(secrets.encap),
            condition: Condition {
                tables: self.tables.revision(&self.settings.origin),
                is_fresh: self.is_fresh(),
                is_ready: self.pins.is_complete,
            },
            nodes: self
                .agents
                .iter()
                .take(MEMBERS_MAX)
                .map(|(name, addresses)| (Arc::clone(name), *addresses))
                .collect(),
        }
    }

    /// What the network is to be told.
    pub fn telling(&self) -> Telling {
        Telling {
            announced: self.announcing.announced.clone(),
            adopted: self.announcing.adopted.clone(),
            claimed: self.announcing.claimed.by_nodes.clone(),
            // What was kept from before the start is told again, too: others may have had it meanwhile.
            repeats: self.announcing.liveness.returns + u64::from(self.announcing.is_decided),
        }
    }

    /// Marks the choice as due if it depends on what changed.
    pub(super) fn announce_after(&mut self, changed: &Changed, now: Instant) {
        if routes::KINDS
            .iter()
            .any(|kind| changed.kinds.contains(kind))
        {
            self.route_again();
        }
        let is_local = |named: &Named| self.index.service(named).is_some_and(facts::is_local);
        if KINDS.iter().any(|kind| changed.kinds.contains(kind))
            || changed.services.iter().any(is_local)
        {
            self.choose_again(now);
        }
    }

    /// Withdraws what this node is no longer to announce: before tables change.
    pub(super) fn apply_withdrawals(&mut self, now: Instant) {
        if self.announce.is_due(now) && self.may_choose() {
            let announced: BTreeSet<_> = self.announcing.announced.clone();
            let wanted = self.wanted_announcements();
            let kept = announced.intersection(&wanted).copied().collect();
            let outcome = self.announce_only(kept);
            if let Err(error) = outcome {
                tracing::warn!(%error, "a VIP is not withdrawn; tried again");
            }
        }
    }

    /// Announces what this node is to announce: after tables were applied.
    pub(super) fn apply_announcements(&mut self, now: Instant) {
        if !(self.announce.is_due(now) && self.may_choose()) {
            return;
        }
        let wanted = self.wanted_announcements();
        let outcome = self.announce_only(wanted);
        self.announcing.is_decided = true;
        self.announce
            .record(outcome.map_err(|error| super::chain(&error)), now);
    }

    /// Enough is known to decide who announces what.
    pub(super) fn may_choose(&self) -> bool {
        match self.settings.origin {
            Origin::Directory { .. } => false,
            Origin::Cluster => self.listed && self.announcing.liveness.settled,
        }
    }

    /// This node takes part in gossip: it was ready once.
    pub(super) fn has_taken_part(&self) -> bool {
        self.announcing.takes_part
    }

    /// What this node announces is what it should.
    pub(super) fn has_announced(&self) -> bool {
        let is_chosen =
            self.announce.due.is_none() || matches!(self.settings.origin, Origin::Directory { .. });
        is_chosen && self.has_routed()
    }

    /// Wants the choice made again.
    pub(super) fn choose_again(&mut self, now: Instant) {
        self.announcing.stale = true;
        self.route_again();
        self.announce.want(now);
    }

    /// Chooses who announces what. All VIPs are looked through for it, so only after a change of what it depends on.
    fn choose(&mut self) {
        if !std::mem::take(&mut self.announcing.stale) {
            return;
        }
        let mut vips = Tabled::new();
        for (named, table) in self.tables.iter() {
            let Some(spec) = &table.spec else { continue };
            let nodes = facts::tabled_nodes(spec);
            for vip in &spec.vips {
                let services = vips.entry(*vip).or_default();
                services.insert(named.clone(), nodes.clone());
            }
        }
        let own = self.settings.node.clone();
        let liveness = Arc::clone(&self.announcing.liveness);
        let is_complete = self.pins.is_complete;
        let facts = facts::facts(&self.index, &vips, |node| {
            (node == own && is_complete) || liveness.may_announce(node)
        });
        self.announcing.faults.clone_from(&facts.faults);
        let chosen = choose::choose(&facts.vips, &facts.nodes, &facts.from);
        vips.retain(|vip, _| chosen.get(vip).is_some_and(|choice| *choice.node == *own));
        self.announcing.own = vips;
        self.announcing.chosen = chosen;
    }

    /// The choice, as far as it concerns this node and its tables are applied.
    fn wanted_announcements(&mut self) -> BTreeSet<Announced> {
        self.choose();
        let announced = self.announcing.announced.iter();
        let held: BTreeSet<_> = announced.map(|(vip, _, _)| *vip).collect();
        let is_applied = |named: &Named| {
            let table = self.tables.get(named);
            table.is_none_or(|table| table.applied.is_some())
        };
        let own = self.announcing.own.iter();
        let ready =
            own.filter(|(vip, services)| held.contains(vip) || services.keys().all(is_applied));
        ready
            .filter_map(|(vip, _)| Some((*vip, self.announcing.chosen.get(vip)?)))
            .flat_map(|(vip, choice)| self.places(vip, choice))
            .collect()
    }

    /// Interfaces of this node that a choice names, with their MACs.
    fn places(&self, vip: IpAddr, choice: &Choice) -> Vec<Announced> {
        let carrying = self
            .interfaces
            .iter()
            .filter(|interface| interface.xdp.is_some());
        carrying
            .filter(|interface| choice.interfaces.contains(&interface.name))
            .filter_map(|interface| {
                let mac = self.links.get(interface.ifindex)?.mac?;
                Some((vip, interface.ifindex, mac))
            })
            .collect()
    }

    fn announce_only(&mut self, wanted: BTreeSet<Announced>) -> Result<(), ApplyError> {
        let ops = self.installed.plan_announced(&wanted);
        self.apply(&ops)?;
        let interface = |ifindex| self.links.get(ifindex).map(|link| link.name.clone());
        for (vip, ifindex, _) in wanted.difference(&self.announcing.announced) {
            tracing::info!(%vip, interface = interface(*ifindex), "announces a VIP");
        }
        for (vip, ifindex, _) in self.announcing.announced.difference(&wanted) {
            tracing::info!(%vip, interface = interface(*ifindex), "announces a VIP no longer");
        }
        self.announcing.announced = wanted;
        Ok(())
    }
}
