//! What the agent hears: files, interfaces, ways to other nodes. Each is noted, and what it makes due is marked; nothing
//! is carried out here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use super::{Core, Origin, view};
use crate::announce::facts;
use crate::api::file::ServiceStatus;
use crate::api::service_table::{ServiceTable, ServiceTableSpec};
use crate::dataplane::attach::Interface;
use crate::dataplane::links::{IfIndex, Links};
use crate::dataplane::next_hop::{NextHops, turned_round};
use crate::model::template::NextHop;
use crate::source::directory::{Batch, Directory, WatchError};
use crate::source::files::Content;
use crate::source::index::{Event, Index, Named};
use crate::source::output::Outputs;
use crate::source::parse::{Kind, Object, ObjectKey};
use crate::source::secret::ClusterSecrets;

impl Core {
    /// Starts to follow everything that the agent reads of a directory.
    pub fn open_directory(
        manifests: &Path,
        outputs: &Outputs,
    ) -> Result<(Directory, Batch), WatchError> {
        let directories = vec![
            manifests.to_owned(),
            outputs.root().to_owned(),
            outputs.tables(),
            outputs.statuses(),
            outputs.drains(),
        ];
        Directory::open(directories, vec![outputs.secret()])
    }

    /// Takes in new contents of files.
    pub fn take(&mut self, batch: &Batch, now: Instant) {
        let Origin::Directory { manifests, outputs } = self.settings.origin.clone() else {
            return;
        };
        for (path, content) in batch {
            let directory = path.parent().unwrap_or(Path::new(""));
            if directory == manifests {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                self.files.update(&name, content, &mut self.index);
            } else if directory == outputs.tables() {
                self.take_table_file(path, content, now);
            } else if directory == outputs.drains() {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                self.drains.update(&name, content, &mut self.index);
            } else if directory == outputs.statuses() {
                self.take_status(path, content);
            } else if *path == outputs.secret() {
                self.take_secret_file(content, now);
            }
        }
        self.take_changes(now);
        if !batch.is_empty() {
            self.last_list = Some(jiff::Timestamp::now());
        }
    }

    /// Takes in what the API server tells.
    pub fn take_objects(&mut self, events: Vec<Event>, now: Instant) {
        if !events.is_empty() {
            self.last_list = Some(jiff::Timestamp::now());
        }
        for event in events {
            match event {
                Event::Apply(key, object) => self.take_object(key, Some(object), now),
                Event::Delete(key) => self.take_object(key, None, now),
                Event::Refused(key, sentence) => _ = self.refused.insert(key, sentence),
                Event::Reset {
                    kind,
                    objects,
                    refused,
                } => self.take_list(kind, objects, refused, now),
            }
        }
        self.take_changes(now);
    }

    fn take_object(&mut self, key: ObjectKey, object: Option<Object>, now: Instant) {
        self.refused.remove(&key);
        let named = named(&key);
        match (key.kind, object) {
            (Kind::ServiceTable, Some(Object::ServiceTable(table))) => {
                let revision = table.metadata.resource_version.as_deref();
                let revision = revision.and_then(|revision| revision.parse().ok());
                self.take_table(named, Some((table.spec, revision.unwrap_or(0))), now);
            }
            (Kind::ServiceTable, _) => self.take_table(named, None, now),
            (Kind::Secret, Some(Object::Secret(secret))) => self.take_secret(
                ClusterSecrets::from_secret(&secret).map_err(|error| error.to_string()),
                now,
            ),
            (Kind::Secret, _) => self.take_secret(Err(SECRET_GONE.to_owned()), now),
            (_, Some(object)) => _ = self.index.apply(key, object),
            (_, None) => _ = self.index.delete(&key),
        }
    }

    /// A whole list of a kind. What is not in it is gone.
    fn take_list(
        &mut self,
        kind: Kind,
        objects: BTreeMap<ObjectKey, Object>,
        refused: BTreeMap<ObjectKey, String>,
        now: Instant,
    ) {
        self.refused.retain(|key, _| key.kind != kind);
        match kind {
            Kind::ServiceTable => {
                let there: BTreeSet<_> = objects.keys().chain(refused.keys()).map(named).collect();
                let gone: Vec<_> = self
                    .tables
                    .keys()
                    .filter(|named| !there.contains(*named))
                    .cloned()
                    .collect();
                for named in gone {
                    self.take_table(named, None, now);
                }
                for (key, object) in objects {
                    self.take_object(key, Some(object), now);
                }
            }
            Kind::Secret => {
                for (key, object) in objects {
                    self.take_object(key, Some(object), now);
                }
            }
            Kind::Node
            | Kind::Pod
            | Kind::Service
            | Kind::EndpointSlice
            | Kind::Namespace
            | Kind::AddressPool
            | Kind::L2Advertisement
            | Kind::BGPPeer
            | Kind::BGPAdvertisement
            | Kind::NodeDrain
            | Kind::LoadBalancerNode => _ = self.index.reset_kind(kind, objects, &refused),
        }
        self.refused.extend(refused);
    }

    /// Marks what is due after changes of objects.
    fn take_changes(&mut self, now: Instant) {
        let changed = self.index.take_changed();
        if changed.nodes {
            self.own = view::own_addresses(self);
            self.want_ways();
        }
        if changed.nodes {
            self.common.want(now);
        }
        if changed.nodes || changed.kinds.contains(&Kind::LoadBalancerNode) {
            let agents = self.find_agents();
            // Their roles are not among these.
            if *self.agents != agents || changed.kinds.contains(&Kind::LoadBalancerNode) {
                self.agents = Arc::new(agents);
                self.common.want(now);
                self.look_for_streams(now);
            }
        }
        self.announce_after(&changed, now);
        if !changed.pods.is_empty() {
            self.locals.want(now);
        }
    }

    /// Wants the ways to all other nodes.
    pub(super) fn want_ways(&self) {
        let mut nodes = remote_addresses(&self.index, &self.settings.node);
        let unnamed = self.announcing.liveness.unnamed.values();
        nodes.extend(unnamed.flat_map(|addresses| view::list(*addresses)));
        self.wanted.send_if_modified(|wanted| {
            let different = *wanted != nodes;
            *wanted = nodes;
            different
        });
    }

    /// A Service's table came, changed or went. The number says how new it is, see [`Tables::revision`].
    pub fn take_table(
        &mut self,
        named: Named,
        told: Option<(ServiceTableSpec, u64)>,
        now: Instant,
    ) {
        let (spec, revision) = told.unzip();
        let mut table = self.tables.take(&named).unwrap_or_default();
        table.revision = revision.unwrap_or(0);
        if spec.is_some() && table.spec == spec && table.fault.is_none() {
            return self.tables.put(named, table);
        }
        self.route_again();
        table.attempt.want(now);
        let told = |spec: &Option<ServiceTableSpec>| {
            let told = |spec: &ServiceTableSpec| (spec.vips.clone(), facts::tabled_nodes(spec));
            spec.as_ref().map(told)
        };
        if told(&table.spec) != told(&spec) {
            self.choose_again(now);
        }
        table.fault = None;
        if let Some(spec) = &spec {
            table.uid.clone_from(&spec.service_uid);
            table.decoded = None;
        }
        table.spec = spec;
        self.tables.put(named, table);
    }

    fn take_table_file(&mut self, path: &Path, content: &Content, now: Instant) {
        let Some(named) = named_of(path) else { return };
        let fault = match content {
            Content::Gone => return self.take_table(named, None, now),
            Content::Unreadable(sentence) => sentence.clone(),
            Content::Text(text) => match serde_saphyr::from_str::<ServiceTable>(text) {
                Ok(object) => {
                    let version = object.spec.version;
                    return self.take_table(named, Some((object.spec, version)), now);
                }
                Err(error) => {
                    let what = error.without_snippet().to_string();
                    what.lines().next().unwrap_or_default().to_owned()
                }
            },
        };
        let mut table = self.tables.take(&named).unwrap_or_default();
        table.attempt.want(now);
        table.fault = Some(fault);
        self.tables.put(named, table);
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

    fn take_secret_file(&mut self, content: &Content, now: Instant) {
        let read = match content {
            Content::Text(text) => {
                ClusterSecrets::from_yaml(text).map_err(|error| error.to_string())
            }
            Content::Unreadable(sentence) => Err(sentence.clone()),
            Content::Gone => Err(SECRET_GONE.to_owned()),
        };
        self.take_secret(read, now);
    }

    /// The secrets of the cluster, or what is wrong with them: then the last good ones stay in use.
    pub fn take_secret(&mut self, read: Result<ClusterSecrets, String>, now: Instant) {
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
        self.choose_again(now);
        self.tidy.want(now);
    }

    /// Whether changes may be missed at the moment.
    pub fn watch_state(&mut self, error: Option<String>) {
        self.watch_error = error;
    }

    /// Whether everything was read once.
    pub fn is_listed(&self) -> bool {
        self.listed
    }

    /// Why the node's object could not be written.
    pub fn node_fault(&mut self, fault: Option<String>) {
        self.node_fault = fault;
    }

    /// Takes in what became of the programs on the interfaces.
    pub fn interfaces(&mut self, interfaces: &[Interface], xdp: Vec<IfIndex>, links: &Arc<Links>) {
        // MACs are among the links, indices among the interfaces.
        if self.links != *links || self.interfaces != interfaces {
            self.links = Arc::clone(links);
            self.interfaces = interfaces.to_vec();
            self.choose_again(Instant::now());
        }
        if self.xdp_interfaces != xdp {
            self.xdp_interfaces = xdp;
            self.common.want(Instant::now());
        }
    }

    /// The smallest MTU among the interfaces that carry XDP.
    pub(in crate::agent) fn uplink_mtu(&self) -> Option<u32> {
        self.xdp_interfaces
            .iter()
            .filter_map(|ifindex| Some(self.links.get(*ifindex)?.mtu))
            .min()
    }

    /// The way to an address of another node, as the programs take it.
    pub(in crate::agent) fn way_to(&self, address: IpAddr) -> Option<NextHop> {
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
}

/// What is said when the Secret is removed.
const SECRET_GONE: &str = "is gone; restore it, the last one stays in use";

fn named(key: &ObjectKey) -> Named {
    Named {
        namespace: key.namespace.clone(),
        name: key.name.clone(),
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
