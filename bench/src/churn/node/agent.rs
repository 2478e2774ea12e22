//! A node's agent without its shell: the model's plans carried out on the node's maps. When it hears of something, and
//! whether it lives, is the simulator's business.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use lb_controller::api::service_table::ServiceTableSpec;
use lb_controller::dataplane::Dataplane as _;
use lb_controller::model::backends::{NodeView, View};
use lb_controller::model::freshness;
use lb_controller::model::gate::{Gate, Known, gate};
use lb_controller::model::installed::Installed;
use lb_controller::model::op::Op;
use lb_controller::model::plan::Service;
use lb_controller::model::secret;
use lb_controller::model::template::{NextHop, NodeAddresses, Sender};
use lb_ebpf::abi::{self, config_flag};
use lb_ebpf::wire::{Be16, Be32};

use super::kernel::Kernel;
use super::pins::Pins;
use crate::churn::api::{self, Api};
use crate::churn::queue::{MS, Nanos, instant};
use crate::churn::wire::NodeId;

/// The cluster's secrets; any will do.
const HASH_SECRET: [u8; secret::HASH_SECRET_LEN] = *b"a simulated cluster's secret ...";
const ENCAP_SECRET: [u8; 8] = *b"churning";
/// Relays per second, of all processors: one processor carries all packets here, and its share is a quarter.
const RELAYS_PER_SECOND: u64 = 4 * 500_000;
/// MTU between nodes.
const MTU: u16 = 1500;
/// Flows that a node reports per second while they are half-open: as real agents do that are not flooded, on one processor.
const HALF_OPEN_REPORTS_PER_SECOND: u32 = 4 * 1_000;
/// Largest MSS behind outer headers.
const MSS: u16 = MTU - abi::OVERHEAD_V4 - 40;

/// What our programs and agents go without, so that its absence can be seen to break flows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Without {
    Nothing,
    /// Packets of unknown flows are not passed on.
    Relays,
    /// Pins are written, told and acknowledged as always, and history leaves by them; but they never reach the maps, where
    /// packets would find them.
    Pins,
}

/// How often a version is looked at again that waits for pins, and how long it waits at most: as real agents do.
const GATE_POLL: Nanos = 20 * MS;
const GATE_WAIT: Duration = freshness::STREAMS_WAIT;

/// What the agent of a node knows.
pub(crate) struct Agent {
    pub(super) node: NodeId,
    pub(super) name: Arc<str>,
    pub(super) without: Without,
    pub(super) installed: Installed,
    /// What the API server said last; none before it was heard.
    pub(super) heard: Option<Heard>,
    tables: BTreeMap<String, Table>,
    /// Nodes that seem to be down.
    suspected: BTreeSet<Arc<str>>,
    /// Nodes whose pins are not all here, and are waited for.
    missing: BTreeSet<Arc<str>>,
    pub(super) pins: Pins,
}

/// What the API server said: tables, nodes, and the pods of this node that live.
pub(super) struct Heard {
    tables: Vec<ServiceTableSpec>,
    pub(super) nodes: BTreeSet<NodeId>,
    pub(super) living: HashSet<String>,
}

/// A table that was applied.
#[derive(Default)]
struct Table {
    applied: Option<Service>,
    /// Since when the next version waits for pins.
    waits_since: Option<Instant>,
    /// The newest version that a peer has named.
    named: u64,
    /// Something else than its version has changed.
    is_stale: bool,
}

impl Table {
    fn version(&self) -> Option<u64> {
        self.applied.as_ref().map(|applied| applied.version)
    }
}

/// What came of bringing the maps in line.
#[derive(Default, PartialEq, Eq, Debug)]
pub(crate) struct Settled {
    /// Services and their versions that are in the maps now.
    pub(crate) applied: Vec<(Arc<str>, u64)>,
    /// Some version waits for pins: again after this time.
    pub(crate) again: Option<Nanos>,
}

impl Agent {
    /// An agent that starts: it reads what the maps hold.
    pub(crate) fn start(
        node: NodeId,
        without: Without,
        kernel: &mut Kernel,
    ) -> anyhow::Result<Self> {
        let contents = kernel.dataplane.read()?;
        let view = view(node, &BTreeSet::new(), &BTreeSet::new());
        Ok(Self {
            node,
            name: api::name(node).into(),
            without,
            installed: Installed::from_contents(&contents, kernel.dataplane.capacity(), view),
            heard: None,
            tables: BTreeMap::new(),
            suspected: BTreeSet::new(),
            missing: BTreeSet::new(),
            pins: Pins::default(),
        })
    }

    /// Notes what the API server says now.
    pub(crate) fn hear(&mut self, tables: &[ServiceTableSpec], api: &Api) {
        let pods = api.pods.iter();
        let living = pods.filter(|pod| pod.node == self.node && pod.exists());
        self.heard = Some(Heard {
            tables: tables.to_vec(),
            nodes: api.nodes.clone(),
            living: living.map(|pod| pod.uid.clone()).collect(),
        });
    }

    /// Brings the maps in line with what was heard.
    pub(crate) fn settle(&mut self, kernel: &mut Kernel, now: Nanos) -> anyhow::Result<Settled> {
        let mut settled = Settled::default();
        let Some(heard) = self.heard.take() else {
            return Ok(settled);
        };
        let outcome = self.settle_as(&heard, kernel, now, &mut settled);
        self.heard = Some(heard);
        outcome?;
        self.begin_pins(kernel, now)?;
        Ok(settled)
    }

    fn settle_as(
        &mut self,
        heard: &Heard,
        kernel: &mut Kernel,
        now: Nanos,
        settled: &mut Settled,
    ) -> anyhow::Result<()> {
        self.installed
            .set_view(view(self.node, &heard.nodes, &self.suspected));
        let config = self.installed.plan_config(config(self.node, self.without));
        self.carry_out(kernel, config.as_slice())?;
        let peers = self.installed.plan_peers(true);
        self.carry_out(kernel, &peers)?;
        let backends = self.installed.plan_backends();
        self.carry_out(kernel, &backends)?;
        for table in &heard.tables {
            let uid = &table.service_uid;
            let mut state = self.tables.remove(uid).unwrap_or_default();
            let is_new = state.version() != Some(table.version);
            if is_new && self.waits(table, heard, &mut state, now) {
                settled.again = Some(now + GATE_POLL);
            } else if is_new || state.is_stale {
                state.applied = Some(self.apply(table, kernel)?);
                state.is_stale = false;
            }
            if let Some(version) = state.version() {
                settled.applied.push((uid.as_str().into(), version));
            }
            self.tables.insert(uid.clone(), state);
        }
        self.apply_locals(kernel, &heard.living)
    }

    fn apply(&mut self, table: &ServiceTableSpec, kernel: &mut Kernel) -> anyhow::Result<Service> {
        let mut service = self.installed.decode(table)?;
        let is_missing = |node: &String| self.missing.contains(node.as_str());
        service.streams_up = !table.nodes.iter().any(is_missing);
        let ops = self.installed.plan(&service)?;
        self.carry_out(kernel, &ops)?;
        Ok(service)
    }

    /// Whether a version waits for pins.
    fn waits(
        &self,
        table: &ServiceTableSpec,
        heard: &Heard,
        state: &mut Table,
        now: Nanos,
    ) -> bool {
        let is_dead = |name: &str| heard.nodes.iter().all(|node| api::name(*node) != name);
        let known = Known {
            received: &|writer| self.pins.position(writer),
            // It only tells apart who is waited for.
            reachable: &|_| true,
            dead: &is_dead,
        };
        if gate(&table.watermarks, &known) == Gate::Open {
            state.waits_since = None;
            return false;
        }
        let since = *state.waits_since.get_or_insert(instant(now));
        instant(now).saturating_duration_since(since) < GATE_WAIT
    }

    /// A peer has applied a version.
    pub(crate) fn named(&mut self, uid: &str, version: u64) {
        let table = self.tables.entry(uid.to_owned()).or_default();
        table.named = table.named.max(version);
    }

    /// Whether its lists are complete and applied, and whether a peer has named a newer version.
    pub(crate) fn facts(&self, heard: freshness::Heard) -> freshness::Facts {
        freshness::Facts {
            applied: self.heard.is_some() && self.pins.is_known(),
            heard,
            behind: self
                .tables
                .values()
                .any(|table| table.version().unwrap_or(0) < table.named),
        }
    }

    /// Other nodes seem to be down than before. Whether that is so.
    pub(crate) fn suspect(&mut self, node: NodeId, is_down: bool) -> bool {
        let name = api::name(node).into();
        let is_new = if is_down {
            self.suspected.insert(name)
        } else {
            self.suspected.remove(&name)
        };
        for table in self.tables.values_mut() {
            table.is_stale |= is_new;
        }
        is_new
    }

    /// Whether a node seems to be down.
    pub(crate) fn suspects(&self, node: &str) -> bool {
        self.suspected.contains(node)
    }

    /// Pins of other nodes are missing than before. Whether that is so.
    pub(crate) fn miss(&mut self, missing: BTreeSet<Arc<str>>) -> bool {
        let is_new = self.missing != missing;
        self.missing = missing;
        for table in self.tables.values_mut() {
            table.is_stale |= is_new;
        }
        is_new
    }

    /// Whether the pins of all nodes are here, or are not waited for any more.
    pub(crate) fn misses_nobody(&self) -> bool {
        self.missing.is_empty()
    }

    /// Other nodes, as the API server has named them.
    pub(crate) fn others(&self) -> Vec<NodeId> {
        let nodes = self.heard.iter().flat_map(|heard| &heard.nodes);
        nodes.filter(|node| **node != self.node).copied().collect()
    }

    fn decoded(&self) -> impl Iterator<Item = &Service> {
        self.tables
            .values()
            .filter_map(|table| table.applied.as_ref())
    }

    /// Pods of this node that live are there, the others and their flows go.
    fn apply_locals(
        &mut self,
        kernel: &mut Kernel,
        living: &HashSet<String>,
    ) -> anyhow::Result<()> {
        let wanted: Vec<&Service> = self.decoded().collect();
        let ops = self.installed.plan_locals(living, &wanted);
        self.carry_out(kernel, &ops)
    }

    /// Frees what nothing names.
    pub(crate) fn tidy(&mut self, kernel: &mut Kernel) -> anyhow::Result<()> {
        let idle = self.installed.plan_pin_flags();
        self.carry_out(kernel, &idle)?;
        let services = self
            .tables
            .values()
            .filter_map(|table| table.applied.as_ref());
        let ops = self.installed.collect(services);
        self.carry_out(kernel, &ops)
    }

    /// Removes everything, so that the next run begins with empty maps.
    pub(crate) fn clear(&mut self, kernel: &mut Kernel) -> anyhow::Result<()> {
        self.tables.clear();
        let pinned = self.installed.pinned().map(|(key, _)| *key);
        let unpin: Vec<Op> = pinned.map(|key| Op::RemovePin { key }).collect();
        self.carry_out(kernel, &unpin)?;
        let stale = self.installed.plan_stale([]);
        self.carry_out(kernel, &stale)?;
        let locals = self.installed.plan_locals(&HashSet::new(), &[]);
        self.carry_out(kernel, &locals)?;
        self.installed
            .set_view(view(self.node, &BTreeSet::new(), &BTreeSet::new()));
        let peers = self.installed.plan_peers(true);
        self.carry_out(kernel, &peers)?;
        let unnamed = self.installed.collect([]);
        self.carry_out(kernel, &unnamed)
    }

    pub(super) fn carry_out(&mut self, kernel: &mut Kernel, ops: &[Op]) -> anyhow::Result<()> {
        for op in ops {
            // No packet is under way inside a program between two calls, so nobody needs to be waited for.
            if !matches!(op, Op::Grace) {
                kernel
                    .dataplane
                    .apply(op)
                    .with_context(|| format!("on {}", api::name(self.node)))?;
            }
            self.installed.record(op);
        }
        Ok(())
    }
}

fn addresses(node: NodeId) -> NodeAddresses {
    NodeAddresses {
        v4: Some(node.address()),
        v6: None,
    }
}

/// What a node knows of itself and the others.
fn view(node: NodeId, nodes: &BTreeSet<NodeId>, suspected: &BTreeSet<Arc<str>>) -> View {
    let hop = |to: NodeId| NextHop {
        ifindex: 0,
        src: [2, 0, 0, 0, 1, node.0],
        dst: [2, 0, 0, 0, 1, to.0],
        mtu: MTU,
    };
    let others = nodes.iter().filter(|other| **other != node);
    let nodes: HashMap<_, _> = others
        .map(|other| {
            let seen = NodeView {
                addresses: addresses(*other),
                hop4: Some(hop(*other)),
                hop6: None,
            };
            (api::name(*other).into(), seen)
        })
        .collect();
    View {
        hands_off: true,
        suspected: suspected.clone(),
        node: api::name(node).into(),
        sender: Sender {
            node: addresses(node),
            secret: secret::encap_secret(ENCAP_SECRET),
            geneve_port: abi::GENEVE_PORT,
        },
        nodes,
    }
}

/// The key of all hashes.
pub(super) fn hash_key() -> lb_ebpf::hash::Key {
    secret::hash_key(&HASH_SECRET)
}

fn config(node: NodeId, without: Without) -> abi::Config {
    abi::Config {
        hash_key: hash_key(),
        secrets: [secret::encap_secret(ENCAP_SECRET); 2],
        relays_per_second: RELAYS_PER_SECOND,
        node4: Be32::from_bytes(node.address().octets()),
        geneve_port: Be16::new(abi::GENEVE_PORT),
        mss4: MSS,
        flags: match without {
            Without::Nothing | Without::Pins => 0,
            Without::Relays => config_flag::RELAY_OFF,
        },
        half_open_reports_per_second: HALF_OPEN_REPORTS_PER_SECOND,
        ..abi::Config::default()
    }
}
