//! First packets: to the pod that has already answered, admitted for the pod that is named, or decided afresh.

use super::know::{Knowledge, flow_key, is_closing, know, tick};
use super::{Scratch, Target, Work, service_of};
use crate::abi::{
    DropReason, FirstPod, HALF_OPEN_IDLE_TICKS, HalfOpen, LocalKey, Stat, backend_flag, mark,
    service_flag,
};
use crate::balance;
use crate::decap::Arrival;
use crate::family::Family;
use crate::subject::{Kind, Subject};
use crate::tables::Tables;
use crate::verdict::Verdict;
use crate::wire::protocol;

/// Whether the pod and port that a packet names live here.
#[inline(always)]
pub(super) fn lives_here<F: Family, T: Tables<F>>(tables: T, target: &Target<F::Addr>) -> bool {
    tables
        .local(&LocalKey {
            addr: target.pod,
            port: target.port,
            pad: 0,
        })
        .is_some_and(|local| local.identity == target.identity)
}

/// Whether another pod of this node than the one that is named has answered the client's SYN and knows the flow; it is the
/// target then.
#[inline(always)]
pub(super) fn answered<F: Family, T: Tables<F>>(
    tables: T,
    work: &mut Work<F::Addr>,
    now_ns: u64,
) -> bool {
    let named = work.target;
    let Some(answered) = tables.first(&work.subject.tuple) else {
        return false;
    };
    if answered.identity == named.identity {
        return false;
    }
    let FirstPod {
        pod,
        port,
        identity,
        ..
    } = answered;
    work.target = Target {
        pod,
        port,
        identity,
        ..named
    };
    if lives_here::<F, T>(tables, &work.target)
        && know::<F, T>(tables, work, now_ns) == Knowledge::Known
    {
        return true;
    }
    work.target = named;
    false
}

/// A SYN: to be admitted for the pod that is named, if that lives here.
#[inline(always)]
pub(super) fn first<F: Family, T: Tables<F>>(
    tables: T,
    arrival: &mut Arrival,
    work: &mut Work<F::Addr>,
    now_ns: u64,
) -> Verdict {
    // A pin may be older than the end of its flow: then the client opens another one with the same ports.
    let mut is_outlived = false;
    if arrival.mark & mark::PINNED != 0 {
        let knowledge = know::<F, T>(tables, work, now_ns);
        is_outlived = knowledge != Knowledge::Known;
        // Or the last packets of the next flow would come back here.
        if knowledge == Knowledge::Closing {
            tables.remove_flow(&work.key);
        }
    }
    if !is_outlived && lives_here::<F, T>(tables, &work.target) {
        return Verdict::ADMIT;
    }
    match afresh::<F, T>(tables, arrival, work) {
        Ok(verdict) => verdict,
        Err(reason) => reason.into(),
    }
}

/// A packet that is to be admitted for the pod that is named. A datagram whose pod this node has not heard of yet, or not any
/// more, goes where this node's own tables say: nobody would send it again.
#[inline(always)]
pub(super) fn admitted<F: Family, T: Tables<F>>(
    tables: T,
    arrival: &mut Arrival,
    work: &mut Work<F::Addr>,
) -> Verdict {
    if work.subject.tuple.proto != protocol::UDP || lives_here::<F, T>(tables, &work.target) {
        return Verdict::ADMIT;
    }
    match afresh::<F, T>(tables, arrival, work) {
        Ok(verdict) => verdict,
        Err(reason) => reason.into(),
    }
}

/// A first packet for a pod that is not here: this node decides by its own tables. Once; and about a datagram, of whose pods
/// others were asked before, once for each pod that it comes for.
#[inline(always)]
fn afresh<F: Family, T: Tables<F>>(
    tables: T,
    arrival: &mut Arrival,
    work: &mut Work<F::Addr>,
) -> Result<Verdict, DropReason> {
    let Work {
        subject, target, ..
    } = work;
    let asked = &arrival.asked;
    let (decided, carried) = if subject.tuple.proto == protocol::UDP {
        let decided = asked.is_full() || asked.times(arrival.identity) > 1;
        (decided, mark::ADMIT)
    } else {
        (!asked.is_empty(), 0)
    };
    if decided {
        return Err(DropReason::NoSuchPod);
    }
    let service = service_of::<F, T>(&tables, subject).ok_or(DropReason::NoSuchPod)?;
    let hash = balance::flow_hash::<F, T>(tables, &subject.tuple, &service.current);
    let choice = balance::choose(&tables, service, hash, || true)?;
    let backend = tables
        .backend(choice.backend)
        .ok_or(DropReason::TableFault)?;
    if backend.identity == arrival.identity && arrival.mark & mark::PINNED == 0 {
        return Err(DropReason::NoSuchPod);
    }
    tables.count(Stat::DecidedAfresh);
    arrival.asked.push(arrival.identity);
    target.mark = choice.mark | balance::track(service) | carried;
    if backend.flags & backend_flag::LOCAL == 0 {
        target.backend = choice.backend;
        return Ok(Verdict::RELAY);
    }
    target.aim::<F>(backend);
    Ok(Verdict::ADMIT)
}

/// Whether this node's own tables agree on another pod for a flow than the one that it came for, as they do when its sender
/// has applied another version: should that sender be lost, nobody else would look for the flow there.
#[inline(never)]
fn is_elsewhere<F: Family, T: Tables<F>>(
    tables: T,
    subject: &Subject<F::Addr>,
    identity: u32,
) -> bool {
    let Some(service) = service_of::<F, T>(&tables, subject) else {
        return true;
    };
    // Rows differ from node to node under policy Local, and all flows are tracked.
    if service.flags & (service_flag::LOCAL_POLICY | service_flag::TRACK_ALL) != 0 {
        return false;
    }
    let hash = balance::flow_hash::<F, T>(tables, &subject.tuple, &service.current);
    let agreed = balance::agreed(tables, service, hash);
    tables
        .backend(agreed)
        .is_none_or(|backend| backend.identity != identity)
}

/// A new flow for the target, if that lives here: noted as half-open.
#[inline(always)]
pub(crate) fn admit<F: Family, T: Tables<F>>(tables: T, scratch: &mut Scratch) -> Verdict {
    let (_, work) = F::work(scratch);
    work.key = flow_key::<F>(&work.subject, work.target.pod, work.target.port);
    let Work {
        subject,
        target,
        key,
        half_open: entry,
        first,
        ..
    } = work;
    let Target {
        pod,
        port,
        mark: carried,
        identity,
        ..
    } = *target;
    if !lives_here::<F, T>(tables, target) {
        return DropReason::NoSuchPod.into();
    }
    if subject.kind == Kind::IcmpError {
        return DropReason::IcmpUnknownFlow.into();
    }
    let (vip, vip_port) = (subject.tuple.dst, subject.tuple.ports.dst);
    let tick = tick(tables.now_ns());
    let established = tables.flow(key, |flow| {
        if is_closing(flow) || flow.identity != identity {
            Knowledge::Closing
        } else if flow.vip != vip || flow.vip_port != vip_port {
            Knowledge::InUse
        } else {
            Knowledge::Known
        }
    });
    match established {
        Some(Knowledge::InUse) => return DropReason::TupleInUse.into(),
        // The pod's challenge ACK settles what the client thinks (RFC 5961, section 4).
        Some(Knowledge::Known) => return Verdict::DELIVER,
        Some(Knowledge::Closing) => tables.remove_flow(key),
        Some(Knowledge::Unknown) | None => {}
    }
    let half_open = tables.half_open(key, |half_open| {
        if half_open.identity == identity && half_open.vip == vip && half_open.vip_port == vip_port
        {
            half_open.seen = tick;
            half_open.mark |= carried & mark::REPORTED;
            Knowledge::Known
        } else if half_open.identity == identity
            && tick.wrapping_sub(half_open.seen) < HALF_OPEN_IDLE_TICKS
        {
            Knowledge::InUse
        } else {
            Knowledge::Unknown
        }
    });
    match half_open {
        Some(Knowledge::InUse) => return DropReason::TupleInUse.into(),
        Some(Knowledge::Known) => {}
        Some(Knowledge::Unknown | Knowledge::Closing) | None => {
            let mut reported = carried & mark::REPORTED;
            if reported == 0 && is_elsewhere::<F, T>(tables, subject, identity) {
                reported = mark::DEVIATION;
            }
            *entry = HalfOpen {
                seen: tick,
                vip,
                vip_port,
                answers: 0,
                mark: reported,
                identity,
                isn: [0; 2],
                high: 0,
            };
            tables.insert_half_open(key, entry);
            tables.count(Stat::Admitted);
        }
    }
    if subject.is_first() {
        *first = FirstPod {
            pod,
            port,
            pad: 0,
            identity,
        };
        tables.insert_first(&subject.tuple, first);
    }
    Verdict::DELIVER
}
