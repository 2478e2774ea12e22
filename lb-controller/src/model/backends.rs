//! Candidates as the agent knows them: pods and ports with the backend id of each, and what the maps hold for it.
//!
//! A candidate keeps its id from the first table that names it until nothing does; ids are found again after a restart
//! from the headers in the maps. A candidate is `known` once a table has said on which node it is.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use lb_ebpf::abi::{self, backend_flag};
use lb_ebpf::wire::{Addr6, Be16, Be32};

use super::ids::Used;
use super::op::{BackendId, LocalKey};
use super::template::{self, NextHop, NodeAddresses, Place, PodPort, Sender};

/// Another node, as this one sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NodeView {
    /// Its addresses.
    pub addresses: NodeAddresses,
    /// The way to its IPv4 address, if known.
    pub hop4: Option<NextHop>,
    /// The way to its IPv6 address, if known.
    pub hop6: Option<NextHop>,
}

/// What backends are made from beside tables: this node, the others, and the ways to them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct View {
    /// Name of this node.
    pub node: Arc<str>,
    /// Its addresses, the secret, the port.
    pub sender: Sender,
    /// All other nodes by name.
    pub nodes: HashMap<Arc<str>, NodeView>,
    /// Connections are handed off, so that flows can be pinned.
    pub hands_off: bool,
    /// Those of them that seem to be down: their pods get no first packets and are asked last. They are not dead.
    pub suspected: BTreeSet<Arc<str>>,
}

impl View {
    /// The value of the `backends` map for a candidate.
    pub(super) fn render(&self, pod: &PodPort, node: &str) -> abi::Backend {
        if *node == *self.node {
            return template::backend(pod, &Place::Local, &self.sender);
        }
        let NodeView {
            addresses,
            hop4,
            hop6,
        } = self.nodes.get(node).copied().unwrap_or_default();
        let place = Place::Remote {
            node: addresses,
            hop4,
            hop6,
        };
        let mut backend = template::backend(pod, &place, &self.sender);
        if self.suspected.contains(node) {
            backend.flags |= backend_flag::SUSPECTED;
        }
        backend
    }
}

/// Where a candidate is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Known {
    pub(super) node: Arc<str>,
    pub(super) uid: Arc<str>,
    /// An endpoint without a pod.
    pub(super) podless: bool,
}

/// One backend id.
#[derive(Clone, Debug, Default)]
pub(super) struct Entry {
    /// Who it is; none for an id in the maps that is no backend of ours.
    pub(super) pod: Option<PodPort>,
    pub(super) known: Option<Known>,
    /// What the map holds; none while it holds nothing.
    pub(super) value: Option<Box<abi::Backend>>,
    /// The last plan that writes it.
    pub(super) planned: u32,
}

/// All backend ids.
#[derive(Clone, Debug)]
pub(super) struct Backends {
    by_pod: HashMap<PodPort, BackendId>,
    entries: Vec<Entry>,
    used: Used,
}

impl Backends {
    pub(super) fn new(limit: u32) -> Self {
        let mut used = Used::new(limit);
        used.insert(0);
        Self {
            by_pod: HashMap::new(),
            entries: vec![Entry::default()],
            used,
        }
    }

    /// The id of a candidate: a new one if it has none. None if there is no id left.
    pub(super) fn intern(&mut self, pod: PodPort, known: Known) -> Option<BackendId> {
        let id = if let Some(id) = self.by_pod.get(&pod) {
            *id
        } else {
            let id = BackendId(self.used.free_from(1)?);
            self.used.insert(id.0);
            self.by_pod.insert(pod, id);
            self.entry_mut(id).pod = Some(pod);
            id
        };
        self.entry_mut(id).known = Some(known);
        Some(id)
    }

    /// Notes what a map holds.
    pub(super) fn set(&mut self, id: BackendId, value: &abi::Backend) {
        self.used.insert(id.0);
        let pod = template::pod_port(value);
        if let Some(pod) = pod {
            self.by_pod.entry(pod).or_insert(id);
        }
        let entry = self.entry_mut(id);
        entry.pod = entry.pod.or(pod);
        entry.value = Some(Box::new(*value));
    }

    /// Forgets an id.
    pub(super) fn free(&mut self, id: BackendId) {
        let entry = std::mem::take(self.entry_mut(id));
        if let Some(pod) = entry.pod
            && self.by_pod.get(&pod) == Some(&id)
        {
            self.by_pod.remove(&pod);
        }
        self.used.remove(id.0);
    }

    fn entry_mut(&mut self, id: BackendId) -> &mut Entry {
        let at = id.0 as usize;
        if at >= self.entries.len() {
            self.entries.resize_with(at + 1, Entry::default);
        }
        &mut self.entries[at]
    }

    pub(super) fn get(&self, id: BackendId) -> Option<&Entry> {
        self.entries
            .get(id.0 as usize)
            .filter(|_| self.used.contains(id.0))
    }

    /// Marks that this plan writes it; true the first time.
    pub(super) fn plan(&mut self, id: BackendId, plan: u32) -> bool {
        let entry = self.entry_mut(id);
        std::mem::replace(&mut entry.planned, plan) != plan
    }

    /// All ids in use but 0.
    pub(super) fn iter(&self) -> impl Iterator<Item = (BackendId, &Entry)> {
        let entries = self.entries.iter().enumerate().skip(1);
        entries
            .map(|(at, entry)| (BackendId(at as u32), entry))
            .filter(|(id, _)| self.used.contains(id.0))
    }

    /// How many are in use.
    pub(super) fn len(&self) -> u32 {
        self.used.len() - 1
    }
}

/// Key and value that say that a candidate lives on this node; none if the value says that it does not.
pub(super) fn local(
    id: BackendId,
    pod: &PodPort,
    value: &abi::Backend,
) -> Option<(LocalKey, abi::LocalPod)> {
    let port = Be16::new(pod.port);
    let key = match pod.address {
        std::net::IpAddr::V4(a) => LocalKey::V4(abi::LocalKey {
            addr: Be32::from_bytes(a.octets()),
            port,
            pad: 0,
        }),
        std::net::IpAddr::V6(a) => LocalKey::V6(abi::LocalKey {
            addr: Addr6::from_bytes(a.octets()),
            port,
            pad: 0,
        }),
    };
    let here = value.flags & backend_flag::LOCAL != 0;
    here.then_some((
        key,
        abi::LocalPod {
            identity: pod.identity,
            backend: id.0,
        },
    ))
}
