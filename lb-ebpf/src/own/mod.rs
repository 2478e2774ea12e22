//! The owner node: known, admit, relay, hold back.
//!
//! The packet is as the client sent it, whether it came encapsulated or was for a pod of this node from the start. The
//! node whose pod owns the flow is the only authority on it: a packet of a flow that nobody here knows is passed on to the
//! next candidate, and nobody is asked twice.
//!
//! ```text
//! node ─┬─ unusual: its subject is found first
//!       ├─ known ────────────────────────────────────────────────▶ delivered
//!       ├─ acquaintance: another pod here has answered ──────────▶ deliver
//!       └─ stranger ─┬─ a first packet, or one marked so ────────▶ admit ─▶ deliver
//!                    └─ walk ─▶ next ─┬─ a pod here ─▶ ask ─┬─ knows it ─▶ deliver
//!                                ▲    │                     │
//!                                └────┼─────────────────────┘
//!                                     ├─ another node may know it ─────▶ relay
//!                                     └─ nobody ─┬─ new here, or there ─▶ admit, relay
//!                                                └─ held back
//! ```
//! Each stage is a part by itself ([`crate::parts`]); a verdict that is not final names the next one, and what it must know
//! is in the scratch memory. So no stage stands on another's stack: along a chain of calls the verifier allows 512 bytes.

mod admit;
mod know;
mod walk;

pub use know::{Knowledge, flow_ends, is_closing, know, promote};
pub(crate) use know::{flags_of, is_reported, report};

use crate::abi::{
    Backend, DropReason, FirstPod, Flow, HalfOpen, Limited, POD_ADDRESS_V4, ServiceEntry, Stat,
    TableRef, Tuple, backend_flag, mark,
};
use crate::balance;
use crate::candidates::Candidates;
use crate::decap::Arrival;
use crate::deliver;
use crate::encap::{Asked, Carried};
use crate::family::Family;
use crate::frame::Frame;
use crate::subject::{self, Finding, IP_AT, Subject};
use crate::tables::Tables;
use crate::tags::Tags;
use crate::verdict::Verdict;
use crate::wire::{Addr6, Be16, Be32};

pub(crate) use admit::admit;
use admit::{admitted, answered, first};
pub(crate) use walk::{ask, next, nobody, walk};

/// Where a packet goes, beside the verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Target<A> {
    /// The pod, of this node.
    pub pod: A,
    /// Its port.
    pub port: Be16,
    /// The mark byte to send to another node; for admissions the one that came.
    pub mark: u8,
    /// Identity of the pod and port.
    pub identity: u32,
    /// The backend, of another node.
    pub backend: u32,
}

impl<A> Target<A> {
    /// Makes a backend of this node the target.
    #[inline(always)]
    fn aim<F: Family<Addr = A>>(&mut self, backend: &Backend) {
        self.pod = address::<F>(backend);
        self.port = backend.port;
        self.identity = backend.identity;
    }
}

/// The arrival that a packet for a backend of this node would have had.
#[inline(always)]
pub fn at_backend<F: Family>(backend: &Backend, mark: u8) -> Arrival {
    Arrival {
        pod: F::mapped(address::<F>(backend)),
        port: backend.port,
        mark,
        is_v6: u8::from(F::IS_V6),
        identity: backend.identity,
        asked: Asked::NOBODY,
    }
}

/// The pod address in a local backend's template.
#[inline(always)]
fn address<F: Family>(backend: &Backend) -> F::Addr {
    F::addr_in(&backend.header, POD_ADDRESS_V4)
}

/// What the owner's decision works on. In the kernel it lives in a per-CPU map and not on the stack: the verifier does not
/// follow values in maps, so ways through the program that differ only in them are one way to it, and the stack of a
/// call chain is short (512 bytes).
#[derive(Clone, Copy, Debug, Default)]
pub struct Work<A> {
    /// What the packet is about.
    pub subject: Subject<A>,
    /// Where it goes; at first the pod that it came for.
    pub target: Target<A>,
    /// Who may own its flow.
    pub list: Candidates,
    /// The flow's key in `flows` and `half_open`.
    pub key: Tuple<A>,
    /// An entry to be written.
    pub flow: Flow<A>,
    /// An entry to be written.
    pub half_open: HalfOpen<A>,
    /// An entry to be written.
    pub first: FirstPod<A>,
    /// The pod that it came for, while others are asked.
    pub named: Target<A>,
    /// 1: no other node is asked, but those that have pinned the flow.
    pub stays: u32,
    /// The closing owner's place among the asked, or 0.
    pub closing_at: u32,
    /// What this node knows of the flow, unless the packet is a first one.
    pub knowledge: Knowledge,
}

/// [`Work`] of both families and the arrival that it begins with. All zeroes is a valid value.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scratch {
    /// What came in.
    pub arrival: Arrival,
    /// VLAN tags taken off.
    pub tags: Tags,
    /// The MTU to tell the sender of a packet that is too big.
    pub mtu: u32,
    /// For IPv4.
    pub v4: Work<Be32>,
    /// For IPv6.
    pub v6: Work<Addr6>,
}

/// A packet that has reached a node which may own its flow: delivered if the flow is known. Otherwise
/// [`Verdict::STRANGER`], and what was found is in the scratch memory.
#[inline(always)]
pub fn node<F: Family, X: Frame, T: Tables<F>>(
    handle: X::Handle,
    tables: T,
    scratch: &mut Scratch,
) -> Verdict {
    let mut frame = X::open(handle);
    let Some(ip) = frame.read::<F::Header>(IP_AT) else {
        return DropReason::Truncated.into();
    };
    if !F::is_valid(&ip) || IP_AT + F::total_len(&ip) > frame.len() {
        return DropReason::Truncated.into();
    }
    let (arrival, work) = F::work(scratch);
    // Most are whole.
    if !subject::is_whole::<F>(&ip) {
        return Verdict::UNUSUAL;
    }
    let finding = subject::whole::<F, X>(&frame, &ip, &mut work.subject);
    if finding != Finding::FOUND {
        return finding.verdict();
    }
    own::<F, X, T>(&mut frame, tables, arrival, work)
}

/// The rest of [`node`] for a packet whose subject took some finding: a fragment or an ICMP error.
#[inline(always)]
pub fn unusual<F: Family, X: Frame, T: Tables<F>>(
    handle: X::Handle,
    tables: T,
    scratch: &mut Scratch,
) -> Verdict {
    let (arrival, work) = F::work(scratch);
    own::<F, X, T>(&mut X::open(handle), tables, arrival, work)
}

#[inline(always)]
fn own<F: Family, X: Frame, T: Tables<F>>(
    frame: &mut X,
    tables: T,
    arrival: &Arrival,
    work: &mut Work<F::Addr>,
) -> Verdict {
    let Arrival {
        port,
        mark,
        identity,
        ..
    } = *arrival;
    work.target = Target {
        pod: F::from_mapped(arrival.pod),
        port,
        mark,
        identity,
        backend: 0,
    };
    if work.subject.is_first() {
        return Verdict::STRANGER;
    }
    let knowledge = know::<F, T>(tables, work, tables.now_ns());
    if knowledge == Knowledge::Known {
        tables.count(deliver::stat(work.subject.kind));
        return deliver::to_pod::<F, X>(frame, work);
    }
    work.knowledge = knowledge;
    Verdict::STRANGER
}

/// A packet that [`node`] did not deliver: delivered if another pod here has answered the client. Otherwise still
/// [`Verdict::STRANGER`].
#[inline(always)]
pub fn acquaintance<F: Family, T: Tables<F>>(tables: T, scratch: &mut Scratch) -> Verdict {
    let (arrival, work) = F::work(scratch);
    // A pod of this node, though the tables may have forgotten it, as they do under policy Local.
    let may_be = work.subject.is_first()
        || work.knowledge == Knowledge::Unknown && arrival.mark & mark::ADMIT == 0;
    if may_be && answered::<F, T>(tables, work, tables.now_ns()) {
        Verdict::DELIVER
    } else {
        Verdict::STRANGER
    }
}

/// A packet that nobody here simply knows.
#[inline(always)]
pub fn stranger<F: Family, T: Tables<F>>(tables: T, scratch: &mut Scratch) -> Verdict {
    let (arrival, work) = F::work(scratch);
    if work.subject.is_first() {
        return first::<F, T>(tables, arrival, work, tables.now_ns());
    }
    let knowledge = work.knowledge;
    match knowledge {
        Knowledge::Known => Verdict::DELIVER,
        Knowledge::InUse => DropReason::TupleInUse.into(),
        Knowledge::Closing if closing_owner(arrival) == Some(arrival.identity) => Verdict::DELIVER,
        Knowledge::Unknown if arrival.mark & mark::ADMIT != 0 => {
            admitted::<F, T>(tables, arrival, work)
        }
        Knowledge::Closing | Knowledge::Unknown => Verdict::WALK,
    }
}

/// Delivers to the target.
#[inline(always)]
pub fn deliver<F: Family, X: Frame, T: Tables<F>>(
    handle: X::Handle,
    tables: T,
    scratch: &mut Scratch,
) -> Verdict {
    let (_, work) = F::work(scratch);
    tables.count(deliver::stat(work.subject.kind));
    deliver::to_pod::<F, X>(&mut X::open(handle), work)
}

/// The closing owner that the mark names.
#[inline(always)]
fn closing_owner(arrival: &Arrival) -> Option<u32> {
    let at = arrival.mark >> mark::CLOSING_SHIFT & mark::CLOSING_MASK;
    arrival.asked.get(u32::from(at))
}

/// The service entry that a subject is about.
#[inline(always)]
fn service_of<'a, F: Family, T: Tables<F>>(
    tables: &'a T,
    subject: &Subject<F::Addr>,
) -> Option<&'a ServiceEntry> {
    let Tuple {
        dst, ports, proto, ..
    } = subject.tuple;
    tables.service(&F::service_key(dst, ports.dst, proto))
}

/// Passes the packet on to the target, a backend of another node.
#[inline(always)]
pub fn relay<F: Family, X: Frame, T: Tables<F>>(
    handle: X::Handle,
    tables: T,
    scratch: &mut Scratch,
) -> Verdict {
    let (arrival, work) = F::work(scratch);
    let Work {
        subject, target, ..
    } = work;
    if !tables.take(Limited::Relay, tables.now_ns()) {
        return DropReason::RelayRate.into();
    }
    let mut frame = X::open(handle);
    let Some(backend) = tables.backend(target.backend) else {
        return DropReason::TableFault.into();
    };
    if backend.flags & backend_flag::NO_NEXT_HOP != 0 {
        return DropReason::NoNextHop.into();
    }
    let Some(ip) = frame.read::<F::Header>(IP_AT) else {
        return DropReason::Truncated.into();
    };
    let hash = balance::flow_hash::<F, T>(tables, &subject.tuple, &TableRef::default());
    let carried = Carried {
        len: F::total_len(&ip),
        class: F::traffic_class(&ip),
        hash,
        mark: target.mark,
    };
    tables.count(Stat::Relayed);
    balance::send::<F, X>(&mut frame, backend, carried, &arrival.asked)
}
