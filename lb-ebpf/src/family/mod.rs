//! What differs between IPv4 and IPv6, and nothing else: one trait, two types without values.

mod v4;
mod v6;

use crate::abi::{HEADER_MAX, Plain};
use crate::decap::Arrival;
use crate::hash;
use crate::own::{Scratch, Work};
use crate::wire::{Addr6, Be16, Ports};

/// Hop limit of what this node sends in a VIP's name (the default of RFC 1700, and of Linux).
pub const HOPS: u8 = 64;

/// IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum V4 {}
/// IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum V6 {}

/// What directly follows the fixed IP header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// A transport header, of a whole packet.
    Whole,
    /// A transport header or a part of its payload, of a fragment.
    Fragment,
    /// IPv4 options or IPv6 extension headers.
    Options,
}

/// An IP family.
pub trait Family: Copy + 'static {
    /// An address.
    type Addr: Plain + Eq + Default + core::fmt::Debug + core::hash::Hash;
    /// Key of a service.
    type ServiceKey: Plain + Eq + core::fmt::Debug + core::hash::Hash;
    /// The fixed header.
    type Header: Plain;

    /// Bytes of the fixed header.
    const HEADER_LEN: usize;
    /// Where the source address is in it.
    const SRC_AT: usize;
    /// Where the destination address is in it.
    const DST_AT: usize;
    /// EtherType of the family.
    const ETHERTYPE: Be16;
    /// Protocol number of its ICMP.
    const ICMP: u8;
    /// Whether this is IPv6, for the few constants that depend on it.
    const IS_V6: bool;
    /// The outer bytes that MTU and MSS count with.
    const OVERHEAD: u16;

    /// Version and, for IPv4, the header length are what the fixed header wants.
    fn is_valid(header: &Self::Header) -> bool;
    /// What follows the fixed header.
    fn next(header: &Self::Header) -> Next;
    /// Source address.
    fn src(header: &Self::Header) -> Self::Addr;
    /// Destination address.
    fn dst(header: &Self::Header) -> Self::Addr;
    /// Protocol of what follows the fixed header.
    fn proto(header: &Self::Header) -> u8;
    /// Header and payload in bytes, as the header says.
    fn total_len(header: &Self::Header) -> usize;
    /// DSCP and ECN.
    fn traffic_class(header: &Self::Header) -> u8;
    /// Sources that no client can have.
    fn is_martian(src: Self::Addr) -> bool;

    /// This family's part of the scratch memory, and the arrival.
    fn work(scratch: &mut Scratch) -> (&mut Arrival, &mut Work<Self::Addr>);
    /// Key of a service.
    fn service_key(addr: Self::Addr, port: Be16, proto: u8) -> Self::ServiceKey;
    /// The address as it stands in maps that both families share.
    fn mapped(addr: Self::Addr) -> Addr6;
    /// The inverse of [`Family::mapped`].
    fn from_mapped(addr: Addr6) -> Self::Addr;
    /// The address at a place of a backend's template.
    fn addr_in(template: &[u8; HEADER_MAX], at: usize) -> Self::Addr;
    /// What replacing one address by another does to a one's complement sum.
    fn delta(old: Self::Addr, new: Self::Addr) -> u64;
    /// The flow hash over the fields that a table says.
    fn hash(
        key: &hash::Key,
        src: Self::Addr,
        dst: Self::Addr,
        ports: Ports,
        proto: u8,
        fields: u32,
    ) -> u64;
    /// The header after its destination became `new`, and its checksum, where it has one.
    fn with_dst(header: Self::Header, new: Self::Addr) -> Self::Header;
    /// The one's complement sum of an address.
    fn sum(addr: Self::Addr) -> u64;
    /// The header of a packet that this node sends in a VIP's name.
    fn header(proto: u8, payload_len: u16, src: Self::Addr, dst: Self::Addr) -> Self::Header;
    /// The header after its traffic class became `class`.
    fn with_traffic_class(header: Self::Header, class: u8) -> Self::Header;
}

/// Both ports as one native word.
#[inline(always)]
fn word(ports: Ports) -> u32 {
    u32::from(ports.src.raw()) | u32::from(ports.dst.raw()) << 16
}
