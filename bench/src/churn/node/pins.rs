//! Pins of a node: those that it wants for flows of its own pods, and those of all nodes in its maps. As in real agents, a
//! node is its own balancer and the first to know.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use lb_controller::api::service_table::ServiceTableSpec;
use lb_controller::dataplane::flows::{FlowRecord, IdleTimeouts};
use lb_controller::model::findable::Finder;
use lb_controller::model::maglev;
use lb_controller::model::op::BackendId;
use lb_controller::model::pins::{
    Batch, FlowKey, Incarnation, Message, PinOp, PinnedPod, Position, Receiver, Writer,
};
use lb_controller::model::secret::identity;
use lb_ebpf::abi::Event;
use lb_ebpf::wire::Addr6;

use super::agent::{Agent, Without, hash_key};
use super::kernel::Kernel;
use crate::churn::api;
use crate::churn::queue::{MS, Nanos};
use crate::churn::wire::NodeId;

/// Changes in a message: few, so that some streams need more than one.
const RECORDS_MAX: usize = 100;

/// What is known about pins.
#[derive(Default)]
pub(super) struct Pins {
    /// This node's own; none before it is known what was pinned when the agent started.
    writer: Option<Writer>,
    receiver: Receiver,
    /// Flows that this agent has pinned so far.
    written: u64,
    /// Tables that forget, by the number of the attempt.
    proposals: BTreeMap<u64, Proposal>,
}

impl Pins {
    /// How far a writer's pins are in the maps.
    pub(super) fn position(&self, writer: &str) -> Option<Position> {
        self.receiver.position(writer)
    }

    /// Whether it is known what was pinned when the agent started.
    pub(super) fn is_known(&self) -> bool {
        self.writer.is_some()
    }
}

/// A table that forgets, and stands until its manager says otherwise.
struct Proposal {
    finder: Finder,
    /// Up to where pins are written of all flows that it would not find.
    handed_off: Option<Position>,
    is_told: bool,
}

impl Agent {
    /// Takes over what the maps have pinned, and begins to tell this node's own, once the pods are known. A start is later
    /// than all before it.
    pub(super) fn begin_pins(&mut self, kernel: &mut Kernel, now: Nanos) -> anyhow::Result<()> {
        if self.pins.is_known() {
            return Ok(());
        }
        let mut kept = BTreeMap::new();
        let mut inherited = BTreeMap::new();
        for (key, places) in self.installed.pinned() {
            let key = FlowKey::of_tuple(key);
            let mut writers: Vec<(Arc<str>, BackendId)> = Vec::new();
            for (id, at) in places {
                let Some(address) = at else {
                    if let Some(pod) = self.pod_of_backend(id) {
                        kept.insert(key, pod);
                    }
                    writers.push((Arc::clone(&self.name), id));
                    continue;
                };
                if let IpAddr::V4(address) = address
                    && let Some(node) = NodeId::at(address)
                {
                    writers.push((api::name(node).into(), id));
                }
            }
            inherited.insert(key, writers);
        }
        for (key, writers) in inherited {
            self.pins.receiver.inherit(key, writers);
        }
        self.pins.writer = Some(Writer::new(Incarnation(now / MS + 1), kept));
        self.follow_own(kernel)
    }

    fn pod_of_backend(&self, id: BackendId) -> Option<PinnedPod> {
        let (_, port, _) = self.installed.backends().find(|(other, ..)| *other == id)?;
        self.own_pod(SocketAddr::new(port.address, port.port), port.identity)
    }

    /// The living pod of this node at an address and port, if it is that identity.
    fn own_pod(&self, at: SocketAddr, wanted: u32) -> Option<PinnedPod> {
        let pod = |uid: &str| PinnedPod {
            uid: uid.into(),
            node: Arc::clone(&self.name),
            address: at.ip().to_canonical(),
            port: at.port(),
        };
        self.installed.local_backend(&pod("").local_key(), wanted)?;
        let mut living = self.heard.iter().flat_map(|heard| &heard.living);
        let uid = living.find(|uid| identity(uid, at.port()) == wanted)?;
        Some(pod(uid))
    }

    /// The programs have reported flows that must be pinned.
    pub(crate) fn report(&mut self, kernel: &mut Kernel, events: &[Event]) -> anyhow::Result<()> {
        for event in events {
            let end = |address: Addr6, port: lb_ebpf::wire::Be16| {
                let address = Ipv6Addr::from(address.to_bytes()).to_canonical();
                SocketAddr::new(address, port.get())
            };
            self.pin(
                event.proto,
                end(event.client, event.ports.src),
                end(event.vip, event.ports.dst),
                (end(event.pod, event.pod_port), event.identity),
            )?;
        }
        self.follow_own(kernel)
    }

    /// Pins a flow of one of this node's pods. That of a dead one needs no pin; before the writer is there the sweep finds it.
    fn pin(
        &mut self,
        protocol: u8,
        client: SocketAddr,
        vip: SocketAddr,
        (pod, of): (SocketAddr, u32),
    ) -> anyhow::Result<()> {
        let key = FlowKey::new(protocol, client, vip)?;
        let pod = self.own_pod(pod, of);
        if let (Some(writer), Some(pod)) = (&mut self.pins.writer, pod) {
            let before = writer.position();
            self.pins.written += u64::from(writer.pin(key, pod)? != before);
        }
        Ok(())
    }

    /// Looks through the flows of this node: those that tables do not find are pinned, and those that have ended need no pin.
    pub(crate) fn look_through(&mut self, kernel: &mut Kernel, now: Nanos) -> anyhow::Result<()> {
        let Some(writer) = &self.pins.writer else {
            return Ok(());
        };
        let tick = Kernel::tick(now);
        let flows = kernel.dataplane.flows();
        let mut ended = Vec::new();
        for (key, pod) in writer.pins() {
            let pod = SocketAddr::new(pod.address, pod.port);
            if !flows.is_open_at(tick, key.protocol(), key.client(), pod)? {
                ended.push((*key, pod));
            }
        }
        let mut found = Vec::new();
        flows.list_at(tick, |record| {
            if record.is_open() && self.must_be_pinned(&record) {
                found.push(record);
            }
            true
        })?;
        // Kernel maps have no order, and runs repeat.
        found.sort_by_key(|record| (record.client, record.vip, record.pod));
        for record in found {
            let pod = (record.pod, record.identity);
            self.pin(record.protocol, record.client, record.vip, pod)?;
        }
        if let Some(writer) = &mut self.pins.writer {
            for (key, pod) in ended {
                writer.ended(&key, pod);
            }
            let written = writer.position();
            for proposal in self.pins.proposals.values_mut() {
                proposal.handed_off.get_or_insert(written);
            }
        }
        self.follow_own(kernel)
    }

    /// Whether balancers may not find a flow by their tables.
    fn must_be_pinned(&self, record: &FlowRecord) -> bool {
        let Ok(flow) = FlowKey::new(record.protocol, record.client, record.vip) else {
            return false;
        };
        let mut concerned = self
            .pins
            .proposals
            .values()
            .filter(|proposal| proposal.finder.is_about(&flow));
        record.is_known() && record.is_reported
            || concerned.any(|one| !one.finder.finds(&flow, record.identity, record.pod.ip()))
    }

    /// Ends flows that are over.
    pub(crate) fn end_flows(kernel: &Kernel, now: Nanos) -> anyhow::Result<()> {
        let flows = kernel.dataplane.flows();
        flows.sweep(Kernel::tick(now), &IdleTimeouts::default())?;
        Ok(())
    }

    /// What this node's own stream says to its own maps.
    fn follow_own(&mut self, kernel: &mut Kernel) -> anyhow::Result<()> {
        let own = Arc::clone(&self.name);
        while let Some(messages) = self.read(self.pins.position(&own)) {
            self.take(kernel, &own, messages)?;
        }
        Ok(())
    }

    /// What a balancer at a position is told next; none: it knows everything.
    pub(crate) fn read(&mut self, at: Option<Position>) -> Option<Vec<Message>> {
        match self.pins.writer.as_mut()?.read(at, RECORDS_MAX) {
            Batch::Nothing => None,
            Batch::Records(message) => Some(vec![message]),
            Batch::Snapshot(snapshot) => Some(snapshot.messages(RECORDS_MAX).collect()),
        }
    }

    /// Takes what a writer says. The answer is how far its pins are in the maps.
    pub(crate) fn take(
        &mut self,
        kernel: &mut Kernel,
        writer: &Arc<str>,
        messages: Vec<Message>,
    ) -> anyhow::Result<Option<Position>> {
        for message in messages {
            let taken = self.pins.receiver.take(writer, message);
            self.carry_out_pins(kernel, &taken.ops)?;
            if let Some(refusal) = taken.refused {
                return Err(refusal.into());
            }
        }
        Ok(self.pins.position(writer))
    }

    fn carry_out_pins(&mut self, kernel: &mut Kernel, pins: &[PinOp]) -> anyhow::Result<()> {
        if self.without == Without::Pins {
            return Ok(());
        }
        for pin in pins {
            let ops = self.installed.plan_pin(pin)?;
            self.carry_out(kernel, &ops)?;
        }
        Ok(())
    }

    /// Pins of nodes that are gone go with their pods.
    pub(crate) fn forget_nodes(&mut self, kernel: &mut Kernel) -> anyhow::Result<()> {
        let Some(heard) = &self.heard else {
            return Ok(());
        };
        let lives = |name: &str| heard.nodes.iter().any(|node| api::name(*node) == name);
        let writers = self.pins.receiver.positions().map(|(writer, _)| writer);
        let gone: Vec<Arc<str>> = writers.filter(|writer| !lives(writer)).cloned().collect();
        for writer in gone {
            let ops = self.pins.receiver.forget_writer(&writer);
            self.carry_out_pins(kernel, &ops)?;
            if let Some(own) = &mut self.pins.writer {
                own.forget(&writer);
            }
        }
        Ok(())
    }

    /// How far this node's own pins are; none before they are known.
    pub(crate) fn written(&self) -> Option<Position> {
        self.pins.writer.as_ref().map(Writer::position)
    }

    /// How many flows this agent has pinned so far.
    pub(crate) fn has_pinned(&self) -> u64 {
        self.pins.written
    }

    /// How many flows of its pods this node wants pinned.
    pub(crate) fn pinned(&self) -> u64 {
        self.pins
            .writer
            .as_ref()
            .map_or(0, |writer| writer.pins().len() as u64)
    }

    /// How far a writer's pins are here.
    pub(crate) fn received(&self, writer: &str) -> Option<Position> {
        self.pins.position(writer)
    }

    /// A balancer has everything up to a position in its maps.
    pub(crate) fn acknowledged(&mut self, balancer: &Arc<str>, position: Position) {
        if let Some(writer) = &mut self.pins.writer {
            writer.acknowledged(balancer, position);
        }
    }

    /// Is asked to pin what a table would not find.
    pub(crate) fn propose(&mut self, round: u64, table: &ServiceTableSpec) -> anyhow::Result<()> {
        let proposal = Proposal {
            finder: Finder::new(table, hash_key(), maglev::rows)?,
            handed_off: None,
            is_told: false,
        };
        self.pins.proposals.insert(round, proposal);
        Ok(())
    }

    /// A proposal stands no more.
    pub(crate) fn cancel(&mut self, round: u64) {
        self.pins.proposals.remove(&round);
    }

    /// Attempts whose flows are handed off to these balancers, which was not said yet.
    pub(crate) fn ready(&mut self, reached: &[Arc<str>]) -> Vec<(u64, Position)> {
        let Some(writer) = &self.pins.writer else {
            return Vec::new();
        };
        let mut ready = Vec::new();
        for (round, proposal) in &mut self.pins.proposals {
            if let Some(position) = proposal.handed_off
                && !proposal.is_told
                && writer.settled(position, reached)
            {
                proposal.is_told = true;
                ready.push((*round, position));
            }
        }
        ready
    }
}
