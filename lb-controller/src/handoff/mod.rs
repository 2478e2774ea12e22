//! The handoff stream: what owners, balancers and the manager tell each other about connections.
//!
//! ```text
//!            owner's core ─▶ Outbox (Writer) ─▶ client ──Pins──▶ session ─▶ Arrival ─▶ balancer's core (Receiver, maps)
//!                                   ▲──────────── positions ◀──────┴──────── answer ◀────────┘
//!            manager's core ◀─ Heard ─ manager ──Control──▶ control ─▶ Arrival ─▶ agent's core
//!            joiner's core  ◀───────── joiner ───Copy─────▶ copying ─▶ Arrival ─▶ core of one that is ready
//! ```
//!
//! Code here moves bytes and time. What is pinned, kept and retired is decided in [`crate::model`]; who may speak for a node
//! is decided in [`peer`], and when to send in [`pace`].

pub mod client;
mod control;
pub mod convert;
mod copying;
pub mod counts;
mod crew;
pub mod dial;
pub mod joiner;
mod link;
pub mod manager;
pub mod message;
mod out;
pub mod outbox;
mod pace;
pub mod peer;
pub mod reload;
pub mod server;
mod session;
pub mod tls;
mod wire;

#[cfg(test)]
pub(crate) mod tests;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::model::template::NodeAddresses;

/// TCP port of the nodes' addresses that agents are dialled on.
pub const HANDOFF_PORT: u16 = 6084;
/// Largest message that is taken in or sent. A Service's table is below 1 MiB, and the longest thousand pins are as well.
pub const MESSAGE_MAX: usize = 2 * 1024 * 1024;
/// Changes, or pins of a snapshot, in one message.
pub const RECORDS_MAX: usize = 1000;
/// Bytes under way in one stream: a few messages, so that a slow core never stops the wire for long.
const WINDOW_BYTES: u32 = 512 * 1024;

/// Whether connections are handed off.
#[derive(Clone, Debug, Default, clap::Args)]
// The name of the type is that of the programs' own options, which these are among.
#[group(id = "handoff")]
pub struct Options {
    /// Directory with `ca.crt`, `tls.crt` and `tls.key`, followed while they change; without it no connections are handed off.
    #[arg(long = "handoff-certificates", value_name = "DIR")]
    pub certificates: Option<PathBuf>,
}

/// How long others may take. The default is what programs use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Times {
    /// Until a connection is there, TLS included, and its first message has come.
    pub begin_max: Duration,
    /// How often a silent connection is asked whether the other end lives …
    pub ping: Duration,
    /// … and how long the answer may take: a dead peer is known after four seconds.
    pub ping_max: Duration,
    /// A peer that does not take what it is sent for that long is let go.
    pub unread_max: Duration,
    /// A balancer that does not answer for that long is let go. Its core may be busy with other tables.
    pub answer_max: Duration,
    /// Changes are collected for that long …
    pub flush: Duration,
    /// … and that long while the node is drained.
    pub flush_draining: Duration,
    /// First pause after a failure …
    pub retry_first: Duration,
    /// … doubled after each up to this, with jitter.
    pub retry_max: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            begin_max: Duration::from_secs(3),
            ping: Duration::from_secs(1),
            ping_max: Duration::from_secs(3),
            unread_max: Duration::from_secs(5),
            answer_max: Duration::from_secs(10),
            flush: Duration::from_millis(20),
            flush_draining: Duration::from_millis(5),
            retry_first: Duration::from_millis(100),
            retry_max: Duration::from_secs(5),
        }
    }
}

/// Nodes at the other ends of streams, by name.
pub type Others = BTreeMap<Arc<str>, NodeAddresses>;

/// This node and the others, as their objects have them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Nodes {
    /// Addresses of this node; none are known yet if empty.
    pub own: NodeAddresses,
    /// All nodes with an agent.
    pub nodes: BTreeMap<Arc<str>, NodeAddresses>,
}
