//! One change among many Services, and how often a table is written.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, Pod, Service as Object};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::json;

use super::*;
use crate::api::address_pool::AddressPool;
use crate::source::parse::ObjectKey;

const SERVICES: usize = 1_000;

fn key(kind: Kind, name: &str) -> ObjectKey {
    let namespace = if kind.is_namespaced() { "x" } else { "" };
    ObjectKey {
        kind,
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    }
}

fn slice(n: usize, ready: bool) -> Event {
    let endpoints: Vec<_> = (0..10)
        .map(|pod| {
            json!({
                "addresses": [format!("10.{}.{}.{}", n / 250 % 250, n % 250, pod)],
                "nodeName": "n1",
                "conditions": { "ready": ready || pod > 0 },
                "targetRef": { "kind": "Pod", "name": format!("p{n}-{pod}"), "uid": format!("u{n}-{pod}") },
            })
        })
        .collect();
    let name = format!("s{n}");
    let slice: EndpointSlice = serde_json::from_value(json!({
        "metadata": { "name": name, "namespace": "x", "labels": { "kubernetes.io/service-name": name } },
        "addressType": "IPv4",
        "ports": [{ "name": "", "port": 8080, "protocol": "TCP" }],
        "endpoints": endpoints,
    }))
    .unwrap();
    Event::Apply(key(Kind::EndpointSlice, &name), slice.into())
}

fn events() -> Vec<Event> {
    let node: Node = serde_json::from_value(json!({ "metadata": { "name": "n1" } })).unwrap();
    let pool: AddressPool = serde_json::from_value(json!({
        "apiVersion": "bowline.dev/v1alpha1",
        "kind": "AddressPool",
        "metadata": { "name": "all" },
        "spec": { "addresses": ["100.64.0.0/16"] },
    }))
    .unwrap();
    let mut events = vec![
        Event::Apply(key(Kind::Node, "n1"), node.into()),
        Event::Apply(key(Kind::AddressPool, "all"), pool.into()),
    ];
    for n in 0..SERVICES {
        for pod in 0..10 {
            let name = format!("p{n}-{pod}");
            let pod: Pod = serde_json::from_value(
                json!({ "metadata": { "name": name, "namespace": "x", "uid": format!("u{n}-{pod}") } }),
            )
            .unwrap();
            events.push(Event::Apply(key(Kind::Pod, &name), pod.into()));
        }
        let name = format!("s{n}");
        let service: Object = serde_json::from_value(json!({
            "metadata": { "name": name, "namespace": "x", "uid": format!("uid-{n}") },
            "spec": { "type": "LoadBalancer", "loadBalancerClass": "bowline.dev/xdp", "ports": [{ "port": 80 }] },
        }))
        .unwrap();
        events.push(Event::Apply(key(Kind::Service, &name), service.into()));
        events.push(slice(n, true));
    }
    events
}

#[test]
fn a_change_of_one_service_touches_no_other_and_no_two_have_one_address() {
    let (start, wall) = (Instant::now(), Timestamp::UNIX_EPOCH);
    let mut core = Core::new(Requests::FromPools);
    core.take(events(), start);
    let writes = core.work(start, wall);
    assert_eq!(writes.len(), SERVICES * 2, "a table and a status each");
    let mut owners = BTreeMap::new();
    for write in &writes {
        let Write::Table { named, table } = write else {
            continue;
        };
        let vip = table.as_ref().unwrap().vips[0];
        assert_eq!(owners.insert(vip, named.clone()), None);
    }
    for n in 0..100 {
        let now = start + Duration::from_secs(10) + Duration::from_millis(n as u64);
        core.take([slice(n * 7, false)], now);
        let writes = core.work(now, wall);
        let [Write::Table { named, .. }] = writes.as_slice() else {
            panic!("not one table alone: {writes:?}");
        };
        assert_eq!(named.name, format!("s{}", n * 7));
    }
}

#[test]
fn a_table_is_written_once_a_second_but_at_once_after_one_without_endpoints() {
    let (start, wall) = (Instant::now(), Timestamp::UNIX_EPOCH);
    let mut core = Core::new(Requests::FromPools);
    // The slice comes after its Service, as its controller writes it.
    let (slices, others): (Vec<_>, Vec<_>) = events().into_iter().take(26).partition(
        |event| matches!(event, Event::Apply(key, _) if key.kind == Kind::EndpointSlice),
    );
    core.take(others, start);
    let tables = |core: &mut Core, now| {
        let writes = core.work(now, wall).into_iter();
        let tables = writes.filter(|write| matches!(write, Write::Table { .. }));
        tables.count()
    };
    assert_eq!(tables(&mut core, start), 2, "two Services, nobody serves");
    let soon = start + Duration::from_millis(50);
    core.take(slices, soon);
    assert_eq!(tables(&mut core, soon), 2, "at once");
    core.take([slice(0, false)], soon);
    assert_eq!(tables(&mut core, soon), 0, "not yet");
    assert_eq!(core.next_wake(soon, wall), Some(soon + TABLE_PERIOD));
    assert_eq!(tables(&mut core, soon + TABLE_PERIOD), 1);
}
