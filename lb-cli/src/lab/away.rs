//! Agents go away and come back while transfers, new connections and datagrams go on.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use lb_controller::admin;
use nix::sys::signal::Signal;
use tokio_util::sync::CancellationToken;

use super::load;
use super::run::Run;
use super::scenario::{CALM_MS, Scenario};
use super::ways::Mix;

/// New connections a second.
const NEW_PER_SECOND: u32 = 200;
/// Datagrams a second of each stream.
const DATAGRAMS_PER_SECOND: u32 = 200;
/// How long a machine is without its agent: longer than what makes it not fresh.
const AGENT_AWAY: Duration = Duration::from_millis(1_500);

impl Run {
    /// Takes the agent of every machine away and brings it back, under load.
    pub(super) async fn agents(&mut self, scenario: Scenario) -> anyhow::Result<()> {
        let before = self.ids().await?;
        let stop = CancellationToken::new();
        let ways = self.ways(Mix::OnlyTcp);
        let spawn = self.client.handle();
        let new = spawn.spawn(load::steady(ways, NEW_PER_SECOND, stop.clone()));
        let streams: Vec<_> = self
            .ways(Mix::OnlyUdp)
            .take(4)
            .map(|way| spawn.spawn(load::stream(way, DATAGRAMS_PER_SECOND, stop.clone())))
            .collect();
        let transfers: Vec<_> = self
            .ways(Mix::OnlyTcp)
            .take(4)
            .map(|way| spawn.spawn(load::transfers(way, stop.clone())))
            .collect();
        for machine in self.cluster.machines() {
            tokio::time::sleep(Duration::from_millis(CALM_MS)).await;
            self.replace_agent(scenario, &machine).await?;
        }
        tokio::time::sleep(Duration::from_millis(CALM_MS)).await;
        stop.cancel();
        self.summary
            .add_tally(new.await.context("the load's task ended early")??);
        for stream in streams {
            self.summary
                .add_stream(stream.await.context("a stream's task ended early")??);
        }
        for transfer in transfers {
            match transfer.await.context("a transfer's task ended early")? {
                Ok(bytes) => self.summary.bytes += bytes,
                Err(error) => {
                    self.summary.broken += 1;
                    self.summary.sentence(format!("transfer: {error:#}"));
                }
            }
        }
        let after = self.ids().await?;
        let changed = before
            .iter()
            .filter(|(backend, id)| after.get(*backend) != Some(id));
        self.summary.ids_changed = changed.count() as u64;
        Ok(())
    }

    async fn replace_agent(&mut self, scenario: Scenario, machine: &str) -> anyhow::Result<()> {
        let (signal, says) = match scenario {
            Scenario::AgentKill => (Signal::SIGKILL, "killed"),
            _ => (Signal::SIGTERM, "asked to end"),
        };
        self.voice.say(&format!("the agent of {machine} is {says}"));
        self.cluster.end_agent(machine, signal).await?;
        tokio::time::sleep(AGENT_AWAY).await;
        if scenario == Scenario::AgentUpgrade {
            let build: PathBuf = self.cluster.other_build()?;
            self.voice
                .say(&format!("another build starts on {machine}"));
            self.cluster.start_agent_of(machine, &build)?;
        } else {
            self.cluster.start_agent(machine)?;
        }
        self.cluster.settled().await
    }

    /// Backend ids of every machine, by pod address and port.
    async fn ids(&self) -> anyhow::Result<BTreeMap<(String, SocketAddr, u32), u32>> {
        let mut ids = BTreeMap::new();
        for machine in self.cluster.machines() {
            let backends: admin::Backends = self.cluster.ask(&machine, "/v1/backends").await?;
            for backend in backends.backends {
                let address = SocketAddr::new(backend.address, backend.port);
                ids.insert((machine.clone(), address, backend.identity), backend.id);
            }
        }
        Ok(ids)
    }
}
