//! Follows the files of directories: which are there, when they have settled, and what they hold.
//!
//! A file is read when its writer has closed it, when it was renamed into place, or, where the kernel does not tell, after
//! [`SILENCE`]; so a file is not used half-written. A look at everything every [`RESCAN`] repairs what events missed.
//! Knows nothing of what is in the files.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind};
use notify::{RecursiveMode, Watcher};

use super::files::Content;
use super::read::{Reading, Version, read, version};

/// A closed file is read this long after its last event, so that several writes in a row are read once.
const DEBOUNCE: Duration = Duration::from_millis(3);
/// A file that somebody keeps open is read after this long without a write.
const SILENCE: Duration = Duration::from_secs(1);
/// How often everything is looked at without an event: the fallback for lost events and file systems without them.
const RESCAN: Duration = Duration::from_secs(5);
/// Events kept between two readings; beyond that everything is looked at instead.
const EVENTS_MAX: usize = 10_000;
/// Endings of files that are read.
const ENDINGS: [&str; 3] = ["yaml", "yml", "json"];

/// A directory can not be followed.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// Inotify refuses.
    #[error(
        "directory {path} can not be watched: {source}; see that it exists and that fs.inotify.max_user_watches is not used up"
    )]
    Watch {
        /// Which directory.
        path: PathBuf,
        /// Why.
        source: notify::Error,
    },
    /// It can not be listed.
    #[error("directory {path} can not be read: {source}; see that it exists and may be read")]
    List {
        /// Which directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// New contents of files, by path.
pub type Batch = BTreeMap<PathBuf, Content>;

/// A file with events that has not been read yet.
#[derive(Clone, Copy, Debug)]
struct Pending {
    last_event: Instant,
    /// Its writer may not have finished.
    open: bool,
}

impl Pending {
    fn due(&self) -> Instant {
        self.last_event + if self.open { SILENCE } else { DEBOUNCE }
    }
}

/// What the watcher's thread leaves for the reader.
#[derive(Default)]
struct Mailbox {
    events: BTreeMap<PathBuf, bool>,
    /// Look at everything.
    rescan: bool,
    /// The watch has failed and must be made anew.
    failed: bool,
}

/// Some directories that are followed.
pub struct Directory {
    paths: Vec<PathBuf>,
    /// Files that are followed whatever they are called.
    also: Arc<BTreeSet<PathBuf>>,
    watcher: Option<notify::RecommendedWatcher>,
    mailbox: Arc<(Mutex<Mailbox>, tokio::sync::Notify)>,
    seen: BTreeMap<PathBuf, Version>,
    pending: BTreeMap<PathBuf, Pending>,
    rescan_at: Instant,
    /// Why the last look at everything did not succeed.
    error: Option<WatchError>,
}

impl Directory {
    /// Starts to follow the YAML and JSON files of the directories `paths`, and the files `also` whatever they are called
    /// (their directories must be among `paths`), and reads everything that is there.
    pub fn open(paths: Vec<PathBuf>, also: Vec<PathBuf>) -> Result<(Self, Batch), WatchError> {
        let mut directory = Self {
            paths,
            also: Arc::new(also.into_iter().collect()),
            watcher: None,
            mailbox: Arc::default(),
            seen: BTreeMap::new(),
            pending: BTreeMap::new(),
            rescan_at: Instant::now() + RESCAN,
            error: None,
        };
        // Watched before it is listed, so that nothing falls between.
        directory.watch()?;
        let mut batch = Batch::new();
        let listed = directory.list()?;
        directory.read(listed.into_keys().collect(), &mut batch);
        Ok((directory, batch))
    }

    /// Why changes may be missed at the moment; none while the watch is alive.
    pub fn error(&self) -> Option<&WatchError> {
        self.error.as_ref()
    }

    /// Waits for changes. Returns an empty batch when only [`Directory::error`] has changed.
    ///
    /// Cancel safe: what was not returned is returned by the next call.
    pub async fn next(&mut self) -> Batch {
        loop {
            let was_alive = self.error.is_none();
            let mut batch = Batch::new();
            let now = Instant::now();
            self.collect(now);
            if now >= self.rescan_at {
                self.rescan(now);
            }
            let due = self
                .pending
                .iter()
                .filter(|(_, p)| p.due() <= now)
                .map(|(path, _)| path.clone())
                .collect();
            self.read(due, &mut batch);
            if !batch.is_empty() || was_alive != self.error.is_none() {
                return batch;
            }
            let wake = self
                .pending
                .values()
                .map(Pending::due)
                .min()
                .unwrap_or(self.rescan_at)
                .min(self.rescan_at);
            let mailbox = Arc::clone(&self.mailbox);
            // Woken early or late, the loop looks again: neither outcome needs a case of its own.
            _ = tokio::time::timeout_at(wake.into(), mailbox.1.notified()).await;
        }
    }

    /// Moves the events of the watcher's thread to what is pending.
    fn collect(&mut self, now: Instant) {
        let Mailbox {
            events,
            rescan,
            failed,
        } = std::mem::take(
            &mut *self
                .mailbox
                .0
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
        for (path, open) in events {
            self.pending.insert(
                path,
                Pending {
                    last_event: now,
                    open,
                },
            );
        }
        if failed {
            self.watcher = None;
        }
        if rescan || failed {
            self.rescan_at = now;
        }
    }

    /// Looks at everything, and makes the watch anew if it has failed.
    fn rescan(&mut self, now: Instant) {
        self.rescan_at = now + RESCAN;
        if (self.watcher.is_none() || self.error.is_some())
            && let Err(error) = self.watch()
        {
            self.error = Some(error);
            return;
        }
        match self.list() {
            Ok(listed) => {
                self.error = None;
                let gone = self.seen.keys().filter(|path| !listed.contains_key(*path));
                let changed = listed
                    .iter()
                    .filter(|(path, version)| self.seen.get(*path) != Some(version));
                let paths: Vec<_> = gone.chain(changed.map(|(path, _)| path)).cloned().collect();
                for path in paths {
                    self.pending.entry(path).or_insert(Pending {
                        last_event: now,
                        open: false,
                    });
                }
            }
            Err(error) => self.error = Some(error),
        }
    }

    fn watch(&mut self) -> Result<(), WatchError> {
        let failed = |path: &Path, source| WatchError::Watch {
            path: path.to_owned(),
            source,
        };
        let (mailbox, also) = (Arc::clone(&self.mailbox), Arc::clone(&self.also));
        let deliver = move |event| {
            note(
                &mut mailbox.0.lock().unwrap_or_else(PoisonError::into_inner),
                &also,
                event,
            );
            mailbox.1.notify_one();
        };
        let first = self.paths.first().map_or(Path::new(""), PathBuf::as_path);
        let mut watcher =
            notify::recommended_watcher(deliver).map_err(|source| failed(first, source))?;
        for path in &self.paths {
            watcher
                .watch(path, RecursiveMode::NonRecursive)
                .map_err(|source| failed(path, source))?;
        }
        self.watcher = Some(watcher);
        Ok(())
    }

    /// The files that are there, and their versions.
    fn list(&self) -> Result<BTreeMap<PathBuf, Version>, WatchError> {
        let mut listed = BTreeMap::new();
        for directory in &self.paths {
            let failed = |source| WatchError::List {
                path: directory.clone(),
                source,
            };
            for entry in std::fs::read_dir(directory).map_err(failed)? {
                let path = entry.map_err(failed)?.path();
                if !is_read(&path, &self.also) {
                    continue;
                }
                // A file that goes away between the list and this is treated as absent from it; one that may not be looked at
                // is read, which says why.
                match std::fs::metadata(&path) {
                    Ok(metadata) if metadata.is_dir() => {}
                    Ok(metadata) => _ = listed.insert(path, version(&metadata)),
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                    Err(_) => _ = listed.insert(path, (0, 0, 0, 0)),
                }
            }
        }
        Ok(listed)
    }

    /// Reads files into the batch. Those that change while they are read stay pending.
    fn read(&mut self, paths: BTreeSet<PathBuf>, batch: &mut Batch) {
        for path in paths {
            let open = self
                .pending
                .remove(&path)
                .is_some_and(|pending| pending.open);
            let later = Pending {
                last_event: Instant::now(),
                open,
            };
            match read(&path) {
                Reading::Changing => _ = self.pending.insert(path, later),
                // Truncated and not yet filled: its writer will close it.
                Reading::Read(Content::Text(text), _) if open && text.is_empty() => {
                    self.pending.insert(path, later);
                }
                Reading::Read(Content::Gone, _) => {
                    if self.seen.remove(&path).is_some() {
                        batch.insert(path, Content::Gone);
                    }
                }
                Reading::Read(content, version) => {
                    self.seen.insert(path.clone(), version);
                    batch.insert(path, content);
                }
            }
        }
    }
}

/// Takes an event into the mailbox.
fn note(mailbox: &mut Mailbox, also: &BTreeSet<PathBuf>, event: notify::Result<notify::Event>) {
    let Ok(event) = event else {
        mailbox.failed = true;
        return;
    };
    let open = match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write))
        | EventKind::Modify(ModifyKind::Name(_) | ModifyKind::Metadata(_))
        | EventKind::Remove(_) => false,
        EventKind::Create(_) | EventKind::Modify(_) | EventKind::Any | EventKind::Other => true,
        // Our own reading; it must not wake us again.
        EventKind::Access(_) => return,
    };
    mailbox.rescan |= event.need_rescan();
    for path in event.paths {
        if mailbox.events.len() >= EVENTS_MAX {
            mailbox.events.clear();
            mailbox.rescan = true;
        } else if is_read(&path, also) {
            let known_open = mailbox.events.entry(path).or_insert(open);
            // A change of permissions does not close a file.
            if !matches!(event.kind, EventKind::Modify(ModifyKind::Metadata(_))) {
                *known_open = open;
            }
        } else if path
            .file_name()
            .is_none_or(|name| name.as_encoded_bytes().starts_with(b".."))
        {
            // A mounted ConfigMap: `..data` is renamed, and what links through it changes.
            mailbox.rescan = true;
        }
    }
}

/// Files whose name ends as YAML does and does not begin with a dot, and those that were asked for.
fn is_read(path: &Path, also: &BTreeSet<PathBuf>) -> bool {
    let hidden = path
        .file_name()
        .is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    let ends_well = path
        .extension()
        .and_then(OsStr::to_str)
        .is_some_and(|ending| ENDINGS.contains(&ending));
    (!hidden && ends_well) || also.contains(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// Longest wait for an event that must come.
    const BOUND: Duration = Duration::from_secs(20);

    async fn next(directory: &mut Directory) -> Batch {
        tokio::time::timeout(BOUND, directory.next())
            .await
            .expect("an event in time")
    }

    fn text(text: &str) -> Content {
        Content::Text(text.to_owned())
    }

    fn open(path: &Path) -> (Directory, Batch) {
        Directory::open(vec![path.to_owned()], Vec::new()).unwrap()
    }

    #[tokio::test]
    async fn what_is_there_is_read_and_changes_follow() {
        let dir = tempfile::tempdir().unwrap();
        let a = dir.path().join("a.yaml");
        std::fs::write(&a, "1").unwrap();
        std::fs::write(dir.path().join(".hidden.yaml"), "x").unwrap();
        std::fs::write(dir.path().join("notes.txt"), "x").unwrap();
        let (mut directory, first) = open(dir.path());
        assert_eq!(first, Batch::from([(a.clone(), text("1"))]));

        std::fs::write(&a, "22").unwrap();
        assert_eq!(
            next(&mut directory).await,
            Batch::from([(a.clone(), text("22"))])
        );

        let b = dir.path().join("b.yaml");
        std::fs::write(dir.path().join(".b.tmp"), "3").unwrap();
        std::fs::rename(dir.path().join(".b.tmp"), &b).unwrap();
        assert_eq!(next(&mut directory).await, Batch::from([(b, text("3"))]));

        std::fs::remove_file(&a).unwrap();
        assert_eq!(
            next(&mut directory).await,
            Batch::from([(a, Content::Gone)])
        );
    }

    #[tokio::test]
    async fn a_file_is_not_used_while_its_writer_has_truncated_it() {
        let dir = tempfile::tempdir().unwrap();
        let a = dir.path().join("a.yaml");
        std::fs::write(&a, "old").unwrap();
        let (mut directory, _) = open(dir.path());
        let mut writer = std::fs::File::create(&a).unwrap();
        // Another file shows that events up to here have been seen.
        let b = dir.path().join("b.yaml");
        std::fs::write(&b, "b").unwrap();
        assert_eq!(next(&mut directory).await, Batch::from([(b, text("b"))]));
        writer.write_all(b"new").unwrap();
        drop(writer);
        assert_eq!(next(&mut directory).await, Batch::from([(a, text("new"))]));
    }

    #[tokio::test]
    async fn a_file_that_nobody_closes_is_read_after_silence() {
        let dir = tempfile::tempdir().unwrap();
        let a = dir.path().join("a.yaml");
        let (mut directory, _) = open(dir.path());
        let mut writer = std::fs::File::create(&a).unwrap();
        writer.write_all(b"kept open").unwrap();
        writer.flush().unwrap();
        assert_eq!(
            next(&mut directory).await,
            Batch::from([(a, text("kept open"))])
        );
    }

    #[tokio::test]
    async fn what_can_not_be_read_says_so() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("latin.yaml"), [b'a', 0xe4]).unwrap();
        nix::unistd::mkfifo(&dir.path().join("pipe.yaml"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        std::fs::create_dir(dir.path().join("dir.yaml")).unwrap();
        let (_directory, first) = open(dir.path());
        assert_eq!(
            first.into_values().collect::<Vec<_>>(),
            [
                Content::Unreadable("byte 1 is not UTF-8; write it as UTF-8".to_owned()),
                Content::Unreadable("is not a regular file; replace it by one".to_owned()),
            ]
        );
    }

    #[tokio::test]
    async fn a_directory_that_goes_away_and_comes_back_is_followed_again() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("d");
        std::fs::create_dir(&dir).unwrap();
        let a = dir.join("a.yaml");
        std::fs::write(&a, "1").unwrap();
        let (mut directory, _) = open(&dir);
        std::fs::remove_dir_all(&dir).unwrap();
        assert_eq!(
            next(&mut directory).await,
            Batch::from([(a.clone(), Content::Gone)])
        );
        directory.rescan_at = Instant::now();
        assert_eq!(next(&mut directory).await, Batch::new());
        assert!(directory.error().is_some());
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(&a, "2").unwrap();
        directory.rescan_at = Instant::now();
        let mut batch = next(&mut directory).await;
        if batch.is_empty() {
            batch = next(&mut directory).await;
        }
        assert_eq!(batch, Batch::from([(a, text("2"))]));
        assert!(directory.error().is_none());
    }

    #[test]
    fn a_directory_that_does_not_exist_is_refused_with_a_sentence() {
        let error = Directory::open(vec!["/nonexistent/bowline".into()], Vec::new())
            .err()
            .unwrap()
            .to_string();
        assert!(
            error.starts_with("directory /nonexistent/bowline can not be watched"),
            "{error}"
        );
    }
}
