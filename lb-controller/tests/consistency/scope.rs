//! What a run explores: pods and their nodes, the versions that the manager writes, what may happen how often, and what is
//! left out of the protocol.

use std::net::Ipv4Addr;
use std::sync::{Arc, LazyLock};

use jiff::Timestamp;
use lb_controller::api::service_table::{Family, Port, Protocol, ServiceTableSpec};
use lb_controller::model::assignment::{self, Input, Waiting};
use lb_controller::model::candidate::Candidate;
use lb_controller::model::findable::Finder;
use lb_controller::model::maglev;
use lb_controller::model::pins::{FlowKey, PinnedPod};
use lb_controller::model::retire::{Proposal, proposal};
use lb_controller::model::secret::hash_key;
use lb_controller::model::shape::{HashFields, Weight};
use lb_controller::model::slot::Slots;
use lb_controller::model::table::{self, Group};

use super::packets::{CLIENT, POD_PORT, VIP};
use super::world::NODES_MAX;

/// Number of a node.
pub(crate) type NodeNo = usize;
/// Number of a pod.
pub(crate) type PodNo = usize;

/// A part of the protocol that is left out: each must be missed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Without {
    Relay,
    HoldBack,
    SequenceNumbers,
    PinsAtRelays,
    SuspectsLast,
    StickySyn,
    StreamsInFresh,
    BaseVersionEverywhere,
    HalfOpenInRetirement,
    AcknowledgementAndWatermark,
}

/// What may happen, and how often.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(crate) struct Events {
    /// SYNs of the client: the first and those sent again, late ones included.
    pub(crate) syns: u8,
    /// Its other packets.
    pub(crate) data: u8,
    /// The manager retires the last version's history.
    pub(crate) retirement: bool,
    /// An agent dies (and may start again).
    pub(crate) agents: u8,
    /// A machine dies for good.
    pub(crate) machines: u8,
    /// A node suspects another that lives.
    pub(crate) suspicions: u8,
    /// A node sees, before the manager says so, that the current occupant of the first version cannot serve …
    pub(crate) shunned: u8,
    /// … or that the last pod exists.
    pub(crate) learnt: u8,
}

/// A configuration.
#[derive(Clone, Debug)]
pub(crate) struct Scope {
    /// The node of each pod.
    pub(crate) homes: Vec<NodeNo>,
    pods: Vec<PinnedPod>,
    pub(crate) nodes: usize,
    pub(crate) events: Events,
    pub(crate) without: Option<Without>,
    /// The versions, oldest first.
    pub(crate) versions: Vec<Version>,
    /// Retires the last version's history, and is the last version then.
    pub(crate) proposal: Option<Proposal>,
    /// Pods that nodes know though no version names them from the start.
    pub(crate) known: u8,
}

/// A version of the Service's table.
#[derive(Clone, Debug)]
pub(crate) struct Version {
    pub(crate) table: Arc<ServiceTableSpec>,
    pub(crate) finder: Finder,
    pub(crate) current: PodNo,
    pub(crate) older: Vec<PodNo>,
}

/// Names of nodes, made once.
static NAMES: LazyLock<[Arc<str>; NODES_MAX]> =
    LazyLock::new(|| std::array::from_fn(|node| format!("n{node}").into()));

pub(crate) fn node_name(node: NodeNo) -> &'static Arc<str> {
    &NAMES[node]
}

pub(crate) fn node_address(node: NodeNo) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, 1 + node as u8)
}

pub(crate) fn pod_address(pod: PodNo) -> Ipv4Addr {
    Ipv4Addr::new(10, 1, 0, 1 + pod as u8)
}

/// The sequence number of a pod's SYN-ACK.
pub(crate) fn isn(pod: PodNo) -> u32 {
    1000 * (1 + pod as u32)
}

/// The client's flow.
pub(crate) fn flow() -> FlowKey {
    let client = (CLIENT.0, CLIENT.1).into();
    FlowKey::new(6, client, (VIP.0, VIP.1).into()).expect("both are IPv4")
}

impl Scope {
    /// One slot whose occupants follow each other, a version each. Pods are numbered in the order of `homes`.
    pub(crate) fn new(homes: &[NodeNo], occupants: &[PodNo], events: Events) -> Self {
        let pods = homes.iter().zip(0..).map(|(home, pod)| PinnedPod {
            uid: ["pod-a", "pod-b", "pod-c"][pod].into(),
            node: node_name(*home).clone(),
            address: pod_address(pod).into(),
            port: POD_PORT,
        });
        let mut scope = Self {
            homes: homes.to_vec(),
            pods: pods.collect(),
            nodes: homes.iter().max().map_or(0, |last| last + 1),
            events,
            without: None,
            versions: Vec::new(),
            proposal: None,
            known: occupants.iter().fold(0, |known, pod| known | 1 << pod),
        };
        let mut slots = Slots::none(HashFields::FiveTuple);
        for (second, pod) in (0..).zip(occupants) {
            let usable = [(scope.candidate(*pod), Weight::ONE)].into();
            let input = Input {
                usable: &usable,
                fields: HashFields::FiveTuple,
                dead: &|_| false,
                now: Timestamp::from_second(second).expect("a second after 1970"),
            };
            assignment::assign(&mut slots, &mut Waiting::default(), &input);
            let group = Group {
                family: Family::IPv4,
                ports: vec![Port {
                    name: String::new(),
                    port: VIP.1,
                    protocol: Protocol::Tcp,
                }],
                slots: slots.clone(),
            };
            let number = 1 + scope.versions.len() as u64;
            let table = table::encode("uid", number, &[VIP.0.into()], &[group]);
            let version = scope.version(table, &slots);
            scope.versions.push(version);
        }
        if events.retirement {
            scope.retire();
        }
        scope
    }

    /// The same with more nodes, which have no pods.
    pub(crate) fn with_nodes(self, nodes: usize) -> Self {
        Self { nodes, ..self }
    }

    /// The same without a part of the protocol.
    pub(crate) fn without(&self, without: Without) -> Self {
        Self {
            without: Some(without),
            ..self.clone()
        }
    }

    pub(crate) fn lacks(&self, part: Without) -> bool {
        self.without == Some(part)
    }

    /// A version and those before it, whose occupants have left when it is written.
    pub(crate) fn until(&self, version: usize) -> (&[Version], &Version) {
        (&self.versions[..version], &self.versions[version])
    }

    fn retire(&mut self) {
        let Some(last) = self.versions.last() else {
            return;
        };
        let proposal = proposal(&last.table, &|_| true)
            .expect("it was encoded")
            .expect("there is history");
        let mut table = proposal.table.clone();
        table.version += 1;
        let groups = table::decode(&table).expect("it was encoded");
        let version = self.version(table, &groups[0].slots);
        self.versions.push(version);
        self.proposal = Some(proposal);
    }

    fn version(&self, table: ServiceTableSpec, slots: &Slots) -> Version {
        let pod = |number: u32| {
            let candidate = &slots.candidates[number as usize];
            let pods = 0..self.homes.len();
            pods.into_iter()
                .find(|pod| self.candidate(*pod) == *candidate)
                .expect("a version names our pods")
        };
        let slot = &slots.slots[0];
        Version {
            finder: Finder::new(&table, hash_key(&[0; 32]), maglev::rows).expect("it was encoded"),
            table: Arc::new(table),
            current: pod(slot.current.expect("somebody serves")),
            older: slot.older.iter().map(|older| pod(*older)).collect(),
        }
    }

    fn candidate(&self, pod: PodNo) -> Candidate {
        let PinnedPod {
            uid,
            node,
            address,
            port,
        } = self.pod(pod).clone();
        Candidate {
            uid,
            node,
            address,
            ports: [port].into(),
        }
    }

    /// A pod as pins name it.
    pub(crate) fn pod(&self, pod: PodNo) -> &PinnedPod {
        &self.pods[pod]
    }

    pub(crate) fn pods_of(&self, node: NodeNo) -> impl Iterator<Item = PodNo> + '_ {
        (0..self.homes.len()).filter(move |pod| self.homes[*pod] == node)
    }
}
