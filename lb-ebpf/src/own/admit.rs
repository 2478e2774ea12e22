//! First packets: to the pod that has already answered, admitted for the pod that is named, or decided afresh.

use super::know::{Knowledge, flow_key, is_closing, know, tick};
use super::{Step, Target, Work, service_of};
use crate::abi::{
    DropReason, FirstPod, HALF_OPEN_IDLE_TICKS, HalfOpen, LocalKey, Stat, backend_flag,
};
use crate::balance;
use crate::decap::Arrival;
use crate::family::Family;
use crate::subject::Kind;
use crate::tables::Tables;

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
#[inline(never)]
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

/// A SYN: for the pod that has already answered it, or admitted for the pod that is named.
///
/// With a stack frame of its own: inlined, it would make the caller's larger, on which those of the walk stand. Along a
/// chain of calls the verifier allows 512 bytes, and kernel 6.1 rounds every frame up to 32.
#[inline(never)]
pub(super) fn first<F: Family, T: Tables<F>>(
    tables: T,
    arrival: &mut Arrival,
    work: &mut Work<F::Addr>,
    now_ns: u64,
) -> Step {
    if answered::<F, T>(tables, work, now_ns) {
        return Step::DELIVER;
    }
    if !lives_here::<F, T>(tables, &work.target)
        && let Err(step) = afresh::<F, T>(tables, arrival, work)
    {
        return step;
    }
    admit::<F, T>(tables, work, now_ns)
}

/// A first packet for a pod that is not here: this node decides by its own tables, once. The target becomes
/// one of its own pods, or the error says what else to do.
#[inline(always)]
fn afresh<F: Family, T: Tables<F>>(
    tables: T,
    arrival: &mut Arrival,
    work: &mut Work<F::Addr>,
) -> Result<(), Step> {
    let Work {
        subject, target, ..
    } = work;
    let no_such_pod = Step::drop(DropReason::NoSuchPod);
    if !arrival.asked.is_empty() {
        return Err(no_such_pod);
    }
    let service = service_of::<F, T>(&tables, subject).ok_or(no_such_pod)?;
    let hash = balance::flow_hash::<F, T>(tables, &subject.tuple, &service.current);
    let backend_id = balance::choose(&tables, service, hash, || true)?;
    let backend = tables.backend(backend_id).ok_or(DropReason::TableFault)?;
    if backend.identity == arrival.identity {
        return Err(no_such_pod);
    }
    tables.count(Stat::DecidedAfresh);
    arrival.asked.push(arrival.identity);
    if backend.flags & backend_flag::LOCAL == 0 {
        target.backend = backend_id;
        target.mark = 0;
        return Err(Step::RELAY);
    }
    target.aim::<F>(backend);
    if lives_here::<F, T>(tables, target) {
        Ok(())
    } else {
        Err(no_such_pod)
    }
}

/// Delivers to the pod that is named, if it lives here, and notes the flow as half-open.
#[inline(never)]
pub(super) fn admit<F: Family, T: Tables<F>>(
    tables: T,
    work: &mut Work<F::Addr>,
    now_ns: u64,
) -> Step {
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
        mark,
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
    let tick = tick(now_ns);
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
        Some(Knowledge::Known) => return Step::DELIVER,
        Some(Knowledge::Closing) => tables.remove_flow(key),
        Some(Knowledge::Unknown) | None => {}
    }
    let half_open = tables.half_open(key, |half_open| {
        if half_open.identity == identity && half_open.vip == vip && half_open.vip_port == vip_port
        {
            half_open.seen = tick;
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
            *entry = HalfOpen {
                seen: tick,
                vip,
                vip_port,
                answers: 0,
                mark,
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
    Step::DELIVER
}
