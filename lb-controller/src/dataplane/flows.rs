//! The flows of this node: listed for operators, swept when they have ended, purged with their pods.
//!
//! Decides when a flow has ended ([`expired`], pure); does not know who owns it or which tables name it.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use lb_ebpf::abi::{
    self, FirstPod, Flow, HalfOpen, Plain, Tuple, flow_flag, flow_state, map, mark,
};
use lb_ebpf::wire::{Addr6, Be32};
use nix::time::{ClockId, clock_gettime};

use super::ApplyError;
use super::pin::{PinDir, PinError};
use super::sys::More;
use super::table::HashTable;
use crate::model::op::PinKey;
use crate::model::pins::FlowKey;

/// TCP over IP.
pub const TCP: u8 = 6;
/// UDP over IP.
pub const UDP: u8 = 17;
/// SCTP over IP.
pub const SCTP: u8 = 132;

/// After how many ticks without a packet a flow has ended ([`abi::TICK_SHIFT`]: about 1.07 s each).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdleTimeouts {
    /// Open TCP flows, and protocols of which we know nothing else.
    pub tcp_ticks: u32,
    /// UDP.
    pub udp_ticks: u32,
    /// TCP flows that were closed by both ends or reset by one.
    pub closing_ticks: u32,
}

impl Default for IdleTimeouts {
    /// 24 hours, three minutes, two minutes: what 4-consistency promises, and twice a maximum segment lifetime.
    fn default() -> Self {
        Self {
            tcp_ticks: ticks(24 * 60 * 60),
            udp_ticks: ticks(3 * 60),
            closing_ticks: ticks(2 * 60),
        }
    }
}

/// How long a half-open flow is worth a pin after the last packet of either side: until the pod has sent its SYN-ACK for the
/// fifth time, 15 seconds after the fourth (`net.ipv4.tcp_synack_retries`).
const HALF_OPEN_PIN_TICKS: u32 = ticks(16);
/// How long a closed flow is: a few times as long as its last packets are sent again.
const CLOSED_PIN_TICKS: u32 = ticks(3);

/// Whether a flow was closed by both ends, or reset by one.
const fn is_closed(client: u8, pod: u8) -> bool {
    client & pod & flow_state::FIN != 0 || (client | pod) & flow_state::RST != 0
}

/// Whole ticks in so many seconds, rounded up.
const fn ticks(seconds: u64) -> u32 {
    (seconds * 1_000_000_000).div_ceil(1 << abi::TICK_SHIFT) as u32
}

/// The tick it is now, by the clock that the programs read.
pub fn now_tick() -> u32 {
    // Every kernel has this clock; at tick 0 nothing would have ended.
    clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).map_or(0, |now| {
        let now_ns = now.tv_sec().cast_unsigned() * 1_000_000_000 + now.tv_nsec().cast_unsigned();
        (now_ns >> abi::TICK_SHIFT) as u32
    })
}

/// Whether a known flow has ended: closed a while ago, or silent for too long.
///
/// `seen` may be ahead of `now_tick`, since packets pass meanwhile; that is not a long silence.
pub fn expired<A>(flow: &Flow<A>, protocol: u8, now_tick: u32, timeouts: &IdleTimeouts) -> bool {
    let idle = now_tick.wrapping_sub(flow.seen).cast_signed().max(0);
    let limit = match protocol {
        UDP => timeouts.udp_ticks,
        TCP | SCTP if is_closed(flow.client, flow.pod) => timeouts.closing_ticks,
        _ => timeouts.tcp_ticks,
    };
    idle.cast_unsigned() > limit
}

/// One flow, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowRecord {
    /// TCP, UDP or SCTP.
    pub protocol: u8,
    /// The client.
    pub client: SocketAddr,
    /// The VIP that it speaks to.
    pub vip: SocketAddr,
    /// The pod that owns the flow.
    pub pod: SocketAddr,
    /// Identity of that pod and port.
    pub identity: u32,
    /// How far it has come.
    pub stage: Stage,
    /// Ticks since the last packet of either side.
    pub idle_ticks: u32,
    /// The programs have said that it must be pinned.
    pub is_reported: bool,
}

impl FlowRecord {
    /// Whether it is worth a pin. A half-open flow that nothing came of is only forgotten when its place is wanted, and of one
    /// that was closed nothing but a late acknowledgement can be lost.
    pub fn is_open(&self) -> bool {
        let limit = match self.stage {
            Stage::HalfOpen => HALF_OPEN_PIN_TICKS,
            Stage::Known { client, pod } if is_closed(client, pod) => CLOSED_PIN_TICKS,
            Stage::Known { .. } => u32::MAX,
        };
        self.idle_ticks <= limit
    }

    /// Whether its pod has confirmed it.
    pub fn is_known(&self) -> bool {
        match self.stage {
            Stage::HalfOpen => false,
            Stage::Known { .. } => true,
        }
    }
}

/// How far a flow has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The pod has not confirmed it.
    HalfOpen,
    /// Known; bits of [`flow_state`].
    Known {
        /// What the client has sent.
        client: u8,
        /// What the pod has sent.
        pod: u8,
    },
}

/// An address of one of the two families, as a host address.
pub(super) trait Address: Plain + Default {
    fn ip(self) -> IpAddr;
}

impl Address for Be32 {
    fn ip(self) -> IpAddr {
        IpAddr::V4(Ipv4Addr::from(self.to_bytes()))
    }
}

impl Address for Addr6 {
    fn ip(self) -> IpAddr {
        IpAddr::V6(Ipv6Addr::from(self.to_bytes()))
    }
}

/// The tables of one family.
struct Family<A> {
    flows: HashTable<Tuple<A>, Flow<A>>,
    half_open: HashTable<Tuple<A>, HalfOpen<A>>,
    first: HashTable<Tuple<A>, FirstPod<A>>,
    held: HashTable<Tuple<A>, u64>,
}

impl<A: Address> Family<A>
where
    Tuple<A>: Plain + Default,
    Flow<A>: Plain + Default,
    HalfOpen<A>: Plain + Default,
    FirstPod<A>: Plain + Default,
{
    fn open(pins: &PinDir, names: [&'static str; 4]) -> Result<Self, PinError> {
        Ok(Self {
            flows: HashTable::open(pins, names[0])?,
            half_open: HashTable::open(pins, names[1])?,
            first: HashTable::open(pins, names[2])?,
            held: HashTable::open(pins, names[3])?,
        })
    }

    fn purge(&self, identities: &HashSet<u32>) -> Result<u64, ApplyError> {
        let dead = |identity: u32| identities.contains(&identity);
        // Flows last: while a flow is known its first packet's pod is not asked for.
        Ok(remove_where(&self.first, |_, value| dead(value.identity))?
            + remove_where(&self.half_open, |_, value| dead(value.identity))?
            + remove_where(&self.flows, |_, value| dead(value.identity))?)
    }

    fn usage(&self) -> Result<Vec<(&'static str, u64, u64)>, ApplyError> {
        Ok(vec![
            self.flows.usage()?,
            self.half_open.usage()?,
            self.first.usage()?,
            self.held.usage()?,
        ])
    }

    fn sweep(&self, now_tick: u32, timeouts: &IdleTimeouts) -> Result<u64, ApplyError> {
        remove_where(&self.flows, |key, flow| {
            expired(flow, key.proto, now_tick, timeouts)
        })
    }

    fn list(
        &self,
        now_tick: u32,
        visit: &mut dyn FnMut(FlowRecord) -> More,
    ) -> Result<More, ApplyError> {
        let mut more = More::Yes;
        self.flows.scan(|key, flow| {
            more = visit(known_record(key, flow, now_tick));
            more
        })?;
        if more == More::No {
            return Ok(more);
        }
        self.half_open.scan(|key, flow| {
            more = visit(half_open_record(key, flow, now_tick));
            more
        })?;
        Ok(more)
    }

    /// Whether a flow is worth a pin.
    fn is_open(&self, key: &Tuple<A>, now_tick: u32) -> Result<bool, ApplyError> {
        if let Some(flow) = self.flows.get(key)? {
            return Ok(known_record(key, &flow, now_tick).is_open());
        }
        let half_open = self.half_open.get(key)?;
        Ok(half_open.is_some_and(|flow| half_open_record(key, &flow, now_tick).is_open()))
    }
}

fn known_record<A: Address>(key: &Tuple<A>, flow: &Flow<A>, now_tick: u32) -> FlowRecord {
    let vip = SocketAddr::new(flow.vip.ip(), flow.vip_port.get());
    let stage = Stage::Known {
        client: flow.client,
        pod: flow.pod,
    };
    FlowRecord {
        is_reported: flow.flags & (flow_flag::DEVIATION | flow_flag::TRACK) != 0,
        ..record(key, vip, flow.identity, stage, now_tick, flow.seen)
    }
}

fn half_open_record<A: Address>(key: &Tuple<A>, flow: &HalfOpen<A>, now_tick: u32) -> FlowRecord {
    let vip = SocketAddr::new(flow.vip.ip(), flow.vip_port.get());
    FlowRecord {
        // One that nobody has answered yet is no flow, and may never become one.
        is_reported: flow.answers > 0 && flow.mark & mark::REPORTED != 0,
        ..record(
            key,
            vip,
            flow.identity,
            Stage::HalfOpen,
            now_tick,
            flow.seen,
        )
    }
}

fn record<A: Address>(
    key: &Tuple<A>,
    vip: SocketAddr,
    identity: u32,
    stage: Stage,
    now_tick: u32,
    seen: u32,
) -> FlowRecord {
    FlowRecord {
        protocol: key.proto,
        client: SocketAddr::new(key.src.ip(), key.ports.src.get()),
        vip,
        pod: SocketAddr::new(key.dst.ip(), key.ports.dst.get()),
        identity,
        stage,
        idle_ticks: now_tick
            .wrapping_sub(seen)
            .cast_signed()
            .max(0)
            .cast_unsigned(),
        is_reported: false,
    }
}

/// Removes all entries that `gone` accepts, each checked again as it is taken out.
fn remove_where<K: Plain + Default, V: Plain + Default>(
    table: &HashTable<K, V>,
    gone: impl Fn(&K, &V) -> bool,
) -> Result<u64, ApplyError> {
    let mut keys = Vec::new();
    table.scan(|key, value| {
        if gone(key, value) {
            keys.push(*key);
        }
        More::Yes
    })?;
    let mut removed = 0;
    for key in keys {
        removed += u64::from(table.remove_if(&key, &gone)?);
    }
    Ok(removed)
}

/// The flows of this node, both families. Opened from the pins, so that a reader needs no share in the rest.
pub struct Flows {
    v4: Family<Be32>,
    v6: Family<Addr6>,
}

impl Flows {
    /// Opens the pinned tables.
    pub fn open(pins: &PinDir) -> Result<Self, PinError> {
        Ok(Self {
            v4: Family::open(
                pins,
                [map::FLOWS4, map::HALF_OPEN4, map::FIRST4, map::HELD4],
            )?,
            v6: Family::open(
                pins,
                [map::FLOWS6, map::HALF_OPEN6, map::FIRST6, map::HELD6],
            )?,
        })
    }

    /// Name, used entries and all entries of the maps of flows. Scans them.
    pub fn usage(&self) -> Result<Vec<(&'static str, u64, u64)>, ApplyError> {
        let mut usage = self.v4.usage()?;
        usage.extend(self.v6.usage()?);
        Ok(usage)
    }

    /// Calls `visit` for every flow, known ones of each family first, until it answers `false`.
    pub fn list(&self, visit: impl FnMut(FlowRecord) -> bool) -> Result<(), ApplyError> {
        self.list_at(now_tick(), visit)
    }

    /// The same at another tick, for a clock that is not the kernel's.
    pub fn list_at(
        &self,
        now: u32,
        mut visit: impl FnMut(FlowRecord) -> bool,
    ) -> Result<(), ApplyError> {
        let mut visit = |record| {
            if visit(record) { More::Yes } else { More::No }
        };
        if self.v4.list(now, &mut visit)? == More::Yes {
            self.v6.list(now, &mut visit)?;
        }
        Ok(())
    }

    /// Whether the flow of a client and a pod is worth a pin, see [`FlowRecord::is_open`].
    pub fn is_open(
        &self,
        protocol: u8,
        client: SocketAddr,
        pod: SocketAddr,
    ) -> Result<bool, ApplyError> {
        self.is_open_at(now_tick(), protocol, client, pod)
    }

    /// The same at another tick.
    pub fn is_open_at(
        &self,
        now: u32,
        protocol: u8,
        client: SocketAddr,
        pod: SocketAddr,
    ) -> Result<bool, ApplyError> {
        // The same two ends, named as a pinned flow is.
        match FlowKey::new(protocol, client, pod).map(|key| key.tuple()) {
            Ok(PinKey::V4(key)) => self.v4.is_open(&key, now),
            Ok(PinKey::V6(key)) => self.v6.is_open(&key, now),
            Err(_) => Ok(false),
        }
    }

    /// How many flows are known, by the identity of their pod; for status, metrics and later for retirement.
    pub fn count_known(&self) -> Result<std::collections::HashMap<u32, u64>, ApplyError> {
        let mut counts = std::collections::HashMap::new();
        let mut count = |identity| *counts.entry(identity).or_default() += 1;
        self.v4.flows.scan(|_, flow| {
            count(flow.identity);
            More::Yes
        })?;
        self.v6.flows.scan(|_, flow| {
            count(flow.identity);
            More::Yes
        })?;
        Ok(counts)
    }

    /// Removes flows that have ended; answers how many.
    pub fn sweep(&self, now_tick: u32, timeouts: &IdleTimeouts) -> Result<u64, ApplyError> {
        Ok(self.v4.sweep(now_tick, timeouts)? + self.v6.sweep(now_tick, timeouts)?)
    }

    /// Removes everything about pods and ports that are gone; answers how many entries.
    pub fn purge(&self, identities: &HashSet<u32>) -> Result<u64, ApplyError> {
        Ok(self.v4.purge(identities)? + self.v6.purge(identities)?)
    }

    /// Flows that wait for a second sight: protocol, client, VIP and when they were first seen (monotonic
    /// nanoseconds).
    pub fn held(&self) -> Result<Vec<(u8, SocketAddr, SocketAddr, u64)>, ApplyError> {
        let mut held = Vec::new();
        self.v4.held.scan(|key, since| {
            held.push(held_entry(key, *since));
            More::Yes
        })?;
        self.v6.held.scan(|key, since| {
            held.push(held_entry(key, *since));
            More::Yes
        })?;
        Ok(held)
    }
}

fn held_entry<A: Address>(key: &Tuple<A>, since: u64) -> (u8, SocketAddr, SocketAddr, u64) {
    (
        key.proto,
        SocketAddr::new(key.src.ip(), key.ports.src.get()),
        SocketAddr::new(key.dst.ip(), key.ports.dst.get()),
        since,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUTS: IdleTimeouts = IdleTimeouts {
        tcp_ticks: 1000,
        udp_ticks: 30,
        closing_ticks: 20,
    };

    fn flow(seen: u32, client: u8, pod: u8) -> Flow<Be32> {
        Flow {
            seen,
            client,
            pod,
            ..Flow::default()
        }
    }

    fn ended(flow: &Flow<Be32>, protocol: u8, now: u32) -> bool {
        expired(flow, protocol, now, &TIMEOUTS)
    }

    #[test]
    fn flows_end_after_the_silence_of_their_kind() {
        use flow_state::{FIN, RST};
        assert!(!ended(&flow(5, 0, 0), TCP, 1005));
        assert!(ended(&flow(5, 0, 0), TCP, 1006));
        assert!(!ended(&flow(5, 0, 0), UDP, 35));
        assert!(ended(&flow(5, 0, 0), UDP, 36));
        assert!(!ended(&flow(5, FIN, FIN), TCP, 25));
        for (client, pod) in [(FIN, FIN), (RST, 0), (0, RST)] {
            assert!(ended(&flow(5, client, pod), TCP, 26), "{client} {pod}");
        }
    }

    #[test]
    fn a_flow_is_worth_a_pin_while_something_can_come_of_it() {
        let end = "192.0.2.1:1".parse().unwrap();
        let is_open = |stage, idle_ticks| {
            let record = FlowRecord {
                protocol: TCP,
                client: end,
                vip: end,
                pod: end,
                identity: 1,
                stage,
                idle_ticks,
                is_reported: false,
            };
            record.is_open()
        };
        let known = |client, pod| Stage::Known { client, pod };
        let fin = flow_state::FIN;
        assert!(is_open(known(0, 0), 80_000));
        assert!(is_open(known(fin, 0), 80_000));
        assert!(is_open(known(fin, fin), CLOSED_PIN_TICKS));
        assert!(!is_open(known(fin, fin), CLOSED_PIN_TICKS + 1));
        assert!(is_open(Stage::HalfOpen, HALF_OPEN_PIN_TICKS));
        assert!(!is_open(Stage::HalfOpen, HALF_OPEN_PIN_TICKS + 1));
    }

    #[test]
    fn half_closed_flow_lives_as_long_as_an_open_one() {
        assert!(!ended(&flow(5, flow_state::FIN, 0), TCP, 500));
        assert!(!ended(&flow(5, 0, flow_state::FIN), TCP, 500));
    }

    #[test]
    fn packet_seen_after_now_was_read_is_no_long_silence() {
        assert!(!ended(&flow(6, 0, 0), UDP, 5));
        assert!(!ended(&flow(3, 0, 0), UDP, u32::MAX));
        assert!(ended(&flow(u32::MAX, 0, 0), UDP, 40));
    }

    #[test]
    fn default_timeouts_are_the_promised_ones() {
        let IdleTimeouts {
            tcp_ticks,
            udp_ticks,
            closing_ticks,
        } = IdleTimeouts::default();
        assert_eq!((tcp_ticks, udp_ticks, closing_ticks), (80_467, 168, 112));
    }
}
