//! Backends as the maps hold them: a pod, its port, and the bytes that go in front of a client's packet.
//!
//! ```text
//! offset  outer IPv4                      outer IPv6
//!      0  Ethernet                        Ethernet                 destination, source, 0x0800 or 0x86dd
//!     14  IPv4 (20)                       IPv6 (40)                see below
//!     34  UDP                          54 UDP                      source port 0, Geneve port, length 0, checksum 0
//!     42  Geneve                       62 Geneve                   version 0 and option words, flags 0x40 (critical
//!                                                                  options), inner EtherType, VNI 1 and a zero byte
//!     50  option header                70 option header            class 0xff42, type 0x81, data words
//!     54  mark, reserved, pod port     74 mark, reserved, port     0, 0, big endian
//!     58  pod address (4 or 16)        78 pod address (4 or 16)
//!      …  identity (4), secret (8)      … identity (4), secret (8)
//! ```
//!
//! Left for the packet path: IPv4 total length, DSCP and ECN, header checksum; IPv6 payload length and traffic class; UDP
//! source port and length; Geneve option words and option data words when asked candidates follow the secret; the mark.
//! The IPv4 checksum field holds the folded one's complement sum (not inverted, native order) of the header with total
//! length, DSCP, ECN and checksum zero, so the packet path adds two words and inverts.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_ebpf::abi::{
    self, Backend, GENEVE_OPTION_CLASS, GENEVE_OPTION_KIND, GENEVE_VNI, HEADER_MAX, backend_flag,
};
use lb_ebpf::checksum;
use lb_ebpf::wire::{Be16, ethertype, protocol};

use super::secret::EncapSecret;

/// Time to live and hop limit of the outer header.
const TTL: u8 = 64;
/// Where the outer IP header begins.
const OUTER_AT: usize = 14;
/// IPv4: don't fragment. The packet path answers what is too big before it gets here.
const DONT_FRAGMENT: u16 = 0x4000;
/// Geneve: the packet has critical options (RFC 8926, section 3.4).
const GENEVE_CRITICAL: u8 = 0x40;
/// Bytes of the option's data without the pod address: mark, reserved, port, identity, secret.
const OPTION_FIXED: usize = 16;

/// A pod and port.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct PodPort {
    /// Address of the pod.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// See [`super::secret::identity`].
    pub identity: u32,
}

/// The addresses of a node, as it sends and is sent to: the first internal one of each family.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct NodeAddresses {
    /// IPv4, if it has one.
    pub v4: Option<Ipv4Addr>,
    /// IPv6, if it has one.
    pub v6: Option<Ipv6Addr>,
}

/// The first address of each family.
impl FromIterator<IpAddr> for NodeAddresses {
    fn from_iter<T: IntoIterator<Item = IpAddr>>(addresses: T) -> Self {
        let mut found = Self::default();
        for address in addresses {
            match address {
                IpAddr::V4(address) => _ = found.v4.get_or_insert(address),
                IpAddr::V6(address) => _ = found.v6.get_or_insert(address),
            }
        }
        found
    }
}

/// A resolved way towards a node: route and neighbour.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct NextHop {
    /// Interface to send from; 0: the one that the packet came in on.
    pub ifindex: u32,
    /// MAC of that interface.
    pub src: [u8; 6],
    /// MAC of the neighbour.
    pub dst: [u8; 6],
    /// MTU of that interface, in bytes of IP packet.
    pub mtu: u16,
}

/// Where a pod is, seen from this node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// On this node.
    Local,
    /// On another node.
    Remote {
        /// Its addresses.
        node: NodeAddresses,
        /// The way to its IPv4 address, if known.
        hop4: Option<NextHop>,
        /// The way to its IPv6 address, if known.
        hop6: Option<NextHop>,
    },
}

/// What all headers of this node have in common.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sender {
    /// Addresses of this node.
    pub node: NodeAddresses,
    /// The secret to send.
    pub secret: EncapSecret,
    /// UDP port of the encapsulation.
    pub geneve_port: u16,
}

/// Both ends of the outer header.
#[derive(Clone, Copy)]
enum Outer {
    V4(Ipv4Addr, Ipv4Addr),
    V6(Ipv6Addr, Ipv6Addr),
}

/// The outer header goes over the pod's family if both nodes have it, else over the other, else nowhere.
fn outer(pod: IpAddr, from: NodeAddresses, to: NodeAddresses) -> Option<Outer> {
    let v4 = from.v4.zip(to.v4).map(|(from, to)| Outer::V4(from, to));
    let v6 = from.v6.zip(to.v6).map(|(from, to)| Outer::V6(from, to));
    match pod {
        IpAddr::V4(_) => v4.or(v6),
        IpAddr::V6(_) => v6.or(v4),
    }
}

/// The value of the `backends` map for a pod and port. Without a common family or a next hop the backend is there, but
/// packets for it are dropped and counted ([`backend_flag::NO_NEXT_HOP`]).
pub fn backend(pod: &PodPort, place: &Place, sender: &Sender) -> Backend {
    let nowhere = Outer::V4(Ipv4Addr::UNSPECIFIED, Ipv4Addr::UNSPECIFIED);
    let (outer, hop, mut flags) = match place {
        Place::Local => {
            let own = sender.node.v4.unwrap_or(Ipv4Addr::UNSPECIFIED);
            (Outer::V4(own, own), None, backend_flag::LOCAL)
        }
        Place::Remote { node, hop4, hop6 } => {
            let outer = outer(pod.address, sender.node, *node);
            let hop = match outer {
                Some(Outer::V4(..)) => *hop4,
                Some(Outer::V6(..)) => *hop6,
                None => None,
            };
            let flags = if hop.is_some() {
                0
            } else {
                backend_flag::NO_NEXT_HOP
            };
            (outer.unwrap_or(nowhere), hop, flags)
        }
    };
    if matches!(outer, Outer::V6(..)) {
        flags |= backend_flag::OUTER_V6;
    }
    if pod.address.is_ipv6() {
        flags |= backend_flag::INNER_V6;
    }
    let header = header(pod, outer, hop.as_ref(), sender);
    Backend {
        ifindex: hop.map_or(0, |hop| hop.ifindex),
        mtu: hop.map_or(u16::MAX, |hop| hop.mtu),
        header_len: header.len as u8,
        flags,
        identity: pod.identity,
        port: Be16::new(pod.port),
        pad: 0,
        header: header.bytes,
    }
}

/// Bytes of a header as it is written.
struct Header {
    bytes: [u8; HEADER_MAX],
    len: usize,
}

impl Header {
    fn put(&mut self, bytes: &[u8]) {
        self.bytes[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }
    fn put16(&mut self, value: u16) {
        self.put(&value.to_be_bytes());
    }
    fn put_address(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(address) => self.put(&address.octets()),
            IpAddr::V6(address) => self.put(&address.octets()),
        }
    }
}

fn header(pod: &PodPort, outer: Outer, hop: Option<&NextHop>, sender: &Sender) -> Header {
    let mut header = Header {
        bytes: [0; HEADER_MAX],
        len: 0,
    };
    let (src, dst) = hop.map_or(([0; 6], [0; 6]), |hop| (hop.src, hop.dst));
    header.put(&dst);
    header.put(&src);
    match outer {
        Outer::V4(from, to) => {
            header.put16(ethertype::IPV4.get());
            put_ipv4(&mut header, from, to);
        }
        Outer::V6(from, to) => {
            header.put16(ethertype::IPV6.get());
            put_ipv6(&mut header, from, to);
        }
    }
    header.put16(0);
    header.put16(sender.geneve_port);
    header.put(&[0; 4]);
    put_geneve(&mut header, pod, sender);
    header
}

fn put_ipv4(header: &mut Header, from: Ipv4Addr, to: Ipv4Addr) {
    let at = header.len;
    header.put(&[0x45, 0, 0, 0, 0, 0]);
    header.put16(DONT_FRAGMENT);
    header.put(&[TTL, protocol::UDP, 0, 0]);
    header.put(&from.octets());
    header.put(&to.octets());
    let sum = checksum::fold(checksum::sum(&header.bytes[at..header.len]));
    header.bytes[at + 10..at + 12].copy_from_slice(&sum.to_ne_bytes());
}

fn put_ipv6(header: &mut Header, from: Ipv6Addr, to: Ipv6Addr) {
    header.put(&[0x60, 0, 0, 0, 0, 0, protocol::UDP, TTL]);
    header.put(&from.octets());
    header.put(&to.octets());
}

fn put_geneve(header: &mut Header, pod: &PodPort, sender: &Sender) {
    let (kind, address_len) = match pod.address {
        IpAddr::V4(_) => (ethertype::IPV4, 4),
        IpAddr::V6(_) => (ethertype::IPV6, 16),
    };
    let data_words = ((OPTION_FIXED + address_len) / 4) as u8;
    header.put(&[1 + data_words, GENEVE_CRITICAL]);
    header.put16(kind.get());
    header.put(&(GENEVE_VNI << 8).to_be_bytes());
    header.put16(GENEVE_OPTION_CLASS);
    header.put(&[GENEVE_OPTION_KIND, data_words, 0, 0]);
    header.put16(pod.port);
    header.put_address(pod.address);
    header.put(&pod.identity.to_be_bytes());
    let [high, low] = sender.secret;
    header.put(&high.to_bytes());
    header.put(&low.to_bytes());
}

/// The pod address and port that a backend's header carries: what is read back from maps after a restart. None if the
/// bytes are no header of ours.
pub fn pod_port(backend: &Backend) -> Option<PodPort> {
    let at = if backend.flags & backend_flag::OUTER_V6 == 0 {
        abi::POD_ADDRESS_V4
    } else {
        abi::POD_ADDRESS_V6
    };
    let address = &backend.header[at..];
    let address: IpAddr = if backend.flags & backend_flag::INNER_V6 == 0 {
        IpAddr::V4(Ipv4Addr::from(*address.first_chunk()?))
    } else {
        IpAddr::V6(Ipv6Addr::from(*address.first_chunk()?))
    };
    let known = backend.identity != 0 && usize::from(backend.header_len) >= at;
    known.then_some(PodPort {
        address,
        port: backend.port.get(),
        identity: backend.identity,
    })
}

/// The node that a backend's packets are sent to; none if it is this one, or nobody knows which.
pub fn node_of(backend: &Backend) -> Option<IpAddr> {
    if backend.flags & backend_flag::LOCAL != 0 {
        return None;
    }
    let node: IpAddr = if backend.flags & backend_flag::OUTER_V6 == 0 {
        Ipv4Addr::from(*backend.header[OUTER_AT + 16..].first_chunk()?).into()
    } else {
        Ipv6Addr::from(*backend.header[OUTER_AT + 24..].first_chunk()?).into()
    };
    (!node.is_unspecified()).then_some(node)
}

#[cfg(test)]
mod tests {
    use super::super::secret::encap_secret;
    use super::*;

    const HOP: NextHop = NextHop {
        ifindex: 7,
        src: [2, 0, 0, 0, 0, 1],
        dst: [2, 0, 0, 0, 0, 2],
        mtu: 1500,
    };

    fn addresses(n: u8) -> NodeAddresses {
        NodeAddresses {
            v4: Some(Ipv4Addr::new(192, 0, 2, n)),
            v6: Some(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, n.into())),
        }
    }

    fn sender() -> Sender {
        Sender {
            node: addresses(1),
            secret: encap_secret([0xa0, 0xa1, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7]),
            geneve_port: 6081,
        }
    }

    fn pod(address: &str) -> PodPort {
        PodPort {
            address: address.parse().unwrap(),
            port: 8080,
            identity: 0xdead_beef,
        }
    }

    fn remote() -> Place {
        Place::Remote {
            node: addresses(2),
            hop4: Some(HOP),
            hop6: Some(HOP),
        }
    }

    fn bytes(backend: &Backend) -> &[u8] {
        &backend.header[..usize::from(backend.header_len)]
    }

    #[test]
    fn ipv4_over_ipv4_byte_by_byte() {
        let backend = backend(&pod("10.1.2.3"), &remote(), &sender());
        let mut expected: Vec<u8> = vec![
            2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x08, 0x00, // Ethernet
            0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2, // IPv4
            0, 0, 0x17, 0xc1, 0, 0, 0, 0, // UDP
            6, 0x40, 0x08, 0x00, 0, 0, 1, 0, // Geneve
            0xff, 0x42, 0x81, 5, 0, 0, 0x1f, 0x90, 10, 1, 2, 3, 0xde, 0xad, 0xbe,
            0xef, // option
            0xa0, 0xa1, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7,
        ];
        // 4500 + 4000 + 4011 + c000 + 0201 + c000 + 0202 = 24914, folded 4916.
        expected[24..26].copy_from_slice(&[0x49, 0x16]);
        assert_eq!(bytes(&backend), expected);
        assert_eq!(
            (
                backend.ifindex,
                backend.mtu,
                backend.header_len,
                backend.flags
            ),
            (7, 1500, 74, 0)
        );
        assert_eq!((backend.identity, backend.port.get()), (0xdead_beef, 8080));
    }

    #[test]
    fn ipv6_over_ipv6_byte_by_byte() {
        let backend = backend(&pod("fd00::17"), &remote(), &sender());
        let mut expected: Vec<u8> = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x86, 0xdd];
        expected.extend([0x60, 0, 0, 0, 0, 0, 17, 64]);
        expected.extend(addresses(1).v6.unwrap().octets());
        expected.extend(addresses(2).v6.unwrap().octets());
        expected.extend([0, 0, 0x17, 0xc1, 0, 0, 0, 0]);
        expected.extend([9, 0x40, 0x86, 0xdd, 0, 0, 1, 0]);
        expected.extend([0xff, 0x42, 0x81, 8, 0, 0, 0x1f, 0x90]);
        expected.extend("fd00::17".parse::<Ipv6Addr>().unwrap().octets());
        expected.extend([0xde, 0xad, 0xbe, 0xef]);
        expected.extend([0xa0, 0xa1, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7]);
        assert_eq!(bytes(&backend), expected);
        assert_eq!(
            backend.flags,
            backend_flag::OUTER_V6 | backend_flag::INNER_V6
        );
        assert_eq!(backend.header_len, 106);
    }

    #[test]
    fn family_outside_is_the_pods_if_both_nodes_have_it_else_the_other() {
        let only4 = NodeAddresses {
            v6: None,
            ..addresses(2)
        };
        let only6 = NodeAddresses {
            v4: None,
            ..addresses(2)
        };
        let to = |node, address| {
            let place = Place::Remote {
                node,
                hop4: Some(HOP),
                hop6: Some(HOP),
            };
            let backend = backend(&pod(address), &place, &sender());
            (backend.header_len, backend.flags)
        };
        assert_eq!(to(only6, "10.1.2.3"), (94, backend_flag::OUTER_V6));
        assert_eq!(to(only4, "fd00::17"), (86, backend_flag::INNER_V6));
    }

    #[test]
    fn without_a_way_the_backend_says_so() {
        let cases = [
            Place::Remote {
                node: addresses(2),
                hop4: None,
                hop6: Some(HOP),
            },
            Place::Remote {
                node: NodeAddresses::default(),
                hop4: Some(HOP),
                hop6: Some(HOP),
            },
        ];
        for place in cases {
            let backend = backend(&pod("10.1.2.3"), &place, &sender());
            assert_eq!(backend.flags, backend_flag::NO_NEXT_HOP);
            assert_eq!(backend.header_len, 74);
        }
    }

    #[test]
    fn local_pods_have_the_ipv4_form() {
        let local4 = backend(&pod("10.1.2.3"), &Place::Local, &sender());
        assert_eq!((local4.flags, local4.header_len), (backend_flag::LOCAL, 74));
        let local6 = backend(&pod("fd00::17"), &Place::Local, &sender());
        assert_eq!(local6.flags, backend_flag::LOCAL | backend_flag::INNER_V6);
        assert_eq!(
            &local6.header[58..74],
            "fd00::17".parse::<Ipv6Addr>().unwrap().octets()
        );
    }

    #[test]
    fn pod_and_port_are_read_back() {
        for address in ["10.1.2.3", "fd00::17"] {
            for place in [Place::Local, remote()] {
                let pod = pod(address);
                assert_eq!(pod_port(&backend(&pod, &place, &sender())), Some(pod));
            }
        }
        assert_eq!(pod_port(&Backend::default()), None);
    }
}
