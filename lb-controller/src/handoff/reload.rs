//! Follows the directory with keys and certificates. What is read and good is used for new connections; what is not leaves the
//! last good one in use, and says why.
//!
//! Events tell at once, the links that Kubernetes swaps below a mounted Secret included; a look every [`RESCAN`] repairs what
//! events missed and lets time pass: a certificate becomes valid, another expires.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use notify::event::{AccessKind, AccessMode, EventKind};
use notify::{RecursiveMode, Watcher};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::peer::Role;
use super::tls::{Credentials, Pem};

/// Three files are written one after the other; they are read this long after the last event.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// … but no later than after this many such pauses: a directory that never rests is read nevertheless.
const DEBOUNCES_MAX: u32 = 20;
/// How often they are looked at without an event.
const RESCAN: Duration = Duration::from_secs(10);

/// What connections are made with, as far as it is there.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    /// The last good one; none yet at first.
    pub credentials: Option<Arc<Credentials>>,
    /// Why what is in the directory now can not be used; none if it can.
    pub fault: Option<Arc<str>>,
    /// How often good ones were read.
    pub loads: u64,
}

/// Whose they are, and where.
#[derive(Clone, Debug)]
pub struct Place {
    /// The directory.
    pub directory: PathBuf,
    /// Which program this is.
    pub role: Role,
    /// Which node this is; means nothing to the manager.
    pub node: Arc<str>,
}

/// Follows until stopped.
pub async fn follow(place: Place, told: watch::Sender<Tls>, stop: CancellationToken) {
    let mut follower = Follower {
        place,
        told,
        last: None,
    };
    _ = stop.run_until_cancelled(follower.run()).await;
}

struct Follower {
    place: Place,
    told: watch::Sender<Tls>,
    /// What was read last.
    last: Option<Pem>,
}

impl Follower {
    async fn run(&mut self) {
        let changed = Arc::new(Notify::new());
        let mut watcher = None;
        loop {
            // The directory may come later than we; without a watch there still is the clock.
            if watcher.is_none() {
                watcher = watch(&self.place.directory, &changed);
            }
            self.look().await;
            let pause = |length| tokio::time::timeout(length, changed.notified());
            if pause(RESCAN).await.is_ok() {
                for _ in 0..DEBOUNCES_MAX {
                    if pause(DEBOUNCE).await.is_err() {
                        break;
                    }
                }
            }
            if !self.place.directory.is_dir() {
                // One that comes back is another one, and the old watch knows nothing of it.
                watcher = None;
            }
        }
    }

    /// Reads and checks; also what is the same as before, since time passes.
    async fn look(&mut self) {
        let Place {
            directory,
            role,
            node,
        } = &self.place;
        let mut is_same = false;
        let found = Pem::read(directory).await.and_then(|pem| {
            let made = Credentials::new(&pem, *role, node, Timestamp::now());
            is_same = self.last.as_ref() == Some(&pem);
            self.last = Some(pem);
            made
        });
        let directory = directory.display();
        self.told.send_if_modified(|told| match found {
            Ok(_) if is_same && told.fault.is_none() => false,
            Ok(credentials) => {
                let expires = credentials.expires;
                tracing::info!(%directory, %expires, "keys and certificates are used from here on");
                *told = Tls {
                    credentials: Some(Arc::new(credentials)),
                    fault: None,
                    loads: told.loads + 1,
                };
                true
            }
            Err(fault) => {
                let sentence: Arc<str> = fault.to_string().into();
                if told.fault.as_ref() == Some(&sentence) {
                    return false;
                }
                let keeps_last = told.credentials.is_some();
                tracing::warn!(keeps_last, "{fault}");
                told.fault = Some(sentence);
                true
            }
        });
    }
}

/// Tells when something below the directory changes. None while it can not be watched.
fn watch(directory: &Path, changed: &Arc<Notify>) -> Option<notify::RecommendedWatcher> {
    let tell = Arc::clone(changed);
    let deliver = move |event: notify::Result<notify::Event>| {
        let kind = event.map(|event| event.kind);
        // Our own reading must not wake us again; an error is looked into.
        let is_reading = matches!(kind, Ok(EventKind::Access(access)) if access != AccessKind::Close(AccessMode::Write));
        if !is_reading {
            tell.notify_one();
        }
    };
    let mut watcher = notify::recommended_watcher(deliver).ok()?;
    let outcome = watcher.watch(directory, RecursiveMode::NonRecursive);
    outcome.ok().map(|()| watcher)
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use authority::handoff::{self, Holder};

    use super::*;

    #[tokio::test]
    async fn a_directory_that_comes_late_is_watched_and_read() {
        let root = tempfile::tempdir().unwrap();
        let directory = Holder::Agents.directory(root.path());
        let (told, tls) = watch::channel(Tls::default());
        let mut follower = Follower {
            place: Place {
                directory: directory.clone(),
                role: Role::Agent,
                node: "a".into(),
            },
            told,
            last: None,
        };
        let changed = Arc::new(Notify::new());
        assert!(watch(&directory, &changed).is_none());
        follower.look().await;
        let missing = format!("{} is missing;", directory.join("ca.crt").display());
        let said = tls.borrow().fault.clone().unwrap();
        assert!(said.starts_with(&missing), "{said}");

        handoff::write(root.path(), [], SystemTime::now()).unwrap();
        assert!(watch(&directory, &changed).is_some());
        follower.look().await;
        let Tls {
            credentials,
            fault,
            loads,
        } = tls.borrow().clone();
        assert_eq!((credentials.is_some(), fault, loads), (true, None, 1));
    }
}
