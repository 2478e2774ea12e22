//! The consistency protocol as an explicit-state model: every order of events in small clusters. Packets go through the real
//! packet path over maps in memory; pins, retirement, the gate and freshness are the real functions of `model`.
//!
//! There is one flow and one slot. Messages take any time, but for two that arrive before a packet which was held back may be
//! delivered, as long as both agents live: the name of a newer version, and the pin of a deviation, which is told when its pod
//! answers. What an agent finds by looking at all flows takes any time. An agent may die at any moment and leaves its maps
//! as they are, its last stamp included; a machine that dies is gone.
//!
//! What is left out in a run (`Without`) is left out of what the packet path reads, or of a step, never by a switch in it.

mod control;
mod explore;
mod node;
mod packets;
mod retirement;
mod scope;
mod world;

use explore::{NO_RESET, NO_SECOND, RECOVERS, explore};
use scope::{Events, Scope, Without};
use stateright::HasDiscoveries;

/// Explores a scope in which nothing may break.
fn holds(name: &str, scope: &Scope) {
    let found = explore(scope, HasDiscoveries::Any);
    eprintln!("{name}: {} states", found.states);
    for (property, trace) in &found.broken {
        eprintln!("{name}: not {property:?}:\n{trace}");
    }
    assert!(found.broken.is_empty(), "{name}");
}

/// Explores it without a part of the protocol, which must be missed.
fn breaks(name: &str, property: &'static str, scope: &Scope, without: Without) {
    let until = HasDiscoveries::AllOf([property].into());
    let found = explore(&scope.without(without), until);
    let broken = found.broken.iter().find(|(name, _)| *name == property);
    let Some((_, trace)) = broken else {
        panic!(
            "{name} holds without {without:?} in all of {} states",
            found.states
        );
    };
    eprintln!(
        "{name} without {without:?} ({} states), not {property:?}:\n{trace}",
        found.states
    );
}

/// Pod a is replaced by pod b on another node, while the client sends its SYN twice.
fn replacement() -> Scope {
    let events = Events {
        syns: 2,
        data: 2,
        ..Events::default()
    };
    Scope::new(&[0, 1], &[0, 1], events)
}

/// The same beside a third node, which packets enter at; every agent may die.
fn replacement_without_agents() -> Scope {
    let events = Events {
        syns: 1,
        data: 2,
        agents: 1,
        ..Events::default()
    };
    Scope::new(&[0, 1], &[0, 1], events)
}

/// Both pods are on one node, and the SYN is sent three times.
fn neighbours() -> Scope {
    let events = Events {
        syns: 3,
        data: 1,
        ..Events::default()
    };
    Scope::new(&[0, 0], &[0, 1], events).with_nodes(2)
}

/// A node sees before others that pod a cannot serve, and some see that there is a pod c.
fn deviation(agents: u8) -> Scope {
    let events = Events {
        syns: 1,
        data: 2,
        agents,
        shunned: 1,
        learnt: 1,
        ..Events::default()
    };
    Scope::new(&[0, 1, 2], &[0], events)
}

/// Pod a is replaced, a machine loses power, and a living one is suspected.
fn crash() -> Scope {
    let events = Events {
        syns: 1,
        data: 1,
        machines: 1,
        suspicions: 1,
        ..Events::default()
    };
    Scope::new(&[0, 1], &[0, 1], events).with_nodes(3)
}

/// Pod a is replaced, and then the slot's history is retired.
fn retirement() -> Scope {
    let events = Events {
        syns: 1,
        data: 2,
        retirement: true,
        ..Events::default()
    };
    Scope::new(&[0, 1], &[0, 1], events).with_nodes(3)
}

/// The same between two nodes whose agents may die.
fn retirement_without_agents() -> Scope {
    let events = Events {
        syns: 1,
        data: 2,
        retirement: true,
        agents: 1,
        ..Events::default()
    };
    Scope::new(&[0, 1], &[0, 1], events)
}

#[test]
fn a_replaced_pod_keeps_its_flows() {
    let scope = replacement();
    holds("replacement", &scope);
    breaks("replacement", NO_RESET, &scope, Without::Relay);
    breaks("replacement", NO_RESET, &scope, Without::SequenceNumbers);
}

#[test]
fn a_replaced_pod_keeps_its_flows_when_an_agent_dies() {
    holds("replacement without agents", &replacement_without_agents());
}

#[test]
fn a_syn_sent_again_opens_no_second_flow_on_a_node() {
    holds("neighbours", &neighbours());
    breaks("neighbours", NO_SECOND, &neighbours(), Without::StickySyn);
}

#[test]
fn a_deviation_keeps_its_flow() {
    holds("deviation", &deviation(0));
    breaks("deviation", NO_RESET, &deviation(0), Without::HoldBack);
}

#[test]
fn a_deviation_keeps_its_flow_when_an_agent_dies() {
    let scope = deviation(1);
    holds("deviation without agents", &scope);
    breaks(
        "deviation without agents",
        NO_RESET,
        &scope,
        Without::PinsAtRelays,
    );
    breaks(
        "deviation without agents",
        NO_RESET,
        &scope,
        Without::StreamsInFresh,
    );
}

#[test]
fn flows_of_the_living_recover_when_a_machine_dies() {
    holds("crash", &crash());
    breaks("crash", RECOVERS, &crash(), Without::SuspectsLast);
}

#[test]
fn retirement_breaks_no_flow() {
    let scope = retirement();
    holds("retirement", &scope);
    for part in [
        Without::BaseVersionEverywhere,
        Without::HalfOpenInRetirement,
        Without::AcknowledgementAndWatermark,
    ] {
        breaks("retirement", NO_RESET, &scope, part);
    }
}

#[test]
fn retirement_breaks_no_flow_when_an_agent_dies() {
    holds("retirement without agents", &retirement_without_agents());
}
