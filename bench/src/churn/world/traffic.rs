//! Packets on their way: client, router, nodes, pod and back. Every hop may lose one, and now and then one is overtaken.

use super::{Event, FIRST_FLOW, Flow, PodId, World};
use crate::churn::api::TARGET_PORTS;
use crate::churn::client::{Act, Client, End, Manner};
use crate::churn::dice::{Dice, Purpose};
use crate::churn::oracle::Broken;
use crate::churn::pod;
use crate::churn::queue::{MS, Nanos, SECOND};
use crate::churn::schemes::Outcome;
use crate::churn::segment::{FlowId, Segment, ServiceId, Transport};
use crate::churn::wire::{NodeId, Place};

/// Packets lost on every hop, of a million.
const LOST: u64 = 1_500;
/// Packets that are late on a hop, of a million, and how late at most: they are overtaken.
const LATE: u64 = 10_000;
const LATE_MAX: Nanos = 4 * MS;
/// From a client to the router, least and most.
const WAY: (Nanos, Nanos) = (2 * MS, 15 * MS);
/// Closed flows that another follows with the same addresses and ports, of a million, and how much later: as soon as
/// clients do that (`net.ipv4.tcp_tw_reuse`).
const REOPENED: u64 = 50_000;
const REOPEN_AFTER: (Nanos, Nanos) = (SECOND, 10 * SECOND);
/// Between nodes, and from the router to a node.
const HOP: (Nanos, Nanos) = (30_000, 150_000);

impl World<'_> {
    /// A flow begins, and the next one is said.
    pub(super) fn begin(&mut self, number: u32) {
        let script = self.case.script;
        let next = u64::from(number) + 1;
        if next < u64::from(script.flows) {
            let at = FIRST_FLOW + script.arrivals * next / u64::from(script.flows);
            self.queue.at(at, Event::Begin(number + 1));
        }
        let flow = FlowId(number);
        if !self.case.only.is_empty() && !self.case.only.contains(&flow) {
            return;
        }
        self.open(flow);
    }

    /// A client opens a flow: the first with its addresses and ports, or one after another has closed.
    pub(super) fn open(&mut self, flow: FlowId) {
        let number = u64::from(flow.0);
        let mut dice = Dice::of(self.case.seed, Purpose::Flow, number);
        let (service, transport) = self.service_of(&mut dice);
        let manner = self.manner_of(&mut dice, transport);
        let now = self.queue.now();
        let (client, act) = Client::open((flow, service, transport), manner, self.case.seed, now);
        let mut dice = Dice::of(self.case.seed ^ now, Purpose::Network, number);
        let way = dice.between(WAY.0, WAY.1);
        self.flows.insert(
            flow,
            Flow {
                client,
                dice,
                way,
                timer: Nanos::MAX,
                is_delayed: false,
            },
        );
        self.act(flow, act);
    }

    fn service_of(&self, dice: &mut Dice) -> (ServiceId, Transport) {
        let mut at = dice.below(1000);
        let mut chosen = (ServiceId(0), Transport::Tcp);
        for (number, pool) in (0..).zip(&self.case.script.pools) {
            chosen = (ServiceId(number), pool.transport);
            if at < pool.share {
                break;
            }
            at -= pool.share;
        }
        chosen
    }

    fn manner_of(&self, dice: &mut Dice, transport: Transport) -> Manner {
        let mix = self.case.script.mix;
        let long = Manner {
            questions: mix.questions,
            ..Manner::LONG
        };
        match dice.below(1000) {
            kind if kind < mix.long => long,
            // Quiet datagrams would be forgotten, as they may be.
            kind if kind < mix.long + mix.quiet && transport == Transport::Tcp => Manner::QUIET,
            _ => Manner::SHORT,
        }
    }

    /// A client's time has come, unless it was put off.
    pub(super) fn wake(&mut self, id: FlowId) {
        let now = self.queue.now();
        let closing = self.case.script.closing;
        let Some(flow) = self.flows.get_mut(&id).filter(|flow| flow.timer == now) else {
            return;
        };
        flow.timer = Nanos::MAX;
        let act = if flow.client.wakes() > now {
            Act::default()
        } else {
            flow.client.wake(closing, now)
        };
        self.act(id, act);
    }

    /// A segment reaches its client.
    pub(super) fn receive(&mut self, segment: &Segment, pod: Option<PodId>) {
        let now = self.queue.now();
        let Some(flow) = self.flows.get_mut(&segment.flow) else {
            return;
        };
        let owner = flow.client.owner();
        let owner_lives = owner.is_some_and(|owner| self.api.pod(owner).lives);
        let act = flow.client.receive(segment, pod, owner_lives, now);
        self.act(segment.flow, act);
    }

    /// Does what a client says.
    fn act(&mut self, id: FlowId, act: Act) {
        for segment in act.segments.iter().flatten() {
            self.send(segment);
        }
        if let Some(end) = act.end {
            self.finish(id, end);
            return;
        }
        if let Some(flow) = self.flows.get_mut(&id) {
            let wakes = flow.client.wakes();
            if wakes < flow.timer {
                flow.timer = wakes;
                self.queue.at(wakes, Event::Wake(id));
            }
        }
    }

    fn finish(&mut self, id: FlowId, how: End) {
        let Some(flow) = self.flows.remove(&id) else {
            return;
        };
        let owner = flow.client.owner();
        let owner_died = owner.is_some_and(|owner| !self.api.pod(owner).lives);
        // One whose pod is gone waits for nobody.
        self.tally.delayed += u64::from(flow.is_delayed && !owner_died);
        let at = self.queue.now();
        let mut dice = flow.dice;
        if how == End::Closed && at < self.case.script.arrivals && dice.chance(REOPENED) {
            let pause = dice.between(REOPEN_AFTER.0, REOPEN_AFTER.1);
            self.queue.after(pause, Event::Reopen(id));
        }
        self.tally.note(
            Broken {
                flow: id,
                how,
                at,
                owner,
            },
            owner_died,
        );
    }

    /// A client's segment goes to the router, and from there to a node.
    fn send(&mut self, segment: &Segment) {
        let Some(node) = self.router.next(segment.flow) else {
            return;
        };
        let way = self.flows.get(&segment.flow).map_or(0, |flow| flow.way);
        if let Some(delay) = self.hop(segment.flow) {
            self.queue.after(way + delay, Event::Enter(node, *segment));
        }
    }

    /// How long a packet of a flow is under way on one hop; none if it is lost.
    fn hop(&mut self, flow: FlowId) -> Option<Nanos> {
        let dice = match self.flows.get_mut(&flow) {
            Some(flow) => &mut flow.dice,
            None => &mut self.network,
        };
        if dice.chance(LOST) {
            return None;
        }
        let late = if dice.chance(LATE) {
            dice.below(LATE_MAX)
        } else {
            0
        };
        Some(dice.between(HOP.0, HOP.1) + late)
    }

    /// A client's segment reaches a node.
    pub(super) fn enter(&mut self, node: NodeId, segment: &Segment) -> anyhow::Result<()> {
        if !self.up.contains(&node) {
            return Ok(());
        }
        self.packets += 1;
        let vip = self.vip(segment.service);
        let now = self.queue.now();
        let outcome = self.scheme.enter(node, segment, vip, now)?;
        self.follow(node, segment.flow, outcome)
    }

    /// A packet from another node.
    pub(super) fn arrive(
        &mut self,
        node: NodeId,
        flow: FlowId,
        packet: &[u8],
    ) -> anyhow::Result<()> {
        if !self.up.contains(&node) {
            return Ok(());
        }
        let now = self.queue.now();
        let outcome = self.scheme.arrive(node, packet, now)?;
        self.follow(node, flow, outcome)
    }

    fn vip(&self, service: ServiceId) -> Place {
        self.api.services[usize::from(service.0)].place()
    }

    fn follow(&mut self, node: NodeId, flow: FlowId, outcome: Outcome) -> anyhow::Result<()> {
        match outcome {
            Outcome::Nothing => Ok(()),
            Outcome::HeldBack => {
                if let Some(flow) = self.flows.get_mut(&flow) {
                    flow.is_delayed = true;
                }
                Ok(())
            }
            Outcome::Node(to, packet) => {
                if let Some(delay) = self.hop(flow) {
                    self.queue.after(delay, Event::Arrive(to, flow, packet));
                }
                Ok(())
            }
            Outcome::Client(segment) => {
                self.reply(&segment, None);
                Ok(())
            }
            Outcome::Pod(place, segment) => self.deliver(Some(node), place, &segment),
            Outcome::Direct(place, segment) => {
                if self.hop(flow).is_none() {
                    return Ok(());
                }
                self.deliver(None, place, &segment)
            }
        }
    }

    /// A segment reaches the pod that has an address, if it is on the node where the packet is.
    fn deliver(
        &mut self,
        node: Option<NodeId>,
        place: Place,
        segment: &Segment,
    ) -> anyhow::Result<()> {
        let (address, port) = place;
        let Some(pod) = self.api.at(address) else {
            return Ok(());
        };
        if node.is_some_and(|node| node != pod.node) || !TARGET_PORTS.contains(&port) {
            return Ok(());
        }
        let (id, now) = (pod.id, self.queue.now());
        let segment = Segment {
            service: pod.service,
            ..*segment
        };
        self.watch(id, &segment);
        let answers = self.pods[id as usize].receive(port, &segment, now);
        self.answer(id, (segment.flow, port), answers)
    }

    /// Notes a segment that has reached another pod than its flow's own.
    fn watch(&mut self, pod: PodId, segment: &Segment) {
        let Some(flow) = self.flows.get(&segment.flow) else {
            return;
        };
        let owner = flow.client.owner();
        let strays = owner.is_some_and(|owner| owner != pod && self.api.pod(owner).lives);
        if strays && !segment.is_first() {
            self.tally.strayed += 1;
        }
    }

    /// A pod's time has come.
    pub(super) fn remind(&mut self, pod: PodId, key: pod::Key) -> anyhow::Result<()> {
        if !self.api.pod(pod).lives {
            return Ok(());
        }
        let now = self.queue.now();
        let answers = self.pods[pod as usize].remind(key, now);
        self.answer(pod, key, answers)
    }

    /// What a pod says leaves its node for the client.
    fn answer(&mut self, id: PodId, key: pod::Key, answers: pod::Answers) -> anyhow::Result<()> {
        let pod = self.api.pod(id);
        let (node, from) = (pod.node, (pod.address, key.1));
        let vip = self.vip(pod.service);
        let now = self.queue.now();
        for answer in answers.segments.iter().flatten() {
            if let Some(segment) = self.scheme.leave(node, answer, from, vip, now)? {
                self.reply(&segment, Some(id));
            }
        }
        if let Some(at) = answers.remind {
            self.queue.at(at, Event::Remind(id, key));
        }
        Ok(())
    }

    fn reply(&mut self, segment: &Segment, pod: Option<PodId>) {
        let way = self.flows.get(&segment.flow).map_or(0, |flow| flow.way);
        if let Some(delay) = self.hop(segment.flow) {
            self.queue.after(way + delay, Event::Client(*segment, pod));
        }
    }
}
