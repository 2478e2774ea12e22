//! A control plane, managers, and a namespace for each test.

use std::collections::BTreeMap;
use std::future::Future;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::events::v1::Event;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use lb_controller::api::address_pool::AddressPool;
use lb_controller::api::service_table::ServiceTable;
use rig::{ControlPlane, Options, User};
use serde_json::{Value, json};

pub(crate) const FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";
pub(crate) const TABLE_FINALIZER: &str = "bowline.dev/table";
/// What must come true does so within this time, on a machine that is busy with other tests.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A manager, ended with the value.
pub(crate) struct Manager(Child);

impl Drop for Manager {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

impl Manager {
    pub(crate) fn start(plane: &ControlPlane, identity: &str) -> Self {
        let user = User::service_account("bowline-system", "bowline-manager");
        let kubeconfig = plane.kubeconfig(&user).unwrap();
        let log = std::fs::File::create(plane.directory().join(format!("manager-{identity}.log")))
            .unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_lb-controller"))
            .args([
                "manager",
                "--namespace",
                "bowline-system",
                "--identity",
                identity,
                "--drain-on",
                "label,taint,shutdown",
            ])
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .stderr(log)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }

    /// Asks it to end, as a kubelet does.
    pub(crate) fn end(mut self) {
        let pid = nix::unistd::Pid::from_raw(self.0.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        self.0.wait().unwrap();
    }
}

/// The control plane, the manager, and a place for each test.
pub(crate) struct World {
    pub(crate) plane: ControlPlane,
    pub(crate) manager: Option<Manager>,
    pub(crate) client: Client,
}

impl World {
    pub(crate) async fn start() -> Self {
        Self::start_with(Options::default()).await
    }

    pub(crate) async fn start_with(options: Options) -> Self {
        let plane = ControlPlane::start_with(options).await.unwrap();
        let client = plane.client();
        apply_manifests(&plane);
        _ = LOG.set(plane.directory().to_owned());
        let world = Self {
            manager: Some(Manager::start(&plane, "first")),
            plane,
            client,
        };
        let nodes = Api::<Node>::all(world.client.clone());
        create(&nodes, json!({ "metadata": { "name": "n1" } })).await;
        let pools = Api::<AddressPool>::all(world.client.clone());
        create(&pools, json!({ "metadata": { "name": "main" }, "spec": { "addresses": ["198.51.100.0/24", "2001:db8::/120"] } })).await;
        world
    }

    pub(crate) fn restart(&mut self) {
        if let Some(manager) = self.manager.take() {
            manager.end();
        }
        self.manager = Some(Manager::start(&self.plane, "again"));
    }

    pub(crate) async fn place(&self, namespace: &str) -> Place {
        let namespaces = Api::<Namespace>::all(self.client.clone());
        create(&namespaces, json!({ "metadata": { "name": namespace } })).await;
        Place {
            services: Api::namespaced(self.client.clone(), namespace),
            tables: Api::namespaced(self.client.clone(), namespace),
            slices: Api::namespaced(self.client.clone(), namespace),
            pods: Api::namespaced(self.client.clone(), namespace),
            events: Api::namespaced(self.client.clone(), namespace),
        }
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.plane.directory().join("manager-first.log"))
            .unwrap_or_default()
    }
}

pub(crate) fn apply_manifests(plane: &ControlPlane) {
    let deploy = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy");
    let apply = |arguments: &[&str]| {
        let output = plane.kubectl().unwrap().args(arguments).output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    apply_definitions(plane);
    apply(&["create", "namespace", "bowline-system"]);
    apply(&[
        "apply",
        "-n",
        "bowline-system",
        "-f",
        &format!("{deploy}/kustomize/manager-access.yaml"),
    ]);
}

pub(crate) fn apply_definitions(plane: &ControlPlane) {
    let crds = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/crds");
    let output = plane
        .kubectl()
        .unwrap()
        .args(["apply", "-k", crds])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// One namespace.
pub(crate) struct Place {
    pub(crate) services: Api<Service>,
    pub(crate) tables: Api<ServiceTable>,
    pub(crate) slices: Api<EndpointSlice>,
    pub(crate) pods: Api<Pod>,
    pub(crate) events: Api<Event>,
}

pub(crate) async fn create<K>(api: &Api<K>, object: Value) -> K
where
    K: kube::Resource + Clone + serde::de::DeserializeOwned + serde::Serialize + std::fmt::Debug,
{
    let object = serde_json::from_value(object).unwrap();
    api.create(&PostParams::default(), &object).await.unwrap()
}

/// The manager's log, shown when something does not come true.
pub(crate) static LOG: std::sync::OnceLock<std::path::PathBuf> = std::sync::OnceLock::new();

/// Waits until something is there.
pub(crate) async fn until<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut look: impl FnMut() -> F,
) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        if start.elapsed() > PATIENCE {
            for entry in std::fs::read_dir(LOG.get().unwrap()).unwrap() {
                let path = entry.unwrap().path();
                if path.extension().is_some_and(|e| e == "log")
                    && path.to_string_lossy().contains("manager-")
                {
                    eprintln!(
                        "{}:
{}",
                        path.display(),
                        std::fs::read_to_string(&path).unwrap()
                    );
                }
            }
            panic!("not within {PATIENCE:?}: {what}");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

impl Place {
    pub(crate) async fn service(&self, name: &str, change: Value) -> Service {
        let mut object = json!({
            "metadata": { "name": name },
            "spec": {
                "type": "LoadBalancer",
                "loadBalancerClass": "bowline.dev/xdp",
                "allocateLoadBalancerNodePorts": false,
                "selector": { "app": name },
                "ports": [{ "port": 80 }],
            },
        });
        json_merge(&mut object, &change);
        create(&self.services, object).await
    }

    pub(crate) async fn endpoint(&self, service: &str, pod: &str, address: &str) {
        let made = create(
            &self.pods,
            json!({
                "metadata": { "name": pod },
                "spec": { "nodeName": "n1", "containers": [{ "name": "c", "image": "i" }] },
            }),
        )
        .await;
        create(&self.slices, json!({
            "metadata": { "name": format!("{service}-{pod}"), "labels": { "kubernetes.io/service-name": service } },
            "addressType": "IPv4",
            "ports": [{ "name": "", "port": 8080, "protocol": "TCP" }],
            "endpoints": [{
                "addresses": [address],
                "nodeName": "n1",
                "conditions": { "ready": true },
                "targetRef": { "kind": "Pod", "name": pod, "uid": made.metadata.uid },
            }],
        }))
        .await;
    }

    pub(crate) async fn patch(&self, name: &str, patch: Value) -> Service {
        self.services
            .patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .unwrap()
    }

    /// Waits for addresses.
    pub(crate) async fn vips(&self, name: &str) -> Vec<String> {
        until(&format!("addresses of {name}"), || async {
            let vips = vips(&self.services.get(name).await.unwrap());
            (!vips.is_empty()).then_some(vips)
        })
        .await
    }

    /// Waits for a condition with a reason.
    pub(crate) async fn reason(&self, name: &str, reason: &str) -> String {
        until(&format!("reason {reason} of {name}"), || async {
            let service = self.services.get(name).await.unwrap();
            conditions(&service)
                .into_iter()
                .find_map(|(_, (_, why, message))| (why == reason).then_some(message))
        })
        .await
    }

    pub(crate) async fn table(&self, name: &str) -> ServiceTable {
        until(&format!("table of {name}"), || async {
            self.tables.get_opt(name).await.unwrap()
        })
        .await
    }

    pub(crate) async fn gone(&self, name: &str) {
        until(&format!("end of {name}"), || async {
            let service = self.services.get_opt(name).await.unwrap();
            let table = self.tables.get_opt(name).await.unwrap();
            (service.is_none() && table.is_none()).then_some(())
        })
        .await;
    }

    pub(crate) async fn delete(&self, name: &str) {
        self.services
            .delete(name, &DeleteParams::default())
            .await
            .unwrap();
    }

    /// Reasons of Events about a Service, in order, with how often each was told.
    pub(crate) async fn told(&self, name: &str) -> Vec<(String, i32)> {
        let events = self.events.list(&ListParams::default()).await.unwrap();
        let mut events: Vec<_> = events
            .into_iter()
            .filter(|event| event.regarding.as_ref().and_then(|r| r.name.as_deref()) == Some(name))
            .collect();
        events.sort_by_key(|event| event.event_time.clone().map(|time| time.0));
        let told = |event: Event| {
            (
                event.reason.unwrap_or_default(),
                event.series.map_or(1, |series| series.count),
            )
        };
        events.into_iter().map(told).collect()
    }
}

pub(crate) fn json_merge(object: &mut Value, change: &Value) {
    if let (Value::Object(object), Value::Object(change)) = (&mut *object, change) {
        for (key, value) in change {
            json_merge(object.entry(key).or_insert(Value::Null), value);
        }
    } else {
        *object = change.clone();
    }
}

pub(crate) fn vips(service: &Service) -> Vec<String> {
    let balancer = service
        .status
        .as_ref()
        .and_then(|status| status.load_balancer.as_ref());
    let ingress = balancer
        .and_then(|balancer| balancer.ingress.clone())
        .unwrap_or_default();
    assert!(
        ingress.iter().all(|i| i.ip_mode.as_deref() == Some("VIP")),
        "{ingress:?}"
    );
    ingress
        .into_iter()
        .filter_map(|ingress| ingress.ip)
        .collect()
}

pub(crate) fn conditions(service: &Service) -> BTreeMap<String, (String, String, String)> {
    let conditions = service
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    conditions
        .map(|c| {
            (
                c.type_.clone(),
                (c.status.clone(), c.reason.clone(), c.message.clone()),
            )
        })
        .collect()
}

pub(crate) fn finalizers(service: &Service) -> Vec<String> {
    service.metadata.finalizers.clone().unwrap_or_default()
}

pub(crate) fn programmed(service: &Service) -> Option<String> {
    Some(conditions(service).get("bowline.dev/Programmed")?.0.clone())
}
