//! `lbctl drain` and `lbctl undrain`: make a node safe to reboot, and put it to use again. They write and read a `NodeDrain`; what
//! is done is the manager's business.
//!
//! ```text
//! mod (arguments, waiting) ─▶ place (a cluster, or a directory of manifests)
//!                          ─▶ wish (what is asked for), heard (whether a manager is there), said (what people and machines read)
//! ```

mod heard;
pub(crate) mod place;
pub(crate) mod said;
mod wish;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use kube::ResourceExt;
use lb_controller::api::node_drain::{NodeDrain, NodeDrainSpec, Trigger};

use self::heard::{Heard, SILENCE_MAX};
use self::place::Place;
use self::said::{Progress, Summary, Undrained};
use self::wish::{Step, Until};
use crate::Outcome;
use crate::agent;
use crate::cluster::Cluster;
use crate::interrupt::{Interrupted, unless_interrupted};
use crate::output::Output;

/// How often the status is read while it is waited for.
const POLL: Duration = Duration::from_millis(500);

/// What `--help` says of both commands.
pub(crate) const EXIT_CODES: &str = "Exit codes:
  0  done. With --wait: safe to reboot, or with --balancer-only nothing enters there, or in use
     again; without it: the manager has begun
  1  refused, or given up after --timeout, and in use again; or a dry run found something in the way
  2  the command line is wrong
  3  could not be done, or the manager does not answer: the error says what to do
  4  interrupted while it waited; what was asked for goes on";

/// Where drains are.
#[derive(Debug, clap::Args)]
pub(crate) struct Where {
    /// The node.
    #[arg(id = "drained", value_name = "NODE", value_parser = wish::node)]
    node: String,
    /// A directory of manifests that manager and agents run on, instead of a cluster.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["kubeconfig", "context"])]
    manifests: Option<PathBuf>,
    /// End when it is done: safe to reboot, or in use again.
    #[arg(long)]
    wait: bool,
}

/// Arguments of `lbctl drain`.
#[derive(Debug, clap::Args)]
pub(crate) struct Drain {
    #[command(flatten)]
    at: Where,
    /// Say what would be in the way and what would happen, and do nothing.
    #[arg(long, conflicts_with = "wait")]
    dry_run: bool,
    /// Give up after so long, and put the node to use again: 90s, 10m, 2h.
    #[arg(long, value_name = "DURATION", value_parser = wish::timeout)]
    timeout: Option<u32>,
    /// How long routers take to send packets elsewhere: 5s if left out.
    #[arg(long, value_name = "DURATION", value_parser = wish::convergence)]
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

impl Where {
    async fn open(&self, socket: Option<&Path>, cluster: &Cluster) -> anyhow::Result<Place> {
        // Drains are no business of a single agent.
        ensure!(
            socket.is_none(),
            "name a cluster with --kubeconfig, or a directory with --manifests, in place of --socket"
        );
        ensure!(
            cluster.node().is_none(),
            "name the node without --node, and only one"
        );
        Place::open(self.manifests.as_deref(), cluster).await
    }
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

    fn until(&self) -> Until {
        if self.at.wait {
            Until::Done
        } else {
            Until::Answered
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
pub(crate) fn drain(
    args: &Drain,
    socket: Option<&Path>,
    cluster: &Cluster,
    output: Output,
) -> anyhow::Result<Outcome> {
    agent::runtime()?.block_on(async {
        let place = args.at.open(socket, cluster).await?;
        let (summary, outcome) = drained(&place, args).await?;
        output.emit(&summary, said::text)?;
        Ok(outcome)
    })
}

async fn drained(place: &Place, args: &Drain) -> anyhow::Result<(Summary, Outcome)> {
    let (node, spec, until) = (&args.at.node, args.spec(), args.until());
    let started = Instant::now();
    let drain = ask(place, node, &spec).await?;
    let mut progress = Progress::new();
    let waited = unless_interrupted(wait(place, &drain, until, &mut progress)).await;
    progress.end();
    if spec.dry_run {
        place.delete(&drain).await?;
    }
    let outcome = match waited {
        Ok(()) => wish::outcome(&spec, &progress.status, until),
        Err(error) if error.is::<Interrupted>() && !spec.dry_run => Outcome::GoesOn,
        Err(error) => return Err(error),
    };
    let summary = Summary::of(node, &spec, &progress.status, started.elapsed());
    Ok((summary, outcome))
}

/// Makes the object, or finds that of the same wish.
async fn ask(place: &Place, node: &str, spec: &NodeDrainSpec) -> anyhow::Result<NodeDrain> {
    let nodes = place.nodes().await?;
    if !nodes.contains(node) {
        let nodes: Vec<String> = nodes.into_iter().collect();
        bail!(
            "there is no node {node} with an agent; there are: {}",
            nodes.join(", ")
        );
    }
    let there = place.get(node).await?;
    match (wish::step(node, spec, there.as_ref()), there) {
        (Step::Refuse(sentence), _) => bail!("{sentence}"),
        (Step::Attach, Some(there)) => return Ok(there),
        (Step::Replace, Some(there)) => _ = place.delete(&there).await?,
        (Step::Create | Step::Attach | Step::Replace, _) => {}
    }
    place.create(node, spec).await
}

/// Follows the status until it is as wanted. The API server may be away for as long as a manager may be silent.
async fn wait(
    place: &Place,
    drain: &NodeDrain,
    until: Until,
    progress: &mut Progress,
) -> anyhow::Result<()> {
    let node = drain.name_any();
    let mut heard = Heard::new(Instant::now());
    loop {
        let trouble = match place.get(&node).await {
            Ok(there) => {
                let this = there.filter(|there| there.metadata.uid == drain.metadata.uid);
                let Some(this) = this else {
                    bail!("somebody else has put {node} to use again meanwhile");
                };
                let status = this.status.unwrap_or_default();
                if progress.show(&status) {
                    heard.answers(Instant::now());
                }
                if until.is_reached(&status) {
                    return Ok(());
                }
                heard.note(place.sign().await, Instant::now());
                String::new()
            }
            Err(error) => format!(" ({error:#})"),
        };
        if heard.is_silent(Instant::now()) {
            bail!(
                "nothing was heard of the manager for {} s{trouble}: see that one runs. {}",
                SILENCE_MAX.as_secs(),
                goes_on(&drain.spec, &node)
            );
        }
        tokio::time::sleep(POLL).await;
    }
}

/// What becomes of a drain that nobody waits for any more.
fn goes_on(spec: &NodeDrainSpec, node: &str) -> String {
    if spec.dry_run {
        "Nothing was done".to_owned()
    } else {
        format!("The drain of {node} goes on when it does; `lbctl undrain {node}` takes it back")
    }
}

/// Puts a node to use again.
pub(crate) fn undrain(
    args: &Undrain,
    socket: Option<&Path>,
    cluster: &Cluster,
    output: Output,
) -> anyhow::Result<Outcome> {
    agent::runtime()?.block_on(async {
        let place = args.at.open(socket, cluster).await?;
        let node = &args.at.node;
        let started = Instant::now();
        take_back(&place, node).await?;
        let mut outcome = Outcome::Well;
        if args.at.wait {
            match unless_interrupted(in_use(&place, node)).await {
                Err(error) if error.is::<Interrupted>() => outcome = Outcome::GoesOn,
                waited => waited?,
            }
        }
        let summary = Undrained {
            node: node.clone(),
            duration_ms: said::milliseconds(started.elapsed()),
        };
        output.emit(&summary, |_, _| format!("{node} is put to use again"))?;
        Ok(outcome)
    })
}

async fn take_back(place: &Place, node: &str) -> anyhow::Result<()> {
    let Some(there) = place.get(node).await? else {
        if place.told(node).await?.is_some() {
            bail!(
                "{node} is being drained, and lbctl has not asked for it here, or it is put to use again just now: see whether a \
                 file of the directory has a NodeDrain {node}, and remove that"
            );
        }
        bail!("{node} is not being drained");
    };
    if let Some(sentence) = wish::kept(node, there.spec.trigger) {
        bail!("{sentence}");
    }
    place.delete(&there).await?;
    Ok(())
}

/// Waits until agents hold a node for drained no more.
async fn in_use(place: &Place, node: &str) -> anyhow::Result<()> {
    let started = Instant::now();
    while place.told(node).await?.is_some() {
        ensure!(
            started.elapsed() < SILENCE_MAX,
            "nothing was heard of the manager for {} s: see that one runs; {node} is put to use again when it does",
            SILENCE_MAX.as_secs()
        );
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
