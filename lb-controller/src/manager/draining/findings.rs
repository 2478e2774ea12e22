//! What there is to know before a node is drained.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::Look;
use crate::announce::{bgp, choose, facts};
use crate::api::node_drain::{Finding, Phase, Receiver};
use crate::model::drain::named;

pub(super) fn all(
    node: &str,
    receivers: &[Receiver],
    is_heard: bool,
    phases: &BTreeMap<String, Phase>,
    look: &Look<'_>,
) -> Vec<Finding> {
    if !look.others.contains_key(node) {
        let known = look.others.keys().map(ToString::to_string).collect();
        return vec![blocks(format!(
            "{node} has no agent; nodes with one are {}",
            named(&known).unwrap_or_else(|| "none".to_owned())
        ))];
    }
    let mut found = Vec::new();
    if !is_heard {
        found.push(blocks(format!(
            "the agent of {node} is not heard, so nothing can be handed off; see that it runs"
        )));
    }
    if !receivers.iter().any(|one| one.heard) {
        found.push(blocks(
            "no other balancer is heard: what enters here would have nowhere to go".to_owned(),
        ));
    }
    let lost = unannounced(node, phases, look);
    found.extend(named(&lost).map(|names| blocks(format!("nobody else could announce {names}"))));
    let silent = receivers.iter().filter(|one| !one.heard);
    let silent = silent.map(|one| one.node.clone()).collect();
    found.extend(named(&silent).map(|names| {
        tells(format!(
            "{names}: not heard, and the hand-off waits for its agent; delete the Node if it is gone, or use --force"
        ))
    }));
    let standing = look.core.standing(node);
    found.extend(named(&standing.alone).map(|names| {
        tells(format!(
            "{names}: no pods elsewhere, so its pods here keep getting new connections and end with them"
        ))
    }));
    let moves = standing.chosen.len();
    if moves > 0 {
        found.push(tells(format!(
            "{moves} Services send new connections to other pods"
        )));
    }
    found
}

/// VIPs that are announced now and would not be without the node.
fn unannounced(node: &str, phases: &BTreeMap<String, Phase>, look: &Look<'_>) -> BTreeSet<String> {
    let index = look.core.index();
    let mut tabled = facts::Tabled::new();
    for (named, table) in look.core.tables() {
        for vip in &table.vips {
            let services = tabled.entry(*vip).or_default();
            services.insert(named.clone(), facts::tabled_nodes(table));
        }
    }
    let is_out = |name: &str| {
        phases
            .get(name)
            .is_some_and(|phase| phase.has_reached(Phase::Deprefer))
    };
    let announced = |is_live: &dyn Fn(&str) -> bool| {
        let facts = facts::facts(index, &tabled, is_live);
        let by_arp = choose::choose(&facts.vips, &facts.nodes, &facts.from);
        let by_bgp = bgp::tellers(index, &tabled, is_live);
        by_arp
            .into_keys()
            .chain(by_bgp.into_keys())
            .collect::<BTreeSet<IpAddr>>()
    };
    let now = announced(&|name| !is_out(name));
    let then = announced(&|name| !is_out(name) && name != node);
    now.difference(&then).map(ToString::to_string).collect()
}

fn blocks(message: String) -> Finding {
    Finding {
        blocks: true,
        message,
    }
}

fn tells(message: String) -> Finding {
    Finding {
        blocks: false,
        message,
    }
}
