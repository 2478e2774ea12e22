//! Which machines of a cluster are there, and what their agents can see: machines join and lose power, an agent sees no
//! changes for a while.
//!
//! Every agent follows the directory of objects through a link of its own, `views/<machine>`. While an agent is to see no
//! changes the link leads to a copy that nobody writes to, but for what the agent reports of itself; when it leads back, the agent's next look at everything (at most
//! five seconds later) finds what it has missed, as after a watch that was broken.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use lb_controller::admin;
use lb_controller::source::output::Outputs;
use nix::sys::signal::Signal;
use tokio::sync::mpsc;

use super::cluster::Cluster;
use super::ledger::{FROZEN, VIEWS};
use super::links::{self, End};
use super::network::LINK;
use crate::agent::{self, Agent};

/// An agent that starts is ready well within this, even if the verifier has to share slow cores.
const READY_LIMIT: Duration = Duration::from_mins(1);
/// Between two looks at an agent that starts.
const POLL: Duration = Duration::from_millis(25);

impl Cluster {
    /// Balancers that are there.
    pub(crate) fn balancers(&self) -> Vec<String> {
        let all = self.network.every_balancer().into_iter();
        all.filter(|name| self.is_there(name)).collect()
    }

    /// A machine is there: it has joined, and has power.
    pub(crate) fn is_there(&self, machine: &str) -> bool {
        !self.absent.contains(machine)
    }

    /// A machine is not there from the beginning: it has no object, and no agent is started.
    pub(crate) fn leave_out(&mut self, machine: &str) -> anyhow::Result<()> {
        self.absent.insert(machine.to_owned());
        self.manifests.remove_node(machine)
    }

    /// A machine that was left out joins. Its name is told when its agent is ready; never if it does not become ready.
    pub(crate) fn join(&mut self, name: &str, ready: mpsc::Sender<String>) -> anyhow::Result<()> {
        let (machine, _) = self.machine(name)?;
        let machine = machine.clone();
        self.manifests.node(&machine)?;
        self.absent.remove(name);
        self.start_agent(name)?;
        tokio::spawn(tell_ready(self.socket(name), name.to_owned(), ready));
        Ok(())
    }

    /// A machine loses power: from now on nothing leaves it. Servers of its pods are left alone, as nobody can tell.
    pub(crate) async fn lose_power(&mut self, name: &str) -> anyhow::Result<()> {
        let (_, namespace) = self.machine(name)?;
        // First, so that no process says good-bye.
        links::down(End {
            namespace,
            link: LINK,
        })?;
        self.absent.insert(name.to_owned());
        if self.agents.contains_key(name) {
            self.signal_agent(name, Signal::SIGKILL)?;
            self.agent_ended(name).await?;
        }
        Ok(())
    }

    /// Where the agent of a machine finds objects.
    pub(super) fn view(&self, machine: &str) -> PathBuf {
        self.ledger.directory().join(VIEWS).join(machine)
    }

    /// Lets the agent of every machine see the objects.
    pub(super) fn make_views(&self) -> anyhow::Result<()> {
        for (machine, _) in &self.network.machines {
            self.see(&machine.name)?;
        }
        Ok(())
    }

    /// The agent of a machine sees the objects as they are now, and no change, until [`Self::see`].
    pub(crate) fn blind(&self, machine: &str) -> anyhow::Result<()> {
        let frozen = self.ledger.directory().join(FROZEN).join(machine);
        let manifests = self.manifests.directory();
        // What the agent itself reports goes through.
        let reports = Outputs::below(manifests).nodes();
        freeze(manifests, &frozen, &reports)?;
        self.look_at(machine, &frozen)
    }

    /// The agent of a machine sees changes.
    pub(crate) fn see(&self, machine: &str) -> anyhow::Result<()> {
        self.look_at(machine, self.manifests.directory())
    }

    /// Replaces the link by rename, so that the agent always finds one.
    fn look_at(&self, machine: &str, directory: &Path) -> anyhow::Result<()> {
        let view = self.view(machine);
        let fresh = view.with_extension("new");
        std::os::unix::fs::symlink(directory, &fresh)
            .with_context(|| format!("make {}", fresh.display()))?;
        std::fs::rename(&fresh, &view).with_context(|| format!("rename to {}", view.display()))
    }
}

/// Gives every file of a directory and those below it a second name. Files are replaced by others, never written to, so that
/// this keeps what there is now, and its times. `shared` is the same directory in both places.
fn freeze(from: &Path, to: &Path, shared: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(to).with_context(|| format!("make {}", to.display()))?;
    let listed = std::fs::read_dir(from).with_context(|| format!("list {}", from.display()));
    for entry in listed? {
        let entry = entry.with_context(|| format!("list {}", from.display()))?;
        let (old, new) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().context("look at a file")?;
        let kept = if old == shared {
            std::os::unix::fs::symlink(&old, &new)
        } else if kind.is_dir() {
            freeze(&old, &new, shared)?;
            Ok(())
        } else {
            std::fs::hard_link(&old, &new)
        };
        match kept {
            // A file that was just about to be renamed.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            done => done.with_context(|| format!("keep {}", old.display()))?,
        }
    }
    Ok(())
}

async fn tell_ready(socket: PathBuf, name: String, ready: mpsc::Sender<String>) {
    let started = Instant::now();
    while started.elapsed() < READY_LIMIT {
        let agent = Agent::Socket(socket.clone());
        let asked =
            tokio::task::spawn_blocking(move || agent::get::<admin::Status>(&agent, "/v1/status"));
        if let Ok(Ok(status)) = asked.await
            && status.ready
            && status.fresh
        {
            // Nobody waits any more: the run has ended.
            let _ = ready.send(name).await;
            return;
        }
        tokio::time::sleep(POLL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, text: &str) {
        let fresh = path.with_extension("fresh");
        std::fs::write(&fresh, text).unwrap();
        std::fs::rename(&fresh, path).unwrap();
    }

    #[test]
    fn a_frozen_directory_keeps_what_there_was_and_passes_reports_on() {
        let root = std::env::temp_dir().join(format!("frozen-{}", std::process::id()));
        let (from, to) = (root.join("from"), root.join("to"));
        let reports = from.join(".out/reports");
        std::fs::create_dir_all(&reports).unwrap();
        write(&from.join("pod.yaml"), "old");
        write(&from.join(".out/table.yaml"), "old");
        freeze(&from, &to, &reports).unwrap();
        write(&from.join("pod.yaml"), "new");
        write(&from.join("more.yaml"), "new");
        write(&from.join(".out/table.yaml"), "new");
        write(&to.join(".out/reports/node.yaml"), "well");
        let read = |path: PathBuf| std::fs::read_to_string(path).ok();
        let found = [
            read(to.join("pod.yaml")),
            read(to.join("more.yaml")),
            read(to.join(".out/table.yaml")),
            read(reports.join("node.yaml")),
        ];
        std::fs::remove_dir_all(&root).unwrap();
        assert_eq!(
            found.map(Option::unwrap_or_default),
            ["old", "", "old", "well"]
        );
    }
}
