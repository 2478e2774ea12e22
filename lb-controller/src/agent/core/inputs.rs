//! What the agent hears: files, interfaces, ways to other nodes. Each is noted, and what it makes due is marked; nothing
//! is carried out here.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use super::{Core, Settings, view};
use crate::api::file::ServiceStatus;
use crate::api::service_table::ServiceTable;
use crate::dataplane::attach::Interface;
use crate::dataplane::links::{IfIndex, Links};
use crate::dataplane::next_hop::{NextHops, turned_round};
use crate::model::template::NextHop;
use crate::source::directory::{Batch, Directory, WatchError};
use crate::source::files::Content;
use crate::source::index::{Index, Named};
use crate::source::secret::ClusterSecrets;

impl Core {
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
