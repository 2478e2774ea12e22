//! A network of its own, in which nobody else sends anything: loopback, and its counters.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::process::Command;
use std::thread;

use anyhow::{Context as _, ensure};
use nix::sched::{CloneFlags, unshare};

/// What the kernel counts in the network namespace of the thread that opens it.
const DEVICES: &str = "/proc/thread-self/net/dev";

/// A network namespace.
pub(super) struct Network {
    devices: File,
}

impl Network {
    /// Does something on a thread of its own, in a namespace that goes with it; what it starts is there too. Needs root.
    pub(super) fn inside<T: Send>(
        act: impl FnOnce(&Self) -> anyhow::Result<T> + Send,
    ) -> anyhow::Result<T> {
        thread::scope(|scope| {
            let thread = scope.spawn(|| act(&Self::enter()?));
            match thread.join() {
                Ok(done) => done,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    fn enter() -> anyhow::Result<Self> {
        unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace (this needs root)")?;
        let up = Command::new("ip")
            .args(["link", "set", "lo", "up"])
            .status()
            .context("run ip (package iproute2)")?;
        ensure!(up.success(), "loopback does not come up");
        let devices = File::open(DEVICES).with_context(|| format!("open {DEVICES}"))?;
        Ok(Self { devices })
    }

    /// Bytes that were sent so far, headers and acknowledgements of TCP included.
    pub(super) fn bytes(&self) -> anyhow::Result<u64> {
        let mut devices = &self.devices;
        let mut text = String::new();
        devices.seek(SeekFrom::Start(0))?;
        devices.read_to_string(&mut text)?;
        sent(&text).with_context(|| format!("{DEVICES} has no line for loopback"))
    }
}

/// Bytes sent by loopback, of what the kernel says of all devices.
fn sent(devices: &str) -> Option<u64> {
    let line = devices
        .lines()
        .find_map(|line| line.trim().strip_prefix("lo:"))?;
    // Eight counters of what was received come first.
    line.split_whitespace().nth(8)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_sent_are_found_among_the_counters() {
        let devices = "Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
  eth0:  1       2    0    0    0     0          0         0   3       4    0    0    0     0       0          0
    lo:  5004      41    0    0    0     0          0         0     5005      42    0    0    0     0       0          0
";
        assert_eq!(sent(devices), Some(5005));
        assert_eq!(sent("Inter-|"), None);
    }
}
