//! Events about Services, beside everything else: they are told once, and lost rather than waited for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource};
use tokio::sync::mpsc;

use super::desk::REQUEST_TIMEOUT;

/// Events that wait: a burst of as many new Services; more are counted and lost.
const NOTES_MAX: usize = 4096;
/// Longest text that the API server takes.
const NOTE_BYTES_MAX: usize = 1024;

/// An Event without its object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Note {
    warning: bool,
    reason: &'static str,
    text: String,
}

impl Note {
    pub(super) fn normal(reason: &'static str, text: String) -> Self {
        Self {
            warning: false,
            reason,
            text,
        }
    }

    pub(super) fn warning(reason: &'static str, text: String) -> Self {
        Self {
            warning: true,
            reason,
            text,
        }
    }
}

/// Where Events are left.
#[derive(Clone)]
pub(super) struct Notes {
    sender: mpsc::Sender<(Event, ObjectReference)>,
    lost: Arc<AtomicU64>,
}

impl Notes {
    /// Publishes until the value and its copies are gone.
    pub(super) fn start(client: Client, instance: String) -> Self {
        let (sender, mut receiver) = mpsc::channel::<(Event, ObjectReference)>(NOTES_MAX);
        let lost = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&lost);
        let reporter = Reporter {
            controller: super::FIELD_MANAGER.to_owned(),
            instance: Some(instance),
        };
        let recorder = Recorder::new(client, reporter);
        tokio::spawn(async move {
            while let Some((event, object)) = receiver.recv().await {
                let work = Box::pin(recorder.publish(&event, &object));
                if !matches!(
                    tokio::time::timeout(REQUEST_TIMEOUT, work).await,
                    Ok(Ok(()))
                ) {
                    counted.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Self { sender, lost }
    }

    pub(super) fn publish(&self, about: &impl Resource<DynamicType = ()>, note: Note) {
        let Note {
            warning,
            reason,
            mut text,
        } = note;
        while text.len() >= NOTE_BYTES_MAX {
            text.pop();
        }
        let event = Event {
            type_: if warning {
                EventType::Warning
            } else {
                EventType::Normal
            },
            reason: reason.to_owned(),
            note: Some(text),
            action: reason.to_owned(),
            secondary: None,
        };
        // A reference without a version, so that repeated Events count as one.
        let object = ObjectReference {
            resource_version: None,
            ..about.object_ref(&())
        };
        if self.sender.try_send((event, object)).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Events that could not be told.
    pub(super) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}
