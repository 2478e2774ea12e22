//! The files that manager and agent write below `DIR/.bowline`: complete or not at all, and again until they succeed.
//!
//! A file is written beside its place, flushed, and renamed. What can not be written stays wanted, is tried again with
//! growing pauses, and says so; only the newest content of a file is kept. User files are never touched.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};

use crate::admin::Problem;

/// First pause after a failure …
const RETRY_FIRST: Duration = Duration::from_millis(100);
/// … doubled after each up to this: a disk that is freed is noticed within seconds.
const RETRY_MAX: Duration = Duration::from_secs(5);

/// Where outputs go, below the directory of manifests.
#[derive(Clone, Debug)]
pub struct Outputs {
    root: PathBuf,
}

impl Outputs {
    /// Below `manifests`.
    pub fn below(manifests: &Path) -> Self {
        Self {
            root: manifests.join(".bowline"),
        }
    }

    /// Makes the directories.
    pub fn create(&self) -> std::io::Result<()> {
        let all = [self.tables(), self.statuses(), self.nodes(), self.drains()];
        for directory in all {
            std::fs::create_dir_all(directory)?;
        }
        Ok(())
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Directory of `ServiceTable`s.
    pub fn tables(&self) -> PathBuf {
        self.root.join("tables")
    }

    /// Directory of statuses of Services.
    pub fn statuses(&self) -> PathBuf {
        self.root.join("status")
    }

    /// Directory of `NodeDrain`s with their statuses.
    pub fn drains(&self) -> PathBuf {
        self.root.join("drains")
    }

    /// Directory of statuses of nodes.
    pub fn nodes(&self) -> PathBuf {
        self.root.join("nodes")
    }

    /// The secrets of the cluster.
    pub fn secret(&self) -> PathBuf {
        self.root.join("secret")
    }

    /// The file that the one manager holds.
    pub fn manager_lock(&self) -> PathBuf {
        self.root.join("manager.lock")
    }
}

/// Who may read a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Everybody.
    Public,
    /// The owner only.
    Secret,
}

/// Somebody else holds a lock, or it can not be made.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Held.
    #[error("{path} is held by another process{holder}; stop it first")]
    Held {
        /// The lock file.
        path: PathBuf,
        /// ` (pid 123)`, or nothing if unknown.
        holder: String,
    },
    /// It can not be opened.
    #[error("{path} can not be opened: {source}; see that its directory may be written")]
    Open {
        /// The lock file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Takes a lock for as long as the value lives; the kernel releases it when the process ends, however it ends.
pub fn lock(path: &Path) -> Result<Flock<std::fs::File>, LockError> {
    let failed = |source| LockError::Open {
        path: path.to_owned(),
        source,
    };
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(failed)?;
    let mut lock =
        Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
            nix::errno::Errno::EWOULDBLOCK => {
                let pid = std::fs::read_to_string(path).unwrap_or_default();
                let holder = if pid.trim().is_empty() {
                    String::new()
                } else {
                    format!(" (pid {})", pid.trim())
                };
                LockError::Held {
                    path: path.to_owned(),
                    holder,
                }
            }
            other => failed(other.into()),
        })?;
    // Who holds it is a courtesy of the error message: a full disk does not stop us.
    _ = lock
        .set_len(0)
        .and_then(|()| writeln!(lock, "{}", std::process::id()));
    Ok(lock)
}

/// Replaces a file in one step.
pub fn replace(path: &Path, text: &str, mode: Mode) -> std::io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let beside = path.with_file_name(format!(".{name}.tmp"));
    let bits = match mode {
        Mode::Public => 0o644,
        Mode::Secret => 0o600,
    };
    // One left over by a crash may have another mode.
    _ = std::fs::remove_file(&beside);
    let written = std::fs::File::options()
        .write(true)
        .create_new(true)
        .mode(bits)
        .open(&beside)
        .and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            std::fs::rename(&beside, path)
        });
    if written.is_err() {
        _ = std::fs::remove_file(&beside);
    }
    written
}

/// A file that is not yet as wanted.
#[derive(Debug)]
struct Wanted {
    /// None: it should not exist.
    text: Option<String>,
    /// When to try (again).
    at: Instant,
    /// Pause after the next failure.
    pause: Duration,
    /// Why the last try failed.
    error: Option<std::io::Error>,
}

/// Files that should be written, until they are.
#[derive(Debug, Default)]
pub struct Writer {
    wanted: BTreeMap<PathBuf, Wanted>,
}

impl Writer {
    /// Wants a file to hold `text`, at `at` or soon after. Whatever was wanted of it before is forgotten.
    pub fn write(&mut self, path: PathBuf, text: String, at: Instant) {
        self.want(path, Some(text), at);
    }

    /// Wants a file not to exist.
    pub fn remove(&mut self, path: PathBuf, at: Instant) {
        self.want(path, None, at);
    }

    fn want(&mut self, path: PathBuf, text: Option<String>, at: Instant) {
        let entry = self.wanted.entry(path).or_insert(Wanted {
            text: None,
            at,
            pause: RETRY_FIRST,
            error: None,
        });
        entry.text = text;
        // A file that fails keeps its pace, or a busy Service would hammer a full disk.
        if entry.error.is_none() {
            entry.at = at;
        }
    }

    /// Carries out what is due. Returns the paths that became as wanted.
    pub fn flush(&mut self, now: Instant) -> Vec<PathBuf> {
        let due: Vec<_> = self
            .wanted
            .iter()
            .filter(|(_, w)| w.at <= now)
            .map(|(path, _)| path.clone())
            .collect();
        let mut done = Vec::new();
        for path in due {
            let Some(wanted) = self.wanted.get_mut(&path) else {
                continue;
            };
            match carry_out(&path, wanted.text.as_deref()) {
                Ok(()) => {
                    self.wanted.remove(&path);
                    done.push(path);
                }
                Err(error) => {
                    wanted.at = now + wanted.pause;
                    wanted.pause = (wanted.pause * 2).min(RETRY_MAX);
                    wanted.error = Some(error);
                }
            }
        }
        done
    }

    /// When something is due next.
    pub fn next_due(&self) -> Option<Instant> {
        self.wanted.values().map(|wanted| wanted.at).min()
    }

    /// How many files wait.
    pub fn pending(&self) -> usize {
        self.wanted.len()
    }

    /// Files that could not be written, and why.
    pub fn problems(&self) -> Vec<Problem> {
        let failed = self
            .wanted
            .iter()
            .filter_map(|(path, wanted)| Some((path, wanted.error.as_ref()?)));
        failed
            .map(|(path, error)| {
                let remedy = if error.kind() == std::io::ErrorKind::StorageFull {
                    "free space on its disk"
                } else {
                    "see that its directory exists and may be written"
                };
                Problem {
                    object: format!("file {}", path.display()),
                    sentence: format!("can not be written: {error}; {remedy}, it is tried again"),
                }
            })
            .collect()
    }
}

fn carry_out(path: &Path, text: Option<&str>) -> std::io::Result<()> {
    match text {
        Some(text) => replace(path, text, Mode::Public),
        None => match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_is_tried_again_and_only_the_newest_content_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("missing").join("a.yaml");
        let now = Instant::now();
        let mut writer = Writer::default();
        writer.write(path.clone(), "1".into(), now);
        assert_eq!(writer.flush(now), Vec::<PathBuf>::new());
        assert_eq!(writer.problems().len(), 1);
        writer.write(path.clone(), "2".into(), now);
        std::fs::create_dir(dir.path().join("missing")).unwrap();
        assert_eq!(
            writer.flush(now),
            Vec::<PathBuf>::new(),
            "it keeps its pace"
        );
        assert_eq!(writer.next_due(), Some(now + RETRY_FIRST));
        assert_eq!(writer.flush(now + RETRY_FIRST), std::slice::from_ref(&path));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "2");
        assert_eq!((writer.problems(), writer.next_due()), (vec![], None));
        writer.remove(path.clone(), now);
        writer.remove(dir.path().join("never.yaml"), now);
        assert_eq!(writer.flush(now).len(), 2);
        assert!(!path.exists());
    }

    /// On a file system of one page, in a mount namespace of this thread.
    #[test]
    fn a_full_disk_leaves_the_old_file_and_one_sentence_until_there_is_room() {
        use nix::mount::{MsFlags, mount};
        let dir = tempfile::tempdir().unwrap();
        let private = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)
            .and_then(|()| {
                mount(
                    None::<&str>,
                    "/",
                    None::<&str>,
                    MsFlags::MS_REC | MsFlags::MS_PRIVATE,
                    None::<&str>,
                )
            })
            .and_then(|()| {
                mount(
                    Some("tmpfs"),
                    dir.path(),
                    Some("tmpfs"),
                    MsFlags::empty(),
                    Some("size=8k"),
                )
            });
        if let Err(error) = private {
            eprintln!("skipped: no mount namespace ({error}); run it as root");
            return;
        }
        let (path, filler) = (dir.path().join("a.yaml"), dir.path().join("filler"));
        std::fs::write(&path, "old").unwrap();
        std::fs::write(&filler, [0; 4096]).unwrap();
        let now = Instant::now();
        let mut writer = Writer::default();
        writer.write(path.clone(), "new".into(), now);
        assert_eq!(writer.flush(now), Vec::<PathBuf>::new());
        let problem = &writer.problems()[0];
        assert!(
            problem.sentence.contains("free space on its disk"),
            "{}",
            problem.sentence
        );
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "old");
        std::fs::remove_file(filler).unwrap();
        assert_eq!(writer.flush(now + RETRY_FIRST), std::slice::from_ref(&path));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "new");
    }

    #[test]
    fn a_second_holder_is_refused_with_the_first_ones_pid() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = lock(&path).unwrap();
        let error = lock(&path).unwrap_err().to_string();
        assert!(
            error.contains(&format!("(pid {})", std::process::id())),
            "{error}"
        );
        drop(held);
        assert!(lock(&path).is_ok());
    }

    #[test]
    fn a_secret_is_readable_by_its_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        replace(&path, "x", Mode::Secret).unwrap();
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
    }
}
