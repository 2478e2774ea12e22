//! Which flow a packet is about: the tuple that tables are asked with, and what kind of packet it is.
//!
//! A whole TCP or UDP packet says so itself; a later fragment is about the flow of its first fragment (RFC 791, section
//! 3.2; RFC 8200, section 4.5); an ICMP error about the flow in its payload (RFC 792, RFC 4443, section 2.4).

use crate::abi::{DropReason, FragmentKey, FragmentPorts, Tuple};
use crate::family::{Family, Next};
use crate::frame::Frame;
use crate::tables::Tables;
use crate::verdict::Verdict;
use crate::wire::{
    Be16, Be32, Fragment6, Icmp, Ipv4, Ports, Sctp, Tcp, protocol, sctp_chunk, tcp_flag,
};

/// Where the IP header starts: VLAN tags are taken off before (see [`crate::path`]).
pub const IP_AT: usize = 14;

/// What kind of packet speaks about the flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum Kind {
    /// A packet with its transport header, or the first fragment of one.
    #[default]
    Packet,
    /// A fragment without transport header.
    LaterFragment,
    /// An ICMP error about a packet that the pod sent.
    IcmpError,
}

/// A flow and what is said about it. Always seen from the client: `tuple.src` is the client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Subject<A> {
    /// Client and VIP.
    pub tuple: Tuple<A>,
    /// The kind of packet.
    pub kind: Kind,
    /// TCP flags, or what an SCTP packet amounts to ([`sctp_chunk::flags`]); 0 for anything else.
    pub flags: u8,
    /// Where the transport header starts (with ICMP: the ICMP header).
    pub transport_at: u16,
    /// What the packet answers with, in host order: TCP's acknowledgement number, SCTP's verification tag; 0 for anything
    /// else.
    pub ack: u32,
}

impl<A> Subject<A> {
    /// Whether the packet opens a flow: a SYN without ACK, an INIT.
    #[inline(always)]
    pub fn is_first(&self) -> bool {
        self.flags & (tcp_flag::SYN | tcp_flag::ACK) == tcp_flag::SYN
    }
}

/// Whether a packet has a subject, in one word: the subject itself is written to a place of the caller's, since values
/// that are there on some ways only make the compiler keep words that the verifier holds for uninitialised.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Finding(u32);

impl Finding {
    /// It has one.
    pub const FOUND: Self = Self(0);
    /// It is nothing that a VIP's ports are asked about.
    pub const OTHER: Self = Self(1);

    /// It is refused if it is for a VIP.
    #[inline(always)]
    const fn refused(reason: DropReason) -> Self {
        Self(2 + reason as u32)
    }

    /// What is to be done next: a refusal is final.
    #[inline(always)]
    pub(crate) const fn verdict(self) -> Verdict {
        match self {
            Self::FOUND => Verdict::FOUND,
            Self::OTHER => Verdict::OTHER,
            Self(refused) => Verdict::drop_number(refused.wrapping_sub(2)),
        }
    }
}

/// Finds the subject of any packet. Notes the ports of first fragments.
#[inline(always)]
pub fn of<F: Family, X: Frame, T: Tables<F>>(
    handle: X::Handle,
    tables: T,
    subject: &mut Subject<F::Addr>,
) -> Finding {
    let frame = &X::open(handle);
    let Some(ip) = &frame.read::<F::Header>(IP_AT) else {
        return Finding::refused(DropReason::Truncated);
    };
    match F::next(ip) {
        Next::Whole if F::proto(ip) == F::ICMP => icmp_error::<F, X>(frame, ip, subject),
        Next::Whole if is_whole::<F>(ip) => whole::<F, X>(frame, ip, subject),
        Next::Whole => Finding::OTHER,
        Next::Fragment => fragment::<F, X, T>(frame, tables, ip, subject),
        Next::Options if F::IS_V6 => Finding::refused(DropReason::ExtensionHeader),
        Next::Options => Finding::refused(DropReason::IpOptions),
    }
}

/// Whether this is a TCP, UDP or SCTP packet that is not fragmented and has no options.
#[inline(always)]
pub fn is_whole<F: Family>(ip: &F::Header) -> bool {
    let proto = F::proto(ip);
    F::next(ip) == Next::Whole && has_ports(proto)
}

/// Whether a protocol has ports, and so Services.
#[inline(always)]
pub const fn has_ports(proto: u8) -> bool {
    proto == protocol::TCP || proto == protocol::UDP || proto == protocol::SCTP
}

/// The subject of such a packet.
#[inline(always)]
pub fn whole<F: Family, X: Frame>(
    frame: &X,
    ip: &F::Header,
    subject: &mut Subject<F::Addr>,
) -> Finding {
    let at = IP_AT + F::HEADER_LEN;
    let Some(ports) = frame.read::<Ports>(at) else {
        return Finding::refused(DropReason::Truncated);
    };
    subject.tuple = Tuple {
        src: F::src(ip),
        dst: F::dst(ip),
        ports,
        proto: F::proto(ip),
        pad: [0; 3],
    };
    transport(frame, at, DropReason::Truncated, subject)
}

/// What a transport header says beside the ports.
#[inline(always)]
fn transport<A: Copy, X: Frame>(
    frame: &X,
    at: usize,
    cut: DropReason,
    subject: &mut Subject<A>,
) -> Finding {
    subject.kind = Kind::Packet;
    subject.transport_at = at as u16;
    subject.flags = 0;
    subject.ack = 0;
    if subject.tuple.proto == protocol::TCP {
        let Some(tcp) = frame.read::<Tcp>(at) else {
            return Finding::refused(cut);
        };
        subject.flags = tcp.flags;
        subject.ack = tcp.ack.get();
    } else if subject.tuple.proto == protocol::SCTP {
        let Some(sctp) = frame.read::<Sctp>(at) else {
            return Finding::refused(cut);
        };
        subject.flags = sctp_chunk::flags(sctp.chunk);
        subject.ack = sctp.tag.get();
    }
    Finding::FOUND
}

#[inline(always)]
fn fragment<F: Family, X: Frame, T: Tables<F>>(
    frame: &X,
    tables: T,
    ip: &F::Header,
    subject: &mut Subject<F::Addr>,
) -> Finding {
    let at = if F::IS_V6 {
        IP_AT + F::HEADER_LEN + size_of::<Fragment6>()
    } else {
        IP_AT + F::HEADER_LEN
    };
    let (id, offset, proto) = if F::IS_V6 {
        let Some(header) = frame.read::<Fragment6>(IP_AT + F::HEADER_LEN) else {
            return Finding::refused(DropReason::Truncated);
        };
        (header.id, header.offset.get() & 0xfff8, header.next)
    } else {
        let Some(header) = frame.read::<Ipv4>(IP_AT) else {
            return Finding::refused(DropReason::Truncated);
        };
        (
            Be32::new(u32::from(header.id.get())),
            (header.fragment.get() & 0x1fff) << 3,
            header.protocol,
        )
    };
    if !has_ports(proto) {
        return Finding::refused(DropReason::FragmentUnknown);
    }
    let (src, dst) = (F::src(ip), F::dst(ip));
    let key = FragmentKey {
        src,
        dst,
        id,
        proto,
        pad: [0; 3],
    };
    if offset == 0 {
        let Some(ports) = frame.read::<Ports>(at) else {
            return Finding::refused(DropReason::Truncated);
        };
        subject.tuple = Tuple {
            src,
            dst,
            ports,
            proto,
            pad: [0; 3],
        };
        tables.insert_fragment(&key, &FragmentPorts { ports, vip: dst });
        // A first fragment too short for its transport header is an attack (RFC 1858, section 3).
        return transport(frame, at, DropReason::FragmentOverlap, subject);
    }
    // So is a later one that reaches into the TCP flags (RFC 3128).
    if proto == protocol::TCP && offset < 16 {
        return Finding::refused(DropReason::FragmentOverlap);
    }
    let Some(known) = tables.fragment(&key) else {
        return Finding::refused(DropReason::FragmentUnknown);
    };
    subject.tuple = Tuple {
        src,
        dst,
        ports: known.ports,
        proto,
        pad: [0; 3],
    };
    subject.kind = Kind::LaterFragment;
    subject.flags = 0;
    subject.ack = 0;
    subject.transport_at = at as u16;
    Finding::FOUND
}

/// Whether an ICMP type reports an error (RFC 792; RFC 4443, section 2.1: types below 128).
#[inline(always)]
pub fn is_icmp_error<F: Family>(kind: u8) -> bool {
    if F::IS_V6 {
        kind < 128
    } else {
        matches!(kind, 3 | 4 | 5 | 11 | 12)
    }
}

#[inline(always)]
fn icmp_error<F: Family, X: Frame>(
    frame: &X,
    ip: &F::Header,
    subject: &mut Subject<F::Addr>,
) -> Finding {
    const MALFORMED: Finding = Finding::refused(DropReason::IcmpMalformed);
    let at = IP_AT + F::HEADER_LEN;
    let Some(icmp) = frame.read::<Icmp>(at) else {
        return Finding::refused(DropReason::Truncated);
    };
    if !is_icmp_error::<F>(icmp.kind) {
        return Finding::OTHER;
    }
    let quoted_at = at + size_of::<Icmp>();
    let Some(quoted) = frame.read::<F::Header>(quoted_at) else {
        return MALFORMED;
    };
    let proto = F::proto(&quoted);
    let sent_by_vip = F::src(&quoted) == F::dst(ip);
    if !F::is_valid(&quoted) || F::next(&quoted) != Next::Whole || !sent_by_vip {
        return MALFORMED;
    }
    if !has_ports(proto) {
        return MALFORMED;
    }
    let Some(sent) = frame.read::<Ports>(quoted_at + F::HEADER_LEN) else {
        return MALFORMED;
    };
    let ports = Ports {
        src: sent.dst,
        dst: sent.src,
    };
    subject.tuple = Tuple {
        src: F::dst(&quoted),
        dst: F::src(&quoted),
        ports,
        proto,
        pad: [0; 3],
    };
    subject.kind = Kind::IcmpError;
    subject.flags = 0;
    subject.ack = 0;
    subject.transport_at = at as u16;
    Finding::FOUND
}

/// The key of a VIP itself: its marker entry.
#[inline(always)]
pub fn vip_key<F: Family>(addr: F::Addr) -> F::ServiceKey {
    F::service_key(addr, Be16::new(0), 0)
}
