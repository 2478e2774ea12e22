//! The liveness probe: a question that the program itself answers, so that a node without an agent is told apart from a
//! node that is gone.
//!
//! ```text
//! UDP to abi::PROBE_PORT of a node's address: | magic 8 | secret 8 | nonce 8 | age of the agent's stamp 8 |
//! ```
//! The answer goes back where the question came from, with another magic, so that two nodes never answer each other's
//! answers. It is as long as the question: nothing is amplified.

use crate::abi::{PROBE_PORT, Stat, plain};
use crate::checksum;
use crate::family::Family;
use crate::frame::Frame;
use crate::icmp;
use crate::subject::IP_AT;
use crate::tables::Shared;
use crate::verdict::Verdict;
use crate::wire::{Be16, Be32, Ethernet, Ports, Udp, protocol};

/// Bytes behind the UDP header.
pub const LEN: usize = size_of::<Probe>();
/// The age of a stamp that was never made.
pub const NEVER: u64 = u64::MAX;

const QUESTION: [Be32; 2] = magic(*b"bowline?");
const ANSWER: [Be32; 2] = magic(*b"bowline!");
const UDP_LEN: u16 = (size_of::<Udp>() + LEN) as u16;

const fn magic(b: [u8; 8]) -> [Be32; 2] {
    [
        Be32::from_bytes([b[0], b[1], b[2], b[3]]),
        Be32::from_bytes([b[4], b[5], b[6], b[7]]),
    ]
}

const fn words(value: u64) -> [Be32; 2] {
    [Be32::new((value >> 32) as u32), Be32::new(value as u32)]
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Probe {
    magic: [Be32; 2],
    secret: [Be32; 2],
    nonce: [Be32; 2],
    age_ns: [Be32; 2],
}
plain!(Probe, magic: [Be32; 2], secret: [Be32; 2], nonce: [Be32; 2], age_ns: [Be32; 2]);

/// Whether a packet that no Service owns may be a question.
#[inline(always)]
pub(crate) fn may_be(proto: u8, ports: Ports) -> bool {
    proto == protocol::UDP && ports.dst == const { Be16::new(PROBE_PORT) }
}

/// Answers a question of our cluster to this node; anything else passes.
#[inline(always)]
pub fn arrive<F: Family, X: Frame, T: Shared>(handle: X::Handle, tables: T) -> Verdict {
    match answer::<F, X, T>(&mut X::open(handle), tables) {
        Some(()) => {
            tables.count(Stat::ProbeAnswered);
            Verdict::TRANSMIT
        }
        None => Verdict::PASS,
    }
}

#[inline(always)]
fn answer<F: Family, X: Frame, T: Shared>(frame: &mut X, tables: T) -> Option<()> {
    let udp_at = IP_AT + F::HEADER_LEN;
    let probe_at = udp_at + size_of::<Udp>();
    let probe = frame.read::<Probe>(probe_at)?;
    let config = tables.config();
    let is_ours = probe.secret == config.secrets[0] || probe.secret == config.secrets[1];
    if probe.magic != QUESTION || !is_ours {
        return None;
    }
    let ip = frame.read::<F::Header>(IP_AT)?;
    let udp = frame.read::<Udp>(udp_at)?;
    let own = if F::IS_V6 {
        config.node6
    } else {
        crate::wire::Addr6::mapped(config.node4)
    };
    let len = F::HEADER_LEN + usize::from(UDP_LEN);
    if F::mapped(F::dst(&ip)) != own || F::total_len(&ip) != len || udp.len.get() != UDP_LEN {
        return None;
    }
    let stamped_ns = tables.stamp().stamped_ns;
    let age_ns = if stamped_ns == 0 {
        NEVER
    } else {
        tables.now_ns().saturating_sub(stamped_ns)
    };
    let answer = Probe {
        magic: ANSWER,
        age_ns: words(age_ns),
        ..probe
    };
    let ports = Ports {
        src: udp.ports.dst,
        dst: udp.ports.src,
    };
    let sum = icmp::pseudo_header::<F>(&ip, protocol::UDP, UDP_LEN)
        + u64::from(ports.src.raw())
        + u64::from(ports.dst.raw())
        + u64::from(udp.len.raw())
        + sum(&answer);
    // A sum that happens to be zero is sent as ones (RFC 768).
    let checksum = match !checksum::fold(sum) {
        0 => 0xffff,
        sum => sum,
    };
    frame.write(probe_at, answer)?;
    frame.write(
        udp_at,
        Udp {
            ports,
            len: udp.len,
            checksum: Be16::from_raw(checksum),
        },
    )?;
    let header = F::header(protocol::UDP, UDP_LEN, F::dst(&ip), F::src(&ip));
    frame.write(IP_AT, header)?;
    let ethernet = frame.read::<Ethernet>(0)?;
    frame.write(
        0,
        Ethernet {
            dst: ethernet.src,
            src: ethernet.dst,
            kind: ethernet.kind,
        },
    )
}

/// The one's complement sum of what stands behind the UDP header.
#[inline(always)]
fn sum(probe: &Probe) -> u64 {
    let Probe {
        magic,
        secret,
        nonce,
        age_ns,
    } = probe;
    let pair = |[a, b]: &[Be32; 2]| u64::from(a.raw()) + u64::from(b.raw());
    pair(magic) + pair(secret) + pair(nonce) + pair(age_ns)
}

/// A question, to be sent from any port to [`PROBE_PORT`] of a node.
pub fn question(secret: [Be32; 2], nonce: u64) -> [u8; LEN] {
    let mut bytes = [0; LEN];
    let parts = [QUESTION, secret, words(nonce), words(0)];
    for (to, word) in bytes.chunks_exact_mut(4).zip(parts.iter().flatten()) {
        to.copy_from_slice(&word.to_bytes());
    }
    bytes
}

/// The age of the agent's stamp in nanoseconds ([`NEVER`]: no agent has been there) in the answer to the question with
/// this secret and nonce. `None`: it is no such answer.
pub fn age_ns(answer: &[u8], secret: [Be32; 2], nonce: u64) -> Option<u64> {
    let (front, age) = answer.split_at_checked(LEN - 8)?;
    let age: [u8; 8] = age.try_into().ok()?;
    let expected = [ANSWER, secret, words(nonce)];
    let same = front
        .chunks_exact(4)
        .zip(expected.iter().flatten())
        .all(|(bytes, word)| bytes == word.to_bytes());
    same.then(|| u64::from_be_bytes(age))
}
