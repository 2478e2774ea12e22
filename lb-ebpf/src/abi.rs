//! Every type, id, limit and reason that the programs and user space share through maps.
//!
//! Rules: `repr(C)`, only integers and byte arrays, explicit padding, one compile-time proof per type ([`plain!`]).
//! One file on purpose: it is the contract, and is read and versioned as a whole. Changing anything here bumps
//! [`ABI_VERSION`]; the test at the end pins sizes and offsets.
//! Ids: 0 means "none" for backends and sets; array maps are indexed by them directly.

use crate::wire::{Addr6, Be16, Be32, Mac, Ports};

/// Version of everything in this file. Part of the pin path, so that two layouts never share a map.
pub const ABI_VERSION: u32 = 5;

/// A type without padding whose every bit pattern is valid, so that it can be copied from and to bytes.
///
/// # Safety
/// Only [`plain!`] implements it: the macro proves that the fields fill the type and are plain themselves.
pub unsafe trait Plain: Copy + 'static {}

macro_rules! plain_integers {
    ($($t:ty),*) => { $(
        // SAFETY: integers have no padding and no invalid values.
        unsafe impl Plain for $t {}
    )* };
}
plain_integers!(u8, u16, u32, u64);
// SAFETY: an array adds no padding between or after its elements.
unsafe impl<T: Plain, const N: usize> Plain for [T; N] {}

/// Proves at compile time that the listed fields are all there are, are plain, and fill the type exactly.
macro_rules! plain {
    ($t:ty, $($field:tt : $ft:ty),+ $(,)?) => {
        const _: () = {
            const fn is_plain<T: $crate::abi::Plain>() {}
            type Proven = $t;
            // A field left out of the list is a compile error here.
            #[allow(dead_code, reason = "only checked, never called")]
            fn complete(value: $t) {
                let Proven { $( $field: _ ),+ } = value;
            }
            $( is_plain::<$ft>(); )+
            assert!(0 $( + core::mem::size_of::<$ft>() )+ == core::mem::size_of::<$t>(), "padding");
        };
        // SAFETY: shown above: plain fields without padding between or after them.
        unsafe impl $crate::abi::Plain for $t {}
        #[cfg(feature = "user")]
        // SAFETY: as above; aya asks for no more than that.
        unsafe impl aya::Pod for $t {}
    };
}
pub(crate) use plain;

// ---------------------------------------------------------------------------------------------------------------------
// Limits
// ---------------------------------------------------------------------------------------------------------------------

/// Longest VLAN stack parsed. Two covers QinQ; more is counted as [`DropReason::VlanTooDeep`] when it hides a VIP.
pub const VLAN_DEPTH_MAX: usize = 2;
/// Longest list of candidates that a packet is passed along, and so the longest list of asked candidates in the
/// encapsulation (24 bytes).
pub const CANDIDATES_MAX: usize = 6;
/// Older occupants that a slot remembers.
pub const OLDER_MAX: usize = 3;
/// Previous tables that a service names beside its current one.
pub const PREVIOUS_MAX: usize = 2;
/// Slots of one service: at 100 rows a slot the largest table of the ladder holds them with room to spare.
pub const SLOTS_MAX: usize = 5_000;
/// Rows in one element of the `rows` map.
pub const ROWS_PER_ELEMENT: u32 = 4;
/// Outer headers in front of a client's packet, Ethernet excluded: the most there can be, relays included.
pub const OVERHEAD_V4: u16 = 84;
/// The same when the outer header or the pod address is IPv6.
pub const OVERHEAD_V6: u16 = 116;
/// Bytes of [`Backend::header`]: Ethernet (14), IPv6 (40), UDP (8), Geneve (8), option (36) are 106.
pub const HEADER_MAX: usize = 112;

/// Geneve (RFC 8926): the default UDP port.
pub const GENEVE_PORT: u16 = 6081;
/// The VNI of all our packets.
pub const GENEVE_VNI: u32 = 1;
/// Our option class, from the range for experimental use (RFC 8926, section 7).
pub const GENEVE_OPTION_CLASS: u16 = 0xff42;
/// Our option type: 1, critical.
pub const GENEVE_OPTION_KIND: u8 = 0x81;

/// UDP port of the liveness probe, at the addresses of nodes; see [`crate::probe`].
pub const PROBE_PORT: u16 = 6082;

/// Default sizes of the maps; the agent may ask for others when it creates them.
pub mod capacity {
    /// Services of one family (entries are per address, port and protocol).
    pub const SERVICES: u32 = 32_768;
    /// Records of services that are not in use: the next version of one is written beside it.
    pub const SPARE_RECORDS: u32 = 64;
    /// Words of the directory of one family, see [`crate::directory`]. A power of two, four times [`SERVICES`]; fixed, so
    /// that the packet path knows it.
    pub const DIRECTORY: u32 = 1 << 17;
    /// Elements of four rows.
    pub const ROWS: u32 = 1 << 20;
    /// Slots.
    pub const SLOTS: u32 = 1 << 18;
    /// Sets: every slot has one, and the next version of some is written beside it.
    pub const SETS: u32 = SLOTS + SLOTS / 4;
    /// Regions of rows.
    pub const REGIONS: u32 = 4_096;
    /// Backends.
    pub const BACKENDS: u32 = 1 << 17;
    /// Pins of one family (`PINS_MAX`).
    pub const PINS: u32 = 1 << 16;
    /// Flows of one family.
    pub const FLOWS: u32 = 1 << 18;
    /// Half-open flows of one family.
    pub const HALF_OPEN: u32 = 1 << 16;
    /// Held-back flows of one family.
    pub const HELD: u32 = 1 << 14;
    /// Fragmented packets under way.
    pub const FRAGMENTS: u32 = 1 << 13;
    /// Source ranges of all ports of all services. Memory is taken as they come.
    pub const SOURCE_RANGES: u32 = 1 << 16;
    /// Nodes.
    pub const PEERS: u32 = 1 << 13;
    /// VIPs announced by this node, on each of its interfaces.
    pub const ANNOUNCED: u32 = 1 << 15;
    /// Claims of others to VIPs: a few VIPs can be disputed at a time, and the agent reads them every second.
    pub const CLAIMS: u32 = 1 << 10;
    /// Backend ports of this node's own pods, per family.
    pub const LOCALS: u32 = 1 << 13;
    /// Bytes of the event ring.
    pub const EVENTS: u32 = 1 << 20;
    /// Interfaces that packets can be redirected to.
    pub const INTERFACES: u32 = 1 << 10;
}

/// Names of the maps in the object and below the pin directory.
pub mod map {
    /// Index → [`super::ServiceRecord`] of a [`super::ServiceKey4`], array, found through [`DIRECTORY4`]. 0 is not used.
    pub const SERVICES4: &str = "services4";
    /// Index → [`super::ServiceRecord`] of a [`super::ServiceKey6`], array, found through [`DIRECTORY6`]. 0 is not used.
    pub const SERVICES6: &str = "services6";
    /// All words of a [`crate::directory`], array of one element, mmap-able.
    pub const DIRECTORY4: &str = "directory4";
    /// See [`DIRECTORY4`].
    pub const DIRECTORY6: &str = "directory6";
    /// Index → four rows (`[u16; 4]`), array, mmap-able.
    pub const ROWS: &str = "rows";
    /// Index → [`super::Slot`], array, mmap-able.
    pub const SLOTS: &str = "slots";
    /// Id → [`super::Set`], array.
    pub const SETS: &str = "sets";
    /// Id → [`super::Region`], array.
    pub const REGIONS: &str = "regions";
    /// Id → [`super::Backend`], array.
    pub const BACKENDS: &str = "backends";
    /// [`super::Tuple`] (client, VIP) → [`super::Pin`], preallocated hash, one per family.
    pub const PINS4: &str = "pins4";
    /// See [`PINS4`].
    pub const PINS6: &str = "pins6";
    /// [`super::Tuple`] (client, pod) → [`super::Flow`], preallocated hash, one per family.
    pub const FLOWS4: &str = "flows4";
    /// See [`FLOWS4`].
    pub const FLOWS6: &str = "flows6";
    /// [`super::Tuple`] (client, pod) → [`super::HalfOpen`], LRU, one per family.
    pub const HALF_OPEN4: &str = "half_open4";
    /// See [`HALF_OPEN4`].
    pub const HALF_OPEN6: &str = "half_open6";
    /// [`super::Tuple`] (client, VIP) → [`super::FirstPod`], LRU, one per family.
    pub const FIRST4: &str = "first4";
    /// See [`FIRST4`].
    pub const FIRST6: &str = "first6";
    /// [`super::Tuple`] (client, VIP) → nanoseconds of the first sight, LRU, one per family.
    pub const HELD4: &str = "held4";
    /// See [`HELD4`].
    pub const HELD6: &str = "held6";
    /// [`super::FragmentKey`] → [`super::FragmentPorts`], LRU, one per family.
    pub const FRAGMENTS4: &str = "fragments4";
    /// See [`FRAGMENTS4`].
    pub const FRAGMENTS6: &str = "fragments6";
    /// [`super::LocalKey`] → [`super::LocalPod`], hash, one per family.
    pub const LOCALS4: &str = "locals4";
    /// See [`LOCALS4`].
    pub const LOCALS6: &str = "locals6";
    /// [`super::SourceRange`] → 1, LPM trie.
    pub const SOURCE_RANGES: &str = "source_ranges";
    /// Address of a node (IPv4 mapped) → number of the node, hash.
    pub const PEERS: &str = "peers";
    /// [`super::AnnouncedKey`] → [`super::Announcement`], hash.
    pub const ANNOUNCED: &str = "announced";
    /// [`super::Claim`] → monotonic nanoseconds of the last sight, LRU.
    pub const CLAIMS: &str = "claims";
    /// Interface index → the same, device-map hash for redirects.
    pub const INTERFACES: &str = "interfaces";
    /// 0 → [`super::Config`], array.
    pub const CONFIG: &str = "config";
    /// 0 → [`super::Stamp`], array, mmap-able.
    pub const STAMP: &str = "stamp";
    /// [`super::Limited`] → [`super::Bucket`], per-CPU array.
    pub const BUCKETS: &str = "buckets";
    /// [`super::ServiceEntry::id`] → [`super::Count`], per-CPU array.
    pub const SERVICES_COUNT: &str = "services_count";
    /// Backend id → [`super::Count`], per-CPU array.
    pub const BACKENDS_COUNT: &str = "backends_count";
    /// [`super::DropReason`] → packets, per-CPU array.
    pub const DROPS: &str = "drops";
    /// [`super::Stat`] → packets, per-CPU array.
    pub const STATS: &str = "stats";
    /// Records for the agent, ring buffer.
    pub const EVENTS: &str = "events";
}

// ---------------------------------------------------------------------------------------------------------------------
// Services, tables, slots
// ---------------------------------------------------------------------------------------------------------------------

/// Key of a service over IPv4. Port 0 and protocol 0 mark a VIP itself, for echo, errors and fragments.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord, Debug)]
pub struct ServiceKey4 {
    /// The VIP.
    pub addr: Be32,
    /// The port of the service.
    pub port: Be16,
    /// TCP, UDP or SCTP.
    pub proto: u8,
    /// Zero.
    pub pad: u8,
}

/// Key of a service over IPv6, see [`ServiceKey4`].
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord, Debug)]
pub struct ServiceKey6 {
    /// The VIP.
    pub addr: Addr6,
    /// The port of the service.
    pub port: Be16,
    /// TCP, UDP or SCTP.
    pub proto: u8,
    /// Zero.
    pub pad: u8,
}

/// A table as a service names it. `size` 0: there is none.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct TableRef {
    /// Index of its first row, in rows; a multiple of [`ROWS_PER_ELEMENT`].
    pub rows: u32,
    /// Number of rows (a prime of the ladder).
    pub size: u32,
    /// What the flow hash covers, see [`hash_fields`].
    pub fields: u32,
}

/// Values of [`TableRef::fields`].
pub mod hash_fields {
    /// Addresses, ports and protocol.
    pub const FIVE_TUPLE: u32 = 0;
    /// Addresses only: `sessionAffinity: ClientIP`.
    pub const ADDRESSES: u32 = 1;
}

/// What a service key leads to.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct ServiceEntry {
    /// Index of its counters. Entries of one Service and port in both families share it.
    pub id: u32,
    /// See [`service_flag`].
    pub flags: u32,
    /// Index of its first slot; rows name slots relative to it.
    pub slots: u32,
    /// How many slots it has, closed ones included.
    pub slot_count: u32,
    /// The table of new flows.
    pub current: TableRef,
    /// Tables that may still own flows, newest first.
    pub previous: [TableRef; PREVIOUS_MAX],
}

/// A service as it lies in `services4` and `services6`: immutable while the directory names it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct ServiceRecord<K> {
    /// Its key.
    pub key: K,
    /// What the key leads to.
    pub entry: ServiceEntry,
}

/// Bits of [`ServiceEntry::flags`].
pub mod service_flag {
    /// Only marks a VIP (port 0, protocol 0).
    pub const VIP: u32 = 1 << 0;
    /// Some flow of the service is pinned: look it up.
    pub const PINS: u32 = 1 << 1;
    /// `externalTrafficPolicy: Local`.
    pub const LOCAL_POLICY: u32 = 1 << 2;
    /// Only sources in `source_ranges` may speak to it.
    pub const SOURCE_RANGES: u32 = 1 << 3;
    /// Every flow is pinned, whoever owns it.
    pub const TRACK_ALL: u32 = 1 << 4;
    /// The handoff streams of all its owner nodes are up and past their snapshots.
    pub const STREAMS_UP: u32 = 1 << 5;
}

/// One slot: the packet path reads no more than this. Replaced by one aligned store.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Slot {
    /// The backend of first packets; 0: none.
    pub first: u32,
    /// Id of its set ([`Set`]), 0 for the empty one; the upper bit is [`SLOT_DEVIATES`].
    pub set: u32,
}

/// Bit of [`Slot::set`]: first packets go to a substitute, so they are marked as deviations and the agreed occupant is
/// [`Set::current`].
pub const SLOT_DEVIATES: u32 = 1 << 31;

/// Who else may own flows of a slot. Immutable from its first use until a grace period after its release.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Set {
    /// The agreed occupant while the slot deviates, else 0.
    pub current: u32,
    /// Older occupants, newest first, 0 where there is none.
    pub older: [u32; OLDER_MAX],
    /// The standing substitute, or 0.
    pub substitute: u32,
}

/// A region of rows, so that tables are found again after a restart.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Region {
    /// Index of its first row; a multiple of [`ROWS_PER_ELEMENT`].
    pub rows: u32,
    /// Number of rows; 0: the region is free.
    pub size: u32,
    /// Digest of the shape that the rows were made from.
    pub digest: u64,
}

// ---------------------------------------------------------------------------------------------------------------------
// Backends
// ---------------------------------------------------------------------------------------------------------------------

/// A pod and port, and how to reach it. The hot fields are the first 16 bytes; the whole is two cache lines.
///
/// `header` is what goes in front of the client's packet (Ethernet, IP, UDP, Geneve, our option), complete but for the
/// lengths, the DSCP and ECN bits, the outer checksum and the UDP source port. For a pod of this node it is what its
/// encapsulation over IPv4 would be, so the pod address is always at [`POD_ADDRESS_V4`].
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Backend {
    /// Interface to send from; 0: the one that the packet came in on.
    pub ifindex: u32,
    /// Largest IP packet, outer headers included, that its interface takes.
    pub mtu: u16,
    /// Bytes of `header` in use: 74, 86, 94 or 106.
    pub header_len: u8,
    /// See [`backend_flag`].
    pub flags: u8,
    /// Hash of pod UID and port.
    pub identity: u32,
    /// Port of the pod.
    pub port: Be16,
    /// Zero.
    pub pad: u16,
    /// The headers to put in front.
    pub header: [u8; HEADER_MAX],
}

impl Default for Backend {
    fn default() -> Self {
        Self {
            ifindex: 0,
            mtu: 0,
            header_len: 0,
            flags: 0,
            identity: 0,
            port: Be16::default(),
            pad: 0,
            header: [0; HEADER_MAX],
        }
    }
}

/// Bits of [`Backend::flags`].
pub mod backend_flag {
    /// The pod is on this node: deliver without encapsulation.
    pub const LOCAL: u8 = 1 << 0;
    /// The outer header is IPv6.
    pub const OUTER_V6: u8 = 1 << 1;
    /// The pod address is IPv6.
    pub const INNER_V6: u8 = 1 << 2;
    /// No route or neighbour is known: dropped as [`super::DropReason::NoNextHop`].
    pub const NO_NEXT_HOP: u8 = 1 << 3;
    /// Its node is suspected to be down: asked last.
    pub const SUSPECTED: u8 = 1 << 4;
}

/// Where the pod address starts in [`Backend::header`] when the outer header is IPv4.
pub const POD_ADDRESS_V4: usize = 14 + 20 + 8 + 8 + 8;
/// The same when it is IPv6.
pub const POD_ADDRESS_V6: usize = 14 + 40 + 8 + 8 + 8;

/// Bits of the mark byte in the encapsulation.
pub mod mark {
    /// A first packet that went elsewhere than the agreed table says.
    pub const DEVIATION: u8 = 1 << 0;
    /// Sent along a pin.
    pub const PINNED: u8 = 1 << 1;
    /// Nobody knows the flow: deliver it as a new one.
    pub const ADMIT: u8 = 1 << 2;
    /// Sent to a fresh balancer for its opinion.
    pub const SECOND_OPINION: u8 = 1 << 3;
    /// Where the closing owner starts: three bits, its place in the list of asked candidates, counted from 1, or 0 for
    /// none.
    pub const CLOSING_SHIFT: u8 = 4;
    /// The bits of the closing owner, shifted down.
    pub const CLOSING_MASK: u8 = 0b111;
    /// Every flow of the service is pinned, whoever owns it.
    pub const TRACK: u8 = 1 << 7;
    /// What a half-open flow remembers: why its promotion is reported.
    pub const REPORTED: u8 = DEVIATION | TRACK;
}

// ---------------------------------------------------------------------------------------------------------------------
// Flows, at the owner node
// ---------------------------------------------------------------------------------------------------------------------

/// Two ends and a protocol over addresses `A`. For `flows` and `half_open`: client and pod; for `first`, `pins` and
/// `held`: client and VIP. Always from the client's side.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Tuple<A> {
    /// The client.
    pub src: A,
    /// The pod or the VIP.
    pub dst: A,
    /// Ports of both.
    pub ports: Ports,
    /// TCP, UDP or SCTP.
    pub proto: u8,
    /// Zero.
    pub pad: [u8; 3],
}

/// A flow that this node owns. The client's side is written by XDP, the pod's by TC, each in bytes of its own, so that
/// two processors never overwrite each other.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Flow<A> {
    /// Last packet of either side, in ticks ([`TICK_SHIFT`]).
    pub seen: u32,
    /// The VIP that the client speaks to.
    pub vip: A,
    /// Its port.
    pub vip_port: Be16,
    /// What the client has sent, see [`flow_state`].
    pub client: u8,
    /// What the pod has sent.
    pub pod: u8,
    /// Identity of the pod and port that own the flow.
    pub identity: u32,
    /// See [`flow_flag`].
    pub flags: u32,
}

/// Bits of [`Flow::client`] and [`Flow::pod`].
pub mod flow_state {
    /// A FIN was sent.
    pub const FIN: u8 = 1 << 0;
    /// An RST was sent. On the client's side it counts until the pod sends anything but an RST.
    pub const RST: u8 = 1 << 1;
}

/// Bits of [`Flow::flags`].
pub mod flow_flag {
    /// Pinned at the balancers.
    pub const PINNED: u32 = 1 << 0;
    /// Came as a deviation.
    pub const DEVIATION: u32 = 1 << 1;
    /// Of a service whose flows are all pinned.
    pub const TRACK: u32 = 1 << 2;
}

/// A flow that the pod has not confirmed: a SYN without an acknowledged SYN-ACK, or UDP without a reply.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct HalfOpen<A> {
    /// Last packet of either side, in ticks ([`TICK_SHIFT`]).
    pub seen: u32,
    /// The VIP that the client speaks to.
    pub vip: A,
    /// Its port.
    pub vip_port: Be16,
    /// How many of `isn` are set.
    pub answers: u8,
    /// Marks of the packet that made it ([`mark`]), of those in [`mark::REPORTED`]; and [`mark::PINNED`] once the agent has
    /// pinned it at the balancers.
    pub mark: u8,
    /// Identity of the pod and port.
    pub identity: u32,
    /// Sequence numbers of the last two different SYN-ACKs, newest first; of SCTP the tags that INIT ACKs have asked for.
    pub isn: [u32; 2],
    /// Highest sequence number that left the pod, plus one for the SYN.
    pub high: u32,
}

/// Value of `first`: the pod of this node that answered a client's SYN.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct FirstPod<A> {
    /// Its address.
    pub pod: A,
    /// Its port.
    pub port: Be16,
    /// Zero.
    pub pad: u16,
    /// Its identity.
    pub identity: u32,
}

/// Key of `locals`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct LocalKey<A> {
    /// Address of a pod of this node.
    pub addr: A,
    /// A port that is a backend.
    pub port: Be16,
    /// Zero.
    pub pad: u16,
}

/// Value of `locals`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct LocalPod {
    /// Identity of the pod and port that live there now.
    pub identity: u32,
    /// Its backend id.
    pub backend: u32,
}

/// Value of `pins`: backend ids, newest first, 0 where there is none.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Pin {
    /// Up to two owners.
    pub backends: [u32; 2],
}

/// Key of `fragments`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct FragmentKey<A> {
    /// Source address as in the fragment.
    pub src: A,
    /// Destination address as in the fragment.
    pub dst: A,
    /// Identification.
    pub id: Be32,
    /// Protocol.
    pub proto: u8,
    /// Zero.
    pub pad: [u8; 3],
}

/// Value of `fragments`: what the first fragment told.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct FragmentPorts<A> {
    /// Ports as in the first fragment.
    pub ports: Ports,
    /// For replies: the VIP that replaces the source address.
    pub vip: A,
}

/// What `source_ranges` compares from the left.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord, Debug)]
pub struct SourceKey {
    /// [`ServiceEntry::id`], with [`SOURCE_V6`] for IPv6: no range of one family says anything about the other.
    pub service: Be32,
    /// Source; IPv4 mapped.
    pub addr: Addr6,
}

/// Bit of [`SourceKey::service`]: the source is IPv6. Ids are below it.
pub const SOURCE_V6: u32 = 1 << 31;
/// Bits of a whole [`SourceKey`].
pub const SOURCE_BITS: u32 = 32 + 128;

/// Key of `source_ranges`, as the kernel's prefix tries want it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord, Debug)]
pub struct SourceRange {
    /// Bits of `key` that count, from the left; at least 32.
    pub prefix_len: u32,
    /// What they are compared with.
    pub key: SourceKey,
}

impl SourceKey {
    /// A source of a Service.
    #[inline(always)]
    pub const fn new(service: u32, is_v6: bool, addr: Addr6) -> Self {
        let family = if is_v6 { SOURCE_V6 } else { 0 };
        Self {
            service: Be32::new(service | family),
            addr,
        }
    }
}

impl SourceRange {
    /// The id of the Service.
    pub const fn service(&self) -> u32 {
        self.key.service.get() & !SOURCE_V6
    }

    /// Whether a source is in the range.
    pub fn contains(&self, source: &SourceKey) -> bool {
        let bits = |key: &SourceKey| {
            let addr = u128::from_be_bytes(key.addr.to_bytes());
            (key.service.get(), addr)
        };
        let (ours, theirs) = (bits(&self.key), bits(source));
        let mask = match self.prefix_len.saturating_sub(32) {
            0 => 0,
            len => u128::MAX << (128 - len.min(128)),
        };
        ours.0 == theirs.0 && (ours.1 ^ theirs.1) & mask == 0
    }
}

/// Key of `announced`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord, Debug)]
pub struct AnnouncedKey {
    /// The VIP; IPv4 mapped.
    pub addr: Addr6,
    /// The interface on which it is announced.
    pub ifindex: u32,
}

/// Value of `announced`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Announcement {
    /// The MAC to answer with: that of the interface.
    pub mac: Mac,
    /// Zero.
    pub pad: [u8; 2],
}

/// Key of `claims`: somebody has said on the wire that a VIP is at another MAC than this node announces on that interface.
/// On nodes that do not announce it the announcer's own claims are among them.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Claim {
    /// The VIP; IPv4 mapped.
    pub addr: Addr6,
    /// The interface that it was heard on.
    pub ifindex: u32,
    /// The MAC that was claimed.
    pub mac: Mac,
    /// Zero.
    pub pad: [u8; 2],
}

// ---------------------------------------------------------------------------------------------------------------------
// Node, agent, counters
// ---------------------------------------------------------------------------------------------------------------------

/// 64-bit words of [`Config::hash_key`], see [`crate::hash`].
pub const HASH_KEY_WORDS: usize = 11;

/// The one entry of `config`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Config {
    /// Keys of the flow hash.
    pub hash_key: [u64; HASH_KEY_WORDS],
    /// The encapsulation secret, and the one also accepted (equal when there is only one).
    pub secrets: [[Be32; 2]; 2],
    /// Relays per second that this node sends; each processor may send a quarter of them.
    pub relays_per_second: u64,
    /// Address of this node, or 0.
    pub node4: Be32,
    /// Address of this node, or 0.
    pub node6: Addr6,
    /// UDP port of the encapsulation.
    pub geneve_port: Be16,
    /// Largest MSS that leaves in a SYN-ACK over IPv4.
    pub mss4: u16,
    /// The same over IPv6.
    pub mss6: u16,
    /// See [`config_flag`].
    pub flags: u16,
    /// ICMP errors per second that this node sends in the names of VIPs, a quarter of them on each processor (RFC 1812,
    /// section 4.3.2.8; RFC 4443, section 2.4 (f)).
    pub icmp_errors_per_second: u32,
    /// Ids of backends that stand for a fresh balancer and no pod, for clients over IPv4 and IPv6; 0: there is none.
    pub opinions: [u32; 2],
    /// Flows reported per second while they are half-open, a quarter of them on each processor. One that is left out is
    /// reported when its client answers.
    pub half_open_reports_per_second: u32,
    /// Zero.
    pub pad: u32,
}

/// Bits of [`Config::flags`].
pub mod config_flag {
    /// Ask no other candidate about unknown packets, neither on another node nor in place: they are held back at once.
    /// For control experiments only.
    pub const RELAY_OFF: u16 = 1 << 0;
    /// The node is no balancer and holds no pins: it asks for a second opinion before it holds a packet back.
    pub const NO_PINS: u16 = 1 << 1;
}

/// The one entry of `stamp`: the agent's sign of life, written every 100 ms.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Stamp {
    /// Monotonic time of the last stamp.
    pub stamped_ns: u64,
    /// Since when the node has been fresh without a gap; 0: it is not fresh.
    pub fresh_since_ns: u64,
}

/// A stamp older than this is not fresh.
pub const STAMP_FRESH_NS: u64 = 1_000_000_000;
/// With a stamp older than this nothing is answered for VIPs any more: another node takes over.
pub const STAMP_ANNOUNCES_NS: u64 = 3_000_000_000;
/// The second sight of a held-back packet counts from here: later than a stamp is fresh, so that an agent which dies before a
/// pin has reached it delivers nothing any more …
pub const HOLD_BACK_MIN_NS: u64 = STAMP_FRESH_NS + 500_000_000;
/// … to here.
pub const HOLD_BACK_MAX_NS: u64 = 30_000_000_000;
/// A tick is 2^30 ns of the coarse monotonic clock, about 1.07 s: fine enough for idle times, and a busy flow dirties its
/// cache line once a tick instead of once a packet.
pub const TICK_SHIFT: u32 = 30;
/// A half-open entry without a packet for this many ticks may be replaced by another flow of the same tuple.
pub const HALF_OPEN_IDLE_TICKS: u32 = 60;

/// Values of per-CPU `services_count` and `backends_count`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Count {
    /// Packets forwarded.
    pub packets: u64,
    /// Their bytes, Ethernet header included, as they came in.
    pub bytes: u64,
}

/// What is sent at a limited rate: an index into `buckets`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Limited {
    /// Packets passed on to another node.
    Relay,
    /// ICMP errors in a VIP's name.
    IcmpError,
    /// Flows reported before their clients have shown that they exist.
    Report,
}

impl Limited {
    /// How many there are.
    pub const COUNT: u32 = 3;
}

/// A record of `events`: a flow that balancers may not find by their tables alone. Its pod has answered the first packet, or
/// its client that answer.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Event {
    /// The client; IPv4 mapped.
    pub client: Addr6,
    /// The VIP; IPv4 mapped.
    pub vip: Addr6,
    /// The pod; IPv4 mapped.
    pub pod: Addr6,
    /// Ports of client and VIP.
    pub ports: Ports,
    /// The pod's port.
    pub pod_port: Be16,
    /// TCP, UDP or SCTP.
    pub proto: u8,
    /// 1: addresses are IPv6.
    pub is_v6: u8,
    /// Identity of the pod and port.
    pub identity: u32,
    /// Why: bits of [`flow_flag`].
    pub flags: u32,
}

/// Per-CPU state of a rate limit: a bucket of tokens.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Bucket {
    /// When it was filled last.
    pub filled_ns: u64,
    /// What is left.
    pub tokens: u64,
}

plain!(ServiceKey4, addr: Be32, port: Be16, proto: u8, pad: u8);
plain!(ServiceKey6, addr: Addr6, port: Be16, proto: u8, pad: u8);
plain!(TableRef, rows: u32, size: u32, fields: u32);
plain!(ServiceEntry, id: u32, flags: u32, slots: u32, slot_count: u32, current: TableRef, previous: [TableRef; PREVIOUS_MAX]);
plain!(ServiceRecord<ServiceKey4>, key: ServiceKey4, entry: ServiceEntry);
plain!(ServiceRecord<ServiceKey6>, key: ServiceKey6, entry: ServiceEntry);
plain!(Slot, first: u32, set: u32);
plain!(Set, current: u32, older: [u32; OLDER_MAX], substitute: u32);
plain!(Region, rows: u32, size: u32, digest: u64);
plain!(Backend, ifindex: u32, mtu: u16, header_len: u8, flags: u8, identity: u32, port: Be16, pad: u16, header: [u8; HEADER_MAX]);
plain!(Tuple<Be32>, src: Be32, dst: Be32, ports: Ports, proto: u8, pad: [u8; 3]);
plain!(Tuple<Addr6>, src: Addr6, dst: Addr6, ports: Ports, proto: u8, pad: [u8; 3]);
plain!(Flow<Be32>, seen: u32, vip: Be32, vip_port: Be16, client: u8, pod: u8, identity: u32, flags: u32);
plain!(Flow<Addr6>, seen: u32, vip: Addr6, vip_port: Be16, client: u8, pod: u8, identity: u32, flags: u32);
plain!(HalfOpen<Be32>, seen: u32, vip: Be32, vip_port: Be16, answers: u8, mark: u8, identity: u32, isn: [u32; 2], high: u32);
plain!(HalfOpen<Addr6>, seen: u32, vip: Addr6, vip_port: Be16, answers: u8, mark: u8, identity: u32, isn: [u32; 2], high: u32);
plain!(FirstPod<Be32>, pod: Be32, port: Be16, pad: u16, identity: u32);
plain!(FirstPod<Addr6>, pod: Addr6, port: Be16, pad: u16, identity: u32);
plain!(LocalKey<Be32>, addr: Be32, port: Be16, pad: u16);
plain!(LocalKey<Addr6>, addr: Addr6, port: Be16, pad: u16);
plain!(LocalPod, identity: u32, backend: u32);
plain!(Pin, backends: [u32; 2]);
plain!(FragmentKey<Be32>, src: Be32, dst: Be32, id: Be32, proto: u8, pad: [u8; 3]);
plain!(FragmentKey<Addr6>, src: Addr6, dst: Addr6, id: Be32, proto: u8, pad: [u8; 3]);
plain!(FragmentPorts<Be32>, ports: Ports, vip: Be32);
plain!(FragmentPorts<Addr6>, ports: Ports, vip: Addr6);
plain!(SourceKey, service: Be32, addr: Addr6);
plain!(SourceRange, prefix_len: u32, key: SourceKey);
plain!(AnnouncedKey, addr: Addr6, ifindex: u32);
plain!(Announcement, mac: Mac, pad: [u8; 2]);
plain!(Claim, addr: Addr6, ifindex: u32, mac: Mac, pad: [u8; 2]);
plain!(Config, hash_key: [u64; HASH_KEY_WORDS], secrets: [[Be32; 2]; 2], relays_per_second: u64, node4: Be32, node6: Addr6, geneve_port: Be16, mss4: u16, mss6: u16, flags: u16, icmp_errors_per_second: u32, opinions: [u32; 2], half_open_reports_per_second: u32, pad: u32);
plain!(Stamp, stamped_ns: u64, fresh_since_ns: u64);
plain!(Event, client: Addr6, vip: Addr6, pod: Addr6, ports: Ports, pod_port: Be16, proto: u8, is_v6: u8, identity: u32, flags: u32);
plain!(Count, packets: u64, bytes: u64);
plain!(Bucket, filled_ns: u64, tokens: u64);

macro_rules! counted {
    ($(#[$meta:meta])* $name:ident, $all:ident { $($(#[$vmeta:meta])* $variant:ident = $label:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum $name { $($(#[$vmeta])* $variant),+ }

        impl $name {
            /// All of them, in the order of their numbers.
            pub const $all: &[Self] = &[$(Self::$variant),+];
            /// How many there are: the size of the map that counts them.
            pub const COUNT: u32 = Self::$all.len() as u32;
            /// The label in metrics and in `lbctl`.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$variant => $label),+ }
            }
        }
    };
}

counted! {
    /// Why a packet was dropped: exactly one per dropped packet, counted in `drops`.
    DropReason, ALL {
        /// Shorter than its headers say.
        Truncated = "truncated",
        /// More VLAN tags than [`VLAN_DEPTH_MAX`].
        VlanTooDeep = "vlan_too_deep",
        /// IPv4 options in a packet to a VIP.
        IpOptions = "ip_options",
        /// IPv6 extension headers, other than fragment, in a packet to a VIP.
        ExtensionHeader = "extension_header",
        /// A mapped, loopback or multicast source address.
        MartianAddress = "martian_address",
        /// A fragment whose first fragment was not seen.
        FragmentUnknown = "fragment_unknown",
        /// A fragment that overlaps the transport header (RFC 1858, RFC 3128).
        FragmentOverlap = "fragment_overlap",
        /// A source outside the Service's ranges.
        SourceRange = "source_range",
        /// The Service has no usable backend.
        NoBackend = "no_backend",
        /// `externalTrafficPolicy: Local`, and no usable backend on this node: the client tries again, and may reach another.
        NoLocalBackend = "no_local_backend",
        /// No route or neighbour towards the backend's node.
        NoNextHop = "no_next_hop",
        /// Too large with outer headers, and may not be answered since it allows fragmentation.
        OversizeNoDf = "oversize_no_df",
        /// The kernel refused to make room for headers.
        NoHeadroom = "no_headroom",
        /// An ICMP error that names no flow.
        IcmpMalformed = "icmp_malformed",
        /// An ICMP error for a flow that nobody knows.
        IcmpUnknownFlow = "icmp_unknown_flow",
        /// The pod is not, or no longer, on this node, and the tables know no other.
        NoSuchPod = "no_such_pod",
        /// A packet in the middle of a flow that nobody knows: waits for a second sight.
        HeldBack = "held_back",
        /// As before, on a node that is not fresh and may not decide.
        NotFresh = "not_fresh",
        /// A first packet for a substitute, on a node that is not fresh and may be wrong about it: the client tries again.
        DeviationNotFresh = "deviation_not_fresh",
        /// The relay limit of this node.
        RelayRate = "relay_rate",
        /// The client should be told by an ICMP error, but this node's limit is reached.
        IcmpRate = "icmp_rate",
        /// The client's tuple is in use through another VIP or port of the same pod.
        TupleInUse = "tuple_in_use",
        /// Outer congestion mark on an inner packet that cannot carry one (RFC 6040, section 4.2).
        EcnInvalid = "ecn_invalid",
        /// Our own encapsulation, but malformed.
        EncapMalformed = "encap_malformed",
        /// An ARP request or neighbour solicitation for a VIP that this node does not announce there.
        NotAnnounced = "not_announced",
        /// The same for one that it announces, but its agent has given no sign of life for too long.
        AnnouncerStale = "announcer_stale",
        /// A neighbour solicitation for a VIP that RFC 4861, section 7.1.1, has discarded.
        NeighbourMalformed = "neighbour_malformed",
        /// The tables contradict each other (a row without a slot, a slot without a backend).
        TableFault = "table_fault",
    }
}

counted! {
    /// What else is counted, in `stats`.
    Stat, ALL {
        /// Packets delivered to a pod of this node, ICMP errors apart; first packets included.
        Known = "known",
        /// Flows admitted by a first packet.
        Admitted = "admitted",
        /// Packets passed on to another node.
        Relayed = "relayed",
        /// Candidates of this node asked in place, without a hop.
        AskedInPlace = "asked_in_place",
        /// Held-back packets delivered at their second sight.
        HeldBackDelivered = "held_back_delivered",
        /// Half-open flows promoted.
        Promoted = "promoted",
        /// Promotions that found the flow table full.
        FlowTableFull = "flow_table_full",
        /// Replies turned back into the VIP.
        Returned = "returned",
        /// SYN-ACKs whose MSS was lowered.
        MssClamped = "mss_clamped",
        /// Echo requests answered.
        EchoAnswered = "echo_answered",
        /// Fragmentation-needed and packet-too-big sent.
        TooBigSent = "too_big_sent",
        /// New flows refused for want of a backend: resets and port unreachables sent.
        Refused = "refused",
        /// ICMP errors delivered to a pod.
        IcmpDelivered = "icmp_delivered",
        /// Geneve packets with our secret from a node that is no peer: passed to the stack.
        NotAPeer = "not_a_peer",
        /// First packets for a pod that is not here, decided afresh.
        DecidedAfresh = "decided_afresh",
        /// ARP requests and neighbour solicitations answered for VIPs.
        NeighbourAnswered = "neighbour_answered",
        /// ARP packets and neighbour advertisements that claim a VIP for another MAC.
        ClaimSeen = "claim_seen",
        /// Liveness probes answered.
        ProbeAnswered = "probe_answered",
        /// Packets sent along a pin by a balancer.
        AlongPin = "along_pin",
        /// First packets sent to a substitute.
        Deviated = "deviated",
        /// Packets that nobody here knows, passed on to a fresh balancer.
        SecondOpinion = "second_opinion",
        /// Flows reported to the agent.
        Reported = "reported",
        /// The same that found the ring full: the agent's sweep finds them.
        ReportLost = "report_lost",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::{offset_of, size_of};

    /// The layout that pinned maps of this [`ABI_VERSION`] have. A change here means a new version.
    #[test]
    fn layout_of_abi_version_5() {
        assert_eq!(ABI_VERSION, 5);
        let sizes = [
            size_of::<ServiceKey4>(),
            size_of::<ServiceKey6>(),
            size_of::<ServiceEntry>(),
            size_of::<Slot>(),
            size_of::<Set>(),
            size_of::<Region>(),
            size_of::<Backend>(),
            size_of::<Tuple<Be32>>(),
            size_of::<Tuple<Addr6>>(),
            size_of::<Flow<Be32>>(),
            size_of::<Flow<Addr6>>(),
            size_of::<HalfOpen<Be32>>(),
            size_of::<HalfOpen<Addr6>>(),
            size_of::<FirstPod<Be32>>(),
            size_of::<FirstPod<Addr6>>(),
            size_of::<LocalKey<Be32>>(),
            size_of::<LocalKey<Addr6>>(),
            size_of::<FragmentKey<Be32>>(),
            size_of::<FragmentKey<Addr6>>(),
            size_of::<FragmentPorts<Be32>>(),
            size_of::<FragmentPorts<Addr6>>(),
            size_of::<Config>(),
            size_of::<SourceRange>(),
            size_of::<AnnouncedKey>(),
            size_of::<Announcement>(),
            size_of::<Claim>(),
            size_of::<Event>(),
        ];
        assert_eq!(
            sizes,
            [
                8, 20, 52, 8, 20, 16, 128, 16, 40, 20, 32, 28, 40, 12, 24, 8, 20, 16, 40, 8, 20,
                160, 24, 20, 8, 28, 64
            ]
        );
        assert_eq!(offset_of!(Backend, header), 16);
        assert_eq!(offset_of!(ServiceEntry, current), 16);
        assert_eq!(offset_of!(Slot, set), 4);
        assert_eq!(POD_ADDRESS_V4, 58);
        assert_eq!(POD_ADDRESS_V6, 78);
    }
}
