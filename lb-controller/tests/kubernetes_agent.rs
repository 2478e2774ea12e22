//! The agent against a real API server, as its own service account with the rights that `deploy/kustomize` gives it, over the
//! kernel's maps. Everything runs in a network namespace of its own, which ends with the test. One file: both
//! tests follow one agent, over the same set-up.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use aya::maps::{Array, HashMap, Map, MapData};
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule, Role};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use lb_controller::admin::Status;
use lb_controller::api::address_pool::AddressPool;
use lb_controller::api::l2_advertisement::L2Advertisement;
use lb_controller::api::load_balancer_node::LoadBalancerNode;
use lb_controller::dataplane::pin::{mount_bpffs, unmount_bpffs};
use lb_controller::model::secret::identity;
use lb_controller::source::kubernetes;
use lb_ebpf::abi::{self, map};
use nix::sched::{CloneFlags, unshare};
use rig::{ControlPlane, Options, User};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// What must come true does so within this time, on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_mins(1);
/// How long the API server is away; the long form is for hand.
const AWAY: Duration = Duration::from_secs(5);
/// Pods that there are.
const PODS: std::ops::RangeInclusive<u32> = 1..=30;
const ACCOUNT: &str = "bowline-agent";
const AGENT_USER: &str = "system:serviceaccount:bowline-system:bowline-agent";
const DEPLOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy");

/// A program of ours, ended with the value.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// A BPF file system, gone with the value.
struct Pins(tempfile::TempDir);

impl Pins {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        mount_bpffs(directory.path()).unwrap();
        Self(directory)
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("bowline")
    }

    /// None before the agent has made it.
    fn map(&self, name: &str) -> Option<Map> {
        let version = format!("abi-{}", abi::ABI_VERSION);
        let path = self.path().join(version).join("maps").join(name);
        let data = MapData::from_pin(path).ok()?;
        Some(Map::from_map_data(data).unwrap())
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        unmount_bpffs(self.0.path()).unwrap();
    }
}

/// What the maps hold of the few objects here.
#[derive(Clone, PartialEq, Debug)]
struct Maps {
    services: Vec<abi::ServiceRecord<abi::ServiceKey4>>,
    slots: Vec<abi::Slot>,
    backends: Vec<abi::Backend>,
    announced: BTreeMap<abi::AnnouncedKey, abi::Announcement>,
}

/// Ids are given out from the lowest on, so everything is among these.
const ENTRIES: u32 = 64;

impl Maps {
    fn read(pins: &Pins) -> Option<Self> {
        fn array<T: aya::Pod>(pins: &Pins, name: &str) -> Option<Vec<T>> {
            let array = Array::<_, T>::try_from(pins.map(name)?).unwrap();
            let entries = 0..ENTRIES;
            Some(entries.map(|at| array.get(&at, 0).unwrap()).collect())
        }
        let announced = HashMap::try_from(pins.map(map::ANNOUNCED)?).unwrap();
        Some(Self {
            services: array(pins, map::SERVICES4)?,
            slots: array(pins, map::SLOTS)?,
            backends: array(pins, map::BACKENDS)?,
            announced: announced.iter().map(Result::unwrap).collect(),
        })
    }

    /// Who gets new flows.
    fn current(&self) -> BTreeSet<u32> {
        let first = self.slots.iter().map(|slot| slot.first);
        first
            .filter(|backend| *backend != 0)
            .map(|backend| self.backends[backend as usize].identity)
            .collect()
    }
}

/// The control plane, and what an agent on node `n1` needs.
struct World {
    plane: ControlPlane,
    client: Client,
    pins: Pins,
    audit: tempfile::TempDir,
    /// UIDs of pods by number.
    pods: BTreeMap<u32, String>,
    agent: Option<Program>,
    manager: Option<Program>,
}

impl World {
    async fn start(api_server: &[&str]) -> Self {
        let audit = tempfile::tempdir().unwrap();
        let policy = audit.path().join("policy.yaml");
        let rules = "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules:\n\
                     - {level: Metadata, verbs: [create, update, patch, delete]}\n- {level: None}\n";
        std::fs::write(&policy, rules).unwrap();
        let mut arguments = vec![
            format!("--audit-policy-file={}", policy.display()),
            format!("--audit-log-path={}", audit.path().join("log").display()),
            "--audit-log-mode=blocking".to_owned(),
        ];
        arguments.extend(api_server.iter().map(ToString::to_string));
        let plane = ControlPlane::start_with(Options {
            api_server: arguments,
            ..Options::default()
        })
        .await
        .unwrap();
        let mut world = Self {
            client: plane.client(),
            plane,
            pins: Pins::new(),
            audit,
            pods: BTreeMap::new(),
            agent: None,
            manager: None,
        };
        world.kubectl(&["apply", "-k", &format!("{DEPLOY}/crds")]);
        world.kubectl(&["create", "namespace", "bowline-system"]);
        for role in ["manager", "agent"] {
            let file = format!("{DEPLOY}/kustomize/{role}-access.yaml");
            world.kubectl(&["apply", "-n", "bowline-system", "-f", &file]);
        }
        for (name, address) in [("n1", "10.77.0.1"), ("n2", "10.77.0.2")] {
            let node = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name } });
            let nodes = Api::<Node>::all(world.client.clone());
            create(&nodes, node).await;
            let status = json!({ "status": { "addresses": [{ "type": "InternalIP", "address": address }] } });
            let patch = Patch::Merge(status);
            nodes
                .patch_status(name, &PatchParams::default(), &patch)
                .await
                .unwrap();
        }
        let pods = Api::<Pod>::namespaced(world.client.clone(), "default");
        for n in PODS {
            let pod = json!({
                "metadata": { "name": format!("p{n}") },
                "spec": { "nodeName": "n1", "containers": [{ "name": "c", "image": "i" }] },
            });
            let uid = create(&pods, pod).await.metadata.uid;
            world.pods.insert(n, uid.unwrap());
        }
        world
    }

    fn identities(&self, numbers: &[u32]) -> BTreeSet<u32> {
        let pods = numbers.iter().map(|n| &self.pods[n]);
        pods.map(|uid| identity(uid, 8080)).collect()
    }

    fn kubectl(&self, arguments: &[&str]) {
        let output = self
            .plane
            .kubectl()
            .unwrap()
            .args(arguments)
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {error}");
    }

    /// Starts the agent, in place of one that runs.
    fn start_agent(&mut self) {
        drop(self.agent.take());
        let (pins, socket) = (self.pins.path(), self.socket());
        let arguments = [
            "--node",
            "n1",
            "--flows",
            "4096",
            "--pin-dir",
            pins.to_str().unwrap(),
            "--admin-socket",
            socket.to_str().unwrap(),
        ];
        self.agent = Some(self.program("agent", &arguments));
    }

    fn start_manager(&mut self) {
        self.manager = Some(self.program("manager", &["--identity", "only"]));
    }

    fn program(&self, role: &str, arguments: &[&str]) -> Program {
        let account = User::service_account("bowline-system", &format!("bowline-{role}"));
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log(role))
            .unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_lb-controller"))
            .args([role, "--namespace", "bowline-system", "--kubeconfig"])
            .arg(self.plane.kubeconfig(&account).unwrap())
            .args(arguments)
            .stderr(log)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Program(child)
    }

    fn log(&self, role: &str) -> PathBuf {
        self.plane.directory().join(format!("{role}.log"))
    }

    fn socket(&self) -> PathBuf {
        self.plane.directory().join("agent.sock")
    }

    /// What the agent says of itself; nothing while it does not answer.
    async fn status(&self) -> Option<Status> {
        let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_lb-controller"))
            .arg("admin")
            .arg("--admin-socket")
            .arg(self.socket())
            .args(["GET", "/v1/status"])
            .output()
            .await
            .unwrap();
        serde_json::from_slice(&output.stdout).ok()
    }

    fn maps(&self) -> Option<Maps> {
        Maps::read(&self.pins)
    }

    /// Waits until something is there; shows what the agent said if it never is.
    async fn until<T, F: Future<Output = Option<T>>>(
        &self,
        what: &str,
        mut look: impl FnMut() -> F,
    ) -> T {
        let start = Instant::now();
        loop {
            if let Some(found) = look().await {
                return found;
            }
            if start.elapsed() > PATIENCE {
                for role in ["agent", "manager"] {
                    let log = std::fs::read_to_string(self.log(role)).unwrap_or_default();
                    eprintln!("{role}:\n{log}");
                }
                panic!("not within {PATIENCE:?}: {what}");
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Waits until new flows go to these pods, and says how long it took.
    async fn serves(&self, numbers: &[u32]) -> Duration {
        let start = Instant::now();
        self.until(&format!("new flows go to {numbers:?}"), || async {
            (self.maps()?.current() == self.identities(numbers)).then_some(())
        })
        .await;
        start.elapsed()
    }

    /// Waits for a problem that says this.
    async fn says(&self, sentence: &str) -> Status {
        self.until(sentence, || async {
            let status = self.status().await?;
            let all = status.problems.iter();
            let is_said = all.into_iter().any(|p| p.sentence.contains(sentence));
            is_said.then_some(status)
        })
        .await
    }

    /// Requests of the agent that change something.
    fn writes(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.audit.path().join("log")).unwrap_or_default();
        let requests = log
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        requests
            .filter(|request| request["impersonatedUser"]["username"].as_str() == Some(AGENT_USER))
            .map(|request| {
                let object = &request["objectRef"];
                let words = [&request["verb"], &object["resource"], &object["name"]];
                words.map(|word| word.as_str().unwrap_or("-")).join(" ")
            })
            .collect()
    }

    async fn node_object(&self) -> LoadBalancerNode {
        let nodes = Api::<LoadBalancerNode>::all(self.client.clone());
        self.until("LoadBalancerNode n1", || async {
            nodes.get_opt("n1").await.unwrap()
        })
        .await
    }

    /// The Service's only slice has these pods, all on `n1`.
    async fn endpoints(&self, numbers: &[u32]) {
        let endpoint = |n: &u32| {
            json!({
                "addresses": [format!("10.78.0.{n}")],
                "nodeName": "n1",
                "conditions": { "ready": true },
                "targetRef": { "kind": "Pod", "name": format!("p{n}"), "uid": self.pods[n] },
            })
        };
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": { "name": "web-1", "labels": { "kubernetes.io/service-name": "web" } },
            "addressType": "IPv4",
            "ports": [{ "name": "", "port": 8080, "protocol": "TCP" }],
            "endpoints": numbers.iter().map(endpoint).collect::<Vec<_>>(),
        });
        let slices = Api::<EndpointSlice>::namespaced(self.client.clone(), "default");
        let parameters = PatchParams::apply("test").force();
        slices
            .patch("web-1", &parameters, &Patch::Apply(slice))
            .await
            .unwrap();
    }

    /// A Service, what it needs to get an address and to be announced, and two pods.
    async fn web(&self) {
        let pools = Api::<AddressPool>::all(self.client.clone());
        let pool =
            json!({ "metadata": { "name": "main" }, "spec": { "addresses": ["192.0.2.0/26"] } });
        create(&pools, pool).await;
        let everywhere = json!({ "metadata": { "name": "all" }, "spec": {} });
        create(
            &Api::<L2Advertisement>::all(self.client.clone()),
            everywhere,
        )
        .await;
        self.endpoints(&[1, 2]).await;
        let service = json!({
            "metadata": { "name": "web" },
            "spec": {
                "type": "LoadBalancer",
                "loadBalancerClass": "bowline.dev/xdp",
                "allocateLoadBalancerNodePorts": false,
                "ports": [{ "port": 80, "targetPort": 8080 }],
            },
        });
        create(
            &Api::<Service>::namespaced(self.client.clone(), "default"),
            service,
        )
        .await;
    }
}

async fn create<K>(api: &Api<K>, mut object: Value) -> K
where
    K: kube::Resource<DynamicType = ()>
        + Clone
        + serde::de::DeserializeOwned
        + serde::Serialize
        + std::fmt::Debug,
{
    object["apiVersion"] = K::api_version(&()).into();
    object["kind"] = K::kind(&()).into();
    let object = serde_json::from_value(object).unwrap();
    api.create(&PostParams::default(), &object).await.unwrap()
}

fn ip(words: &str) {
    let words = words.split_whitespace();
    let output = Command::new("ip").args(words).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
}

/// Runs a test in a network namespace with an uplink, or says why not.
fn on_a_node<F: Future<Output = ()> + 'static>(test: fn() -> F) {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: needs root, to load programs and make network namespaces");
        return;
    }
    let node = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        ip("link set lo up");
        ip("link add up0 type veth peer name up1");
        ip("link set up0 up");
        ip("link set up1 up");
        ip("addr add 10.77.0.1/24 dev up0");
        ip("route add default via 10.77.0.254");
        ip("neigh add 10.77.0.2 lladdr 02:00:00:00:00:02 dev up0 nud permanent");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build();
        runtime.unwrap().block_on(test());
    });
    if let Err(panic) = node.join() {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn the_agent_follows_an_api_server_and_goes_on_without_it() {
    on_a_node(|| async {
        let mut world = World::start(&[]).await;
        world.start_agent();
        world.start_manager();
        world.web().await;
        world.serves(&[1, 2]).await;
        the_node_is_told(&world).await;
        endpoint_changes_reach_the_maps_and_the_agent_writes_nothing(&world).await;
        a_change_of_addresses_is_one_write(&world).await;
        an_api_server_that_goes_away_changes_nothing(&mut world).await;
        a_restart_changes_nothing(&mut world).await;
    });
}

async fn the_node_is_told(world: &World) {
    let spec = world.node_object().await.spec;
    assert_eq!(spec.interfaces.len(), 1);
    let up0 = &spec.interfaces[0];
    let subnets: Vec<_> = up0.subnets.iter().map(ToString::to_string).collect();
    assert_eq!(
        (up0.name.as_str(), subnets),
        ("up0", vec!["10.77.0.0/24".to_owned()])
    );
    world
        .until("the VIP is announced", || async {
            (world.maps()?.announced.len() == 1).then_some(())
        })
        .await;
    let status = world
        .until("the agent is ready", || async {
            world.status().await.filter(|status| status.ready)
        })
        .await;
    assert_eq!(status.problems, [], "{status:?}");
    assert_eq!(status.announced.len(), 1);
    assert_eq!(world.writes(), ["patch loadbalancernodes n1"]);
}

async fn endpoint_changes_reach_the_maps_and_the_agent_writes_nothing(world: &World) {
    let before = (world.node_object().await, world.writes());
    let mut took = Vec::new();
    for n in 3..13 {
        world.endpoints(&[1, n]).await;
        took.push(world.serves(&[1, n]).await);
        // The manager writes a table once a second at most.
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    took.sort();
    eprintln!(
        "slice written to slots live: median {:?}, most {:?}",
        took[took.len() / 2],
        took[took.len() - 1]
    );
    assert_eq!((world.node_object().await, world.writes()), before);
}

async fn a_change_of_addresses_is_one_write(world: &World) {
    let before = world.writes().len();
    ip("addr add 192.0.2.61/26 dev up0");
    world
        .until("the new subnet", || async {
            let interfaces = world.node_object().await.spec.interfaces;
            (interfaces[0].subnets.len() == 2).then_some(())
        })
        .await;
    assert_eq!(world.writes().len(), before + 1);
}

async fn an_api_server_that_goes_away_changes_nothing(world: &mut World) {
    let before = world.maps();
    world.plane.kill_api_server();
    let status = world.says("it is tried again").await;
    assert!(!status.ready, "it says that changes may be missed");
    assert_eq!(status.announced.len(), 1);
    tokio::time::sleep(AWAY).await;
    assert_eq!(world.maps(), before);
    world.plane.start_api_server().await.unwrap();
    world.plane.compact().await.unwrap();
    world
        .until("the agent is ready again", || async {
            world.status().await.filter(|status| status.ready)
        })
        .await;
    assert_eq!(world.maps(), before);
    let log = std::fs::read_to_string(world.log("agent")).unwrap();
    assert_eq!(log.matches("announces a VIP").count(), 1, "no flap");
    world.endpoints(&[1, 20]).await;
    world.serves(&[1, 20]).await;
}

async fn a_restart_changes_nothing(world: &mut World) {
    let before = world.maps();
    world.start_agent();
    world
        .until("the new agent is ready", || async {
            world.status().await.filter(|status| status.ready)
        })
        .await;
    assert_eq!(world.maps(), before);
}

/// What the agent says without a permission.
fn missing(verb: &str, resource: &str, group: &str) -> String {
    let dot = if group.is_empty() { "" } else { "." };
    format!("permission is missing: verb {verb} on {resource}{dot}{group};")
}

/// What the agent may do by `deploy/kustomize`: verb, resource and group.
fn rights() -> Vec<(String, String, String)> {
    let text =
        std::fs::read_to_string(Path::new(DEPLOY).join("kustomize/agent-access.yaml")).unwrap();
    let documents: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
    let mut rights = Vec::new();
    for document in documents {
        let Some(rules) = document["rules"].as_array() else {
            continue;
        };
        for rule in rules {
            let rule: PolicyRule = serde_json::from_value(rule.clone()).unwrap();
            let group = rule.api_groups.unwrap()[0].clone();
            for resource in rule.resources.unwrap() {
                for verb in &rule.verbs {
                    rights.push((verb.clone(), resource.clone(), group.clone()));
                }
            }
        }
    }
    rights
}

fn without(rules: Option<Vec<PolicyRule>>, verb: &str, resource: &str) -> Vec<PolicyRule> {
    let split = rules.into_iter().flatten().flat_map(|rule| {
        let resources = rule.resources.clone().unwrap_or_default();
        resources.into_iter().map(move |one| PolicyRule {
            resources: Some(vec![one]),
            ..rule.clone()
        })
    });
    let left = split.map(|mut rule| {
        if rule.resources.as_deref() == Some(&[resource.to_owned()]) {
            rule.verbs.retain(|one| one != verb);
        }
        rule
    });
    left.filter(|rule| !rule.verbs.is_empty()).collect()
}

/// The roles of the agent.
struct Roles {
    everywhere: Api<ClusterRole>,
    own: Api<Role>,
}

impl Roles {
    fn new(client: &Client) -> Self {
        Self {
            everywhere: Api::all(client.clone()),
            own: Api::namespaced(client.clone(), "bowline-system"),
        }
    }

    /// Takes a right away, and says what the rules were.
    async fn take(&self, verb: &str, resource: &str) -> [Option<Vec<PolicyRule>>; 2] {
        let everywhere = self.everywhere.get(ACCOUNT).await.unwrap().rules;
        let own = self.own.get(ACCOUNT).await.unwrap().rules;
        let less = [&everywhere, &own].map(|rules| Some(without(rules.clone(), verb, resource)));
        self.set(less).await;
        [everywhere, own]
    }

    async fn set(&self, [everywhere, own]: [Option<Vec<PolicyRule>>; 2]) {
        let mut role = self.everywhere.get(ACCOUNT).await.unwrap();
        role.rules = everywhere;
        let parameters = PostParams::default();
        let replaced = self.everywhere.replace(ACCOUNT, &parameters, &role).await;
        replaced.unwrap();
        let mut role = self.own.get(ACCOUNT).await.unwrap();
        role.rules = own;
        self.own.replace(ACCOUNT, &parameters, &role).await.unwrap();
    }
}

/// Every right is asked for, and named when it is missing: there is none too many, and what is missing is easily found. With a
/// server that does not stream lists, so that `list` is needed, too.
#[test]
fn each_right_of_the_agent_is_needed_and_named_when_it_is_missing() {
    on_a_node(|| async {
        let mut world = World::start(&["--feature-gates=WatchList=false"]).await;
        let roles = Roles::new(&world.client);
        let (reads, writes): (Vec<_>, Vec<_>) = rights()
            .into_iter()
            .partition(|(verb, _, _)| ["get", "list", "watch"].contains(&verb.as_str()));
        for (verb, resource, group) in reads {
            let whole = roles.take(&verb, &resource).await;
            watches_say(&world, &missing(&verb, &resource, &group)).await;
            roles.set(whole).await;
        }
        let write = |verb: &str| {
            let (resource, group) = ("loadbalancernodes".to_owned(), "bowline.dev".to_owned());
            (verb.to_owned(), resource, group)
        };
        assert_eq!(writes, [write("create"), write("patch")]);
        let whole = roles.take("create", "loadbalancernodes").await;
        world.start_manager();
        world.start_agent();
        world.web().await;
        let sentence = missing("create", "loadbalancernodes", "bowline.dev");
        world.says(&sentence).await;
        world.serves(&[1, 2]).await;
        roles.set(whole).await;
        world.node_object().await;
        let whole = roles.take("patch", "loadbalancernodes").await;
        ip("addr add 192.0.2.61/26 dev up0");
        let sentence = missing("patch", "loadbalancernodes", "bowline.dev");
        world.says(&sentence).await;
        roles.set(whole).await;
        what_still_works_goes_on_while_a_right_is_missing(&mut world, &roles).await;
    });
}

/// What an agent watches ends in this sentence. Rights take a moment to be known, so it is tried again.
async fn watches_say(world: &World, sentence: &str) {
    let account = User::service_account("bowline-system", ACCOUNT);
    let client = world.plane.client_as(&account).await.unwrap();
    let (client, is_told) = (&client, |watches: &kubernetes::Watches| {
        watches
            .errors()
            .iter()
            .any(|(_, said)| said.contains(sentence))
    });
    world
        .until(sentence, || async move {
            let (events, mut taken) = tokio::sync::mpsc::channel(64);
            let stop = CancellationToken::new();
            let wanted = kubernetes::agent("n1", "bowline-system");
            let (watches, _tasks) = kubernetes::follow(client, wanted, &events, &stop);
            let start = Instant::now();
            while start.elapsed() < Duration::from_secs(1) {
                if is_told(&watches) {
                    return Some(());
                }
                _ = tokio::time::timeout(Duration::from_millis(10), taken.recv()).await;
            }
            None
        })
        .await;
}

async fn what_still_works_goes_on_while_a_right_is_missing(world: &mut World, roles: &Roles) {
    world
        .until("the VIP is announced", || async {
            (world.maps()?.announced.len() == 1).then_some(())
        })
        .await;
    roles.take("watch", "l2advertisements").await;
    // Watches that are open stay so; all are opened again after this.
    world.plane.kill_api_server();
    world.plane.start_api_server().await.unwrap();
    let sentence = missing("watch", "l2advertisements", "bowline.dev");
    world.says(&sentence).await;
    world.endpoints(&[1, 30]).await;
    world.serves(&[1, 30]).await;
    assert_eq!(world.maps().unwrap().announced.len(), 1);
}
