//! What is counted, for metrics and for people. Plain values behind a lock that is held for one addition at a time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::message::Reason;
use super::peer::Stranger;

/// Why a connection, a stream or a message is not taken, or is let go.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Cause {
    /// There are no usable keys and certificates here.
    NoCredentials,
    /// As many connections or streams as there may be.
    Busy,
    /// No TLS, or a certificate that is not believed.
    Handshake,
    /// It took too long to begin.
    Slow,
    /// A connection that ended without a call: no gRPC.
    NoCall,
    /// Certificate, address and name do not agree.
    Stranger(Stranger),
    /// Larger than a message may be.
    TooLarge,
    /// The peer does not read.
    Unread,
    /// The peer does not answer.
    Unanswered,
    /// Can not be reached, or has gone.
    Lost,
    /// A balancer's refusal.
    Refused(Reason),
}

impl Cause {
    /// As metrics name it.
    pub fn label(self) -> &'static str {
        match self {
            Self::NoCredentials => "no_credentials",
            Self::Busy => "busy",
            Self::Handshake => "handshake",
            Self::Slow => "slow",
            Self::NoCall => "no_call",
            Self::Stranger(Stranger::NoAgent) => "no_agent",
            Self::Stranger(Stranger::NoManager) => "no_manager",
            Self::Stranger(Stranger::UnknownNode) => "unknown_node",
            Self::Stranger(Stranger::Address) => "address",
            Self::Stranger(Stranger::OtherNode) => "other_node",
            Self::TooLarge => "too_large",
            Self::Unread => "unread",
            Self::Unanswered => "unanswered",
            Self::Lost => "lost",
            Self::Refused(reason) => reason.label(),
        }
    }
}

/// What this node's server saw.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ServerCounts {
    /// Connections at the moment.
    pub connections: u64,
    /// Streams at the moment: writers, managers, copies.
    pub streams: u64,
    /// Connections so far.
    pub accepted: u64,
    /// Streams that a newer one of the same node took the place of.
    pub replaced: u64,
    /// Messages of writers.
    pub messages: u64,
    /// Records in them.
    pub records: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// What was not taken, by cause.
    pub refused: BTreeMap<Cause, u64>,
}

/// What this node's stream to one peer is like.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct StreamCounts {
    /// It has been greeted and answers.
    pub is_up: bool,
    /// How often that began.
    pub connects: u64,
    /// Records sent.
    pub records: u64,
    /// Bytes sent.
    pub bytes: u64,
    /// Snapshots begun.
    pub snapshots: u64,
    /// Messages without an answer yet.
    pub unanswered: u64,
    /// Ends, by cause.
    pub ended: BTreeMap<Cause, u64>,
    /// Why it ended last; none while it is up.
    pub fault: Option<String>,
}

/// Streams by node at their other end.
pub type Streams = BTreeMap<Arc<str>, StreamCounts>;

/// Shared counts.
#[derive(Debug, Default)]
pub struct Tally<T>(Arc<Mutex<T>>);

impl<T> Clone for Tally<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: Clone> Tally<T> {
    /// What was counted so far.
    pub fn read(&self) -> T {
        self.note(|counts| counts.clone())
    }

    /// Counts.
    pub(super) fn note<R>(&self, count: impl FnOnce(&mut T) -> R) -> R {
        count(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Tally<ServerCounts> {
    pub(super) fn refuse(&self, cause: Cause) {
        self.note(|counts| *counts.refused.entry(cause).or_default() += 1);
    }
}

impl Tally<Streams> {
    pub(super) fn stream(&self, node: &Arc<str>, count: impl FnOnce(&mut StreamCounts)) {
        self.note(|streams| count(streams.entry(Arc::clone(node)).or_default()));
    }
}

/// A gauge that goes down again by itself.
pub(super) struct Gauge {
    tally: Tally<ServerCounts>,
    field: fn(&mut ServerCounts) -> &mut u64,
}

impl Gauge {
    pub(super) fn up(
        tally: &Tally<ServerCounts>,
        field: fn(&mut ServerCounts) -> &mut u64,
    ) -> Self {
        tally.note(|counts| *field(counts) += 1);
        Self {
            tally: tally.clone(),
            field,
        }
    }
}

impl Drop for Gauge {
    fn drop(&mut self) {
        self.tally.note(|counts| *(self.field)(counts) -= 1);
    }
}
