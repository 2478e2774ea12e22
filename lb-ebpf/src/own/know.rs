//! What this node knows about a flow and one of its pods: the flow table and the half-open flows.

use super::Work;
use crate::abi::{Event, Flow, HalfOpen, Stat, TICK_SHIFT, Tuple, flow_flag, flow_state, mark};
use crate::family::Family;
use crate::subject::{Kind, Subject};
use crate::tables::Tables;
use crate::wire::{Be16, Ports, protocol, tcp_flag};

/// What a node knows about a flow and one of its pods.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u32)]
pub enum Knowledge {
    /// Nothing.
    #[default]
    Unknown,
    /// The pod owns it.
    Known,
    /// The pod owned it; it is closing.
    Closing,
    /// The client's tuple is in use for the same pod through another VIP or port.
    InUse,
}

/// The key of a flow in `flows` and `half_open`.
#[inline(always)]
pub(super) fn flow_key<F: Family>(
    subject: &Subject<F::Addr>,
    pod: F::Addr,
    port: Be16,
) -> Tuple<F::Addr> {
    let Tuple {
        src, ports, proto, ..
    } = subject.tuple;
    Tuple {
        src,
        dst: pod,
        ports: Ports {
            src: ports.src,
            dst: port,
        },
        proto,
        pad: [0; 3],
    }
}

#[inline(always)]
pub(super) const fn tick(now_ns: u64) -> u32 {
    (now_ns >> TICK_SHIFT) as u32
}

/// What this node knows about the flow and one of its own pods. Notes what the client does to the flow, and promotes a
/// half-open flow whose SYN-ACK this packet acknowledges.
#[inline(always)]
pub fn know<F: Family, T: Tables<F>>(
    tables: T,
    work: &mut Work<F::Addr>,
    now_ns: u64,
) -> Knowledge {
    work.key = flow_key::<F>(&work.subject, work.target.pod, work.target.port);
    let Work {
        subject,
        target,
        key,
        ..
    } = &*work;
    let identity = target.identity;
    let tick = tick(now_ns);
    let (vip, vip_port) = (subject.tuple.dst, subject.tuple.ports.dst);
    let established = tables.flow(key, |flow| {
        if flow.identity != identity {
            return Knowledge::Unknown;
        }
        if flow.vip != vip || flow.vip_port != vip_port {
            return Knowledge::InUse;
        }
        if flow.seen != tick {
            flow.seen = tick;
        }
        if is_closing(flow) {
            return Knowledge::Closing;
        }
        let ends = flow_ends(subject.flags);
        if ends != 0 {
            flow.client |= ends;
        }
        Knowledge::Known
    });
    match established {
        Some(Knowledge::Unknown) | None => {}
        Some(known) => return known,
    }
    know_half_open::<F, T>(tables, work, tick)
}

#[inline(always)]
fn know_half_open<F: Family, T: Tables<F>>(
    tables: T,
    work: &mut Work<F::Addr>,
    tick: u32,
) -> Knowledge {
    let Work {
        subject,
        target,
        key,
        flow,
        ..
    } = work;
    let identity = target.identity;
    let (vip, vip_port) = (subject.tuple.dst, subject.tuple.ports.dst);
    let mut flags = 0;
    let mut acknowledged = false;
    let known = tables.half_open(key, |half_open| {
        if half_open.identity != identity {
            return Knowledge::Unknown;
        }
        if half_open.vip != vip || half_open.vip_port != vip_port {
            return Knowledge::InUse;
        }
        // SCTP's reset may reflect the sender's own tag (RFC 9260, section 8.5.1), so an ABORT answers nothing.
        if subject.kind == Kind::Packet && subject.flags & tcp_flag::ACK != 0 {
            acknowledged = if subject.tuple.proto == protocol::SCTP {
                carries_tag(half_open, subject.ack)
            } else {
                acknowledges(half_open, subject.ack)
            };
            if !acknowledged {
                return Knowledge::Unknown;
            }
        }
        flags = flags_of(half_open.mark);
        half_open.seen = tick;
        Knowledge::Known
    });
    if acknowledged {
        let client = flow_ends(subject.flags);
        *flow = Flow {
            seen: tick,
            vip,
            vip_port,
            client,
            pod: 0,
            identity,
            flags,
        };
        if promote::<F, T>(tables, key, flow) {
            report::<F, T>(tables, key, flow);
        }
    }
    known.unwrap_or(Knowledge::Unknown)
}

/// Moves a flow from `half_open` to `flows`. When the table is full the half-open entry stays and serves. Whether the agent
/// must be told of the flow.
#[inline(always)]
pub fn promote<F: Family, T: Tables<F>>(
    tables: T,
    key: &Tuple<F::Addr>,
    flow: &Flow<F::Addr>,
) -> bool {
    if !tables.insert_flow(key, flow) {
        tables.count(Stat::FlowTableFull);
        return false;
    }
    tables.remove_half_open(key);
    tables.count(Stat::Promoted);
    is_reported(flow.flags)
}

/// The flags of a flow by the mark of its half-open entry.
#[inline(always)]
pub(crate) const fn flags_of(carried: u8) -> u32 {
    let mut flags = 0;
    if carried & mark::PINNED != 0 {
        flags |= flow_flag::PINNED;
    }
    if carried & mark::DEVIATION != 0 {
        flags |= flow_flag::DEVIATION;
    }
    if carried & mark::TRACK != 0 {
        flags |= flow_flag::TRACK;
    }
    flags
}

/// Whether the agent has to pin a flow with these flags, and has not.
#[inline(always)]
pub(crate) const fn is_reported(flags: u32) -> bool {
    flags & (flow_flag::DEVIATION | flow_flag::TRACK) != 0 && flags & flow_flag::PINNED == 0
}

/// Tells the agent of a flow that it has to pin.
#[inline(never)]
pub(crate) fn report<F: Family, T: Tables<F>>(
    tables: T,
    key: &Tuple<F::Addr>,
    flow: &Flow<F::Addr>,
) {
    let event = Event {
        client: F::mapped(key.src),
        vip: F::mapped(flow.vip),
        pod: F::mapped(key.dst),
        ports: Ports {
            src: key.ports.src,
            dst: flow.vip_port,
        },
        pod_port: key.ports.dst,
        proto: key.proto,
        is_v6: u8::from(F::IS_V6),
        identity: flow.identity,
        flags: flow.flags,
    };
    tables.report(&event);
}

/// Whether an acknowledgement is above one of the SYN-ACKs and not above the highest sequence number that left the pod
/// (RFC 9293, section 3.4: arithmetic modulo 2^32).
#[inline(always)]
fn acknowledges<A>(half_open: &HalfOpen<A>, ack: u32) -> bool {
    let above = |isn: u32| ack.wrapping_sub(isn) as i32 > 0;
    let not_above_high = half_open.high.wrapping_sub(ack) as i32 >= 0;
    // Two SYN-ACKs with different numbers are independent; the older one's highest is its own number plus the SYN.
    let newest = half_open.answers > 0 && above(half_open.isn[0]) && not_above_high;
    let older = half_open.answers > 1 && ack == half_open.isn[1].wrapping_add(1);
    newest || older
}

/// Whether a verification tag is the one that one of the INIT ACKs has asked for (RFC 9260, section 8.5).
#[inline(always)]
fn carries_tag<A>(half_open: &HalfOpen<A>, tag: u32) -> bool {
    let newest = half_open.answers > 0 && tag == half_open.isn[0];
    let older = half_open.answers > 1 && tag == half_open.isn[1];
    newest || older
}

/// Both sides have sent FIN, or one has reset the connection.
#[inline(always)]
pub const fn is_closing<A>(flow: &Flow<A>) -> bool {
    flow.client & flow.pod & flow_state::FIN != 0 || (flow.client | flow.pod) & flow_state::RST != 0
}

/// The bits that a segment's flags set on its sender's side of a flow.
#[inline(always)]
pub const fn flow_ends(flags: u8) -> u8 {
    let fin = if flags & tcp_flag::FIN != 0 {
        flow_state::FIN
    } else {
        0
    };
    let rst = if flags & tcp_flag::RST != 0 {
        flow_state::RST
    } else {
        0
    };
    fin | rst
}
