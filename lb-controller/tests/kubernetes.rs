//! The manager against a real API server, as its own service account with the rights that `deploy/kustomize` gives it.
//! One control plane for all, each test in a namespace of its own; each shows a row of the contract with Kubernetes.

use std::collections::BTreeMap;
use std::future::Future;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::events::v1::Event;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use lb_controller::api::address_pool::AddressPool;
use lb_controller::api::service_table::ServiceTable;
use rig::{ControlPlane, User};
use serde_json::{Value, json};

const FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";
const TABLE_FINALIZER: &str = "bowline.dev/table";
/// What must come true does so within this time, on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(30);

/// A manager, ended with the value.
struct Manager(Child);

impl Drop for Manager {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

impl Manager {
    fn start(plane: &ControlPlane, identity: &str) -> Self {
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
    fn end(mut self) {
        let pid = nix::unistd::Pid::from_raw(self.0.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        self.0.wait().unwrap();
    }
}

/// The control plane, the manager, and a place for each test.
struct World {
    plane: ControlPlane,
    manager: Option<Manager>,
    client: Client,
}

impl World {
    async fn start() -> Self {
        let plane = ControlPlane::start().await.unwrap();
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

    fn restart(&mut self) {
        if let Some(manager) = self.manager.take() {
            manager.end();
        }
        self.manager = Some(Manager::start(&self.plane, "again"));
    }

    async fn place(&self, namespace: &str) -> Place {
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

    fn log(&self) -> String {
        std::fs::read_to_string(self.plane.directory().join("manager-first.log"))
            .unwrap_or_default()
    }
}

fn apply_manifests(plane: &ControlPlane) {
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

fn apply_definitions(plane: &ControlPlane) {
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
struct Place {
    services: Api<Service>,
    tables: Api<ServiceTable>,
    slices: Api<EndpointSlice>,
    pods: Api<Pod>,
    events: Api<Event>,
}

async fn create<K>(api: &Api<K>, object: Value) -> K
where
    K: kube::Resource + Clone + serde::de::DeserializeOwned + serde::Serialize + std::fmt::Debug,
{
    let object = serde_json::from_value(object).unwrap();
    api.create(&PostParams::default(), &object).await.unwrap()
}

/// The manager's log, shown when something does not come true.
static LOG: std::sync::OnceLock<std::path::PathBuf> = std::sync::OnceLock::new();

/// Waits until something is there.
async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> T {
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
    async fn service(&self, name: &str, change: Value) -> Service {
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

    async fn endpoint(&self, service: &str, pod: &str, address: &str) {
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

    async fn patch(&self, name: &str, patch: Value) -> Service {
        self.services
            .patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .unwrap()
    }

    /// Waits for addresses.
    async fn vips(&self, name: &str) -> Vec<String> {
        until(&format!("addresses of {name}"), || async {
            let vips = vips(&self.services.get(name).await.unwrap());
            (!vips.is_empty()).then_some(vips)
        })
        .await
    }

    /// Waits for a condition with a reason.
    async fn reason(&self, name: &str, reason: &str) -> String {
        until(&format!("reason {reason} of {name}"), || async {
            let service = self.services.get(name).await.unwrap();
            conditions(&service)
                .into_iter()
                .find_map(|(_, (_, why, message))| (why == reason).then_some(message))
        })
        .await
    }

    async fn table(&self, name: &str) -> ServiceTable {
        until(&format!("table of {name}"), || async {
            self.tables.get_opt(name).await.unwrap()
        })
        .await
    }

    async fn gone(&self, name: &str) {
        until(&format!("end of {name}"), || async {
            let service = self.services.get_opt(name).await.unwrap();
            let table = self.tables.get_opt(name).await.unwrap();
            (service.is_none() && table.is_none()).then_some(())
        })
        .await;
    }

    async fn delete(&self, name: &str) {
        self.services
            .delete(name, &DeleteParams::default())
            .await
            .unwrap();
    }

    /// Reasons of Events about a Service, in order, with how often each was told.
    async fn told(&self, name: &str) -> Vec<(String, i32)> {
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

fn json_merge(object: &mut Value, change: &Value) {
    if let (Value::Object(object), Value::Object(change)) = (&mut *object, change) {
        for (key, value) in change {
            json_merge(object.entry(key).or_insert(Value::Null), value);
        }
    } else {
        *object = change.clone();
    }
}

fn vips(service: &Service) -> Vec<String> {
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

fn conditions(service: &Service) -> BTreeMap<String, (String, String, String)> {
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

fn finalizers(service: &Service) -> Vec<String> {
    service.metadata.finalizers.clone().unwrap_or_default()
}

fn programmed(service: &Service) -> Option<String> {
    Some(conditions(service).get("bowline.dev/Programmed")?.0.clone())
}

/// All rows, one after the other where they disturb the others, else at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_contract_with_kubernetes_holds() {
    let mut world = World::start().await;
    a_service_gets_an_address_a_table_events_and_loses_all_with_its_end(&world).await;
    tokio::join!(
        another_class_is_not_touched(&world),
        a_type_change_releases_and_allocates_anew(&world),
        requested_addresses(&world),
        sharing(&world),
        families(&world),
        what_others_undo_is_done_again(&world),
        a_service_of_the_same_name_is_another_one(&world),
        bad_input_never_stops_others(&world),
        ports_change_and_the_address_stays(&world),
        slices_of_any_manager_are_merged(&world),
    );
    pools_that_shrink_and_pools_that_are_wrong(&world).await;
    a_restart_changes_nothing(&mut world).await;
    the_secret_is_made(&world).await;
    two_managers_and_one_writes(&mut world).await;
    an_api_server_that_goes_away_and_forgets(&mut world).await;
}

async fn a_service_gets_an_address_a_table_events_and_loses_all_with_its_end(world: &World) {
    let place = world.place("life").await;
    place.endpoint("web", "p1", "10.1.0.1").await;
    until("leader", || async {
        world.log().contains("leads").then_some(())
    })
    .await;
    let start = Instant::now();
    place.service("web", json!({})).await;
    let vips = place.vips("web").await;
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
    eprintln!("apply to status: {:?}", start.elapsed());
    assert_eq!(vips.len(), 1, "{vips:?}");
    let service = place.services.get("web").await.unwrap();
    assert_eq!(finalizers(&service), [FINALIZER]);
    assert_eq!(programmed(&service).as_deref(), Some("True"));
    let table = place.table("web").await;
    assert_eq!(table.spec.vips[0].to_string(), vips[0]);
    assert_eq!(Some(&table.spec.service_uid), service.metadata.uid.as_ref());
    assert_eq!(table.spec.pods.len(), 1);
    assert_eq!(table.metadata.finalizers.unwrap(), [TABLE_FINALIZER]);
    assert!(service.spec.unwrap().ports.unwrap()[0].node_port.is_none());
    place.delete("web").await;
    place.gone("web").await;
    let told = until("events", || async {
        let told = place.told("web").await;
        (told.len() >= 4).then_some(told)
    })
    .await;
    let wanted = [
        "EnsuringLoadBalancer",
        "EnsuredLoadBalancer",
        "DeletingLoadBalancer",
        "DeletedLoadBalancer",
    ];
    assert_eq!(told, wanted.map(|reason| (reason.to_owned(), 1)));
}

async fn another_class_is_not_touched(world: &World) {
    let place = world.place("foreign").await;
    let spec = json!({ "spec": { "loadBalancerClass": "example.com/other" } });
    let made = place.service("other", spec).await;
    place.service("ours", json!({})).await;
    place.vips("ours").await;
    assert_eq!(place.services.get("other").await.unwrap(), made);
}

async fn a_type_change_releases_and_allocates_anew(world: &World) {
    let place = world.place("types").await;
    place.service("web", json!({})).await;
    place.vips("web").await;
    place.patch("web", json!({ "spec": { "type": "ClusterIP", "loadBalancerClass": null, "allocateLoadBalancerNodePorts": null } })).await;
    until("tear-down", || async {
        let service = place.services.get("web").await.unwrap();
        let clean = vips(&service).is_empty()
            && finalizers(&service).is_empty()
            && conditions(&service).is_empty();
        (clean && place.tables.get_opt("web").await.unwrap().is_none()).then_some(())
    })
    .await;
    place
        .patch(
            "web",
            json!({ "spec": { "type": "LoadBalancer", "loadBalancerClass": "bowline.dev/xdp" } }),
        )
        .await;
    place.vips("web").await;
    let refused = place
        .services
        .patch(
            "web",
            &PatchParams::default(),
            &Patch::Merge(json!({ "spec": { "loadBalancerClass": "example.com/x" } })),
        )
        .await;
    assert!(refused.is_err(), "the class is immutable");
}

async fn requested_addresses(world: &World) {
    let place = world.place("asked").await;
    let ask = |address: &str| json!({ "metadata": { "annotations": { "bowline.dev/addresses": address } } });
    place.service("one", ask("198.51.100.200")).await;
    assert_eq!(place.vips("one").await, ["198.51.100.200"]);
    place
        .service(
            "field",
            json!({ "spec": { "loadBalancerIP": "198.51.100.201" } }),
        )
        .await;
    assert_eq!(place.vips("field").await, ["198.51.100.201"]);
    place.service("taken", ask("198.51.100.200")).await;
    let why = place.reason("taken", "AddressTaken").await;
    assert!(why.contains("belongs to Service asked/one"), "{why}");
    place.service("outside", ask("203.0.113.1")).await;
    let why = place.reason("outside", "AddressOutsidePools").await;
    assert!(why.contains("203.0.113.1 is in no AddressPool"), "{why}");
    let told = until("a warning", || async {
        let told = place.told("outside").await;
        told.iter()
            .any(|(reason, _)| reason == "SyncLoadBalancerFailed")
            .then_some(told)
    })
    .await;
    assert!(told.iter().all(|(_, count)| *count == 1), "{told:?}");
    place.delete("one").await;
    assert_eq!(
        place.vips("taken").await,
        ["198.51.100.200"],
        "it is free now"
    );
}

async fn sharing(world: &World) {
    let place = world.place("share").await;
    let key = |port: u16| json!({ "metadata": { "annotations": { "bowline.dev/sharing-key": "k" } }, "spec": { "ports": [{ "port": port }] } });
    place.service("a", key(80)).await;
    let a = place.vips("a").await;
    place.service("b", key(443)).await;
    assert_eq!(place.vips("b").await, a);
    place.service("c", key(80)).await;
    assert_ne!(place.vips("c").await, a, "a port in common");
    let elsewhere = world.place("share-elsewhere").await;
    elsewhere.service("d", key(81)).await;
    assert_ne!(elsewhere.vips("d").await, a, "another namespace");
}

async fn families(world: &World) {
    let place = world.place("families").await;
    place.service("web", json!({})).await;
    let first = place.vips("web").await;
    place
        .patch(
            "web",
            json!({ "spec": { "ipFamilyPolicy": "RequireDualStack" } }),
        )
        .await;
    let both = until("two addresses", || async {
        let vips = vips(&place.services.get("web").await.unwrap());
        (vips.len() == 2).then_some(vips)
    })
    .await;
    assert_eq!(both[0], first[0]);
    assert!(both[1].contains(':'), "{both:?}");
    let ips = place
        .services
        .get("web")
        .await
        .unwrap()
        .spec
        .unwrap()
        .cluster_ips
        .unwrap();
    place.patch("web", json!({ "spec": { "ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4"], "clusterIPs": [ips[0]] } })).await;
    until("one address", || async {
        (vips(&place.services.get("web").await.unwrap()) == first).then_some(())
    })
    .await;
}

async fn what_others_undo_is_done_again(world: &World) {
    let place = world.place("undo").await;
    place.service("web", json!({})).await;
    let before = place.vips("web").await;
    place
        .patch("web", json!({ "metadata": { "finalizers": null } }))
        .await;
    until("finalizer again", || async {
        (finalizers(&place.services.get("web").await.unwrap()) == [FINALIZER]).then_some(())
    })
    .await;
    let wrong = json!({ "status": { "loadBalancer": { "ingress": [{ "ip": "192.0.2.77" }] }, "conditions": [] } });
    place
        .services
        .patch_status("web", &PatchParams::default(), &Patch::Merge(wrong))
        .await
        .unwrap();
    until("status again", || async {
        let service = place.services.get("web").await.unwrap();
        let ingress = service
            .status
            .as_ref()?
            .load_balancer
            .as_ref()?
            .ingress
            .as_ref()?;
        (ingress[0].ip.as_ref() == Some(&before[0]) && !conditions(&service).is_empty())
            .then_some(())
    })
    .await;
    let table = place.table("web").await;
    let wrong = json!({ "spec": { "version": table.spec.version + 7, "vips": ["192.0.2.78"] } });
    place
        .tables
        .patch("web", &PatchParams::default(), &Patch::Merge(wrong))
        .await
        .unwrap();
    until("table again", || async {
        (place.table("web").await.spec.vips == table.spec.vips).then_some(())
    })
    .await;
    place
        .tables
        .delete("web", &DeleteParams::default())
        .await
        .unwrap();
    assert_eq!(
        place.table("web").await.spec.vips,
        table.spec.vips,
        "its finalizer keeps it"
    );
    place.delete("web").await;
    place.gone("web").await;
}

async fn a_service_of_the_same_name_is_another_one(world: &World) {
    let place = world.place("again").await;
    for round in 0..3 {
        let made = place.service("web", json!({})).await;
        place.vips("web").await;
        until("its table", || async {
            (Some(place.tables.get_opt("web").await.unwrap()?.spec.service_uid)
                == made.metadata.uid)
                .then_some(())
        })
        .await;
        // Somebody strips the finalizer of a Service that ends, so that it is gone at once.
        place.delete("web").await;
        if round == 1 {
            let strip = json!({ "metadata": { "finalizers": null } });
            _ = place
                .services
                .patch("web", &PatchParams::default(), &Patch::Merge(strip))
                .await;
        }
        until("its end", || async {
            place
                .services
                .get_opt("web")
                .await
                .unwrap()
                .is_none()
                .then_some(())
        })
        .await;
    }
    place.gone("web").await;
}

async fn bad_input_never_stops_others(world: &World) {
    let place = world.place("bad").await;
    let ports: Vec<_> = (1..=300)
        .map(|n| json!({ "name": format!("p{n}"), "port": n }))
        .collect();
    place
        .service("many", json!({ "spec": { "ports": ports } }))
        .await;
    place
        .service(
            "sctp",
            json!({ "spec": { "ports": [{ "port": 9, "protocol": "SCTP" }] } }),
        )
        .await;
    place
        .service(
            "nonsense",
            json!({ "metadata": { "annotations": { "bowline.dev/addresses": "nonsense" } } }),
        )
        .await;
    // Two managers of slices that contradict each other, and one that names nobody.
    for (name, ready) in [("x", true), ("y", false)] {
        create(&place.slices, json!({
            "metadata": { "name": format!("good-{name}"), "labels": { "kubernetes.io/service-name": "good" } },
            "addressType": "IPv4",
            "ports": [{ "name": "", "port": 8080, "protocol": "TCP" }],
            "endpoints": [{ "addresses": ["10.9.0.1"], "nodeName": "n1", "conditions": { "ready": ready } }, { "addresses": ["10.9.0.2"] }],
        }))
        .await;
    }
    place.service("good", json!({})).await;
    place.vips("good").await;
    assert_eq!(
        place.table("good").await.spec.pods.len(),
        1,
        "the more serving copy, and only the one with a node"
    );
    place.vips("many").await;
    assert_eq!(
        place
            .table("many")
            .await
            .spec
            .groups
            .iter()
            .map(|group| group.ports.len())
            .sum::<usize>(),
        300
    );
    place.vips("nonsense").await;
}

async fn ports_change_and_the_address_stays(world: &World) {
    let place = world.place("ports").await;
    place.service("web", json!({})).await;
    let before = place.vips("web").await;
    let version = place.table("web").await.spec.version;
    place.patch("web", json!({ "spec": { "ports": [{ "name": "a", "port": 81 }, { "name": "b", "port": 82 }] } })).await;
    until("other ports", || async {
        (place.table("web").await.spec.version > version).then_some(())
    })
    .await;
    assert_eq!(vips(&place.services.get("web").await.unwrap()), before);
}

async fn slices_of_any_manager_are_merged(world: &World) {
    let place = world.place("slices").await;
    place.endpoint("web", "p1", "10.2.0.1").await;
    place.endpoint("web", "p2", "10.2.0.2").await;
    place.service("web", json!({})).await;
    until("two pods", || async {
        (place.table("web").await.spec.pods.len() == 2).then_some(())
    })
    .await;
    // Leaving the slices is not death, but the end of the pod is.
    place
        .slices
        .delete("web-p1", &DeleteParams::default())
        .await
        .unwrap();
    let current = |table: &ServiceTable| table.spec.groups[0].current.len();
    until("p1 lingers", || async {
        let table = place.table("web").await;
        (table.spec.version > 1 && table.spec.pods.len() == 2 && current(&table) >= 1).then_some(())
    })
    .await;
    let now = DeleteParams {
        grace_period_seconds: Some(0),
        ..DeleteParams::default()
    };
    place.pods.delete("p1", &now).await.unwrap();
    until("p1 is dead", || async {
        (place.table("web").await.spec.pods.len() == 1).then_some(())
    })
    .await;
}

async fn pools_that_shrink_and_pools_that_are_wrong(world: &World) {
    let pools = Api::<AddressPool>::all(world.client.clone());
    let place = world.place("pools").await;
    create(&pools, json!({ "metadata": { "name": "small" }, "spec": {
        "addresses": ["203.0.113.9-203.0.113.9"], "priority": 5, "serviceNamespaces": ["pools"], "autoAssign": true } })).await;
    place.service("a", json!({})).await;
    assert_eq!(
        place.vips("a").await,
        ["203.0.113.9"],
        "the higher priority"
    );
    let status = |name: &'static str, kind: &'static str| {
        let pools = pools.clone();
        async move {
            let status = pools.get(name).await.unwrap().status?;
            status
                .conditions
                .into_iter()
                .find(|c| c.type_ == kind)
                .map(|c| (c.status, c.reason))
        }
    };
    let is = |status: &str, reason: &str| Some((status.to_owned(), reason.to_owned()));
    until("its use is told", || async {
        (pools.get("small").await.unwrap().status?.assigned == 1).then_some(())
    })
    .await;
    let refused = pools
        .create(
            &PostParams::default(),
            &serde_json::from_value(
                json!({ "metadata": { "name": "bad" }, "spec": { "addresses": ["nonsense"] } }),
            )
            .unwrap(),
        )
        .await
        .unwrap_err();
    assert!(
        refused.to_string().contains("each entry must be a CIDR"),
        "{refused}"
    );
    create(
        &pools,
        json!({ "metadata": { "name": "over" }, "spec": { "addresses": ["198.51.100.128/25"] } }),
    )
    .await;
    until("the overlap is told", || async {
        (status("over", "Ready").await == is("False", "Overlapping")).then_some(())
    })
    .await;
    create(
        &pools,
        json!({ "metadata": { "name": "back" }, "spec": { "addresses": ["192.0.2.9-192.0.2.1"] } }),
    )
    .await;
    until("the mistake is told", || async {
        (status("back", "Ready").await == is("False", "AddressesInvalid")).then_some(())
    })
    .await;
    let shrink = json!({ "spec": { "addresses": ["203.0.113.10/32"] } });
    pools
        .patch("small", &PatchParams::default(), &Patch::Merge(shrink))
        .await
        .unwrap();
    until("the shrinking is told", || async {
        (status("small", "Shrunk").await == is("True", "AddressesKept")).then_some(())
    })
    .await;
    assert_eq!(place.vips("a").await, ["203.0.113.9"], "kept");
    let no_auto = json!({ "spec": { "autoAssign": false } });
    for pool in ["small", "main"] {
        pools
            .patch(pool, &PatchParams::default(), &Patch::Merge(&no_auto))
            .await
            .unwrap();
    }
    for pool in ["over", "back"] {
        pools.delete(pool, &DeleteParams::default()).await.unwrap();
    }
    until("wrong pools are gone", || async {
        (pools
            .list(&ListParams::default())
            .await
            .unwrap()
            .items
            .len()
            == 2)
            .then_some(())
    })
    .await;
    place.service("b", json!({})).await;
    place.reason("b", "NoPool").await;
    let auto = json!({ "spec": { "autoAssign": true } });
    pools
        .patch("main", &PatchParams::default(), &Patch::Merge(&auto))
        .await
        .unwrap();
    place.vips("b").await;
}

async fn a_restart_changes_nothing(world: &mut World) {
    let place = world.place("restart").await;
    for name in ["a", "b", "c"] {
        place.service(name, json!({})).await;
    }
    let mut before = Vec::new();
    for name in ["a", "b", "c"] {
        before.push((place.vips(name).await, place.table(name).await));
    }
    world.restart();
    place.service("d", json!({})).await;
    place.vips("d").await;
    for (name, (vips, table)) in ["a", "b", "c"].into_iter().zip(before) {
        assert_eq!(place.vips(name).await, vips);
        assert_eq!(place.table(name).await, table, "not even written");
    }
}

async fn the_secret_is_made(world: &World) {
    let secrets = Api::<Secret>::namespaced(world.client.clone(), "bowline-system");
    let secret = until("the secret", || async {
        secrets.get_opt("bowline-cluster").await.unwrap()
    })
    .await;
    assert_eq!(secret.data.unwrap()["hash"].0.len(), 32);
}

async fn two_managers_and_one_writes(world: &mut World) {
    let place = world.place("two").await;
    let second = Manager::start(&world.plane, "second");
    for n in 0..10 {
        place.service(&format!("s{n}"), json!({})).await;
    }
    for n in 0..10 {
        let name = format!("s{n}");
        place.vips(&name).await;
        assert_eq!(place.table(&name).await.spec.version, 1, "one writer");
    }
    // The leader is killed without a word: the other one goes on where it was.
    let before = place.vips("s0").await;
    drop(world.manager.take());
    place.service("later", json!({})).await;
    place.vips("later").await;
    assert_eq!(place.vips("s0").await, before);
    world.manager = Some(second);
}

async fn an_api_server_that_goes_away_and_forgets(world: &mut World) {
    let place = world.place("away").await;
    place.endpoint("web", "p1", "10.3.0.1").await;
    place.service("web", json!({})).await;
    let before = (place.vips("web").await, place.table("web").await);
    world.plane.kill_api_server();
    world.plane.restart_etcd().await.unwrap();
    world.plane.start_api_server().await.unwrap();
    world.plane.compact().await.unwrap();
    place.service("late", json!({})).await;
    place.vips("late").await;
    assert_eq!(
        (place.vips("web").await, place.table("web").await),
        before,
        "no flap"
    );
    place.delete("web").await;
    place.gone("web").await;
}

/// Without definitions and with a role that lacks verbs: each is said by name, and the rest goes on.
#[tokio::test]
async fn missing_definitions_and_permissions_are_said_by_name() {
    let plane = ControlPlane::start().await.unwrap();
    _ = LOG.set(plane.directory().to_owned());
    let path = plane.directory().join("manager-bare.log");
    let _manager = Manager::start(&plane, "bare");
    let says = async |sentence: &'static str| {
        until(sentence, || async {
            let log = std::fs::read_to_string(&path).unwrap_or_default();
            log.contains(sentence).then_some(())
        })
        .await;
    };
    says("permission is missing: verb watch on services").await;
    says("permission is missing: verb watch on endpointslices.discovery.k8s.io").await;
    says("the lease can not be had").await;
    let access = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../deploy/kustomize/manager-access.yaml"
    );
    for arguments in [
        &["create", "namespace", "bowline-system"][..],
        &["apply", "-n", "bowline-system", "-f", access],
    ] {
        let output = plane.kubectl().unwrap().args(arguments).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    says("the definition of addresspools.bowline.dev is missing; apply deploy/crds").await;
    apply_definitions(&plane);
    says("kubernetes: leads").await;
}
