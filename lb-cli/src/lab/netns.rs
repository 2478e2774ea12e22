//! Named network namespaces: made, entered, removed. Knows nothing of what is inside.
//!
//! A namespace belongs to a *thread*: [`Namespace::inside`] does its work on a thread of its own, so the rest of `lbctl`
//! never leaves the namespace it was started in, and a process started there inherits the network, and nothing else:
//! `/sys/fs/bpf` stays visible.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

/// Where `ip netns` looks for names.
const DIRECTORY: &str = "/run/netns";

/// A network namespace with a name that `ip netns exec` understands.
#[derive(Debug)]
pub(crate) struct Namespace {
    name: String,
    file: File,
}

impl Namespace {
    /// Makes a namespace with its loopback device down, as the kernel gives it.
    pub(crate) fn create(name: &str) -> anyhow::Result<Self> {
        std::fs::create_dir_all(DIRECTORY).with_context(|| format!("make {DIRECTORY}"))?;
        let path = path_of(name);
        File::create_new(&path)
            .with_context(|| format!("make namespace {name}: {} is taken", path.display()))?;
        let bound = std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET)?;
                mount(
                    Some("/proc/thread-self/ns/net"),
                    &path,
                    None::<&str>,
                    MsFlags::MS_BIND,
                    None::<&str>,
                )
            });
            joined(thread.join())
        });
        if let Err(error) = bound {
            // The name must not stay behind without a namespace; the first error is the one to report.
            let _ = std::fs::remove_file(&path);
            return Err(error).with_context(|| format!("make namespace {name}"));
        }
        Self::open(name)
    }

    /// Opens a namespace that exists.
    pub(crate) fn open(name: &str) -> anyhow::Result<Self> {
        let file = File::open(path_of(name)).with_context(|| format!("open namespace {name}"))?;
        Ok(Self {
            name: name.to_owned(),
            file,
        })
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The open file that names it, for moving links.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Does `work` on a thread inside the namespace and waits for it.
    pub(crate) fn inside<T: Send>(
        &self,
        work: impl FnOnce() -> anyhow::Result<T> + Send,
    ) -> anyhow::Result<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&self.file, CloneFlags::CLONE_NEWNET)
                    .with_context(|| format!("enter namespace {}", self.name))?;
                work()
            });
            joined(thread.join())
        })
    }

    /// Writes a kernel setting below `/proc/sys/net` of the namespace.
    pub(crate) fn set(&self, setting: &str, value: &str) -> anyhow::Result<()> {
        let path = Path::new("/proc/sys/net").join(setting);
        self.inside(|| {
            std::fs::write(&path, value)
                .with_context(|| format!("{}: set {setting} to {value}", self.name))
        })
    }

    /// Starts a runtime on a thread that stays inside: sockets opened by its tasks are the namespace's.
    pub(crate) fn worker(&self) -> anyhow::Result<Worker> {
        let file = self.file.try_clone().context("duplicate a file")?;
        let (ready, is_ready) = std::sync::mpsc::channel();
        let stop = tokio_util::sync::CancellationToken::new();
        let stopped = stop.clone();
        let thread = std::thread::Builder::new()
            .name(self.name.clone())
            .spawn(move || {
                let runtime = setns(&file, CloneFlags::CLONE_NEWNET)
                    .map_err(std::io::Error::from)
                    .and_then(|()| {
                        tokio::runtime::Builder::new_current_thread()
                            .enable_all()
                            .build()
                    });
                match runtime {
                    Ok(runtime) => {
                        // The receiver waits for exactly one message.
                        let _ = ready.send(Ok(runtime.handle().clone()));
                        runtime.block_on(stopped.cancelled());
                    }
                    Err(error) => {
                        let _ = ready.send(Err(error));
                    }
                }
            });
        let thread = thread.context("start a thread")?;
        let handle = is_ready
            .recv()
            .context("a worker ended at once")?
            .with_context(|| format!("enter namespace {}", self.name))?;
        Ok(Worker {
            handle,
            stop,
            thread: Some(thread),
        })
    }
}

/// A runtime inside a namespace. Its tasks end when it is dropped.
#[derive(Debug)]
pub(crate) struct Worker {
    handle: tokio::runtime::Handle,
    stop: tokio_util::sync::CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Worker {
    /// Where to spawn tasks.
    pub(crate) fn handle(&self) -> &tokio::runtime::Handle {
        &self.handle
    }

    /// Does `work` inside and waits for it.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = anyhow::Result<T>> + Send + 'static,
    ) -> anyhow::Result<T> {
        self.handle
            .spawn(work)
            .await
            .context("a task inside a namespace ended early")?
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            // A panic of a task has been reported by its join handle.
            let _ = thread.join();
        }
    }
}

/// Removes a namespace; its links go with it once its last process has ended. Not there is fine.
pub(crate) fn remove(name: &str) -> anyhow::Result<()> {
    let path = path_of(name);
    match umount2(&path, MntFlags::MNT_DETACH) {
        Ok(()) | Err(nix::Error::ENOENT | nix::Error::EINVAL) => {}
        Err(error) => return Err(error).with_context(|| format!("unmount {}", path.display())),
    }
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Processes whose network is the named namespace; none if it is not there.
pub(crate) fn processes_in(name: &str) -> Vec<i32> {
    let Ok(namespace) = std::fs::metadata(path_of(name)) else {
        return Vec::new();
    };
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| {
            // Both are files of the same `nsfs`, where the inode number is the namespace's id.
            std::fs::metadata(format!("/proc/{pid}/ns/net"))
                .is_ok_and(|of| (of.dev(), of.ino()) == (namespace.dev(), namespace.ino()))
        })
        .collect()
}

fn path_of(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(name)
}

/// A panic of the thread goes on in the caller, as if there were no thread.
fn joined<T>(result: std::thread::Result<T>) -> T {
    match result {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}
