//! What the agent knows, and how it brings the maps in line with it. Steps are given the time; nothing here waits for
//! anything but the maps.
//!
//! The order of work: configuration and peers, then each Service by itself, then what is not wanted any more, then what
//! nothing names. A Service that fails is tried again with growing pauses, and stops no other.

mod apply;
mod health;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::attempt::Attempt;
use super::chain;
use super::stamp::{Fresh, monotonic_ns};
use super::{Options, view};
use crate::admin::{Problem, Role};
use crate::api::file::{LoadBalancerNode, ServiceStatus};
use crate::api::service_table::{ServiceTable, ServiceTableSpec};
use crate::dataplane::attach::Interface;
use crate::dataplane::links::{IfIndex, Links};
use crate::dataplane::next_hop::{NextHops, turned_round};
use crate::dataplane::{ApplyError, Dataplane};
use crate::metrics::Work;
use crate::model::installed::Installed;
use crate::model::plan;
use crate::model::template::{NextHop, NodeAddresses};
use crate::source::directory::{Batch, Directory, WatchError};
use crate::source::files::{Content, Files};
use crate::source::index::{Index, Named};
use crate::source::output::{Outputs, Writer};
use crate::source::secret::ClusterSecrets;

/// Longest time spent on applying before questions and events are looked at again.
const APPLY_SLICE: Duration = Duration::from_millis(50);
/// How often the maps are read back whole and compared.
const DRIFT_PERIOD: Duration = Duration::from_mins(3);
/// Longest wait at the start for the ways to all nodes. Pinned maps forward meanwhile; what they know of the ways is not
/// replaced by not knowing them yet.
const NEXT_HOPS_WAIT: Duration = Duration::from_secs(2);
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
    /// The directory of objects.
    pub manifests: PathBuf,
    /// Known flows of each family that there is room for; for status.
    pub flows: u32,
    /// Where outputs go and tables come from.
    pub outputs: Outputs,
}

impl Settings {
    /// From the command line.
    pub fn new(options: &Options, outputs: Outputs) -> Self {
        Self {
            node: options.node.clone(),
            role: options.role,
            addresses: options.node_address.clone(),
            relay: !options.no_relay,
            pin_dir: options.pin_dir.clone(),
            manifests: options.manifests.clone(),
            flows: options.flows,
            outputs,
        }
    }
}

/// A Service as the agent knows it from its table.
#[derive(Default)]
pub(super) struct Table {
    /// UID of its Service, as the maps' entries are known by.
    uid: String,
    /// The newest good one; none once its file is gone.
    pub(super) spec: Option<ServiceTableSpec>,
    /// The same, checked.
    decoded: Option<plan::Service>,
    /// Why the newest one is no good.
    pub(super) fault: Option<String>,
    /// Version in the maps.
    pub(super) applied: Option<u64>,
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
    pub(super) index: Index,
    pub(super) tables: BTreeMap<Named, Table>,
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
    pub(super) last_list: Option<jiff::Timestamp>,
    pub(super) last_apply: Option<jiff::Timestamp>,
    drift_at: Instant,
    writer: Writer,
    node_file: Option<LoadBalancerNode>,
    told: Vec<Problem>,
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
        let now = Instant::now();
        let own = view::first_of_each(settings.addresses.iter().copied());
        Ok(Self {
            settings,
            dataplane,
            installed,
            fresh,
            started: now,
            files: Files::default(),
            index: Index::default(),
            tables: BTreeMap::new(),
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
            last_list: None,
            last_apply: None,
            drift_at: now + DRIFT_PERIOD,
            writer: Writer::default(),
            node_file: None,
            told: Vec::new(),
            work: Work::default(),
        })
    }

    /// Starts to follow everything that the agent reads.
    pub fn open_directory(&self) -> Result<(Directory, Batch), WatchError> {
        let Settings {
            manifests, outputs, ..
        } = &self.settings;
        let directories = vec![
            manifests.clone(),
            outputs.root().to_owned(),
            outputs.tables(),
            outputs.statuses(),
        ];
        Directory::open(directories, vec![outputs.secret()])
    }

    /// Takes in new contents of files.
    pub fn take(&mut self, batch: &Batch, now: Instant) {
        for (path, content) in batch {
            let directory = path.parent().unwrap_or(Path::new(""));
            if directory == self.settings.manifests {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                self.files.update(&name, content, &mut self.index);
            } else if directory == self.settings.outputs.tables() {
                self.take_table(path, content, now);
            } else if directory == self.settings.outputs.statuses() {
                self.take_status(path, content);
            } else if *path == self.settings.outputs.secret() {
                self.take_secret(content, now);
            }
        }
        let changed = self.index.take_changed();
        if changed.nodes {
            self.own = view::own_addresses(self);
            self.wanted.send_if_modified(|wanted| {
                let nodes = remote_addresses(&self.index, &self.settings.node);
                let different = *wanted != nodes;
                *wanted = nodes;
                different
            });
        }
        if changed.nodes {
            self.common.want(now);
        }
        if !changed.pods.is_empty() {
            self.locals.want(now);
        }
        if !batch.is_empty() {
            self.last_list = Some(jiff::Timestamp::now());
        }
    }

    fn take_table(&mut self, path: &Path, content: &Content, now: Instant) {
        let Some(named) = named_of(path) else { return };
        let table = self.tables.entry(named).or_default();
        table.attempt.want(now);
        match content {
            Content::Gone => {
                table.spec = None;
                table.fault = None;
            }
            Content::Unreadable(sentence) => table.fault = Some(sentence.clone()),
            Content::Text(text) => match serde_saphyr::from_str::<ServiceTable>(text) {
                Ok(object) => {
                    table.uid.clone_from(&object.spec.service_uid);
                    table.spec = Some(object.spec);
                    table.decoded = None;
                    table.fault = None;
                }
                Err(error) => {
                    let what = error.without_snippet().to_string();
                    table.fault = Some(what.lines().next().unwrap_or_default().to_owned());
                }
            },
        }
    }

    fn take_status(&mut self, path: &Path, content: &Content) {
        let Some(named) = named_of(path) else { return };
        let status = match content {
            Content::Text(text) => serde_saphyr::from_str::<ServiceStatus>(text).ok(),
            Content::Gone | Content::Unreadable(_) => None,
        };
        match status {
            Some(status) => _ = self.statuses.insert(named, status),
            None => _ = self.statuses.remove(&named),
        }
    }

    fn take_secret(&mut self, content: &Content, now: Instant) {
        let read = match content {
            Content::Text(text) => {
                ClusterSecrets::from_yaml(text).map_err(|error| error.to_string())
            }
            Content::Unreadable(sentence) => Err(sentence.clone()),
            Content::Gone => Err("is gone; restore it, the last one stays in use".to_owned()),
        };
        match read {
            Ok(secrets) => {
                self.secret_fault = None;
                if self.secrets.as_ref() != Some(&secrets) {
                    self.secrets = Some(secrets);
                    self.common.want(now);
                }
            }
            Err(fault) => self.secret_fault = Some(fault),
        }
    }

    /// Everything was read once: from here on what is not there does not exist.
    pub fn listed(&mut self, now: Instant) {
        self.listed = true;
        self.locals.want(now);
        self.last_list = Some(jiff::Timestamp::now());
        self.common.want(now);
        self.tidy.want(now);
    }

    /// Whether changes may be missed at the moment.
    pub fn watch_state(&mut self, error: Option<&WatchError>) {
        self.watch_error = error.map(ToString::to_string);
    }

    /// Takes in what became of the programs on the interfaces.
    pub fn interfaces(&mut self, interfaces: &[Interface], xdp: Vec<IfIndex>, links: &Arc<Links>) {
        self.links = Arc::clone(links);
        self.interfaces = interfaces.to_vec();
        if self.xdp_interfaces != xdp {
            self.xdp_interfaces = xdp;
            self.common.want(Instant::now());
        }
    }

    /// The smallest MTU among the interfaces that carry XDP.
    pub(super) fn uplink_mtu(&self) -> Option<u32> {
        self.xdp_interfaces
            .iter()
            .filter_map(|ifindex| Some(self.links.get(*ifindex)?.mtu))
            .min()
    }

    /// The way to an address of another node, as the programs take it.
    pub(super) fn way_to(&self, address: IpAddr) -> Option<NextHop> {
        let hop = self.next_hops.get(&address)?.as_ref().ok()?;
        Some(turned_round(*hop, &self.xdp_interfaces))
    }

    /// Takes in the ways to other nodes.
    pub fn next_hops(&mut self, next_hops: Arc<NextHops>) {
        if *self.next_hops != *next_hops {
            self.next_hops = next_hops;
            self.common.want(Instant::now());
        }
    }

    /// Does what is due, and says when something will be.
    pub fn work(&mut self, now: Instant) -> Instant {
        if self.may_apply(now) {
            self.apply_due(now, now + APPLY_SLICE);
        }
        self.fresh.set(self.is_fresh(), monotonic_ns());
        if now >= self.drift_at {
            self.drift_at = now + DRIFT_PERIOD;
            self.check_drift();
        }
        self.write_node_file(now);
        let problems = self.problems();
        crate::manager::tell(&mut self.told, problems);
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
        self.apply_tables(now, until);
        if self.locals.is_due(now) {
            let outcome = self.apply_locals().map_err(|error| chain(&error));
            self.locals.record(outcome, now);
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
                let tables = self.tables.values().filter_map(|table| table.attempt.due);
                let own = [self.common.due, self.locals.due, self.tidy.due];
                tables.chain(own.into_iter().flatten()).min()
            }
        };
        [work, self.writer.next_due(), Some(self.drift_at)]
            .into_iter()
            .flatten()
            .min()
    }

    /// Applied as far as it can be: what fails is reported and does not take freshness from the rest.
    pub(super) fn is_fresh(&self) -> bool {
        let known = self.listed && self.secrets.is_some() && self.watch_error.is_none();
        known && self.configured && !self.is_waiting()
    }

    /// Something has not been tried yet.
    fn is_waiting(&self) -> bool {
        self.common.is_waiting()
            || self.locals.is_waiting()
            || self.tables.values().any(|table| table.attempt.is_waiting())
    }
}

/// `<namespace>_<service>.yaml`.
fn named_of(path: &Path) -> Option<Named> {
    let (namespace, name) = path.file_stem()?.to_str()?.split_once('_')?;
    Some(Named {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    })
}

/// Addresses of all nodes but one.
fn remote_addresses(index: &Index, own: &str) -> BTreeSet<IpAddr> {
    let nodes = index
        .nodes()
        .filter(|node| node.metadata.name.as_deref() != Some(own));
    nodes
        .flat_map(|node| view::list(view::addresses(node)))
        .collect()
}

#[cfg(test)]
mod tests;
