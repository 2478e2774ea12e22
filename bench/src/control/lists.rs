//! The first lists of a manager and of an agent, decoded from the bytes that a watch would bring.

use std::collections::BTreeMap;

use anyhow::Context as _;
use lb_controller::source::index::Event;
use lb_controller::source::kubernetes;
use lb_controller::source::parse::{Kind, Object, ObjectKey};
use serde_json::{Value, json};

use super::objects::{self, BALANCERS, First, NODES, OWN_NODE, PodNumber, SYSTEM, Scale};

/// Who watches.
#[derive(Clone, Copy)]
pub(super) enum Who {
    Manager,
    Agent,
}

/// An object as a watch tells it, from the bytes of the wire.
pub(super) fn decoded(who: Who, kind: Kind, json: &str) -> anyhow::Result<(ObjectKey, Object)> {
    let wanted = match who {
        Who::Manager => kubernetes::manager(),
        Who::Agent => kubernetes::agent(&objects::node_name(OWN_NODE), SYSTEM),
    };
    let wanted = wanted.iter().find(|wanted| wanted.kind() == kind);
    let wanted = wanted.with_context(|| format!("nobody watches {kind:?}"))?;
    let (key, object) = kubernetes::decode(wanted, json.as_bytes())?;
    Ok((key, object.map_err(anyhow::Error::msg)?))
}

fn with_uid(mut object: Value, uid: &str) -> Value {
    object["metadata"]["uid"] = json!(uid);
    object
}

pub(super) fn pod(number: PodNumber) -> Value {
    with_uid(objects::pod(number), &number.uid())
}

pub(super) fn service(number: u32) -> Value {
    with_uid(
        objects::service(number),
        &format!("{number:08x}-0000-4000-8000-000000000000"),
    )
}

/// The lists that a manager starts with.
pub(super) fn manager_lists(scale: Scale) -> anyhow::Result<Vec<Event>> {
    let of = |kind: Kind| move |object: Value| (kind, object);
    let all = [(Kind::AddressPool, objects::pool())];
    lists(
        Who::Manager,
        all.into_iter()
            .chain((0..NODES).map(objects::node).map(of(Kind::Node)))
            .chain(scale.pods().map(pod).map(of(Kind::Pod)))
            .chain((0..scale.services).map(service).map(of(Kind::Service)))
            .chain(slices(scale).map(of(Kind::EndpointSlice))),
    )
}

/// What an agent is told, but for tables.
pub(super) fn agent_objects(scale: Scale) -> impl Iterator<Item = (Kind, Value)> {
    let own = objects::node_name(OWN_NODE);
    let own = scale.pods().filter(move |number| number.node() == own);
    let of = |kind: Kind| move |object: Value| (kind, object);
    let single = [
        (Kind::AddressPool, objects::pool()),
        (Kind::L2Advertisement, objects::advertisement()),
    ];
    single
        .into_iter()
        .chain((0..NODES).map(objects::node).map(of(Kind::Node)))
        .chain(
            (0..BALANCERS)
                .map(objects::balancer)
                .map(of(Kind::LoadBalancerNode)),
        )
        .chain(own.map(pod).map(of(Kind::Pod)))
        .chain((0..scale.services).map(service).map(of(Kind::Service)))
        .chain(slices(scale).map(of(Kind::EndpointSlice)))
}

/// The lists that an agent starts with, but for tables.
pub(super) fn agent_lists(scale: Scale) -> anyhow::Result<Vec<Event>> {
    lists(Who::Agent, agent_objects(scale))
}

/// The list of tables before there is one.
pub(super) fn no_tables() -> Event {
    Event::Reset {
        kind: Kind::ServiceTable,
        objects: BTreeMap::new(),
        refused: BTreeMap::new(),
    }
}

/// First lists, one for each kind.
pub(super) fn lists(
    who: Who,
    all: impl IntoIterator<Item = (Kind, Value)>,
) -> anyhow::Result<Vec<Event>> {
    let mut lists: BTreeMap<Kind, BTreeMap<ObjectKey, Object>> = BTreeMap::new();
    for (kind, value) in all {
        let (key, object) = decoded(who, kind, &value.to_string())?;
        lists.entry(kind).or_default().insert(key, object);
    }
    let reset = |(kind, objects)| Event::Reset {
        kind,
        objects,
        refused: BTreeMap::new(),
    };
    Ok(lists.into_iter().map(reset).collect())
}

fn slices(scale: Scale) -> impl Iterator<Item = Value> {
    (0..scale.services).map(move |service| scale.slice(service, First::Original, PodNumber::uid))
}
