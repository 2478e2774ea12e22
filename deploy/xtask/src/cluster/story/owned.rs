//! A cluster that this process started is removed by it: at the end, on a panic, and when somebody interrupts it.

use std::path::Path;

use anyhow::Context;
use nix::sys::signal::{SigSet, Signal};
use rig::Cluster;

/// What names of clusters of tests start with; the rest is the id of the process that made them.
const TEST: &str = "test-";

/// Removes a cluster when dropped.
pub(super) struct Owned {
    name: String,
}

impl Owned {
    /// From now on SIGINT and SIGTERM remove the cluster and end this process.
    pub(super) fn new(name: &str) -> Self {
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGINT);
        signals.add(Signal::SIGTERM);
        // Threads that are started later inherit the mask, and programs too: none of them is ended by these signals.
        if signals.thread_block().is_ok() {
            let name = name.to_owned();
            // Not joined: it waits for something that may never come.
            std::thread::spawn(move || {
                let Ok(signal) = signals.wait() else { return };
                eprintln!("{signal}: the cluster is being removed");
                down(&name);
                std::process::exit(130);
            });
        }
        Self {
            name: name.to_owned(),
        }
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        down(&self.name);
    }
}

fn down(name: &str) {
    if let Err(error) = Cluster::open(name).and_then(|cluster| cluster.down()) {
        eprintln!(
            "the cluster could not be removed, try `cargo xtask cluster --name {name} down`: {error:#}"
        );
    }
}

/// A name that no other run has; removes clusters of runs that were killed.
pub(super) fn fresh_name() -> anyhow::Result<String> {
    for name in Cluster::names() {
        if is_orphan(&name, |pid| Path::new("/proc").join(pid).exists()) {
            Cluster::open(&name)?
                .down()
                .with_context(|| format!("remove the cluster {name} of a run that was killed"))?;
        }
    }
    Ok(format!("{TEST}{}", std::process::id()))
}

/// It was made by a test whose process is gone.
fn is_orphan(name: &str, lives: impl Fn(&str) -> bool) -> bool {
    name.strip_prefix(TEST)
        .is_some_and(|pid| pid.parse::<u32>().is_ok() && !lives(pid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_clusters_of_dead_tests_are_orphans() {
        let lives = |pid: &str| pid == "7";
        assert!(is_orphan("test-8", lives));
        assert!(!is_orphan("test-7", lives));
        assert!(!is_orphan("test-mine", lives));
        assert!(!is_orphan("kube", lives));
    }
}
