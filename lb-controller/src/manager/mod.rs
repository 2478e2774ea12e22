//! The manager: assigns slots and addresses, and writes tables and status. One leads in a cluster, by a Lease; standalone
//! there is one per directory, held by a lock file.
//!
//! [`core`] knows and decides; this file and [`kubernetes`] move bytes and time.

mod agents;
mod answers;
pub mod core;
pub mod draining;
pub mod kubernetes;
mod retiring;
pub mod standalone;
mod status;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use jiff::Timestamp;
use nix::fcntl::Flock;
use tokio_util::sync::CancellationToken;

use self::agents::{Agents, hear};
use self::answers::{Found, Shared};
use self::standalone::Standalone;
use crate::admin::Problem;
use crate::agent::{PREDECESSOR_POLL, PREDECESSOR_WAIT};
use crate::handoff::Times;
use crate::source::directory::{Batch, Directory};
use crate::source::kubernetes::Cluster;
use crate::source::output::{LockError, Mode, Outputs, lock, replace};
use crate::source::secret::ClusterSecrets;
use crate::{handoff, serve};

/// Longest sleep: wall-clock deadlines are looked at again at least this often, should the clock be set.
const SLEEP_MAX: Duration = Duration::from_secs(5);

/// How the manager runs.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Directory of objects (Service, endpoint slice, Pod, Node, pool) that plays the API server; outputs go to `.bowline`
    /// below it.
    #[arg(long, value_name = "DIR", conflicts_with = "kubeconfig")]
    pub manifests: Option<PathBuf>,
    /// Which API server.
    #[command(flatten)]
    pub cluster: Cluster,
    /// Who this manager is among its replicas; the host's name if left out.
    #[arg(long, env = "POD_NAME", value_name = "NAME")]
    pub identity: Option<String>,
    /// Where /metrics, /healthz and /readyz are served; nowhere if not given.
    #[arg(long, value_name = "ADDR")]
    pub metrics_listen: Option<SocketAddr>,
    /// Where the admin answers (of a manager: status) are given; nowhere if not given.
    #[arg(long, value_name = "PATH")]
    pub admin_socket: Option<PathBuf>,
    /// How nodes are drained.
    #[command(flatten)]
    pub drains: draining::DrainOptions,
    /// Whether histories are retired.
    #[command(flatten)]
    pub handoff: handoff::Options,
}

/// Runs until stopped.
pub async fn run(options: Options, stop: CancellationToken) -> anyhow::Result<()> {
    let shared = Arc::new(Shared::default());
    let mut servers = tokio::task::JoinSet::new();
    if let Some(address) = options.metrics_listen {
        let listener = serve::listen_tcp(address).await?;
        servers.spawn(serve::serve_tcp(
            listener,
            Arc::clone(&shared),
            stop.clone(),
        ));
    }
    if let Some(path) = &options.admin_socket {
        let listener = serve::listen_unix(path)?;
        servers.spawn(serve::serve_unix(
            listener,
            Arc::clone(&shared),
            stop.clone(),
        ));
    }
    let certificates = options.handoff.certificates.as_deref();
    let agents = certificates.map(|place| Agents::start(place, Times::default(), &stop));
    if let Some(manifests) = &options.manifests {
        standalone(manifests, agents, options.drains.concurrent, &shared, &stop).await?;
    } else {
        let client = options.cluster.client().await?;
        let identity = options.identity.unwrap_or_else(|| {
            let host = nix::sys::utsname::uname().map(|name| name.nodename().to_owned());
            let host = host.unwrap_or_default().to_string_lossy().into_owned();
            // Several on one host differ by process.
            format!("{host}-{}", std::process::id())
        });
        let Cluster { namespace, .. } = options.cluster;
        tracing::info!(namespace, identity, "manager starts");
        tell_without(agents.as_ref());
        let drains = options.drains;
        let work = kubernetes::run(client, namespace, identity, agents, drains, &shared, &stop);
        Box::pin(work).await;
    }
    while servers.join_next().await.is_some() {}
    Ok(())
}

/// Says once what is not done without certificates.
fn tell_without(agents: Option<&Agents>) {
    if agents.is_none() {
        tracing::info!(
            "connections are not handed off without --handoff-certificates: where a table's history is full, the oldest leaves"
        );
    }
}

/// Runs on a directory of manifests.
async fn standalone(
    manifests: &Path,
    agents: Option<Agents>,
    concurrent: u16,
    shared: &Shared,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let outputs = Outputs::below(manifests);
    outputs.create().with_context(|| {
        format!(
            "{} can not be made; see that {} exists and may be written",
            outputs.root().display(),
            manifests.display()
        )
    })?;
    let _held = hold(&outputs.manager_lock()).await?;
    ensure_secret(&outputs.secret())?;
    tell_without(agents.as_ref());
    // Read once: from here on they are what we write.
    let (_, tables) = Directory::open(vec![outputs.tables()], Vec::new())?;
    let (_, statuses) = Directory::open(vec![outputs.statuses()], Vec::new())?;
    let (_, drains) = Directory::open(vec![outputs.drains()], Vec::new())?;
    let nodes = Directory::open(vec![outputs.nodes()], Vec::new())?;
    let mut core = Standalone::resume_with(agents, outputs, &tables, &statuses);
    core.resume_drains(&drains, concurrent);
    let directory = Directory::open(vec![manifests.to_owned()], Vec::new())?;
    tracing::info!(manifests = %manifests.display(), "manager starts");
    follow(manifests, core, directory, nodes, shared, stop).await;
    Ok(())
}

/// Takes the directory. A predecessor that is just ending still holds it for a moment.
async fn hold(path: &Path) -> Result<Flock<std::fs::File>, LockError> {
    let until = Instant::now() + PREDECESSOR_WAIT;
    loop {
        match lock(path) {
            Err(LockError::Held { .. }) if Instant::now() < until => {
                tokio::time::sleep(PREDECESSOR_POLL).await;
            }
            outcome => return outcome,
        }
    }
}

/// Makes the secrets of the cluster if there are none.
fn ensure_secret(path: &Path) -> anyhow::Result<()> {
    match std::fs::read_to_string(path) {
        Ok(text) => {
            ClusterSecrets::from_yaml(&text).with_context(|| path.display().to_string())?;
            Ok(())
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let text = ClusterSecrets::random()
                .context("no random bytes")?
                .to_yaml()?;
            replace(path, &text, Mode::Secret).with_context(|| {
                format!(
                    "{} can not be written; free space on its disk",
                    path.display()
                )
            })?;
            tracing::info!(path = %path.display(), "made the secrets of the cluster");
            Ok(())
        }
        Err(error) => Err(error)
            .with_context(|| format!("{} can not be read; run as its owner", path.display())),
    }
}

/// The loop: changes in, files out.
async fn follow(
    manifests: &Path,
    mut core: Standalone,
    (mut directory, first): (Directory, Batch),
    (mut nodes, first_nodes): (Directory, Batch),
    shared: &Shared,
    stop: &CancellationToken,
) {
    let mut told = Vec::new();
    let mut heard = Vec::new();
    core.take_nodes(&first_nodes);
    take(&mut core, &first);
    core.listed(Instant::now());
    loop {
        let (now, wall) = (Instant::now(), Timestamp::now());
        core.work(now, wall);
        let found = found(manifests, &core, [&directory, &nodes], (now, wall));
        tell(&mut told, found.problems.clone());
        shared.set(found);
        let wake = core
            .next_wake(now, wall)
            .unwrap_or(now + SLEEP_MAX)
            .min(now + SLEEP_MAX);
        tokio::select! {
            batch = directory.next() => take(&mut core, &batch),
            batch = nodes.next() => core.take_nodes(&batch),
            () = hear(&mut core.agents, &mut heard) => core.take_heard(&mut heard, Instant::now()),
            () = tokio::time::sleep_until(wake.into()) => {}
            () = stop.cancelled() => break,
        }
    }
    if let Some(agents) = core.agents {
        agents.end().await;
    }
}

/// What is told after each round, of the directories of manifests and of nodes.
fn found(
    manifests: &Path,
    core: &Standalone,
    directories: [&Directory; 2],
    (now, wall): (Instant, Timestamp),
) -> Found {
    let mut problems = core.problems(now);
    let what = ["directory of manifests", "directory of nodes"];
    let faults = directories.map(Directory::error);
    for (object, error) in what.into_iter().zip(faults) {
        problems.extend(error.map(|error| Problem {
            object: object.to_owned(),
            sentence: error.to_string(),
        }));
    }
    let [manifests_fault, _] = faults;
    let mut reasons = Vec::new();
    if manifests_fault.is_some() {
        reasons.push("changes of the directory may be missed; see the log".to_owned());
    }
    let writes = core.writes();
    if writes.1 > 0 {
        reasons.push(format!(
            "{} files are not written yet; see the log",
            writes.1
        ));
    }
    Found {
        source: manifests.display().to_string(),
        alive: manifests_fault.is_none(),
        last_list: wall,
        services: core.core.counts(),
        problems,
        writes,
        // What a file system refuses is among the problems.
        writes_failed: 0,
        events_lost: 0,
        leading: true,
        handoff: core.handoff(now),
        not_ready_because: reasons,
    }
}

fn take(core: &mut Standalone, batch: &Batch) {
    let named = batch
        .iter()
        .filter_map(|(path, content)| Some((path.file_name()?.to_str()?, content)));
    core.take(named, Instant::now());
}

/// Logs problems that are new and those that are gone.
pub(crate) fn tell(told: &mut Vec<Problem>, mut problems: Vec<Problem>) {
    problems.sort();
    problems.dedup();
    for Problem { object, sentence } in problems
        .iter()
        .filter(|problem| told.binary_search(problem).is_err())
    {
        tracing::warn!(%object, "{sentence}");
    }
    for Problem { object, sentence } in told
        .iter()
        .filter(|problem| problems.binary_search(problem).is_err())
    {
        tracing::info!(%object, "no longer: {sentence}");
    }
    *told = problems;
}
