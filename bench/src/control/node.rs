//! An agent's core on maps of its own, with an uplink on which no packet is sent.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use lb_controller::admin::Role;
use lb_controller::agent::core::{Core as Agent, Origin, Settings};
use lb_controller::agent::stamp::Fresh;
use lb_controller::dataplane::attach::Interface;
use lb_controller::dataplane::bpf;
use lb_controller::dataplane::links::{Link, LinkRole, Links, XdpMode, XdpProgram};
use lb_controller::dataplane::load::Sizes;
use lb_controller::dataplane::next_hop::NextHops;
use lb_controller::liveness::{Condition, Liveness, Peer, State};
use lb_controller::model::template::NextHop;
use lb_controller::source::index::Event;
use lb_controller::source::secret::ClusterSecrets;

use super::objects::{self, BALANCERS, INTERFACE, NODES, OWN_NODE};
use crate::pin_dir::PinDir;

/// Longest time until everything is applied.
const LIMIT: Duration = Duration::from_mins(5);
/// Index of the uplink; no packet is sent.
const IFINDEX: u32 = 1;
/// Room for the pins of a node with a million connections, and of others.
pub(crate) const PINS: u32 = 1 << 20;
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// Whether connections are handed off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Handoff {
    Off,
    On,
}

/// An agent on maps of its own.
pub(super) struct Node {
    pub(super) agent: Agent,
    fresh: Fresh,
}

impl Node {
    /// Opens the maps; those that another one has left are read back.
    pub(super) fn open(dir: &PinDir) -> anyhow::Result<Self> {
        Self::open_at(dir.path(), Handoff::Off)
    }

    pub(super) fn open_at(dir: &Path, handoff: Handoff) -> anyhow::Result<Self> {
        let pins = match handoff {
            Handoff::On => PINS,
            Handoff::Off => Sizes::default().pins,
        };
        let sizes = Sizes {
            flows: 1024,
            pins,
            ..Sizes::default()
        };
        let (maps, _programs) = bpf::open(&dir.join("control"), &sizes)?;
        let fresh = Fresh::default();
        let settings = Settings {
            hands_off: handoff == Handoff::On,
            node: objects::node_name(OWN_NODE),
            role: Role::Both,
            addresses: Vec::new(),
            relay: true,
            pin_dir: dir.to_owned(),
            flows: sizes.flows,
            pins,
            route_table: None,
            bird: false,
            origin: Origin::Cluster,
        };
        let (wanted, _) = tokio::sync::watch::channel(std::collections::BTreeSet::new());
        let mut agent = Agent::start(settings, Box::new(maps), fresh.clone(), wanted)?;
        let xdp = XdpProgram {
            id: 1,
            mode: XdpMode::Native,
        };
        let uplink = Interface {
            name: INTERFACE.to_owned(),
            ifindex: IFINDEX,
            xdp: Some(xdp),
            egress: None,
            problem: None,
        };
        let link = Link {
            ifindex: IFINDEX,
            name: INTERFACE.to_owned(),
            mac: Some(MAC),
            mtu: 1500,
            running: true,
            role: LinkRole::Own,
            xdp: Some(xdp),
            default_route: true,
            subnet: true,
            on_link: std::collections::BTreeSet::new(),
        };
        agent.interfaces(
            &[uplink],
            vec![IFINDEX],
            &Arc::new([link].into_iter().collect::<Links>()),
        );
        let hop = NextHop {
            ifindex: IFINDEX,
            src: MAC,
            dst: [2, 0, 0, 0, 0, 2],
            mtu: 1500,
        };
        let hops: NextHops = (0..NODES)
            .map(|number| (IpAddr::V4(objects::node_address(number)), Ok(hop)))
            .collect();
        agent.next_hops(Arc::new(hops));
        let now = Instant::now();
        let alive = Peer {
            state: State::Alive,
            since: now,
            condition: Condition {
                tables: 0,
                is_fresh: true,
                is_ready: true,
            },
        };
        let peers = (0..BALANCERS).filter(|number| *number != OWN_NODE);
        let liveness = Liveness {
            peers: peers
                .map(|number| (objects::node_name(number).into(), alive))
                .collect(),
            settled: true,
            ..Liveness::default()
        };
        agent.take_liveness(Arc::new(liveness), now);
        agent.take_secret(
            ClusterSecrets::random().map_err(|error| error.to_string()),
            now,
        );
        Ok(Self { agent, fresh })
    }

    /// Works until everything is applied; what the agent's loop does after each event is done too.
    pub(super) fn settle(&mut self) -> anyhow::Result<()> {
        let start = Instant::now();
        loop {
            self.agent.work(Instant::now());
            std::hint::black_box((
                self.agent.node_object(),
                self.agent.members(),
                self.agent.telling(),
            ));
            if self.fresh.is() {
                return Ok(());
            }
            ensure!(
                start.elapsed() < LIMIT,
                "the agent is not ready: {:?}",
                self.agent.not_ready_because()
            );
        }
    }

    /// From complete lists to tables in the maps.
    pub(super) fn start(&mut self, lists: Vec<Event>, tables: Event) -> anyhow::Result<Duration> {
        let start = Instant::now();
        let now = Instant::now();
        self.agent.take_objects(lists, now);
        self.agent.take_objects(vec![tables], now);
        self.agent.listed(now);
        self.settle()?;
        Ok(start.elapsed())
    }
}
