//! The model: which steps are possible, what they lead to, and what must hold in every state.

use stateright::{Checker, HasDiscoveries, Model, Path, Property};

use super::packets;
use super::scope::{Events, NodeNo, PodNo, Scope, isn, node_name};
use super::world::{Agent, Fault, Maps, WIRE_MAX, World};

/// A step of somebody.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Step {
    /// The client sends a SYN, which enters at a node.
    Syn(NodeNo),
    /// A pod's SYN-ACK reaches the client.
    SynAck(PodNo),
    /// The client sends something later, which enters at a node.
    Data(NodeNo),
    /// A packet arrives at another node.
    Hop(usize),
    /// The manager writes the next version.
    Write,
    /// A node applies the last version.
    Apply(NodeNo),
    /// A node sees that the occupant of the first version cannot serve.
    Shun(NodeNo),
    /// A node sees the last pod.
    Learn(NodeNo),
    /// A node hears what its peers have applied.
    Hear(NodeNo),
    /// A node's agent pins a deviation that the program has reported.
    Report(NodeNo),
    /// A node's agent looks at all flows.
    Sweep(NodeNo),
    /// A node's stream is read by another.
    Stream(NodeNo, NodeNo),
    /// The other's acknowledgement arrives.
    Acknowledge(NodeNo, NodeNo),
    /// The manager begins a retirement.
    BeginRetirement,
    /// It does what can be done next.
    ContinueRetirement,
    /// An owner's node has handed off.
    HandOff(NodeNo),
    KillAgent(NodeNo),
    StartAgent(NodeNo),
    KillMachine(NodeNo),
    /// A node suspects another.
    Suspect(NodeNo, NodeNo),
    /// It trusts it again.
    Trust(NodeNo, NodeNo),
}

/// No packet of an established flow reaches another pod while its owner lives.
pub(crate) const NO_RESET: &str = "no reset";
/// A SYN that is sent again opens no second flow on a node.
pub(crate) const NO_SECOND: &str = "no second flow on a node";
/// Once faults have ended, packets of an established flow reach their owner from everywhere.
pub(crate) const RECOVERS: &str = "recovers";

impl Model for Scope {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(self)]
    }

    /// Nothing is promised when the owner is dead, and nothing is learnt after a fault.
    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        if world.fault.is_some() || !world.owner_lives(self) {
            return;
        }
        packet_steps(world, steps);
        agent_steps(self, world, steps);
        manager_steps(self, world, steps);
        fault_steps(self, world, steps);
    }

    fn next_state(&self, world: &World, step: Step) -> Option<World> {
        let mut next = world.clone();
        next.step(self, step);
        next.settle(self);
        (next != *world).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(NO_RESET, |_, world: &World| {
                world.fault != Some(Fault::Reset)
            }),
            Property::always(NO_SECOND, |_, world: &World| {
                world.fault != Some(Fault::Twice)
            }),
            Property::always(RECOVERS, |scope: &Scope, world: &World| {
                world.fault.is_some() || world.recovers(scope)
            }),
        ]
    }
}

fn packet_steps(world: &World, steps: &mut Vec<Step>) {
    // A packet that never arrives is lost.
    steps.extend((0..world.wire.len()).map(Step::Hop));
    let has_room = world.wire.len() < WIRE_MAX;
    for node in world.machines().filter(|_| has_room) {
        if world.left.syns > 0 {
            steps.push(Step::Syn(node));
        }
        if world.left.data > 0 && world.client.owner.is_some() {
            steps.push(Step::Data(node));
        }
    }
    if world.client.owner.is_none() {
        let offers = (0..8).filter(|pod| world.client.offers & 1 << pod != 0);
        steps.extend(offers.map(Step::SynAck));
    }
}

fn agent_steps(scope: &Scope, world: &World, steps: &mut Vec<Step>) {
    for node in world.agents() {
        if world.may_apply(scope, node) {
            steps.push(Step::Apply(node));
        }
        if world.unheard(node).is_some() {
            steps.push(Step::Hear(node));
        }
        if world.has_report(scope, node) {
            steps.push(Step::Report(node));
        }
        if world.has_to_sweep(scope, node) {
            steps.push(Step::Sweep(node));
        }
        for to in world.agents().filter(|to| *to != node) {
            if world.has_to_read(node, to) {
                steps.push(Step::Stream(node, to));
            }
            if world.has_to_acknowledge(node, to) {
                steps.push(Step::Acknowledge(node, to));
            }
        }
        let Some(agent) = &world.nodes[node].agent else {
            continue;
        };
        if world.left.shunned > 0 && agent.shunned == 0 {
            steps.push(Step::Shun(node));
        }
        if world.left.learnt > 0 && agent.known.count_ones() < scope.homes.len() as u32 {
            steps.push(Step::Learn(node));
        }
    }
}

fn manager_steps(scope: &Scope, world: &World, steps: &mut Vec<Step>) {
    let before_retirement = scope.versions.len() - usize::from(scope.proposal.is_some());
    if world.written + 1 < before_retirement {
        steps.push(Step::Write);
    }
    if world.may_retire(scope) {
        steps.push(Step::BeginRetirement);
    }
    if world.has_retirement_step(scope) {
        steps.push(Step::ContinueRetirement);
    }
    let ready = world
        .agents()
        .filter(|node| world.hand_off(scope, *node).is_some());
    steps.extend(ready.map(Step::HandOff));
}

fn fault_steps(scope: &Scope, world: &World, steps: &mut Vec<Step>) {
    for node in 0..scope.nodes {
        match &world.nodes[node].agent {
            Some(_) if world.left.agents > 0 => steps.push(Step::KillAgent(node)),
            None if world.machine_lives(node) => steps.push(Step::StartAgent(node)),
            Some(_) | None => {}
        }
        if world.left.machines > 0 && world.machine_lives(node) {
            steps.push(Step::KillMachine(node));
        }
    }
    for node in world.agents() {
        let Some(agent) = &world.nodes[node].agent else {
            continue;
        };
        for other in (0..scope.nodes).filter(|other| *other != node) {
            let lives = world.machine_lives(other);
            let suspected = agent.suspected & 1 << other != 0;
            if suspected && lives {
                steps.push(Step::Trust(node, other));
            } else if !suspected && (!lives || world.left.suspicions > 0) {
                steps.push(Step::Suspect(node, other));
            }
        }
    }
}

impl World {
    fn step(&mut self, scope: &Scope, step: Step) {
        match step {
            Step::Syn(node) => {
                self.left.syns -= 1;
                self.enter(scope, node, &packets::syn());
            }
            Step::SynAck(pod) => {
                self.client.owner = Some(pod);
                self.client.offers = 0;
            }
            Step::Data(node) => {
                self.left.data -= 1;
                self.send_data(scope, node);
            }
            Step::Hop(at) => {
                let packet = self.wire.remove(at);
                self.arrive(scope, &packet);
            }
            Step::Write => self.written += 1,
            Step::Apply(node) => self.apply(scope, node),
            Step::Hear(node) => self.hear(node),
            Step::Report(node) => self.read_report(scope, node),
            Step::Sweep(node) => self.sweep(scope, node),
            Step::Stream(from, to) => self.stream(scope, from, to),
            Step::Acknowledge(from, to) => self.acknowledge(from, to),
            Step::BeginRetirement => self.begin_retirement(),
            Step::ContinueRetirement => self.step_retirement(scope),
            Step::HandOff(node) => {
                if let Some(position) = self.hand_off(scope, node) {
                    self.handed_off(node, position);
                }
            }
            Step::KillAgent(node) => {
                self.left.agents -= 1;
                self.kill_agent(node);
            }
            Step::StartAgent(node) => self.start_agent(scope, node),
            Step::KillMachine(node) => {
                self.left.machines -= 1;
                self.kill_machine(node);
            }
            Step::Shun(node) => {
                self.left.shunned -= 1;
                self.see(node, |agent| {
                    agent.shunned |= 1 << scope.versions[0].current;
                });
            }
            Step::Learn(node) => {
                self.left.learnt -= 1;
                self.see(node, |agent| agent.known = (1 << scope.homes.len()) - 1);
            }
            Step::Suspect(node, other) => {
                self.left.suspicions -= u8::from(self.machine_lives(other));
                self.see(node, |agent| agent.suspected |= 1 << other);
            }
            Step::Trust(node, other) => self.see(node, |agent| agent.suspected &= !(1 << other)),
        }
    }

    /// What an agent sees of the cluster changes.
    fn see(&mut self, node: NodeNo, change: impl FnOnce(&mut Agent)) {
        if let Some(agent) = &mut self.nodes[node].agent {
            change(agent);
        }
    }

    fn send_data(&mut self, scope: &Scope, node: NodeNo) -> Option<PodNo> {
        let owner = self.client.owner.expect("data follows a SYN-ACK");
        self.enter(scope, node, &packets::data(isn(owner)))
    }

    fn kill_machine(&mut self, node: NodeNo) {
        self.nodes[node].agent = None;
        self.nodes[node].starts = 0;
        self.nodes[node].maps = Maps::default();
        self.wire.retain(|packet| packet.to != node);
    }

    /// Whether the flow, if there is one, has an owner that lives.
    fn owner_lives(&self, scope: &Scope) -> bool {
        let owner = self.client.owner;
        owner.is_none_or(|owner| self.machine_lives(scope.homes[owner]))
    }

    /// Whether packets reach the owner from everywhere, after faults have ended and everybody has done what is to be done.
    fn recovers(&self, scope: &Scope) -> bool {
        /// More packets than any of them needs: one is held back, one may go astray.
        const TRIES: usize = 4;
        let Some(owner) = self.client.owner.filter(|_| self.owner_lives(scope)) else {
            return true;
        };
        // Any state with packets left leads to one like it without.
        if self.left.data > 0 {
            return true;
        }
        let mut calm = self.clone();
        calm.calm_down(scope);
        let nodes: Vec<NodeNo> = calm.machines().collect();
        nodes.into_iter().all(|node| {
            let mut world = calm.clone();
            (0..TRIES).any(|_| {
                let mut reached = world.send_data(scope, node);
                while let Some(packet) = world.wire.pop() {
                    reached = reached.or(world.arrive(scope, &packet));
                    world.settle(scope);
                }
                reached == Some(owner)
            })
        })
    }

    fn calm_down(&mut self, scope: &Scope) {
        self.left = Events::default();
        self.wire.clear();
        self.retirement = None;
        let machines: Vec<NodeNo> = self.machines().collect();
        let dead = (0..scope.nodes).filter(|node| !machines.contains(node));
        let dead = dead.fold(0, |mask, node| mask | 1 << node);
        for node in &machines {
            if self.nodes[*node].agent.is_none() {
                self.start_agent(scope, *node);
            }
            if let Some(agent) = &mut self.nodes[*node].agent {
                agent.suspected = dead;
            }
        }
        // Twice: a version may wait for pins, and pins for a version.
        for _ in 0..2 {
            for from in &machines {
                self.read_report(scope, *from);
                self.sweep(scope, *from);
                for to in &machines {
                    self.stream(scope, *from, *to);
                    self.acknowledge(*from, *to);
                }
            }
            for node in &machines {
                if self.may_apply(scope, *node) {
                    self.apply(scope, *node);
                }
            }
            self.settle(scope);
        }
    }
}

/// What a run has found.
pub(crate) struct Found {
    pub(crate) states: usize,
    pub(crate) broken: Vec<(&'static str, String)>,
}

/// Explores all of a scope, or until something does not hold.
pub(crate) fn explore(scope: &Scope, until: HasDiscoveries) -> Found {
    /// As many as the machines that this is meant for have at least.
    const THREADS: usize = 2;
    let checker = scope.clone().checker().threads(THREADS);
    let checker = checker.finish_when(until).spawn_bfs().join();
    let broken = checker.discoveries().into_iter();
    let mut broken: Vec<_> = broken
        .map(|(name, path)| (name, trace(scope, name, path)))
        .collect();
    broken.sort();
    Found {
        states: checker.unique_state_count(),
        broken,
    }
}

/// The steps to a state in which something does not hold, one a line, without those that do not matter.
fn trace(scope: &Scope, name: &'static str, path: Path<World, Step>) -> String {
    let mut steps: Vec<Step> = path.into_actions();
    let mut at = 0;
    while at < steps.len() {
        let mut fewer = steps.clone();
        fewer.remove(at);
        if leads_to_fault(scope, name, &fewer) {
            steps = fewer;
            at = 0;
        } else {
            at += 1;
        }
    }
    let lines = steps
        .into_iter()
        .map(|step| format!("  {}\n", sentence(step)));
    lines.collect()
}

/// Whether the steps are possible one after the other, and a property does not hold in the end.
fn leads_to_fault(scope: &Scope, name: &'static str, steps: &[Step]) -> bool {
    let mut world = World::new(scope);
    for step in steps {
        let mut possible = Vec::new();
        scope.actions(&world, &mut possible);
        let next = possible
            .contains(step)
            .then(|| scope.next_state(&world, *step));
        match next.flatten() {
            Some(next) => world = next,
            None => return false,
        }
    }
    let property = scope.property(name);
    !(property.condition)(scope, &world)
}

fn sentence(step: Step) -> String {
    let n = node_name;
    let pod = |pod: PodNo| ["a", "b", "c"][pod];
    match step {
        Step::Syn(node) => format!("a SYN enters at {}", n(node)),
        Step::SynAck(p) => format!("the SYN-ACK of pod {} reaches the client", pod(p)),
        Step::Data(node) => format!("a packet of the flow enters at {}", n(node)),
        Step::Hop(at) => format!("packet {at} on the wire arrives"),
        Step::Write => "the manager writes a version".into(),
        Step::Apply(node) => format!("{} applies the last version", n(node)),
        Step::Shun(node) => format!("{} sees that the occupant cannot serve", n(node)),
        Step::Learn(node) => format!("{} sees a new pod", n(node)),
        Step::Hear(node) => format!("{} hears of a newer version", n(node)),
        Step::Report(node) => format!("{} pins a deviation", n(node)),
        Step::Sweep(node) => format!("{} pins what is not found by tables", n(node)),
        Step::Stream(from, to) => format!("the pins of {} reach {}", n(from), n(to)),
        Step::Acknowledge(from, to) => format!("{} hears that {} has its pins", n(from), n(to)),
        Step::BeginRetirement => "the manager begins a retirement".into(),
        Step::ContinueRetirement => "the retirement goes on".into(),
        Step::HandOff(node) => format!("{} has handed off", n(node)),
        Step::KillAgent(node) => format!("the agent of {} dies", n(node)),
        Step::StartAgent(node) => format!("the agent of {} starts again", n(node)),
        Step::KillMachine(node) => format!("{} loses power", n(node)),
        Step::Suspect(node, other) => format!("{} suspects {}", n(node), n(other)),
        Step::Trust(node, other) => format!("{} trusts {} again", n(node), n(other)),
    }
}
