//! What a lab has made on this machine, written down before it is made, so that it can be removed after a crash too.
//! Only what is written here is ever removed: other labs, and everything else, stay untouched.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::netns;

/// Where keys and certificates are in the directory of a lab.
pub(super) const CERTIFICATES: &str = "certificates";
/// Where each agent finds objects, and where copies are that nobody writes to.
pub(super) const VIEWS: &str = "views";
pub(super) const FROZEN: &str = "frozen";

/// What was made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Made {
    /// Names of namespaces.
    namespaces: Vec<String>,
    /// Processes.
    processes: Vec<Process>,
    /// A bpf file system of the lab's own is mounted, for pinned maps and programs.
    pins: bool,
    /// The lab was left up on purpose.
    kept: bool,
}

/// A process, told apart from later ones with the same number by when it was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Process {
    pid: i32,
    /// Clock ticks since the machine started, as in `/proc/<pid>/stat`.
    started: u64,
}

/// The ledger of one lab, and the right to change that lab.
#[derive(Debug)]
pub(crate) struct Ledger {
    directory: PathBuf,
    made: Made,
    /// Held while this process has the lab; the kernel releases it when the process ends, however it ends.
    _lock: Flock<File>,
}

impl Ledger {
    /// Opens the ledger of the named lab, which may be new, up, or left by a crash. Fails if another `lbctl` has it.
    pub(crate) fn open(name: &str) -> anyhow::Result<Self> {
        let directory = Path::new("/run").join(format!("bowline-{name}"));
        std::fs::create_dir_all(&directory)
            .with_context(|| format!("make {} (are you root?)", directory.display()))?;
        let path = directory.join("lock");
        let file = File::create(&path).with_context(|| format!("make {}", path.display()))?;
        let Ok(lock) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else {
            bail!(
                "the lab `{name}` is in use by another lbctl: wait for it, or take another --name"
            );
        };
        let path = directory.join("made.json");
        let made = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .with_context(|| format!("read {}", path.display()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Made::default(),
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        Ok(Self {
            directory,
            made,
            _lock: lock,
        })
    }

    /// Where the lab's files are.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Nothing is left to remove.
    pub(crate) fn is_empty(&self) -> bool {
        let Made {
            namespaces,
            processes,
            pins,
            kept: _,
        } = &self.made;
        namespaces.is_empty() && processes.is_empty() && !pins
    }

    /// The lab was left up on purpose.
    pub(crate) fn is_kept(&self) -> bool {
        self.made.kept
    }

    /// Notes a namespace that is about to be made.
    pub(crate) fn namespace(&mut self, name: &str) -> anyhow::Result<()> {
        self.made.namespaces.push(name.to_owned());
        self.write()
    }

    /// Mounts a bpf file system of the lab's own and returns where: whatever is pinned there ends when it is unmounted.
    pub(crate) fn pins(&mut self) -> anyhow::Result<PathBuf> {
        let directory = self.directory.join("bpf");
        std::fs::create_dir_all(&directory)
            .with_context(|| format!("make {}", directory.display()))?;
        self.made.pins = true;
        self.write()?;
        mount(
            Some("bpf"),
            &directory,
            Some("bpf"),
            MsFlags::empty(),
            None::<&str>,
        )
        .with_context(|| format!("mount a bpf file system on {}", directory.display()))?;
        Ok(directory)
    }

    /// Notes a process that was just started. (Should we be killed before: it is in one of our namespaces.)
    pub(crate) fn process(&mut self, pid: u32) -> anyhow::Result<()> {
        let pid = pid.cast_signed();
        self.made.processes.retain(|process| is_alive(*process));
        if let Some(started) = start_of(pid) {
            self.made.processes.push(Process { pid, started });
        }
        self.write()
    }

    /// Notes that the lab stays up.
    pub(crate) fn keep(&mut self) -> anyhow::Result<()> {
        self.made.kept = true;
        self.write()
    }

    /// Removes everything that is noted. Goes on after a failure, and reports the first.
    pub(crate) fn sweep(&mut self) -> anyhow::Result<()> {
        let mut first_error = None;
        let mut note = |result: anyhow::Result<()>| {
            if let Err(error) = result {
                first_error.get_or_insert(error);
            }
        };
        for process in &self.made.processes {
            if is_alive(*process) {
                // It may have ended in between, which is what we want.
                let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
            }
        }
        for name in &self.made.namespaces {
            for pid in netns::processes_in(name) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            note(netns::remove(name));
        }
        if self.made.pins {
            note(self.unmount_pins());
        }
        // Logs stay for whoever wants to know why; the next run starts with none.
        for part in [
            "manifests",
            "staging",
            "sockets",
            "bin",
            CERTIFICATES,
            VIEWS,
            FROZEN,
        ] {
            note(remove_all(&self.directory.join(part)));
        }
        if let Some(error) = first_error {
            return Err(error);
        }
        self.made = Made::default();
        self.write()
    }

    fn unmount_pins(&self) -> anyhow::Result<()> {
        let directory = self.directory.join("bpf");
        match umount2(&directory, MntFlags::MNT_DETACH) {
            Ok(()) | Err(nix::Error::ENOENT | nix::Error::EINVAL) => remove_all(&directory),
            Err(error) => Err(error).with_context(|| format!("unmount {}", directory.display())),
        }
    }

    fn write(&self) -> anyhow::Result<()> {
        let path = self.directory.join("made.json");
        let fresh = self.directory.join("made.json.new");
        let bytes = serde_json::to_vec_pretty(&self.made).context("write JSON")?;
        let mut file = File::create(&fresh).with_context(|| format!("make {}", fresh.display()))?;
        file.write_all(&bytes)
            .with_context(|| format!("write {}", fresh.display()))?;
        std::fs::rename(&fresh, &path).with_context(|| format!("rename to {}", path.display()))
    }
}

fn remove_all(directory: &Path) -> anyhow::Result<()> {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", directory.display()))
        }
        _ => Ok(()),
    }
}

fn is_alive(process: Process) -> bool {
    start_of(process.pid) == Some(process.started)
}

/// When a process was started; none if it is not there.
fn start_of(pid: i32) -> Option<u64> {
    start_in(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Field 22. The second is the program's name in parentheses, and may hold anything, parentheses included.
fn start_in(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(") ")?;
    after_name.split(' ').nth(22 - 3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_apart_by_its_start() {
        let stat = "17 (a) b (c) S 1 17 17 0 -1 4194560 1 0 0 0 5 6 0 0 20 0 1 0 4711 100 200";
        assert_eq!(start_in(stat), Some(4711));
        let me = std::process::id().cast_signed();
        let started = start_of(me).unwrap();
        assert!(is_alive(Process { pid: me, started }));
        assert!(!is_alive(Process {
            pid: me,
            started: started + 1
        }));
    }
}
