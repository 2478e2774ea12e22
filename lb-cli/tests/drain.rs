//! `lbctl drain` and `lbctl undrain` as a person meets them: against a real API server, with the rights that the README names, and
//! against a directory. The test plays the manager.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use lb_controller::api::load_balancer_node::LoadBalancerNode;
use lb_controller::api::node_drain::NodeDrain;
use lb_controller::source::output::Outputs;
use rig::{ControlPlane, User};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Longest wait for something that must happen, on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks at what is waited for.
const LOOK: Duration = Duration::from_millis(20);
const NODE: &str = "node-1";

/// A command that runs, ended with the value.
struct Lbctl {
    child: Child,
    stderr: BufReader<ChildStderr>,
}

impl Drop for Lbctl {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// What a command has come to.
#[derive(Debug)]
struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Ended {
    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

impl Lbctl {
    fn start(place: &[&str], arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_lbctl"))
            .args(place)
            .args(arguments)
            .env_remove("KUBECONFIG")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        Self { child, stderr }
    }

    /// The next line of progress; it comes at once or when the status has changed.
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stderr.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn interrupt(&self) {
        let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    }

    fn end(mut self) -> Ended {
        let mut stderr = String::new();
        self.stderr.read_to_string(&mut stderr).unwrap();
        let mut stdout = String::new();
        let mut pipe = self.child.stdout.take().unwrap();
        pipe.read_to_string(&mut stdout).unwrap();
        Ended {
            code: self.child.wait().unwrap().code(),
            stdout,
            stderr,
        }
    }
}

fn run(place: &[&str], arguments: &[&str]) -> Ended {
    Lbctl::start(place, arguments).end()
}

/// Waits until something is there.
async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(
            start.elapsed() < PATIENCE,
            "not within {PATIENCE:?}: {what}"
        );
        tokio::time::sleep(LOOK).await;
    }
}

async fn create<K>(api: &Api<K>, object: Value)
where
    K: kube::Resource + Clone + DeserializeOwned + Serialize + std::fmt::Debug,
{
    let object = serde_json::from_value(object).unwrap();
    api.create(&PostParams::default(), &object).await.unwrap();
}

fn condition(kind: &str) -> Value {
    json!({ "type": kind, "status": "True", "reason": "Drained", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z" })
}

fn status(phase: &str, rest: Value) -> Value {
    let mut status = json!({ "phase": phase, "since": "2026-01-01T00:00:00Z" });
    if let (Value::Object(status), Value::Object(rest)) = (&mut status, rest) {
        status.extend(rest);
    }
    status
}

fn handing_off() -> Value {
    let rest = json!({
        "connections": { "handedOff": 12, "open": 5 },
        "balancers": [{ "node": "lb-1", "behind": 0, "heard": true }, { "node": "lb-2", "behind": 3, "heard": true }],
        "waitsFor": ["lb-2 to acknowledge its connections"],
    });
    status("HandOff", rest)
}

fn safe() -> Value {
    let rest = json!({
        "connections": { "handedOff": 12, "open": 0 }, "waitsFor": [],
        "conditions": [condition("BalancerDrained"), condition("SafeToReboot")],
    });
    status("Drained", rest)
}

fn given_up() -> Value {
    let entry = json!({ "at": "2026-01-01T00:00:00Z", "message": "given up after 60 s" });
    status("Failed", json!({ "log": [entry] }))
}

/// A control plane with an agent on one node, and somebody who may drain.
struct World {
    plane: ControlPlane,
    drains: Api<NodeDrain>,
    kubeconfig: String,
}

impl World {
    async fn start() -> Self {
        let plane = ControlPlane::start().await.unwrap();
        let crds = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/crds");
        let mut kubectl = plane.kubectl().unwrap();
        let applied = kubectl.args(["apply", "-k", crds]).output().unwrap();
        assert!(applied.status.success(), "{applied:?}");
        let client = plane.client();
        let system = json!({ "metadata": { "name": "bowline-system" } });
        create(&Api::<Namespace>::all(client.clone()), system).await;
        let labels =
            json!({ "app.kubernetes.io/name": "bowline", "app.kubernetes.io/component": "agent" });
        let agent = json!({
            "metadata": { "name": "agent", "labels": labels },
            "spec": { "nodeName": NODE, "containers": [{ "name": "agent", "image": "i" }] },
        });
        create(
            &Api::<Pod>::namespaced(client.clone(), "bowline-system"),
            agent,
        )
        .await;
        let node =
            json!({ "metadata": { "name": NODE }, "spec": { "role": "both", "version": "0" } });
        create(&Api::<LoadBalancerNode>::all(client.clone()), node).await;
        let user = Self::operator(&plane).await;
        let kubeconfig = plane.kubeconfig(&user).unwrap();
        Self {
            drains: Api::all(client),
            kubeconfig: kubeconfig.to_str().unwrap().to_owned(),
            plane,
        }
    }

    /// Somebody with the rights that the README names, and no others.
    async fn operator(plane: &ControlPlane) -> User {
        let may = |group: &str, resources: &[&str], verbs: &[&str]| json!({ "apiGroups": [group], "resources": resources, "verbs": verbs });
        let role = json!({ "metadata": { "name": "operator" }, "rules": [
            may("", &["pods", "services"], &["list"]),
            may("bowline.dev", &["addresspools", "loadbalancernodes"], &["list"]),
            may("bowline.dev", &["nodedrains"], &["get", "list", "create", "delete"]),
            may("coordination.k8s.io", &["leases"], &["get"]),
        ]});
        create(&Api::<ClusterRole>::all(plane.client()), role).await;
        let binding = json!({
            "metadata": { "name": "operator" },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "operator" },
            "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "operator" }],
        });
        create(&Api::<ClusterRoleBinding>::all(plane.client()), binding).await;
        let user = User::Named {
            name: "operator".to_owned(),
            groups: Vec::new(),
        };
        let client = plane.client_as(&user).await.unwrap();
        let drains = Api::<NodeDrain>::all(client);
        until("the operator's rights", || async {
            drains.get_opt(NODE).await.ok()
        })
        .await;
        user
    }

    fn place(&self) -> [&str; 2] {
        ["--kubeconfig", &self.kubeconfig]
    }

    fn start_lbctl(&self, arguments: &[&str]) -> Lbctl {
        Lbctl::start(&self.place(), arguments)
    }

    /// The drain that was asked for.
    async fn asked(&self) -> NodeDrain {
        until("a NodeDrain", || async {
            let drain = self.drains.get_opt(NODE).await.unwrap();
            drain.filter(|drain| drain.status.is_none())
        })
        .await
    }

    async fn tell(&self, status: Value) {
        let patch = Patch::Merge(json!({ "status": status }));
        let params = PatchParams::default();
        self.drains
            .patch_status(NODE, &params, &patch)
            .await
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_of_a_cluster_is_drained_and_put_to_use_again() {
    let mut world = World::start().await;
    a_drain_is_followed_to_its_end(&mut world).await;
    one_that_is_there_is_joined_or_says_what_to_do(&world);
    one_that_is_interrupted_goes_on(&world).await;
    one_that_is_given_up_is_not_well(&world).await;
    a_dry_run_leaves_nothing(&world).await;
}

/// The API server may be away meanwhile.
async fn a_drain_is_followed_to_its_end(world: &mut World) {
    let wrong = run(&world.place(), &["drain", "node-7"]);
    assert_eq!(wrong.code, Some(3), "{wrong:?}");
    assert!(wrong.stderr.contains("there are: node-1"), "{wrong:?}");
    let mut lbctl = world.start_lbctl(&["-o", "json", "drain", NODE, "--wait", "--timeout", "10m"]);
    let asked = world.asked().await;
    assert_eq!(asked.spec.timeout_seconds, Some(600));
    assert!(asked.spec.requested_by.is_some());
    world.tell(handing_off()).await;
    assert_eq!(
        lbctl.line(),
        "HandOff: 12 connections handed off, acknowledged by 1 of 2 (lb-2 lacks 3), 5 open; waits for lb-2 to acknowledge its connections"
    );
    world.plane.kill_api_server();
    world.plane.start_api_server().await.unwrap();
    world.tell(safe()).await;
    let ended = lbctl.end();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let json = ended.json();
    assert_eq!(json["phase"], "Drained");
    assert_eq!(json["safe_to_reboot"], true);
    assert_eq!(json["connections"], json!({ "handed_off": 12, "open": 0 }));
}

fn one_that_is_there_is_joined_or_says_what_to_do(world: &World) {
    let same = run(
        &world.place(),
        &["drain", NODE, "--wait", "--timeout", "600s"],
    );
    assert_eq!(same.code, Some(0), "{same:?}");
    let other = run(&world.place(), &["drain", NODE]);
    assert_eq!(other.code, Some(3), "{other:?}");
    assert!(
        other.stderr.contains("--timeout 600s") && other.stderr.contains("`lbctl undrain node-1`"),
        "{other:?}"
    );
    let dry = run(&world.place(), &["drain", NODE, "--dry-run"]);
    assert_eq!(dry.code, Some(3), "{dry:?}");
    // Agents are pods that nobody runs, so not all is well; what there is to drain is told all the same.
    let all = run(&world.place(), &["-o", "json", "status"]);
    assert_eq!(all.code, Some(1), "{all:?}");
    assert_eq!(all.json()["drains"][0]["phase"], "Drained");
    let back = run(&world.place(), &["undrain", NODE, "--wait"]);
    assert_eq!(back.code, Some(0), "{back:?}");
    let again = run(&world.place(), &["undrain", NODE]);
    assert_eq!(again.code, Some(3), "{again:?}");
    assert!(again.stderr.contains("is not being drained"), "{again:?}");
}

async fn one_that_is_interrupted_goes_on(world: &World) {
    let mut lbctl = world.start_lbctl(&["drain", NODE, "--wait"]);
    world.asked().await;
    world.tell(handing_off()).await;
    assert!(lbctl.line().starts_with("HandOff"));
    lbctl.interrupt();
    let ended = lbctl.end();
    assert_eq!(ended.code, Some(4), "{ended:?}");
    assert!(ended.stdout.contains("`lbctl undrain node-1`"), "{ended:?}");
    assert!(world.drains.get_opt(NODE).await.unwrap().is_some());
    let back = run(&world.place(), &["undrain", NODE]);
    assert_eq!(back.code, Some(0), "{back:?}");
}

async fn one_that_is_given_up_is_not_well(world: &World) {
    let lbctl = world.start_lbctl(&["drain", NODE, "--wait", "--timeout", "60s"]);
    world.asked().await;
    world.tell(given_up()).await;
    let ended = lbctl.end();
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stdout.contains("given up after 60 s"), "{ended:?}");
    // It is no hindrance to the next one.
    let next = world.start_lbctl(&["drain", NODE, "--force"]);
    let asked = world.asked().await;
    assert!(asked.spec.force);
    world.tell(status("Preflight", json!({}))).await;
    assert_eq!(next.end().code, Some(0));
    assert_eq!(run(&world.place(), &["undrain", NODE]).code, Some(0));
}

async fn a_dry_run_leaves_nothing(world: &World) {
    for (blocks, code) in [(true, 1), (false, 0)] {
        let lbctl = world.start_lbctl(&["-o", "json", "drain", NODE, "--dry-run"]);
        assert!(world.asked().await.spec.dry_run);
        let finding = json!({ "blocks": blocks, "message": "nobody else announces 198.51.100.1" });
        world
            .tell(status("Preflight", json!({ "findings": [finding] })))
            .await;
        let ended = lbctl.end();
        assert_eq!(ended.code, Some(code), "{ended:?}");
        assert_eq!(ended.json()["findings"], json!([finding]));
        assert_eq!(world.drains.get_opt(NODE).await.unwrap(), None);
    }
}

/// What the manager has written for the wish that is there.
async fn tell_file(manifests: &Path, status: Value) {
    let wish = manifests.join(format!("nodedrain-{NODE}.yaml"));
    let text = until("a wish", || async { std::fs::read_to_string(&wish).ok() }).await;
    let mut drain: Value = serde_saphyr::from_str(&text).unwrap();
    drain["status"] = status;
    let drains = Outputs::below(manifests).drains();
    let beside = drains.join(".beside");
    std::fs::write(&beside, serde_saphyr::to_string(&drain).unwrap()).unwrap();
    std::fs::rename(beside, drains.join(format!("{NODE}.yaml"))).unwrap();
}

#[tokio::test]
async fn a_node_of_a_directory_is_drained_and_put_to_use_again() {
    let root = tempfile::tempdir().unwrap();
    let outputs = Outputs::below(root.path());
    outputs.create().unwrap();
    std::fs::write(outputs.nodes().join(format!("{NODE}.yaml")), "").unwrap();
    let _manager = lb_controller::source::output::lock(&outputs.manager_lock()).unwrap();
    let directory = root.path().to_str().unwrap();
    let with = |command: &'static str| vec![command, NODE, "--wait", "--manifests", directory];
    let mut lbctl = Lbctl::start(&[], &with("drain"));
    tell_file(root.path(), handing_off()).await;
    assert!(lbctl.line().starts_with("HandOff: 12 connections"));
    tell_file(root.path(), safe()).await;
    let ended = lbctl.end();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(
        ended.stdout.contains("node-1 is safe to reboot"),
        "{ended:?}"
    );
    let back = Lbctl::start(&[], &with("undrain"));
    let asked = root.path().join(format!("nodedrain-{NODE}.yaml"));
    until("the wish is gone", || async {
        (!asked.exists()).then_some(())
    })
    .await;
    std::fs::remove_file(outputs.drains().join(format!("{NODE}.yaml"))).unwrap();
    assert_eq!(back.end().code, Some(0));
}
