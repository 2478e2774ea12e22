//! Every verb of both roles in `deploy/kustomize`, the test that needs it, and a run without it that fails there. One
//! file: it is one table, and how its rows are tried.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::time::Duration;

use k8s_openapi::api::authorization::v1::SubjectAccessReview;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Secret, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, Client, Resource};
use lb_controller::announce::facts::EXCLUDE_LABEL;
use lb_controller::api::address_pool::AddressPool;
use lb_controller::api::bgp_advertisement::BGPAdvertisement;
use lb_controller::api::bgp_peer::BGPPeer;
use lb_controller::api::l2_advertisement::L2Advertisement;
use lb_controller::api::load_balancer_node::{LoadBalancerNode, LoadBalancerNodeSpec};
use lb_controller::api::node_drain::NodeDrain;
use lb_controller::source::kubernetes::{self, EVENTS_MAX, Wanted, follow};
use rig::{ControlPlane, Options, User};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::world::{LOG, Manager, Place, World, apply_definitions, apply_manifests, create, until};

const SYSTEM: &str = "bowline-system";

/// Who shows that a verb is needed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Shown {
    /// [`watches_and_lists`].
    Watch,
    /// [`watches_and_lists`], with an API server that does not stream lists.
    List,
    /// [`writes`].
    Write,
    /// [`node_objects`].
    Node,
}
use Shown::{List, Node, Watch, Write};

/// A resource as rules name it, with its group behind it, and the verbs on it.
type Rows = &'static [(&'static str, &'static [(&'static str, Shown)])];

const READ: &[(&str, Shown)] = &[("list", List), ("watch", Watch)];

const MANAGER: Rows = &[
    (
        "services",
        &[("list", List), ("watch", Watch), ("patch", Write)],
    ),
    ("services/status", &[("patch", Write)]),
    ("nodes", READ),
    ("pods", READ),
    ("namespaces", READ),
    ("endpointslices.discovery.k8s.io", READ),
    ("addresspools.bowline.dev", READ),
    ("addresspools/status.bowline.dev", &[("patch", Write)]),
    ("l2advertisements.bowline.dev", READ),
    ("l2advertisements/status.bowline.dev", &[("patch", Write)]),
    ("bgppeers.bowline.dev", READ),
    ("bgppeers/status.bowline.dev", &[("patch", Write)]),
    ("bgpadvertisements.bowline.dev", READ),
    ("bgpadvertisements/status.bowline.dev", &[("patch", Write)]),
    (
        "nodedrains.bowline.dev",
        &[
            ("list", List),
            ("watch", Watch),
            ("create", Write),
            ("delete", Write),
        ],
    ),
    ("nodedrains/status.bowline.dev", &[("patch", Write)]),
    ("loadbalancernodes.bowline.dev", READ),
    (
        "servicetables.bowline.dev",
        &[
            ("list", List),
            ("watch", Watch),
            ("create", Write),
            ("update", Write),
            ("delete", Write),
        ],
    ),
    (
        "events.events.k8s.io",
        &[("create", Write), ("patch", Write)],
    ),
    (
        "leases.coordination.k8s.io",
        &[("create", Write), ("get", Write), ("update", Write)],
    ),
    ("secrets", &[("create", Write), ("get", Write)]),
];

const AGENT: Rows = &[
    ("services", READ),
    ("nodes", READ),
    ("endpointslices.discovery.k8s.io", READ),
    ("pods", READ),
    ("servicetables.bowline.dev", READ),
    ("l2advertisements.bowline.dev", READ),
    ("bgppeers.bowline.dev", READ),
    ("bgpadvertisements.bowline.dev", READ),
    ("addresspools.bowline.dev", READ),
    ("nodedrains.bowline.dev", READ),
    (
        "loadbalancernodes.bowline.dev",
        &[
            ("list", List),
            ("watch", Watch),
            ("create", Node),
            ("patch", Node),
        ],
    ),
    ("secrets", READ),
];

/// The documents of a file in `deploy/kustomize`.
fn manifests(who: &str) -> Vec<Value> {
    let path = format!(
        "{}/../deploy/kustomize/{who}-access.yaml",
        env!("CARGO_MANIFEST_DIR")
    );
    let text = std::fs::read_to_string(path).unwrap();
    serde_saphyr::from_multiple(&text).unwrap()
}

fn strings(value: &Value) -> Vec<String> {
    serde_json::from_value(value.clone()).unwrap()
}

/// Resources and verbs of a rule.
fn grants(rule: &Value) -> Vec<(String, String)> {
    let mut grants = Vec::new();
    for group in strings(&rule["apiGroups"]) {
        for resource in strings(&rule["resources"]) {
            for verb in strings(&rule["verbs"]) {
                let dot = if group.is_empty() { "" } else { "." };
                grants.push((format!("{resource}{dot}{group}"), verb));
            }
        }
    }
    grants
}

fn rows(table: Rows) -> impl Iterator<Item = (&'static str, &'static str, Shown)> {
    table
        .iter()
        .flat_map(|(resource, verbs)| verbs.iter().map(|(verb, shown)| (*resource, *verb, *shown)))
}

#[test]
fn every_verb_of_both_roles_has_a_test_that_needs_it() {
    for (who, table) in [("manager", MANAGER), ("agent", AGENT)] {
        let documents = manifests(who);
        let rules = documents
            .iter()
            .flat_map(|document| document["rules"].as_array().into_iter().flatten());
        let granted: BTreeSet<_> = rules.flat_map(grants).collect();
        let tested: BTreeSet<_> = rows(table)
            .map(|(resource, verb, _)| (resource.to_owned(), verb.to_owned()))
            .collect();
        assert_eq!(granted, tested, "role of the {who}");
    }
}

/// The rules without one verb. A rule of several resources falls apart.
fn without(rules: &[Value], resource: &str, verb: &str) -> Vec<Value> {
    let mut rest = Vec::new();
    for rule in rules {
        for one in strings(&rule["resources"]) {
            let mut rule = rule.clone();
            rule["resources"] = json!([one]);
            let kept: Vec<_> = grants(&rule)
                .into_iter()
                .filter(|grant| *grant != (resource.to_owned(), verb.to_owned()))
                .map(|(_, verb)| verb)
                .collect();
            if !kept.is_empty() {
                rule["verbs"] = json!(kept);
                rest.push(rule);
            }
        }
    }
    rest
}

/// A service account with the rights of a role but for one verb.
async fn account(client: &Client, name: &str, who: &str, resource: &str, verb: &str) -> User {
    let accounts = Api::<ServiceAccount>::namespaced(client.clone(), SYSTEM);
    create(&accounts, json!({ "metadata": { "name": name } })).await;
    let subjects = json!([{ "kind": "ServiceAccount", "name": name, "namespace": SYSTEM }]);
    for document in manifests(who) {
        let Some(rules) = document["rules"].as_array() else {
            continue;
        };
        let rules = without(rules, resource, verb);
        let role = json!({ "metadata": { "name": name }, "rules": rules });
        let reference = json!({ "apiGroup": "rbac.authorization.k8s.io", "kind": document["kind"], "name": name });
        let binding =
            json!({ "metadata": { "name": name }, "roleRef": reference, "subjects": subjects });
        if document["kind"] == "Role" {
            create(&Api::<Role>::namespaced(client.clone(), SYSTEM), role).await;
            create(
                &Api::<RoleBinding>::namespaced(client.clone(), SYSTEM),
                binding,
            )
            .await;
        } else {
            create(&Api::<ClusterRole>::all(client.clone()), role).await;
            create(&Api::<ClusterRoleBinding>::all(client.clone()), binding).await;
        }
    }
    User::service_account(SYSTEM, name)
}

/// Follows everything as a manager or an agent does, without one verb, and waits until that is said.
async fn missed(plane: &ControlPlane, who: &str, resource: &str, verb: &str) {
    let wanted = match who {
        "agent" => kubernetes::agent("n1", SYSTEM),
        _ => kubernetes::manager(),
    };
    let name = format!("{who}-{verb}-{}", resource.replace(['.', '/'], "-"));
    let user = account(&plane.client(), &name, who, resource, verb).await;
    let client = plane.client_as(&user).await.unwrap();
    let (sender, mut events) = mpsc::channel(EVENTS_MAX);
    let stop = CancellationToken::new();
    let (watches, _tasks) = follow(&client, wanted, &sender, &stop);
    tokio::spawn(async move { while events.recv().await.is_some() {} });
    let sentence = format!("permission is missing: verb {verb} on {resource}");
    // Rights take a moment to arrive; what is missing then is missing for good.
    until(&format!("{who}: {sentence}"), || async {
        let states = watches.states();
        let settled = states
            .iter()
            .all(|(wanted, state)| state.listed || wanted.resource() == resource);
        let errors = watches.errors();
        let said = |(wanted, error): &(Wanted, String)| {
            wanted.resource() == resource && error.starts_with(&sentence)
        };
        (settled && errors.len() == 1 && errors.iter().all(said)).then_some(())
    })
    .await;
    stop.cancel();
}

async fn watches_and_lists(plane: &ControlPlane, wanted: Shown) {
    let mut runs = Vec::new();
    for (who, table) in [("manager", MANAGER), ("agent", AGENT)] {
        for (resource, verb, shown) in rows(table) {
            if shown == wanted {
                runs.push(missed(plane, who, resource, verb));
            }
        }
    }
    futures::future::join_all(runs).await;
}

/// What an agent writes: its own object, by server-side apply.
async fn node_objects(plane: &ControlPlane) {
    for (verb, there) in [("create", false), ("patch", true)] {
        let resource = "loadbalancernodes.bowline.dev";
        let user = account(
            &plane.client(),
            &format!("node-{verb}"),
            "agent",
            resource,
            verb,
        )
        .await;
        let nodes = Api::<LoadBalancerNode>::all(plane.client_as(&user).await.unwrap());
        let spec: LoadBalancerNodeSpec =
            serde_json::from_value(json!({ "role": "both", "version": "0" })).unwrap();
        let object = LoadBalancerNode::new("n1", spec);
        let write = PatchParams::apply("bowline-agent").force();
        if there {
            let all = Api::<LoadBalancerNode>::all(plane.client());
            all.patch("n1", &write, &Patch::Apply(&object))
                .await
                .unwrap();
        }
        until(&format!("no {verb} of {resource}"), || async {
            match nodes.patch("n1", &write, &Patch::Apply(&object)).await {
                Err(kube::Error::Api(status)) => status
                    .message
                    .contains(&format!("cannot {verb} resource"))
                    .then_some(()),
                Err(error) => panic!("{error}"),
                Ok(_) => panic!("written without verb {verb}"),
            }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_verb_somebody_says_which_is_missing() {
    let plane = ControlPlane::start().await.unwrap();
    _ = LOG.set(plane.directory().to_owned());
    apply_manifests(&plane);
    watches_and_lists(&plane, Watch).await;
    node_objects(&plane).await;
    let old = ControlPlane::start_with(Options {
        api_server: vec!["--feature-gates=WatchList=false".to_owned()],
        ..Options::default()
    });
    let old = old.await.unwrap();
    apply_definitions(&old);
    let system = json!({ "metadata": { "name": SYSTEM } });
    create(&Api::<Namespace>::all(old.client()), system).await;
    watches_and_lists(&old, List).await;
}

/// The manager's own role, changed under its feet.
struct Rights<'a> {
    world: &'a World,
    /// How much of the log was there before.
    seen: usize,
}

impl<'a> Rights<'a> {
    /// Takes a verb away, and waits until the API server knows.
    async fn take(world: &'a World, resource: &str, verb: &str) -> Self {
        Self::set(world, |rules| without(rules, resource, verb)).await;
        let (name, group) = resource.split_once('.').unwrap_or((resource, ""));
        let (name, subresource) = name.split_once('/').unwrap_or((name, ""));
        let named = match name {
            "leases" => "bowline-manager",
            "secrets" => "bowline-cluster",
            _ => "",
        };
        let reviews = Api::<SubjectAccessReview>::all(world.client.clone());
        until(&format!("no right to {verb} {resource}"), || async {
            let review = create(
                &reviews,
                json!({ "metadata": {}, "spec": {
                    "user": format!("system:serviceaccount:{SYSTEM}:bowline-manager"),
                    "resourceAttributes": {
                        "group": group, "resource": name, "subresource": subresource, "verb": verb,
                        "namespace": SYSTEM, "name": named,
                    },
                }}),
            )
            .await;
            (!review.status.unwrap().allowed).then_some(())
        })
        .await;
        Self {
            world,
            seen: world.log().len(),
        }
    }

    async fn set(world: &World, change: impl Fn(&[Value]) -> Vec<Value>) {
        for document in manifests("manager") {
            let Some(rules) = document["rules"].as_array() else {
                continue;
            };
            let patch = Patch::Merge(json!({ "rules": change(rules) }));
            let params = PatchParams::default();
            if document["kind"] == "Role" {
                Api::<Role>::namespaced(world.client.clone(), SYSTEM)
                    .patch("bowline-manager", &params, &patch)
                    .await
                    .unwrap();
            } else {
                Api::<ClusterRole>::all(world.client.clone())
                    .patch("bowline-manager", &params, &patch)
                    .await
                    .unwrap();
            }
        }
    }

    /// Waits for a sentence in the log.
    async fn says(&self, sentence: &str) {
        until(sentence, || async {
            let log = self.world.log();
            log[self.seen..].contains(sentence).then_some(())
        })
        .await;
    }

    /// Gives it back.
    async fn give_back(self) {
        Self::set(self.world, <[Value]>::to_vec).await;
    }
}

/// Each verb that the manager writes with: without it the failure is said, with it the write comes true.
pub(crate) async fn writes(world: &mut World) {
    let place = world.place("rights").await;
    place.endpoint("web", "p1", "10.8.0.1").await;
    objects(world, &place).await;
    statuses(world).await;
    drains(world).await;
    events(world, &place).await;
    leases(world).await;
    secrets(world).await;
}

async fn objects(world: &World, place: &Place) {
    let tables = "servicetables.bowline.dev";
    let missing =
        |verb: &str, resource: &str| format!("permission is missing: verb {verb} on {resource}");
    for (name, resource, verb) in [
        ("a", "services", "patch"),
        ("b", "services/status", "patch"),
        ("c", tables, "create"),
    ] {
        let rights = Rights::take(world, resource, verb).await;
        place.service(name, json!({})).await;
        rights.says(&missing(verb, resource)).await;
        rights.give_back().await;
        place.vips(name).await;
    }
    let rights = Rights::take(world, tables, "update").await;
    let version = place.table("a").await.spec.version;
    place
        .patch("a", json!({ "spec": { "ports": [{ "port": 81 }] } }))
        .await;
    rights.says(&missing("update", tables)).await;
    rights.give_back().await;
    until("other ports", || async {
        (place.table("a").await.spec.version > version).then_some(())
    })
    .await;
    let rights = Rights::take(world, tables, "delete").await;
    place.delete("a").await;
    rights.says(&missing("delete", tables)).await;
    rights.give_back().await;
    place.gone("a").await;
}

async fn statuses(world: &World) {
    let pools = Api::<AddressPool>::all(world.client.clone());
    let pool = json!({ "metadata": { "name": "untold" }, "spec": { "addresses": ["203.0.113.200/32"], "autoAssign": false } });
    let has_status = |pool: AddressPool| pool.status.is_some();
    status(world, &pools, pool, has_status).await;
    let advertisements = Api::<L2Advertisement>::all(world.client.clone());
    let advertisement = json!({ "metadata": { "name": "untold" }, "spec": { "pools": ["main"] } });
    let has_status = |advertisement: L2Advertisement| advertisement.status.is_some();
    status(world, &advertisements, advertisement, has_status).await;
    let advertisements = Api::<BGPAdvertisement>::all(world.client.clone());
    let advertisement = json!({ "metadata": { "name": "untold" }, "spec": { "pools": ["main"] } });
    let has_status = |advertisement: BGPAdvertisement| advertisement.status.is_some();
    status(world, &advertisements, advertisement, has_status).await;
    let peers = Api::<BGPPeer>::all(world.client.clone());
    let spec = json!({ "peerAddress": "192.0.2.1", "peerASN": 64500, "myASN": 64501 });
    let peer = json!({ "metadata": { "name": "untold" }, "spec": spec });
    status(world, &peers, peer, |peer| peer.status.is_some()).await;
    // Refused, since this manager hands nothing off; that is said like everything else.
    let drains = Api::<NodeDrain>::all(world.client.clone());
    let drain = json!({ "metadata": { "name": "untold" }, "spec": {} });
    status(world, &drains, drain, |drain| drain.status.is_some()).await;
}

/// A Node asks for its drain by a label, and takes it back.
async fn drains(world: &World) {
    let nodes = Api::<k8s_openapi::api::core::v1::Node>::all(world.client.clone());
    let balancers = Api::<LoadBalancerNode>::all(world.client.clone());
    let drains = Api::<NodeDrain>::all(world.client.clone());
    create(&nodes, json!({ "metadata": { "name": "leaver" } })).await;
    let spec = json!({ "role": "both", "version": "0" });
    let balancer = json!({ "metadata": { "name": "leaver" }, "spec": spec });
    create(&balancers, balancer).await;
    let resource = "nodedrains.bowline.dev";
    for (verb, label) in [("create", json!("")), ("delete", Value::Null)] {
        let rights = Rights::take(world, resource, verb).await;
        let label = json!({ "metadata": { "labels": { EXCLUDE_LABEL: label } } });
        let params = PatchParams::default();
        nodes
            .patch("leaver", &params, &Patch::Merge(label))
            .await
            .unwrap();
        rights
            .says(&format!("permission is missing: verb {verb} on {resource}"))
            .await;
        rights.give_back().await;
        until("the drain as the label has it", || async {
            let drain = drains.get_opt("leaver").await.unwrap();
            (drain.is_some() == (verb == "create")).then_some(())
        })
        .await;
    }
    let params = DeleteParams::default();
    balancers.delete("leaver", &params).await.unwrap();
    nodes.delete("leaver", &params).await.unwrap();
}

/// The status of an object of our own, which is gone afterwards.
async fn status<K>(world: &World, api: &Api<K>, object: Value, has_status: fn(K) -> bool)
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Serialize + Debug,
{
    let resource = format!("{}/status.bowline.dev", K::plural(&()));
    let rights = Rights::take(world, &resource, "patch").await;
    create(api, object).await;
    let why = format!("permission is missing: verb patch on {resource}");
    rights
        .says(&format!("status can not be written: {why}"))
        .await;
    rights.give_back().await;
    until(&format!("{resource} is written"), || async {
        has_status(api.get("untold").await.unwrap()).then_some(())
    })
    .await;
    api.delete("untold", &DeleteParams::default())
        .await
        .unwrap();
}

/// Events are lost rather than waited for: those of the time without the verb are not there, later ones are.
async fn events(world: &World, place: &Place) {
    let rights = Rights::take(world, "events.events.k8s.io", "create").await;
    place.service("mute", json!({})).await;
    place.vips("mute").await;
    // Events are told one after the other, so what comes next shows that those before were tried.
    tokio::time::sleep(Duration::from_millis(500)).await;
    rights.give_back().await;
    let told = async |name: &str, wanted: (&str, i32)| {
        until(&format!("{wanted:?} of {name}"), || async {
            let told = place.told(name).await;
            let is = |(reason, count): &(String, i32)| (reason.as_str(), *count) == wanted;
            told.iter().any(is).then_some(told.clone())
        })
        .await
    };
    place.service("loud", json!({})).await;
    told("loud", ("EnsuredLoadBalancer", 1)).await;
    assert_eq!(place.told("mute").await, []);
    // One that is told again is patched.
    let asked =
        |vip: &str| json!({ "metadata": { "annotations": { "bowline.dev/addresses": vip } } });
    place.patch("loud", asked("198.51.100.220")).await;
    told("loud", ("UpdatedLoadBalancer", 1)).await;
    let rights = Rights::take(world, "events.events.k8s.io", "patch").await;
    place.patch("loud", asked("198.51.100.221")).await;
    until("the address", || async {
        (place.vips("loud").await == ["198.51.100.221"]).then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    told("loud", ("UpdatedLoadBalancer", 1)).await;
    rights.give_back().await;
    place.patch("loud", asked("198.51.100.222")).await;
    until("it is told again", || async {
        let told = place.told("loud").await;
        let again = |(reason, count): &(String, i32)| reason == "UpdatedLoadBalancer" && *count > 1;
        told.iter().any(again).then_some(())
    })
    .await;
}

async fn leases(world: &World) {
    let leases = Api::<Lease>::namespaced(world.client.clone(), SYSTEM);
    for verb in ["get", "update", "create"] {
        let rights = Rights::take(world, "leases.coordination.k8s.io", verb).await;
        if verb == "create" {
            let gone = DeleteParams::default();
            leases.delete("bowline-manager", &gone).await.unwrap();
        }
        rights
            .says(&format!("cannot {verb} resource \"leases\""))
            .await;
        rights.give_back().await;
    }
    until("the lease", || async {
        let lease = leases.get_opt("bowline-manager").await.unwrap()?;
        lease.spec?.holder_identity
    })
    .await;
}

async fn secrets(world: &mut World) {
    let secrets = Api::<Secret>::namespaced(world.client.clone(), SYSTEM);
    for verb in ["get", "create"] {
        if let Some(manager) = world.manager.take() {
            manager.end();
        }
        if verb == "create" {
            let gone = DeleteParams::default();
            secrets.delete("bowline-cluster", &gone).await.unwrap();
        }
        let rights = Rights::take(world, "secrets", verb).await;
        let identity = format!("without-{verb}");
        let manager = Manager::start(&world.plane, &identity);
        let path = world
            .plane
            .directory()
            .join(format!("manager-{identity}.log"));
        let sentence = format!("cannot {verb} resource \"secrets\"");
        until(&sentence, || async {
            let log = std::fs::read_to_string(&path).unwrap_or_default();
            log.contains(&sentence).then_some(())
        })
        .await;
        rights.give_back().await;
        until("the secret", || async {
            secrets.get_opt("bowline-cluster").await.unwrap()
        })
        .await;
        world.manager = Some(manager);
    }
}
