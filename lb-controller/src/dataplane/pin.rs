//! Where maps and links are pinned, so that they outlive the agent.
//!
//! ```text
//! <pin dir>/abi-2/maps/<map>             shared by every version of the program with this layout
//! <pin dir>/abi-2/links/<kind>-<ifindex> what keeps the programs attached
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use lb_ebpf::abi::ABI_VERSION;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

/// What is wrong with the pin directory.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// The directory is on another kind of filesystem.
    #[error(
        "{dir} is not on a BPF filesystem: run `mount -t bpf bpf /sys/fs/bpf`, or name a directory of one with --pin-dir"
    )]
    NotBpffs {
        /// The directory.
        dir: PathBuf,
    },
    /// Its name cannot be used.
    #[error(
        "{dir}: names below a BPF filesystem may not contain dots; name another directory with --pin-dir"
    )]
    Dots {
        /// The directory.
        dir: PathBuf,
    },
    /// Another agent is at work there.
    #[error(
        "another agent uses {dir}: stop it, or give this one a directory of its own with --pin-dir"
    )]
    InUse {
        /// The directory.
        dir: PathBuf,
    },
    /// A pinned map has another size than this agent was told to make it.
    #[error(
        "map {map} is pinned with {pinned} entries, but {wanted} are asked for: ask for {pinned}, or stop the agent and \
         remove {dir}, which forgets all known flows"
    )]
    Size {
        /// Its name.
        map: &'static str,
        /// Entries of the pinned one.
        pinned: u32,
        /// Entries asked for.
        wanted: u32,
        /// Where it is pinned.
        dir: PathBuf,
    },
    /// A pinned map has another layout, in spite of the version in its path.
    #[error(
        "{path} is not a map of this version of Bowline: stop the agent and remove its directory"
    )]
    Layout {
        /// The map.
        path: PathBuf,
    },
    /// Anything else that the kernel said.
    #[error("{path}")]
    Pin {
        /// What was touched.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The directory of one agent's pins.
#[derive(Debug)]
pub struct PinDir {
    base: PathBuf,
    /// Held while the agent runs; the kernel lets go of it however the agent ends.
    lock: Option<Flock<fs::File>>,
}

impl PinDir {
    /// Pins below `base`. Nothing is touched yet.
    pub fn new(base: &Path) -> Self {
        Self {
            base: base.to_owned(),
            lock: None,
        }
    }

    /// The same paths, without the lock.
    pub(super) fn paths(&self) -> Self {
        Self::new(&self.base)
    }

    /// Takes the lock without making anything.
    pub(super) fn lock(&mut self) -> Result<(), PinError> {
        if self.lock.is_none() && self.base.exists() {
            self.lock = Some(self.acquire()?);
        }
        Ok(())
    }

    /// Makes the directories and locks them against other agents.
    pub fn prepare(&mut self) -> Result<(), PinError> {
        let nearest = self.base.ancestors().find(|dir| dir.exists());
        let on_bpffs = nearest
            .and_then(|dir| statfs(dir).ok())
            .is_some_and(|answer| answer.filesystem_type() == BPF_FS_MAGIC);
        if !on_bpffs {
            return Err(PinError::NotBpffs {
                dir: self.base.clone(),
            });
        }
        for dir in [self.maps(), self.links()] {
            fs::create_dir_all(&dir).map_err(|source| {
                if source.kind() == io::ErrorKind::PermissionDenied && has_dots(&self.base) {
                    PinError::Dots {
                        dir: self.base.clone(),
                    }
                } else {
                    PinError::Pin { path: dir, source }
                }
            })?;
        }
        self.lock()
    }

    fn acquire(&self) -> Result<Flock<fs::File>, PinError> {
        let failed = |source| PinError::Pin {
            path: self.base.clone(),
            source,
        };
        let dir = fs::File::open(&self.base).map_err(failed)?;
        Flock::lock(dir, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
            nix::errno::Errno::EWOULDBLOCK => PinError::InUse {
                dir: self.base.clone(),
            },
            other => failed(other.into()),
        })
    }

    /// The directory that the agent was given.
    pub fn base(&self) -> &Path {
        &self.base
    }

    fn version(&self) -> PathBuf {
        self.base.join(format!("abi-{ABI_VERSION}"))
    }

    pub(super) fn maps(&self) -> PathBuf {
        self.version().join("maps")
    }

    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.maps().join(name)
    }

    pub(super) fn links(&self) -> PathBuf {
        self.version().join("links")
    }

    pub(super) fn link(&self, name: &str) -> PathBuf {
        self.links().join(name)
    }

    /// Links with this name that other versions of the layout have left attached.
    pub(super) fn links_of_other_versions(&self, name: &str) -> Vec<PathBuf> {
        let own = self.version();
        fs::read_dir(&self.base)
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|dir| *dir != own)
            .map(|dir| dir.join("links").join(name))
            .filter(|link| link.exists())
            .collect()
    }

    /// Removes everything below the directory: programs without another pin detach, maps without another user go.
    pub fn remove(self) -> Result<(), PinError> {
        match fs::remove_dir_all(&self.base) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(|source| PinError::Pin {
                path: self.base.clone(),
                source,
            }),
        }
    }
}

fn has_dots(path: &Path) -> bool {
    path.iter().any(|part| part.to_string_lossy().contains('.'))
}

/// Mounts a BPF filesystem of its own on `dir`, which must exist: nobody else's pins are seen there. The lab and the
/// tests use it, since not every machine has one at `/sys/fs/bpf`.
pub fn mount_bpffs(dir: &Path) -> Result<(), PinError> {
    use nix::mount::{MsFlags, mount};
    mount(
        Some("bpf"),
        dir,
        Some("bpf"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
        None::<&str>,
    )
    .map_err(|errno| PinError::Pin {
        path: dir.to_owned(),
        source: errno.into(),
    })
}

/// Undoes [`mount_bpffs`]; what is pinned there is gone when nobody else has it mounted.
pub fn unmount_bpffs(dir: &Path) -> Result<(), PinError> {
    use nix::mount::{MntFlags, umount2};
    umount2(dir, MntFlags::MNT_DETACH).map_err(|errno| PinError::Pin {
        path: dir.to_owned(),
        source: errno.into(),
    })
}
