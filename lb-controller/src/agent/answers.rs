//! Answers to questions about the agent: what it knows, joined with what the maps count.

mod backends;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use lb_ebpf::abi::{self, DropReason, Stat};

use super::core::{Core, Table};
use super::{check, view};
use crate::admin::{self, Counter, MapUsage, ServicePort};
use crate::dataplane::{ApplyError, Capacity, Counters};
use crate::metrics::AgentScrape;
use crate::model::installed::{Installed, Usage};
use crate::model::plan::service_key;
use crate::model::service::Service;
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
                name: self.settings.origin.to_string(),
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
            peers: self.shown_peers(),
            announced: self.shown_announced(),
            pins: self.shown_pins(),
            routes: self.shown_routes(),
            retirements: Vec::new(),
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

    fn shown_peers(&self) -> Vec<admin::Peer> {
        let peers = self.announcing.liveness.peers.iter();
        peers
            .map(|(node, peer)| admin::Peer {
                node: node.to_string(),
                state: peer.state.label().to_owned(),
                for_seconds: peer.since.elapsed().as_secs(),
            })
            .collect()
    }

    fn shown_pins(&self) -> Option<admin::Pins> {
        let outbox = self.outbox()?;
        let streams = self.pins.streams.read();
        let (own, written, acknowledged) = outbox.with(|writer| {
            let nodes = streams.keys();
            let acknowledged = nodes.map(|node| writer.balancer(node));
            let acknowledged: Vec<_> = acknowledged.collect();
            (writer.pins().len(), writer.position(), acknowledged)
        });
        let refused = self.pins.server.read().refused.into_iter();
        let refused = refused.map(|(cause, packets)| Counter {
            name: cause.label().to_owned(),
            packets,
        });
        let streams = streams.into_iter().zip(acknowledged);
        let streams = streams.map(|((node, counts), at)| admin::PinStream {
            up: counts.is_up,
            behind: at.map(|at| written.seq.0.saturating_sub(at.seq.0)),
            records: counts.records,
            snapshots: counts.snapshots,
            received: self.pins.received(&node).map(|at| at.to_string()),
            fault: counts.fault,
            node: node.to_string(),
        });
        Some(admin::Pins {
            own: own as u64,
            held: self.installed.pins() as u64,
            written: written.to_string(),
            missing: self.pins.missing().map(ToString::to_string).collect(),
            proposals: self.proposals() as u64,
            unpinned: self.pins.unpinned(),
            refused: refused.collect(),
            streams: streams.collect(),
        })
    }

    fn shown_announced(&self) -> Vec<admin::Announced> {
        let announced = self.announcing.announced.iter();
        announced
            .map(|(vip, ifindex, mac)| admin::Announced {
                vip: *vip,
                interface: self
                    .links
                    .get(*ifindex)
                    .map_or_else(|| ifindex.to_string(), |link| link.name.clone()),
                mac: view::mac_text(*mac),
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

    /// See [`admin::Checks`].
    pub fn check(&self) -> admin::Checks {
        let interfaces = self.shown_interfaces();
        check::judge(
            &check::look(&self.settings.pin_dir, &interfaces, &self.links),
            &interfaces,
            self.settings.role,
        )
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

/// Of a table: nodes that agree show the same.
pub(super) fn digest(spec: &crate::api::service_table::ServiceTableSpec) -> String {
    use siphasher::sip::SipHasher24;
    use std::hash::Hasher;
    let mut hasher = SipHasher24::new();
    // The text is made from the same types everywhere, so it is the same where the table is.
    hasher.write(serde_json::to_string(spec).unwrap_or_default().as_bytes());
    format!("{:016x}", hasher.finish())
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
