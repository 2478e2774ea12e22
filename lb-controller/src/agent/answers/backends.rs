//! Backends, who they are and how they are reached; and the way of a packet to one of them.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_ebpf::abi::{self, DropReason, backend_flag};

use super::digest;
use crate::admin;
use crate::agent::core::Core;
use crate::dataplane::{ApplyError, Contents};
use crate::model::explain::{self, NoWay};
use crate::model::op::BackendId;
use crate::model::plan::{self, cell, service_key};
use crate::model::template;
use crate::serve::AskError;

impl Core {
    /// See [`admin::Backends`].
    pub fn backends(&mut self) -> Result<admin::Backends, ApplyError> {
        let counters = self.dataplane.counters()?;
        let uses = uses(self.decoded());
        let names = self.names();
        let mut backends: Vec<_> = self
            .installed
            .backends()
            .filter(|(_, pod, _)| pod.identity != 0)
            .filter_map(|(id, pod, value)| {
                let value = value?;
                let count = counters.backends.get(&id).copied().unwrap_or_default();
                let (current_in, older_in) = uses.get(&id.0).copied().unwrap_or_default();
                let name = names.get(&pod.identity);
                Some(admin::Backend {
                    id: id.0,
                    address: pod.address,
                    port: pod.port,
                    identity: pod.identity,
                    pod_uid: name.map(|name| name.uid.clone()),
                    pod: name.and_then(|name| name.pod.clone()),
                    node: name.map(|name| name.node.clone()),
                    local: value.flags & backend_flag::LOCAL != 0,
                    services: name
                        .map(|name| name.services.iter().cloned().collect())
                        .unwrap_or_default(),
                    current_in,
                    older_in,
                    packets: count.packets,
                    bytes: count.bytes,
                    next_hop: next_hop(value),
                })
            })
            .collect();
        backends.sort_by_key(|backend| backend.id);
        Ok(admin::Backends { backends })
    }

    /// Who the identities in the maps are, as far as tables tell.
    fn names(&self) -> HashMap<u32, Name> {
        let mut names: HashMap<u32, Name> = HashMap::new();
        for (named, table) in self.tables.iter() {
            let Some(spec) = &table.spec else { continue };
            for group in &spec.groups {
                for (at, pod) in group.candidates.iter().enumerate() {
                    let Some(pod) = spec.pods.get(*pod as usize) else {
                        continue;
                    };
                    let targets = group.candidate_targets.get(at).copied().unwrap_or(0);
                    for port in group.targets.get(targets as usize).into_iter().flatten() {
                        let name = names
                            .entry(crate::model::secret::identity(&pod.uid, *port))
                            .or_insert_with(|| Name {
                                uid: pod.uid.clone(),
                                pod: self.index.pod_by_uid(&pod.uid).map(pod_name),
                                node: spec
                                    .nodes
                                    .get(pod.node as usize)
                                    .cloned()
                                    .unwrap_or_default(),
                                services: BTreeSet::new(),
                            });
                        name.services.insert(named.to_string());
                    }
                }
            }
        }
        names
    }

    /// See [`admin::Explanation`].
    pub fn explain(
        &mut self,
        request: &admin::ExplainRequest,
    ) -> Result<admin::Explanation, AskError> {
        let admin::ExplainRequest {
            client,
            vip,
            protocol,
        } = request;
        let number = protocol_number(protocol).ok_or_else(|| {
            AskError::Bad(format!(
                "protocol {protocol:?} is not known; use TCP or UDP"
            ))
        })?;
        let contents = self.dataplane.read()?;
        let way =
            explain::way(&explain::memory(&contents), *client, *vip, number).map_err(|error| {
                match error {
                    NoWay::NoService => AskError::NotFound(error.to_string()),
                    NoWay::Families { .. } => AskError::Bad(error.to_string()),
                }
            })?;
        let key = service_key(vip.ip(), vip.port(), number);
        let owner = self.tables.iter().find(|(_, table)| {
            table
                .decoded()
                .is_some_and(|decoded| decoded.entries.iter().any(|entry| entry.key == key))
        });
        let names = self.names();
        let candidates = way.candidates.iter().filter_map(|(id, because)| {
            let value = contents.backends.get(id)?;
            let pod = template::pod_port(value)?;
            let name = names.get(&pod.identity);
            Some(admin::Candidate {
                backend: id.0,
                pod: std::net::SocketAddr::new(pod.address, pod.port),
                pod_name: name.and_then(|name| name.pod.clone()),
                node: name.map(|name| name.node.clone()),
                because: because.label().to_owned(),
                next_hop: next_hop(value),
            })
        });
        let spec = owner.and_then(|(_, table)| table.spec.as_ref());
        Ok(admin::Explanation {
            service: owner.map(|(named, _)| named.to_string()),
            version: owner.and_then(|(_, table)| table.applied),
            digest: spec.map(digest),
            hash: way.hash,
            row: way.row,
            slot: way.slot,
            candidates: candidates.collect(),
            first_packet: first_outcome(&contents, way.first),
            mid_flow: outcome(&contents, way.mid_flow),
        })
    }
}

/// Who an identity is.
struct Name {
    uid: String,
    pod: Option<String>,
    node: String,
    services: BTreeSet<String>,
}

fn pod_name(pod: &k8s_openapi::api::core::v1::Pod) -> String {
    let meta = &pod.metadata;
    format!(
        "{}/{}",
        meta.namespace.as_deref().unwrap_or_default(),
        meta.name.as_deref().unwrap_or_default()
    )
}

/// In how many slots of each group of ports a backend is current, and older.
fn uses<'a>(services: impl Iterator<Item = &'a plan::Service>) -> HashMap<u32, (u32, u32)> {
    let mut uses: HashMap<u32, (u32, u32)> = HashMap::new();
    for ids in services
        .flat_map(|service| &service.entries)
        .flat_map(|entry| entry.cells.chunks_exact(plan::CELL))
    {
        uses.entry(ids[cell::FIRST]).or_default().0 += 1;
        // A substitute has a slot of its own.
        let older = ids[cell::OLDER].iter().chain([&ids[cell::AGREED]]);
        for older in older.filter(|older| **older != 0) {
            uses.entry(*older).or_default().1 += 1;
        }
    }
    uses
}

fn next_hop(value: &abi::Backend) -> admin::NextHop {
    if value.flags & backend_flag::LOCAL != 0 {
        return admin::NextHop::Local;
    }
    if value.flags & backend_flag::NO_NEXT_HOP != 0 {
        return admin::NextHop::Unresolved;
    }
    // Ethernet, then the outer IP header: its destination is the node.
    let bytes = |at: usize, len: usize| value.header.get(at..at + len).unwrap_or_default();
    let node_address = if value.flags & backend_flag::OUTER_V6 != 0 {
        <[u8; 16]>::try_from(bytes(14 + 24, 16))
            .map_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED), IpAddr::from)
    } else {
        <[u8; 4]>::try_from(bytes(14 + 16, 4))
            .map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::from)
    };
    let mac: Vec<_> = bytes(0, 6)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    admin::NextHop::Via {
        node_address,
        mac: mac.join(":"),
        ifindex: value.ifindex,
        mtu: value.mtu,
    }
}

/// What happens to a packet, in a sentence.
/// What becomes of a packet that opens a flow: unlike others, it is told that nobody serves it.
fn first_outcome(contents: &Contents, verdict: Result<BackendId, DropReason>) -> String {
    match verdict {
        Err(reason @ DropReason::NoBackend) => format!("is refused: {}", reason.label()),
        other => outcome(contents, other),
    }
}

fn outcome(contents: &Contents, verdict: Result<BackendId, DropReason>) -> String {
    match verdict {
        Err(reason @ DropReason::SourceRange) => format!(
            "is dropped: {} (the client is in none of the Service's source ranges)",
            reason.label()
        ),
        Err(reason @ DropReason::NoLocalBackend) => format!(
            "is dropped: {} (externalTrafficPolicy Local, and no pod of this node serves)",
            reason.label()
        ),
        Err(reason) => format!("is dropped: {}", reason.label()),
        Ok(id) => {
            let pod = contents.backends.get(&id).and_then(template::pod_port);
            pod.map_or_else(
                || format!("goes to backend {}, which the maps do not hold", id.0),
                |pod| {
                    format!(
                        "goes to {}",
                        std::net::SocketAddr::new(pod.address, pod.port)
                    )
                },
            )
        }
    }
}

fn protocol_number(name: &str) -> Option<u8> {
    match name.to_ascii_uppercase().as_str() {
        "TCP" => Some(lb_ebpf::wire::protocol::TCP),
        "UDP" => Some(lb_ebpf::wire::protocol::UDP),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_first_packet_is_refused() {
        let contents = Contents::default();
        let nobody = Err(DropReason::NoBackend);
        assert_eq!(first_outcome(&contents, nobody), "is refused: no_backend");
        assert_eq!(outcome(&contents, nobody), "is dropped: no_backend");
        let fault = Err(DropReason::TableFault);
        assert_eq!(first_outcome(&contents, fault), "is dropped: table_fault");
    }
}
