//! Members in a network that loses, cuts and delays, on a clock that the test turns.

use std::net::Ipv4Addr;

use super::super::State;
use super::*;

const STEP: Duration = Duration::from_millis(5);

/// A machine, its agent and its programs.
struct Machine {
    member: Membership,
    address: IpAddr,
    /// Runs at all; its programs answer.
    is_on: bool,
    /// Its agent runs.
    agent_runs: bool,
    stamped: Instant,
    /// Every state that another was seen in, with the time.
    seen: Vec<(Instant, Arc<str>, State)>,
}

/// A cluster. Everything sent in a step arrives in the next one.
struct World {
    now: Instant,
    machines: Vec<Machine>,
    way: Vec<(IpAddr, Outgoing)>,
    loss: f64,
    chance: StdRng,
    /// Machines that hear only each other.
    island: Vec<usize>,
}

fn name(n: usize) -> Arc<str> {
    format!("node-{n:02}").into()
}

fn address(n: usize) -> NodeAddresses {
    NodeAddresses {
        v4: Some(Ipv4Addr::new(10, 0, 0, n as u8 + 1)),
        v6: None,
    }
}

fn named(count: usize) -> BTreeMap<Arc<str>, NodeAddresses> {
    (0..count).map(|n| (name(n), address(n))).collect()
}

fn member(n: usize, count: usize, incarnation: u64, seed: u64, now: Instant) -> Membership {
    let identity = Identity::new(name(n), address(n), incarnation);
    let mut member = Membership::new(identity, Key::new(&[9; 32]), seed, now);
    member.name(&named(count), now);
    member
}

impl World {
    fn new(count: usize, seed: u64) -> Self {
        let now = Instant::now();
        let machines = (0..count).map(|n| Machine {
            member: member(n, count, 1_000, seed * 1000 + n as u64, now),
            address: address(n).v4.unwrap().into(),
            is_on: true,
            agent_runs: true,
            stamped: now,
            seen: Vec::new(),
        });
        let mut world = Self {
            now,
            machines: machines.collect(),
            way: Vec::new(),
            loss: 0.0,
            chance: StdRng::seed_from_u64(seed),
            island: Vec::new(),
        };
        world.run(Duration::from_secs(2));
        world.forget();
        world
    }

    fn forget(&mut self) {
        for machine in &mut self.machines {
            machine.seen.clear();
        }
    }

    fn index(&self, address: IpAddr) -> usize {
        self.machines
            .iter()
            .position(|machine| machine.address == address)
            .unwrap()
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.step();
        }
    }

    fn step(&mut self) {
        self.now += STEP;
        for (from, outgoing) in std::mem::take(&mut self.way) {
            self.arrive(from, outgoing);
        }
        let now = self.now;
        for machine in &mut self.machines {
            if !(machine.is_on && machine.agent_runs) {
                continue;
            }
            machine.stamped = now;
            let before = machine.member.liveness(now);
            machine.member.work(now);
            for (node, peer) in machine.member.liveness(now).peers {
                if before.peers.get(&node).map(|peer| peer.state) != Some(peer.state) {
                    machine.seen.push((now, node, peer.state));
                }
            }
            let from = machine.address;
            let outgoing = machine.member.outgoing().into_iter();
            self.way.extend(outgoing.map(|outgoing| (from, outgoing)));
        }
    }

    fn is_cut(&self, a: usize, b: usize) -> bool {
        self.island.contains(&a) != self.island.contains(&b)
    }

    fn arrive(&mut self, from: IpAddr, outgoing: Outgoing) {
        let (Outgoing::Gossip { to, .. } | Outgoing::Question { to, .. }) = &outgoing;
        let (asker, target) = (self.index(from), self.index(*to));
        let lost = self.chance.random_bool(self.loss);
        if lost || self.is_cut(asker, target) || !self.machines[target].is_on {
            return;
        }
        let now = self.now;
        match outgoing {
            Outgoing::Gossip { datagram, .. } => {
                if self.machines[target].agent_runs {
                    self.machines[target].member.receive(from, &datagram, now);
                }
            }
            Outgoing::Question { nonce, .. } => {
                let age = now - self.machines[target].stamped;
                if self.machines[asker].is_on
                    && self.machines[asker].agent_runs
                    && !self.chance.random_bool(self.loss)
                {
                    self.machines[asker].member.answered(nonce, age, now);
                }
            }
        }
    }

    fn state(&self, viewer: usize, of: usize) -> State {
        self.machines[viewer].member.liveness(self.now).peers[&name(of)].state
    }

    /// How all that run see a node.
    fn states(&self, of: usize) -> Vec<State> {
        let viewers = (0..self.machines.len()).filter(|viewer| *viewer != of);
        let mut states: Vec<_> = viewers
            .filter(|viewer| self.machines[*viewer].is_on)
            .map(|viewer| self.state(viewer, of))
            .collect();
        states.sort();
        states.dedup();
        states
    }

    /// Time until every other node holds one for down.
    fn until_down(&mut self, of: usize) -> Duration {
        let start = self.now;
        while self.states(of) != [State::Down] {
            self.step();
            assert!(self.now - start < Duration::from_secs(10), "never down");
        }
        self.now - start
    }
}

#[test]
fn all_find_each_other_and_settle() {
    for count in [1, 2, 3, 64] {
        let world = World::new(count, 1);
        for node in 0..count {
            assert!(world.machines[node].member.liveness(world.now).settled);
            assert!(
                world
                    .states(node)
                    .iter()
                    .all(|state| *state == State::Alive)
            );
        }
    }
}

#[test]
fn without_loss_nobody_is_ever_suspected() {
    for count in [2, 3, 16] {
        let mut world = World::new(count, 2);
        world.run(Duration::from_secs(20));
        for machine in &world.machines {
            assert_eq!(machine.seen, []);
        }
    }
}

#[test]
fn a_power_cut_is_known_to_all_within_a_second() {
    for (count, runs) in [(2, 20), (3, 40), (8, 20), (64, 2)] {
        let mut times: Vec<_> = (0..runs)
            .map(|seed| {
                let mut world = World::new(count, seed);
                world.run(Duration::from_millis(7 * seed));
                world.machines[0].is_on = false;
                world.until_down(0).as_millis()
            })
            .collect();
        times.sort_unstable();
        let (median, max) = (times[times.len() / 2], times[times.len() - 1]);
        eprintln!("{count} nodes: median {median} ms, max {max} ms");
        assert!(median <= 700, "{count} nodes: {times:?}");
        assert!(max <= 1100, "{count} nodes: {times:?}");
    }
}

#[test]
fn a_restarting_agent_keeps_its_place() {
    let mut world = World::new(4, 3);
    world.machines[0].agent_runs = false;
    world.run(Duration::from_secs(2));
    assert_eq!(world.states(0), [State::AgentAway]);
    let now = world.now;
    world.machines[0].member = member(0, 4, 5_000, 77, now);
    world.machines[0].agent_runs = true;
    world.run(Duration::from_secs(1));
    assert_eq!(world.states(0), [State::Alive]);
    for machine in &world.machines {
        assert!(
            machine
                .seen
                .iter()
                .all(|(_, _, state)| *state != State::Down)
        );
    }
}

#[test]
fn an_agent_that_stays_away_loses_its_place_when_its_stamp_is_old() {
    let mut world = World::new(3, 4);
    world.machines[0].agent_runs = false;
    world.run(Duration::from_millis(2900));
    assert_eq!(world.states(0), [State::AgentAway]);
    world.run(Duration::from_millis(400));
    assert_eq!(world.states(0), [State::Down]);
}

#[test]
fn a_frozen_agent_comes_back_and_knows_that_it_was_given_up() {
    let mut world = World::new(3, 5);
    world.machines[0].agent_runs = false;
    world.run(Duration::from_secs(6));
    assert_eq!(world.states(0), [State::Down]);
    world.machines[0].agent_runs = true;
    world.run(Duration::from_secs(2));
    assert_eq!(world.states(0), [State::Alive]);
    assert!(world.machines[0].member.liveness(world.now).returns > 0);
    // It has taken nobody for dead meanwhile.
    let seen = &world.machines[0].seen;
    assert!(
        seen.iter().all(|(_, _, state)| *state != State::Down),
        "{seen:?}"
    );
}

#[test]
fn a_machine_whose_clock_went_back_is_heard_again() {
    let mut world = World::new(3, 6);
    world.machines[0].is_on = false;
    world.run(Duration::from_secs(1));
    let now = world.now;
    // A thousandth of the incarnation that the others know.
    world.machines[0].member = member(0, 3, 1, 78, now);
    world.machines[0].is_on = true;
    world.run(Duration::from_secs(2));
    assert_eq!(world.states(0), [State::Alive]);
    assert_eq!([world.state(0, 1), world.state(0, 2)], [State::Alive; 2]);
}

#[test]
fn a_cut_network_comes_together_again() {
    let mut world = World::new(6, 7);
    world.island = vec![0, 1];
    world.run(Duration::from_secs(3));
    assert_eq!(world.state(0, 1), State::Alive);
    assert_eq!(world.state(0, 2), State::Down);
    assert_eq!(world.state(2, 0), State::Down);
    world.island.clear();
    world.run(Duration::from_secs(3));
    for node in 0..6 {
        assert_eq!(world.states(node), [State::Alive]);
    }
}

#[test]
fn one_packet_in_ten_lost_takes_nobody_down() {
    let mut world = World::new(5, 8);
    world.loss = 0.1;
    world.run(Duration::from_secs(30));
    for machine in &world.machines {
        assert!(
            machine
                .seen
                .iter()
                .all(|(_, _, state)| *state != State::Down)
        );
    }
}

#[test]
fn a_node_that_never_joined_is_never_taken_for_one_that_forwards() {
    let now = Instant::now();
    let mut alone = member(0, 2, 1, 1, now);
    for step in 0..2000u32 {
        let now = now + step * STEP;
        alone.work(now);
        for outgoing in alone.outgoing() {
            if let Outgoing::Question { nonce, .. } = outgoing {
                alone.answered(nonce, Duration::ZERO, now);
            }
        }
    }
    let liveness = alone.liveness(now);
    assert_eq!(liveness.peers[&name(1)].state, State::Unheard);
    assert!(liveness.settled && !liveness.may_announce(&name(1)));
}

#[test]
fn garbage_and_replays_are_counted_and_change_nothing() {
    let now = Instant::now();
    let (mut here, mut there) = (member(0, 2, 1, 1, now), member(1, 2, 1, 2, now));
    here.work(now);
    let from = address(0).v4.unwrap().into();
    for outgoing in here.outgoing() {
        if let Outgoing::Gossip { datagram, .. } = outgoing {
            there.receive(from, &datagram, now);
            there.receive(from, &datagram, now);
        }
    }
    there.receive(from, b"hello", now);
    let counts = there.counts();
    assert_eq!(
        (counts.received, counts.replayed, counts.not_genuine),
        (1, 1, 1)
    );
    assert_eq!(counts.malformed, 0);
}

#[test]
fn a_node_that_objects_no_longer_name_is_no_longer_reported() {
    let mut world = World::new(3, 9);
    let now = world.now;
    world.machines[0].member.name(&named(2), now);
    assert_eq!(world.machines[0].member.liveness(world.now).peers.len(), 1);
}

#[test]
fn what_a_member_says_of_itself_is_known_to_all_until_it_is_silent() {
    let mut world = World::new(3, 11);
    let said = |world: &World| world.machines[0].member.liveness(world.now);
    assert_eq!(said(&world).tables, Some(0));
    assert!(!said(&world).peers[&name(1)].condition.is_fresh);
    let condition = Condition {
        tables: 7,
        is_fresh: true,
        is_ready: true,
    };
    world.machines[1].member.set_condition(condition);
    world.run(Duration::from_millis(500));
    assert_eq!(said(&world).tables, Some(7));
    assert!(said(&world).peers[&name(1)].condition.is_fresh);
    assert!(!said(&world).peers[&name(2)].condition.is_fresh);
    // Nobody else speaks of these tables, and who has said so is off.
    world.machines[1].is_on = false;
    world.run(SILENCE_MAX + Duration::from_millis(50));
    assert_eq!(said(&world).tables, Some(0));
    world.machines[2].is_on = false;
    world.run(SILENCE_MAX + Duration::from_millis(50));
    assert_eq!(said(&world).tables, None);
}

#[test]
fn a_member_that_objects_do_not_name_yet_is_known_by_what_others_say() {
    let mut world = World::new(3, 12);
    // The first was cut off from the objects before the third came.
    let now = world.now;
    world.machines[0].member.name(&named(2), now);
    world.run(Duration::from_millis(200));
    let liveness = world.machines[0].member.liveness(world.now);
    assert!(!liveness.peers.contains_key(&name(2)));
    assert_eq!(liveness.unnamed, [(name(2), address(2))].into());
    world.machines[2].is_on = false;
    world.run(Duration::from_secs(4));
    let liveness = world.machines[0].member.liveness(world.now);
    assert_eq!(liveness.unnamed, BTreeMap::new());
}
