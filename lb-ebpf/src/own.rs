//! The owner node: known, admit, relay, hold back.
//!
//! The packet is as the client sent it, whether it came encapsulated or was for a pod of this node from the start. The
//! node whose pod owns the flow is the only authority on it: a packet of a flow that nobody here knows is passed on to the
//! next candidate, and nobody is asked twice.

use crate::abi::{
    Backend, DropReason, FirstPod, Flow, HALF_OPEN_IDLE_TICKS, HOLD_BACK_MAX_NS, HOLD_BACK_MIN_NS,
    HalfOpen, LocalKey, POD_ADDRESS_V4, STAMP_FRESH_NS, ServiceEntry, Stat, TICK_SHIFT, TableRef,
    Tuple, backend_flag, config_flag, flow_flag, flow_state, mark,
};
use crate::balance;
use crate::candidates::{self, Candidates, PLACES};
use crate::decap::Arrival;
use crate::deliver;
use crate::encap::{Asked, Carried};
use crate::family::Family;
use crate::frame::Frame;
use crate::path::Tags;
use crate::subject::{self, Finding, IP_AT, Kind, Subject};
use crate::tables::Tables;
use crate::verdict::Verdict;
use crate::wire::{Addr6, Be16, Be32, Ports, protocol, tcp_flag};

/// What a node knows about a flow and one of its pods.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Knowledge {
    /// Nothing.
    Unknown,
    /// The pod owns it.
    Known,
    /// The pod owned it; it is closing.
    Closing,
    /// The client's tuple is in use for the same pod through another VIP or port.
    InUse,
}

/// Where a packet goes, beside the verdict of [`decide`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Target<A> {
    /// [`Step::DELIVER`]: the pod.
    pub pod: A,
    /// Its port.
    pub port: Be16,
    /// [`Step::RELAY`]: the mark byte to send; for admissions the one that came.
    pub mark: u8,
    /// Identity of the pod and port.
    pub identity: u32,
    /// [`Step::RELAY`]: the backend.
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

/// What to do with a packet at the owner node, in one word (see [`Verdict`]).
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step(u64);

impl Step {
    /// To a pod of this node.
    pub const DELIVER: Self = Self(0);
    /// To a backend of another node, with the list of those asked.
    pub const RELAY: Self = Self(1);

    /// Dropped for a reason.
    #[inline(always)]
    pub const fn drop(reason: DropReason) -> Self {
        Self(2 | (reason as u64) << 32)
    }
}

impl From<DropReason> for Step {
    #[inline(always)]
    fn from(reason: DropReason) -> Self {
        Self::drop(reason)
    }
}

/// The arrival that a packet for a backend of this node would have had.
#[inline(always)]
pub fn at_backend<F: Family>(backend: &Backend) -> Arrival {
    Arrival {
        pod: F::mapped(address::<F>(backend)),
        port: backend.port,
        mark: 0,
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
    /// The closing owner: one more than its place among the asked, or 0.
    pub closing_at: u32,
}

/// [`Work`] of both families and the arrival that it begins with. All zeroes is a valid value.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scratch {
    /// What came in.
    pub arrival: Arrival,
    /// VLAN tags taken off.
    pub tags: Tags,
    /// For IPv4.
    pub v4: Work<Be32>,
    /// For IPv6.
    pub v6: Work<Addr6>,
}

/// A packet that has reached a node which may own its flow: decides, then acts.
#[inline(never)]
pub fn node<F: Family, X: Frame, T: Tables<F>>(
    handle: X::Handle,
    tables: T,
    scratch: &mut Scratch,
) -> Verdict {
    let frame = X::open(handle);
    let Some(ip) = frame.read::<F::Header>(IP_AT) else {
        return DropReason::Truncated.into();
    };
    if !F::is_valid(&ip) || IP_AT + F::total_len(&ip) > frame.len() {
        return DropReason::Truncated.into();
    }
    let (arrival, work) = F::work(scratch);
    let finding = subject::of::<F, X, T>(handle, tables, &mut work.subject);
    if finding == Finding::OTHER {
        return DropReason::EncapMalformed.into();
    }
    if finding != Finding::FOUND {
        return finding.verdict();
    }
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
    let step = decide::<F, T>(tables, arrival, work);
    if step == Step::DELIVER {
        tables.count(deliver::stat(work.subject.kind));
        return deliver::to_pod::<F, X>(handle, work);
    }
    if step == Step::RELAY {
        return relay::<F, X, T>(handle, tables, work, &arrival.asked);
    }
    Verdict::of_step(step.0)
}

/// What to do with a packet about a flow that may be this node's.
///
/// Writes flow state (what the client does to a flow, admissions, first sights) and nothing of the packet.
#[inline(never)]
pub fn decide<F: Family, T: Tables<F>>(
    tables: T,
    arrival: &mut Arrival,
    work: &mut Work<F::Addr>,
) -> Step {
    let now_ns = tables.now_ns();
    if work.subject.is_first() {
        return first::<F, T>(tables, arrival, work, now_ns);
    }
    match know::<F, T>(tables, work, now_ns) {
        Knowledge::Known => Step::DELIVER,
        Knowledge::InUse => DropReason::TupleInUse.into(),
        Knowledge::Closing if closing_owner(arrival) == Some(arrival.identity) => Step::DELIVER,
        Knowledge::Unknown if arrival.mark & mark::ADMIT != 0 => {
            admit::<F, T>(tables, work, now_ns)
        }
        known => walk::<F, T>(tables, arrival, work, known == Knowledge::Closing, now_ns),
    }
}

/// The closing owner that the mark names.
#[inline(always)]
fn closing_owner(arrival: &Arrival) -> Option<u32> {
    let at = arrival.mark >> mark::CLOSING_SHIFT & mark::CLOSING_MASK;
    if at == 0 {
        None
    } else {
        arrival.asked.get(u32::from(at) - 1)
    }
}

/// The key of a flow in `flows` and `half_open`.
#[inline(always)]
fn flow_key<F: Family>(subject: &Subject<F::Addr>, pod: F::Addr, port: Be16) -> Tuple<F::Addr> {
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
const fn tick(now_ns: u64) -> u32 {
    (now_ns >> TICK_SHIFT) as u32
}

/// What this node knows about the flow and one of its own pods. Notes what the client does to the flow, and promotes a
/// half-open flow whose SYN-ACK this packet acknowledges.
#[inline(never)]
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
        let ends = flow_ends(subject.tcp_flags);
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
    let mut deviation = 0;
    let mut acknowledged = false;
    let known = tables.half_open(key, |half_open| {
        if half_open.identity != identity {
            return Knowledge::Unknown;
        }
        if half_open.vip != vip || half_open.vip_port != vip_port {
            return Knowledge::InUse;
        }
        if subject.tuple.proto == protocol::TCP
            && subject.kind == Kind::Packet
            && subject.tcp_flags & tcp_flag::ACK != 0
        {
            acknowledged = acknowledges(half_open, subject.ack);
            if !acknowledged {
                return Knowledge::Unknown;
            }
        }
        if half_open.mark & mark::DEVIATION != 0 {
            deviation = flow_flag::DEVIATION;
        }
        half_open.seen = tick;
        Knowledge::Known
    });
    if acknowledged {
        let client = flow_ends(subject.tcp_flags);
        *flow = Flow {
            seen: tick,
            vip,
            vip_port,
            client,
            pod: 0,
            identity,
            flags: deviation,
        };
        promote::<F, T>(tables, key, flow);
    }
    known.unwrap_or(Knowledge::Unknown)
}

/// Moves a flow from `half_open` to `flows`. When the table is full the half-open entry stays and serves.
#[inline(always)]
pub fn promote<F: Family, T: Tables<F>>(tables: T, key: &Tuple<F::Addr>, flow: &Flow<F::Addr>) {
    if tables.insert_flow(key, flow) {
        tables.remove_half_open(key);
        tables.count(Stat::Promoted);
    } else {
        tables.count(Stat::FlowTableFull);
    }
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

/// Both sides have sent FIN, or one has reset the connection.
#[inline(always)]
pub const fn is_closing<A>(flow: &Flow<A>) -> bool {
    flow.client & flow.pod & flow_state::FIN != 0 || (flow.client | flow.pod) & flow_state::RST != 0
}

/// The bits that a segment's flags set on its sender's side of a flow.
#[inline(always)]
pub const fn flow_ends(tcp_flags: u8) -> u8 {
    let fin = if tcp_flags & tcp_flag::FIN != 0 {
        flow_state::FIN
    } else {
        0
    };
    let rst = if tcp_flags & tcp_flag::RST != 0 {
        flow_state::RST
    } else {
        0
    };
    fin | rst
}

/// Whether the pod and port that a packet names live here.
#[inline(always)]
fn lives_here<F: Family, T: Tables<F>>(tables: T, target: &Target<F::Addr>) -> bool {
    tables
        .local(&LocalKey {
            addr: target.pod,
            port: target.port,
            pad: 0,
        })
        .is_some_and(|local| local.identity == target.identity)
}

/// A SYN: for the pod that has already answered it, or admitted for the pod that is named.
#[inline(always)]
fn first<F: Family, T: Tables<F>>(
    tables: T,
    arrival: &mut Arrival,
    work: &mut Work<F::Addr>,
    now_ns: u64,
) -> Step {
    let named = work.target;
    if let Some(answered) = tables.first(&work.subject.tuple)
        && answered.identity != named.identity
    {
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
            return Step::DELIVER;
        }
        work.target = named;
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

/// Delivers to the pod that is named, if it lives here, and notes the flow as half-open.
#[inline(never)]
fn admit<F: Family, T: Tables<F>>(tables: T, work: &mut Work<F::Addr>, now_ns: u64) -> Step {
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

/// Nobody here knows the flow, or only as closing: ask the other candidates, those of this node in place, the first of
/// another node by passing the packet on.
#[inline(never)]
fn walk<F: Family, T: Tables<F>>(
    tables: T,
    arrival: &mut Arrival,
    work: &mut Work<F::Addr>,
    closing: bool,
    now_ns: u64,
) -> Step {
    let asked = &mut arrival.asked;
    work.closing_at = u32::from(arrival.mark >> mark::CLOSING_SHIFT & mark::CLOSING_MASK);
    asked.push(arrival.identity);
    if closing && work.closing_at == 0 {
        work.closing_at = asked.len();
    }
    let Some(service) = service_of::<F, T>(&tables, &work.subject) else {
        return DropReason::NoSuchPod.into();
    };
    candidates::of::<F, T>(tables, service, &work.subject.tuple, &mut work.list);
    let relay_off = tables.config().flags & config_flag::RELAY_OFF != 0;
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
        if backend.flags & backend_flag::LOCAL == 0 {
            if relay_off {
                continue;
            }
            work.target.backend = id;
            work.target.mark = (work.closing_at as u8) << mark::CLOSING_SHIFT;
            return Step::RELAY;
        }
        asked.push(backend.identity);
        tables.count(Stat::AskedInPlace);
        work.target.aim::<F>(backend);
        match know::<F, T>(tables, work, now_ns) {
            Knowledge::Known => return Step::DELIVER,
            Knowledge::Closing if work.closing_at == 0 => work.closing_at = asked.len(),
            Knowledge::Closing | Knowledge::InUse | Knowledge::Unknown => {}
        }
    }
    if work.closing_at != 0 {
        return back_to_closing::<F, T>(tables, asked, work);
    }
    nobody::<F, T>(tables, work, now_ns)
}

/// A walk that found a closing owner and nobody else ends at that owner.
#[inline(always)]
fn back_to_closing<F: Family, T: Tables<F>>(
    tables: T,
    asked: &Asked,
    work: &mut Work<F::Addr>,
) -> Step {
    let Work {
        target,
        list,
        closing_at,
        ..
    } = work;
    let closing_at = *closing_at;
    let owner = asked.get(closing_at.wrapping_sub(1));
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
            return Step::RELAY;
        }
        target.aim::<F>(backend);
        return Step::DELIVER;
    }
    DropReason::NoSuchPod.into()
}

/// Nobody is left: a new UDP flow, or a TCP packet to hold back.
#[inline(always)]
fn nobody<F: Family, T: Tables<F>>(tables: T, work: &mut Work<F::Addr>, now_ns: u64) -> Step {
    let Work {
        subject,
        target,
        list,
        ..
    } = work;
    let current = list.current();
    if subject.kind == Kind::IcmpError {
        return DropReason::IcmpUnknownFlow.into();
    }
    if subject.tuple.proto == protocol::TCP
        && let Err(reason) = second_sight::<F, T>(tables, subject, now_ns)
    {
        return reason.into();
    }
    let Some(backend) = tables.backend(current) else {
        return DropReason::NoBackend.into();
    };
    target.mark = mark::ADMIT;
    if backend.flags & backend_flag::LOCAL == 0 {
        target.backend = current;
        return Step::RELAY;
    }
    target.aim::<F>(backend);
    admit::<F, T>(tables, work, now_ns)
}

/// Whether a TCP packet that nobody knows may be delivered: at its second sight within one fresh period.
#[inline(always)]
fn second_sight<F: Family, T: Tables<F>>(
    tables: T,
    subject: &Subject<F::Addr>,
    now_ns: u64,
) -> Result<(), DropReason> {
    // A reset needs no answer, and whoever is meant has none to give.
    if subject.tcp_flags & tcp_flag::RST != 0 {
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

/// Passes the packet on to a backend of another node.
#[inline(never)]
fn relay<F: Family, X: Frame, T: Tables<F>>(
    handle: X::Handle,
    tables: T,
    work: &Work<F::Addr>,
    asked: &Asked,
) -> Verdict {
    let Work {
        subject, target, ..
    } = work;
    if !tables.take_relay(tables.now_ns()) {
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
    balance::send::<F, X>(&mut frame, backend, carried, asked)
}
