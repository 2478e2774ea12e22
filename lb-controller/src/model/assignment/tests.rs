//! Slots over the life of a Service: who holds them, who is remembered, when they close. One file: examples and properties
//! share the story that they tell.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use lb_ebpf::abi::{CANDIDATES_MAX, OLDER_MAX};
use proptest::prelude::*;

use super::*;

/// A pod `p` or a pod with another target port `p:81`; weights as `p*3`.
fn candidate(text: &str) -> (Candidate, Weight) {
    let (name, weight) = text.split_once('*').unwrap_or((text, "1"));
    let (uid, port) = name.split_once(':').unwrap_or((name, "80"));
    let address = IpAddr::V4(Ipv4Addr::new(10, 0, 0, uid.bytes().last().unwrap()));
    let ports = [port.parse().unwrap()].into();
    let candidate = Candidate {
        uid: uid.into(),
        node: "n".into(),
        address,
        ports,
    };
    (
        candidate,
        Weight::try_from(weight.parse::<u32>().unwrap()).unwrap(),
    )
}

struct Group {
    slots: Slots,
    waiting: Waiting,
    dead: BTreeSet<String>,
    fields: HashFields,
    second: i64,
    outcome: Outcome,
}

impl Group {
    fn new() -> Self {
        Self {
            slots: Slots::none(HashFields::FiveTuple),
            waiting: Waiting::default(),
            dead: BTreeSet::new(),
            fields: HashFields::FiveTuple,
            second: 0,
            outcome: Outcome::default(),
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    /// Assigns at a time, twice: the second time nothing may change.
    fn assign(&mut self, second: i64, usable: &str) -> Option<i64> {
        self.second = second;
        let usable = usable.split_whitespace().map(candidate).collect();
        let dead = |candidate: &Candidate| self.dead.contains(&*candidate.uid);
        let input = Input {
            usable: &usable,
            fields: self.fields,
            dead: &dead,
            when_full: WhenFull::Waits,
            now: Self::at(second),
        };
        let outcome = assign(&mut self.slots, &mut self.waiting, &input);
        let before = (self.slots.clone(), self.waiting.clone());
        let again = assign(&mut self.slots, &mut self.waiting, &input);
        assert_eq!(
            (before, &outcome),
            ((self.slots.clone(), self.waiting.clone()), &again)
        );
        self.outcome = outcome;
        self.outcome.deadline.map(Timestamp::as_second)
    }

    /// Older occupants and previous tables leave, as after a retirement.
    fn retire(&mut self) {
        for slot in &mut self.slots.slots {
            slot.older.clear();
        }
        self.slots.previous.clear();
        self.slots.close_unnamed();
    }

    /// Who keeps a slot that another should have.
    fn full(&self) -> Vec<String> {
        let full = self.outcome.history_full.iter();
        full.map(|candidate| self.name(*candidate)).collect()
    }

    fn kill(&mut self, uid: &str) {
        self.dead.insert(uid.into());
    }

    fn name(&self, candidate: u32) -> String {
        let candidate = &self.slots.candidates[candidate as usize];
        match candidate.ports[0] {
            80 => candidate.uid.to_string(),
            port => format!("{}:{port}", candidate.uid),
        }
    }

    /// `a b<a -<b? c|d`: current, `<` older newest first, `?` vacant, `|` before closed slots.
    fn show(&self) -> String {
        let open = usize::from(self.slots.shape.slots());
        let mut out = String::new();
        for (at, slot) in self.slots.slots.iter().enumerate() {
            out += if at == 0 {
                ""
            } else if at == open {
                "|"
            } else {
                " "
            };
            out += &slot
                .current
                .map_or("-".into(), |current| self.name(current));
            for older in &slot.older {
                out = out + "<" + &self.name(*older);
            }
            out += if slot.vacant.is_some() { "?" } else { "" };
        }
        out
    }

    fn previous(&self) -> Vec<u16> {
        self.slots
            .previous
            .iter()
            .map(|previous| previous.shape.slots())
            .collect()
    }
}

#[test]
fn first_pods_get_slots_at_once_in_the_order_of_their_names() {
    let mut group = Group::new();
    assert_eq!(group.assign(0, "c a b"), None);
    assert_eq!(
        (group.show(), group.slots.shape.size().get()),
        ("a b c".into(), 509)
    );
    assert!(group.previous().is_empty());
}

#[test]
fn rollout_changes_no_shape_and_remembers_three_older() {
    let mut group = Group::new();
    group.assign(0, "a1 b1");
    let shape = group.slots.shape.clone();
    for (second, usable, expected) in [
        (1, "a1 b1 a2", "a1 b1"),
        (2, "b1 a2", "a2<a1 b1"),
        (3, "a2 b2", "a2<a1 b2<b1"),
        (4, "a3 b3", "a3<a2<a1 b3<b2<b1"),
        (5, "a4 b4", "a4<a3<a2<a1 b4<b3<b2<b1"),
    ] {
        group.assign(second, usable);
        assert_eq!(group.show(), expected, "at {second}");
    }
    assert_eq!(group.slots.shape, shape);
    group.kill("a3");
    group.kill("b4");
    group.assign(7, "a5 b5");
    assert_eq!(group.show(), "b5<a4<a2<a1 a5<b3<b2<b1");
}

#[test]
fn nobody_makes_room_for_others_but_the_dead_and_the_retired() {
    let mut group = Group::new();
    for (second, usable) in (0..).zip(["a1 b", "a2 b", "a3 b", "a4 b"]) {
        group.assign(second, usable);
    }
    assert_eq!(group.full(), [""; 0]);
    assert_eq!(group.assign(4, "a5 b"), Some(6), "a5 waits for a slot");
    assert_eq!(
        group.show(),
        "a4<a3<a2<a1? b",
        "agents send its new flows elsewhere"
    );
    assert_eq!(group.full(), ["a4"]);
    group.kill("a2");
    group.assign(5, "a5 b");
    assert_eq!(
        (group.show(), group.full()),
        ("a5<a4<a3<a1 b".into(), vec![])
    );
    group.assign(6, "a6 b");
    assert_eq!(
        (group.show(), group.full()),
        ("a5<a4<a3<a1? b".into(), vec!["a5".into()])
    );
    group.retire();
    group.assign(7, "a6 b");
    assert_eq!((group.show(), group.full()), ("a6<a5 b".into(), vec![]));
}

#[test]
fn a_full_history_stalls_no_other_slot() {
    let mut group = Group::new();
    for (second, usable) in (0..).zip(["a1 b1", "a2 b1", "a3 b1", "a4 b1", "b1 c"]) {
        group.assign(second, usable);
    }
    assert_eq!(group.show(), "a4<a3<a2<a1? b1");
    group.assign(5, "c b2");
    assert_eq!(
        group.show(),
        "a4<a3<a2<a1? b2<b1",
        "the pod that comes first takes what is free"
    );
}

#[test]
fn a_changed_target_port_waits_for_a_place_in_history() {
    let mut group = Group::new();
    for (second, usable) in (0..).zip(["a", "a:81", "a:82", "a:83"]) {
        group.assign(second, usable);
    }
    assert_eq!(
        group.assign(4, "a:84"),
        None,
        "it has a slot, so it waits for no other"
    );
    assert_eq!(
        (group.show(), group.full()),
        ("a:83<a:82<a:81<a".into(), vec!["a:83".into()])
    );
    group.retire();
    group.assign(5, "a:84");
    assert_eq!(group.show(), "a:84<a:83");
}

#[test]
fn slots_remember_the_fewer_the_more_tables_there_are() {
    let most = |previous| Room::beside(previous, WhenFull::Waits).most;
    assert_eq!([0, 1, 2].map(most), [3, 2, 1]);
    let mut group = Group::new();
    group.assign(0, "a1 b");
    group.assign(1, "a1 b c");
    group.assign(3, "a1 b c");
    assert_eq!(group.previous(), [2]);
    group.assign(4, "a2 b c");
    group.assign(5, "a3 b c");
    assert_eq!(
        (group.show(), group.full()),
        ("a3<a2<a1 b c".into(), vec![])
    );
    group.assign(6, "a4 b c");
    assert_eq!(
        (group.show(), group.full()),
        ("a3<a2<a1? b c".into(), vec!["a3".into()])
    );
}

#[test]
fn another_shape_waits_for_slots_with_less_history() {
    let mut group = Group::new();
    for (second, usable) in (0..).zip(["a1 b", "a2 b", "a3 b", "a4 b", "a4 b c"]) {
        group.assign(second, usable);
    }
    assert_eq!(group.assign(6, "a4 b c"), None);
    assert_eq!(group.show(), "a4<a3<a2<a1 b");
    assert!(group.outcome.shape_waits);
    group.retire();
    group.assign(7, "a4 b c");
    assert_eq!((group.show(), group.previous()), ("a4 b c".into(), vec![2]));
    assert!(!group.outcome.shape_waits);
}

#[test]
fn surge_pod_waits_two_seconds_before_a_slot_is_opened() {
    let mut group = Group::new();
    group.assign(0, "a b");
    assert_eq!(group.assign(10, "a b c"), Some(12));
    assert_eq!(group.show(), "a b");
    assert_eq!(
        group.assign(11, "a b c d"),
        Some(12),
        "the first decides for all"
    );
    assert_eq!(group.assign(12, "a b c d"), None);
    assert_eq!(
        (group.show(), group.previous()),
        ("a b c d".into(), vec![2])
    );
}

#[test]
fn readiness_flap_costs_no_table_and_gives_the_slot_back() {
    let mut group = Group::new();
    group.assign(0, "a b c");
    let shape = group.slots.shape.clone();
    assert_eq!(group.assign(1, "b c"), Some(61));
    let stand_in = group.slots.slots[0].current.map(|c| group.name(c)).unwrap();
    assert_eq!(group.show(), format!("{stand_in}<a? b c"));
    assert_eq!(group.assign(30, "a b c"), None);
    assert_eq!(group.show(), format!("a<{stand_in} b c"));
    assert_eq!(
        (group.slots.shape.clone(), group.previous()),
        (shape, vec![])
    );
}

#[test]
fn who_comes_back_is_never_forgotten_for_stand_ins() {
    let mut group = Group::new();
    group.assign(0, "a b");
    // Stand-ins that replace each other: whoever serves the other slot.
    for (second, usable) in [(1, "b"), (2, "c"), (3, "d"), (4, "e"), (5, "f")] {
        group.assign(second, usable);
    }
    let at = group
        .slots
        .slots
        .iter()
        .find(|slot| slot.vacant.is_some())
        .unwrap();
    let home = at.vacant.unwrap().home.unwrap();
    assert_eq!(at.older.len(), OLDER_MAX);
    assert!(at.candidates().any(|c| c == home), "{}", group.show());
}

#[test]
fn with_nobody_usable_the_slots_stay_and_name_nobody() {
    let mut group = Group::new();
    group.assign(0, "a b");
    group.assign(1, "");
    assert_eq!(group.show(), "-<a? -<b?");
    assert_eq!(group.assign(1000, ""), None, "there is nobody to shrink to");
    assert_eq!(group.show(), "-<a? -<b?");
    group.assign(1001, "b a");
    assert_eq!(group.show(), "a b");
}

#[test]
fn scale_down_closes_slots_after_a_minute_and_the_last_one_moves_into_the_hole() {
    let mut group = Group::new();
    group.assign(0, "a b c d e");
    group.assign(1, "b c e");
    assert_eq!(group.assign(60, "b c e"), Some(61));
    assert!(group.previous().is_empty());
    assert_eq!(group.assign(61, "b c e"), None);
    let at = |slot: usize| &group.slots.slots[slot];
    assert_eq!(group.slots.shape.slots(), 3);
    assert_eq!(group.previous(), [5]);
    let name = |slot: usize| group.name(at(slot).current.unwrap());
    assert_eq!(
        [name(0), name(1), name(2), name(4)],
        ["e", "b", "c", "e"],
        "{}",
        group.show()
    );
    assert!(at(0).older.iter().any(|older| group.name(*older) == "a"));
    assert!(
        at(3).older.iter().any(|older| group.name(*older) == "d"),
        "{}",
        group.show()
    );
}

#[test]
fn vacancies_that_come_due_together_are_closed_together() {
    let mut group = Group::new();
    group.assign(0, "a b c d");
    group.assign(1, "a b c");
    group.assign(6, "a b");
    assert_eq!(group.assign(61, "a b"), Some(66));
    assert!(group.previous().is_empty());
    assert_eq!(group.assign(66, "a b"), None);
    assert_eq!((group.slots.shape.slots(), group.previous()), (2, vec![4]));
}

#[test]
fn closed_slots_stay_while_a_previous_table_names_them() {
    let mut group = Group::new();
    group.assign(0, "a b c");
    group.assign(1, "a b");
    group.assign(61, "a b");
    assert_eq!((group.slots.slots.len(), group.previous()), (3, vec![3]));
    for uid in ["a", "b", "c"] {
        group.kill(uid);
    }
    group.assign(70, "d e");
    assert_eq!((group.show(), group.previous()), ("d e".into(), vec![]));
}

#[test]
fn shape_that_returns_is_named_once() {
    let mut group = Group::new();
    group.assign(0, "a b");
    group.assign(1, "a b c");
    group.assign(3, "a b c");
    assert_eq!(group.previous(), [2]);
    group.assign(10, "a b");
    group.assign(70, "a b");
    assert_eq!((group.slots.shape.slots(), group.previous()), (2, vec![3]));
    group.assign(80, "a b c");
    group.assign(82, "a b c");
    assert_eq!((group.slots.shape.slots(), group.previous()), (3, vec![2]));
}

#[test]
fn a_third_shape_waits_until_a_previous_one_is_gone() {
    let mut group = Group::new();
    group.assign(0, "a");
    group.assign(1, "a b");
    group.assign(3, "a b");
    group.assign(11, "a b c");
    group.assign(13, "a b c");
    assert_eq!(group.previous(), [2, 1]);
    assert_eq!(group.assign(21, "a b c d"), Some(23));
    assert_eq!(group.assign(23, "a b c d"), None);
    assert_eq!(
        (group.show(), group.previous()),
        ("a b c".into(), vec![2, 1])
    );
    assert!(group.outcome.shape_waits);
    group.assign(24, "a*2 b c d");
    assert_eq!(
        group.slots.weights,
        [Weight::ONE; 3],
        "neither do weights change"
    );
    group.fields = HashFields::Addresses;
    group.assign(25, "a b c");
    assert_eq!(group.slots.shape.fields(), HashFields::FiveTuple);
    group.fields = HashFields::FiveTuple;
    group.assign(26, "a b");
    assert_eq!(
        group.assign(86, "a b"),
        None,
        "a shape that is a previous one takes its place"
    );
    assert_eq!(
        (group.slots.shape.slots(), group.previous()),
        (2, vec![3, 1])
    );
    group.assign(90, "a b c d");
    group.assign(92, "a b c d");
    assert!(group.outcome.shape_waits);
    group.retire();
    group.assign(93, "a b c d");
    assert_eq!(
        (group.show(), group.previous()),
        ("a b c d".into(), vec![2])
    );
}

#[test]
fn previous_table_leaves_with_the_last_pod_that_may_own_flows_under_it() {
    let mut group = Group::new();
    group.assign(0, "a");
    group.assign(1, "a b");
    group.assign(3, "a b");
    group.assign(4, "c b");
    assert_eq!(group.previous(), [1]);
    group.kill("a");
    group.assign(5, "c b");
    assert_eq!((group.show(), group.previous()), ("c b".into(), vec![]));
}

#[test]
fn selector_switch_moves_no_row() {
    let mut group = Group::new();
    group.assign(0, "a b c");
    let shape = group.slots.shape.clone();
    group.assign(1, "x y z");
    assert_eq!(group.show(), "x<a y<b z<c");
    assert_eq!(
        (group.slots.shape.clone(), group.previous()),
        (shape, vec![])
    );
}

#[test]
fn changed_target_port_makes_a_pod_its_own_older() {
    let mut group = Group::new();
    group.assign(0, "a b");
    group.assign(1, "a:81 b:81");
    assert_eq!(group.show(), "a:81<a b:81<b");
}

#[test]
fn successors_take_slots_of_the_dead_before_those_of_the_living() {
    let mut group = Group::new();
    group.assign(0, "a b c");
    group.kill("b");
    group.assign(1, "c x");
    assert!(group.show().contains(" x "), "{}", group.show());
    assert_eq!(
        group.slots.slots[0]
            .vacant
            .unwrap()
            .home
            .map(|c| group.name(c)),
        Some("a".into())
    );
}

#[test]
fn weights_are_the_shape_and_successors_of_equal_weight_keep_it() {
    let mut group = Group::new();
    group.assign(0, "a*2 b c*2");
    let shape = group.slots.shape.clone();
    assert_eq!(shape.weights().each(), Some(&[2, 1, 2][..]));
    group.assign(1, "y z*2 c*2");
    assert_eq!(group.show(), "z<a y<b c");
    assert_eq!(group.slots.shape, shape);
    group.assign(2, "y z*3 c*2");
    assert_eq!(group.slots.shape.weights().each(), Some(&[3, 1, 2][..]));
    assert_eq!(group.previous(), [3]);
}

#[test]
fn affinity_is_another_table_of_the_same_rows() {
    let mut group = Group::new();
    group.assign(0, "a b");
    let digest = group.slots.shape.digest();
    group.fields = HashFields::Addresses;
    group.assign(1, "a b");
    assert_eq!(
        (group.slots.shape.digest(), group.previous()),
        (digest, vec![2])
    );
    group.fields = HashFields::FiveTuple;
    group.assign(2, "a b");
    assert_eq!(group.previous(), [2]);
}

#[test]
fn ten_to_eleven_changes_the_size() {
    let mut group = Group::new();
    let ten = "a b c d e f g h i j";
    group.assign(0, ten);
    assert_eq!(group.slots.shape.size().get(), 1021);
    group.assign(1, &format!("{ten} k"));
    group.assign(3, &format!("{ten} k"));
    assert_eq!(
        (group.slots.shape.slots(), group.slots.shape.size().get()),
        (11, 1021)
    );
    let mut group = Group::new();
    group.assign(0, "a b c d e f g h i j");
    let many: Vec<_> = (0..25).map(|n| format!("p{n}")).collect();
    let many = many.join(" ");
    group.assign(1, &many);
    group.assign(3, &many);
    assert_eq!(group.slots.shape.size().get(), 4093);
}

#[test]
fn more_pods_than_slots_are_refused_and_counted() {
    let usable: BTreeMap<_, _> = (0..SLOTS_MAX + 3)
        .map(|n| {
            let uid = format!("{n:05}").into();
            let address = IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + n as u32));
            (
                Candidate {
                    uid,
                    node: "n".into(),
                    address,
                    ports: [80].into(),
                },
                Weight::ONE,
            )
        })
        .collect();
    let mut slots = Slots::none(HashFields::FiveTuple);
    let input = Input {
        usable: &usable,
        fields: HashFields::FiveTuple,
        dead: &|_| false,
        when_full: WhenFull::Waits,
        now: Group::at(0),
    };
    let outcome = assign(&mut slots, &mut Waiting::default(), &input);
    assert_eq!((outcome.refused, slots.shape.slots()), (3, 5000));
    assert_eq!(slots.shape.size().get(), 524_287);
}

/// What must hold whatever happens.
fn check(group: &Group, usable: &BTreeSet<&str>) -> Result<(), TestCaseError> {
    let Slots {
        candidates,
        shape,
        weights,
        previous,
        slots,
    } = &group.slots;
    let dead = |c: u32| group.dead.contains(&*candidates[c as usize].uid);
    prop_assert_eq!(weights.len(), usize::from(shape.slots()));
    prop_assert!(previous.len() <= PREVIOUS_MAX);
    let occupants = slots.iter().map(|slot| slot.candidates().count()).max();
    prop_assert!(occupants.unwrap_or(0) * (1 + previous.len()) <= CANDIDATES_MAX);
    prop_assert!(
        previous
            .iter()
            .all(|p| p.shape != *shape && !p.owners.is_empty())
    );
    let named = previous
        .iter()
        .map(|p| p.shape.slots())
        .chain([shape.slots()])
        .max();
    prop_assert_eq!(slots.len(), usize::from(named.unwrap()));
    let mut homes = BTreeSet::new();
    for (at, slot) in slots.iter().enumerate() {
        prop_assert!(slot.older.len() <= OLDER_MAX);
        let all: Vec<u32> = slot.candidates().collect();
        prop_assert_eq!(
            all.iter().collect::<BTreeSet<_>>().len(),
            all.len(),
            "duplicates"
        );
        prop_assert!(!all.iter().any(|c| dead(*c)), "the dead are gone");
        if at < weights.len() {
            let current = slot.current.map(|c| &*candidates[c as usize].uid);
            let keeps = slot
                .current
                .is_some_and(|c| group.outcome.history_full.contains(&c));
            if !keeps && usable.is_empty() {
                prop_assert_eq!(current, None);
            } else if !keeps {
                prop_assert!(
                    usable.contains(current.unwrap()),
                    "first packets go to the usable"
                );
            }
            if slot.vacant.is_none() {
                prop_assert!(homes.insert(current.unwrap().to_owned()), "one slot each");
            }
        } else {
            prop_assert!(slot.vacant.is_none());
        }
    }
    Ok(())
}

/// `l` comes back to a slot whose history is full, which `g` takes, being part of it.
#[test]
fn who_returns_to_a_slot_with_a_full_history_waits_like_a_newcomer() {
    let mut group = Group::new();
    for (second, usable) in [
        (3, "a b d h i j l"),
        (27, "a c d f g i k l"),
        (29, "i j"),
        (53, "b f i j l"),
        (89, "b c f j"),
    ] {
        group.assign(second, usable);
    }
    assert!(group.show().contains("c<j<g?"), "{}", group.show());
    group.kill("d");
    group.assign(90, "a e g h i l");
    assert!(group.show().contains("g<c<j"), "{}", group.show());
    assert_eq!(
        group.waiting.0.keys().map(|uid| &**uid).collect::<Vec<_>>(),
        ["l"]
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    /// Pods come, go, return and die; time passes. Nobody who lives is forgotten.
    #[test]
    fn invariants_hold_whatever_happens(
        steps in prop::collection::vec((0..4095_u32, 0..12_usize, 1..40_i64), 1..40),
    ) {
        const NAMES: [&str; 12] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"];
        let mut group = Group::new();
        let mut second = 0;
        for (mask, victim, seconds) in steps {
            second += seconds;
            let usable: BTreeSet<&str> = NAMES
                .into_iter()
                .enumerate()
                .filter(|(n, name)| mask >> n & 1 != 0 && !group.dead.contains(*name))
                .map(|(_, name)| name)
                .collect();
            if !usable.contains(NAMES[victim]) && second % 3 == 0 {
                group.kill(NAMES[victim]);
            }
            let before = group.slots.clone();
            let text = usable.iter().copied().collect::<Vec<_>>().join(" ");
            let deadline = group.assign(second, &text);
            check(&group, &usable)?;
            prop_assert!(deadline.is_none_or(|deadline| deadline > second));
            // Who lives is still a candidate of the same slot; slots and tables go with the last who owned flows under them.
            let lives = |c: &u32| !group.dead.contains(&*before.candidates[*c as usize].uid);
            for (at, old) in before.slots.iter().enumerate() {
                for candidate in old.candidates().filter(lives) {
                    match group.slots.slots.get(at) {
                        Some(new) => prop_assert!(
                            new.candidates().any(|c| c == candidate),
                            "{}",
                            group.show()
                        ),
                        None => prop_assert!(
                            before.previous.iter().all(|p| at >= usize::from(p.shape.slots())
                                || !p.owners.contains(&candidate)),
                            "{}",
                            group.show()
                        ),
                    }
                }
            }
            let shapes = |slots: &Slots| -> Vec<_> {
                let previous = slots.previous.iter().map(|previous| previous.shape.clone());
                previous.chain([slots.shape.clone()]).collect()
            };
            let kept = shapes(&group.slots);
            for previous in &before.previous {
                if previous.owners.iter().any(lives) {
                    prop_assert!(kept.contains(&previous.shape));
                }
            }
        }
    }

    /// The order in which objects arrive does not matter: the same sets at the same times give the same slots.
    #[test]
    fn assignment_is_a_function_of_its_input(mut names in Just(vec!["a", "b", "c", "d", "e"]).prop_shuffle()) {
        let run = |names: &[&str]| {
            let mut group = Group::new();
            group.assign(0, &names.join(" "));
            group.show()
        };
        let shuffled = run(&names);
        names.sort_unstable();
        prop_assert_eq!(shuffled, run(&names));
    }
}

/// As long as nobody can be asked to hand flows off.
#[test]
fn without_retirement_the_oldest_history_makes_room() {
    let mut slots = Slots::none(HashFields::FiveTuple);
    let mut waiting = Waiting::default();
    let mut second = 0;
    let mut assign_to = |slots: &mut Slots, usable: &str| {
        second += 100;
        let usable = usable.split_whitespace().map(candidate).collect();
        let input = Input {
            usable: &usable,
            fields: HashFields::FiveTuple,
            dead: &|_| false,
            when_full: WhenFull::OldestLeaves,
            now: Timestamp::from_second(second).unwrap(),
        };
        let outcome = assign(slots, &mut waiting, &input);
        assert!(outcome.history_full.is_empty() && !outcome.shape_waits);
    };
    for pod in ["a", "b", "c", "d", "e"] {
        assign_to(&mut slots, pod);
    }
    let name = |slots: &Slots, candidate: u32| slots.candidates[candidate as usize].uid.to_string();
    let older: Vec<_> = slots.slots[0]
        .older
        .iter()
        .map(|c| name(&slots, *c))
        .collect();
    assert_eq!(older, ["d", "c", "b"]);
    // Twice: a newcomer waits for a freed slot first.
    for pods in ["e f", "e f", "e f g", "e f g", "e f g h", "e f g h"] {
        assign_to(&mut slots, pods);
    }
    let shapes: Vec<_> = slots.previous.iter().map(|p| p.shape.slots()).collect();
    assert_eq!((slots.shape.slots(), shapes), (4, vec![3, 2]));
}
