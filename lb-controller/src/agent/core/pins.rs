//! Pins: those that this node wants for flows of its own pods, and those of all nodes in its maps.
//!
//! ```text
//! reports, sweep ─▶ Outbox (this node's own) ─▶ streams to others
//!                                            └▶ Receiver ─▶ maps      a node is its own balancer, the first to know
//! streams of others ─────────────────────────▶ Receiver ─▶ maps ─▶ acknowledgement
//! ```
//!
//! What the maps held when the agent started stays until its writer has said anew what it wants; this node's own is what it still
//! has a pod and a flow for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use lb_ebpf::abi::Event;
use tokio::sync::Notify;

use super::{Core, Origin, chain, view};
use crate::admin::Role;
use crate::dataplane::flows::FlowRecord;
use crate::handoff::counts::{ServerCounts, Streams, Tally};
use crate::handoff::outbox::Outbox;
use crate::handoff::{Nodes, Others, RECORDS_MAX};
use crate::model::endpoint::is_alive;
use crate::model::freshness::Stream;
use crate::model::op::{Op, PinKey};
use crate::model::pins::{
    Batch, FlowKey, Incarnation, LOG_MAX, PinOp, PinnedPod, Position, Receiver, Writer,
};
use crate::model::plan::address_of;
use crate::model::secret::identity;
use crate::model::template::NodeAddresses;
use crate::source::index::Named;

/// How long to wait until it is tried again to read what the maps have pinned.
const START_RETRY: Duration = Duration::from_millis(20);

/// What is known about pins.
pub(in crate::agent) struct Pins {
    /// Connections are handed off.
    pub(super) is_on: bool,
    /// This node's own; none before it is known what was pinned when the agent started.
    pub(super) outbox: Option<Arc<Outbox>>,
    pub(super) receiver: Receiver,
    /// What the receiver has answered and the maps do not hold yet: until they do, nothing is acknowledged.
    pub(super) undone: Vec<PinOp>,
    /// Streams of other nodes.
    pub(super) writers: BTreeMap<Arc<str>, Writing>,
    /// Nodes whose pins are not all here, and are waited for.
    pub(super) missing: BTreeSet<Arc<str>>,
    /// When one of them is given up.
    pub(super) missing_until: Option<Instant>,
    /// Services whose newest version waits for pins, or has waited.
    pub(super) gated: BTreeSet<Named>,
    /// How the streams to others are.
    pub(in crate::agent) streams: Tally<Streams>,
    /// What this node's server saw.
    pub(in crate::agent) server: Tally<ServerCounts>,
    /// When a copy of what is missing may be asked for; none: nobody was asked yet.
    pub(super) copy_at: Option<Instant>,
    /// Whether there are certificates to make and take streams with; none: nobody has looked yet.
    certificates: Option<bool>,
    /// The pins of all that live were here once, or the maps of an earlier start had them: the node may be chosen to announce.
    pub(super) is_complete: bool,
    /// Wakes who looks through the flows.
    pub(in crate::agent) sweep: Arc<Notify>,
    /// Flows that could not be pinned, since there are as many as there may be.
    pub(super) refused: u64,
    /// Why the last could not.
    pub(super) fault: Option<String>,
}

/// The stream of another node.
pub(super) struct Writing {
    /// Since when it is waited for: when the node came, the stream ended, or this agent started.
    pub(super) since: Instant,
    /// Where the writer was when it began; none while there is no stream.
    pub(super) greeted: Option<Position>,
}

impl Pins {
    pub(super) fn new(is_on: bool, goes_on: bool, pins_max: usize) -> Self {
        Self {
            is_on,
            outbox: None,
            receiver: Receiver::new(pins_max),
            undone: Vec::new(),
            writers: BTreeMap::new(),
            missing: BTreeSet::new(),
            missing_until: None,
            gated: BTreeSet::new(),
            streams: Tally::default(),
            server: Tally::default(),
            copy_at: None,
            certificates: None,
            is_complete: goes_on || !is_on,
            sweep: Arc::default(),
            refused: 0,
            fault: None,
        }
    }

    /// How a node's stream is.
    pub(super) fn stream(&self, node: &Arc<str>, is_down: bool) -> Stream {
        match self.writers.get(node) {
            Some(Writing {
                greeted: Some(written),
                ..
            }) if self.receiver.position(node) >= Some(*written) => Stream::Complete,
            Some(writing) if !is_down => Stream::Awaited(writing.since),
            Some(_) | None => Stream::Down,
        }
    }

    /// How far this node's own pins are; none before they are known.
    pub(in crate::agent) fn written(&self) -> Option<Position> {
        self.outbox
            .as_ref()
            .map(|outbox| outbox.with(|writer| writer.position()))
    }
}

/// Flows that somebody has looked through.
#[derive(Debug, Default)]
pub(in crate::agent) struct Swept {
    /// Those that must be pinned.
    pub(in crate::agent) found: Vec<FlowRecord>,
    /// Pinned ones that have ended, and their pods.
    pub(in crate::agent) ended: Vec<(FlowKey, SocketAddr)>,
    /// Proposals that were looked at.
    pub(in crate::agent) proposals: Vec<u64>,
    /// The drain for which all flows were found.
    pub(in crate::agent) drain: Option<Arc<str>>,
    /// Flows that are open; none but with the last piece.
    pub(in crate::agent) open: Option<u64>,
}

impl Core {
    /// This node's pins, once it is known what was pinned when the agent started.
    pub fn outbox(&self) -> Option<Arc<Outbox>> {
        self.pins.outbox.clone()
    }

    /// Other nodes that have an agent, found anew.
    pub(super) fn find_agents(&self) -> Others {
        let own = self.settings.node.as_str();
        let all: Vec<(Arc<str>, NodeAddresses)> = match self.settings.origin {
            Origin::Directory { .. } => {
                let nodes = self.index.nodes();
                let named = nodes.filter_map(|node| Some((node.metadata.name.as_deref()?, node)));
                named
                    .map(|(name, node)| (name.into(), view::addresses(node)))
                    .collect()
            }
            Origin::Cluster => {
                let balancers = self.index.balancers().filter_map(|balancer| {
                    let name = balancer.metadata.name.as_deref()?;
                    let addresses = balancer.spec.addresses.iter().copied();
                    let addresses = addresses.collect();
                    self.index.has_node(name).then(|| (name.into(), addresses))
                });
                balancers.collect()
            }
        };
        all.into_iter()
            .filter(|(name, addresses)| **name != *own && *addresses != NodeAddresses::default())
            .collect()
    }

    /// Where this node is, and the others that have an agent; the same value until it changes.
    pub(in crate::agent) fn whereabouts(&self) -> (NodeAddresses, Arc<Others>) {
        (self.own, Arc::clone(&self.agents))
    }

    /// This node and the others, for who listens.
    pub(in crate::agent) fn handoff_nodes(&self) -> Nodes {
        Nodes {
            own: self.own,
            nodes: BTreeMap::clone(&self.agents),
        }
    }

    /// Who is told this node's pins.
    pub(in crate::agent) fn handoff_balancers(&self) -> Others {
        let mut others = BTreeMap::clone(&self.agents);
        others.retain(|name, _| !self.is_owner_only(name));
        others
    }

    /// Whether there are certificates to make and take streams with. From when there are, all streams are waited for.
    pub(in crate::agent) fn certificates(&mut self, are_there: bool, now: Instant) {
        let before = self.pins.certificates.replace(are_there);
        if before == Some(are_there) {
            return;
        }
        if !are_there {
            tracing::warn!("there are no certificates, so no connection is handed off");
        }
        let waited_for = self.pins.writers.values_mut();
        for writing in waited_for.filter(|writing| writing.greeted.is_none()) {
            writing.since = now;
        }
        self.look_for_streams(now);
    }

    /// Does what is due about pins, and says when something will be.
    pub(super) fn work_pins(&mut self, now: Instant) -> Option<Instant> {
        if !self.pins.is_on || !self.listed || !self.configured {
            return None;
        }
        if self.pins.outbox.is_none()
            && let Err(error) = self.start_pins(now)
        {
            self.pins.fault = Some(chain(&error));
            return Some(now + START_RETRY);
        }
        self.carry_out(now);
        if view::half_open_reports(self) != self.installed.config().half_open_reports_per_second {
            self.common.want(now);
        }
        self.look_for_streams(now);
        if self.pins.missing.is_empty() && !self.pins.is_complete {
            self.pins.is_complete = true;
            self.choose_again(now);
        }
        let handoffs = self.answer_handoffs(now);
        let drains = self.work_drains(now);
        [handoffs, drains, self.pins.missing_until]
            .into_iter()
            .flatten()
            .min()
    }

    /// Takes over what the maps have pinned, and begins to tell this node's own.
    fn start_pins(&mut self, now: Instant) -> Result<(), crate::dataplane::ApplyError> {
        let own: Arc<str> = self.settings.node.as_str().into();
        let mut names: BTreeMap<IpAddr, Arc<str>> = BTreeMap::new();
        for (name, node) in &self.installed.view().nodes {
            for address in view::list(node.addresses) {
                names.insert(address, Arc::clone(name));
            }
        }
        let mut kept = BTreeMap::new();
        let mut orphans = Vec::new();
        let mut inherited = Vec::new();
        for (key, places) in self.installed.pinned() {
            let key = FlowKey::of_tuple(key);
            let mut writers = Vec::new();
            for (id, node) in places {
                let writer = match node {
                    None => Some(Arc::clone(&own)),
                    Some(address) => names.get(&address).cloned(),
                };
                if let Some(writer) = writer {
                    if writer == own
                        && let Some(pod) = self.pod_of_backend(id)
                    {
                        kept.insert(key, pod);
                    }
                    writers.push((writer, id));
                }
            }
            if writers.is_empty() {
                orphans.push(key);
            } else {
                inherited.push((key, writers));
            }
        }
        for key in orphans {
            // Nobody will ever say whether it is still wanted: its node is gone, and its pod with it.
            self.apply(&[Op::RemovePin { key: key.tuple() }])?;
        }
        for (key, writers) in inherited {
            self.pins.receiver.inherit(key, writers);
        }
        let incarnation = Incarnation(Timestamp::now().as_millisecond().cast_unsigned());
        tracing::info!(
            incarnation = incarnation.0,
            own = kept.len(),
            all = self.installed.pins(),
            "pins are handed off from here on"
        );
        let writer = Writer::new(incarnation, kept);
        let writer = writer.with_limits(self.settings.pins as usize, LOG_MAX);
        self.pins.outbox = Some(Outbox::new(writer));
        self.look_for_streams(now);
        self.follow_own();
        Ok(())
    }

    /// The pod behind a backend of this node, if it lives.
    fn pod_of_backend(&self, id: crate::model::op::BackendId) -> Option<PinnedPod> {
        let (_, port, _) = self.installed.backends().find(|(other, ..)| *other == id)?;
        self.own_pod(SocketAddr::new(port.address, port.port), port.identity)
    }

    /// The living pod of this node at an address and port, if it is that identity.
    pub(super) fn own_pod(&self, at: SocketAddr, wanted: u32) -> Option<PinnedPod> {
        let pod = |uid: &str| PinnedPod {
            uid: uid.into(),
            node: self.settings.node.as_str().into(),
            address: at.ip().to_canonical(),
            port: at.port(),
        };
        let key = pod("").local_key();
        let backend = self.installed.local_backend(&key, wanted)?;
        if let Some((uid, _)) = self.installed.whereabouts(backend) {
            return Some(pod(uid));
        }
        // No table names it any more, or none has been read yet.
        let living = self.index.pods().filter(|pod| is_alive(pod));
        let mut uids = living.filter_map(|pod| pod.metadata.uid.as_deref());
        uids.find(|uid| identity(uid, at.port()) == wanted).map(pod)
    }

    /// The programs have reported flows that must be pinned.
    pub fn take_events(&mut self, events: &[Event]) {
        for event in events {
            let end = |address, port: lb_ebpf::wire::Be16| {
                SocketAddr::new(address_of(address), port.get())
            };
            let client = end(event.client, event.ports.src);
            let vip = end(event.vip, event.ports.dst);
            let pod = end(event.pod, event.pod_port);
            self.pin(event.proto, client, vip, pod, event.identity);
        }
        self.follow_own();
    }

    /// Pins a flow of one of this node's pods. That of a dead one needs no pin.
    fn pin(&mut self, protocol: u8, client: SocketAddr, vip: SocketAddr, pod: SocketAddr, of: u32) {
        let Some(outbox) = self.pins.outbox.clone() else {
            // The sweep finds it.
            return;
        };
        let (Ok(key), Some(pod)) = (FlowKey::new(protocol, client, vip), self.own_pod(pod, of))
        else {
            return;
        };
        if let Err(full) = outbox.with(|writer| writer.pin(key, pod)) {
            self.pins.refused += 1;
            self.pins.fault = Some(full.to_string());
        }
    }

    /// Takes in what a look through the flows has found.
    pub(in crate::agent) fn take_swept(&mut self, swept: &Swept, now: Instant) {
        let Some(outbox) = self.pins.outbox.clone() else {
            return;
        };
        let refused = self.pins.refused;
        for flow in &swept.found {
            self.pin(
                flow.protocol,
                flow.client,
                flow.vip,
                flow.pod,
                flow.identity,
            );
        }
        outbox.with(|writer| {
            for (key, pod) in &swept.ended {
                writer.ended(key, *pod);
            }
        });
        self.follow_own();
        let is_full = self.pins.refused > refused;
        self.handed_off(&swept.proposals, is_full);
        self.note_swept(swept, is_full);
        if !is_full {
            self.pins.fault = None;
        }
        self.carry_out(now);
    }

    /// What this node's own streams say to its own maps.
    fn follow_own(&mut self) {
        let own: Arc<str> = self.settings.node.as_str().into();
        let Some(outbox) = self.pins.outbox.clone() else {
            return;
        };
        loop {
            let at = self.pins.receiver.position(&own);
            let messages = match outbox.with(|writer| writer.read(at, RECORDS_MAX)) {
                Batch::Nothing => break,
                Batch::Records(message) => vec![message],
                Batch::Snapshot(snapshot) => snapshot.messages(RECORDS_MAX).collect(),
            };
            for message in messages {
                let taken = self.pins.receiver.take(&own, message);
                self.pins.undone.extend(taken.ops);
                if let Some(refusal) = taken.refused {
                    // As many as there may be here; the others have been told all the same.
                    self.pins.fault = Some(refusal.to_string());
                    return self.carry_out(Instant::now());
                }
            }
        }
        self.carry_out(Instant::now());
    }

    /// Brings the maps in line with the receiver.
    pub(super) fn carry_out(&mut self, now: Instant) {
        let undone = std::mem::take(&mut self.pins.undone);
        let mut left = undone.into_iter();
        while let Some(op) = left.next() {
            let outcome = self.installed.plan_pin(&op).map_err(|error| chain(&error));
            let outcome = outcome.and_then(|ops| {
                let frees = ops.iter().any(|op| matches!(op, Op::RemovePin { .. }));
                self.apply(&ops).map_err(|error| chain(&error))?;
                Ok(frees)
            });
            match outcome {
                Ok(true) => self.collect_soon(now),
                Ok(false) => {}
                Err(error) => {
                    self.pins.fault = Some(error);
                    self.pins.undone = std::iter::once(op).chain(left).collect();
                    return;
                }
            }
        }
    }

    /// How many flows this node has pinned.
    pub(in crate::agent) fn own_pin_count(&self) -> usize {
        let outbox = self.pins.outbox.as_ref();
        outbox.map_or(0, |outbox| outbox.with(|writer| writer.pins().len()))
    }

    /// What whoever looks through the flows needs to know: pinned flows and their pods.
    pub(in crate::agent) fn own_pins(&self) -> Vec<(FlowKey, SocketAddr)> {
        let Some(outbox) = &self.pins.outbox else {
            return Vec::new();
        };
        outbox.with(|writer| {
            let pins = writer.pins().iter();
            pins.map(|(key, pod)| (*key, SocketAddr::new(pod.address, pod.port)))
                .collect()
        })
    }

    /// Takes away what a map still pins though nobody hands connections off here any more.
    pub(super) fn pins_of_nobody(&self) -> Vec<Op> {
        if self.pins.is_on {
            return Vec::new();
        }
        let keys = self.installed.pinned().map(|(key, _)| *key);
        keys.map(|key: PinKey| Op::RemovePin { key }).collect()
    }
}

impl Pins {
    /// Flows that could not be pinned.
    pub(in crate::agent) fn unpinned(&self) -> u64 {
        self.refused
    }

    /// Whether nothing is known of a node's pins, and it brings them not.
    pub(super) fn lacks(&self, node: &str) -> bool {
        let writing = self.writers.get(node);
        writing.is_none_or(|writing| writing.greeted.is_none()) && !self.receiver.knows(node)
    }

    /// Whether others can bring their pins.
    pub(super) fn may_come(&self, role: Role) -> bool {
        self.is_on && self.certificates != Some(false) && role != Role::Owner
    }

    /// Up to where a node's pins are here.
    pub(in crate::agent) fn received(&self, node: &str) -> Option<Position> {
        self.receiver.position(node)
    }

    /// Nodes whose pins are not all here, and are waited for.
    pub(in crate::agent) fn missing(&self) -> impl Iterator<Item = &Arc<str>> {
        self.missing.iter()
    }

    /// A node that is there is waited for from now on, if it was not yet; one that is down from when it returns.
    pub(super) fn expect_stream(&mut self, node: &Arc<str>, is_down: bool, now: Instant) {
        let fresh = Writing {
            since: now,
            greeted: None,
        };
        let writing = self.writers.entry(Arc::clone(node)).or_insert(fresh);
        if is_down && writing.greeted.is_none() {
            writing.since = now;
        }
    }

    pub(super) fn await_stream(&mut self, node: Arc<str>, now: Instant) {
        let greeted = None;
        self.writers.insert(
            node,
            Writing {
                since: now,
                greeted,
            },
        );
    }
}
