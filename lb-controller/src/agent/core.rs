//! What the agent knows, and how it brings the maps in line with it. Steps are given the time; nothing here waits for
//! anything but the maps.
//!
//! The order of work: configuration and peers, then each Service by itself, then what is not wanted any more, then what
//! nothing names. A Service that fails is tried again with growing pauses, and stops no other.

mod announce;
mod apply;
mod draining;
pub(super) mod handing;
mod health;
mod inputs;
mod opinion;
pub(super) mod pins;
mod routes;
mod streams;
mod tables;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use self::announce::Announcing;
use self::draining::Draining;
use self::handing::Handing;
use self::opinion::Opinion;
use self::pins::Pins;
use self::routes::Routing;
use self::tables::Tables;
use super::attempt::Attempt;
use super::chain;
use super::stamp::{Fresh, monotonic_ns};
use super::{Options, view};
use crate::admin::{Problem, Role};
use crate::api::file::{LoadBalancerNode, ServiceStatus};
use crate::api::service_table::ServiceTableSpec;
use crate::dataplane::attach::Interface;
use crate::dataplane::links::{IfIndex, Links};
use crate::dataplane::next_hop::NextHops;
use crate::dataplane::{ApplyError, Dataplane};
use crate::handoff::Others;
use crate::metrics::Work;
use crate::model::freshness::{self, Facts, Heard, Lag};
use crate::model::installed::Installed;
use crate::model::plan;
use crate::model::template::NodeAddresses;
use crate::source::files::Files;
use crate::source::index::{Index, Named};
use crate::source::output::{Outputs, Writer};
use crate::source::parse::{Kind, ObjectKey};
use crate::source::secret::ClusterSecrets;

/// Longest time spent on applying before questions and events are looked at again.
const APPLY_SLICE: Duration = Duration::from_millis(50);
/// How often the maps are read back whole and compared.
const DRIFT_PERIOD: Duration = Duration::from_mins(3);
/// Longest wait at the start for the ways to all nodes. Pinned maps forward meanwhile; what they know of the ways is not
/// replaced by not knowing them yet.
const NEXT_HOPS_WAIT: Duration = Duration::from_secs(2);
/// What is wrong is looked for this often at most.
const TELL_PERIOD: Duration = Duration::from_millis(500);
/// Longest sleep without an event.
const SLEEP_MAX: Duration = Duration::from_secs(5);

/// What does not change while the agent runs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Name of the node.
    pub node: String,
    /// What it does.
    pub role: Role,
    /// Its addresses, if they were given.
    pub addresses: Vec<IpAddr>,
    /// Pass on packets of unknown flows.
    pub relay: bool,
    /// Where maps are pinned; for status.
    pub pin_dir: PathBuf,
    /// Known flows of each family that there is room for; for status.
    pub flows: u32,
    /// Flows of each family that can be pinned.
    pub pins: u32,
    /// The table in which VIPs have routes.
    pub route_table: Option<u32>,
    /// BIRD exports that as peers and advertisements say.
    pub bird: bool,
    /// Connections are handed off.
    pub hands_off: bool,
    /// Where objects come from.
    pub origin: Origin,
}

/// Where objects come from.
#[derive(Clone, Debug)]
pub enum Origin {
    /// A directory plays the API server.
    Directory {
        /// The directory of objects.
        manifests: PathBuf,
        /// Where outputs go and tables come from.
        outputs: Outputs,
    },
    /// The API server of a cluster.
    Cluster,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Directory { manifests, .. } => write!(f, "{}", manifests.display()),
            Self::Cluster => f.write_str("cluster"),
        }
    }
}

impl Settings {
    /// From the command line.
    pub fn new(options: &Options, origin: Origin) -> Self {
        Self {
            node: options.node.clone(),
            role: options.role,
            addresses: options.node_address.clone(),
            relay: !options.no_relay,
            pin_dir: options.pin_dir.clone(),
            flows: options.flows,
            pins: options.pins,
            route_table: options.route_table(),
            bird: options.bird_directory.is_some(),
            hands_off: options.handoff.certificates.is_some(),
            origin,
        }
    }
}

/// A Service as the agent knows it from its table.
#[derive(Default)]
pub(super) struct Table {
    /// UID of its Service, as the maps' entries are known by.
    uid: String,
    /// How new it is, see [`Tables::revision`].
    revision: u64,
    /// The newest good one; none once its file is gone.
    pub(super) spec: Option<ServiceTableSpec>,
    /// The same, checked.
    decoded: Option<plan::Service>,
    /// Why the newest one is no good.
    pub(super) fault: Option<String>,
    /// Version in the maps.
    pub(super) applied: Option<u64>,
    /// Since when the newest one waits for pins that stand in for what it forgets.
    gated: Option<Instant>,
    pub(super) attempt: Attempt,
}

impl Table {
    /// As the maps should hold it.
    pub(super) fn decoded(&self) -> Option<&plan::Service> {
        self.decoded.as_ref()
    }
}

/// The agent without its threads.
pub struct Core {
    pub(super) settings: Settings,
    pub(super) dataplane: Box<dyn Dataplane>,
    pub(super) installed: Installed,
    pub(super) fresh: Fresh,
    pub(super) started: Instant,
    files: Files,
    /// `NodeDrain`s as the manager of a directory writes them.
    drains: Files,
    pub(super) index: Index,
    pub(super) tables: Tables,
    pub(super) statuses: BTreeMap<Named, ServiceStatus>,
    secrets: Option<ClusterSecrets>,
    secret_fault: Option<String>,
    /// Everything was read once.
    listed: bool,
    /// Configuration, peers, next hops.
    common: Attempt,
    /// Pods of this node.
    locals: Attempt,
    /// Removing what no table names, and freeing what nothing names.
    tidy: Attempt,
    pub(super) interfaces: Vec<Interface>,
    xdp_interfaces: Vec<IfIndex>,
    pub(super) links: Arc<Links>,
    pub(super) next_hops: Arc<NextHops>,
    wanted: watch::Sender<BTreeSet<IpAddr>>,
    /// Keys, secrets and addresses are in the maps.
    configured: bool,
    /// Until when the first apply waits for next hops; none once it has happened.
    next_hops_until: Option<Instant>,
    /// Addresses of this node, as last known: they outlive its Node object.
    pub(super) own: NodeAddresses,
    pub(super) watch_error: Option<String>,
    /// Objects that the API server has and that can not be understood, and why. Of a directory, `files` knows.
    refused: BTreeMap<ObjectKey, String>,
    /// Some other agent is heard.
    peer_heard: bool,
    /// Whether others know newer tables.
    lag: Lag,
    /// When that was looked at last.
    looked: Instant,
    /// Who is asked about packets that this node is not sure about.
    opinion: Opinion,
    pub(super) announcing: Announcing,
    /// Carrying out who announces what.
    announce: Attempt,
    /// Other nodes that have an agent.
    pub(super) agents: Arc<Others>,
    pub(super) pins: Pins,
    handing: Handing,
    draining: Draining,
    routing: Routing,
    /// When something about pins is to be looked at.
    pins_due: Option<Instant>,
    /// Why the node's object is not as it should be.
    node_fault: Option<String>,
    pub(super) last_list: Option<jiff::Timestamp>,
    pub(super) last_apply: Option<jiff::Timestamp>,
    drift_at: Instant,
    writer: Writer,
    node_file: Option<LoadBalancerNode>,
    told: Vec<Problem>,
    tell_at: Instant,
    /// What was done; for metrics.
    pub work: Work,
}

impl Core {
    /// Starts with what the maps hold. `wanted` is told the addresses of the nodes to find the way to.
    pub fn start(
        settings: Settings,
        mut dataplane: Box<dyn Dataplane>,
        fresh: Fresh,
        wanted: watch::Sender<BTreeSet<IpAddr>>,
    ) -> Result<Self, ApplyError> {
        let contents = dataplane.read()?;
        let installed = Installed::from_contents(
            &contents,
            dataplane.capacity(),
            view::nobody(&settings.node),
        );
        let adopted = contents.announced.iter().map(|(key, value)| {
            let vip = plan::address_of(key.addr);
            (vip, key.ifindex, value.mac.to_bytes())
        });
        let adopted = adopted.collect();
        let now = Instant::now();
        let own = settings.addresses.iter().copied().collect();
        let (hands_off, pins_max) = (settings.hands_off, settings.pins as usize);
        let goes_on = !contents.services.is_empty();
        Ok(Self {
            settings,
            dataplane,
            installed,
            fresh,
            started: now,
            // The manager writes them anew, with what they have come to.
            files: Files::without(Kind::NodeDrain),
            drains: Files::default(),
            index: Index::default(),
            tables: Tables::default(),
            statuses: BTreeMap::new(),
            secrets: None,
            secret_fault: None,
            listed: false,
            common: Attempt::default(),
            locals: Attempt::default(),
            tidy: Attempt::default(),
            interfaces: Vec::new(),
            xdp_interfaces: Vec::new(),
            links: Arc::default(),
            next_hops: Arc::default(),
            wanted,
            configured: false,
            next_hops_until: Some(now + NEXT_HOPS_WAIT),
            own,
            watch_error: None,
            refused: BTreeMap::new(),
            peer_heard: false,
            lag: Lag::default(),
            looked: now,
            opinion: Opinion::default(),
            announcing: Announcing::adopt(adopted),
            announce: Attempt::default(),
            agents: Arc::default(),
            pins: Pins::new(hands_off, goes_on, pins_max),
            handing: Handing::default(),
            draining: Draining::default(),
            routing: Routing::default(),
            pins_due: None,
            node_fault: None,
            last_list: None,
            last_apply: None,
            drift_at: now + DRIFT_PERIOD,
            writer: Writer::default(),
            node_file: None,
            told: Vec::new(),
            tell_at: now,
            work: Work::default(),
        })
    }

    /// Where objects come from.
    pub fn origin(&self) -> &Origin {
        &self.settings.origin
    }

    /// Does what is due, and says when something will be.
    pub fn work(&mut self, now: Instant) -> Instant {
        if self.may_apply(now) {
            self.apply_due(now, now + APPLY_SLICE);
        }
        self.pins_due = self.work_pins(now);
        self.look_behind(now);
        self.fresh.set(self.is_fresh(), monotonic_ns());
        if now >= self.drift_at {
            self.drift_at = now + DRIFT_PERIOD;
            self.check_drift();
        }
        self.write_node_file(now);
        // All Services are looked through for it, so not after each event.
        if now >= self.tell_at {
            self.tell_at = now + TELL_PERIOD;
            let problems = self.problems();
            crate::manager::tell(&mut self.told, problems);
        }
        self.next_due()
            .unwrap_or(now + SLEEP_MAX)
            .min(now + SLEEP_MAX)
    }

    /// Enough is known to write to the maps. The ways to nodes that are not known in time do not hold up the rest, neither
    /// now nor later.
    fn may_apply(&mut self, now: Instant) -> bool {
        if !self.listed || self.secrets.is_none() {
            return false;
        }
        let Some(until) = self.next_hops_until else {
            return true;
        };
        let is_known = |address| self.next_hops.get(address).is_some_and(Result::is_ok);
        if now >= until || self.wanted.borrow().iter().all(is_known) {
            self.next_hops_until = None;
        }
        self.next_hops_until.is_none()
    }

    fn apply_due(&mut self, now: Instant, until: Instant) {
        if self.common.is_due(now) {
            let outcome = self.apply_common().map_err(|error| chain(&error));
            self.common.record(outcome, now);
        }
        // Without keys and addresses tables would send packets to wrong places; without a peer they would not.
        if !self.configured {
            return;
        }
        self.apply_withdrawals(now);
        self.apply_tables(now, until);
        self.apply_announcements(now);
        self.apply_opinion(now);
        if self.locals.is_due(now) {
            let outcome = self.apply_locals().map_err(|error| chain(&error));
            self.locals.record(outcome, now);
            self.collect_soon(now);
        }
        if !self.is_waiting() {
            self.apply_tidy(now);
        }
    }

    /// When something is due. What can not be done yet is left out, however long it has been due.
    fn next_due(&self) -> Option<Instant> {
        let work = match self.next_hops_until {
            _ if !self.listed || self.secrets.is_none() => None,
            Some(until) => Some(until),
            None if !self.configured => self.common.due,
            None => {
                let announce = self.announce.due.filter(|_| self.may_choose());
                let opinion = self.opinion.attempt.due;
                let own = [
                    self.common.due,
                    self.locals.due,
                    self.tidy.due,
                    announce,
                    opinion,
                ];
                own.into_iter()
                    .chain([self.tables.next_due()])
                    .flatten()
                    .min()
            }
        };
        [
            work,
            self.writer.next_due(),
            self.pins_due,
            self.lag.next(self.looked),
            Some(self.drift_at),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Whether the node is fresh.
    pub(super) fn is_fresh(&self) -> bool {
        let known = self.listed && self.secrets.is_some() && self.configured;
        let facts = Facts {
            // As far as it can be: what fails is reported and does not take freshness from the rest.
            applied: known && !self.is_waiting(),
            // Without the source, another agent that is heard shows that it is not this node which is cut off.
            heard: match &self.watch_error {
                None => Heard::Source(Some(self.looked)),
                Some(_) => Heard::Peers(self.peer_heard.then_some(self.looked)),
            },
            behind: self.is_behind(),
        };
        freshness::fresh(&facts, self.looked).is_ok()
    }

    /// Notes whether others know newer tables.
    fn look_behind(&mut self, now: Instant) {
        let own = self.tables.revision(&self.settings.origin);
        let named = self.announcing.liveness.tables;
        self.lag.note(own, named, self.watch_error.is_none(), now);
        self.looked = now;
    }

    /// Whether others know newer tables.
    pub(super) fn is_behind(&self) -> bool {
        self.lag.is_behind(self.looked)
    }

    /// Something has not been tried yet.
    fn is_waiting(&self) -> bool {
        self.common.is_waiting() || self.locals.is_waiting() || self.tables.are_waiting()
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_scenarios;
