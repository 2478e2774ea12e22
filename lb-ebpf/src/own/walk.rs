//! Packets of flows that nobody here knows: the candidates are asked in turn, and what no one claims is held back.

use super::know::{Knowledge, know};
use super::{Scratch, Work, service_of};
use crate::abi::{
    DropReason, HOLD_BACK_MAX_NS, HOLD_BACK_MIN_NS, STAMP_FRESH_NS, Stat, backend_flag,
    config_flag, mark, service_flag,
};
use crate::balance;
use crate::candidates::{self, PLACES};
use crate::encap::Asked;
use crate::family::Family;
use crate::subject::{Kind, Subject};
use crate::tables::Tables;
use crate::verdict::Verdict;
use crate::wire::{protocol, tcp_flag};

/// Nobody here knows the flow, or only as closing: ask the other candidates, those of this node in place, the first of
/// another node by passing the packet on.
#[inline(always)]
pub(crate) fn walk<F: Family, T: Tables<F>>(tables: T, scratch: &mut Scratch) -> Verdict {
    let (arrival, work) = F::work(scratch);
    let now_ns = tables.now_ns();
    let closing = work.knowledge == Knowledge::Closing;
    let named = work.target;
    let asked = &mut arrival.asked;
    if closing && asked.is_full() {
        return Verdict::DELIVER;
    }
    work.closing_at = u32::from(arrival.mark >> mark::CLOSING_SHIFT & mark::CLOSING_MASK);
    asked.push(arrival.identity);
    if closing && work.closing_at == 0 {
        work.closing_at = asked.len();
    }
    let Some(service) = service_of::<F, T>(&tables, &work.subject) else {
        return if closing {
            Verdict::DELIVER
        } else {
            DropReason::NoSuchPod.into()
        };
    };
    candidates::of::<F, T>(tables, service, &work.subject.tuple, &mut work.list);
    let relay_off = tables.config().flags & config_flag::RELAY_OFF != 0;
    // Nobody can tell a first datagram, and those are for pods of this node then. A closing flow's owner is here, and other
    // nodes could not name it to pass its last packets back.
    let stays = service.flags & service_flag::LOCAL_POLICY != 0
        && (closing || work.subject.tuple.proto == protocol::UDP);
    let mut i = 0;
    while i < PLACES {
        let id = work.list.ids[i];
        i += 1;
        if id == 0 || asked.is_full() {
            continue;
        }
        let Some(backend) = tables.backend(id) else {
            continue;
        };
        if asked.contains(backend.identity) || backend.flags & backend_flag::NO_NEXT_HOP != 0 {
            continue;
        }
        let is_here = backend.flags & backend_flag::LOCAL != 0;
        if relay_off || stays && !is_here {
            continue;
        }
        if !is_here {
            work.target.backend = id;
            work.target.mark = (work.closing_at as u8) << mark::CLOSING_SHIFT;
            return Verdict::RELAY;
        }
        asked.push(backend.identity);
        tables.count(Stat::AskedInPlace);
        work.target.aim::<F>(backend);
        match know::<F, T>(tables, work, now_ns) {
            Knowledge::Known => return Verdict::DELIVER,
            Knowledge::Closing if work.closing_at == 0 => work.closing_at = asked.len(),
            Knowledge::Closing | Knowledge::InUse | Knowledge::Unknown => {}
        }
    }
    if work.closing_at != 0 {
        if asked.get(work.closing_at) == Some(named.identity) {
            // This node's own pod, whether or not its tables still name it.
            work.target = named;
            return Verdict::DELIVER;
        }
        return back_to_closing::<F, T>(tables, asked, work);
    }
    Verdict::NOBODY
}

/// A walk that found a closing owner and nobody else ends at that owner.
#[inline(always)]
fn back_to_closing<F: Family, T: Tables<F>>(
    tables: T,
    asked: &Asked,
    work: &mut Work<F::Addr>,
) -> Verdict {
    let Work {
        target,
        list,
        closing_at,
        ..
    } = work;
    let closing_at = *closing_at;
    let owner = asked.get(closing_at);
    let mut i = 0;
    while i < PLACES {
        let id = list.ids[i];
        i += 1;
        let Some(backend) = tables.backend(id) else {
            continue;
        };
        if Some(backend.identity) != owner {
            continue;
        }
        if backend.flags & backend_flag::LOCAL == 0 {
            target.backend = id;
            target.mark = (closing_at as u8) << mark::CLOSING_SHIFT;
            return Verdict::RELAY;
        }
        target.aim::<F>(backend);
        return Verdict::DELIVER;
    }
    DropReason::NoSuchPod.into()
}

/// Nobody is left: a new UDP flow, or a packet of TCP or SCTP to hold back.
#[inline(always)]
pub(crate) fn nobody<F: Family, T: Tables<F>>(tables: T, scratch: &mut Scratch) -> Verdict {
    let (_, work) = F::work(scratch);
    let Work {
        subject,
        target,
        list,
        ..
    } = work;
    let Some(service) = service_of::<F, T>(&tables, subject) else {
        return DropReason::NoSuchPod.into();
    };
    let current = list.current();
    if subject.kind == Kind::IcmpError {
        return DropReason::IcmpUnknownFlow.into();
    }
    if current == 0 {
        return balance::nobody(service).into();
    }
    if subject.tuple.proto != protocol::UDP
        && let Err(reason) = second_sight::<F, T>(tables, subject, tables.now_ns())
    {
        return reason.into();
    }
    let Some(backend) = tables.backend(current) else {
        return DropReason::TableFault.into();
    };
    target.mark = mark::ADMIT;
    if backend.flags & backend_flag::LOCAL == 0 {
        target.backend = current;
        return Verdict::RELAY;
    }
    target.aim::<F>(backend);
    Verdict::ADMIT
}

/// Whether a packet that nobody knows may be delivered: at its second sight within one fresh period.
#[inline(always)]
fn second_sight<F: Family, T: Tables<F>>(
    tables: T,
    subject: &Subject<F::Addr>,
    now_ns: u64,
) -> Result<(), DropReason> {
    // A reset needs no answer, and whoever is meant has none to give.
    if subject.flags & tcp_flag::RST != 0 {
        return Err(DropReason::HeldBack);
    }
    let stamp = tables.stamp();
    if stamp.fresh_since_ns == 0 || now_ns.saturating_sub(stamp.stamped_ns) > STAMP_FRESH_NS {
        return Err(DropReason::NotFresh);
    }
    let Some(first_ns) = tables.held(&subject.tuple) else {
        tables.insert_held(&subject.tuple, now_ns);
        return Err(DropReason::HeldBack);
    };
    let age_ns = now_ns.saturating_sub(first_ns);
    if age_ns < HOLD_BACK_MIN_NS && first_ns >= stamp.fresh_since_ns {
        return Err(DropReason::HeldBack);
    }
    if age_ns > HOLD_BACK_MAX_NS || first_ns < stamp.fresh_since_ns {
        tables.insert_held(&subject.tuple, now_ns);
        return Err(DropReason::HeldBack);
    }
    tables.remove_held(&subject.tuple);
    tables.count(Stat::HeldBackDelivered);
    Ok(())
}
