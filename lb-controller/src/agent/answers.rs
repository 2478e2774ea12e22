//! Answers to questions about the agent: what it knows, joined with what the maps count.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_ebpf::abi::{self, DropReason, Stat, backend_flag};

use super::core::{Core, Table};
use super::{check, view};
use crate::admin::{self, Counter, MapUsage, ServicePort};
use crate::dataplane::{ApplyError, Capacity, Contents, Counters};
use crate::metrics::AgentScrape;
use crate::model::explain::{self, NoWay};
use crate::model::installed::{Installed, Usage};
use crate::model::op::BackendId;
use crate::model::plan::{self, service_key};
use crate::model::service::Service;
use crate::model::template;
use crate::serve::AskError;
use crate::source::index::Named;

impl Core {
    /// See [`admin::Status`].
    pub fn status(&mut self) -> Result<admin::Status, ApplyError> {
        let counters = self.dataplane.counters()?;
        let reasons = self.not_ready_because();
        Ok(admin::Status {
            node: self.settings.node.clone(),
            role: self.settings.role,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            abi_version: abi::ABI_VERSION,
            pin_dir: self.settings.pin_dir.display().to_string(),
            uptime_seconds: self.started.elapsed().as_secs(),
            addresses: view::list(self.own),
            interfaces: self.shown_interfaces(),
            ready: reasons.is_empty(),
            not_ready_because: reasons,
            fresh: self.fresh.is(),
            sources: vec![admin::Source {
                name: self.settings.manifests.display().to_string(),
                alive: self.watch_error.is_none(),
                last_list: self.last_list,
                last_apply: self.last_apply,
            }],
            services: self.service_counts(),
            problems: self.problems(),
            maps: usage(&self.installed, self.dataplane.capacity()),
            drops: counted(
                &counters.drops,
                DropReason::ALL.iter().map(|reason| reason.label()),
            ),
            stats: counted(&counters.stats, Stat::ALL.iter().map(|stat| stat.label())),
            next_hops_unresolved: self.unresolved(),
        })
    }

    fn shown_interfaces(&self) -> Vec<admin::Interface> {
        self.interfaces
            .iter()
            .map(|interface| admin::Interface {
                name: interface.name.clone(),
                ifindex: interface.ifindex,
                xdp_mode: interface.xdp.map(|xdp| xdp.mode.label().to_owned()),
                xdp_program_id: interface.xdp.map(|xdp| xdp.id),
                tc_kind: interface.egress.map(|kind| kind.label().to_owned()),
                problem: interface.problem.clone(),
            })
            .collect()
    }

    /// Services of ours, by name: those that objects name and those that have tables.
    pub(super) fn known(&self) -> BTreeMap<Named, Option<&Table>> {
        let objects = self
            .index
            .services()
            .filter(|object| Service::parse(object).is_some())
            .filter_map(|object| {
                let meta = &object.metadata;
                Some(Named {
                    namespace: meta.namespace.clone()?,
                    name: meta.name.clone()?,
                })
            });
        let mut known: BTreeMap<_, _> = objects.map(|named| (named, None)).collect();
        known.extend(
            self.tables
                .iter()
                .map(|(named, table)| (named.clone(), Some(table))),
        );
        known
    }

    fn service_counts(&self) -> admin::ServiceCounts {
        let known = self.known();
        let mut counts = admin::ServiceCounts {
            total: known.len(),
            ..admin::ServiceCounts::default()
        };
        for table in known.values() {
            match table {
                Some(table) if table.attempt.error.is_some() || table.fault.is_some() => {
                    counts.failed += 1;
                }
                Some(table) if table.applied.is_some() => counts.programmed += 1,
                Some(_) | None => counts.pending += 1,
            }
        }
        counts
    }

    fn unresolved(&self) -> Vec<admin::UnresolvedNextHop> {
        let unresolved = self
            .next_hops
            .iter()
            .filter_map(|(address, hop)| Some((*address, hop.as_ref().err()?)));
        unresolved
            .map(|(address, reason)| admin::UnresolvedNextHop {
                node: self.node_of(address).unwrap_or_default(),
                address,
                reason: reason.to_string(),
            })
            .collect()
    }

    fn node_of(&self, address: IpAddr) -> Option<String> {
        let node = self
            .index
            .nodes()
            .find(|node| view::list(view::addresses(node)).contains(&address))?;
        node.metadata.name.clone()
    }

    /// See [`admin::Services`].
    pub fn services(&mut self) -> Result<admin::Services, ApplyError> {
        let counters = self.dataplane.counters()?;
        let known = self.known();
        let services = known
            .into_iter()
            .map(|(named, table)| self.shown_service(named, table, &counters));
        Ok(admin::Services {
            services: services.collect(),
        })
    }

    fn shown_service(
        &self,
        named: Named,
        table: Option<&Table>,
        counters: &Counters,
    ) -> admin::Service {
        let status = self.statuses.get(&named);
        let spec = table.and_then(|table| table.spec.as_ref());
        let vips = spec
            .map(|spec| spec.vips.clone())
            .or_else(|| status.map(|status| status.vips.clone()));
        let problem = table
            .and_then(|table| table.fault.clone().or_else(|| table.attempt.error.clone()))
            .or_else(|| status?.problems.first().cloned())
            .or_else(|| {
                spec.is_none()
                    .then(|| "has no table yet; see that the manager runs".to_owned())
            });
        let ports = spec
            .into_iter()
            .flat_map(|spec| self.shown_ports(spec, counters))
            .collect();
        admin::Service {
            namespace: named.namespace,
            name: named.name,
            vips: vips.unwrap_or_default(),
            ports,
            version: table.and_then(|table| table.applied),
            digest: spec.map(digest),
            problem,
        }
    }

    fn shown_ports(
        &self,
        spec: &crate::api::service_table::ServiceTableSpec,
        counters: &Counters,
    ) -> Vec<ServicePort> {
        let mut ports: BTreeMap<(u16, String), ServicePort> = BTreeMap::new();
        // A port has a group in each family; their traffic is shown together, and the larger table.
        for group in &spec.groups {
            let vip = spec
                .vips
                .iter()
                .find(|vip| crate::api::service_table::Family::of(**vip) == group.family);
            for port in &group.ports {
                let entry = vip.and_then(|vip| {
                    self.installed.services().get(&service_key(
                        *vip,
                        port.port,
                        port.protocol.number(),
                    ))
                });
                let count = entry
                    .and_then(|entry| counters.services.get(&entry.id))
                    .copied()
                    .unwrap_or_default();
                let current: BTreeSet<_> = group.current.iter().flatten().collect();
                let shown = ports
                    .entry((port.port, port.protocol.to_string()))
                    .or_insert_with(|| ServicePort {
                        name: port.name.clone(),
                        port: port.port,
                        protocol: port.protocol.to_string(),
                        slots: 0,
                        table_size: 0,
                        previous_tables: 0,
                        backends: 0,
                        packets: count.packets,
                        bytes: count.bytes,
                    });
                shown.slots = shown.slots.max(u32::from(group.shape.slots));
                shown.table_size = shown.table_size.max(group.shape.size);
                shown.previous_tables = shown.previous_tables.max(group.previous.len() as u32);
                shown.backends = shown.backends.max(current.len() as u32);
            }
        }
        ports.into_values().collect()
    }

    /// See [`admin::Backends`].
    pub fn backends(&mut self) -> Result<admin::Backends, ApplyError> {
        let counters = self.dataplane.counters()?;
        let uses = uses(self.decoded());
        let names = self.names();
        let mut backends: Vec<_> = self
            .installed
            .backends()
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
        for (named, table) in &self.tables {
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

    /// See [`admin::Checks`].
    pub fn check(&self) -> admin::Checks {
        let interfaces = self.shown_interfaces();
        check::judge(
            &check::look(&self.settings.pin_dir, &interfaces, &self.links),
            &interfaces,
            self.settings.role,
        )
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
            first_packet: outcome(&contents, way.first),
            mid_flow: outcome(&contents, way.mid_flow),
        })
    }

    /// Everything for metrics.
    pub fn scrape(&mut self) -> Result<AgentScrape, ApplyError> {
        Ok(AgentScrape {
            status: self.status()?,
            services: self.services()?,
            backends: self.backends()?,
            work: self.work.clone(),
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

/// Of a table: nodes that agree show the same.
fn digest(spec: &crate::api::service_table::ServiceTableSpec) -> String {
    use siphasher::sip::SipHasher24;
    use std::hash::Hasher;
    let mut hasher = SipHasher24::new();
    // The text is made from the same types everywhere, so it is the same where the table is.
    hasher.write(serde_json::to_string(spec).unwrap_or_default().as_bytes());
    format!("{:016x}", hasher.finish())
}

/// In how many slots of each group of ports a backend is current, and older.
fn uses<'a>(services: impl Iterator<Item = &'a plan::Service>) -> HashMap<u32, (u32, u32)> {
    let mut uses: HashMap<u32, (u32, u32)> = HashMap::new();
    for cell in services
        .flat_map(|service| &service.entries)
        .flat_map(|entry| entry.cells.chunks_exact(plan::CELL))
    {
        uses.entry(cell[0]).or_default().0 += 1;
        for older in cell[1..].iter().filter(|older| **older != 0) {
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

fn counted(values: &[u64], labels: impl Iterator<Item = &'static str>) -> Vec<Counter> {
    let named = labels.zip(values).filter(|(_, packets)| **packets > 0);
    named
        .map(|(name, packets)| Counter {
            name: name.to_owned(),
            packets: *packets,
        })
        .collect()
}

/// What happens to a packet, in a sentence.
fn outcome(contents: &Contents, verdict: Result<BackendId, DropReason>) -> String {
    match verdict {
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

/// How full the maps are whose ids the agent gives out.
fn usage(installed: &Installed, capacity: Capacity) -> Vec<MapUsage> {
    let Usage {
        backends,
        rows,
        regions,
        sets,
        slots,
        services,
    } = installed.usage();
    [
        ("services4 and services6", services, 2 * capacity.services),
        (abi::map::BACKENDS, backends, capacity.backends),
        (abi::map::SETS, sets, capacity.sets),
        (abi::map::SLOTS, slots, capacity.slots),
        (abi::map::REGIONS, regions, capacity.regions),
        (abi::map::ROWS, rows, capacity.rows),
    ]
    .map(|(map, used, capacity)| MapUsage {
        map: map.to_owned(),
        used: u64::from(used),
        capacity: u64::from(capacity),
    })
    .into()
}
