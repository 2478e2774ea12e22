//! Packets written from scratch, every length and checksum computed over the whole: what the packet path is compared with,
//! so nothing here may use its code.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// MAC address of the router in front of this node.
pub(crate) const ROUTER: [u8; 6] = [2, 0, 0, 0, 0, 0xfe];
/// MAC address of this node.
pub(crate) const NODE: [u8; 6] = [2, 0, 0, 0, 0, 1];

pub(crate) const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
pub(crate) const RST: u8 = 4;
pub(crate) const PSH: u8 = 8;
pub(crate) const ACK: u8 = 16;

/// A chunk of SCTP with data.
pub(crate) const DATA: u8 = 0;
/// The chunk that opens an association.
pub(crate) const INIT: u8 = 1;

const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;

/// RFC 1071, big endian words.
pub(crate) fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// An IP header.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ip {
    pub(crate) src: IpAddr,
    pub(crate) dst: IpAddr,
    /// DSCP and ECN.
    pub(crate) class: u8,
    pub(crate) hops: u8,
    pub(crate) id: u16,
    /// IPv4: may not be fragmented.
    pub(crate) df: bool,
}

impl Ip {
    pub(crate) fn new(src: IpAddr, dst: IpAddr) -> Self {
        Self {
            src,
            dst,
            class: 0,
            hops: 61,
            id: 0x1234,
            df: true,
        }
    }

    fn pseudo_header(&self, proto: u8, len: usize) -> Vec<u8> {
        let mut bytes = [octets(self.src), octets(self.dst)].concat();
        bytes.extend((len as u32).to_be_bytes());
        bytes.extend([0, 0, 0, proto]);
        bytes
    }

    /// The checksum of a transport header and its data.
    pub(crate) fn transport_checksum(&self, proto: u8, bytes: &[u8]) -> u16 {
        checksum(&[self.pseudo_header(proto, bytes.len()), bytes.to_vec()].concat())
    }

    /// The header and what follows it.
    pub(crate) fn around(&self, proto: u8, payload: &[u8]) -> Vec<u8> {
        let flags = if self.df { 0x4000 } else { 0 };
        self.write(proto, payload, flags, &[])
    }

    /// The same with IPv4 options.
    pub(crate) fn with_options(&self, proto: u8, payload: &[u8], options: &[u8]) -> Vec<u8> {
        self.write(proto, payload, 0, options)
    }

    /// A fragment: bytes of `whole` (a transport header and data) from `from` to `to`.
    pub(crate) fn fragment(&self, proto: u8, whole: &[u8], from: usize, to: usize) -> Vec<u8> {
        assert!(from.is_multiple_of(8));
        let more = to < whole.len();
        let payload = &whole[from..to];
        if self.src.is_ipv4() {
            return self.write(
                proto,
                payload,
                (from / 8) as u16 | u16::from(more) << 13,
                &[],
            );
        }
        let mut bytes = vec![proto, 0];
        bytes.extend((from as u16 | u16::from(more)).to_be_bytes());
        bytes.extend(u32::from(self.id).to_be_bytes());
        bytes.extend(payload);
        self.write(44, &bytes, 0, &[])
    }

    fn write(&self, proto: u8, payload: &[u8], fragment: u16, options: &[u8]) -> Vec<u8> {
        let Self {
            src,
            dst,
            class,
            hops,
            id,
            ..
        } = *self;
        let mut bytes = Vec::new();
        if src.is_ipv4() {
            let header = 20 + options.len();
            bytes.extend([0x40 | (header / 4) as u8, class]);
            bytes.extend(((header + payload.len()) as u16).to_be_bytes());
            bytes.extend(id.to_be_bytes());
            bytes.extend(fragment.to_be_bytes());
            bytes.extend([hops, proto, 0, 0]);
        } else {
            bytes.extend((6 << 28 | u32::from(class) << 20).to_be_bytes());
            bytes.extend((payload.len() as u16).to_be_bytes());
            bytes.extend([proto, hops]);
        }
        bytes.extend(octets(src));
        bytes.extend(octets(dst));
        bytes.extend(options);
        if src.is_ipv4() {
            let sum = checksum(&bytes).to_be_bytes();
            bytes[10..12].copy_from_slice(&sum);
        }
        bytes.extend(payload);
        bytes
    }
}

/// A TCP segment.
#[derive(Clone, Debug)]
pub(crate) struct Tcp {
    pub(crate) from: u16,
    pub(crate) to: u16,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) flags: u8,
    pub(crate) window: u16,
    pub(crate) options: Vec<u8>,
    pub(crate) data: Vec<u8>,
}

impl Tcp {
    pub(crate) fn new(from: u16, to: u16, flags: u8) -> Self {
        let ack = if flags & ACK != 0 { 5001 } else { 0 };
        Self {
            from,
            to,
            seq: 1000,
            ack,
            flags,
            window: 502,
            options: Vec::new(),
            data: Vec::new(),
        }
    }

    pub(crate) fn bytes(&self, ip: &Ip) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.from.to_be_bytes());
        bytes.extend(self.to.to_be_bytes());
        bytes.extend(self.seq.to_be_bytes());
        bytes.extend(self.ack.to_be_bytes());
        bytes.extend([(((20 + self.options.len()) / 4) << 4) as u8, self.flags]);
        bytes.extend(self.window.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend(&self.options);
        bytes.extend(&self.data);
        let sum = ip.transport_checksum(TCP, &bytes).to_be_bytes();
        bytes[16..18].copy_from_slice(&sum);
        bytes
    }

    /// In a frame.
    pub(crate) fn frame(&self, ip: &Ip) -> Vec<u8> {
        frame(&self.packet(ip))
    }

    pub(crate) fn packet(&self, ip: &Ip) -> Vec<u8> {
        ip.around(TCP, &self.bytes(ip))
    }
}

/// A UDP datagram.
#[derive(Clone, Debug)]
pub(crate) struct Udp {
    pub(crate) from: u16,
    pub(crate) to: u16,
    pub(crate) data: Vec<u8>,
    pub(crate) checksum: bool,
}

impl Udp {
    pub(crate) fn new(from: u16, to: u16, data: &[u8]) -> Self {
        Self {
            from,
            to,
            data: data.to_vec(),
            checksum: true,
        }
    }

    pub(crate) fn bytes(&self, ip: &Ip) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.from.to_be_bytes());
        bytes.extend(self.to.to_be_bytes());
        bytes.extend(((8 + self.data.len()) as u16).to_be_bytes());
        bytes.extend([0; 2]);
        bytes.extend(&self.data);
        if self.checksum {
            let sum = match ip.transport_checksum(UDP, &bytes) {
                0 => 0xffff,
                sum => sum,
            };
            bytes[6..8].copy_from_slice(&sum.to_be_bytes());
        }
        bytes
    }

    pub(crate) fn frame(&self, ip: &Ip) -> Vec<u8> {
        frame(&self.packet(ip))
    }

    pub(crate) fn packet(&self, ip: &Ip) -> Vec<u8> {
        ip.around(UDP, &self.bytes(ip))
    }
}

/// An SCTP packet with one chunk.
#[derive(Clone, Debug)]
pub(crate) struct Sctp {
    pub(crate) from: u16,
    pub(crate) to: u16,
    pub(crate) tag: u32,
    pub(crate) chunk: u8,
    pub(crate) value: Vec<u8>,
}

impl Sctp {
    pub(crate) fn new(from: u16, to: u16, tag: u32, chunk: u8, value: &[u8]) -> Self {
        let value = value.to_vec();
        Self {
            from,
            to,
            tag,
            chunk,
            value,
        }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.from.to_be_bytes());
        bytes.extend(self.to.to_be_bytes());
        bytes.extend(self.tag.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend([self.chunk, 0]);
        bytes.extend((4 + self.value.len() as u16).to_be_bytes());
        bytes.extend(&self.value);
        let crc = crc32c(&bytes).to_le_bytes();
        bytes[8..12].copy_from_slice(&crc);
        bytes
    }

    pub(crate) fn packet(&self, ip: &Ip) -> Vec<u8> {
        ip.around(SCTP, &self.bytes())
    }

    pub(crate) fn frame(&self, ip: &Ip) -> Vec<u8> {
        frame(&self.packet(ip))
    }
}

/// RFC 9260, appendix A.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}

/// ICMP or `ICMPv6`, whichever goes with the addresses.
pub(crate) fn icmp(ip: &Ip, kind: u8, code: u8, rest: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind, code, 0, 0];
    bytes.extend(rest.to_be_bytes());
    bytes.extend(payload);
    let (proto, sum) = if ip.src.is_ipv4() {
        (1, checksum(&bytes))
    } else {
        (58, ip.transport_checksum(58, &bytes))
    };
    bytes[2..4].copy_from_slice(&sum.to_be_bytes());
    ip.around(proto, &bytes)
}

fn ethertype(packet: &[u8]) -> [u8; 2] {
    if packet[0] >> 4 == 6 {
        [0x86, 0xdd]
    } else {
        [0x08, 0x00]
    }
}

fn ethernet(dst: [u8; 6], src: [u8; 6], packet: &[u8]) -> Vec<u8> {
    [&dst[..], &src[..], &ethertype(packet)[..], packet].concat()
}

/// From the router to this node.
pub(crate) fn frame(packet: &[u8]) -> Vec<u8> {
    ethernet(NODE, ROUTER, packet)
}

/// Back to the router.
pub(crate) fn frame_back(packet: &[u8]) -> Vec<u8> {
    ethernet(ROUTER, NODE, packet)
}

/// VLAN tags behind the MAC addresses: 0x8100, with 0x88a8 outside if there are several.
pub(crate) fn tagged(frame: &[u8], ids: &[u16]) -> Vec<u8> {
    let mut bytes = frame[..12].to_vec();
    for (place, id) in ids.iter().enumerate() {
        let outer = place + 1 < ids.len();
        bytes.extend(if outer { [0x88, 0xa8] } else { [0x81, 0x00] });
        bytes.extend(id.to_be_bytes());
    }
    bytes.extend(&frame[12..]);
    bytes
}

/// The pod that an encapsulation names.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Named {
    pub(crate) address: IpAddr,
    pub(crate) port: u16,
    pub(crate) identity: u32,
}

/// Our encapsulation of a client's packet.
#[derive(Clone, Debug)]
pub(crate) struct Encap {
    pub(crate) macs: ([u8; 6], [u8; 6]),
    pub(crate) from: IpAddr,
    pub(crate) to: IpAddr,
    pub(crate) source_port: u16,
    pub(crate) pod: Named,
    pub(crate) mark: u8,
    pub(crate) asked: Vec<u32>,
    pub(crate) secret: [u8; 8],
    pub(crate) class: u8,
}

impl Encap {
    /// Geneve with our option (RFC 8926, sections 3.4 and 3.5).
    pub(crate) fn geneve(&self) -> Vec<u8> {
        let Named {
            address,
            port,
            identity,
        } = self.pod;
        let address = octets(address);
        let data = 16 + address.len() + 4 * self.asked.len();
        let mut bytes = vec![1 + (data / 4) as u8, 0x40];
        bytes.extend(if address.len() == 4 {
            [0x08, 0x00]
        } else {
            [0x86, 0xdd]
        });
        bytes.extend([0, 0, 1, 0]);
        bytes.extend([0xff, 0x42, 0x81, (data / 4) as u8, self.mark, 0]);
        bytes.extend(port.to_be_bytes());
        bytes.extend(address);
        bytes.extend(identity.to_be_bytes());
        bytes.extend(self.secret);
        for asked in &self.asked {
            bytes.extend(asked.to_be_bytes());
        }
        bytes
    }

    /// The whole frame.
    pub(crate) fn around(&self, inner: &[u8]) -> Vec<u8> {
        let udp = Udp {
            from: self.source_port,
            to: 6081,
            data: [&self.geneve()[..], inner].concat(),
            checksum: false,
        };
        let ip = Ip {
            class: self.class,
            hops: 64,
            id: 0,
            ..Ip::new(self.from, self.to)
        };
        ethernet(self.macs.0, self.macs.1, &udp.packet(&ip))
    }
}

/// MSS option (RFC 9293, section 3.2).
pub(crate) fn mss(value: u16) -> Vec<u8> {
    let [high, low] = value.to_be_bytes();
    vec![2, 4, high, low]
}

pub(crate) const fn v4(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(a, b, c, d))
}

pub(crate) const fn v6(net: u16, host: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, net, 0, 0, 0, 0, host))
}
