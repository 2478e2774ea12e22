//! Streams of other nodes: what their pins make of the maps, whose are missing, and which versions wait for them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Core;
use super::apply::Again;
use super::pins::Writing;
use crate::api::service_table::ServiceTableSpec;
use crate::handoff::convert::Answer;
use crate::handoff::message::{Hello, Reason, Refused};
use crate::handoff::server::CopyAnswer;
use crate::liveness::State;
use crate::model::freshness;
use crate::model::gate::{Gate, Known, gate};
use crate::model::pins::{Message, Snapshot};
use crate::model::template::NodeAddresses;

/// How often a version is looked at again that waits for pins.
const GATE_POLL: Duration = Duration::from_millis(20);
/// How long a node that joins waits for the streams of others before it asks somebody for a copy of what is missing …
const COPY_AFTER: Duration = Duration::from_secs(1);
/// … and how long until it asks again.
const COPY_AGAIN: Duration = Duration::from_secs(5);
/// How long a version waits for pins at most: an owner that never brings them must not hold up all changes here.
const GATE_WAIT: Duration = freshness::STREAMS_WAIT;

impl Core {
    /// A writer's stream begins. The answer is what the maps hold of its pins; none: not now.
    pub(super) fn hear_hello(
        &mut self,
        writer: &Arc<str>,
        hello: &Hello,
        now: Instant,
    ) -> Option<Answer> {
        self.pins.outbox.as_ref()?;
        self.carry_out(now);
        if !self.pins.undone.is_empty() {
            return None;
        }
        let greeted = Some(hello.position);
        let writing = Writing {
            since: now,
            greeted,
        };
        self.pins.writers.insert(Arc::clone(writer), writing);
        self.look_for_streams(now);
        Some(Ok(self.pins.receiver.position(writer)))
    }

    /// A writer says something. The answer is what the maps hold of its pins now; none: not now.
    pub(super) fn hear(
        &mut self,
        writer: &Arc<str>,
        message: Message,
        now: Instant,
    ) -> Option<Answer> {
        self.pins.outbox.as_ref()?;
        let taken = self.pins.receiver.take(writer, message);
        self.pins.undone.extend(taken.ops);
        self.carry_out(now);
        if !self.pins.undone.is_empty() {
            return None;
        }
        self.look_for_streams(now);
        self.tables_wait_no_more(now);
        match &taken.refused {
            Some(refusal) => {
                let refused = Refused::from(refusal);
                if refused.reason == Reason::Full {
                    self.pins.fault = Some(refused.sentence.clone());
                }
                Some(Err(refused))
            }
            None => Some(Ok(self.pins.receiver.position(writer))),
        }
    }

    /// A writer's stream has ended.
    pub(super) fn hear_end(&mut self, writer: &Arc<str>, now: Instant) {
        self.pins.await_stream(Arc::clone(writer), now);
        self.look_for_streams(now);
    }

    /// The next writer's pins after one, for a node that joins.
    pub(super) fn copy(&self, after: Option<&Arc<str>>) -> CopyAnswer {
        if self.pins.outbox.is_none() {
            return Err("this node does not know all pins itself yet".to_owned());
        }
        let mut writers = self.pins.receiver.positions();
        let next = writers.find(|(writer, _)| after.is_none_or(|after| *writer > after));
        Ok(next.map(|(writer, position)| {
            let pins = self.pins.receiver.pins_of(writer).into_iter().collect();
            (Arc::clone(writer), Snapshot { position, pins })
        }))
    }

    /// Whom to ask for a copy of the pins of nodes that do not bring theirs: a node that joins does, as long as it waits for
    /// them. One that has pins of theirs in its maps does not, since the copy may be older.
    pub(in crate::agent) fn wants_copy(
        &mut self,
        now: Instant,
    ) -> Option<(Arc<str>, NodeAddresses)> {
        let since = self.started + COPY_AFTER;
        let due = self.pins.copy_at.map_or(since, |at| at.max(since));
        let may_come = self.pins.may_come(self.settings.role) && self.pins.outbox.is_some();
        if !may_come || now < due || now >= self.started + freshness::STREAMS_WAIT {
            return None;
        }
        if !self.agents.keys().any(|node| self.pins.lacks(node)) {
            return None;
        }
        let from = self.opinion.node.as_ref()?;
        let addresses = self.agents.get(from)?;
        self.pins.copy_at = Some(now + COPY_AGAIN);
        Some((Arc::clone(from), *addresses))
    }

    /// A balancer gives a copy of a writer's pins. A writer that has its own stream says more.
    pub(in crate::agent) fn take_copied(
        &mut self,
        writer: &Arc<str>,
        message: Message,
        now: Instant,
    ) {
        if *writer.as_ref() == *self.settings.node || !self.pins.lacks(writer) {
            return;
        }
        let taken = self.pins.receiver.take(writer, message);
        if let Some(refusal) = taken.refused {
            self.pins.fault = Some(refusal.to_string());
        }
        self.pins.undone.extend(taken.ops);
        self.carry_out(now);
        self.tables_wait_no_more(now);
    }

    /// Finds out whose pins are missing; Services with pods there must know.
    pub(super) fn look_for_streams(&mut self, now: Instant) {
        if !self.pins.is_on {
            return;
        }
        let liveness = Arc::clone(&self.announcing.liveness);
        let is_down = |node: &str| {
            liveness
                .peers
                .get(node)
                .is_some_and(|peer| peer.state == State::Down)
        };
        let agents = Arc::clone(&self.agents);
        self.forget_nodes(&agents);
        for node in agents.keys() {
            self.pins.expect_stream(node, is_down(node), now);
        }
        let owners = agents
            .keys()
            .map(|node| (node, self.pins.stream(node, is_down(node))));
        let (missing, until) = match freshness::streams(owners, now) {
            freshness::Streams::Missing { nodes, until }
                if self.pins.may_come(self.settings.role) =>
            {
                (nodes, Some(until))
            }
            freshness::Streams::Up | freshness::Streams::Missing { .. } => (BTreeSet::new(), None),
        };
        self.pins.missing_until = until;
        if missing == self.pins.missing {
            return;
        }
        let changed: BTreeSet<Arc<str>> = missing
            .symmetric_difference(&self.pins.missing)
            .cloned()
            .collect();
        self.pins.missing = missing;
        self.tables_again(now, Again::Plan, |spec| {
            spec.nodes
                .iter()
                .any(|node| changed.contains(node.as_str()))
        });
    }

    /// Pins of nodes that are gone go with their pods. Only for who knows all nodes.
    fn forget_nodes(&mut self, agents: &BTreeMap<Arc<str>, NodeAddresses>) {
        let own = self.settings.node.as_str();
        let gone = |node: &Arc<str>| {
            **node != *own && !agents.contains_key(node) && !self.index.has_node(node)
        };
        let writers = self.pins.receiver.writers();
        let gone: Vec<Arc<str>> = writers.filter(|node| gone(node)).cloned().collect();
        for node in gone {
            let ops = self.pins.receiver.forget_writer(&node);
            self.pins.undone.extend(ops);
            self.pins.writers.remove(&node);
            if let Some(outbox) = &self.pins.outbox {
                outbox.with(|writer| writer.forget(&node));
            }
        }
    }

    /// Whether the pins of all live nodes with pods of a Service are here.
    pub(super) fn streams_up(&self, nodes: &[String]) -> bool {
        !nodes
            .iter()
            .any(|node| self.pins.missing.contains(node.as_str()))
    }

    /// Whether a version may be applied now; else when to look again. One that has waited for long is applied nevertheless.
    pub(super) fn gate_of(
        &self,
        spec: &ServiceTableSpec,
        waits_since: &mut Option<Instant>,
        now: Instant,
    ) -> Option<Instant> {
        if !self.pins.may_come(self.settings.role) {
            return None;
        }
        let known = Known {
            received: &|writer| self.pins.receiver.position(writer),
            reachable: &|writer| {
                let writing = self.pins.writers.get(writer);
                writing.is_some_and(|writing| writing.greeted.is_some())
            },
            dead: &|node| !self.index.has_node(node),
        };
        let Gate::Waits { streams, copies } = gate(&spec.watermarks, &known) else {
            *waits_since = None;
            return None;
        };
        let since = *waits_since.get_or_insert(now);
        if now.saturating_duration_since(since) >= GATE_WAIT {
            tracing::warn!(
                service = spec.service_uid,
                version = spec.version,
                ?streams,
                ?copies,
                "pins that a version relies on have not come; it is applied without them"
            );
            *waits_since = None;
            return None;
        }
        Some(now + GATE_POLL)
    }
}
