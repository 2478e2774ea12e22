//! The balancer: from a packet to a backend. Reads tables, writes nothing but counters and ports of fragments.

use crate::abi::{
    Backend, DropReason, SLOT_DEVIATES, ServiceEntry, Slot, SourceKey, TableRef, Tuple,
    backend_flag, service_flag,
};
use crate::encap::{self, Asked, Carried};
use crate::family::Family;
use crate::frame::Frame;
use crate::hash;
use crate::subject::Subject;
use crate::tables::{Shared, Tables};
use crate::verdict::Verdict;
use crate::{decap, own};

/// The flow hash over the fields that `table` wants.
#[inline(always)]
pub fn flow_hash<F: Family, T: Shared>(tables: T, tuple: &Tuple<F::Addr>, table: &TableRef) -> u64 {
    F::hash(
        &tables.config().hash_key,
        tuple.src,
        tuple.dst,
        tuple.ports,
        tuple.proto,
        table.fields,
    )
}

/// The slot that a hash leads to in a table of at least one row. `None`: the tables contradict each other.
#[inline(always)]
pub fn slot<T: Shared>(
    tables: T,
    service: &ServiceEntry,
    table: &TableRef,
    hash: u64,
) -> Option<Slot> {
    let number = tables.row(table.rows.wrapping_add(hash::row(hash, table.size)))?;
    tables.slot(service.slots.wrapping_add(u32::from(number)))
}

/// Where a packet of a service goes at the balancer: the id of a backend.
#[inline(always)]
pub fn choose<T: Shared>(
    tables: &T,
    service: &ServiceEntry,
    hash: u64,
    is_first: impl FnOnce() -> bool,
) -> Result<u32, DropReason> {
    // A Service that never had a pod has no rows; those at index 0 are another's.
    if service.current.size == 0 {
        return Err(nobody(service));
    }
    let slot = slot(*tables, service, &service.current, hash).ok_or(DropReason::TableFault)?;
    // Mid-flow packets of a slot that deviates go to the agreed occupant first.
    if slot.set & SLOT_DEVIATES != 0 && !is_first() {
        let agreed = tables
            .set(slot.set & !SLOT_DEVIATES)
            .map_or(0, |set| set.current);
        if agreed != 0 {
            return Ok(agreed);
        }
    }
    if slot.first == 0 {
        return Err(nobody(service));
    }
    Ok(slot.first)
}

/// Why nobody gets a packet: under policy Local another node may have somebody.
#[inline(always)]
pub(crate) const fn nobody(service: &ServiceEntry) -> DropReason {
    if service.flags & service_flag::LOCAL_POLICY != 0 {
        DropReason::NoLocalBackend
    } else {
        DropReason::NoBackend
    }
}

/// Whether a source may speak to a Service.
#[inline(always)]
pub fn admits<F: Family, T: Shared>(tables: T, service: &ServiceEntry, source: F::Addr) -> bool {
    service.flags & service_flag::SOURCE_RANGES == 0
        || tables.admits(&SourceKey::new(service.id, F::IS_V6, F::mapped(source)))
}

/// Whether the sender of a packet may speak to the Service with an id that has source ranges. Reads the source anew: a
/// reference to it would keep it in memory for all packets.
#[inline(never)]
pub(crate) fn admits_sender<F: Family, X: Frame, T: Shared>(
    handle: X::Handle,
    tables: T,
    id: u32,
) -> bool {
    let source = X::open(handle).read::<F::Addr>(crate::subject::IP_AT + F::SRC_AT);
    source.is_some_and(|source| tables.admits(&SourceKey::new(id, F::IS_V6, F::mapped(source))))
}

/// Sends a packet on its way to `backend_id`: encapsulated, or as an arrival at this node's own pod.
///
/// `total_len` is what the IP header says, and has been compared with the frame.
#[inline(always)]
pub fn forward<F: Family, X: Frame, T: Tables<F>>(
    frame: &mut X,
    tables: T,
    backend_id: u32,
    carried: Carried,
) -> Verdict {
    let Some(backend) = tables.backend(backend_id) else {
        return DropReason::TableFault.into();
    };
    if backend.flags & (backend_flag::LOCAL | backend_flag::NO_NEXT_HOP) != 0 {
        if backend.flags & backend_flag::LOCAL != 0 {
            return decap::arrived(&tables, own::at_backend::<F>(backend));
        }
        return DropReason::NoNextHop.into();
    }
    send::<F, X>(frame, backend, carried, &Asked::NOBODY)
}

/// Puts the headers in front, unless the packet is too large for them.
#[inline(always)]
pub fn send<F: Family, X: Frame>(
    frame: &mut X,
    backend: &Backend,
    carried: Carried,
    asked: &Asked,
) -> Verdict {
    if carried.len + encap::added::<F>(backend, asked) > usize::from(backend.mtu) {
        // An id that the tables name, but nobody has written: the client cannot help it.
        if backend.mtu == 0 {
            return DropReason::TableFault.into();
        }
        return Verdict::too_big(F::IS_V6, backend.mtu.saturating_sub(F::OVERHEAD));
    }
    match encap::push::<F, X>(frame, backend, carried, asked) {
        Ok(verdict) => verdict,
        Err(reason) => reason.into(),
    }
}

/// A packet of a service, from its tuple to its verdict.
#[inline(always)]
pub fn balance<F: Family, X: Frame, T: Tables<F>>(
    frame: &mut X,
    tables: T,
    service: &ServiceEntry,
    ip: &F::Header,
    tuple: &Tuple<F::Addr>,
    is_first: impl FnOnce(&X) -> bool,
) -> Verdict {
    if F::is_martian(tuple.src) {
        return DropReason::MartianAddress.into();
    }
    let len = F::total_len(ip);
    if crate::subject::IP_AT + len > frame.len() {
        return DropReason::Truncated.into();
    }
    let hash = flow_hash::<F, T>(tables, tuple, &service.current);
    let backend_id = match choose(&tables, service, hash, || is_first(frame)) {
        Ok(chosen) => chosen,
        Err(reason) => return reason.into(),
    };
    tables.count_service(service.id, frame.len());
    tables.count_backend(backend_id, frame.len());
    let carried = Carried {
        len,
        class: F::traffic_class(ip),
        hash,
        mark: 0,
    };
    forward::<F, X, T>(frame, tables, backend_id, carried)
}

/// The same for a packet whose subject took some finding: a fragment or an ICMP error.
#[inline(always)]
pub fn balance_subject<F: Family, X: Frame, T: Tables<F>>(
    frame: &mut X,
    tables: T,
    ip: &F::Header,
    subject: &Subject<F::Addr>,
) -> Verdict {
    let Tuple {
        dst, ports, proto, ..
    } = subject.tuple;
    let Some(service) = tables.service(&F::service_key(dst, ports.dst, proto)) else {
        return Verdict::PASS;
    };
    // An error is about what the pod sent to its client, so it is the client who must be let in, not the router.
    if !admits::<F, T>(tables, service, subject.tuple.src) {
        return DropReason::SourceRange.into();
    }
    balance::<F, X, T>(frame, tables, service, ip, &subject.tuple, |_| {
        subject.is_first()
    })
}
