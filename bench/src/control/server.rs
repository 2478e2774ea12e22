//! The same with a real API server in between: a manager as it is, an agent's core behind the watches of an agent, and how
//! often who writes.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use k8s_openapi::api::core::v1::{Namespace, Node as KubeNode, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{ApiResource, DynamicObject, PostParams};
use kube::{Api, Client, Resource};
use lb_controller::api::address_pool::AddressPool;
use lb_controller::api::l2_advertisement::L2Advertisement;
use lb_controller::api::load_balancer_node::LoadBalancerNode;
use lb_controller::api::service_table::ServiceTable;
use lb_controller::manager;
use lb_controller::source::index::Event;
use lb_controller::source::kubernetes::{self, EVENTS_MAX};
use rig::{ControlPlane, Options, User};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::cores::Node;
use super::objects::{
    self, BALANCERS, First, NAMESPACE, NODES, OWN_NODE, PodNumber, SYSTEM, Scale, service_name,
};
use crate::pin_dir::PinDir;

/// Requests at once while objects are made: below what the API server lets through.
const REQUESTS_MAX: usize = 64;
/// Longest wait for anything.
const LIMIT: Duration = Duration::from_mins(10);
/// A table is written at most once in this time, so a Service is changed no sooner.
const PERIOD: Duration = Duration::from_millis(1100);

/// What is logged of requests: writes of what a manager and an agent write.
const AUDIT: &str = r#"{ "apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"], "rules": [
  { "level": "Metadata", "verbs": ["create", "update", "patch", "delete"], "resources": [
    { "group": "", "resources": ["services", "services/status"] },
    { "group": "bowline.dev" }, { "group": "events.k8s.io" } ] },
  { "level": "None" } ] }"#;

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

/// An agent's core on a thread of its own, behind watches.
struct Agent {
    told: mpsc::UnboundedReceiver<Live>,
    stop: CancellationToken,
}

/// Something that the agent has applied.
#[derive(Debug)]
enum Live {
    /// Everything that was listed.
    All,
    /// Events since, and the tables among them with their versions.
    Events {
        count: u32,
        tables: Vec<(String, u64)>,
        at: Instant,
        /// It has something to write.
        writes: bool,
    },
}

impl Agent {
    fn start(client: Client, dir: &Path) -> anyhow::Result<Self> {
        let (sender, told) = mpsc::unbounded_channel();
        let stop = CancellationToken::new();
        let (ended, dir) = (stop.clone(), dir.to_owned());
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        std::thread::spawn(move || {
            let outcome = runtime.block_on(follow(client, &dir, &sender, &ended));
            if let Err(error) = outcome {
                eprintln!("the agent ended: {error:#}");
            }
        });
        Ok(Self { told, stop })
    }

    async fn next(&mut self) -> anyhow::Result<Live> {
        let next = tokio::time::timeout(LIMIT, self.told.recv()).await;
        next.context("the agent is silent")?
            .context("the agent ended")
    }
}

async fn follow(
    client: Client,
    dir: &Path,
    told: &mpsc::UnboundedSender<Live>,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let (sender, mut events) = mpsc::channel(EVENTS_MAX);
    let wanted = kubernetes::agent(&objects::node_name(OWN_NODE), SYSTEM);
    let (watches, _tasks) = kubernetes::follow(&client, wanted, &sender, stop);
    let mut node = Node::open_at(dir)?;
    let (mut batch, mut listed, mut object) = (Vec::new(), false, None);
    loop {
        let received = events.recv_many(&mut batch, 1024);
        if stop.run_until_cancelled(received).await.unwrap_or(0) == 0 {
            return Ok(());
        }
        let tables: Vec<_> = batch.iter().filter_map(table).collect();
        let count = u32::try_from(batch.len())?;
        node.agent
            .take_objects(std::mem::take(&mut batch), Instant::now());
        if !listed {
            if !(watches.are_listed() && events.is_empty()) {
                continue;
            }
            listed = true;
            node.agent.listed(Instant::now());
            node.settle()?;
            object = node.agent.node_object();
            _ = told.send(Live::All);
            continue;
        }
        node.settle()?;
        let at = Instant::now();
        let writes = node.agent.node_object() != object;
        let live = Live::Events {
            count,
            tables,
            at,
            writes,
        };
        if told.send(live).is_err() {
            return Ok(());
        }
    }
}

fn table(event: &Event) -> Option<(String, u64)> {
    let Event::Apply(key, object) = event else {
        return None;
    };
    Some((key.name.clone(), object.service_table()?.spec.version))
}

/// Everything at one size.
pub(super) fn measure(scale: Scale, changes: u32, dir: &PinDir) -> anyhow::Result<Found> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(Box::pin(run(scale, changes, dir)))
}

async fn run(scale: Scale, changes: u32, dir: &PinDir) -> anyhow::Result<Found> {
    let policy = tempfile("policy.yaml", AUDIT)?;
    let audit = policy.with_file_name("audit.log");
    let plane = ControlPlane::start_with(Options {
        api_server: vec![
            format!("--audit-policy-file={}", policy.display()),
            format!("--audit-log-path={}", audit.display()),
        ],
        ..Options::default()
    })
    .await?;
    deploy(&plane)?;
    let uids = make_objects(&plane.client(), scale).await?;
    let stop = CancellationToken::new();
    let user = User::service_account(SYSTEM, "bowline-manager");
    let options = manager::Options {
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
    all_tables(&plane.client(), scale).await?;
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
    let found = harness.changes(&plane.client(), changes, &audit).await;
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

fn deploy(plane: &ControlPlane) -> anyhow::Result<()> {
    let deploy = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy");
    let access = |who: &str| format!("{deploy}/kustomize/{who}-access.yaml");
    for arguments in [
        &["apply", "-k", &format!("{deploy}/crds")][..],
        &["create", "namespace", SYSTEM],
        &["apply", "-n", SYSTEM, "-f", &access("manager")],
        &["apply", "-n", SYSTEM, "-f", &access("agent")],
    ] {
        let output = plane.kubectl()?.args(arguments).output()?;
        ensure!(
            output.status.success(),
            "kubectl {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

/// Makes everything; answers the UIDs of pods.
async fn make_objects(client: &Client, scale: Scale) -> anyhow::Result<BTreeMap<u32, String>> {
    let namespaces = Api::<Namespace>::all(client.clone());
    let namespace = serde_json::json!({ "metadata": { "name": NAMESPACE } });
    namespaces
        .create(&PostParams::default(), &serde_json::from_value(namespace)?)
        .await?;
    make::<KubeNode>(client, (0..NODES).map(objects::node)).await?;
    // The status is not taken when an object is made.
    let nodes = Api::<KubeNode>::all(client.clone());
    for number in 0..NODES {
        let status = objects::node(number);
        let patch = kube::api::Patch::Merge(serde_json::json!({ "status": status["status"] }));
        nodes
            .patch_status(
                &objects::node_name(number),
                &kube::api::PatchParams::default(),
                &patch,
            )
            .await?;
    }
    make::<AddressPool>(client, [objects::pool()]).await?;
    make::<L2Advertisement>(client, [objects::advertisement()]).await?;
    make::<LoadBalancerNode>(client, (0..BALANCERS).map(objects::balancer)).await?;
    make::<Service>(client, (0..scale.services).map(objects::service)).await?;
    let replacements = (0..scale.services).map(objects::replacement);
    let numbers: Vec<_> = scale.pods().chain(replacements).collect();
    let pods = make::<Pod>(client, numbers.iter().copied().map(objects::pod)).await?;
    let by_name: BTreeMap<_, _> = pods.into_iter().collect();
    let uids: BTreeMap<u32, String> = numbers
        .iter()
        .filter_map(|number| Some((number.0, by_name.get(&number.name())?.clone())))
        .collect();
    let uid = |number: PodNumber| uids.get(&number.0).cloned().unwrap_or_default();
    let slices = (0..scale.services).map(|service| scale.slice(service, First::Original, uid));
    make::<EndpointSlice>(client, slices).await?;
    Ok(uids)
}

/// Makes objects, several at once. Answers names and UIDs.
async fn make<K>(
    client: &Client,
    objects: impl IntoIterator<Item = Value>,
) -> anyhow::Result<Vec<(String, String)>>
where
    K: Resource<DynamicType = ()> + DeserializeOwned,
{
    let resource = ApiResource::erase::<K>(&());
    let room = Arc::new(Semaphore::new(REQUESTS_MAX));
    let mut tasks = JoinSet::new();
    for object in objects {
        let object: DynamicObject = serde_json::from_value(object)?;
        let api = match &object.metadata.namespace {
            Some(namespace) => {
                Api::<DynamicObject>::namespaced_with(client.clone(), namespace, &resource)
            }
            None => Api::all_with(client.clone(), &resource),
        };
        let turn = Arc::clone(&room).acquire_owned().await?;
        tasks.spawn(async move {
            let made = Box::pin(api.create(&PostParams::default(), &object)).await;
            drop(turn);
            made.map(|made| {
                let meta = made.metadata;
                (meta.name.unwrap_or_default(), meta.uid.unwrap_or_default())
            })
        });
    }
    let mut made = Vec::new();
    while let Some(one) = tasks.join_next().await {
        made.push(one??);
    }
    Ok(made)
}

/// Waits until the manager has written all tables, and for a while nothing else.
async fn all_tables(client: &Client, scale: Scale) -> anyhow::Result<()> {
    let services = Api::<Service>::namespaced(client.clone(), NAMESPACE);
    let tables = Api::<ServiceTable>::namespaced(client.clone(), NAMESPACE);
    let start = Instant::now();
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let all = kube::api::ListParams::default();
        if tables.list_metadata(&all).await?.items.len() == scale.services as usize {
            let told = services
                .list(&all)
                .await?
                .items
                .into_iter()
                .filter(|service| {
                    let status = service.status.as_ref();
                    status.is_some_and(|status| status.conditions.iter().flatten().count() == 2)
                });
            if told.count() == scale.services as usize {
                return Ok(());
            }
        }
        ensure!(start.elapsed() < LIMIT, "the manager writes no tables");
    }
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

/// A line of the audit log.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Write {
    /// The rig's users are impersonated by its administrator.
    impersonated_user: Option<AuditUser>,
    object_ref: Option<AuditObject>,
}

#[derive(Debug, Deserialize)]
struct AuditUser {
    username: String,
}

#[derive(Debug, Deserialize)]
struct AuditObject {
    resource: Option<String>,
}

impl Write {
    fn is_by_manager(&self) -> bool {
        let user = self.impersonated_user.as_ref();
        user.is_some_and(|user| user.username.ends_with(":bowline-manager"))
    }

    fn resource(&self) -> &str {
        let object = self.object_ref.as_ref();
        object
            .and_then(|object| object.resource.as_deref())
            .unwrap_or_default()
    }

    fn is_table(&self) -> bool {
        self.resource() == "servicetables"
    }

    /// A lease is renewed whatever happens, and pools are told about once a second.
    fn is_about_services(&self) -> bool {
        !matches!(self.resource(), "leases" | "addresspools")
    }
}

fn writes(audit: &Path) -> anyhow::Result<Vec<Write>> {
    let text = std::fs::read_to_string(audit).context("the audit log")?;
    let lines = text.lines().map(serde_json::from_str::<Write>);
    Ok(lines.collect::<Result<_, _>>()?)
}
