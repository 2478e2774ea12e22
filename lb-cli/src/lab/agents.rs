//! Manager and agents of a cluster: started, ended, asked, and waited for.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use authority::handoff::Holder;
use lb_controller::admin;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::bird;
use super::cluster::Cluster;
use super::network::LINK;
use super::run::UNSERVED;
use crate::agent::{self, Agent};

/// Agents are ready, and changes applied, well within this, even if the verifier has to share slow cores.
const SETTLE_LIMIT: Duration = Duration::from_mins(1);
/// Between two looks at the agents.
const POLL: Duration = Duration::from_millis(25);
/// From a written file to the last agent's maps, with plenty to spare.
const APPLY_TIME: Duration = Duration::from_secs(3);
/// A process that was asked to end has this long.
const END_LIMIT: Duration = Duration::from_secs(5);

impl Cluster {
    /// Starts the manager.
    pub(crate) fn start_manager(&mut self) -> anyhow::Result<()> {
        let mut command = Command::new(&self.settings.controller);
        command
            .arg("manager")
            .arg("--manifests")
            .arg(self.manifests.directory());
        command.arg("--admin-socket").arg(self.socket("manager"));
        command
            .arg("--handoff-certificates")
            .arg(self.certificates(Holder::Manager));
        let child = self.spawn(command, &self.network.router, "manager")?;
        self.ledger.process(child.id())?;
        self.manager = Some(child);
        Ok(())
    }

    /// Kills the manager, and waits until it is gone.
    pub(crate) fn kill_manager(&mut self) -> anyhow::Result<()> {
        let mut manager = self.manager.take().context("there is no manager")?;
        manager.kill().context("kill the manager")?;
        manager.wait().context("wait for the manager")?;
        Ok(())
    }

    /// Starts the agent of a machine.
    pub(crate) fn start_agent(&mut self, name: &str) -> anyhow::Result<()> {
        let controller = self.settings.controller.clone();
        self.start_agent_of(name, &controller)
    }

    /// Starts the agent of a machine from another build.
    pub(crate) fn start_agent_of(&mut self, name: &str, controller: &Path) -> anyhow::Result<()> {
        let (machine, _) = self.machine(name)?;
        let mut command = Command::new(controller);
        command.arg("agent").arg("--manifests").arg(self.view(name));
        command.args(["--node", name, "--role", machine.role.argument()]);
        command.args(["--interface", LINK]);
        for address in machine.addresses() {
            command
                .arg("--node-address")
                .arg(address.addr().to_string());
        }
        command.arg("--pin-dir").arg(self.network.pins.join(name));
        command.arg("--admin-socket").arg(self.socket(name));
        command.args(["--xdp-mode", &self.settings.xdp_mode]);
        command
            .arg("--handoff-certificates")
            .arg(self.certificates(Holder::Node(name)));
        if self.settings.bird {
            command.args(["--route-table", &bird::table()]);
        }
        if self.settings.no_relay {
            command.arg("--no-relay");
        }
        let (_, namespace) = self.machine(name)?;
        let child = self.spawn(command, namespace, name)?;
        self.ledger.process(child.id())?;
        self.agents.insert(name.to_owned(), child);
        Ok(())
    }

    /// Ends the agent of a machine with a signal, and waits until it has ended.
    pub(crate) async fn end_agent(&mut self, name: &str, signal: Signal) -> anyhow::Result<()> {
        self.signal_agent(name, signal)?;
        self.agent_ended(name).await
    }

    /// Sends a signal to the agent of a machine.
    pub(crate) fn signal_agent(&self, name: &str, signal: Signal) -> anyhow::Result<()> {
        let agent = self.agents.get(name);
        let agent = agent.with_context(|| format!("{name} has no agent"))?;
        kill(Pid::from_raw(agent.id().cast_signed()), signal)
            .with_context(|| format!("signal the agent of {name}"))
    }

    /// Waits until the agent of a machine has ended, which it was told to.
    pub(crate) async fn agent_ended(&mut self, name: &str) -> anyhow::Result<()> {
        let agent = self.agents.remove(name);
        let mut agent = agent.with_context(|| format!("{name} has no agent"))?;
        let started = Instant::now();
        while agent.try_wait().context("wait for an agent")?.is_none() {
            if started.elapsed() > END_LIMIT {
                bail!(
                    "the agent of {name} did not end within {} s",
                    END_LIMIT.as_secs()
                );
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// Asks the agent of a machine.
    pub(crate) async fn ask<T>(&self, machine: &str, path: &'static str) -> anyhow::Result<T>
    where
        T: serde::de::DeserializeOwned + Send + 'static,
    {
        let agent = Agent::Socket(self.socket(machine));
        let answer = tokio::task::spawn_blocking(move || agent::get(&agent, path));
        answer.await.context("ask an agent")?
    }

    /// A copy of the program: as good as another build, since nothing is shared with the first but the pinned maps.
    pub(crate) fn other_build(&self) -> anyhow::Result<PathBuf> {
        let directory = self.ledger.directory().join("bin");
        std::fs::create_dir_all(&directory)
            .with_context(|| format!("make {}", directory.display()))?;
        let copy = directory.join("lb-controller");
        if !copy.exists() {
            std::fs::copy(&self.settings.controller, &copy)
                .with_context(|| format!("copy to {}", copy.display()))?;
        }
        Ok(copy)
    }

    /// Waits until every agent programs what was published last.
    pub(crate) async fn applied(&mut self) -> anyhow::Result<()> {
        // Manager and agents act within milliseconds; agreement on an older version must not be taken for the newest.
        tokio::time::sleep(APPLY_TIME).await;
        self.settled().await
    }

    /// Waits until these agents are ready and agree on every Service.
    pub(crate) async fn settled(&mut self) -> anyhow::Result<()> {
        let started = Instant::now();
        loop {
            let problem = match self.disagreement().await {
                Ok(None) => return Ok(()),
                Ok(Some(problem)) => problem,
                Err(error) => format!("{error:#}"),
            };
            self.check_alive()?;
            if started.elapsed() > SETTLE_LIMIT {
                bail!(
                    "not settled after {} s: {problem}; logs are in {}",
                    SETTLE_LIMIT.as_secs(),
                    self.logs().display()
                );
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Why the cluster is not settled; none: it is.
    async fn disagreement(&self) -> anyhow::Result<Option<String>> {
        let mut digests: BTreeMap<String, Option<String>> = BTreeMap::new();
        for machine in self.machines() {
            let status: admin::Status = self.ask(&machine, "/v1/status").await?;
            if !status.ready || !status.fresh {
                let why = status.not_ready_because.join("; ");
                return Ok(Some(format!("the agent of {machine} is not ready: {why}")));
            }
            let services: admin::Services = self.ask(&machine, "/v1/services").await?;
            for service in services.services {
                let name = format!("{}/{}", service.namespace, service.name);
                // That nobody serves it is what one example is about.
                if let Some(problem) = service.problem
                    && service.name != UNSERVED
                {
                    return Ok(Some(format!("Service {name} on {machine}: {problem}")));
                }
                let known = digests
                    .entry(name.clone())
                    .or_insert(service.digest.clone());
                if *known != service.digest || service.digest.is_none() {
                    return Ok(Some(format!(
                        "{machine} has another table of {name} than others"
                    )));
                }
            }
        }
        Ok(digests
            .is_empty()
            .then(|| "no agent knows a Service".to_owned()))
    }

    /// A process that ended by itself is a failure of the lab.
    fn check_alive(&mut self) -> anyhow::Result<()> {
        let logs = self.logs();
        let manager = self.manager.iter_mut().map(|child| ("manager", child));
        let agents = self
            .agents
            .iter_mut()
            .map(|(name, child)| (name.as_str(), child));
        for (name, child) in manager.chain(agents) {
            if let Some(status) = child.try_wait().context("look after a process")? {
                let log = logs.join(format!("{name}.log"));
                bail!(
                    "lb-controller of {name} ended with {status}: {}; all of it is in {}",
                    last_line(&log),
                    log.display()
                );
            }
        }
        Ok(())
    }
}

fn last_line(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    text.lines().last().unwrap_or("its log is empty").to_owned()
}
