//! Carries out the deeds of a meeting while flows go on, and sums up what became of the flows.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rand::Rng;
use tokio::sync::mpsc;

use super::breaks::{self, Break, Journal};
use super::event::{self, Deed, Moment};
use super::flows::{Ended, Flows};
use super::meeting::Meeting;
use crate::lab::cluster::Cluster;
use crate::lab::network::{Passes, equally, some_of};
use crate::lab::run::Run;
use crate::lab::sessions::End;

/// Balancers that join during one meeting.
const JOINS_MAX: usize = 4;

/// What was seen.
#[derive(Clone, Debug, Default)]
pub(super) struct Played {
    /// Flows that had to outlive the events.
    pub(super) flows: u64,
    /// Of them, those whose pods died.
    pub(super) died: u64,
    pub(super) broken: u64,
    pub(super) breaks: Vec<Break>,
    pub(super) longest_wait_ms: u64,
    /// Until nothing was remembered that no flow needs, from the end of the last one.
    pub(super) floor_ms: u64,
    /// What is left, and where, though every flow has ended.
    pub(super) left: Vec<String>,
}

impl Played {
    /// A promise does not hold.
    pub(super) fn has_failed(&self) -> bool {
        self.broken > 0 || !self.left.is_empty()
    }
}

/// What a run has to remember.
struct Stage {
    flows: Flows,
    journal: Journal,
    /// Balancers that the router sends packets to.
    members: Vec<String>,
    /// Names of balancers that have joined and are ready.
    ready: mpsc::Receiver<String>,
    tell_ready: mpsc::Sender<String>,
}

impl Run {
    /// Plays events that begin at the same instant.
    pub(super) async fn play_meeting(
        mut self,
        meeting: Meeting,
    ) -> anyhow::Result<(Cluster, Played)> {
        let moments = event::timeline(meeting.events(), &mut self.random);
        let flows = Flows::open(&self, self.random.clone().random()).await?;
        let (tell_ready, ready) = mpsc::channel(JOINS_MAX);
        let start = Instant::now();
        let mut stage = Stage {
            flows,
            journal: Journal::new(start),
            members: self.cluster.balancers(),
            ready,
            tell_ready,
        };
        for Moment { at_ms, deed } in moments {
            self.wait(start + Duration::from_millis(at_ms), &mut stage)
                .await?;
            self.carry_out(deed, &mut stage).await?;
        }
        self.cluster.settled().await?;
        // Who became ready last gets its share, and the last questions.
        while let Ok(name) = stage.ready.try_recv() {
            self.add_member(name, &mut stage).await?;
        }
        let Stage { flows, journal, .. } = stage;
        let mut played = self.sum_up(&flows.close().await?, &journal);
        if self.cluster.relays() {
            let floor = self.cluster.floor().await?;
            self.voice.say(&floor.to_string());
            played.floor_ms = floor.took.as_millis() as u64;
            played.left = floor.leaks();
        }
        Ok((self.cluster, played))
    }

    /// Waits for the next moment; meanwhile balancers that are ready get packets.
    async fn wait(&mut self, until: Instant, stage: &mut Stage) -> anyhow::Result<()> {
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(until.into()) => return Ok(()),
                // We hold a sender, so there is always a name to wait for.
                Some(name) = stage.ready.recv() => self.add_member(name, stage).await?,
            }
        }
    }

    async fn add_member(&mut self, name: String, stage: &mut Stage) -> anyhow::Result<()> {
        self.note(stage, format!("the router adds {name}"));
        stage.members.push(name);
        let all = equally(&stage.members);
        self.cluster.network.move_ecmp(&all).await
    }

    fn note(&self, stage: &mut Stage, what: String) {
        self.voice.say(&what);
        stage.journal.note(Instant::now(), what);
    }

    async fn carry_out(&mut self, deed: Deed, stage: &mut Stage) -> anyhow::Result<()> {
        match deed {
            Deed::Change(change) => {
                // Noted before it is visible, so that nothing seems to have happened earlier.
                let at = Instant::now();
                let what = self.change(change)?;
                stage.journal.note(at, what);
            }
            Deed::EndAgents => {
                let nodes = self.nodes_with_agents();
                let what = format!("the agents of {} are asked to end", nodes.join(", "));
                self.note(stage, what);
                for node in nodes {
                    self.cluster.signal_agent(&node, Signal::SIGTERM)?;
                }
            }
            Deed::StartAgents => {
                let nodes = self.nodes_with_agents();
                self.note(stage, format!("agents start on {}", nodes.join(", ")));
                for node in nodes {
                    self.cluster.agent_ended(&node).await?;
                    self.cluster.start_agent(&node)?;
                }
            }
            Deed::LosePower(machine) => self.lose_power(machine, stage).await?,
            Deed::Withdraw(balancer) => {
                self.note(stage, format!("the router withdraws {balancer}"));
                stage.members.retain(|member| member != balancer);
                self.move_ecmp_among(stage).await?;
            }
            Deed::Join(balancer) => {
                self.note(stage, format!("{balancer} starts"));
                let ready = stage.tell_ready.clone();
                self.cluster.join(balancer, ready)?;
            }
            Deed::MoveEcmp => self.move_ecmp_among(stage).await?,
            Deed::Mute(node) => {
                self.note(stage, format!("gossip of {node} gets lost"));
                let (machine, _) = self.cluster.machine(node)?;
                self.cluster.network.gossip(machine, Passes::No).await?;
            }
            Deed::Unmute(node) => {
                self.note(stage, format!("gossip of {node} passes again"));
                let (machine, _) = self.cluster.machine(node)?;
                self.cluster.network.gossip(machine, Passes::Yes).await?;
            }
            Deed::Blind(machine) => {
                self.note(stage, format!("the agent of {machine} sees no changes"));
                self.cluster.blind(machine)?;
            }
            Deed::See(machine) => {
                self.note(stage, format!("the agent of {machine} can see changes"));
                self.cluster.see(machine)?;
            }
        }
        Ok(())
    }

    /// Nodes with pods whose agents run.
    fn nodes_with_agents(&self) -> Vec<String> {
        let machines = self.cluster.network.machines.iter();
        let nodes = machines.filter(|(machine, _)| machine.pods().is_some());
        let names = nodes.map(|(machine, _)| machine.name.clone());
        names
            .filter(|name| self.cluster.agents.contains_key(name))
            .collect()
    }

    async fn lose_power(&mut self, machine: &str, stage: &mut Stage) -> anyhow::Result<()> {
        let pods = self.cluster.pods.iter().filter(|pod| pod.node == machine);
        let pods: BTreeSet<String> = pods.map(|pod| pod.uid.clone()).collect();
        self.note(stage, format!("{machine} loses power"));
        if !pods.is_empty() {
            stage.flows.forsake(&pods);
            self.cluster.lose_power(machine).await?;
            // Until now a connection could open to one of its pods.
            stage.journal.crash = Some(Instant::now());
            return Ok(());
        }
        self.cluster.lose_power(machine).await
    }

    /// Other paths among the balancers that the router knows.
    async fn move_ecmp_among(&mut self, stage: &mut Stage) -> anyhow::Result<()> {
        let paths = some_of(&stage.members, &mut self.random);
        let shown: Vec<String> = paths.iter().map(|(n, w)| format!("{n}×{w}")).collect();
        let what = format!("the router's paths are {}", shown.join(", "));
        // Too many to be said.
        stage.journal.note(Instant::now(), what);
        self.cluster.network.move_ecmp(&paths).await
    }

    fn sum_up(&self, ended: &Ended, journal: &Journal) -> Played {
        let name_of = |uid: &str| self.cluster.name_of(uid);
        let (broken, breaks) = breaks::of(ended, journal, name_of);
        let long = || ended.long.iter().map(|(_, report)| report);
        let alive = long().filter(|report| report.end == End::Alive);
        let longest = alive.map(|report| report.longest_wait).max();
        Played {
            flows: ended.long.len() as u64 + ended.short.begun,
            died: long().filter(|report| report.end == End::PodDied).count() as u64,
            broken,
            breaks,
            longest_wait_ms: longest.map_or(0, |wait| wait.as_millis() as u64),
            floor_ms: 0,
            left: Vec::new(),
        }
    }
}
