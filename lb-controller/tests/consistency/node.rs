//! One node's packets: its maps in plain memory, the real packet path over them, and what that has written.
//!
//! Time. A packet meets the clock at [`NOW`]. What was held back before was so for as long as it must be, unless something is
//! under way that takes less than that: gossip, and pins of deviations on streams that are up.

use lb_controller::model::template::{self, NextHop, NodeAddresses, Place, PodPort, Sender};
use lb_ebpf::abi::{
    HOLD_BACK_MIN_NS, LocalKey, LocalPod, Pin, SLOT_DEVIATES, ServiceEntry, ServiceKey4, Set, Slot,
    Stamp, TableRef, Tuple, backend_flag, config_flag, service_flag,
};
use lb_ebpf::tables::memory::Memory;
use lb_ebpf::wire::{Addr6, Be16, Be32, Ports, protocol};

use super::packets::{self, CLIENT, Fate, Kind, POD_PORT, VIP};
use super::scope::{NodeNo, PodNo, Scope, Without, isn, node_address, pod_address};
use super::world::{Fault, Held, Maps, Packet, World};

/// What clocks say whenever a packet comes.
const NOW: u64 = 1_000_000_000_000;
const MS: u64 = 1_000_000;
/// How long before that a packet was held back that may be delivered now.
const HELD_MS: u64 = HOLD_BACK_MIN_NS / MS + 1;
/// How long before that something was that has just happened.
const SOON_MS: u64 = 50;

/// The backend id of a pod, the same on every node.
pub(crate) fn backend_id(pod: PodNo) -> u32 {
    1 + pod as u32
}

fn be32(address: std::net::Ipv4Addr) -> Be32 {
    Be32::from_bytes(address.octets())
}

/// The flow's key at its pod.
fn flow_key(pod: PodNo) -> Tuple<Be32> {
    Tuple {
        src: be32(CLIENT.0),
        dst: be32(pod_address(pod)),
        ports: Ports {
            src: Be16::new(CLIENT.1),
            dst: Be16::new(POD_PORT),
        },
        proto: protocol::TCP,
        pad: [0; 3],
    }
}

/// The flow's key at balancers.
fn vip_key() -> Tuple<Be32> {
    Tuple {
        dst: be32(VIP.0),
        ports: Ports {
            src: Be16::new(CLIENT.1),
            dst: Be16::new(VIP.1),
        },
        ..flow_key(0)
    }
}

/// Whether a packet comes from the client or from another node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Entry {
    Client,
    Relay,
}

impl World {
    /// A packet of the client enters at a node. Answers the pod that gets it now.
    pub(crate) fn enter(&mut self, scope: &Scope, node: NodeNo, bytes: &[u8]) -> Option<PodNo> {
        self.packet(scope, node, bytes, Entry::Client)
    }

    /// A packet of another node arrives.
    pub(crate) fn arrive(&mut self, scope: &Scope, Packet { to, bytes }: &Packet) -> Option<PodNo> {
        self.packet(scope, *to, bytes, Entry::Relay)
    }

    fn packet(&mut self, scope: &Scope, node: NodeNo, bytes: &[u8], entry: Entry) -> Option<PodNo> {
        let mut memory = self.memory(scope, node);
        if let Some(part) = scope.without {
            self.leave_out(part, &mut memory, entry);
        }
        let fate = packets::run(bytes, &memory);
        self.read_back(node, &memory);
        match fate {
            Fate::Delivered(bytes) => return Some(self.deliver(scope, node, &bytes)),
            Fate::Sent(bytes) => {
                let to = packets::destination(&bytes);
                let to = (0..self.nodes.len()).find(|node| node_address(*node) == to);
                match to {
                    Some(to) => self.send(Packet { to, bytes }),
                    // A refusal, sent to the client.
                    None => self.fault = self.fault.or(self.client.owner.map(|_| Fault::Reset)),
                }
            }
            Fate::Dropped(_) => {}
        }
        None
    }

    /// A pod gets a packet.
    fn deliver(&mut self, scope: &Scope, node: NodeNo, bytes: &[u8]) -> PodNo {
        let to = packets::destination(bytes);
        let pod = scope.pods_of(node).find(|pod| pod_address(*pod) == to);
        let pod = pod.expect("only pods of the node are delivered to");
        match packets::kind(bytes) {
            Kind::Syn => {
                let maps = &self.nodes[node].maps;
                let has = |other: &PodNo| {
                    maps.flows[*other].is_some()
                        || maps.half_open[*other].is_some_and(|half_open| half_open.answers > 0)
                };
                if scope.pods_of(node).any(|other| other != pod && has(&other)) {
                    self.fault = Some(Fault::Twice);
                }
                let memory = self.memory(scope, node);
                if packets::syn_ack(pod_address(pod), isn(pod), &memory) {
                    self.client.offers |= 1 << pod;
                }
                self.read_back(node, &memory);
            }
            Kind::Data(_) => {
                let owner = self.client.owner.expect("it sends data to somebody");
                if pod != owner && self.machine_lives(scope.homes[owner]) {
                    self.fault = Some(Fault::Reset);
                }
            }
        }
        pod
    }

    /// A node's maps.
    pub(crate) fn memory(&self, scope: &Scope, node: NodeNo) -> Memory {
        let mut memory = Memory::new();
        let maps = &self.nodes[node].maps;
        memory.config.node4 = be32(node_address(node));
        memory.config.geneve_port = Be16::new(lb_ebpf::abi::GENEVE_PORT);
        memory.now_ns.set(NOW);
        for other in 0..self.nodes.len() {
            memory
                .peers
                .insert(Addr6::mapped(be32(node_address(other))));
        }
        let suspected = if scope.lacks(Without::SuspectsLast) {
            0
        } else {
            maps.suspected
        };
        for pod in 0..scope.homes.len() {
            place_pod(&mut memory, scope, node, pod, suspected);
        }
        place_service(&mut memory, scope, maps);
        if maps.pins != [0; 2] {
            memory.v4.pins.insert(
                vip_key(),
                Pin {
                    backends: maps.pins,
                },
            );
        }
        for (pod, flow) in maps.flows.iter().enumerate() {
            if let Some(flow) = flow {
                memory.v4.flows.borrow_mut().insert(flow_key(pod), *flow);
            }
        }
        for (pod, half_open) in maps.half_open.iter().enumerate() {
            if let Some(half_open) = half_open {
                let mut all = memory.v4.half_open.borrow_mut();
                all.insert(flow_key(pod), *half_open);
            }
        }
        if let Some(first) = maps.first {
            memory.v4.first.borrow_mut().insert(vip_key(), first);
        }
        self.place_time(scope, node, &mut memory);
        memory
    }

    /// The stamp, and the first sight of what was held back.
    fn place_time(&self, scope: &Scope, node: NodeNo, memory: &mut Memory) {
        let maps = &self.nodes[node].maps;
        let ago = |ms| NOW - ms * MS;
        let held_ms = match maps.held {
            Some(_) if self.is_news_under_way(scope, node) => SOON_MS,
            Some(_) => HELD_MS,
            None => 0,
        };
        // An agent that is dead has died no earlier than just before the first sight, and its last stamp may count.
        let stamped_ms = match self.nodes[node].agent {
            Some(_) => SOON_MS,
            None => held_ms,
        };
        let fresh_ms = match maps.held {
            Some(held) if !held.same_period => held_ms / 2,
            Some(_) | None => 100 * HELD_MS,
        };
        memory.stamp = Stamp {
            stamped_ns: ago(stamped_ms),
            fresh_since_ns: if maps.fresh { ago(fresh_ms) } else { 0 },
        };
        if maps.held.is_some() {
            let mut held = memory.v4.held.borrow_mut();
            held.insert(vip_key(), ago(held_ms));
        }
    }

    /// What the packet path has written.
    fn read_back(&mut self, node: NodeNo, memory: &Memory) {
        let maps = &mut self.nodes[node].maps;
        for pod in 0..maps.flows.len() {
            maps.flows[pod] = memory.v4.flows.borrow().get(&flow_key(pod)).copied();
            maps.half_open[pod] = memory.v4.half_open.borrow().get(&flow_key(pod)).copied();
        }
        maps.first = memory.v4.first.borrow().get(&vip_key()).copied();
        maps.held = match memory.v4.held.borrow().get(&vip_key()) {
            None => None,
            Some(&NOW) => Some(Held { same_period: true }),
            Some(_) => maps.held,
        };
    }

    /// Takes a part of the protocol out of a node's maps before a packet meets them.
    fn leave_out(&self, part: Without, memory: &mut Memory, entry: Entry) {
        match part {
            Without::Relay => memory.config.flags |= config_flag::RELAY_OFF,
            Without::HoldBack => {
                let first_ns = NOW - HELD_MS * MS;
                memory.v4.held.borrow_mut().insert(vip_key(), first_ns);
                memory.stamp = Stamp {
                    stamped_ns: NOW,
                    fresh_since_ns: first_ns,
                };
            }
            Without::SequenceNumbers => {
                let accepted = self.client.owner.map_or(0, isn);
                let mut all = memory.v4.half_open.borrow_mut();
                for half_open in all.values_mut().filter(|one| one.answers > 0) {
                    half_open.isn[0] = accepted;
                    half_open.high = accepted + 1;
                }
            }
            Without::PinsAtRelays if entry == Entry::Relay => memory.v4.pins.clear(),
            Without::StickySyn => memory.v4.first.borrow_mut().clear(),
            Without::StreamsInFresh => {
                for service in memory.v4.services.values_mut() {
                    service.flags |= service_flag::STREAMS_UP;
                }
            }
            Without::PinsAtRelays
            | Without::SuspectsLast
            | Without::BaseVersionEverywhere
            | Without::HalfOpenInRetirement
            | Without::AcknowledgementAndWatermark => {}
        }
    }
}

fn place_pod(memory: &mut Memory, scope: &Scope, node: NodeNo, pod: PodNo, suspected: u8) {
    let home = scope.homes[pod];
    let addresses = |node| NodeAddresses {
        v4: Some(node_address(node)),
        v6: None,
    };
    let named = scope.pod(pod);
    let pod_port = PodPort {
        address: named.address,
        port: named.port,
        identity: named.identity(),
    };
    let sender = Sender {
        node: addresses(node),
        secret: Default::default(),
        geneve_port: lb_ebpf::abi::GENEVE_PORT,
    };
    let place = if home == node {
        Place::Local
    } else {
        Place::Remote {
            node: addresses(home),
            hop4: Some(NextHop {
                ifindex: 0,
                src: [2; 6],
                dst: [4; 6],
                mtu: 1500,
            }),
            hop6: None,
        }
    };
    let id = backend_id(pod);
    let mut backend = template::backend(&pod_port, &place, &sender);
    if suspected & 1 << home != 0 {
        backend.flags |= backend_flag::SUSPECTED;
    }
    memory.backends.insert(id, backend);
    if home == node {
        let key = LocalKey {
            addr: be32(pod_address(pod)),
            port: Be16::new(POD_PORT),
            pad: 0,
        };
        let local = LocalPod {
            identity: pod_port.identity,
            backend: id,
        };
        memory.v4.locals.insert(key, local);
    }
}

fn place_service(memory: &mut Memory, scope: &Scope, maps: &Maps) {
    let version = &scope.versions[maps.applied];
    let mut set = Set {
        substitute: maps.substitute.map_or(0, backend_id),
        ..Set::default()
    };
    for (place, older) in set.older.iter_mut().zip(&version.older) {
        *place = backend_id(*older);
    }
    let mut slot = Slot {
        first: backend_id(version.current),
        set: 1,
    };
    if let Some(deviates) = maps.deviates {
        set.current = slot.first;
        slot = Slot {
            first: backend_id(deviates),
            set: 1 | SLOT_DEVIATES,
        };
    }
    memory.rows.push([0; 4]);
    memory.slots.push(slot);
    memory.sets.insert(1, set);
    let mut flags = 0;
    if maps.pins != [0; 2] {
        flags |= service_flag::PINS;
    }
    if maps.streams_up {
        flags |= service_flag::STREAMS_UP;
    }
    let key = ServiceKey4 {
        addr: be32(VIP.0),
        port: Be16::new(VIP.1),
        proto: protocol::TCP,
        pad: 0,
    };
    let entry = ServiceEntry {
        id: 1,
        flags,
        slot_count: 1,
        current: TableRef {
            rows: 0,
            size: 1,
            fields: 0,
        },
        ..ServiceEntry::default()
    };
    memory.v4.services.insert(key, entry);
}
