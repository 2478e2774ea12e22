//! Refusing a new flow of a Service that has nobody to serve it, in the VIP's name. A client that is told gives up or
//! goes elsewhere at once; one that is not waits for its own timeouts.
//!
//! Packets in the middle of a flow are not refused: their pod may live on a node that knows more than this one.

use crate::abi::DropReason;
use crate::checksum;
use crate::family::Family;
use crate::frame::Frame;
use crate::icmp;
use crate::subject::IP_AT;
use crate::tables::Shared;
use crate::verdict::Verdict;
use crate::wire::{Be16, Be32, Ports, Tcp, protocol, tcp_flag};

/// Turns a SYN into a reset, and anything else into "port unreachable". The packet is whole and has no IP options.
#[inline(always)]
pub fn refuse<F: Family, X: Frame, T: Shared>(handle: X::Handle, tables: T) -> Verdict {
    let mut frame = X::open(handle);
    let Some(ip) = frame.read::<F::Header>(IP_AT) else {
        return DropReason::Truncated.into();
    };
    // Of SCTP too: an ABORT would have to carry a checksum over all of it.
    if F::proto(&ip) != protocol::TCP {
        return icmp::port_unreachable::<F, X, T>(&mut frame, tables);
    }
    match reset::<F, X>(&mut frame, &ip) {
        Some(()) => Verdict::TRANSMIT,
        None => DropReason::Truncated.into(),
    }
}

/// Bytes of a TCP header without options.
const TCP_LEN: usize = size_of::<Tcp>();
/// Words of it, as its own field says.
const TCP_OFFSET: u8 = ((TCP_LEN / 4) << 4) as u8;

/// Answers a segment without ACK: sequence number 0, acknowledging all of it (RFC 9293, section 3.10.7.1).
#[inline(always)]
fn reset<F: Family, X: Frame>(frame: &mut X, ip: &F::Header) -> Option<()> {
    let at = const { IP_AT + F::HEADER_LEN };
    let syn = frame.read::<Tcp>(at)?;
    // What lies behind the header may be data already (RFC 7413); the SYN itself counts for one.
    let header_len = usize::from(syn.offset >> 4) * 4;
    if header_len < TCP_LEN {
        return None;
    }
    let data_len = (F::total_len(ip) - F::HEADER_LEN).checked_sub(header_len)?;
    let end = syn.seq.get().wrapping_add(data_len as u32 + 1);
    let answer = Tcp {
        ports: Ports {
            src: syn.ports.dst,
            dst: syn.ports.src,
        },
        seq: Be32::new(0),
        ack: Be32::new(end),
        offset: TCP_OFFSET,
        flags: tcp_flag::RST | tcp_flag::ACK,
        window: Be16::new(0),
        checksum: Be16::new(0),
        urgent: Be16::new(0),
    };
    let len = const { IP_AT + F::HEADER_LEN + TCP_LEN };
    frame.move_tail(len as i32 - frame.len() as i32)?;
    let flags = Be16::new(u16::from(answer.offset) << 8 | u16::from(answer.flags));
    let sum = icmp::pseudo_header::<F>(ip, protocol::TCP, TCP_LEN as u16)
        + u64::from(answer.ports.src.raw())
        + u64::from(answer.ports.dst.raw())
        + u64::from(answer.ack.raw())
        + u64::from(flags.raw());
    let checksum = Be16::from_raw(!checksum::fold(sum));
    frame.write(at, Tcp { checksum, ..answer })?;
    let (src, dst) = (F::dst(ip), F::src(ip));
    frame.write(IP_AT, F::header(protocol::TCP, TCP_LEN as u16, src, dst))?;
    icmp::turn_ethernet(frame)
}
