//! What the changes of a script come to: steps of pods, nodes, agents and the router, now and later.

use super::{Control, Event, World};
use crate::churn::api::{Object, PodId, TARGET_PORTS};
use crate::churn::queue::{MS, Nanos, SECOND};
use crate::churn::schemes::Life;
use crate::churn::script::Change;
use crate::churn::segment::ServiceId;
use crate::churn::wire::NodeId;

/// A pod that ends gets no new flows from here on, after its successor has started.
const REPLACE_AFTER: (Nanos, Nanos) = (100 * MS, SECOND);
/// Of ten pods that end so many live on until long after the script.
const PATIENT: u64 = 5;
/// An unready pod is ready again after this time.
const UNREADY: (Nanos, Nanos) = (3 * SECOND, 12 * SECOND);
/// The router notices a dead next hop.
const WITHDRAW: (Nanos, Nanos) = (200 * MS, 1200 * MS);
/// The API server takes a silent node for lost (`node-monitor-grace-period`).
const NODE_LOST: Nanos = 40 * SECOND;
/// A new node announces when it has had its tables for a while.
const ANNOUNCE: (Nanos, Nanos) = (4 * SECOND, 6 * SECOND);
/// When it looks again whether it may.
const ANNOUNCE_AGAIN: Nanos = 100 * MS;
/// How long an agent is away.
const RESTART: (Nanos, Nanos) = (SECOND, 4 * SECOND);
/// How long a partition lasts: longer than a flow may be silent, now and then.
const PARTITION: (Nanos, Nanos) = (10 * SECOND, 60 * SECOND);
/// How long a node is taken for dead that is not.
const SUSPECTED: (Nanos, Nanos) = (SECOND, 5 * SECOND);
/// Weights are up to this.
const WEIGHT_MAX: u64 = 4;

/// What happens later.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// A pod's successor starts.
    Replace(PodId),
    /// A pod gets no new flows, and ends.
    Terminate(PodId),
    /// It is gone.
    Remove(PodId),
    Ready(PodId),
    /// The router takes a path away.
    Withdraw(NodeId),
    /// The router adds one.
    Announce(NodeId),
    /// The API server notices that a node is gone.
    Lost(NodeId),
    AgentStarts(NodeId),
    /// An agent hears the API server again.
    Hears(NodeId),
    /// A node is not suspected any more.
    Trusted(NodeId),
}

impl World<'_> {
    /// Something changes now.
    pub(super) fn change(&mut self, change: Change) -> anyhow::Result<()> {
        match change {
            Change::Rollout => self.for_pools(|world, _, pods| world.rollout(&pods)),
            Change::ScaleUp => self.for_pools(|world, service, pods| {
                world.start_pods(service, pods.len().div_ceil(4));
            }),
            Change::ScaleDown => self.for_pools(|world, _, pods| {
                for pod in world.chance.pick(&pods, pods.len().div_ceil(4)) {
                    world.terminate(pod);
                }
            }),
            Change::Resize => self.for_pools(|world, service, pods| {
                world.start_pods(service, 2 * pods.len());
            }),
            Change::Weights => self.for_pools(|world, _, pods| {
                for pod in pods {
                    let weight = world.chance.between(1, WEIGHT_MAX);
                    world.api.weigh(pod, weight as u32);
                }
            }),
            Change::Selector => self.for_pools(|world, service, pods| {
                for pod in &pods {
                    world.api.pod_mut(*pod).selected = false;
                }
                world.start_pods(service, pods.len());
            }),
            Change::TargetPort => {
                for service in &mut self.api.services {
                    let [first, second] = TARGET_PORTS;
                    let is_first = service.target_port == first;
                    service.target_port = if is_first { second } else { first };
                }
                self.changed();
            }
            Change::Readiness => self.for_pools(|world, _, pods| {
                for pod in world.chance.pick(&pods, pods.len().div_ceil(4)) {
                    world.api.pod_mut(pod).ready = false;
                    world.later(UNREADY, Step::Ready(pod));
                }
            }),
            Change::Crash | Change::Kill | Change::Drain | Change::Join => {
                return self.change_nodes(change);
            }
            Change::Restart | Change::Suspicion | Change::Partition => {
                return self.change_agents(change);
            }
            Change::Rehash => self.router.rehash(self.chance.word()),
        }
        Ok(())
    }

    /// Says that a step comes, between two times from now.
    fn later(&mut self, (low, high): (Nanos, Nanos), step: Step) {
        let delay = self.chance.between(low, high);
        self.queue.after(delay, Event::Control(Control::Step(step)));
    }

    /// Changes every Service's pods.
    fn for_pools(&mut self, change: impl Fn(&mut Self, ServiceId, Vec<PodId>)) {
        for at in 0..self.api.services.len() {
            let service = self.api.services[at].id;
            let pods = self.api.serving(service);
            change(self, service, pods);
        }
        self.changed();
    }

    fn start_pods(&mut self, service: ServiceId, count: usize) {
        for _ in 0..count {
            self.start_pod(service);
        }
    }

    fn rollout(&mut self, pods: &[PodId]) {
        let pods = self.chance.pick(pods, pods.len());
        for (at, pod) in (0..).zip(pods) {
            let start = at * self.case.script.rollout_every;
            self.later((start, start), Step::Replace(pod));
        }
    }

    /// A pod gets no new flows; it ends when its grace is over.
    fn terminate(&mut self, pod: PodId) {
        let grace = self.case.script.grace;
        let is_patient = self.chance.below(10) < PATIENT;
        self.api.pod_mut(pod).object = Object::Terminating;
        if !is_patient {
            self.later((grace / 2, grace), Step::Remove(pod));
        }
    }

    fn change_nodes(&mut self, change: Change) -> anyhow::Result<()> {
        let owners = self.owners();
        let others = self.up.iter().copied();
        let others: Vec<NodeId> = others.filter(|node| !owners.contains(node)).collect();
        match change {
            Change::Join => {
                let last = self.ears.keys().next_back().map_or(0, |node| node.0);
                let node = NodeId(last + 1);
                self.add_node(node)?;
                self.later(ANNOUNCE, Step::Announce(node));
                self.changed();
            }
            Change::Drain => {
                for node in self.chance.pick(&owners, 1) {
                    let pods = self.api.pods.iter();
                    let pods: Vec<PodId> = pods
                        .filter(|pod| pod.node == node && pod.object == Object::Serving)
                        .map(|pod| pod.id)
                        .collect();
                    for pod in pods {
                        self.later(REPLACE_AFTER, Step::Replace(pod));
                    }
                    self.later(ANNOUNCE, Step::Withdraw(node));
                }
            }
            Change::Crash => {
                for node in self.chance.pick(&owners, 1) {
                    self.lose(node)?;
                    self.later((NODE_LOST, NODE_LOST), Step::Lost(node));
                }
            }
            _ => {
                for node in self.chance.pick(&others, 1) {
                    self.lose(node)?;
                }
            }
        }
        Ok(())
    }

    /// A node loses its power, and its pods with it.
    fn lose(&mut self, node: NodeId) -> anyhow::Result<()> {
        self.up.remove(&node);
        let pods = self.api.pods.iter().filter(|pod| pod.node == node);
        let pods: Vec<PodId> = pods.map(|pod| pod.id).collect();
        for pod in pods {
            self.api.kill_pod(pod);
        }
        self.later(WITHDRAW, Step::Withdraw(node));
        self.scheme.live(node, Life::Gone, self.queue.now())
    }

    /// Two nodes: one with pods and one without, as far as there are.
    fn two_nodes(&mut self) -> Vec<NodeId> {
        let owners = self.owners();
        let others = self.up.iter().copied();
        let others: Vec<NodeId> = others.filter(|node| !owners.contains(node)).collect();
        let mut nodes = self.chance.pick(&owners, 1);
        nodes.extend(self.chance.pick(&others, 1));
        nodes
    }

    fn change_agents(&mut self, change: Change) -> anyhow::Result<()> {
        for node in self.two_nodes() {
            match change {
                Change::Restart => {
                    self.scheme.live(node, Life::AgentStops, self.queue.now())?;
                    self.later(RESTART, Step::AgentStarts(node));
                }
                Change::Partition => {
                    self.set_deaf(node, true)?;
                    self.later(PARTITION, Step::Hears(node));
                }
                _ => {
                    self.scheme.live(node, Life::Suspected, self.queue.now())?;
                    self.later(SUSPECTED, Step::Trusted(node));
                }
            }
        }
        Ok(())
    }

    /// A step that was said has come.
    pub(super) fn step(&mut self, step: Step) -> anyhow::Result<()> {
        match step {
            Step::Replace(pod) => {
                let old = self.api.pod(pod);
                if old.object != Object::Serving {
                    return Ok(());
                }
                let service = old.service;
                self.start_pod(service);
                self.later(REPLACE_AFTER, Step::Terminate(pod));
            }
            Step::Terminate(pod) => self.terminate(pod),
            Step::Remove(pod) => self.api.remove_pod(pod),
            Step::Ready(pod) => self.api.pod_mut(pod).ready = true,
            Step::Lost(node) => {
                let lost = self.api.pods.iter_mut().filter(|pod| pod.node == node);
                lost.for_each(|pod| pod.ready = false);
            }
            Step::Withdraw(node) => {
                self.router.remove(node);
                return Ok(());
            }
            Step::Announce(node) => {
                if self.scheme.is_ready(node) {
                    self.router.add(node);
                } else {
                    let event = Event::Control(Control::Step(step));
                    self.queue.after(ANNOUNCE_AGAIN, event);
                }
                return Ok(());
            }
            Step::AgentStarts(node) => {
                self.scheme
                    .live(node, Life::AgentStarts, self.queue.now())?;
                self.hear_soon(node);
                return Ok(());
            }
            Step::Hears(node) => return self.set_deaf(node, false),
            Step::Trusted(node) => return self.scheme.live(node, Life::Trusted, self.queue.now()),
        }
        self.changed();
        Ok(())
    }
}
