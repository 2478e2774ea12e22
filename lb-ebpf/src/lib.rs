//! What happens to one packet.
//!
//! The crate is a `no_std` library of pure decisions, and (feature `kernel`) the XDP and TC programs around it.
//! The programs, the host tests, the simulator and `lbctl explain` run the same functions over two small traits:
//! [`frame::Frame`] (the bytes of a packet) and [`tables`] (what the maps hold).
//!
//! | module | owns |
//! | --- | --- |
//! | [`abi`] | every type, id, limit and reason that kernel and user space share |
//! | [`wire`] | headers as they are on the wire, byte order in the type |
//! | [`frame`] | bounds-checked access to a packet, in the kernel and on the host |
//! | [`family`] | what differs between IPv4 and IPv6, and nothing else |
//! | [`hash`] | the keyed flow hash |
//! | [`parts`] | what the verifier looks at once, by itself |
//! | [`directory`] | how the record of a service is found |
//! | [`neighbour`] | who answers for a VIP on the link |
//! | [`probe`] | the question whether a node and its agent live |
//! | [`checksum`] | RFC 1624 updates |
//! | [`tables`] | the traits through which decisions read maps, and the same over plain memory for tests |
//!
//! Deliberately absent: allocation, logging, panics, clocks (time is an argument or a trait call), loops without a
//! named bound, and connection state at the balancer.

#![no_std]
#![expect(
    clippy::inline_always,
    reason = "a call costs more than most of these functions, and the stack of a call chain is 512 bytes"
)]
#![expect(
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "sequence numbers are compared modulo 2^32, and lengths of packets fit into any integer"
)]
#![expect(
    clippy::many_single_char_names,
    reason = "the words of an IPv6 address have no better names"
)]

#[cfg(any(test, feature = "host"))]
extern crate std;

pub mod abi;
pub mod back;
pub mod balance;
pub mod candidates;
pub mod checksum;
pub mod decap;
pub mod deliver;
pub mod directory;
pub mod encap;
pub mod family;
pub mod frame;
pub mod hash;
pub mod icmp;
pub mod neighbour;
pub mod own;
pub mod parts;
pub mod path;
pub mod probe;
pub mod refuse;
pub mod subject;
pub mod tables;
pub mod tags;
pub mod verdict;
pub mod wire;
