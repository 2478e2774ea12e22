//! What is asked for, and what becomes of it when something was asked for before. Pure.

use jiff::SignedDuration;
use lb_controller::api::node_drain::{
    CONVERGENCE_SECONDS_MAX, NodeDrain, NodeDrainSpec, NodeDrainStatus, Phase, TIMEOUT_SECONDS_MAX,
    Trigger, condition,
};

use crate::Outcome;

/// Label and taint that ask for drains.
const LABEL: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
const TAINT: &str = "ToBeDeletedByClusterAutoscaler";

/// What to do about a drain that is asked for.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Step {
    /// There is none: make it.
    Create,
    /// What is there does nothing any more: take that away, and make it.
    Replace,
    /// It is there already.
    Attach,
    /// Another one is there: what, and what to do about it.
    Refuse(String),
}

/// What to do about a wish, with what is there.
pub(super) fn step(node: &str, wish: &NodeDrainSpec, there: Option<&NodeDrain>) -> Step {
    let Some(there) = there else {
        return Step::Create;
    };
    let phase = there.status.as_ref().map(|status| status.phase);
    // One that was given up, or what a dry run has left.
    if phase == Some(Phase::Failed) || there.spec.dry_run {
        return Step::Replace;
    }
    let phase = phase.unwrap_or_default();
    let by = there.spec.requested_by.as_deref().unwrap_or("somebody");
    let remedy = remedy(node, there.spec.trigger);
    if wish.dry_run {
        return Step::Refuse(format!(
            "{node} is being drained already ({phase:?}, asked for by {by}), so there is nothing to try; first {remedy}"
        ));
    }
    // Who asked, and why, is no difference in what is done.
    let is_same = NodeDrainSpec {
        requested_by: wish.requested_by.clone(),
        trigger: wish.trigger,
        ..there.spec.clone()
    } == *wish;
    if is_same {
        return Step::Attach;
    }
    Step::Refuse(format!(
        "{node} is being drained with other options ({}; {phase:?}, asked for by {by}); wait for it with those, or first {remedy}",
        options(&there.spec)
    ))
}

/// Why a drain can not be taken back here, and what to do instead.
pub(super) fn kept(node: &str, trigger: Trigger) -> Option<String> {
    let why = match trigger {
        Trigger::Command => return None,
        Trigger::ExcludeLabel => "has the label that asks for it",
        Trigger::AutoscalerTaint => "has the taint that asks for it",
        Trigger::Shutdown => "shuts down",
    };
    let remedy = remedy(node, trigger);
    Some(format!(
        "{node} would be drained again, since it {why}: {remedy}"
    ))
}

/// How a drain is taken back.
fn remedy(node: &str, trigger: Trigger) -> String {
    match trigger {
        Trigger::Command => format!("`lbctl undrain {node}`"),
        Trigger::ExcludeLabel => format!("`kubectl label node {node} {LABEL}-`"),
        Trigger::AutoscalerTaint => format!("`kubectl taint node {node} {TAINT}-`"),
        Trigger::Shutdown => "let it start again".to_owned(),
    }
}

/// Options as they are typed.
fn options(spec: &NodeDrainSpec) -> String {
    let seconds = |name: &str, seconds: Option<u32>| {
        seconds.map_or(String::new(), |seconds| format!("--{name} {seconds}s"))
    };
    let switch = |name: &str, is_on: bool| if is_on { name } else { "" }.to_owned();
    let all = [
        switch("--balancer-only", spec.balancer_only),
        switch("--force", spec.force),
        seconds("timeout", spec.timeout_seconds),
        seconds("convergence", spec.convergence_seconds),
    ];
    let all: Vec<String> = all.into_iter().filter(|one| !one.is_empty()).collect();
    if all.is_empty() {
        "none".to_owned()
    } else {
        all.join(" ")
    }
}

/// How far a command waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Until {
    /// The manager has looked at it.
    Answered,
    /// It is done, or was given up.
    Done,
}

impl Until {
    /// Whether it has come so far.
    pub(super) fn is_reached(self, status: &NodeDrainStatus) -> bool {
        match self {
            Self::Answered => status.since.is_some(),
            Self::Done => status.phase.is_final(),
        }
    }
}

/// Whether a condition is true.
pub(super) fn holds(status: &NodeDrainStatus, kind: &str) -> bool {
    let mut conditions = status.conditions.iter();
    conditions.any(|one| one.type_ == kind && one.status == "True")
}

/// Well, as far as it was waited for.
pub(super) fn outcome(spec: &NodeDrainSpec, status: &NodeDrainStatus, until: Until) -> Outcome {
    let goal = if spec.balancer_only {
        condition::BALANCER_DRAINED
    } else {
        condition::SAFE_TO_REBOOT
    };
    let is_well = match until {
        _ if status.phase == Phase::Failed => false,
        _ if spec.dry_run => !status.findings.iter().any(|finding| finding.blocks),
        Until::Answered => true,
        Until::Done => holds(status, goal),
    };
    if is_well {
        Outcome::Well
    } else {
        Outcome::Unwell
    }
}

/// Reads after how long a drain is given up.
pub(super) fn timeout(text: &str) -> Result<u32, String> {
    seconds(text, 1, TIMEOUT_SECONDS_MAX, "a week")
}

/// Reads how long routers are given.
pub(super) fn convergence(text: &str) -> Result<u32, String> {
    seconds(text, 0, CONVERGENCE_SECONDS_MAX, "an hour")
}

/// Whole seconds, as people write durations.
fn seconds(text: &str, least: u32, most: u32, most_said: &str) -> Result<u32, String> {
    let duration: SignedDuration = text
        .parse()
        .map_err(|_| "write a duration as 90s, 10m or 2h".to_owned())?;
    if duration.subsec_nanos() != 0 {
        return Err("write whole seconds".to_owned());
    }
    u32::try_from(duration.as_secs())
        .ok()
        .filter(|seconds| (least..=most).contains(seconds))
        .ok_or_else(|| format!("it must be from {least}s to {most_said}"))
}

/// Reads the name of a node, which becomes a part of the name of a file.
pub(super) fn node(text: &str) -> Result<String, String> {
    let is_inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-' || c == b'.';
    let is_outer = |c: Option<&u8>| c.is_some_and(|c| is_inner(*c) && !b"-.".contains(c));
    let bytes = text.as_bytes();
    if bytes.iter().all(|c| is_inner(*c)) && is_outer(bytes.first()) && is_outer(bytes.last()) {
        Ok(text.to_owned())
    } else {
        Err("names of nodes are lower-case letters, digits, '-' and '.'".to_owned())
    }
}
