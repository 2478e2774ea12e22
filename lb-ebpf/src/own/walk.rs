//! Packets of flows that nobody here knows: the candidates are asked in turn, and what no one claims is held back.

use super::know::{Knowledge, know};
use super::{Scratch, Work, service_of};
use crate::abi::{
    DropReason, HOLD_BACK_MAX_NS, HOLD_BACK_MIN_NS, Stat, backend_flag, config_flag, mark,
    service_flag,
};
use crate::balance;
use crate::candidates::{self, PLACES};
use crate::encap::Asked;
use crate::family::Family;
use crate::subject::{Kind, Subject};
use crate::tables::Tables;
use crate::verdict::Verdict;
use crate::wire::{protocol, tcp_flag};

/// Nobody here knows the flow, or only as closing: who else may is written down for [`next`].
#[inline(always)]
pub(crate) fn walk<F: Family, T: Tables<F>>(tables: T, scratch: &mut Scratch) -> Verdict {
    let (arrival, work) = F::work(scratch);
    let closing = work.knowledge == Knowledge::Closing;
    let asked = &mut arrival.asked;
    if closing && asked.is_full() {
        return Verdict::DELIVER;
    }
    work.named = work.target;
    work.closing_at = u32::from(arrival.mark >> mark::CLOSING_SHIFT & mark::CLOSING_MASK);
    // A fresh balancer that is asked for its opinion stands for no pod.
    if arrival.identity != 0 {
        asked.push(arrival.identity);
    }
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
    // Nobody can tell a first datagram, and those are for pods of this node then. A closing flow's owner is here, and other
    // nodes could not name it to pass its last packets back.
    let stays = service.flags & service_flag::LOCAL_POLICY != 0
        && (closing || work.subject.tuple.proto == protocol::UDP);
    work.stays = u32::from(stays);
    Verdict::NEXT
}

/// The next candidate that was not asked: one of this node to ask in place, or one of another to pass the packet on to. If
/// there is none the walk ends. Called again and again, so that it is looked at once by the verifier.
#[inline(always)]
pub(crate) fn next<F: Family, T: Tables<F>>(tables: T, scratch: &mut Scratch) -> Verdict {
    let (arrival, work) = F::work(scratch);
    let asked = &mut arrival.asked;
    let relay_off = tables.config().flags & config_flag::RELAY_OFF != 0;
    let mut i = 0;
    // Twice: those on suspected nodes are asked last, and about a closing flow not at all. Its owner would never get its last
    // packets if they went to a node that is down, and each connection that ends would leave the pod waiting.
    while i < 2 * PLACES && !asked.is_full() && !relay_off {
        let is_last_round = i >= PLACES;
        let place = if is_last_round { i - PLACES } else { i };
        i += 1;
        let id = work.list.ids[place];
        let Some(backend) = tables.backend(id) else {
            continue;
        };
        let is_suspected = backend.flags & backend_flag::SUSPECTED != 0;
        if id == 0
            || is_suspected != is_last_round
            || is_suspected && work.closing_at != 0
            || backend.flags & backend_flag::NO_NEXT_HOP != 0
            || asked.contains(backend.identity)
        {
            continue;
        }
        if backend.flags & backend_flag::LOCAL != 0 {
            asked.push(backend.identity);
            tables.count(Stat::AskedInPlace);
            work.target.aim::<F>(backend);
            return Verdict::ASK;
        }
        // Who has pinned the flow knows it, wherever that is.
        if work.stays == 0 || place < candidates::PINNED {
            let opinion = arrival.mark & mark::SECOND_OPINION;
            work.target.backend = id;
            work.target.mark = (work.closing_at as u8) << mark::CLOSING_SHIFT | opinion;
            return Verdict::RELAY;
        }
    }
    if work.closing_at == 0 {
        return Verdict::NOBODY;
    }
    if asked.get(work.closing_at) == Some(work.named.identity) {
        // This node's own pod, whether or not its tables still name it.
        work.target = work.named;
        return Verdict::DELIVER;
    }
    back_to_closing::<F, T>(tables, asked, work)
}

/// Whether the target, a pod of this node, knows the flow.
#[inline(always)]
pub(crate) fn ask<F: Family, T: Tables<F>>(tables: T, scratch: &mut Scratch) -> Verdict {
    let (arrival, work) = F::work(scratch);
    match know::<F, T>(tables, work, tables.now_ns()) {
        Knowledge::Known => return Verdict::DELIVER,
        Knowledge::Closing if work.closing_at == 0 => work.closing_at = arrival.asked.len(),
        Knowledge::Closing | Knowledge::InUse | Knowledge::Unknown => {}
    }
    Verdict::NEXT
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
    let (arrival, work) = F::work(scratch);
    let Work {
        subject,
        target,
        list,
        ..
    } = work;
    let Some(service) = service_of::<F, T>(&tables, subject) else {
        return DropReason::NoSuchPod.into();
    };
    if subject.kind == Kind::IcmpError {
        return DropReason::IcmpUnknownFlow.into();
    }
    let now_ns = tables.now_ns();
    let is_fresh = balance::is_fresh(tables.stamp(), now_ns);
    if subject.tuple.proto != protocol::UDP {
        let is_told = service.flags & service_flag::STREAMS_UP != 0
            && tables.config().flags & config_flag::NO_PINS == 0;
        let other = tables.config().opinions[usize::from(F::IS_V6)];
        if !(is_fresh && is_told) && other != 0 && arrival.mark & mark::SECOND_OPINION == 0 {
            target.backend = other;
            target.mark = mark::SECOND_OPINION;
            tables.count(Stat::SecondOpinion);
            return Verdict::RELAY;
        }
        if list.first == 0 {
            return balance::nobody(service).into();
        }
        if !(is_fresh && is_told) {
            return DropReason::NotFresh.into();
        }
        if let Err(reason) = second_sight::<F, T>(tables, subject, now_ns) {
            return reason.into();
        }
    }
    if list.first == 0 {
        return balance::nobody(service).into();
    }
    let mut marks = mark::ADMIT | balance::track(service);
    if list.deviates != 0 {
        if !is_fresh {
            return DropReason::DeviationNotFresh.into();
        }
        marks |= mark::DEVIATION;
    }
    let Some(backend) = tables.backend(list.first) else {
        return DropReason::TableFault.into();
    };
    target.mark = marks;
    if backend.flags & backend_flag::LOCAL == 0 {
        target.backend = list.first;
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
    let fresh_since_ns = tables.stamp().fresh_since_ns;
    let Some(first_ns) = tables.held(&subject.tuple) else {
        tables.insert_held(&subject.tuple, now_ns);
        return Err(DropReason::HeldBack);
    };
    let age_ns = now_ns.saturating_sub(first_ns);
    if age_ns < HOLD_BACK_MIN_NS && first_ns >= fresh_since_ns {
        return Err(DropReason::HeldBack);
    }
    if age_ns > HOLD_BACK_MAX_NS || first_ns < fresh_since_ns {
        tables.insert_held(&subject.tuple, now_ns);
        return Err(DropReason::HeldBack);
    }
    tables.remove_held(&subject.tuple);
    tables.count(Stat::HeldBackDelivered);
    Ok(())
}
