//! `lbctl drain` and `lbctl undrain`: make a node safe to reboot, and put it to use again. They write and read a `NodeDrain`; what
//! is done is the manager's business.
//!
//! ```text
//! mod (arguments, waiting) → place (a cluster, or a directory of manifests)      said (what people and machines read)
//! ```

pub(crate) mod place;
pub(crate) mod said;

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use jiff::SignedDuration;
use lb_controller::api::node_drain::{NodeDrain, NodeDrainSpec, NodeDrainStatus, Phase, Trigger};

use self::place::Place;
use self::said::{Progress, Summary};
use crate::Outcome;
use crate::cluster::Cluster;
use crate::output::Output;

/// How often the status is read while it is waited for.
const POLL: Duration = Duration::from_millis(250);
/// How long a manager may take to notice that something was asked of it.
const MANAGER_WAIT: Duration = Duration::from_secs(30);

/// Where drains are.
#[derive(Debug, clap::Args)]
pub(crate) struct Where {
    /// The node.
    #[arg(value_name = "NODE")]
    node: String,
    /// A directory of manifests that manager and agents run on, instead of a cluster.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["kubeconfig", "context"])]
    manifests: Option<std::path::PathBuf>,
    /// End when it is done: safe to reboot, or in use again.
    #[arg(long)]
    wait: bool,
}

/// Arguments of `lbctl drain`.
#[derive(Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own")]
pub(crate) struct Drain {
    #[command(flatten)]
    at: Where,
    /// Say what would be in the way and what would happen, and do nothing.
    #[arg(long, conflicts_with = "wait")]
    dry_run: bool,
    /// Give up after so long, and put the node to use again: 90s, 10m, 2h.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    timeout: Option<u32>,
    /// How long routers take to send packets elsewhere: 5s if left out.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    convergence: Option<u32>,
    /// Only what enters at the node goes elsewhere; its pods keep serving. Never safe to reboot.
    #[arg(long)]
    balancer_only: bool,
    /// Go on although something is in the way. Connections of those that are not waited for may break.
    #[arg(long)]
    force: bool,
}

/// Arguments of `lbctl undrain`.
#[derive(Debug, clap::Args)]
pub(crate) struct Undrain {
    #[command(flatten)]
    at: Where,
}

/// Seconds, as people write durations.
fn duration(text: &str) -> Result<u32, String> {
    let wrong = || format!("{text:?} is no duration; write 90s, 10m or 2h");
    let duration: SignedDuration = text.parse().map_err(|_| wrong())?;
    u32::try_from(duration.as_secs()).map_err(|_| wrong())
}

impl Drain {
    fn spec(&self) -> NodeDrainSpec {
        NodeDrainSpec {
            balancer_only: self.balancer_only,
            force: self.force,
            dry_run: self.dry_run,
            timeout_seconds: self.timeout,
            convergence_seconds: self.convergence,
            requested_by: Some(somebody()),
            trigger: Trigger::Command,
        }
    }
}

/// Who runs this, for the record: not a proof.
fn somebody() -> String {
    let user = std::env::var("SUDO_USER").or_else(|_| std::env::var("USER"));
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let user = user.unwrap_or_else(|_| nix::unistd::getuid().to_string());
    format!("{user}@{}", host.trim())
}

/// Drains a node.
pub(crate) fn drain(args: &Drain, cluster: &Cluster, output: Output) -> anyhow::Result<Outcome> {
    let place = Place::open(args.at.manifests.as_deref(), cluster)?;
    let (node, spec) = (&args.at.node, args.spec());
    let nodes = place.nodes()?;
    if !nodes.contains(node) {
        let nodes: Vec<_> = nodes.into_iter().collect();
        bail!(
            "there is no node {node:?} with an agent; there are {}",
            nodes.join(", ")
        );
    }
    let started = Instant::now();
    let drain = ask(&place, node, &spec)?;
    let mut progress = Progress::new();
    let until = if args.dry_run || !args.at.wait {
        |_: &NodeDrainStatus| true
    } else {
        |status: &NodeDrainStatus| status.phase.is_final()
    };
    let status = wait(&place, &drain, &mut progress, &spec, until);
    if args.dry_run {
        place.delete(node)?;
    }
    let status = status?;
    let summary = Summary::of(node, &spec, &status, started.elapsed());
    output.emit(&summary, |summary, paint| said::text(summary, paint))?;
    Ok(outcome(&spec, &status))
}

/// Well, as far as it was asked to be waited for.
fn outcome(spec: &NodeDrainSpec, status: &NodeDrainStatus) -> Outcome {
    let blocks = status.findings.iter().any(|finding| finding.blocks);
    if status.phase == Phase::Failed || spec.dry_run && blocks {
        Outcome::Unwell
    } else {
        Outcome::Well
    }
}

/// Makes the object, or finds that of the same wish. One that was given up is replaced.
fn ask(place: &Place, node: &str, spec: &NodeDrainSpec) -> anyhow::Result<NodeDrain> {
    if let Some(there) = place.get(node)? {
        let status = there.status.clone().unwrap_or_default();
        let is_same = NodeDrainSpec {
            requested_by: there.spec.requested_by.clone(),
            ..spec.clone()
        } == there.spec;
        if status.phase == Phase::Failed {
            place.delete(node)?;
        } else if is_same {
            return Ok(there);
        } else {
            bail!(
                "{node} is being drained in another way ({:?}, asked for by {}); `lbctl undrain {node}` first",
                status.phase,
                there.spec.requested_by.as_deref().unwrap_or("somebody")
            );
        }
    }
    place.create(node, spec)
}

/// Reads the status until it is as wanted.
fn wait(
    place: &Place,
    drain: &NodeDrain,
    progress: &mut Progress,
    spec: &NodeDrainSpec,
    until: impl Fn(&NodeDrainStatus) -> bool,
) -> anyhow::Result<NodeDrainStatus> {
    let node = drain.metadata.name.as_deref().unwrap_or_default();
    let started = Instant::now();
    // The manager gives up by itself; should it be gone, so do we.
    let limit = spec
        .timeout_seconds
        .map(|seconds| Duration::from_secs(seconds.into()) + MANAGER_WAIT);
    loop {
        let there = place.get(node)?;
        let Some(there) = there.filter(|there| there.metadata.uid == drain.metadata.uid) else {
            bail!("somebody else has put {node} to use again meanwhile");
        };
        let status = there.status.unwrap_or_default();
        let is_known = status.since.is_some();
        if is_known {
            progress.show(&status);
            if until(&status) {
                progress.end();
                return Ok(status);
            }
        }
        let waited = started.elapsed();
        if !is_known && waited >= MANAGER_WAIT || limit.is_some_and(|limit| waited >= limit) {
            progress.end();
            bail!(
                "the manager does not answer; see that one runs. The drain of {node} goes on when it does; `lbctl undrain {node}` \
                 takes it back"
            );
        }
        std::thread::sleep(POLL);
    }
}

/// Puts a node to use again.
pub(crate) fn undrain(
    args: &Undrain,
    cluster: &Cluster,
    output: Output,
) -> anyhow::Result<Outcome> {
    let place = Place::open(args.at.manifests.as_deref(), cluster)?;
    let node = &args.at.node;
    let Some(there) = place.get(node)? else {
        bail!("{node} is not being drained");
    };
    match there.spec.trigger {
        Trigger::Command => {}
        Trigger::ExcludeLabel => bail!(
            "{node} would be drained again: remove its label {}",
            said::LABEL
        ),
        Trigger::AutoscalerTaint => bail!(
            "{node} would be drained again: remove its taint {}",
            said::TAINT
        ),
        Trigger::Shutdown => bail!("{node} shuts down; it is put to use again when it is ready"),
    }
    let started = Instant::now();
    place.delete(node)?;
    while args.at.wait
        && place
            .is_out(node)
            .context("look whether it is in use again")?
    {
        if started.elapsed() >= MANAGER_WAIT {
            bail!("the manager does not answer; {node} is put to use again when one runs");
        }
        std::thread::sleep(POLL);
    }
    let summary = said::Undrained {
        node: node.clone(),
        duration_ms: started.elapsed().as_millis() as u64,
    };
    output.emit(&summary, |_, _| format!("{node} is put to use again"))?;
    Ok(Outcome::Well)
}

#[cfg(test)]
mod tests;
