//! Where the pods of a node stand in tables: what a drain of the node goes by.

use std::collections::BTreeSet;

use super::Core;
use crate::api::service_table::{Group, ServiceTableSpec, TrafficPolicy};
use crate::source::index::Named;

/// Services by where they have a node's pods, `NAMESPACE/NAME`. Those of policy Local are in none: packets for pods of the node
/// enter there only.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(in crate::manager) struct Standing {
    /// They get new flows although others could serve.
    pub(in crate::manager) chosen: BTreeSet<String>,
    /// They get new flows, and nobody else could.
    pub(in crate::manager) alone: BTreeSet<String>,
    /// Their tables name them.
    pub(in crate::manager) named_in: BTreeSet<String>,
}

/// Where pods stand in one table.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Place {
    is_named: bool,
    /// Some get new flows in a group in which others could.
    is_chosen: bool,
    /// Some get new flows in a group in which nobody else could.
    is_alone: bool,
}

impl Core {
    /// Where the pods of a node stand.
    pub(in crate::manager) fn standing(&self, node: &str) -> Standing {
        let mut standing = Standing::default();
        for (named, table) in self.tables() {
            if table.traffic_policy == TrafficPolicy::Local {
                continue;
            }
            let place = place(table, node, &|other| self.leaving.contains(other));
            let add = |holds: bool, services: &mut BTreeSet<String>| {
                if holds {
                    services.insert(named.to_string());
                }
            };
            add(place.is_chosen, &mut standing.chosen);
            add(place.is_alone, &mut standing.alone);
            add(place.is_named, &mut standing.named_in);
        }
        standing
    }

    /// Tables that name pods of a node.
    pub(in crate::manager) fn tables_naming(
        &self,
        node: &str,
    ) -> impl Iterator<Item = (&Named, &ServiceTableSpec)> {
        let tables = self.tables();
        tables.filter(move |(_, table)| table.nodes.iter().any(|name| name == node))
    }
}

fn place(table: &ServiceTableSpec, node: &str, is_leaving: &dyn Fn(&str) -> bool) -> Place {
    let mut place = Place::default();
    // Most tables do not name the node at all.
    if !table.nodes.iter().any(|name| name == node) {
        return place;
    }
    for group in &table.groups {
        let of = |candidate: u32| node_of(table, group, candidate);
        let current = || {
            group
                .current
                .iter()
                .flatten()
                .filter_map(|number| of(*number))
        };
        let older = group.older.iter().flatten();
        let owners = group.previous.iter().flat_map(|previous| &previous.owners);
        let is_current = current().any(|name| name == node);
        let is_remembered = older.chain(owners).any(|number| of(*number) == Some(node));
        place.is_named |= is_current || is_remembered;
        if is_current {
            let can_others = current().any(|name| name != node && !is_leaving(name));
            place.is_chosen |= can_others;
            place.is_alone |= !can_others;
        }
    }
    place
}

fn node_of<'a>(table: &'a ServiceTableSpec, group: &Group, candidate: u32) -> Option<&'a str> {
    let pod = group.candidates.get(candidate as usize)?;
    let pod = table.pods.get(*pod as usize)?;
    Some(table.nodes.get(pod.node as usize)?.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(groups: &str) -> ServiceTableSpec {
        serde_saphyr::from_str(&format!(
            "{{serviceUid: s, version: 1, vips: [198.51.100.1], nodes: [a, b], \
             pods: [{{uid: p, node: 0, ipv4: 10.0.0.1}}, {{uid: q, node: 1, ipv4: 10.0.1.1}}], groups: [{groups}]}}"
        ))
        .unwrap()
    }

    fn group(rest: &str) -> String {
        format!(
            "{{family: IPv4, ports: [{{port: 80, protocol: TCP}}], shape: {{slots: 2, size: 509, fields: FiveTuple}}, \
             targets: [[8080]], candidates: [0, 1], {rest}}}"
        )
    }

    #[test]
    fn a_pod_is_chosen_if_others_could_serve_and_alone_if_not() {
        let nobody = |_: &str| false;
        let both = table(&group("current: [0, 1]"));
        let chosen = Place {
            is_named: true,
            is_chosen: true,
            is_alone: false,
        };
        assert_eq!(place(&both, "a", &nobody), chosen);
        let alone = Place {
            is_named: true,
            is_chosen: false,
            is_alone: true,
        };
        assert_eq!(place(&both, "a", &|name| name == "b"), alone);
        assert_eq!(
            place(&table(&group("current: [0, 0]")), "a", &nobody),
            alone
        );
        let older = table(&group("current: [1, 1], older: [[0], []]"));
        let named = Place {
            is_named: true,
            ..Place::default()
        };
        assert_eq!(place(&older, "a", &nobody), named);
        assert_eq!(
            place(&table(&group("current: [1, 1]")), "a", &nobody),
            Place::default()
        );
    }
}
