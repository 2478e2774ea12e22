//! What the agent knows, and how it brings the maps in line with it. Steps are given the time; nothing here waits for
//! anything but the maps.
//!
//! The order of work: configuration and peers, then each Service by itself, then what is not wanted any more, then what
//! nothing names. A Service that fails is tried again with growing pauses, and stops no other.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::stamp::{Fresh, monotonic_ns};
use super::{Options, view};
use crate::admin::{Problem, Role};
use crate::api::file::{LoadBalancerNode, ServiceStatus};
use crate::api::service_table::{ServiceTable, ServiceTableSpec};
use crate::dataplane::attach::Interface;
use crate::dataplane::links::{IfIndex, Links};
use crate::dataplane::next_hop::{NextHops, turned_round};
use crate::dataplane::{ApplyError, Contents, Dataplane};
use crate::metrics::Work;
use crate::model::installed::Installed;
use crate::model::op::Op;
use crate::model::plan;
use crate::model::template::{NextHop, NodeAddresses};
use crate::source::directory::{Batch, Directory, WatchError};
use crate::source::files::{Content, Files};
use crate::source::index::{Index, Named};
use crate::source::output::{Outputs, Writer};
use crate::source::secret::ClusterSecrets;

/// First pause after a Service has failed …
const RETRY_FIRST: Duration = Duration::from_millis(50);
/// … doubled after each failure up to this.
const RETRY_MAX: Duration = Duration::from_secs(5);
/// Longest time spent on applying before questions and events are looked at again.
const APPLY_SLICE: Duration = Duration::from_millis(50);
/// What nothing names is freed this long after it became so, in one batch: freeing waits for a grace period.
const COLLECT_DELAY: Duration = Duration::from_millis(500);
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

/// Something that is tried until it succeeds.
#[derive(Clone, Debug, Default)]
pub(super) struct Attempt {
    /// When to try (again); none when there is nothing to do.
    due: Option<Instant>,
    pause: Duration,
    /// Why the last try failed.
    pub(super) error: Option<String>,
}

impl Attempt {
    /// Wants it done now, or when its pause is over.
    fn want(&mut self, now: Instant) {
        if self.error.is_none() || self.due.is_none() {
            self.due = Some(now);
        }
    }

    fn is_due(&self, now: Instant) -> bool {
        self.due.is_some_and(|due| due <= now)
    }

    fn record(&mut self, outcome: Result<(), String>, now: Instant) {
        match outcome {
            Ok(()) => *self = Self::default(),
            Err(error) => {
                self.pause = (self.pause * 2).clamp(RETRY_FIRST, RETRY_MAX);
                self.due = Some(now + self.pause);
                self.error = Some(error);
            }
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
    /// Configuration, peers, next hops, local pods.
    pub(super) common: Attempt,
    /// Removing what no table names, and freeing what nothing names.
    pub(super) tidy: Attempt,
    pub(super) interfaces: Vec<Interface>,
    xdp_interfaces: Vec<IfIndex>,
    pub(super) links: Arc<Links>,
    pub(super) next_hops: Arc<NextHops>,
    wanted: watch::Sender<BTreeSet<IpAddr>>,
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
            tidy: Attempt::default(),
            interfaces: Vec::new(),
            xdp_interfaces: Vec::new(),
            links: Arc::default(),
            next_hops: Arc::default(),
            wanted,
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
        if !changed.is_empty() {
            self.common.want(now);
        }
        // What a Service's pods are doing may change who gets its first packets.
        for named in &changed.services {
            if let Some(table) = self.tables.get_mut(named) {
                table.attempt.want(now);
            }
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
        let until = now + APPLY_SLICE;
        if self.listed && self.secrets.is_some() && self.ways_are_known(now) {
            if self.common.is_due(now) {
                let outcome = self.apply_common().map_err(|error| chain(&error));
                self.common.record(outcome, now);
            }
            if self.common.due.is_none() {
                self.apply_tables(now, until);
                if !self.is_waiting() {
                    self.apply_tidy(now);
                }
            }
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

    /// The ways to all nodes are known, or were waited for. Later on, those that are not known yet do not hold up the rest.
    fn ways_are_known(&mut self, now: Instant) -> bool {
        let Some(until) = self.next_hops_until else {
            return true;
        };
        let all = self
            .wanted
            .borrow()
            .iter()
            .all(|address| self.next_hops.get(address).is_some_and(Result::is_ok));
        if all || now >= until {
            self.next_hops_until = None;
        }
        self.next_hops_until.is_none()
    }

    fn next_due(&self) -> Option<Instant> {
        let tables = self.tables.values().filter_map(|table| table.attempt.due);
        let own = [self.common.due, self.tidy.due].into_iter().flatten();
        // Before everything is known nothing of it is done, however long it has been due.
        let work = match self.next_hops_until {
            Some(until) => Some(until),
            None if self.secrets.is_none() => None,
            None => tables.chain(own).min(),
        };
        [work, self.writer.next_due()].into_iter().flatten().min()
    }

    /// Applied as far as it can be: what fails is reported and does not take freshness from the rest.
    pub(super) fn is_fresh(&self) -> bool {
        let known = self.listed && self.secrets.is_some() && self.watch_error.is_none();
        known && self.common.due.is_none() && !self.is_waiting()
    }

    /// Some table has not been tried yet.
    fn is_waiting(&self) -> bool {
        self.tables
            .values()
            .any(|table| table.attempt.due.is_some() && table.attempt.error.is_none())
    }

    fn apply(&mut self, ops: &[Op]) -> Result<(), ApplyError> {
        for op in ops {
            self.dataplane.apply(op)?;
            self.installed.record(op);
        }
        Ok(())
    }

    fn apply_tables(&mut self, now: Instant, until: Instant) {
        let due: Vec<_> = self
            .tables
            .iter()
            .filter(|(_, table)| table.attempt.is_due(now))
            .map(|(named, _)| named.clone())
            .collect();
        for named in due {
            if Instant::now() >= until {
                break;
            }
            let Some(mut table) = self.tables.remove(&named) else {
                continue;
            };
            let started = Instant::now();
            let outcome = self.apply_table(&mut table);
            self.work
                .apply_seconds
                .observe(started.elapsed().as_secs_f64());
            self.work.applies[usize::from(outcome.is_ok())] += 1;
            table.attempt.record(outcome, now);
            self.last_apply = Some(jiff::Timestamp::now());
            self.tidy.due.get_or_insert(now + COLLECT_DELAY);
            if table.spec.is_some() || table.fault.is_some() || table.attempt.due.is_some() {
                self.tables.insert(named, table);
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
        let decoded = match table.decoded.take() {
            Some(decoded) => decoded,
            None => self.installed.decode(spec).map_err(|error| chain(&error))?,
        };
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
        }
        Ok(())
    }

    /// Brings the maps in line with what all Services share.
    fn apply_common(&mut self) -> Result<(), ApplyError> {
        let Some(secrets) = self.secrets.clone() else {
            return Ok(());
        };
        self.installed.set_view(view::of(self, &secrets));
        let complete = self.files.complete();
        let config = self.installed.plan_config(view::config(self, &secrets));
        self.apply(config.as_slice())?;
        let peers = self.installed.plan_peers(complete);
        self.apply(&peers)?;
        let backends = self.installed.plan_backends();
        self.apply(&backends)?;
        self.apply_locals()
    }

    /// Brings the list of this node's pod ports in line, and ends the flows of dead pods.
    fn apply_locals(&mut self) -> Result<(), ApplyError> {
        // Who is not known to be alive is dead only if everybody is known.
        if !self.files.complete() {
            return Ok(());
        }
        let alive = view::living(self);
        let wanted: Vec<_> = self.decoded().collect();
        let locals = self.installed.plan_locals(&alive, &wanted);
        self.apply(&locals)
    }

    /// All tables that ids were chosen for.
    pub(super) fn decoded(&self) -> impl Iterator<Item = &plan::Service> {
        self.tables
            .values()
            .filter_map(|table| table.decoded.as_ref())
    }

    /// Removes what no table names, then frees what nothing names.
    fn apply_tidy(&mut self, now: Instant) {
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
        let unnamed = self.installed.collect(self.decoded());
        self.apply(&unnamed)
    }

    /// Compares what the maps hold with what they should.
    fn check_drift(&mut self) {
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

    /// How many operations would bring the maps in line, if they were all that is known.
    fn drift(&self, contents: &Contents) -> u64 {
        let mut found = Installed::from_contents(
            contents,
            self.dataplane.capacity(),
            self.installed.view().clone(),
        );
        let mut operations = 0;
        for table in self
            .tables
            .values()
            .filter(|table| table.applied.is_some() && table.attempt.due.is_none())
        {
            let Some(spec) = &table.spec else { continue };
            let planned = found.decode(spec).and_then(|decoded| found.plan(&decoded));
            operations += planned.map_or(1, |ops| ops.len());
        }
        operations += found.plan_backends().len();
        (operations + view::wrong_rows(contents, self.decoded())) as u64
    }

    /// Writes the node's file if it has changed.
    fn write_node_file(&mut self, now: Instant) {
        let file = view::node_file(self);
        if self.node_file.as_ref() != Some(&file)
            && let Ok(text) = serde_saphyr::to_string(&file)
        {
            let path = self
                .settings
                .outputs
                .nodes()
                .join(format!("{}.yaml", self.settings.node));
            self.writer.write(path, text, now);
            self.node_file = Some(file);
        }
        self.writer.flush(now);
    }

    /// Everything that is wrong.
    pub(super) fn problems(&self) -> Vec<Problem> {
        let mut problems = self.files.problems();
        let mut add = |object: String, sentence: &str| {
            problems.push(Problem {
                object,
                sentence: sentence.to_owned(),
            });
        };
        for (named, status) in &self.statuses {
            for sentence in &status.problems {
                add(format!("Service {named}"), sentence);
            }
        }
        for (named, table) in &self.tables {
            if let Some(fault) = &table.fault {
                add(
                    format!("ServiceTable {named}"),
                    &format!("{fault}; remove its file, the manager writes it anew"),
                );
            }
            if let Some(error) = &table.attempt.error {
                add(
                    format!("Service {named}"),
                    &format!("is not programmed as its table says: {error}; it is tried again"),
                );
            }
        }
        if let Some(fault) = &self.secret_fault {
            add(
                format!("file {}", self.settings.outputs.secret().display()),
                fault,
            );
        }
        if let Some(error) = &self.watch_error {
            add(
                format!("directory {}", self.settings.manifests.display()),
                error,
            );
        }
        for (what, attempt) in [("configuration", &self.common), ("clearing up", &self.tidy)] {
            if let Some(error) = &attempt.error {
                add(
                    format!("{what} of node {}", self.settings.node),
                    &format!("has not succeeded: {error}; it is tried again"),
                );
            }
        }
        for interface in &self.interfaces {
            if let Some(problem) = &interface.problem {
                add(format!("interface {}", interface.name), problem);
            }
        }
        problems.extend(self.writer.problems());
        problems
    }

    /// Why the node should not be used yet, or not as it is.
    pub fn not_ready_because(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        let mut unless = |holds: bool, reason: &str| {
            if !holds {
                reasons.push(reason.to_owned());
            }
        };
        unless(self.listed, "the directory has not been read yet");
        unless(
            self.secrets.is_some(),
            "the secrets of the cluster are missing; start the manager",
        );
        unless(
            self.watch_error.is_none(),
            "changes of the directory may be missed; see problems",
        );
        unless(
            self.common.due.is_none(),
            "configuration and peers are not applied yet",
        );
        unless(
            self.own != NodeAddresses::default(),
            "the node has no address; add its Node object with an InternalIP, or give --node-address",
        );
        unless(
            self.interfaces
                .iter()
                .any(|interface| interface.xdp.is_some()),
            "no interface carries the XDP program; see problems",
        );
        let untold = self.known().into_iter().filter(|(named, table)| {
            table.is_none()
                && self
                    .statuses
                    .get(named)
                    .is_none_or(|status| status.problems.is_empty())
        });
        reasons.extend(untold.map(|(named, _)| {
            format!("Service {named} has no table yet; see that the manager runs")
        }));
        reasons.extend(
            self.tables
                .iter()
                .filter(|(_, table)| table.attempt.due.is_some())
                .map(|(named, table)| {
                    let why = table.attempt.error.as_deref().unwrap_or("not applied yet");
                    format!("Service {named}: {why}")
                }),
        );
        reasons
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

/// An error with its causes, in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests;
