//! The same with a real API server in between: a manager as it is, an agent's core behind the watches of an agent, and how
//! often who writes.

mod agent;
mod audit;
mod cluster;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::PostParams;
use kube::{Api, Client};
use lb_controller::manager::{self, draining};
use lb_controller::source::kubernetes;
use rig::{ControlPlane, Options, User};
use tokio_util::sync::CancellationToken;

use self::agent::{Agent, Live};
use self::audit::{Write, writes};
use super::objects::{First, NAMESPACE, PodNumber, SYSTEM, Scale, service_name};
use crate::pin_dir::PinDir;

/// Longest wait for anything.
const LIMIT: Duration = Duration::from_mins(10);
/// A table is written at most once in this time, so a Service is changed no sooner.
const PERIOD: Duration = Duration::from_millis(1100);

/// What was found at one size, times in ms.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// From the start of the watches to all tables in the maps.
    pub(super) start: f64,
    /// From the write of a slice to slots live.
    pub(super) gone: Vec<f64>,
    pub(super) arrive: Vec<f64>,
    /// Writes of tables per change.
    pub(super) table_writes: f64,
    /// Other writes of the manager per change.
    pub(super) other_writes: f64,
    /// Writes that an agent would have made.
    pub(super) agent_writes: f64,
    /// Events per change that an agent hears.
    pub(super) watch_events: f64,
    /// Bytes of these objects.
    pub(super) watch_bytes: f64,
}

/// Everything at one size.
pub(super) fn measure(scale: Scale, changes: u32, dir: &PinDir) -> anyhow::Result<Found> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(Box::pin(run(scale, changes, dir)))
}

async fn run(scale: Scale, changes: u32, dir: &PinDir) -> anyhow::Result<Found> {
    let policy = tempfile("policy.yaml", audit::POLICY)?;
    let log = policy.with_file_name("audit.log");
    let plane = ControlPlane::start_with(Options {
        api_server: vec![
            format!("--audit-policy-file={}", policy.display()),
            format!("--audit-log-path={}", log.display()),
        ],
        ..Options::default()
    })
    .await?;
    cluster::deploy(&plane)?;
    let uids = cluster::make_objects(&plane.client(), scale).await?;
    let stop = CancellationToken::new();
    let user = User::service_account(SYSTEM, "bowline-manager");
    let options = manager::Options {
        handoff: lb_controller::handoff::Options::default(),
        drains: draining::DrainOptions::default(),
        manifests: None,
        cluster: kubernetes::Cluster {
            kubeconfig: Some(plane.kubeconfig(&user)?),
            namespace: SYSTEM.to_owned(),
        },
        identity: Some("bench".to_owned()),
        metrics_listen: None,
        admin_socket: None,
    };
    let manager = tokio::spawn(manager::run(options, stop.clone()));
    cluster::all_tables(&plane.client(), scale).await?;
    let mut harness = Harness {
        slices: Api::namespaced(plane.client(), NAMESPACE),
        scale,
        uids,
        versions: BTreeMap::new(),
        agent: Agent::start(
            plane
                .client_as(&User::service_account(SYSTEM, "bowline-agent"))
                .await?,
            dir.path(),
        )?,
        events: 0,
        agent_writes: 0,
    };
    let found = harness.changes(&plane.client(), changes, &log).await;
    harness.agent.stop.cancel();
    stop.cancel();
    _ = manager.await;
    drop(plane);
    if let Some(directory) = policy.parent() {
        _ = std::fs::remove_dir_all(directory);
    }
    found
}

fn tempfile(name: &str, text: &str) -> anyhow::Result<std::path::PathBuf> {
    let directory =
        std::env::temp_dir().join(format!("bowline-bench-control-{}", std::process::id()));
    std::fs::create_dir_all(&directory)?;
    let path = directory.join(name);
    std::fs::write(&path, text)?;
    Ok(path)
}

struct Harness {
    slices: Api<EndpointSlice>,
    scale: Scale,
    /// Of pods.
    uids: BTreeMap<u32, String>,
    /// Newest version of each table that is live.
    versions: BTreeMap<String, u64>,
    agent: Agent,
    events: u32,
    agent_writes: u32,
}

impl Harness {
    async fn changes(
        &mut self,
        client: &Client,
        changes: u32,
        audit: &Path,
    ) -> anyhow::Result<Found> {
        let mut found = Found::default();
        let start = Instant::now();
        let Live::All = self.agent.next().await? else {
            bail!("the agent speaks before its lists are complete");
        };
        found.start = start.elapsed().as_secs_f64() * 1e3;
        // Events and statuses of the start are still being written.
        self.quiet().await?;
        let before = writes(audit)?;
        (self.events, self.agent_writes) = (0, 0);
        let mut done = 0;
        let some = changes.min(self.scale.services);
        while done < changes {
            for (first, times) in [
                (First::Terminating, &mut found.gone),
                (First::Replaced, &mut found.arrive),
                (First::Original, &mut Vec::new()),
            ] {
                let pass = Instant::now();
                for service in 0..some {
                    times.push(self.change(service, first).await?);
                }
                tokio::time::sleep(PERIOD.saturating_sub(pass.elapsed())).await;
            }
            done += some;
        }
        self.quiet().await?;
        let after = writes(audit)?;
        let changes = f64::from(3 * done);
        let count = |writes: &[Write], tables: bool| {
            let of = writes.iter().filter(|write| {
                write.is_by_manager() && write.is_table() == tables && write.is_about_services()
            });
            u32::try_from(of.count()).map_or(f64::NAN, f64::from)
        };
        let per_change = |tables| (count(&after, tables) - count(&before, tables)) / changes;
        found.table_writes = per_change(true);
        found.other_writes = per_change(false);
        ensure!(found.table_writes > 0.0, "no write is in the audit log");
        found.agent_writes = f64::from(self.agent_writes) / changes;
        found.watch_events = f64::from(self.events) / changes;
        for path in [
            format!(
                "/apis/bowline.dev/v1alpha1/namespaces/{NAMESPACE}/servicetables/{}",
                service_name(0)
            ),
            format!(
                "/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices/{}-x7k2p",
                service_name(0)
            ),
        ] {
            let request = http_get(&path)?;
            let text = client.request_text(request).await?;
            found.watch_bytes += f64::from(u32::try_from(text.len())?);
        }
        Ok(found)
    }

    /// Writes a slice; answers how long it took until its table was live, in ms.
    async fn change(&mut self, service: u32, first: First) -> anyhow::Result<f64> {
        let uid = |number: PodNumber| self.uids.get(&number.0).cloned().unwrap_or_default();
        let slice: EndpointSlice = serde_json::from_value(self.scale.slice(service, first, uid))?;
        let name = slice.metadata.name.clone().context("no name")?;
        let (slices, start) = (self.slices.clone(), Instant::now());
        // Not waited for: the event may be there before the answer.
        let write = tokio::spawn(async move {
            Box::pin(slices.replace(&name, &PostParams::default(), &slice)).await
        });
        let live = loop {
            if let Some(at) = self.hear(Some(&service_name(service))).await? {
                break at;
            }
        };
        write.await??;
        Ok((live - start).as_secs_f64() * 1e3)
    }

    /// Takes in what the agent has applied; says when, if the table of `wanted` was among it.
    async fn hear(&mut self, wanted: Option<&str>) -> anyhow::Result<Option<Instant>> {
        let Live::Events {
            count,
            tables,
            at,
            writes,
        } = self.agent.next().await?
        else {
            return Ok(None);
        };
        self.events += count;
        self.agent_writes += u32::from(writes);
        let mut live = None;
        for (name, version) in tables {
            let is_new = self.versions.insert(name.clone(), version) != Some(version);
            if is_new && Some(name.as_str()) == wanted {
                live = Some(at);
            }
        }
        Ok(live)
    }

    /// Waits until the agent has heard nothing for a while.
    async fn quiet(&mut self) -> anyhow::Result<()> {
        while tokio::time::timeout(Duration::from_secs(2), self.hear(None))
            .await
            .is_ok()
        {}
        Ok(())
    }
}

fn http_get(path: &str) -> anyhow::Result<http::Request<Vec<u8>>> {
    Ok(http::Request::get(path).body(Vec::new())?)
}
