//! The steps of a retirement, and what it may never do: take a living owner out of a table without a pin. One file: examples
//! and the property share the life of a Service.

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;
use proptest::prelude::*;

use super::*;
use crate::api::service_table::{Family, Port, Protocol};
use crate::model::assignment::{self, Input, Outcome, Waiting};
use crate::model::candidate::Candidate;
use crate::model::findable::Finder;
use crate::model::maglev;
use crate::model::pins::{FlowKey, Incarnation, PinnedPod, Seq};
use crate::model::secret::hash_key;
use crate::model::shape::{HashFields, Weight};
use crate::model::slot::{Slots, WhenFull};
use crate::model::table::{self, Group};

const VIP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 1));

/// Pod `n` is on node `n % 3`.
fn candidate(n: u8) -> Candidate {
    Candidate {
        uid: format!("pod-{n:02}").into(),
        node: format!("n{}", n % 3).into(),
        address: [10, 0, 0, n].into(),
        ports: [8080].into(),
    }
}

/// A Service and its manager.
struct Life {
    slots: Slots,
    waiting: Waiting,
    dead: BTreeSet<Arc<str>>,
    version: u64,
}

impl Life {
    fn new() -> Self {
        Self {
            slots: Slots::none(HashFields::FiveTuple),
            waiting: Waiting::default(),
            dead: BTreeSet::new(),
            version: 1,
        }
    }

    fn group(&self) -> Group {
        Group {
            family: Family::IPv4,
            ports: vec![Port {
                name: String::new(),
                port: 80,
                protocol: Protocol::Tcp,
            }],
            slots: self.slots.clone(),
        }
    }

    fn table(&self) -> ServiceTableSpec {
        table::encode("uid", self.version, &[VIP], &[self.group()])
    }

    /// Assigns after `retired` has left.
    fn assign(&mut self, second: i64, pods: &[u8], retired: &Retired) -> Outcome {
        let mut groups = [self.group()];
        retired.take_out(&mut groups);
        let [group] = groups;
        let before = std::mem::replace(&mut self.slots, group.slots);
        let usable: BTreeMap<_, _> = pods.iter().map(|n| (candidate(*n), Weight::ONE)).collect();
        let input = Input {
            usable: &usable,
            fields: HashFields::FiveTuple,
            dead: &|candidate| self.dead.contains(&candidate.uid),
            when_full: WhenFull::Waits,
            now: Timestamp::from_second(second).unwrap(),
        };
        let outcome = assignment::assign(&mut self.slots, &mut self.waiting, &input);
        self.version += u64::from(before != self.slots);
        outcome
    }
}

fn set(nodes: &[&str]) -> BTreeSet<Arc<str>> {
    nodes.iter().map(|node| Arc::from(*node)).collect()
}

fn position(seq: u64) -> Position {
    Position {
        incarnation: Incarnation(1),
        seq: Seq(seq),
    }
}

/// One slot that pods 0, 1 and 2 have had, pod 3 has it.
fn three_older() -> Life {
    let mut life = Life::new();
    for n in 0..4 {
        life.assign(i64::from(n), &[n], &Retired::default());
    }
    life
}

fn step(
    retirement: &mut Retirement,
    reachable: &[&str],
    applied: u64,
    now: Instant,
) -> Vec<Action> {
    let reachable = set(reachable);
    let nodes = Nodes {
        reachable: &reachable,
        applied: &|_| Some(applied),
    };
    retirement.step(&nodes, now)
}

fn want(
    retirement: &mut Retirement,
    life: &Life,
    reachable: &[&str],
    applied: u64,
    now: Instant,
) -> Vec<Action> {
    let reachable = set(reachable);
    let nodes = Nodes {
        reachable: &reachable,
        applied: &|_| Some(applied),
    };
    retirement
        .want(&life.table(), Round(7), &nodes, now)
        .unwrap()
}

fn asked(actions: &[Action]) -> BTreeSet<Arc<str>> {
    let node = |action: &Action| match action {
        Action::Ask { node, .. } => node.clone(),
        Action::Cancel { .. } | Action::Publish(_) => panic!("{action:?}"),
    };
    actions.iter().map(node).collect()
}

fn cancelled(actions: &[Action]) -> BTreeSet<Arc<str>> {
    let node = |action: &Action| match action {
        Action::Cancel { node, .. } => node.clone(),
        Action::Ask { .. } | Action::Publish(_) => panic!("{action:?}"),
    };
    actions.iter().map(node).collect()
}

#[test]
fn a_proposal_lacks_what_nodes_that_are_there_can_hand_off() {
    let life = three_older();
    let proposed = |reachable: &[&str]| {
        let proposal = proposal(&life.table(), &|node| reachable.contains(&node)).unwrap();
        proposal.map(|proposal| {
            let pods = proposal.table.pods.iter().map(|pod| pod.uid.clone());
            (pods.collect::<Vec<_>>(), proposal.owners)
        })
    };
    let all = (vec!["pod-03".to_owned()], set(&["n0", "n1", "n2"]));
    assert_eq!(proposed(&["n0", "n1", "n2"]), Some(all));
    let some = ["pod-00", "pod-03"].map(str::to_owned).to_vec();
    assert_eq!(proposed(&["n1", "n2"]), Some((some, set(&["n1", "n2"]))));
    assert_eq!(proposed(&[]), None);
    assert_eq!(
        proposal(&Life::new().table(), &|_| true),
        Ok(None),
        "there is no history"
    );
}

#[test]
fn a_previous_table_goes_when_all_of_its_owners_are_there() {
    let mut life = Life::new();
    life.assign(0, &[0, 1], &Retired::default());
    life.assign(1, &[0, 1, 2], &Retired::default());
    life.assign(4, &[0, 1, 2], &Retired::default());
    assert_eq!(life.slots.previous.len(), 1);
    let proposal = |nodes: &[&str]| proposal(&life.table(), &|node| nodes.contains(&node));
    assert_eq!(proposal(&["n0", "n2"]), Ok(None));
    let without = proposal(&["n0", "n1"]).unwrap().unwrap();
    assert_eq!(without.table.groups[0].previous, []);
    assert_eq!(
        without.owners,
        set(&["n0", "n1"]),
        "nobody else owns flows under it"
    );
}

#[test]
fn steps_come_one_after_the_other() {
    let mut life = three_older();
    let base = life.version;
    let all = ["b", "n0", "n1", "n2"];
    let owners = set(&["n0", "n1", "n2"]);
    let (mut retirement, now) = (Retirement::default(), Instant::now());
    assert_eq!(want(&mut retirement, &life, &all, base - 1, now), []);
    assert_eq!(
        step(&mut retirement, &all, base - 1, now),
        [],
        "(a) comes first"
    );
    assert_eq!(asked(&step(&mut retirement, &all, base, now)), owners);
    let (n0, n1, n2) = ("n0".into(), "n1".into(), "n2".into());
    retirement.handed_off(&n0, Round(7), position(1));
    retirement.handed_off(&n1, Round(7), position(2));
    retirement.handed_off(&n2, Round(6), position(3));
    assert_eq!(
        step(&mut retirement, &all, base, now),
        [],
        "an answer to another round"
    );
    retirement.handed_off(&n2, Round(7), position(4));
    let actions = step(&mut retirement, &all, base, now);
    let [Action::Publish(retired)] = &actions[..] else {
        panic!("{actions:?}");
    };
    let watermarks = [(n0, 1), (n1, 2), (n2, 4)].map(|(node, seq)| (node, position(seq)));
    assert_eq!(retired.watermarks, watermarks.into());
    life.assign(10, &[4], retired);
    assert_eq!(
        life.slots.slots[0].older.len(),
        1,
        "the change that has waited is made"
    );
    assert_eq!(retirement.table_changed(&life.table(), now), Ok(vec![]));
    assert_eq!(step(&mut retirement, &all, base, now), []);
    let done = step(&mut retirement, &all, life.version, now);
    assert_eq!(cancelled(&done), owners);
    assert_eq!(retirement, Retirement::Idle);
}

#[test]
fn an_owner_that_goes_away_ends_the_attempt_and_the_next_is_without_it() {
    let life = three_older();
    let (mut retirement, now) = (Retirement::default(), Instant::now());
    let all = ["n0", "n1", "n2"];
    assert_eq!(
        want(&mut retirement, &life, &all, life.version, now).len(),
        3
    );
    let left = ["n0", "n2"];
    let actions = step(&mut retirement, &left, life.version, now);
    assert_eq!(cancelled(&actions), set(&all));
    assert_eq!(want(&mut retirement, &life, &left, life.version, now), []);
    let later = now + PAUSE;
    assert_eq!(retirement.deadline(), Some(later));
    let actions = want(&mut retirement, &life, &left, life.version, later);
    assert_eq!(asked(&actions), set(&left));
    // One that never answers ends it too.
    let actions = step(&mut retirement, &left, life.version, later + ROUND_MAX);
    assert_eq!(cancelled(&actions), set(&left));
}

#[test]
fn who_is_first_again_is_not_retired() {
    let mut life = three_older();
    let (mut retirement, now) = (Retirement::default(), Instant::now());
    let all = ["n0", "n1", "n2"];
    want(&mut retirement, &life, &all, life.version, now);
    life.assign(10, &[0], &Retired::default());
    retirement.table_changed(&life.table(), now).unwrap();
    life.assign(11, &[1], &Retired::default());
    retirement.table_changed(&life.table(), now).unwrap();
    life.assign(12, &[3], &Retired::default());
    for node in all {
        retirement.handed_off(&node.into(), Round(7), position(1));
    }
    let actions = step(&mut retirement, &all, life.version, now);
    let [Action::Publish(retired)] = &actions[..] else {
        panic!("{actions:?}");
    };
    life.assign(13, &[3], retired);
    let names = |n: &u32| life.slots.candidates[*n as usize].uid.to_string();
    let older: Vec<_> = life.slots.slots[0].older.iter().map(names).collect();
    assert_eq!(
        older,
        ["pod-01", "pod-00"],
        "only pod 2 was history all the time"
    );
    // An attempt that nothing is left of ends.
    let mut life = three_older();
    life.dead.extend(["pod-01", "pod-02"].map(Arc::from));
    life.assign(5, &[3], &Retired::default());
    let mut retirement = Retirement::default();
    want(&mut retirement, &life, &all, life.version, now);
    life.assign(6, &[0], &Retired::default());
    let actions = retirement.table_changed(&life.table(), now).unwrap();
    assert_eq!(cancelled(&actions), set(&["n0"]));
}

/// Flows of many clients: each was admitted by a version that was current once.
struct Flows {
    owners: BTreeSet<(FlowKey, PinnedPod)>,
    pinned: BTreeSet<(FlowKey, PinnedPod)>,
}

fn flow(client: u16) -> FlowKey {
    let client = format!("192.0.2.7:{}", 1000 + client).parse().unwrap();
    FlowKey::new(6, client, (VIP, 80).into()).unwrap()
}

fn finder(table: &ServiceTableSpec) -> Finder {
    Finder::new(table, hash_key(&[7; 32]), maglev::rows).unwrap()
}

impl Flows {
    /// Every client connects to whom the version names first.
    fn admit(&mut self, table: &ServiceTableSpec) {
        let finder = finder(table);
        for client in 0..24 {
            let flow = flow(client);
            let found = finder.candidates(&flow);
            let serving = |candidate: &Candidate| {
                let current = table.groups[0].current.iter().flatten();
                let pods = current.map(|n| table.groups[0].candidates[*n as usize]);
                pods.into_iter()
                    .any(|pod| table.pods[pod as usize].uid == *candidate.uid)
            };
            if let Some(first) = found.first().filter(|first| serving(first.candidate)) {
                let pod = PinnedPod {
                    uid: first.candidate.uid.clone(),
                    node: first.candidate.node.clone(),
                    address: first.candidate.address,
                    port: first.port,
                };
                self.owners.insert((flow, pod));
            }
        }
    }

    /// The owners' nodes pin what a proposal would not find.
    fn hand_off(&mut self, proposal: &ServiceTableSpec, nodes: &BTreeSet<Arc<str>>) {
        let finder = finder(proposal);
        let of_nodes = self
            .owners
            .iter()
            .filter(|(_, pod)| nodes.contains(&pod.node));
        let lost = of_nodes.filter(|(flow, pod)| !finder.is_findable(flow, pod));
        self.pinned.extend(lost.cloned());
    }

    /// Living owners that packets do not find.
    fn lost(&self, life: &Life) -> Vec<&(FlowKey, PinnedPod)> {
        let finder = finder(&life.table());
        let lives = |(_, pod): &&(FlowKey, PinnedPod)| !life.dead.contains(&pod.uid);
        let lost = |one: &&(FlowKey, PinnedPod)| {
            !self.pinned.contains(*one) && !finder.is_findable(&one.0, &one.1)
        };
        self.owners.iter().filter(lives).filter(lost).collect()
    }
}

/// Plays steps: pods that are usable, one that may die, nodes that are reached, seconds that pass.
fn play(steps: &[(u16, u8, u8, i64)]) {
    let mut life = Life::new();
    let mut flows = Flows {
        owners: BTreeSet::new(),
        pinned: BTreeSet::new(),
    };
    let mut retirement = Retirement::default();
    let (start, mut second) = (Instant::now(), 0_i64);
    for &(mask, victim, away, seconds) in steps {
        second += seconds;
        let pods: Vec<u8> = (0..9)
            .filter(|n| mask >> n & 1 != 0 && !life.dead.contains(&candidate(*n).uid))
            .collect();
        if !pods.contains(&victim) && second % 2 == 0 {
            life.dead.insert(candidate(victim).uid);
        }
        let nodes: BTreeSet<Arc<str>> = (0..3)
            .filter(|n| away == 0 || u64::from(away) & 1 << n != 0)
            .map(|n| format!("n{n}").into())
            .collect();
        let known = Nodes {
            reachable: &nodes,
            applied: &|_| Some(u64::MAX),
        };
        let now = start + Duration::from_secs(second.unsigned_abs());
        let mut actions = retirement
            .want(&life.table(), Round(second.unsigned_abs()), &known, now)
            .unwrap();
        actions.extend(retirement.step(&known, now));
        let mut retired = Retired::default();
        for action in actions {
            match action {
                Action::Ask {
                    node,
                    round,
                    proposal,
                } => {
                    // New flows come to who is first in the base version, before the node looks and after.
                    flows.admit(&life.table());
                    flows.hand_off(&proposal, &BTreeSet::from([node.clone()]));
                    retirement.handed_off(&node, round, position(1));
                }
                Action::Publish(these) => retired = these,
                Action::Cancel { .. } => {}
            }
        }
        for step in [0, 3] {
            life.assign(second + step, &pods, &retired);
            retirement.table_changed(&life.table(), now).unwrap();
            retired = Retired::default();
            assert_eq!(flows.lost(&life), Vec::<&(FlowKey, PinnedPod)>::new());
            flows.admit(&life.table());
            assert_eq!(flows.lost(&life), Vec::<&(FlowKey, PinnedPod)>::new());
        }
        second += 3;
    }
}

/// A flow of pod 3 was found by a previous table that pod 3 never owned flows under, since pod 3 stood in for a slot of it; then
/// the table was retired, and only those were asked who had owned some.
#[test]
fn who_owned_nothing_under_a_previous_table_does_not_rely_on_it() {
    play(&[
        (386, 4, 0, 8),
        (182, 1, 0, 1),
        (152, 0, 0, 1),
        (424, 2, 1, 33),
        (104, 0, 5, 7),
        (222, 0, 0, 1),
        (90, 0, 0, 1),
        (14, 0, 6, 1),
        (1, 0, 6, 1),
    ]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever pods do, and whenever history is retired, with versions written between the question and the answer: a
    /// living owner is a candidate of its flow or has it pinned, and all candidates of a flow can be asked.
    #[test]
    fn owners_are_candidates_or_pinned_until_they_die(
        steps in prop::collection::vec((1..511_u16, 0..9_u8, 0..8_u8, 1..70_i64), 1..24),
    ) {
        play(&steps);
    }
}
