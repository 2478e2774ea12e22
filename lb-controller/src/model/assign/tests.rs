use k8s_openapi::api::core::v1::Pod;

use super::super::endpoint::tests::{Known, service, slice};
use super::super::retire::proposal;
use super::*;
use crate::api::service_table::Tracking;

const PORTS: &str = "[{name: http, port: 80}, {name: https, port: 443}]";
const TARGETS: &str = "[{name: http, port: 8080}, {name: https, port: 8443}]";

struct Manager {
    service: Service,
    known: Known,
    memory: Memory,
    last: Option<ServiceTableSpec>,
    /// Leaves with the next assignment.
    retired: Retired,
}

impl Manager {
    fn new(uids: &[&str]) -> Self {
        Self {
            service: service(PORTS),
            known: Known::new(uids, &["n1"]),
            memory: Memory::default(),
            last: None,
            retired: Retired::default(),
        }
    }

    fn slices(pods: &str) -> Vec<EndpointSlice> {
        let endpoints = |prefix: &str| {
            let pods = pods.split_whitespace().map(|pod| {
                let last = pod.bytes().last().unwrap();
                let target = match pod.strip_prefix('@') {
                    Some(_) => String::new(),
                    None => format!(", targetRef: {{kind: Pod, uid: {pod}}}"),
                };
                format!("{{addresses: [\"{prefix}{last}\"], nodeName: n1{target}}}")
            });
            format!("[{}]", pods.collect::<Vec<_>>().join(", "))
        };
        vec![
            slice("IPv4", TARGETS, &endpoints("10.0.0.")),
            slice("IPv6", TARGETS, &endpoints("fd00::")),
        ]
    }

    fn assign(&mut self, second: i64, pods: &str) -> Assigned {
        self.assign_slices(second, &Self::slices(pods))
    }

    fn assign_slices(&mut self, second: i64, slices: &[EndpointSlice]) -> Assigned {
        let now = Timestamp::from_second(second).unwrap();
        let slices: Vec<_> = slices.iter().collect();
        let mut run = |last: Option<&ServiceTableSpec>| {
            assign(
                last,
                &self.service,
                &slices,
                &self.known,
                &History {
                    retired: std::mem::take(&mut self.retired),
                    when_full: WhenFull::Waits,
                },
                &mut self.memory,
                now,
            )
        };
        let assigned = run(self.last.as_ref());
        self.last.clone_from(&assigned.table);
        let again = run(self.last.as_ref());
        assert!(!again.changed, "the same input gives no new version");
        assert_eq!(again.table, assigned.table);
        assigned
    }
}

#[test]
fn one_set_of_pods_is_one_group_per_family() {
    let mut manager = Manager::new(&["a", "b"]);
    let assigned = manager.assign(0, "a b");
    let table = assigned.table.unwrap();
    assert!(assigned.changed);
    assert_eq!(assigned.problems, []);
    assert_eq!(
        (table.version, table.pods.len(), table.nodes.clone()),
        (1, 2, vec!["n1".to_owned()])
    );
    let groups: Vec<_> = table
        .groups
        .iter()
        .map(|g| (g.family, g.ports.len(), g.current.clone()))
        .collect();
    let slots = vec![Some(0), Some(1)];
    assert_eq!(
        groups,
        [(Family::IPv4, 2, slots.clone()), (Family::IPv6, 2, slots)]
    );
    assert_eq!(table.groups[0].targets, [[8080, 8443]]);
}

#[test]
fn versions_count_changes_only() {
    let mut manager = Manager::new(&["a", "b", "c"]);
    assert_eq!(manager.assign(0, "a b").table.unwrap().version, 1);
    let unchanged = manager.assign(1, "b a");
    assert!(!unchanged.changed);
    assert_eq!(unchanged.table.unwrap().version, 1);
    let changed = manager.assign(2, "a c");
    assert!(changed.changed);
    assert_eq!(changed.table.unwrap().version, 2);
}

#[test]
fn a_dead_pod_leaves_the_table_and_an_absent_one_does_not() {
    let mut manager = Manager::new(&["a", "b", "c"]);
    manager.assign(0, "a b");
    let table = manager.assign(1, "b c").table.unwrap();
    assert_eq!(table.pods.len(), 3);
    manager.known.pods.remove("a");
    manager.known.incomplete = true;
    assert_eq!(
        manager.assign(2, "b c").table.unwrap().pods.len(),
        3,
        "not known to be dead"
    );
    manager.known.incomplete = false;
    assert_eq!(manager.assign(3, "b c").table.unwrap().pods.len(), 2);
}

#[test]
fn failed_pods_and_pods_of_removed_nodes_are_dead() {
    let mut manager = Manager::new(&["a", "b"]);
    manager.assign(0, "a b");
    let failed: Pod = serde_saphyr::from_str("{status: {phase: Succeeded}}").unwrap();
    manager.known.pods.insert("a".into(), failed);
    let table = manager.assign(1, "b").table.unwrap();
    assert_eq!(
        table
            .pods
            .iter()
            .map(|pod| pod.uid.clone())
            .collect::<Vec<_>>(),
        ["b"]
    );
    manager.known.nodes.clear();
    let table = manager.assign(2, "").table.unwrap();
    assert_eq!(table.pods, []);
}

#[test]
fn an_endpoint_without_a_pod_lingers_an_hour() {
    let mut manager = Manager::new(&["b"]);
    manager.assign(0, "@1 b");
    let assigned = manager.assign(10, "b");
    assert_eq!(assigned.table.unwrap().pods.len(), 3, "one per family");
    manager.assign(100, "b");
    let assigned = manager.assign(400, "b");
    assert_eq!(assigned.deadline.map(Timestamp::as_second), Some(3610));
    assert_eq!(assigned.table.unwrap().pods.len(), 3, "one per family");
    assert_eq!(manager.assign(3610, "b").table.unwrap().pods.len(), 1);
}

#[test]
fn ports_with_other_pods_are_split_and_keep_their_history() {
    let mut manager = Manager::new(&["a", "b"]);
    manager.assign(0, "a b");
    let split = [
        slice(
            "IPv4",
            "[{name: http, port: 8080}]",
            "[{addresses: [10.0.0.97], nodeName: n1, targetRef: {uid: a}}, {addresses: [10.0.0.98], nodeName: n1, targetRef: {uid: b}}]",
        ),
        slice(
            "IPv4",
            "[{name: https, port: 8443}]",
            "[{addresses: [10.0.0.98], nodeName: n1, targetRef: {uid: b}}]",
        ),
    ];
    let table = manager.assign_slices(1, &split).table.unwrap();
    let v4: Vec<_> = table
        .groups
        .iter()
        .filter(|g| g.family == Family::IPv4)
        .collect();
    assert_eq!(v4.len(), 2);
    assert_eq!(v4[0].targets, [[8080]]);
    assert_eq!((v4[0].older.len(), v4[0].vacant.len()), (0, 0));
    assert_eq!(
        (v4[1].older[0].len(), v4[1].vacant.len()),
        (1, 1),
        "a is remembered: {table:?}"
    );
}

#[test]
fn without_an_address_there_is_no_table() {
    let mut manager = Manager::new(&["a"]);
    manager.assign(0, "a");
    manager.service = service("[]");
    let assigned = assign(
        manager.last.as_ref(),
        &manager.service,
        &[],
        &manager.known,
        &History {
            retired: Retired::default(),
            when_full: WhenFull::Waits,
        },
        &mut manager.memory,
        Timestamp::UNIX_EPOCH,
    );
    assert_eq!((assigned.table, assigned.changed), (None, true));
    assert_eq!(assigned.problems[0].reason(), "PortInvalid");
}

#[test]
fn no_endpoints_is_a_table_that_refuses_and_a_sentence() {
    let assigned = Manager::new(&[]).assign(0, "");
    let table = assigned.table.unwrap();
    assert_eq!(table.groups[0].shape.slots, 0);
    assert_eq!(
        assigned.problems[0].to_string(),
        "Service shop/web: ports 80/TCP, 443/TCP over IPv4 have no usable endpoint, so connections are refused; start pods or correct the selector"
    );
}

#[test]
fn a_broken_table_is_written_anew_with_a_sentence() {
    let mut manager = Manager::new(&["a", "b"]);
    manager.assign(0, "a b");
    manager.last.as_mut().unwrap().groups[0].current[0] = Some(99);
    let assigned = manager.assign(1, "a b");
    assert_eq!(
        assigned.problems[0].to_string(),
        "Service shop/web: its ServiceTable cannot be read (candidate 99 does not exist); it is written anew, and connections to pods that no longer serve may break"
    );
    assert_eq!(assigned.table.unwrap().version, 2);
}

#[test]
fn another_uid_of_the_same_name_starts_anew() {
    let mut manager = Manager::new(&["a"]);
    manager.assign(0, "a");
    manager.service.uid = "s2".into();
    let table = manager.assign(1, "a").table.unwrap();
    assert_eq!((table.service_uid.as_str(), table.version), ("s2", 1));
}

#[test]
fn changed_target_port_keeps_the_pod_as_its_own_older() {
    let mut manager = Manager::new(&["a"]);
    manager.assign(0, "a");
    let slices = [slice(
        "IPv4",
        "[{name: http, port: 9090}, {name: https, port: 8443}]",
        "[{addresses: [10.0.0.97], nodeName: n1, targetRef: {uid: a}}]",
    )];
    let table = manager.assign_slices(1, &slices).table.unwrap();
    let group = &table.groups[0];
    assert_eq!(group.targets, [[8080, 8443], [9090, 8443]]);
    assert_eq!(
        (group.candidates.clone(), group.candidate_targets.clone()),
        (vec![0, 0], vec![0, 1])
    );
    assert_eq!(
        (group.current.clone(), group.older.clone()),
        (vec![Some(1)], vec![vec![0]])
    );
}

#[test]
fn ranges_and_policy_are_in_the_table_and_clearing_them_is_a_change() {
    let mut manager = Manager::new(&["a"]);
    manager.assign(0, "a");
    manager.service.source_ranges = vec!["203.0.113.0/24".parse().unwrap()];
    manager.service.traffic_policy = TrafficPolicy::Local;
    manager.service.tracking = Tracking::All;
    let table = manager.assign(1, "a").table.unwrap();
    assert_eq!(table.source_ranges, manager.service.source_ranges);
    assert_eq!(
        (table.traffic_policy, table.version),
        (TrafficPolicy::Local, 2)
    );
    assert_eq!(table.tracking, Tracking::All);
    manager.service.source_ranges.clear();
    manager.service.tracking = Tracking::Auto;
    manager.service.traffic_policy = TrafficPolicy::Cluster;
    let table = manager.assign(2, "a").table.unwrap();
    assert_eq!((table.source_ranges.len(), table.version), (0, 3));
    assert_eq!(table.traffic_policy, TrafficPolicy::Cluster);
    assert_eq!(table.tracking, Tracking::Auto);
}

#[test]
fn under_policy_local_nobody_is_told_that_connections_are_refused() {
    let mut manager = Manager::new(&[]);
    manager.service.traffic_policy = TrafficPolicy::Local;
    assert_eq!(
        manager.assign(0, "").problems[0].to_string(),
        "Service shop/web: ports 80/TCP, 443/TCP over IPv4 have no usable endpoint, so connections are dropped under externalTrafficPolicy Local; start pods or correct the selector"
    );
}

fn watermark(seq: u64) -> Watermark {
    let incarnation = 7;
    Watermark { incarnation, seq }
}

/// What a retirement gives back that has found everybody there.
fn all_history(table: &ServiceTableSpec, seq: u64) -> Retired {
    let mut retired = proposal(table, &|_| true).unwrap().unwrap().retired;
    retired
        .watermarks
        .insert("n1".into(), watermark(seq).into());
    retired
}

#[test]
fn full_history_wants_a_retirement_which_lets_the_change_in() {
    let mut manager = Manager::new(&["a", "b", "c", "d", "e"]);
    for (second, pod) in (0..).zip(["a", "b", "c", "d"]) {
        assert_eq!(manager.assign(second, pod).retirement, None);
    }
    let waits = manager.assign(4, "e");
    assert_eq!(waits.retirement, Some(Wanted::HistoryFull));
    let faults: Vec<_> = waits.problems.iter().map(|p| p.fault.clone()).collect();
    assert_eq!(
        faults,
        [Fault::HistoryFull(1), Fault::HistoryFull(1)],
        "one per family"
    );
    let before = waits.table.unwrap();
    manager.retired = all_history(&before, 3);
    let after = manager.assign(5, "e");
    assert_eq!((after.retirement, after.problems), (None, vec![]));
    let after = after.table.unwrap();
    assert_eq!(after.version, before.version + 1, "one write for both");
    let uids: Vec<_> = after.pods.iter().map(|pod| pod.uid.clone()).collect();
    assert_eq!(uids, ["d", "e"]);
    assert_eq!(after.watermarks, [("n1".to_owned(), watermark(3))].into());
}

#[test]
fn watermarks_only_grow_while_their_node_exists() {
    let mut manager = Manager::new(&["a", "b", "c"]);
    manager.assign(0, "a");
    let table = manager.assign(1, "b").table.unwrap();
    manager.retired = all_history(&table, 9);
    let table = manager.assign(2, "c").table.unwrap();
    assert_eq!(table.watermarks["n1"], watermark(9));
    manager.retired = all_history(&table, 4);
    let table = manager.assign(3, "a").table.unwrap();
    assert_eq!(table.watermarks["n1"], watermark(9));
    manager.known.nodes.clear();
    manager.known.incomplete = true;
    assert_eq!(
        manager.assign(4, "b").table.unwrap().watermarks.len(),
        1,
        "not known to be gone"
    );
    manager.known.incomplete = false;
    assert_eq!(manager.assign(5, "b").table.unwrap().watermarks.len(), 0);
}

#[test]
fn history_is_retired_after_five_quiet_minutes() {
    let mut manager = Manager::new(&["a", "b", "c"]);
    let second = |assigned: &Assigned| assigned.deadline.map(Timestamp::as_second);
    assert_eq!(second(&manager.assign(0, "a")), None, "there is none");
    let changed = manager.assign(10, "b");
    assert_eq!((second(&changed), changed.retirement), (Some(310), None));
    let changed = manager.assign(200, "c");
    assert_eq!((second(&changed), changed.retirement), (Some(500), None));
    let quiet = manager.assign(500, "c");
    assert_eq!(
        (second(&quiet), quiet.retirement),
        (None, Some(Wanted::Quiet))
    );
    manager.retired = all_history(&quiet.table.unwrap(), 1);
    let retired = manager.assign(501, "c");
    assert_eq!((second(&retired), retired.retirement), (None, None));
}
