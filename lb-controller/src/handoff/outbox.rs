//! The pins of this node, shared between the core that changes them and the streams that tell them.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use crate::model::pins::{Batch, Position, Writer};

/// A [`Writer`] and who waits for its changes. The lock is held for one call of it, and never across an await.
#[derive(Debug)]
pub struct Outbox {
    writer: Mutex<Writer>,
    told: watch::Sender<Told>,
}

/// What streams wait for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Told {
    /// Where the writer is.
    pub(super) written: Position,
    /// Changes are urgent.
    pub(super) draining: bool,
}

impl Outbox {
    /// Shares a writer.
    pub fn new(writer: Writer) -> Arc<Self> {
        let (told, _) = watch::channel(Told {
            written: writer.position(),
            draining: false,
        });
        Arc::new(Self {
            writer: Mutex::new(writer),
            told,
        })
    }

    /// Looks at the writer, or changes it; then streams tell what is new.
    pub fn with<T>(&self, act: impl FnOnce(&mut Writer) -> T) -> T {
        let (outcome, position) = {
            let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
            let outcome = act(&mut writer);
            (outcome, writer.position())
        };
        self.told.send_if_modified(|told| {
            // Of two that changed it at once the later position stays.
            let is_newer = position > told.written;
            told.written = told.written.max(position);
            is_newer
        });
        outcome
    }

    /// Whether the node is being drained, which makes changes urgent.
    pub fn set_draining(&self, draining: bool) {
        self.told
            .send_if_modified(|told| std::mem::replace(&mut told.draining, draining) != draining);
    }

    pub(super) fn follow(&self) -> watch::Receiver<Told> {
        self.told.subscribe()
    }

    pub(super) fn read(&self, from: Option<Position>, max: usize) -> Batch {
        self.with(|writer| writer.read(from, max))
    }

    pub(super) fn acknowledged(&self, balancer: &Arc<str>, position: Position) {
        self.with(|writer| writer.acknowledged(balancer, position));
    }
}
