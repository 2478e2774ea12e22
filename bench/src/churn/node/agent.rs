//! A node's agent without its shell: the model's plans carried out on the node's maps. When it hears of something, and
//! whether it lives, is the simulator's business.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use anyhow::Context as _;
use lb_controller::api::service_table::ServiceTableSpec;
use lb_controller::dataplane::Dataplane as _;
use lb_controller::dataplane::flows::IdleTimeouts;
use lb_controller::model::backends::{NodeView, View};
use lb_controller::model::installed::Installed;
use lb_controller::model::op::Op;
use lb_controller::model::plan::Service;
use lb_controller::model::secret;
use lb_controller::model::template::{NextHop, NodeAddresses, Sender};
use lb_ebpf::abi::{self, config_flag};
use lb_ebpf::wire::{Be16, Be32};

use super::kernel::Kernel;
use crate::churn::api::{self, Api};
use crate::churn::queue::Nanos;
use crate::churn::wire::NodeId;

/// The cluster's secrets; any will do.
const HASH_SECRET: [u8; secret::HASH_SECRET_LEN] = *b"a simulated cluster's secret ...";
const ENCAP_SECRET: [u8; 8] = *b"churning";
/// Relays per second, of all processors: one processor carries all packets here, and its share is a quarter.
const RELAYS_PER_SECOND: u64 = 4 * 500_000;
/// MTU between nodes.
const MTU: u16 = 1500;
/// Largest MSS behind outer headers.
const MSS: u16 = MTU - abi::OVERHEAD_V4 - 40;

/// Whether packets of unknown flows are passed on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Relay {
    On,
    Off,
}

/// What the agent of a node knows.
pub(crate) struct Agent {
    node: NodeId,
    relay: Relay,
    installed: Installed,
    decoded: BTreeMap<String, Service>,
}

impl Agent {
    /// An agent that starts: it reads what the maps hold.
    pub(crate) fn start(node: NodeId, relay: Relay, kernel: &mut Kernel) -> anyhow::Result<Self> {
        let contents = kernel.dataplane.read()?;
        let view = view(node, &Api::default());
        Ok(Self {
            node,
            relay,
            installed: Installed::from_contents(&contents, kernel.dataplane.capacity(), view),
            decoded: BTreeMap::new(),
        })
    }

    /// Brings the maps in line with the tables and with what the API server says now.
    pub(crate) fn apply(
        &mut self,
        kernel: &mut Kernel,
        tables: &[ServiceTableSpec],
        api: &Api,
    ) -> anyhow::Result<()> {
        self.installed.set_view(view(self.node, api));
        let config = self.installed.plan_config(config(self.node, self.relay));
        self.carry_out(kernel, config.as_slice())?;
        let peers = self.installed.plan_peers(true);
        self.carry_out(kernel, &peers)?;
        let backends = self.installed.plan_backends();
        self.carry_out(kernel, &backends)?;
        for table in tables {
            let last = self.decoded.get(&table.service_uid);
            if last.is_some_and(|last| last.version == table.version) {
                continue;
            }
            let service = self.installed.decode(table)?;
            let ops = self.installed.plan(&service)?;
            self.decoded.insert(table.service_uid.clone(), service);
            self.carry_out(kernel, &ops)?;
        }
        self.apply_locals(kernel, api)
    }

    /// Pods of this node that live are there, the others and their flows go.
    fn apply_locals(&mut self, kernel: &mut Kernel, api: &Api) -> anyhow::Result<()> {
        let pods = api.pods.iter();
        let alive: HashSet<String> = pods
            .filter(|pod| pod.node == self.node && pod.exists())
            .map(|pod| pod.uid.clone())
            .collect();
        let wanted: Vec<&Service> = self.decoded.values().collect();
        let ops = self.installed.plan_locals(&alive, &wanted);
        self.carry_out(kernel, &ops)
    }

    /// Frees what nothing names.
    pub(crate) fn tidy(&mut self, kernel: &mut Kernel) -> anyhow::Result<()> {
        let ops = self.installed.collect(self.decoded.values());
        self.carry_out(kernel, &ops)
    }

    /// Ends flows that are over.
    pub(crate) fn sweep(kernel: &Kernel, now: Nanos) -> anyhow::Result<()> {
        let flows = kernel.dataplane.flows();
        flows.sweep(Kernel::tick(now), &IdleTimeouts::default())?;
        Ok(())
    }

    /// Removes everything, so that the next run begins with empty maps.
    pub(crate) fn clear(&mut self, kernel: &mut Kernel) -> anyhow::Result<()> {
        self.decoded.clear();
        let stale = self.installed.plan_stale([]);
        self.carry_out(kernel, &stale)?;
        let locals = self.installed.plan_locals(&HashSet::new(), &[]);
        self.carry_out(kernel, &locals)?;
        self.installed.set_view(view(self.node, &Api::default()));
        let peers = self.installed.plan_peers(true);
        self.carry_out(kernel, &peers)?;
        let unnamed = self.installed.collect([]);
        self.carry_out(kernel, &unnamed)
    }

    fn carry_out(&mut self, kernel: &mut Kernel, ops: &[Op]) -> anyhow::Result<()> {
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
fn view(node: NodeId, api: &Api) -> View {
    let hop = |to: NodeId| NextHop {
        ifindex: 0,
        src: [2, 0, 0, 0, 1, node.0],
        dst: [2, 0, 0, 0, 1, to.0],
        mtu: MTU,
    };
    let others = api.nodes.iter().filter(|other| **other != node);
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
        hands_off: false,
        suspected: BTreeSet::new(),
        node: api::name(node).into(),
        sender: Sender {
            node: addresses(node),
            secret: secret::encap_secret(ENCAP_SECRET),
            geneve_port: abi::GENEVE_PORT,
        },
        nodes,
    }
}

fn config(node: NodeId, relay: Relay) -> abi::Config {
    abi::Config {
        hash_key: secret::hash_key(&HASH_SECRET),
        secrets: [secret::encap_secret(ENCAP_SECRET); 2],
        relays_per_second: RELAYS_PER_SECOND,
        node4: Be32::from_bytes(node.address().octets()),
        geneve_port: Be16::new(abi::GENEVE_PORT),
        mss4: MSS,
        flags: match relay {
            Relay::On => 0,
            Relay::Off => config_flag::RELAY_OFF,
        },
        ..abi::Config::default()
    }
}
