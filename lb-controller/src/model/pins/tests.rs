//! Streams of pins: in order, cut short, again, from the middle, after restarts. One file: examples and properties share the
//! two sides of a stream.

use proptest::prelude::*;
use std::collections::BTreeMap;

use super::*;

fn key(n: u16) -> FlowKey {
    let client = format!("192.0.2.7:{}", 1000 + n).parse().unwrap();
    FlowKey::new(6, client, "198.51.100.1:80".parse().unwrap()).unwrap()
}

fn pod(node: &str, n: u8) -> PinnedPod {
    PinnedPod {
        uid: format!("{node}-{n}").into(),
        node: node.into(),
        address: [10, 0, 0, n].into(),
        port: 8080,
    }
}

fn name(node: &str) -> Arc<str> {
    node.into()
}

fn writer(incarnation: u64) -> Writer {
    Writer::new(Incarnation(incarnation), [])
}

fn at(incarnation: u64, seq: u64) -> Position {
    Position {
        incarnation: Incarnation(incarnation),
        seq: Seq(seq),
    }
}

/// What a balancer that may be at a position is sent, in messages of at most `max`.
fn next(writer: &mut Writer, from: Option<Position>, max: usize) -> Vec<Message> {
    match writer.read(from, max) {
        Batch::Nothing => vec![],
        Batch::Records(message) => vec![message],
        Batch::Snapshot(snapshot) => snapshot.messages(max).collect(),
    }
}

/// Brings a balancer up to date, and checks that every operation is what the map lacked.
fn catch_up(writer: &mut Writer, node: &Arc<str>, to: &mut Receiver, map: &mut Map) {
    loop {
        let messages = next(writer, to.position(node), 3);
        if messages.is_empty() {
            return;
        }
        for message in messages {
            let taken = to.take(node, message);
            assert_eq!(taken.refused, None);
            map.carry_out(&taken.ops);
        }
    }
}

/// A kernel map.
#[derive(Default, PartialEq, Debug)]
struct Map(BTreeMap<FlowKey, [Option<Pinned>; 2]>);

impl Map {
    fn carry_out(&mut self, ops: &[PinOp]) {
        for PinOp { key, pods } in ops {
            let before = match pods {
                [None, _] => self.0.remove(key),
                pods => self.0.insert(*key, pods.clone()),
            };
            assert_ne!(before.as_ref(), Some(pods), "nothing is written twice");
        }
    }

    fn of(receiver: &Receiver) -> Self {
        Self(receiver.ops().map(|op| (op.key, op.pods)).collect())
    }
}

#[test]
fn flows_are_keys_of_maps_and_back() {
    for (client, vip) in [
        ("192.0.2.7:1", "198.51.100.1:80"),
        ("[2001:db8::7]:1", "[2001:db8::1]:80"),
    ] {
        let key = FlowKey::new(17, client.parse().unwrap(), vip.parse().unwrap()).unwrap();
        assert_eq!(FlowKey::of_tuple(&key.tuple()), key);
    }
    let mapped = "[::ffff:192.0.2.7]:1007".parse().unwrap();
    let vip = "198.51.100.1:80".parse().unwrap();
    assert_eq!(FlowKey::new(6, mapped, vip), Ok(key(7)));
    let client = "[2001:db8::7]:1".parse().unwrap();
    assert_eq!(
        FlowKey::new(6, client, vip),
        Err(MixedFamilies { client, vip })
    );
}

#[test]
fn a_balancer_that_knows_nothing_gets_a_snapshot_and_then_records() {
    let (mut a, node) = (writer(1), name("a"));
    a.pin(key(1), pod("a", 1)).unwrap();
    let mut to = Receiver::default();
    let begin = next(&mut a, None, 10);
    assert_eq!(begin.len(), 3);
    for message in begin {
        assert_eq!(to.take(&node, message).refused, None);
    }
    assert_eq!(to.position("a"), Some(at(1, 1)));
    assert_eq!(a.pin(key(2), pod("a", 2)), Ok(at(1, 2)));
    let records = Message::Records {
        first: at(1, 2),
        changes: vec![Change::Pin(key(2), pod("a", 2))],
    };
    assert_eq!(
        a.read(Some(at(1, 1)), 10),
        Batch::Records(records.clone()),
        "only what is new"
    );
    let op = PinOp {
        key: key(2),
        pods: [Some(Pinned::Pod(pod("a", 2))), None],
    };
    assert_eq!(to.take(&node, records).ops, [op]);
    assert_eq!(a.read(to.position("a"), 10), Batch::Nothing);
}

#[test]
fn a_snapshot_replaces_at_its_end_only() {
    let (mut old, node) = (writer(1), name("a"));
    old.pin(key(1), pod("a", 1)).unwrap();
    let (mut to, mut map) = (Receiver::default(), Map::default());
    catch_up(&mut old, &node, &mut to, &mut map);
    let mut new = Writer::new(Incarnation(2), [(key(2), pod("a", 2))]);
    let messages = next(&mut new, to.position("a"), 10);
    let (end, before) = messages.split_last().unwrap();
    for message in before {
        assert_eq!(to.take(&node, message.clone()), Taken::default());
    }
    assert_eq!(to.pins_of("a"), BTreeMap::from([(key(1), pod("a", 1))]));
    assert_eq!(to.position("a"), Some(at(1, 1)), "not acknowledged yet");
    map.carry_out(&to.take(&node, end.clone()).ops);
    assert_eq!(map, Map::of(&to));
    assert_eq!(to.pins_of("a"), BTreeMap::from([(key(2), pod("a", 2))]));
    assert_eq!(to.position("a"), Some(at(2, 0)));
}

#[test]
fn gaps_and_former_starts_are_refused() {
    let (mut a, node) = (writer(2), name("a"));
    let (mut to, mut map) = (Receiver::default(), Map::default());
    let records = |first| Message::Records {
        first,
        changes: vec![Change::Pin(key(9), pod("a", 9))],
    };
    let gap = |ours, first| Some(Refusal::Gap { ours, first });
    assert_eq!(
        to.take(&node, records(at(2, 1))).refused,
        gap(None, at(2, 1))
    );
    a.pin(key(1), pod("a", 1)).unwrap();
    catch_up(&mut a, &node, &mut to, &mut map);
    let ours = at(2, 1);
    assert_eq!(
        to.take(&node, records(at(2, 3))).refused,
        gap(Some(ours), at(2, 3))
    );
    assert_eq!(
        to.take(&node, records(at(3, 1))).refused,
        gap(Some(ours), at(3, 1))
    );
    let first = at(1, 2);
    let stale = Some(Refusal::Stale { ours, first });
    assert_eq!(to.take(&node, records(first)).refused, stale);
    let begin = Message::SnapshotBegin { position: first };
    assert_eq!(to.take(&node, begin).refused, stale);
    let end = to.take(&node, Message::SnapshotEnd);
    assert_eq!(end.refused, Some(Refusal::NoSnapshot));
    assert_eq!(map, Map::of(&to), "nothing was taken");
}

#[test]
fn a_writer_pins_flows_of_its_own_pods_only() {
    let (mut a, node) = (writer(1), name("a"));
    let (mut to, mut map) = (Receiver::default(), Map::default());
    catch_up(&mut a, &node, &mut to, &mut map);
    a.pin(key(1), pod("a", 1)).unwrap();
    a.pin(key(2), pod("b", 1)).unwrap();
    let [message] = next(&mut a, to.position("a"), 10).try_into().unwrap();
    let taken = to.take(&node, message);
    assert_eq!(taken.ops.len(), 1, "what came before counts");
    let foreign = Refusal::Foreign {
        uid: "b-1".into(),
        node: name("b"),
    };
    assert_eq!(taken.refused, Some(foreign));
    assert_eq!(
        to.position("a"),
        Some(at(1, 1)),
        "and only that is acknowledged"
    );
}

#[test]
fn a_full_balancer_refuses_and_acknowledges_no_more_than_it_holds() {
    let (mut a, node) = (writer(1), name("a"));
    let (mut to, mut map) = (Receiver::new(2), Map::default());
    catch_up(&mut a, &node, &mut to, &mut map);
    for n in 1..=3 {
        a.pin(key(n), pod("a", 1)).unwrap();
    }
    let [message] = next(&mut a, to.position("a"), 10).try_into().unwrap();
    let full = Some(Refusal::Full { limit: 2 });
    let taken = to.take(&node, message);
    assert_eq!((taken.ops.len(), taken.refused), (2, full.clone()));
    assert_eq!(to.position("a"), Some(at(1, 2)));
    // A snapshot that does not fit leaves what is there.
    let mut again = Writer::new(Incarnation(2), (4..7).map(|n| (key(n), pod("a", 1))));
    let taken: Vec<_> = next(&mut again, None, 2)
        .into_iter()
        .map(|message| to.take(&node, message))
        .collect();
    assert_eq!(taken[2].refused, full);
    assert_eq!(taken[3].refused, Some(Refusal::NoSnapshot));
    assert_eq!(to.len(), 2);
    // What ends behind it makes room, and then the rest is taken.
    a.unpin(&key(1));
    let [message] = next(&mut a, to.position("a"), 10).try_into().unwrap();
    let taken = to.take(&node, message.clone());
    assert_eq!((taken.ops.len(), taken.refused), (1, full));
    assert_eq!((to.len(), to.position("a")), (1, Some(at(1, 2))));
    assert_eq!(to.take(&node, message).refused, None);
    assert_eq!((to.len(), to.position("a")), (2, Some(at(1, 4))));
}

#[test]
fn a_flow_that_has_ended_is_not_told_any_more() {
    let (mut a, node) = (writer(1), name("a"));
    let (mut to, mut map) = (Receiver::new(1), Map::default());
    catch_up(&mut a, &node, &mut to, &mut map);
    a.pin(key(1), pod("a", 1)).unwrap();
    catch_up(&mut a, &node, &mut to, &mut map);
    // There is no room for the second, and nobody misses it.
    a.pin(key(2), pod("a", 1)).unwrap();
    a.unpin(&key(2));
    catch_up(&mut a, &node, &mut to, &mut map);
    assert_eq!(to.position("a"), Some(a.position()));
}

#[test]
fn a_full_writer_says_so() {
    let mut a = writer(1).with_limits(1, 10);
    a.pin(key(1), pod("a", 1)).unwrap();
    assert_eq!(a.pin(key(2), pod("a", 1)), Err(WriterFull(1)));
    assert_eq!(a.pin(key(1), pod("a", 2)), Ok(at(1, 2)));
}

#[test]
fn a_balancer_that_is_too_far_behind_gets_everything_as_it_is_now() {
    let mut a = writer(1).with_limits(100, 3);
    for n in 1..=5 {
        a.pin(key(n), pod("a", 1)).unwrap();
    }
    assert!(matches!(a.read(Some(at(1, 2)), 10), Batch::Records(_)));
    let mut snapshot = |from| match a.read(from, 10) {
        Batch::Snapshot(snapshot) => snapshot,
        Batch::Nothing | Batch::Records(_) => panic!("it is too far behind"),
    };
    let (one, other) = (snapshot(Some(at(1, 1))), snapshot(None));
    assert_eq!(one.position, at(1, 5));
    assert!(Arc::ptr_eq(&one, &other), "nothing has changed");
}

#[test]
fn a_balancer_that_starts_again_never_misses_a_pin_that_its_map_has() {
    let (mut a, node) = (writer(1), name("a"));
    next(&mut a, None, 1);
    a.pin(key(1), pod("a", 1)).unwrap();
    let mut to = Receiver::default();
    to.inherit(key(1), [(node.clone(), BackendId(5))]);
    for message in next(&mut a, to.position("a"), 1) {
        to.take(&node, message);
        assert_eq!(to.len(), 1);
    }
    assert_eq!(to.position("a"), Some(at(1, 1)));
}

#[test]
fn positions_of_balancers_settle() {
    let (b, c) = (name("b"), name("c"));
    let mut a = writer(5);
    let position = a.pin(key(1), pod("a", 1)).unwrap();
    a.acknowledged(&b, at(4, 7));
    a.acknowledged(&c, at(5, 2));
    assert!(
        !a.settled(position, [&b]) && !a.settled(position, [&c]),
        "of another start, or never said"
    );
    a.acknowledged(&b, position);
    a.acknowledged(&b, at(5, 0));
    assert!(a.settled(position, [&b]));
    assert!(!a.settled(position, [&b, &c]));
    a.acknowledged(&c, position);
    assert!(a.settled(position, [&b, &c]));
    a.forget("c");
    assert_eq!((a.balancer("b"), a.balancer("c")), (Some(position), None));
}

#[test]
fn what_the_map_held_stays_until_its_writer_has_said_everything() {
    let (a, b) = (name("a"), name("b"));
    let mut to = Receiver::default();
    to.inherit(
        key(1),
        [(b.clone(), BackendId(7)), (a.clone(), BackendId(5))],
    );
    to.inherit(key(2), [(a.clone(), BackendId(5))]);
    let mut map = Map::of(&to);
    let inherited = |id| Some(Pinned::Inherited(BackendId(id)));
    assert_eq!(map.0[&key(1)], [inherited(7), inherited(5)]);
    let mut writer = Writer::new(Incarnation(2), [(key(1), pod("a", 1))]);
    for message in next(&mut writer, to.position("a"), 1) {
        assert_eq!(
            to.op(key(2)).pods,
            [inherited(5), None],
            "nothing goes before the end"
        );
        map.carry_out(&to.take(&a, message).ops);
    }
    let expected = [inherited(7), Some(Pinned::Pod(pod("a", 1)))];
    assert_eq!(map.0, BTreeMap::from([(key(1), expected)]));
    map.carry_out(&to.forget_writer(&b));
    assert_eq!(to.op(key(1)).pods, [Some(Pinned::Pod(pod("a", 1))), None]);
    assert_eq!(map, Map::of(&to));
}

#[test]
fn two_owners_of_a_flow_are_held_newest_first() {
    let nodes = [name("a"), name("b"), name("c")];
    let mut to = Receiver::default();
    let mut map = Map::default();
    let mut writers: Vec<_> = (1..4).map(writer).collect();
    for (writer, node) in writers.iter_mut().zip(&nodes) {
        writer.pin(key(1), pod(node, 1)).unwrap();
        catch_up(writer, node, &mut to, &mut map);
    }
    let pods = |nodes: [&str; 2]| nodes.map(|node| Some(Pinned::Pod(pod(node, 1))));
    assert_eq!(map.0[&key(1)], pods(["c", "b"]));
    writers[2].unpin(&key(1));
    catch_up(&mut writers[2], &nodes[2], &mut to, &mut map);
    assert_eq!(map.0[&key(1)], pods(["b", "a"]), "the third moves up");
    map.carry_out(&to.bury("b-1"));
    assert_eq!(map.0[&key(1)], [Some(Pinned::Pod(pod("a", 1))), None]);
    assert_eq!(map, Map::of(&to));
}

#[test]
fn a_joiner_is_given_what_another_balancer_has() {
    let (mut a, node) = (writer(1), name("a"));
    let (mut ready, mut map) = (Receiver::default(), Map::default());
    a.pin(key(1), pod("a", 1)).unwrap();
    catch_up(&mut a, &node, &mut ready, &mut map);
    let mut joiner = Receiver::default();
    for (writer, snapshot) in ready.copy() {
        for message in snapshot.messages(1) {
            assert_eq!(joiner.take(writer, message).refused, None);
        }
    }
    assert_eq!(Map::of(&joiner), map);
    assert_eq!(a.read(joiner.position("a"), 10), Batch::Nothing);
}

/// A step of two writers and the way to one balancer.
#[derive(Clone, Debug)]
enum Step {
    Pin(usize, u16, u8),
    Unpin(usize, u16),
    /// The agent starts again and finds its pinned flows.
    Restart(usize),
    /// As many messages as said reach the balancer, then the stream is cut.
    Stream(usize, usize),
    /// An earlier message comes again.
    Replay(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..2_usize, 0..6_u16, 1..4_u8).prop_map(|(w, k, p)| Step::Pin(w, k, p)),
        2 => (0..2_usize, 0..6_u16).prop_map(|(w, k)| Step::Unpin(w, k)),
        1 => (0..2_usize).prop_map(Step::Restart),
        4 => (0..2_usize, 0..6_usize).prop_map(|(w, n)| Step::Stream(w, n)),
        3 => any::<prop::sample::Index>().prop_map(|at| Step::Replay(at.index(1 << 20))),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// I5 and I6: whatever is cut, lost or comes again, a writer's pins at a balancer are what that writer wanted at the
    /// position that the balancer has acknowledged.
    #[test]
    fn pins_are_their_writers_at_a_position(steps in prop::collection::vec(step(), 1..60)) {
        let nodes = [name("a"), name("b")];
        let mut writers = [1, 1].map(|n| writer(n).with_limits(100, 4));
        let mut wanted: [BTreeMap<Position, BTreeMap<FlowKey, PinnedPod>>; 2] = Default::default();
        let (mut to, mut map) = (Receiver::default(), Map::default());
        let mut sent: Vec<(usize, Message)> = Vec::new();
        for step in steps {
            let mut receive = |to: &mut Receiver, w: usize, message: Message| {
                let others = to.pins_of(&nodes[1 - w]);
                let before = to.position(&nodes[w]);
                map.carry_out(&to.take(&nodes[w], message).ops);
                assert_eq!(to.pins_of(&nodes[1 - w]), others, "another's pins stay");
                assert!(to.position(&nodes[w]) >= before);
                assert_eq!(map, Map::of(to));
            };
            match step {
                Step::Pin(w, k, p) => {
                    writers[w].pin(key(k), pod(&nodes[w], p)).unwrap();
                }
                Step::Unpin(w, k) => {
                    writers[w].unpin(&key(k));
                }
                Step::Restart(w) => {
                    let Position { incarnation, .. } = writers[w].position();
                    let pins = writers[w].pins().clone();
                    let next = Writer::new(Incarnation(incarnation.0 + 1), pins);
                    writers[w] = next.with_limits(100, 4);
                }
                Step::Stream(w, count) => {
                    let from = to.position(&nodes[w]);
                    for message in next(&mut writers[w], from, 2).into_iter().take(count) {
                        sent.push((w, message.clone()));
                        receive(&mut to, w, message);
                    }
                }
                Step::Replay(at) => {
                    // Records may come again at any time; a snapshot is one message after another.
                    let records = sent.iter().filter(|(_, m)| matches!(m, Message::Records { .. }));
                    let records: Vec<_> = records.cloned().collect();
                    if !records.is_empty() {
                        let (w, message) = records[at % records.len()].clone();
                        receive(&mut to, w, message);
                    }
                }
            }
            for w in 0..2 {
                wanted[w].insert(writers[w].position(), writers[w].pins().clone());
                if let Some(position) = to.position(&nodes[w]) {
                    prop_assert_eq!(&to.pins_of(&nodes[w]), &wanted[w][&position]);
                }
            }
        }
        for w in 0..2 {
            catch_up(&mut writers[w], &nodes[w], &mut to, &mut map);
            prop_assert_eq!(&to.pins_of(&nodes[w]), writers[w].pins());
        }
    }

    /// I6: a whole stream again from any of its messages, snapshots included, changes nothing.
    #[test]
    fn a_stream_again_from_anywhere_changes_nothing(
        changes in prop::collection::vec((0..6_u16, 0..4_u8), 1..30),
        from in any::<prop::sample::Index>(),
    ) {
        let (mut a, node) = (writer(1).with_limits(100, 3), name("a"));
        let (mut to, mut stream) = (Receiver::default(), Vec::new());
        for (k, p) in changes {
            match p {
                0 => a.unpin(&key(k)),
                p => a.pin(key(k), pod("a", p)).unwrap(),
            };
            if k % 3 == 0 {
                for message in next(&mut a, to.position("a"), 2) {
                    to.take(&node, message.clone());
                    stream.push(message);
                }
            }
        }
        let before = (Map::of(&to), to.position("a"));
        for message in stream.iter().skip(from.index(stream.len().max(1))) {
            prop_assert_eq!(to.take(&node, message.clone()).ops, []);
        }
        prop_assert_eq!((Map::of(&to), to.position("a")), before);
    }
}
