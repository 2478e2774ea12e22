//! Which machines of a cluster are there, and what their agents can see: machines join and lose power, an agent sees no
//! changes for a while.
//!
//! Every agent follows the directory of objects through a link of its own, `views/<machine>`. While an agent is to see no
//! changes the link leads to a copy that nobody writes to; when it leads back, the agent's next look at everything (at most
//! five seconds later) finds what it has missed, as after a watch that was broken.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use lb_controller::admin;
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
        all.map(|(name, _)| name)
            .filter(|name| self.is_there(name))
            .collect()
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
        std::fs::create_dir_all(&frozen).with_context(|| format!("make {}", frozen.display()))?;
        let entries = std::fs::read_dir(self.manifests.directory()).context("list the objects")?;
        for entry in entries {
            let entry = entry.context("list the objects")?;
            // Files are replaced by others, never written to: a second name keeps what there is now, and its times.
            match std::fs::hard_link(entry.path(), frozen.join(entry.file_name())) {
                // The manager has replaced it and it is not there, or not there yet, under this name: a change to come.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                done => done.with_context(|| format!("keep {}", entry.path().display()))?,
            }
        }
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
