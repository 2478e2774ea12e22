//! The way back: replies of this node's pods leave under the VIP (direct server return).
//!
//! Runs at egress on interfaces that lead out of the node. The kernel's helpers change checksums there, since replies
//! carry partial checksums and segments still to be cut. What leaves the pod also tells what the pod thinks of the flow:
//! SYN-ACKs note their sequence numbers (INIT ACKs of SCTP their tags), anything else promotes a half-open flow, FIN and RST end one.

mod mss;

use core::mem::offset_of;

use crate::abi::{Flow, FragmentKey, FragmentPorts, Limited, Stat, TICK_SHIFT, Tuple, flow_state};
use crate::checksum;
use crate::family::{Family, Next, V4, V6};
use crate::own::{flags_of, flow_ends, is_reported, promote, report};
use crate::subject::{IP_AT, has_ports, is_icmp_error};
use crate::tables::{AllTables, Tables};
use crate::wire::{
    Be16, Be32, Fragment6, Icmp, Ipv4, Ports, Sctp, Tcp, ethertype, protocol, sctp_chunk, tcp_flag,
};

/// A packet on its way out, with the kernel's view of its checksums.
pub trait Skb {
    /// Copies a header out, at an offset that is known when the program is built. `None`: the packet ends before it does.
    fn read<T: Plain>(&self, at: usize) -> Option<T>;
    /// The same at an offset that varies: slower, and takes no proof that an old verifier cannot follow.
    fn load<T: Plain>(&self, at: usize) -> Option<T> {
        self.read(at)
    }
    /// Copies a value in, without touching checksums.
    fn write<T: Plain>(&mut self, at: usize, value: T) -> Option<()>;
    /// Applies a difference (see [`checksum::delta`]) to the header checksum at `at`.
    fn update_header(&mut self, at: usize, delta: u64) -> Option<()>;
    /// Applies a difference to the transport checksum at `at`.
    fn update_transport(&mut self, at: usize, delta: u64, covers: Covers) -> Option<()>;
}

use crate::abi::Plain;

/// What part of a transport checksum a difference is about. With a partial checksum the field holds only the sum of the
/// pseudo-header: the rest is summed up when the packet leaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Covers {
    /// The pseudo-header: addresses.
    PseudoHeader,
    /// The same of UDP, where zero means that there is no checksum.
    PseudoHeaderUdp,
    /// Header and data: ports, options.
    Data,
    /// The same of UDP.
    DataUdp,
}

/// Turns a reply back into the VIP, if it is one. Any other packet stays as it is.
#[inline(always)]
pub fn reply<S: Skb, T: AllTables>(skb: &mut S, tables: T) {
    let Some(kind) = skb.read::<Be16>(12) else {
        return;
    };
    let turned = if kind == ethertype::IPV4 {
        turn::<V4, S, T>(skb, tables)
    } else if kind == ethertype::IPV6 {
        turn::<V6, S, T>(skb, tables)
    } else {
        None
    };
    if turned.is_some() {
        tables.count(Stat::Returned);
    }
}

/// What a reply becomes: source address and port.
#[derive(Clone, Copy)]
struct Vip<A> {
    addr: A,
    port: Be16,
}

#[inline(always)]
fn turn<F: Family, S: Skb, T: Tables<F>>(skb: &mut S, tables: T) -> Option<()> {
    let ip = skb.read::<F::Header>(IP_AT)?;
    let proto = F::proto(&ip);
    let at = IP_AT + F::HEADER_LEN;
    match F::next(&ip) {
        Next::Whole if has_ports(proto) => {
            let vip = packet::<F, S, T>(skb, tables, &ip, proto, at)?;
            rewrite::<F, S>(skb, &ip, proto, at, vip)
        }
        Next::Whole if proto == F::ICMP => icmp_error::<F, S, T>(skb, tables, &ip),
        Next::Fragment => fragment::<F, S, T>(skb, tables, &ip),
        Next::Whole | Next::Options => None,
    }
}

/// The key of the flow that a reply belongs to.
#[inline(always)]
fn key<F: Family>(ip: &F::Header, ports: Ports, proto: u8) -> Tuple<F::Addr> {
    let ports = Ports {
        src: ports.dst,
        dst: ports.src,
    };
    Tuple {
        src: F::dst(ip),
        dst: F::src(ip),
        ports,
        proto,
        pad: [0; 3],
    }
}

/// Looks the flow up and notes what the pod does to it.
#[inline(always)]
fn packet<F: Family, S: Skb, T: Tables<F>>(
    skb: &mut S,
    tables: T,
    ip: &F::Header,
    proto: u8,
    at: usize,
) -> Option<Vip<F::Addr>> {
    let ports = skb.read::<Ports>(at)?;
    let flags = if proto == protocol::TCP {
        skb.read::<u8>(at + offset_of!(Tcp, flags))?
    } else if proto == protocol::SCTP {
        sctp_chunk::flags(skb.read::<u8>(at + offset_of!(Sctp, chunk))?)
    } else {
        0
    };
    let key = key::<F>(ip, ports, proto);
    let tick = (tables.now_ns() >> TICK_SHIFT) as u32;
    let vip = tables.flow(&key, |flow| {
        if flow.seen != tick {
            flow.seen = tick;
        }
        let ends = flow_ends(flags);
        if ends != 0 {
            flow.pod |= ends;
        }
        if ends & flow_state::RST == 0 && flow.client & flow_state::RST != 0 {
            flow.client &= !flow_state::RST;
        }
        Vip {
            addr: flow.vip,
            port: flow.vip_port,
        }
    });
    let vip = match vip {
        Some(vip) => vip,
        None => half_open::<F, S, T>(skb, tables, &key, (ip, at), flags, tick)?,
    };
    if proto == protocol::TCP && is_answer(flags) {
        let limit = if F::IS_V6 {
            tables.config().mss6
        } else {
            tables.config().mss4
        };
        if mss::clamp(skb, at, limit).is_some() {
            tables.count(Stat::MssClamped);
        }
    }
    Some(vip)
}

#[inline(always)]
fn half_open<F: Family, S: Skb, T: Tables<F>>(
    skb: &S,
    tables: T,
    key: &Tuple<F::Addr>,
    (ip, at): (&F::Header, usize),
    flags: u8,
    tick: u32,
) -> Option<Vip<F::Addr>> {
    let is_answer = is_answer(flags);
    // A SYN-ACK's sequence number and the highest one that leaves with it; an INIT ACK's tag, which nothing adds to.
    let answer = if !is_answer {
        None
    } else if key.proto == protocol::SCTP {
        let tag = skb.read::<Be32>(at + size_of::<Sctp>())?.get();
        Some((tag, tag))
    } else {
        let tcp = skb.read::<Tcp>(at)?;
        let seq = tcp.seq.get();
        let len = payload_len::<F>(ip, &tcp);
        Some((seq, seq.wrapping_add(1).wrapping_add(len)))
    };
    let mut is_new = false;
    let (vip, flow) = tables.half_open(key, |half_open| {
        half_open.seen = tick;
        if let Some((isn, high)) = answer {
            is_new = note_answer(half_open, isn, high);
        }
        let flags = flags_of(half_open.mark);
        let flow = Flow {
            seen: tick,
            vip: half_open.vip,
            vip_port: half_open.vip_port,
            client: 0,
            pod: 0,
            identity: half_open.identity,
            flags,
        };
        (
            Vip {
                addr: half_open.vip,
                port: half_open.vip_port,
            },
            flow,
        )
    })?;
    let flow = Flow {
        pod: if is_answer { 0 } else { flow_ends(flags) },
        ..flow
    };
    // An answer is told of before the client hears of it: what that sends next may enter where nobody knows the pod.
    let is_told = if is_answer {
        is_new && is_reported(flow.flags) && tables.take(Limited::Report, tables.now_ns())
    } else {
        flags & tcp_flag::RST == 0 && promote::<F, T>(tables, key, &flow)
    };
    if is_told {
        report::<F, T>(tables, key, &flow);
    }
    Some(vip)
}

/// Whether a packet answers one that opens a flow: a SYN-ACK, an INIT ACK.
#[inline(always)]
const fn is_answer(flags: u8) -> bool {
    flags & (tcp_flag::SYN | tcp_flag::ACK) == tcp_flag::SYN | tcp_flag::ACK
}

/// Bytes of data in a segment.
#[inline(always)]
fn payload_len<F: Family>(ip: &F::Header, tcp: &Tcp) -> u32 {
    let header = u32::from(tcp.offset >> 4) * 4;
    (F::total_len(ip) as u32).saturating_sub(F::HEADER_LEN as u32 + header)
}

/// Keeps the numbers of the last two different answers, and the highest that left the pod. Whether this one is new.
#[inline(always)]
fn note_answer<A>(half_open: &mut crate::abi::HalfOpen<A>, isn: u32, high: u32) -> bool {
    if half_open.answers > 0 && half_open.isn[0] == isn {
        if high.wrapping_sub(half_open.high) as i32 > 0 {
            half_open.high = high;
        }
        return false;
    }
    half_open.isn = [isn, half_open.isn[0]];
    half_open.high = high;
    if half_open.answers < 2 {
        half_open.answers += 1;
    }
    true
}

/// Source address and port become the VIP's.
#[inline(always)]
fn rewrite<F: Family, S: Skb>(
    skb: &mut S,
    ip: &F::Header,
    proto: u8,
    at: usize,
    vip: Vip<F::Addr>,
) -> Option<()> {
    if proto == protocol::SCTP {
        // Its checksum covers no addresses, and its port is the VIP's.
        return source::<F, S>(skb, ip, vip.addr);
    }
    let (checksum_at, pseudo, data) = if proto == protocol::TCP {
        (at + 16, Covers::PseudoHeader, Covers::Data)
    } else {
        (at + 6, Covers::PseudoHeaderUdp, Covers::DataUdp)
    };
    let old_port = skb.read::<Be16>(at)?;
    let addresses = F::delta(F::src(ip), vip.addr);
    skb.update_transport(checksum_at, addresses, pseudo)?;
    if old_port != vip.port {
        let ports = checksum::delta(u32::from(old_port.raw()), u32::from(vip.port.raw()));
        skb.update_transport(checksum_at, ports, data)?;
        skb.write(at, vip.port)?;
    }
    source::<F, S>(skb, ip, vip.addr)
}

/// The source address becomes the VIP.
#[inline(always)]
fn source<F: Family, S: Skb>(skb: &mut S, ip: &F::Header, vip: F::Addr) -> Option<()> {
    if !F::IS_V6 {
        skb.update_header(
            IP_AT + offset_of!(Ipv4, checksum),
            F::delta(F::src(ip), vip),
        )?;
    }
    skb.write(IP_AT + F::SRC_AT, vip)
}

/// Replies larger than the MTU: the first fragment has the ports and tells the others the VIP.
#[inline(never)]
fn fragment<F: Family, S: Skb, T: Tables<F>>(skb: &mut S, tables: T, ip: &F::Header) -> Option<()> {
    let (id, offset, proto, at) = if F::IS_V6 {
        let header = skb.read::<Fragment6>(IP_AT + F::HEADER_LEN)?;
        (
            header.id,
            header.offset.get() & 0xfff8,
            header.next,
            IP_AT + F::HEADER_LEN + size_of::<Fragment6>(),
        )
    } else {
        let header = skb.read::<Ipv4>(IP_AT)?;
        let id = Be32::new(u32::from(header.id.get()));
        (
            id,
            header.fragment.get() & 0x1fff,
            header.protocol,
            IP_AT + F::HEADER_LEN,
        )
    };
    if !has_ports(proto) {
        return None;
    }
    let fragments = FragmentKey {
        src: F::src(ip),
        dst: F::dst(ip),
        id,
        proto,
        pad: [0; 3],
    };
    if offset != 0 {
        let known = tables.fragment(&fragments)?;
        return source::<F, S>(skb, ip, known.vip);
    }
    let vip = packet::<F, S, T>(skb, tables, ip, proto, at)?;
    tables.insert_fragment(
        &fragments,
        &FragmentPorts {
            ports: Ports::default(),
            vip: vip.addr,
        },
    );
    rewrite::<F, S>(skb, ip, proto, at, vip)
}

/// An ICMP error of a pod, such as port unreachable, quotes the packet as it was delivered: the client knows it under the
/// VIP.
#[inline(never)]
fn icmp_error<F: Family, S: Skb, T: Tables<F>>(
    skb: &mut S,
    tables: T,
    ip: &F::Header,
) -> Option<()> {
    let icmp_at = IP_AT + F::HEADER_LEN;
    let quoted_at = icmp_at + size_of::<Icmp>();
    let ports_at = quoted_at + F::HEADER_LEN;
    let icmp = skb.read::<Icmp>(icmp_at)?;
    let quoted = skb.read::<F::Header>(quoted_at)?;
    if !is_icmp_error::<F>(icmp.kind)
        || F::next(&quoted) != Next::Whole
        || F::dst(&quoted) != F::src(ip)
    {
        return None;
    }
    let ports = skb.read::<Ports>(ports_at)?;
    let key = Tuple {
        src: F::src(&quoted),
        dst: F::dst(&quoted),
        ports,
        proto: F::proto(&quoted),
        pad: [0; 3],
    };
    let found = tables.flow(&key, |flow| Vip {
        addr: flow.vip,
        port: flow.vip_port,
    });
    let vip = match found {
        Some(vip) => vip,
        None => tables.half_open(&key, |half_open| Vip {
            addr: half_open.vip,
            port: half_open.vip_port,
        })?,
    };
    let address = F::delta(F::src(ip), vip.addr);
    let mut delta =
        address + checksum::delta(u32::from(ports.dst.raw()), u32::from(vip.port.raw()));
    if !F::IS_V6 {
        let at = quoted_at + offset_of!(Ipv4, checksum);
        let old = skb.read::<u16>(at)?;
        let new = checksum::update(old, address);
        delta += checksum::delta(u32::from(old), u32::from(new));
        skb.write(at, new)?;
    }
    let checksum_at = icmp_at + offset_of!(Icmp, checksum);
    skb.update_transport(checksum_at, delta, Covers::Data)?;
    if F::IS_V6 {
        skb.update_transport(checksum_at, address, Covers::PseudoHeader)?;
    }
    skb.write(quoted_at + F::DST_AT, vip.addr)?;
    skb.write(
        ports_at,
        Ports {
            dst: vip.port,
            ..ports
        },
    )?;
    source::<F, S>(skb, ip, vip.addr)
}
