//! What the tables of one node hold when a packet comes: two nodes' worth of names, and few of each.
//!
//! Every flow of a family leads to the same slot: tables have one row. Slots 0 to 2 (IPv4) and 3 to 5 (IPv6) are those of
//! the current table and of two previous ones. TCP port 80, UDP port 53 and SCTP port 8080 of the VIPs are one group of pods, port
//! 8080.
//! One file, since every case builds on these names and a reader of one wants all of them in view.

use std::net::IpAddr;

use lb_ebpf::abi::{
    Backend, FirstPod, Flow, HEADER_MAX, HalfOpen, LocalKey, LocalPod, SLOT_DEVIATES, ServiceEntry,
    ServiceKey4, ServiceKey6, Set, Slot, Stamp, TICK_SHIFT, TableRef, Tuple, backend_flag,
    service_flag,
};
use lb_ebpf::tables::memory::Memory;
use lb_ebpf::wire::{Addr6, Be16, Be32, Ports};

use super::packet::{self, Encap, Ip, NODE, Named, Sctp, Tcp, Udp};

pub(crate) const SECRET: [u8; 8] = [0xa0, 0xa1, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7];
pub(crate) const OLD_SECRET: [u8; 8] = [0xb0, 0xb1, 0xb2, 0xb3, 0xb4, 0xb5, 0xb6, 0xb7];
pub(crate) const HTTP: u16 = 80;
pub(crate) const DNS: u16 = 53;
/// A second port of the VIPs for the same pods.
pub(crate) const HTTP_ALSO: u16 = 81;
pub(crate) const POD_PORT: u16 = 8080;
pub(crate) const CLIENT_PORT: u16 = 40_000;
/// What the clock of the host says; a time of its own, with room before it.
pub(crate) const NOW_NS: u64 = 1_000_000_000_000;
pub(crate) const SECOND: u64 = 1_000_000_000;
const ROUTER_MTU: u16 = 1500;

/// Where the other ends are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Net {
    V4,
    V6,
}

impl Net {
    pub(crate) const BOTH: [Self; 2] = [Self::V4, Self::V6];

    pub(crate) fn client(self) -> IpAddr {
        match self {
            Self::V4 => packet::v4(203, 0, 113, 7),
            Self::V6 => packet::v6(0xc, 7),
        }
    }
    pub(crate) fn vip(self) -> IpAddr {
        match self {
            Self::V4 => packet::v4(198, 51, 100, 1),
            Self::V6 => packet::v6(0xf, 1),
        }
    }
    /// The address of a node; this one is number 1.
    pub(crate) fn node(self, number: u8) -> IpAddr {
        match self {
            Self::V4 => packet::v4(192, 0, 2, number),
            Self::V6 => packet::v6(0, number.into()),
        }
    }
    /// Client to VIP.
    pub(crate) fn ip(self) -> Ip {
        Ip::new(self.client(), self.vip())
    }
    /// Client to pod, as a packet is delivered.
    pub(crate) fn ip_to(self, pod: Pod) -> Ip {
        Ip::new(self.client(), pod.address(self))
    }
    /// VIP to client.
    pub(crate) fn ip_back(self) -> Ip {
        Ip::new(self.vip(), self.client())
    }
    /// Pod to client, as the pod answers.
    pub(crate) fn ip_from(self, pod: Pod) -> Ip {
        Ip::new(pod.address(self), self.client())
    }
}

/// A pod: number on its node, and the node. Node 1 is this one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Pod(pub(crate) u8, pub(crate) u8);

pub(crate) const L1: Pod = Pod(1, 1);
pub(crate) const L2: Pod = Pod(2, 1);
pub(crate) const L3: Pod = Pod(3, 1);
pub(crate) const R2: Pod = Pod(1, 2);
pub(crate) const R3: Pod = Pod(1, 3);
pub(crate) const R4: Pod = Pod(1, 4);
pub(crate) const R5: Pod = Pod(1, 5);
pub(crate) const R6: Pod = Pod(1, 6);
pub(crate) const R7: Pod = Pod(1, 7);
pub(crate) const R8: Pod = Pod(1, 8);
pub(crate) const PODS: [Pod; 10] = [L1, L2, L3, R2, R3, R4, R5, R6, R7, R8];

impl Pod {
    pub(crate) fn address(self, net: Net) -> IpAddr {
        match net {
            Net::V4 => packet::v4(10, self.1, 0, self.0),
            Net::V6 => packet::v6(0x100 + u16::from(self.1), self.0.into()),
        }
    }
    pub(crate) fn identity(self) -> u32 {
        0xb0d0_0000 | u32::from(self.1) << 8 | u32::from(self.0)
    }
    pub(crate) fn backend(self, net: Net) -> u32 {
        let place = PODS
            .iter()
            .position(|pod| *pod == self)
            .expect("one of them") as u32;
        1 + 2 * place + u32::from(net == Net::V6)
    }
    pub(crate) fn named(self, net: Net) -> Named {
        Named {
            address: self.address(net),
            port: POD_PORT,
            identity: self.identity(),
        }
    }
    pub(crate) fn is_local(self) -> bool {
        self.1 == 1
    }
    /// What a balancer sends for this pod from node `from`, as this node gets it.
    pub(crate) fn sent_by(self, net: Net, from: u8) -> Encap {
        self.sent_over(net, net, from)
    }
    /// The same over an outer header of any family.
    pub(crate) fn sent_over(self, net: Net, outer: Net, from: u8) -> Encap {
        Encap {
            macs: (NODE, packet::ROUTER),
            from: outer.node(from),
            to: outer.node(self.1),
            source_port: 50_000,
            pod: self.named(net),
            mark: 0,
            asked: Vec::new(),
            secret: SECRET,
            class: 0,
        }
    }
}

/// MAC address of another node.
pub(crate) fn mac(node: u8) -> [u8; 6] {
    [2, 0, 0, 0, 1, node]
}

pub(crate) fn be32(address: IpAddr) -> Be32 {
    match address {
        IpAddr::V4(address) => Be32::from_bytes(address.octets()),
        IpAddr::V6(_) => panic!("IPv4 is meant"),
    }
}

pub(crate) fn addr6(address: IpAddr) -> Addr6 {
    match address {
        IpAddr::V4(address) => Addr6::mapped(Be32::from_bytes(address.octets())),
        IpAddr::V6(address) => Addr6::from_bytes(address.octets()),
    }
}

/// A backend's value: by this file's own hand, compared with the controller's in its tests.
pub(crate) fn backend(pod: Pod, net: Net, outer: Net) -> Backend {
    backend_at(1, pod, net, outer)
}

/// The same as another node has it.
pub(crate) fn backend_at(node: u8, pod: Pod, net: Net, outer: Net) -> Backend {
    let is_local = pod.1 == node;
    let outer = if is_local { Net::V4 } else { outer };
    let (local, hop) = if is_local {
        (backend_flag::LOCAL, ([0; 6], [0; 6]))
    } else {
        (0, (mac(pod.1), NODE))
    };
    let encap = Encap {
        macs: hop,
        source_port: 0,
        ..pod.sent_over(net, outer, node)
    };
    let mut bytes = encap.around(&[]);
    let len_at = match outer {
        // Header checksum: the sum without total length, not inverted.
        Net::V4 => {
            bytes[16..18].fill(0);
            bytes[24..26].fill(0);
            let sum = !packet::checksum(&bytes[14..34]);
            bytes[24..26].copy_from_slice(&sum.to_be_bytes());
            38
        }
        Net::V6 => {
            bytes[18..20].fill(0);
            58
        }
    };
    bytes[len_at..len_at + 2].fill(0);
    let mut header = [0; HEADER_MAX];
    header[..bytes.len()].copy_from_slice(&bytes);
    let outer_flag = if outer == Net::V6 {
        backend_flag::OUTER_V6
    } else {
        0
    };
    let inner_flag = if net == Net::V6 {
        backend_flag::INNER_V6
    } else {
        0
    };
    Backend {
        ifindex: 0,
        mtu: if is_local { u16::MAX } else { ROUTER_MTU },
        header_len: bytes.len() as u8,
        flags: local | outer_flag | inner_flag,
        identity: pod.identity(),
        port: Be16::new(POD_PORT),
        pad: 0,
        header,
    }
}

/// A named state of the tables.
#[derive(Debug)]
pub(crate) struct Scene {
    /// What a reader is told about it.
    pub(crate) name: String,
    pub(crate) tables: Memory,
}

impl Scene {
    /// VIPs without pods.
    pub(crate) fn empty() -> Self {
        let mut tables = Memory::new();
        let words = |bytes: [u8; 8]| {
            [0, 4].map(|at| {
                Be32::from_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
            })
        };
        let config = &mut tables.config;
        for (place, key) in config.hash_key.iter_mut().enumerate() {
            *key = (place as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
        config.secrets = [words(SECRET), words(OLD_SECRET)];
        config.relays_per_second = 1_000_000;
        config.icmp_errors_per_second = 1_000_000;
        config.half_open_reports_per_second = 1_000_000;
        config.node4 = be32(Net::V4.node(1));
        config.node6 = addr6(Net::V6.node(1));
        config.geneve_port = Be16::new(6081);
        (config.mss4, config.mss6) = (1376, 1324);
        tables.rows = (0..3).map(|slot| [slot; 4]).collect();
        tables.slots = vec![Slot::default(); 6];
        tables.stamp = Stamp {
            stamped_ns: NOW_NS,
            fresh_since_ns: NOW_NS - 100 * SECOND,
        };
        tables.now_ns.set(NOW_NS);
        for node in 2..=8 {
            tables.peers.insert(addr6(Net::V4.node(node)));
            tables.peers.insert(addr6(Net::V6.node(node)));
        }
        let mut scene = Self {
            name: String::from("no pods"),
            tables,
        };
        scene.add_services();
        scene.add_pods();
        scene
    }

    fn add_services(&mut self) {
        let ports = [(HTTP, 6), (HTTP_ALSO, 6), (DNS, 17), (POD_PORT, 132)];
        for (place, (port, proto)) in ports.into_iter().enumerate() {
            let entry = ServiceEntry {
                id: place as u32 + 1,
                flags: service_flag::STREAMS_UP,
                slot_count: 3,
                current: TableRef {
                    rows: 0,
                    size: 1,
                    fields: 0,
                },
                ..ServiceEntry::default()
            };
            self.add_service(port, proto, entry);
        }
        let marker = ServiceEntry {
            flags: service_flag::VIP,
            ..ServiceEntry::default()
        };
        self.add_service(0, 0, marker);
    }

    fn add_service(&mut self, port: u16, proto: u8, entry: ServiceEntry) {
        let port = Be16::new(port);
        self.tables.v4.services.insert(
            ServiceKey4 {
                addr: be32(Net::V4.vip()),
                port,
                proto,
                pad: 0,
            },
            ServiceEntry { slots: 0, ..entry },
        );
        self.tables.v6.services.insert(
            ServiceKey6 {
                addr: addr6(Net::V6.vip()),
                port,
                proto,
                pad: 0,
            },
            ServiceEntry { slots: 3, ..entry },
        );
    }

    fn add_pods(&mut self) {
        for pod in PODS {
            for net in Net::BOTH {
                self.tables
                    .backends
                    .insert(pod.backend(net), backend(pod, net, net));
            }
            if pod.is_local() {
                self.add_local(pod);
            }
        }
    }

    fn add_local(&mut self, pod: Pod) {
        let port = Be16::new(POD_PORT);
        let local = |net| LocalPod {
            identity: pod.identity(),
            backend: pod.backend(net),
        };
        let addr = be32(pod.address(Net::V4));
        self.tables
            .v4
            .locals
            .insert(LocalKey { addr, port, pad: 0 }, local(Net::V4));
        let addr = addr6(pod.address(Net::V6));
        self.tables
            .v6
            .locals
            .insert(LocalKey { addr, port, pad: 0 }, local(Net::V6));
    }

    /// The slot of the current table: its occupant, and older ones.
    pub(crate) fn current(first: Pod, older: &[Pod]) -> Self {
        Self::empty()
            .named(&format!("{first}, older {}", names(older)))
            .occupied(0, first, older)
    }

    /// The slot of a previous table (1 or 2).
    pub(crate) fn previous(mut self, number: usize, first: Pod, older: &[Pod]) -> Self {
        let table = TableRef {
            rows: 4 * number as u32,
            size: 1,
            fields: 0,
        };
        for entry in self
            .tables
            .v4
            .services
            .values_mut()
            .chain(self.tables.v6.services.values_mut())
        {
            entry.previous[number - 1] = table;
        }
        let name = format!("{}; before {first}, older {}", self.name, names(older));
        self.occupied(number as u32, first, older).named(&name)
    }

    fn occupied(mut self, slot: u32, first: Pod, older: &[Pod]) -> Self {
        for (net, base) in [(Net::V4, 0), (Net::V6, 3)] {
            let id = 1 + base + slot;
            let mut set = Set::default();
            for (place, pod) in set.older.iter_mut().zip(older) {
                *place = pod.backend(net);
            }
            self.tables.sets.insert(id, set);
            self.tables.slots[(base + slot) as usize] = Slot {
                first: first.backend(net),
                set: id,
            };
        }
        self
    }

    /// No pod of the current slot takes new flows: it deviates from the newest older one to nobody.
    pub(crate) fn vacant(self) -> Self {
        self.but("the current pod is not usable", |tables| {
            for (slot, id) in [(0, 1), (3, 4)] {
                tables.slots[slot] = Slot {
                    first: 0,
                    set: id | SLOT_DEVIATES,
                };
                let set = tables.sets.get_mut(&id).expect("made with the slot");
                let [newest, older, oldest] = set.older;
                (set.current, set.older) = (newest, [older, oldest, 0]);
            }
        })
    }

    pub(crate) fn named(mut self, name: &str) -> Self {
        self.name = String::from(name);
        self
    }

    /// Anything else, and what it is.
    pub(crate) fn but(mut self, what: &str, change: impl FnOnce(&mut Memory)) -> Self {
        change(&mut self.tables);
        self.name = format!("{}; {what}", self.name);
        self
    }

    /// All outer headers in one family.
    pub(crate) fn outer(self, outer: Net) -> Self {
        self.but(&format!("outer {outer:?}"), |tables| {
            for pod in PODS {
                for net in Net::BOTH {
                    tables
                        .backends
                        .insert(pod.backend(net), backend(pod, net, outer));
                }
            }
        })
    }

    /// An established flow of a client with a pod, through a port of the VIP.
    pub(crate) fn flow(self, pod: Pod, proto: Proto) -> Self {
        self.flow_with(pod, proto, 0, 0)
    }

    /// The same with what both sides have ended.
    pub(crate) fn flow_with(self, pod: Pod, proto: Proto, client: u8, pod_side: u8) -> Self {
        let what = format!("{proto:?} flow with {pod}, client {client}, pod {pod_side}");
        self.but(&what, |tables| {
            let seen = (NOW_NS >> TICK_SHIFT) as u32;
            let vip_port = Be16::new(proto.port());
            let (vip, key) = (be32(Net::V4.vip()), key4(pod, proto));
            let (identity, pod, flags) = (pod.identity(), (pod, pod_side), 0);
            let flow = Flow {
                seen,
                vip,
                vip_port,
                client,
                pod: pod.1,
                identity,
                flags,
            };
            tables.v4.flows.borrow_mut().insert(key, flow);
            let (vip, key) = (addr6(Net::V6.vip()), key6(pod.0, proto));
            let flow = Flow {
                seen,
                vip,
                vip_port,
                client,
                pod: pod.1,
                identity,
                flags,
            };
            tables.v6.flows.borrow_mut().insert(key, flow);
        })
    }

    /// A half-open flow, with the number of its SYN-ACK if the pod has answered.
    pub(crate) fn half_open(self, pod: Pod, proto: Proto, isn: Option<u32>) -> Self {
        let what = format!("half-open {proto:?} flow with {pod}, SYN-ACK {isn:?}");
        self.but(&what, |tables| {
            let seen = (NOW_NS >> TICK_SHIFT) as u32;
            let vip_port = Be16::new(proto.port());
            let (answers, isn) = (u8::from(isn.is_some()), [isn.unwrap_or(0), 0]);
            let high = if answers > 0 { isn[0] + 1 } else { 0 };
            let (identity, mark) = (pod.identity(), 0);
            let vip = be32(Net::V4.vip());
            let entry = HalfOpen {
                seen,
                vip,
                vip_port,
                answers,
                mark,
                identity,
                isn,
                high,
            };
            tables
                .v4
                .half_open
                .borrow_mut()
                .insert(key4(pod, proto), entry);
            let vip = addr6(Net::V6.vip());
            let entry = HalfOpen {
                seen,
                vip,
                vip_port,
                answers,
                mark,
                identity,
                isn,
                high,
            };
            tables
                .v6
                .half_open
                .borrow_mut()
                .insert(key6(pod, proto), entry);
        })
    }

    /// The pod that has answered the client's SYN.
    pub(crate) fn first(self, pod: Pod) -> Self {
        self.but(&format!("first SYN to {pod}"), |tables| {
            let (port, pad, identity) = (Be16::new(POD_PORT), 0, pod.identity());
            let value = FirstPod {
                pod: be32(pod.address(Net::V4)),
                port,
                pad,
                identity,
            };
            tables
                .v4
                .first
                .borrow_mut()
                .insert(vip_key4(Proto::Tcp), value);
            let value = FirstPod {
                pod: addr6(pod.address(Net::V6)),
                port,
                pad,
                identity,
            };
            tables
                .v6
                .first
                .borrow_mut()
                .insert(vip_key6(Proto::Tcp), value);
        })
    }

    /// The client's flow was held back that long ago.
    pub(crate) fn held(self, ago_ns: u64) -> Self {
        self.but(
            &format!("held back {} ms ago", ago_ns / 1_000_000),
            |tables| {
                tables
                    .v4
                    .held
                    .borrow_mut()
                    .insert(vip_key4(Proto::Tcp), NOW_NS - ago_ns);
                tables
                    .v6
                    .held
                    .borrow_mut()
                    .insert(vip_key6(Proto::Tcp), NOW_NS - ago_ns);
            },
        )
    }
}

fn names(pods: &[Pod]) -> String {
    if pods.is_empty() {
        return String::from("none");
    }
    pods.iter()
        .map(Pod::to_string)
        .collect::<Vec<_>>()
        .join(" ")
}

impl std::fmt::Display for Pod {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}{}",
            if self.is_local() { "L" } else { "R" },
            if self.is_local() { self.0 } else { self.1 }
        )
    }
}

/// The services of the scenes. (The first has a second port.)
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Proto {
    Tcp,
    Udp,
    /// On the pods' own port, as SCTP must be.
    Sctp,
}

impl Proto {
    pub(crate) const BOTH: [Self; 2] = [Self::Tcp, Self::Udp];

    pub(crate) fn port(self) -> u16 {
        match self {
            Self::Tcp => HTTP,
            Self::Udp => DNS,
            Self::Sctp => POD_PORT,
        }
    }
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
    /// A client's packet in the middle of a flow.
    pub(crate) fn packet(self, ip: &Ip, to: u16) -> Vec<u8> {
        ip.around(self.number(), &self.bytes(ip, CLIENT_PORT, to))
    }
    /// A pod's answer in the middle of a flow.
    pub(crate) fn answer(self, ip: &Ip, from: u16) -> Vec<u8> {
        ip.around(self.number(), &self.bytes(ip, from, CLIENT_PORT))
    }
    /// Header and data.
    pub(crate) fn bytes(self, ip: &Ip, from: u16, to: u16) -> Vec<u8> {
        match self {
            Self::Tcp => Tcp {
                data: b"GET / HTTP/1.1\r\n\r\n".to_vec(),
                ..Tcp::new(from, to, packet::ACK | packet::PSH)
            }
            .bytes(ip),
            Self::Udp => Udp::new(from, to, b"an odd number of bytes, odd").bytes(ip),
            Self::Sctp => Sctp::new(from, to, 5001, packet::DATA, b"a datum of 16 b.").bytes(),
        }
    }
}

fn ports(to: u16) -> Ports {
    Ports {
        src: Be16::new(CLIENT_PORT),
        dst: Be16::new(to),
    }
}

/// Client and pod.
pub(crate) fn key4(pod: Pod, proto: Proto) -> Tuple<Be32> {
    Tuple {
        src: be32(Net::V4.client()),
        dst: be32(pod.address(Net::V4)),
        ports: ports(POD_PORT),
        proto: proto.number(),
        pad: [0; 3],
    }
}

pub(crate) fn key6(pod: Pod, proto: Proto) -> Tuple<Addr6> {
    Tuple {
        src: addr6(Net::V6.client()),
        dst: addr6(pod.address(Net::V6)),
        ports: ports(POD_PORT),
        proto: proto.number(),
        pad: [0; 3],
    }
}

/// Client and VIP.
pub(crate) fn vip_key4(proto: Proto) -> Tuple<Be32> {
    Tuple {
        dst: be32(Net::V4.vip()),
        ports: ports(proto.port()),
        ..key4(L1, proto)
    }
}

pub(crate) fn vip_key6(proto: Proto) -> Tuple<Addr6> {
    Tuple {
        dst: addr6(Net::V6.vip()),
        ports: ports(proto.port()),
        ..key6(L1, proto)
    }
}
