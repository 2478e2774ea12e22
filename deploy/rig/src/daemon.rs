//! Long-running programs that end when we do, however we end. Knows nothing of what they are.

use std::fs::OpenOptions;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;

use anyhow::{Context, anyhow};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Bytes of a log that an error shows.
const LOG_TAIL: usize = 2_000;

/// Starts programs from one thread that lives as long as they may: the kernel ends them when that thread ends, also by
/// a crash of this process. A thread of tokio's pool would do so whenever the pool has no work for it.
#[derive(Debug)]
pub(crate) struct Keeper {
    orders: Option<mpsc::SyncSender<Order>>,
    thread: Option<JoinHandle<()>>,
}

type Order = (Command, mpsc::SyncSender<std::io::Result<Child>>);

impl Keeper {
    pub(crate) fn new() -> anyhow::Result<Self> {
        // One caller at a time waits for its answer, so nothing queues.
        let (orders, received) = mpsc::sync_channel::<Order>(1);
        let thread = std::thread::Builder::new()
            .name("keeper".to_owned())
            .spawn(move || {
                for (mut command, answer) in received {
                    // Whoever asked is gone: the child ends with this thread.
                    let _ = answer.send(command.spawn());
                }
            });
        Ok(Self {
            orders: Some(orders),
            thread: Some(thread.context("start a thread")?),
        })
    }

    /// Starts a program whose output goes to a file, in a process group of its own.
    pub(crate) fn start(
        &self,
        program: &Path,
        args: &[String],
        log: &Path,
    ) -> anyhow::Result<Daemon> {
        let name = program
            .file_name()
            .unwrap_or(program.as_os_str())
            .to_string_lossy()
            .into_owned();
        let open = OpenOptions::new().create(true).append(true).open(log);
        let file = open.with_context(|| format!("open {}", log.display()))?;
        let errors = file.try_clone().context("duplicate a file")?;
        // `setpriv` tells the kernel to end the program with our thread, and becomes the program.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .arg(program)
            .args(args);
        command
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(errors)
            .process_group(0);
        let (answer, answered) = mpsc::sync_channel(1);
        let orders = self.orders.as_ref().context("the keeper has ended")?;
        orders
            .send((command, answer))
            .map_err(|_| anyhow!("the keeper has ended"))?;
        let child = answered.recv().context("the keeper has ended")?;
        Ok(Daemon {
            child: child.with_context(|| format!("start {name} (with setpriv of util-linux)"))?,
            name,
            log: log.to_owned(),
        })
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.orders.take());
        if let Some(thread) = self.thread.take() {
            // It does nothing that could panic; the children are gone by now in any case.
            let _ = thread.join();
        }
    }
}

/// A running program. Ends when dropped.
#[derive(Debug)]
pub(crate) struct Daemon {
    child: Child,
    name: String,
    log: PathBuf,
}

impl Daemon {
    /// An error with the end of its log if it has ended.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        match self
            .child
            .try_wait()
            .with_context(|| format!("look after {}", self.name))?
        {
            None => Ok(()),
            Some(status) => Err(anyhow!(
                "{} ended with {status}: {}",
                self.name,
                self.log_tail()
            )),
        }
    }

    /// The end of its log.
    pub(crate) fn log_tail(&self) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        let tail = &bytes[bytes.len().saturating_sub(LOG_TAIL)..];
        String::from_utf8_lossy(tail).trim().to_owned()
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal)
            .with_context(|| format!("send {signal} to {}", self.name))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended already, which is what we want.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
