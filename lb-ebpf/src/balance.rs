//! The balancer: from a packet to a backend. Reads tables, writes nothing but counters and ports of fragments.

use crate::abi::{
    Backend, DropReason, SLOT_DEVIATES, STAMP_FRESH_NS, ServiceEntry, Slot, SourceKey, Stamp, Stat,
    TableRef, Tuple, backend_flag, mark, service_flag,
};
use crate::encap::{self, Asked, Carried};
use crate::family::Family;
use crate::frame::Frame;
use crate::hash;
use crate::subject::{IP_AT, Subject};
use crate::tables::{Shared, Tables};
use crate::verdict::Verdict;
use crate::wire::Ports;
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

/// Where a packet goes, and the mark that says why.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Choice {
    /// Id of the backend.
    pub backend: u32,
    /// See [`mark`].
    pub mark: u8,
}

/// Where a packet of a service goes at the balancer, by the tables.
#[inline(always)]
pub fn choose<T: Shared>(
    tables: &T,
    service: &ServiceEntry,
    hash: u64,
    is_first: impl FnOnce() -> bool,
) -> Result<Choice, DropReason> {
    // A Service that never had a pod has no rows; those at index 0 are another's.
    if service.current.size == 0 {
        return Err(nobody(service));
    }
    let slot = slot(*tables, service, &service.current, hash).ok_or(DropReason::TableFault)?;
    if slot.set & SLOT_DEVIATES != 0 {
        return deviate(tables, service, slot, is_first());
    }
    if slot.first == 0 {
        return Err(nobody(service));
    }
    Ok(Choice {
        backend: slot.first,
        mark: 0,
    })
}

/// A slot whose agreed occupant gets no first packets now: they go to its substitute, and packets in the middle of flows to
/// the agreed occupant all the same, unless its node is suspected.
#[inline(always)]
fn deviate<T: Shared>(
    tables: &T,
    service: &ServiceEntry,
    slot: Slot,
    is_first: bool,
) -> Result<Choice, DropReason> {
    if !is_first {
        let asked = asked_first(*tables, slot.set & !SLOT_DEVIATES);
        if asked != 0 {
            let choice = Choice {
                backend: asked,
                mark: 0,
            };
            return Ok(choice);
        }
    }
    if slot.first == 0 {
        return Err(nobody(service));
    }
    if !is_fresh(tables.stamp(), tables.now_ns()) {
        return Err(DropReason::DeviationNotFresh);
    }
    if is_first {
        tables.count(Stat::Deviated);
    }
    Ok(Choice {
        backend: slot.first,
        mark: mark::DEVIATION,
    })
}

/// The agreed occupant of the slot that a hash leads to, whether or not it gets first packets now; 0: there is none.
#[inline(always)]
pub(crate) fn agreed<T: Shared>(tables: T, service: &ServiceEntry, hash: u64) -> u32 {
    if service.current.size == 0 {
        return 0;
    }
    let Some(slot) = slot(tables, service, &service.current, hash) else {
        return 0;
    };
    if slot.set & SLOT_DEVIATES == 0 {
        return slot.first;
    }
    tables
        .set(slot.set & !SLOT_DEVIATES)
        .map_or(0, |set| set.current)
}

/// Who is asked first of a set: the agreed occupant, or if its node is suspected, the next whose node is not. 0: the set is
/// empty.
#[inline(never)]
fn asked_first<T: Shared>(tables: T, set: u32) -> u32 {
    let Some(set) = tables.set(set) else {
        return 0;
    };
    let [a, b, c] = set.older;
    let order = [set.current, a, b, c, set.substitute];
    let mut i = 0;
    while i < order.len() {
        let id = order[i];
        let is_suspected = tables
            .backend(id)
            .is_none_or(|backend| backend.flags & backend_flag::SUSPECTED != 0);
        if id != 0 && !is_suspected {
            return id;
        }
        i += 1;
    }
    set.current
}

/// Whether this node's agent has completed its lists, applied them, and said so a moment ago.
#[inline(always)]
pub fn is_fresh(stamp: Stamp, now_ns: u64) -> bool {
    stamp.fresh_since_ns != 0 && now_ns.saturating_sub(stamp.stamped_ns) <= STAMP_FRESH_NS
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
    let source = X::open(handle).read::<F::Addr>(IP_AT + F::SRC_AT);
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
            return decap::arrived(&tables, own::at_backend::<F>(backend, carried.mark));
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

/// What a packet of a service must be looked at for, beside its tuple.
pub trait Look<X: Frame> {
    /// Whether it opens a flow.
    fn is_first(&self, frame: &X) -> bool;
    /// Who has pinned its flow last, or 0.
    fn pinned(&self, frame: &X) -> u32;
}

/// A packet of a service, from its tuple to its verdict.
#[inline(always)]
pub fn balance<F: Family, X: Frame, T: Tables<F>>(
    frame: &mut X,
    tables: T,
    service: &ServiceEntry,
    ip: &F::Header,
    tuple: &Tuple<F::Addr>,
    look: &impl Look<X>,
) -> Verdict {
    if F::is_martian(tuple.src) {
        return DropReason::MartianAddress.into();
    }
    let len = F::total_len(ip);
    if IP_AT + len > frame.len() {
        return DropReason::Truncated.into();
    }
    let hash = flow_hash::<F, T>(tables, tuple, &service.current);
    let mut pinned = 0;
    if service.flags & service_flag::PINS != 0 {
        pinned = look.pinned(frame);
    }
    let choice = if pinned != 0 {
        tables.count(Stat::AlongPin);
        let mark = if look.is_first(frame) {
            mark::PINNED
        } else {
            0
        };
        Choice {
            backend: pinned,
            mark,
        }
    } else {
        match choose(&tables, service, hash, || look.is_first(frame)) {
            Ok(choice) => choice,
            Err(reason) => return reason.into(),
        }
    };
    tables.count_service(service.id, frame.len());
    tables.count_backend(choice.backend, frame.len());
    let carried = Carried {
        len,
        class: F::traffic_class(ip),
        hash,
        mark: choice.mark | track(service),
    };
    forward::<F, X, T>(frame, tables, choice.backend, carried)
}

/// The mark of packets whose flows are all pinned.
#[inline(always)]
pub(crate) const fn track(service: &ServiceEntry) -> u8 {
    if service.flags & service_flag::TRACK_ALL != 0 {
        mark::TRACK
    } else {
        0
    }
}

/// Who has pinned the flow of a whole packet last, or 0. Reads the packet anew, as [`admits_sender`] does.
#[inline(never)]
pub(crate) fn pinned<F: Family, X: Frame, T: Tables<F>>(handle: X::Handle, tables: T) -> u32 {
    let frame = X::open(handle);
    let Some(ip) = frame.read::<F::Header>(IP_AT) else {
        return 0;
    };
    let Some(ports) = frame.read::<Ports>(IP_AT + F::HEADER_LEN) else {
        return 0;
    };
    let tuple = Tuple {
        src: F::src(&ip),
        dst: F::dst(&ip),
        ports,
        proto: F::proto(&ip),
        pad: [0; 3],
    };
    tables.pin(&tuple).map_or(0, |pin| pin.backends[0])
}

/// A [`Look`] at a packet whose subject is known.
struct Known<'a, F: Family, T> {
    subject: &'a Subject<F::Addr>,
    tables: T,
}

impl<F: Family, X: Frame, T: Tables<F>> Look<X> for Known<'_, F, T> {
    #[inline(always)]
    fn is_first(&self, _: &X) -> bool {
        self.subject.is_first()
    }

    #[inline(always)]
    fn pinned(&self, _: &X) -> u32 {
        let pin = self.tables.pin(&self.subject.tuple);
        pin.map_or(0, |pin| pin.backends[0])
    }
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
    let look = Known::<F, T> { subject, tables };
    balance::<F, X, T>(frame, tables, service, ip, &subject.tuple, &look)
}
