//! The drain of a node: from what was asked, what it has come to and what is known now to what it comes to next. Pure.
//!
//! ```text
//! Preflight ─▶ Exclude     its pods get no new flows, and all that are heard have applied that
//!           ─▶ HandOff     its flows are pinned at every other node, and what others have pinned is there, too
//!           ─▶ Deprefer    routers choose others, for as long as they take to converge
//!           ─▶ Withdraw    it announces nothing
//!           ─▶ Quiesce     nothing arrives for twice as long, its flows have ended, no table names its pods
//!           ─▶ Drained                        at any time ─▶ Failed: the node is put to use again
//! ```
//!
//! There is no state but the status of the object: a manager that takes over goes on where the last one wrote that it was. A
//! phase asks for what those before it have asked for as well, so each may be entered any number of times.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use crate::api::node_drain::{
    Connections, Entry, Finding, NodeDrainSpec, NodeDrainStatus, Phase, Receiver, Trigger,
    condition,
};

/// How long routers take to send packets elsewhere if nothing else is said: a few times what BGP and neighbour tables need in
/// one network.
pub const CONVERGENCE: Duration = Duration::from_secs(5);
/// How many times as long nothing may arrive: a router that converges late is given the same again.
const QUIET_FACTOR: u32 = 2;
/// What arrives from clients at a node, in packets a second, that still counts as nothing: strays and scanners.
pub const QUIET_RATE: u64 = 10;
/// Entries of the log that are kept.
const LOG_MAX: usize = 32;
/// Names in one sentence; the rest is counted.
const NAMED_MAX: usize = 5;

/// What is known of a node and of those around it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Facts {
    /// Other nodes whose drains it has to wait for.
    pub others_first: BTreeSet<String>,
    /// What there is to know before it begins.
    pub findings: Vec<Finding>,
    /// Services that still give its pods new flows although others could serve.
    pub chosen: BTreeSet<String>,
    /// Nodes that are heard and have not applied the newest tables that name its pods.
    pub behind: BTreeSet<String>,
    /// What its agent says; none while it is not heard.
    pub agent: Option<Agent>,
    /// All others that packets may enter at.
    pub receivers: Vec<Receiver>,
    /// Other owners of whose pins some receiver lacks some that were there when the hand-off began.
    pub unsettled: BTreeSet<String>,
    /// Services whose tables name its pods, but those of policy Local, whose packets no other node sends it.
    pub named_in: BTreeSet<String>,
}

/// What the agent of the node says about its drain.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Agent {
    /// The phase whose wishes are carried out there; none if it does not know of the drain.
    pub applied: Option<Phase>,
    /// All its flows are pinned, and how many that were; none: not all are yet.
    pub handed_off: Option<u64>,
    /// Why they can not be.
    pub fault: Option<String>,
    /// Flows of its pods that are open.
    pub open: u64,
    /// For how long no more than [`QUIET_RATE`] has arrived.
    pub quiet_for: Duration,
}

/// What a drain comes to next. The same status if nothing has changed.
pub fn advance(
    spec: &NodeDrainSpec,
    status: &NodeDrainStatus,
    facts: &Facts,
    now: Timestamp,
) -> NodeDrainStatus {
    let mut next = status.clone();
    if next.phase.is_final() {
        return next;
    }
    if next.since.is_none() {
        next.since = Some(now);
        next.started_at = Some(now);
        let by = spec.requested_by.as_deref().unwrap_or("somebody");
        log(&mut next, now, format!("asked for by {by}"));
    }
    note(&mut next, facts);
    let step = Step { spec, facts, now };
    // Phases that have nothing to wait for are passed at once, one after the other.
    while !next.phase.is_final() {
        next.waits_for = step.waits_for(&next);
        if let Some(why) = step.gives_up(&next) {
            next.phase = Phase::Failed;
            next.waits_for.clear();
            next.since = Some(now);
            log(&mut next, now, why);
        } else if next.waits_for.is_empty() || step.passes_over(&next) {
            step.enter(&mut next);
        } else {
            break;
        }
    }
    conditions(spec, &mut next, now);
    next
}

/// Notes what people look at.
fn note(next: &mut NodeDrainStatus, facts: &Facts) {
    next.balancers.clone_from(&facts.receivers);
    if next.phase == Phase::Preflight {
        next.findings.clone_from(&facts.findings);
    }
    if let Some(agent) = &facts.agent {
        next.connections = Connections {
            open: agent.open,
            handed_off: agent.handed_off.unwrap_or(next.connections.handed_off),
        };
    }
}

struct Step<'a> {
    spec: &'a NodeDrainSpec,
    facts: &'a Facts,
    now: Timestamp,
}

impl Step<'_> {
    /// What keeps a drain in its phase, one sentence each.
    fn waits_for(&self, status: &NodeDrainStatus) -> Vec<String> {
        match status.phase {
            Phase::Preflight => self.preflight(),
            Phase::Exclude => self.exclude(),
            Phase::HandOff => self.hand_off(),
            Phase::Deprefer => self.deprefer(status),
            Phase::Withdraw => self.applied(Phase::Withdraw),
            Phase::Quiesce => self.quiesce(),
            Phase::Drained | Phase::Failed => Vec::new(),
        }
    }

    fn preflight(&self) -> Vec<String> {
        let mut waits = Vec::new();
        if self.spec.dry_run {
            waits.push("nothing: it is a dry run".to_owned());
        }
        waits
            .extend(named(&self.facts.others_first).map(|names| {
                format!("{names}: as many nodes are being drained as may be at once")
            }));
        let blocking = self.facts.findings.iter().filter(|finding| finding.blocks);
        waits.extend(blocking.map(|finding| finding.message.clone()));
        waits
    }

    fn exclude(&self) -> Vec<String> {
        if self.spec.balancer_only {
            return Vec::new();
        }
        let chosen = named(&self.facts.chosen)
            .map(|names| format!("other pods to take new connections of {names}"));
        let behind = named(&self.facts.behind)
            .map(|names| format!("{names} to apply the tables in which they do"));
        chosen.into_iter().chain(behind).collect()
    }

    fn hand_off(&self) -> Vec<String> {
        let mut waits = Vec::new();
        if !self.spec.balancer_only {
            match &self.facts.agent {
                None => waits.push(UNHEARD.to_owned()),
                Some(Agent {
                    fault: Some(fault), ..
                }) => {
                    waits.push(format!("room to pin its connections: {fault}"));
                }
                Some(Agent {
                    handed_off: None, ..
                }) => {
                    waits.push("its agent to have pinned all its connections".to_owned());
                }
                Some(_) => {}
            }
        }
        let names = |is_meant: &dyn Fn(&Receiver) -> bool| -> BTreeSet<String> {
            let meant = self.facts.receivers.iter().filter(|one| is_meant(one));
            meant.map(|one| one.node.clone()).collect()
        };
        waits.extend(named(&names(&|one| !one.heard)).map(|names| {
            format!("{names} to be heard again, which may know nothing of its connections")
        }));
        if !self.spec.balancer_only && self.facts.agent.is_some() {
            waits.extend(
                named(&names(&|one| one.heard && one.behind != Some(0)))
                    .map(|names| format!("{names} to acknowledge its connections")),
            );
        }
        waits
            .extend(named(&self.facts.unsettled).map(|names| {
                format!("connections that {names} handed off to be known everywhere")
            }));
        waits
    }

    fn deprefer(&self, status: &NodeDrainStatus) -> Vec<String> {
        let mut waits = self.applied(Phase::Deprefer);
        let convergence = self.convergence();
        let since = status.since.unwrap_or(self.now);
        if self.now.duration_since(since)
            < SignedDuration::try_from(convergence).unwrap_or(SignedDuration::MAX)
        {
            waits.push(format!(
                "routers to choose others: {} s",
                convergence.as_secs()
            ));
        }
        waits
    }

    fn quiesce(&self) -> Vec<String> {
        let mut waits = Vec::new();
        let Some(agent) = &self.facts.agent else {
            return vec![UNHEARD.to_owned()];
        };
        let quiet = self.convergence() * QUIET_FACTOR;
        if agent.quiet_for < quiet {
            waits.push(format!(
                "no packets of clients to arrive for {} s",
                quiet.as_secs()
            ));
        }
        if self.spec.balancer_only {
            return waits;
        }
        if agent.open > 0 {
            waits.push("its connections to end, or their pods".to_owned());
        }
        waits.extend(
            named(&self.facts.named_in)
                .map(|names| format!("tables of {names} to name its pods no more")),
        );
        waits
    }

    fn applied(&self, phase: Phase) -> Vec<String> {
        match &self.facts.agent {
            None => vec![UNHEARD.to_owned()],
            Some(agent)
                if agent
                    .applied
                    .is_some_and(|applied| applied.has_reached(phase)) =>
            {
                Vec::new()
            }
            Some(_) => vec![format!("its agent to carry {phase:?} out")],
        }
    }

    fn convergence(&self) -> Duration {
        let seconds = self.spec.convergence_seconds.map(u64::from);
        seconds.map_or(CONVERGENCE, Duration::from_secs)
    }

    /// Whether it goes on although it waits for something. Time has to pass in any case, and the node itself must be quiet:
    /// whoever forces gives up what others may lose, not what is told about this node.
    fn passes_over(&self, status: &NodeDrainStatus) -> bool {
        let is_patient = match status.phase {
            Phase::Preflight => self.spec.dry_run || !self.facts.others_first.is_empty(),
            Phase::Exclude | Phase::HandOff => false,
            Phase::Deprefer | Phase::Withdraw => {
                self.facts.agent.is_some() || !self.has_converged(status)
            }
            Phase::Quiesce | Phase::Drained | Phase::Failed => true,
        };
        self.spec.force && !is_patient
    }

    fn has_converged(&self, status: &NodeDrainStatus) -> bool {
        let since = status.since.unwrap_or(self.now);
        let passed = Duration::try_from(self.now.duration_since(since)).unwrap_or_default();
        passed >= self.convergence()
    }

    /// Why it ends without being done.
    fn gives_up(&self, status: &NodeDrainStatus) -> Option<String> {
        let is_refused = status.phase == Phase::Preflight
            && self.spec.trigger == Trigger::Command
            && !self.spec.dry_run
            && !self.spec.force
            && self.facts.findings.iter().any(|finding| finding.blocks);
        if is_refused {
            let why = self.preflight().join("; ");
            return Some(format!("refused, and nothing was done: {why}"));
        }
        let timeout = SignedDuration::from_secs(self.spec.timeout_seconds?.into());
        let started = status.started_at?;
        let is_over = !status.waits_for.is_empty() && self.now.duration_since(started) >= timeout;
        is_over.then(|| {
            let why = status.waits_for.join("; ");
            format!(
                "given up after {} s, in {:?}, and put to use again; it waited for {why}",
                timeout.as_secs(),
                status.phase
            )
        })
    }

    /// Leaves a phase for the next one.
    fn enter(&self, next: &mut NodeDrainStatus) {
        let left = next.phase;
        next.phase = match left {
            Phase::Preflight => Phase::Exclude,
            Phase::Exclude => Phase::HandOff,
            Phase::HandOff => Phase::Deprefer,
            Phase::Deprefer => Phase::Withdraw,
            Phase::Withdraw => Phase::Quiesce,
            Phase::Quiesce | Phase::Drained | Phase::Failed => Phase::Drained,
        };
        next.since = Some(self.now);
        if !next.waits_for.is_empty() {
            let over = next.waits_for.join("; ");
            log(
                next,
                self.now,
                format!("{left:?}: forced, without waiting for {over}"),
            );
        }
        if left == Phase::HandOff && !self.spec.balancer_only {
            let to = next.balancers.iter().filter(|one| one.behind == Some(0));
            let to: BTreeSet<String> = to.map(|one| one.node.clone()).collect();
            let to = named(&to).unwrap_or_else(|| "nobody".to_owned());
            let count = next.connections.handed_off;
            log(
                next,
                self.now,
                format!("{count} connections are handed off to {to}"),
            );
        }
        log(next, self.now, format!("{:?}", next.phase));
    }
}

const UNHEARD: &str = "its agent to be heard";

/// Names for a sentence, not too many; none if there are none.
pub fn named(names: &BTreeSet<String>) -> Option<String> {
    let mut shown: Vec<_> = names.iter().take(NAMED_MAX).cloned().collect();
    if let Some(rest @ 1..) = names.len().checked_sub(NAMED_MAX) {
        shown.push(format!("{rest} more"));
    }
    (!shown.is_empty()).then(|| shown.join(", "))
}

fn log(next: &mut NodeDrainStatus, at: Timestamp, message: String) {
    next.log.push(Entry { at, message });
    let over = next.log.len().saturating_sub(LOG_MAX);
    next.log.drain(..over);
}

/// Says what is true; a time moves only when the truth does.
fn conditions(spec: &NodeDrainSpec, next: &mut NodeDrainStatus, now: Timestamp) {
    let is_drained = next.phase == Phase::Drained;
    let mut wanted = vec![(condition::BALANCER_DRAINED, is_drained)];
    if !spec.balancer_only {
        wanted.push((condition::SAFE_TO_REBOOT, is_drained));
    }
    let message = match next.phase {
        Phase::Drained => "nothing enters there any more".to_owned(),
        Phase::Failed => next
            .log
            .last()
            .map(|entry| entry.message.clone())
            .unwrap_or_default(),
        _ => format!("waits for {}", next.waits_for.join("; ")),
    };
    let before = std::mem::take(&mut next.conditions);
    for (kind, holds) in wanted {
        let status = if holds { "True" } else { "False" };
        let last = before
            .iter()
            .find(|one| one.type_ == kind && one.status == status);
        next.conditions.push(Condition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: format!("{:?}", next.phase),
            message: message.clone(),
            last_transition_time: last.map_or(Time(now), |one| one.last_transition_time.clone()),
            observed_generation: None,
        });
    }
}

#[cfg(test)]
mod tests;
