//! What clients and pods say to each other: a TCP segment or a UDP datagram, without the addresses that packets put around
//! it.

use lb_ebpf::wire::tcp_flag;

/// A flow: what its number stands for are the client's address and port ([`super::wire`]).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(super) struct FlowId(pub(super) u32);

/// A Service of the simulated cluster.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(super) struct ServiceId(pub(super) u8);

/// TCP or UDP.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Transport {
    Tcp,
    Udp,
}

/// A segment or datagram of a flow, of either direction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Segment {
    pub(super) flow: FlowId,
    pub(super) service: ServiceId,
    pub(super) transport: Transport,
    /// TCP: sequence number. UDP: number of the question.
    pub(super) seq: u32,
    /// TCP: acknowledgement, if the flag says so.
    pub(super) ack: u32,
    /// TCP flags ([`tcp_flag`]); 0 for UDP.
    pub(super) flags: u8,
    /// Bytes of data.
    pub(super) len: u16,
}

impl Segment {
    /// Whether all of `flags` are set.
    pub(super) fn has(&self, flags: u8) -> bool {
        self.flags & flags == flags
    }

    /// The first one of a TCP flow.
    pub(super) fn is_first(&self) -> bool {
        self.flags & (tcp_flag::SYN | tcp_flag::ACK) == tcp_flag::SYN
    }

    /// Sequence numbers that it takes (RFC 9293, section 3.4).
    pub(super) fn span(&self) -> u32 {
        u32::from(self.len)
            + u32::from(self.has(tcp_flag::SYN))
            + u32::from(self.has(tcp_flag::FIN))
    }
}

/// Whether `a` comes after `b`, modulo 2^32.
pub(super) fn is_after(a: u32, b: u32) -> bool {
    a.wrapping_sub(b).cast_signed() > 0
}
