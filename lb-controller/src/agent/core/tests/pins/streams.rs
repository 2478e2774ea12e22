//! Streams of other nodes: who is waited for, which versions wait for pins, and what a node that joins is given.

use super::super::peers::hear;
use super::*;

/// The table of the only Service, and its name.
fn table(bench: &Bench) -> (Named, ServiceTableSpec) {
    let (named, table) = bench.agent.tables.iter().next().unwrap();
    (named.clone(), table.spec.clone().unwrap())
}

/// The same in its next version, which relies on pins of node n2.
fn relying(mut spec: ServiceTableSpec, on: Position) -> (ServiceTableSpec, u64) {
    spec.version += 1;
    spec.watermarks.insert("n2".to_owned(), on.into());
    let version = spec.version;
    (spec, version)
}

#[test]
fn a_version_that_forgets_waits_for_the_pins_that_it_relies_on() {
    let mut bench = bench();
    let mut writer = other(7);
    bench.follow(&mut writer);
    let at = writer.pin(flow(1), pod(1)).unwrap();
    let (named, mut spec) = table(&bench);
    // Another pod in the place of the first, and nothing is remembered.
    spec.pods[0].uid = "u9".to_owned();
    bench
        .agent
        .take_table(named.clone(), Some(relying(spec, at)), bench.now);
    for _ in 0..10 {
        bench.now += Duration::from_millis(50);
        bench.agent.work(bench.now);
    }
    let applied = |bench: &Bench| bench.agent.tables[&named].applied;
    assert_eq!(applied(&bench), Some(1));
    assert!(!bench.agent.is_fresh());
    bench.follow(&mut writer);
    bench.agent.work(bench.now);
    assert_eq!(applied(&bench), Some(2));
}

#[test]
fn a_version_that_the_maps_have_waits_for_nobody() {
    let mut bench = bench();
    let (named, spec) = table(&bench);
    let at = Position {
        incarnation: Incarnation(7),
        seq: Seq(5),
    };
    bench
        .agent
        .take_table(named.clone(), Some(relying(spec, at)), bench.now);
    bench.agent.work(bench.now);
    assert_eq!(bench.agent.tables[&named].applied, Some(2));
    assert!(bench.agent.is_fresh());
}

#[test]
fn pins_of_a_node_that_is_gone_go_though_it_never_spoke_to_this_start_of_the_agent() {
    let mut bench = bench();
    let mut writer = other(7);
    writer.pin(flow(1), pod(1)).unwrap();
    bench.follow(&mut writer);
    bench.agent = agent_that(bench.dir.path(), &bench.maps, true);
    let text = |bench: &Bench, name: &str| Content::Text(bench.user[name].clone());
    let mut files = Files::new();
    for name in ["pods.yaml", "web.yaml", "nodes.yaml"] {
        files.insert(bench.dir.path().join(name), text(&bench, name));
    }
    bench.outputs.clear();
    files.extend(bench.written());
    bench.agent.take(&files, bench.now);
    bench.run(1);
    assert_eq!(bench.pinned(&flow(1)), [pod(1).identity()], "inherited");
    let nodes = super::nodes();
    let (alone, _) = nodes.split_once("---\n").unwrap();
    bench.put("nodes.yaml", alone);
    bench.run(1);
    assert_eq!(bench.pinned(&flow(1)), NOBODY);
}

#[test]
fn streams_are_waited_for_only_if_there_are_certificates() {
    let mut bench = bench();
    assert_eq!(bench.agent.pins.missing().count(), 1);
    assert_eq!(bench.flags() & service_flag::STREAMS_UP, 0);
    bench.agent.certificates(false, bench.now);
    bench.agent.work(bench.now);
    assert_eq!(bench.agent.pins.missing().count(), 0);
    assert_ne!(bench.flags() & service_flag::STREAMS_UP, 0);
    bench.now += Duration::from_hours(1);
    bench.agent.certificates(true, bench.now);
    bench.agent.work(bench.now);
    assert_eq!(bench.agent.pins.missing().count(), 1);
    assert_eq!(bench.flags() & service_flag::STREAMS_UP, 0);
}

#[test]
fn a_node_that_joins_is_not_ready_before_the_pins_of_all_are_here() {
    let mut bench = bench();
    let waits = |bench: &Bench| {
        let reasons = bench.agent.not_ready_because();
        reasons.iter().any(|reason| reason.contains("pins of n2"))
    };
    assert!(waits(&bench));
    assert!(!bench.agent.members().condition.is_ready);
    bench.follow(&mut other(7));
    bench.agent.work(bench.now);
    assert!(!waits(&bench));
    assert!(bench.agent.members().condition.is_ready);
    // One that goes on from maps is what it was.
    bench.agent = agent_that(bench.dir.path(), &bench.maps, true);
    bench.outputs.clear();
    bench.run(1);
    assert!(!waits(&bench));
}

#[test]
fn a_node_that_joins_asks_for_a_copy_of_pins_that_nobody_brings() {
    let mut bench = bench();
    let nodes = bench.dir.path().join("nodes.yaml");
    let third = super::nodes() + &super::nodes().replace("n2", "n3").replace("0.0.2", "0.0.3");
    bench
        .agent
        .take(&Files::from([(nodes, Content::Text(third))]), bench.now);
    hear(&mut bench, 1, true);
    let n2: Arc<str> = "n2".into();
    let asked = |bench: &mut Bench| bench.agent.wants_copy(bench.now).map(|(node, _)| node);
    assert_eq!(asked(&mut bench), Some(Arc::clone(&n2)), "it is fresh");
    assert_eq!(asked(&mut bench), None, "not again at once");
    // The node that is asked has pins of n3, and its own, which it brings itself.
    let mut pins = Writer::new(Incarnation(3), []);
    pins.pin(
        flow(5),
        PinnedPod {
            node: "n3".into(),
            ..pod(1)
        },
    )
    .unwrap();
    let Batch::Snapshot(copy) = pins.read(None, 100) else {
        panic!("a writer begins with a snapshot");
    };
    bench.follow(&mut other(7));
    for writer in ["n2", "n3", "n1"] {
        for message in copy.messages(100) {
            bench.agent.take_copied(&writer.into(), message, bench.now);
        }
    }
    assert_eq!(bench.pinned(&flow(5)), [pod(1).identity()]);
    assert_eq!(bench.agent.pins.received("n3"), Some(copy.position));
    assert_eq!(bench.agent.pins.received("n2"), Some(other(7).position()));
    // Its own stream goes on from there.
    assert_eq!(
        bench.hello("n3", copy.position),
        Some(Ok(Some(copy.position)))
    );
    bench.now += Duration::from_secs(10);
    assert_eq!(asked(&mut bench), None, "nobody is missing");
}

#[test]
fn a_node_that_is_told_no_pins_says_so_to_its_programs() {
    let mut bench = bench();
    bench.agent.settings.role = Role::Owner;
    bench.agent.common.want(bench.now);
    bench.run(1);
    let flags = bench.maps.contents().config.flags;
    assert_ne!(flags & lb_ebpf::abi::config_flag::NO_PINS, 0);
    assert_eq!(bench.agent.pins.missing().count(), 0);
}
