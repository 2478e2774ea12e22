//! Streams of pins, from every node that speaks to every other: they begin, bring what the other lacks, and end with an agent
//! or a partition. What was under way on one that has ended is lost.

use std::sync::Arc;

use lb_controller::model::pins::{Message, Position};

use super::agents::Todo;
use super::{Bowline, Said};
use crate::churn::api;
use crate::churn::queue::{MS, Nanos};
use crate::churn::wire::NodeId;

/// How long it takes until a stream is there.
const CONNECT: (Nanos, Nanos) = (20 * MS, 500 * MS);
/// What is new is collected for so long from the first change on, and then sent: the 20 ms of `handoff::Times`, and as much
/// later as `bench handoff` sees timers and tasks be on a machine that is busy. With [`REPORT_LAG`] before it and [`HOP`]
/// there and back, a pin is acknowledged 21 to 34 ms after its flow was reported; there it is 25 ms at the median and 33 ms at
/// p99.
///
/// [`REPORT_LAG`]: super::agents::REPORT_LAG
const FLUSH: (Nanos, Nanos) = (20 * MS, 25 * MS);
/// Between two agents, and until what has come is in the maps.
const HOP: (Nanos, Nanos) = (MS / 10, 3 * MS);

/// A stream from an owner to a balancer.
pub(super) struct Link {
    /// Which one between the two it is.
    number: u64,
    /// Starts of the agents at both ends.
    starts: (u64, u64),
    /// It is there, or on its way.
    is_up: bool,
    /// Where the writer was when it began; none while it is not there.
    pub(super) greeted: Option<Position>,
    /// Since when it is waited for.
    pub(super) since: Nanos,
    /// The owner sends, or will soon.
    is_sending: bool,
}

impl Link {
    pub(super) fn is_greeted(&self) -> bool {
        self.greeted.is_some()
    }
}

impl Bowline<'_> {
    /// Streams begin between those who speak now, and others end. The same for what agents tell the manager.
    pub(super) fn relink(&mut self, now: Nanos) -> anyhow::Result<()> {
        self.relink_manager();
        let nodes: Vec<NodeId> = self.nodes.keys().copied().collect();
        let gone: Vec<_> = self
            .links
            .keys()
            .filter(|(from, to)| !self.nodes.contains_key(from) || !self.nodes.contains_key(to))
            .copied()
            .collect();
        for (from, to) in gone {
            // Who is still there waits for the other, until it is taken for dead.
            self.end_link((from, to), now)?;
            if !self.nodes.contains_key(&to) {
                self.links.remove(&(from, to));
            }
        }
        for from in &nodes {
            for to in nodes.iter().filter(|to| *to != from) {
                let link = (*from, *to);
                let may = self.nodes[from].speaks()
                    && self.nodes[to].speaks()
                    && self.nodes[from].agent.others().contains(to)
                    && self.nodes[to].agent.others().contains(from);
                let starts = (self.nodes[from].start, self.nodes[to].start);
                let up = self.links.get(&link).filter(|link| link.is_up);
                let up = up.map(|link| link.starts);
                if up.is_some_and(|of| !may || of != starts) {
                    self.end_link(link, now)?;
                }
                if may && up != Some(starts) {
                    self.begin_link(link, starts, now);
                }
            }
        }
        Ok(())
    }

    fn relink_manager(&mut self) {
        for (node, state) in &mut self.nodes {
            if state.speaks() == state.is_told {
                continue;
            }
            state.is_told = state.speaks();
            if !state.is_told {
                self.said.push((*node, Said::Down));
                continue;
            }
            self.said.push((*node, Said::Up));
            for (uid, version) in &state.told {
                let said = Said::applied(Arc::clone(uid), *version);
                self.said.push((*node, said));
            }
        }
    }

    fn begin_link(&mut self, link: (NodeId, NodeId), starts: (u64, u64), now: Nanos) {
        self.link_numbers += 1;
        let number = self.link_numbers;
        let since = self.links.get(&link).map_or(now, |link| link.since);
        let state = Link {
            number,
            starts,
            is_up: true,
            greeted: None,
            since,
            is_sending: false,
        };
        self.links.insert(link, state);
        self.later(now, CONNECT, Todo::Greet(link, number));
    }

    fn end_link(&mut self, link: (NodeId, NodeId), now: Nanos) -> anyhow::Result<()> {
        let Some(state) = self.links.get_mut(&link).filter(|link| link.is_up) else {
            return Ok(());
        };
        state.is_up = false;
        state.number = 0;
        state.greeted = None;
        state.since = now;
        self.look_for_streams(link.1, now)?;
        // The owner waits for one less.
        self.answer(link.0);
        Ok(())
    }

    fn is_link(&self, link: (NodeId, NodeId), number: u64) -> bool {
        let found = self.links.get(&link);
        found.is_some_and(|link| link.is_up && link.number == number)
    }

    pub(super) fn greet(
        &mut self,
        link: (NodeId, NodeId),
        number: u64,
        now: Nanos,
    ) -> anyhow::Result<()> {
        if !self.is_link(link, number) {
            return Ok(());
        }
        let (from, to) = link;
        let written = self.nodes.get(&from).and_then(|node| node.agent.written());
        if let Some(state) = self.links.get_mut(&link) {
            state.greeted = written;
            state.is_sending = true;
        }
        // The balancer says what it has, which an owner that has started again does not know.
        let held = self.nodes.get(&to);
        let held = held.and_then(|node| node.agent.received(&api::name(from)));
        if let Some(held) = held {
            self.later(now, HOP, Todo::Acknowledge(link, number, held));
        }
        self.look_for_streams(to, now)?;
        self.flush(link, number);
        Ok(())
    }

    /// Streams of a node that have something to bring will soon.
    pub(super) fn flush_soon(&mut self, node: NodeId, now: Nanos) {
        let Some(written) = self.nodes.get(&node).and_then(|node| node.agent.written()) else {
            return;
        };
        let mut due = Vec::new();
        for (link, state) in &mut self.links {
            let (from, to) = *link;
            if from != node || state.greeted.is_none() || state.is_sending {
                continue;
            }
            let held = self.nodes.get(&to);
            let held = held.and_then(|node| node.agent.received(&api::name(from)));
            if held != Some(written) {
                state.is_sending = true;
                due.push((*link, state.number));
            }
        }
        for (link, number) in due {
            self.later(now, FLUSH, Todo::Flush(link, number));
        }
    }

    /// Sends what the balancer lacks.
    pub(super) fn flush(&mut self, link: (NodeId, NodeId), number: u64) {
        if !self.is_link(link, number) {
            return;
        }
        let (from, to) = link;
        let held = self.nodes.get(&to);
        let held = held.and_then(|node| node.agent.received(&api::name(from)));
        let owner = self.nodes.get_mut(&from);
        let messages = owner.and_then(|node| node.agent.read(held));
        match messages {
            Some(messages) => {
                let now = self.queue.now();
                self.later(now, HOP, Todo::Arrive(link, number, messages));
            }
            None => {
                if let Some(state) = self.links.get_mut(&link) {
                    state.is_sending = false;
                }
            }
        }
    }

    pub(super) fn arrived(
        &mut self,
        link: (NodeId, NodeId),
        number: u64,
        messages: Vec<Message>,
        now: Nanos,
    ) -> anyhow::Result<()> {
        if !self.is_link(link, number) {
            return Ok(());
        }
        let (from, to) = link;
        let writer: Arc<str> = api::name(from).into();
        let Some(state) = self.nodes.get_mut(&to) else {
            return Ok(());
        };
        let kernel = &mut self.kernels[to.index()];
        let held = state.agent.take(kernel, &writer, messages)?;
        if let Some(held) = held {
            self.later(now, HOP, Todo::Acknowledge(link, number, held));
        }
        self.look_for_streams(to, now)?;
        self.flush(link, number);
        Ok(())
    }

    pub(super) fn acknowledged(&mut self, link: (NodeId, NodeId), number: u64, position: Position) {
        if !self.is_link(link, number) {
            return;
        }
        let (from, to) = link;
        if let Some(state) = self.nodes.get_mut(&from) {
            state.agent.acknowledged(&api::name(to).into(), position);
        }
        self.answer(from);
    }
}
