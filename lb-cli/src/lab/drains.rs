//! Machines are drained and put to use again while pods roll, new connections come, and long ones go on. The router does what
//! announcements would have it do: it leaves a machine as soon as that is to be the last choice.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use lb_controller::api::node_drain::{NodeDrainSpec, NodeDrainStatus, Phase, condition};
use nix::sys::signal::Signal;
use rand::Rng;
use serde::Serialize;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::load::{self, Tally};
use super::network::{equally, some_of};
use super::run::Run;
use super::scenario::{self, CALM_MS, Step, TAIL_MS};
use super::ways::Mix;
use crate::drain::place::Place;
use crate::drain::said::Progress;

/// New connections a second.
const NEW_PER_SECOND: u32 = 300;
/// What the lab's router takes to send packets elsewhere is milliseconds; a second is the shortest that can be said.
const CONVERGENCE_SECONDS: u32 = 1;
/// No drain of a machine without pods takes longer: three seconds for the router, and the rest for a slow machine.
const DRAIN_LIMIT: Duration = Duration::from_mins(1);
/// Between two looks at the status.
const POLL: Duration = Duration::from_millis(25);
/// Between two moves of the router's ECMP.
const ECMP_PAUSE_MS: std::ops::Range<u64> = 150..1_200;
/// Without a machine that is safe to reboot: long enough for others to suspect it.
const POWERLESS: Duration = Duration::from_secs(4);
/// How long somebody is away in the middle of a drain.
const AWAY: Duration = Duration::from_millis(1_500);
/// Pods that are replaced meanwhile: each once, and their successors.
const REPLACED: usize = 18;

/// The last drain of a run. Fields are added, never renamed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Drained {
    /// Which machine.
    pub(crate) node: String,
    /// Long connections that were open meanwhile.
    pub(crate) flows: u64,
    /// Of these and the new ones, broken.
    pub(crate) broken: u64,
    /// New connections that failed.
    pub(crate) refused: u64,
    /// How long it took.
    pub(crate) duration_ms: u64,
    /// Whether it ended in `SafeToReboot`.
    pub(crate) safe_to_reboot: bool,
    /// Connections of its pods that were handed off.
    pub(crate) handed_off: u64,
    /// Machines that were drained one after the other in this run.
    pub(crate) drains: u64,
}

/// What goes wrong in the middle of a drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// The manager is killed, and started again.
    Manager,
    /// The agent of the machine is killed, and started again.
    Agent,
    /// The agent of another one stands still for a while.
    Peer,
}

/// Phases that last long enough to be met.
const PHASES: [Phase; 5] = [
    Phase::Exclude,
    Phase::HandOff,
    Phase::Deprefer,
    Phase::Withdraw,
    Phase::Quiesce,
];

/// What happens beside drains.
struct Beside {
    started: Instant,
    steps: std::vec::IntoIter<Step>,
    next: Option<Step>,
    /// Machines that the router sends packets to.
    members: Vec<String>,
    move_at: Instant,
    /// What is to go wrong, and from which phase on.
    fault: Option<(Phase, Fault)>,
}

impl Run {
    /// Drains every balancer, one after the other, and puts it to use again, while every pod is replaced; then one once more,
    /// and takes its power away.
    pub(super) async fn drains(&mut self) -> anyhow::Result<()> {
        let stop = CancellationToken::new();
        let new = self.new_connections(&stop);
        let mut beside = self.around(scenario::replacing(0..REPLACED));
        let machines = beside.members.clone();
        for machine in &machines {
            let drained = self.drain(machine, &mut beside).await?;
            self.summary.drain = Some(drained);
            self.undrain(machine, &mut beside).await?;
        }
        while beside.next.is_some() {
            self.go_on(&mut beside).await?;
            tokio::time::sleep(POLL).await;
        }
        self.power_off(&machines[0], &mut beside).await?;
        if let Some(drain) = &mut self.summary.drain {
            drain.drains = machines.len() as u64 + 1;
        }
        tokio::time::sleep(Duration::from_millis(TAIL_MS)).await;
        stop.cancel();
        self.count_new(new).await?;
        Ok(())
    }

    /// Drains a balancer again and again, and in each phase something goes wrong: each drain is done all the same.
    pub(super) async fn faulty_drains(&mut self) -> anyhow::Result<()> {
        let stop = CancellationToken::new();
        let new = self.new_connections(&stop);
        let mut beside = self.around(Vec::new());
        let machine = beside.members[0].clone();
        let mut drains = 0;
        for fault in [Fault::Manager, Fault::Agent, Fault::Peer] {
            for phase in PHASES {
                beside.fault = Some((phase, fault));
                let drained = self.drain(&machine, &mut beside).await?;
                if !drained.safe_to_reboot || beside.fault.is_some() {
                    bail!("{fault:?} in {phase:?}: the drain was not done as it should");
                }
                drains += 1;
                self.summary.drain = Some(Drained { drains, ..drained });
                self.undrain(&machine, &mut beside).await?;
                self.cluster.settled().await?;
            }
        }
        stop.cancel();
        self.count_new(new).await?;
        Ok(())
    }

    /// Does what is to go wrong, if the drain has come so far.
    async fn go_wrong(
        &mut self,
        machine: &str,
        phase: Phase,
        beside: &mut Beside,
    ) -> anyhow::Result<()> {
        let Some((from, fault)) = beside.fault.filter(|(from, _)| phase.has_reached(*from)) else {
            return Ok(());
        };
        beside.fault = None;
        match fault {
            Fault::Manager => {
                self.voice.say(&format!("{from:?}: the manager is killed"));
                self.cluster.kill_manager()?;
                tokio::time::sleep(AWAY).await;
                self.cluster.start_manager()
            }
            Fault::Agent => {
                self.voice
                    .say(&format!("{from:?}: the agent of {machine} is killed"));
                self.cluster.end_agent(machine, Signal::SIGKILL).await?;
                tokio::time::sleep(AWAY).await;
                self.cluster.start_agent(machine)
            }
            Fault::Peer => {
                let machines = self.cluster.machines();
                let peer = machines.iter().rfind(|other| *other != machine);
                let peer = peer.context("there is one machine only")?;
                self.voice
                    .say(&format!("{from:?}: the agent of {peer} stands still"));
                self.cluster.signal_agent(peer, Signal::SIGSTOP)?;
                tokio::time::sleep(AWAY).await;
                self.cluster.signal_agent(peer, Signal::SIGCONT)
            }
        }
    }

    /// Drains a machine under new connections and takes its power away.
    pub(super) async fn live_drain(&mut self) -> anyhow::Result<()> {
        let stop = CancellationToken::new();
        let new = self.new_connections(&stop);
        let mut beside = self.around(Vec::new());
        let machine = beside.members[0].clone();
        tokio::time::sleep(Duration::from_millis(CALM_MS)).await;
        self.power_off(&machine, &mut beside).await?;
        stop.cancel();
        self.count_new(new).await?;
        Ok(())
    }

    /// Opens connections until told to stop.
    fn new_connections(&self, stop: &CancellationToken) -> JoinHandle<anyhow::Result<Tally>> {
        let ways = self.ways(Mix::OneInFiveUdp);
        let load = load::steady(ways, NEW_PER_SECOND, stop.clone());
        self.client.handle().spawn(load)
    }

    async fn count_new(&mut self, new: JoinHandle<anyhow::Result<Tally>>) -> anyhow::Result<()> {
        let tally = new.await.context("the load's task ended early")??;
        self.summary.add_tally(tally);
        Ok(())
    }

    fn around(&self, steps: Vec<Step>) -> Beside {
        let mut steps = steps.into_iter();
        let started = Instant::now();
        Beside {
            started,
            next: steps.next(),
            steps,
            members: self.cluster.balancers(),
            move_at: started,
            fault: None,
        }
    }

    /// Drains a machine; when it is safe to reboot its power is cut.
    async fn power_off(&mut self, machine: &str, beside: &mut Beside) -> anyhow::Result<()> {
        let drained = self.drain(machine, beside).await?;
        if !drained.safe_to_reboot {
            bail!("the drain of {machine} ended without being safe to reboot");
        }
        self.summary.drain = Some(drained);
        self.voice.say(&format!("{machine} loses power, as it may"));
        self.cluster.lose_power(machine).await?;
        let until = Instant::now() + POWERLESS;
        while Instant::now() < until {
            self.go_on(beside).await?;
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// Drains a machine as far as it comes while its pods live on.
    async fn drain(&mut self, machine: &str, beside: &mut Beside) -> anyhow::Result<Drained> {
        self.voice.say(&format!("$ lbctl drain {machine} --wait"));
        let place = Place::Directory(self.cluster.manifests().to_owned());
        let spec = NodeDrainSpec {
            convergence_seconds: Some(CONVERGENCE_SECONDS),
            requested_by: Some("lbctl lab".to_owned()),
            ..NodeDrainSpec::default()
        };
        place.create(machine, &spec).await?;
        let started = Instant::now();
        let mut progress = Progress::new();
        let status = loop {
            self.go_on(beside).await?;
            let status = place.get(machine).await?.and_then(|drain| drain.status);
            let status = status.unwrap_or_default();
            progress.show(&status);
            self.route(machine, status.phase, beside).await?;
            self.go_wrong(machine, status.phase, beside).await?;
            if is_over(&status) {
                break status;
            }
            if started.elapsed() > DRAIN_LIMIT {
                let waits = status.waits_for.join("; ");
                bail!(
                    "the drain of {machine} does not end: {:?}, waits for {waits}",
                    status.phase
                );
            }
            tokio::time::sleep(POLL).await;
        };
        progress.end();
        let took = started.elapsed();
        let says = match status.phase {
            Phase::Drained => "is safe to reboot",
            _ => "gets nothing any more, and has pods with connections",
        };
        self.voice
            .say(&format!("{machine} {says}, after {} ms", took.as_millis()));
        let mut conditions = status.conditions.iter();
        Ok(Drained {
            node: machine.to_owned(),
            duration_ms: took.as_millis() as u64,
            safe_to_reboot: conditions
                .any(|one| one.type_ == condition::SAFE_TO_REBOOT && one.status == "True"),
            handed_off: status.connections.handed_off,
            drains: 1,
            ..Drained::default()
        })
    }

    async fn undrain(&mut self, machine: &str, beside: &mut Beside) -> anyhow::Result<()> {
        self.voice.say(&format!("$ lbctl undrain {machine}"));
        let place = Place::Directory(self.cluster.manifests().to_owned());
        if let Some(drain) = place.get(machine).await? {
            place.delete(&drain).await?;
        }
        let started = Instant::now();
        while place.told(machine).await?.is_some() {
            self.go_on(beside).await?;
            if started.elapsed() > DRAIN_LIMIT {
                bail!("{machine} is not put to use again");
            }
            tokio::time::sleep(POLL).await;
        }
        self.route(machine, Phase::Preflight, beside).await
    }

    /// Does what is due: pods change, the router moves flows.
    async fn go_on(&mut self, beside: &mut Beside) -> anyhow::Result<()> {
        let now = Instant::now();
        let is_due = |step: &Step| now >= beside.started + Duration::from_millis(step.at_ms);
        if beside.next.as_ref().is_some_and(is_due)
            && let Some(step) = beside.next.take()
        {
            self.change(step.change)?;
            beside.next = beside.steps.next();
        }
        if now >= beside.move_at && !self.cluster.settings.bird {
            let pause = self.random.random_range(ECMP_PAUSE_MS);
            beside.move_at = now + Duration::from_millis(pause);
            let paths = some_of(&beside.members, &mut self.random);
            self.cluster.network.move_ecmp(&paths).await?;
            self.summary.ecmp_moves += 1;
        }
        Ok(())
    }

    /// Has the router leave a machine, or take it again.
    async fn route(
        &mut self,
        machine: &str,
        phase: Phase,
        beside: &mut Beside,
    ) -> anyhow::Result<()> {
        if self.cluster.settings.bird {
            // The router has been told by the machine itself.
            return Ok(());
        }
        let mut members: BTreeSet<String> = beside.members.iter().cloned().collect();
        let changes = if phase.has_reached(Phase::Deprefer) {
            members.remove(machine)
        } else {
            members.insert(machine.to_owned())
        };
        if changes {
            beside.members = members.into_iter().collect();
            let paths = equally(&beside.members);
            self.cluster.network.move_ecmp(&paths).await?;
            self.summary.ecmp_moves += 1;
        }
        Ok(())
    }
}

/// Whether nothing more comes while the machine's pods live on with their connections.
fn is_over(status: &NodeDrainStatus) -> bool {
    let is_of_pods =
        |waits: &String| waits.contains("connections to end") || waits.contains("tables of");
    match status.phase {
        Phase::Drained | Phase::Failed => true,
        Phase::Quiesce => !status.waits_for.is_empty() && status.waits_for.iter().all(is_of_pods),
        _ => false,
    }
}
