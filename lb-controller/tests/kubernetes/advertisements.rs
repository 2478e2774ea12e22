//! Rows of the contract about advertisements: what is wrong with one is told there, and nowhere else.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use lb_controller::api::l2_advertisement::L2Advertisement;
use lb_controller::api::load_balancer_node::LoadBalancerNode;
use serde_json::{Value, json};

use crate::world::{World, create, until};

/// A time that no manager of today writes.
const LONG_AGO: &str = "2020-02-02T02:02:02Z";

struct Advertisements(Api<L2Advertisement>);

impl Advertisements {
    async fn create(&self, name: &str, spec: Value) {
        create(
            &self.0,
            json!({ "metadata": { "name": name }, "spec": spec }),
        )
        .await;
    }

    async fn patch(&self, name: &str, spec: Value) {
        let patch = Patch::Merge(json!({ "spec": spec }));
        let params = PatchParams::default();
        self.0.patch(name, &params, &patch).await.unwrap();
    }

    /// Waits for a reason that is about the object as it is now.
    async fn ready(&self, name: &str, status: &str, reason: &str) -> Condition {
        until(&format!("{name} is ready: {status}, {reason}"), || async {
            let object = self.0.get(name).await.unwrap();
            let [ready] = &object.status?.conditions[..] else {
                return None;
            };
            let is = ready.type_ == "Ready" && ready.status == status && ready.reason == reason;
            (is && ready.observed_generation == object.metadata.generation).then(|| ready.clone())
        })
        .await
    }

    /// Makes its condition an old one, and waits until the manager has corrected what it says.
    async fn backdate(&self, name: &str, status: &str, reason: &str) -> Condition {
        let condition = json!({
            "type": "Ready", "status": status, "reason": "Before", "message": "", "lastTransitionTime": LONG_AGO,
        });
        let patch = Patch::Merge(json!({ "status": { "conditions": [condition] } }));
        let params = PatchParams::default();
        self.0.patch_status(name, &params, &patch).await.unwrap();
        self.ready(name, status, reason).await
    }
}

fn is_old(condition: &Condition) -> bool {
    condition.last_transition_time.0 == LONG_AGO.parse().unwrap()
}

pub(crate) async fn wrong_ones_say_why_and_since_when(world: &World) {
    let nodes = Api::<LoadBalancerNode>::all(world.client.clone());
    let all = Advertisements(Api::all(world.client.clone()));
    // Nobody can announce yet.
    all.create("good", json!({ "pools": ["main"] })).await;
    all.ready("good", "False", "NoAnnouncer").await;
    let interface = |name: &str| json!({ "name": name, "xdp": "native" });
    create(
        &nodes,
        json!({ "metadata": { "name": "n1" }, "spec": { "role": "both", "version": "0", "interfaces": [interface("eth0")] } }),
    )
    .await;
    all.ready("good", "True", "AllFound").await;

    let nonsense = json!({ "matchExpressions": [{ "key": "rack", "operator": "In" }] });
    all.create("nonsense", json!({ "nodeSelector": nonsense }))
        .await;
    let told = all.ready("nonsense", "False", "SelectorInvalid").await;
    let start = "spec.nodeSelector selects nothing: label selector: ";
    assert!(told.message.starts_with(start), "{told:?}");

    let spec = json!({ "pools": ["main", "nowhere"], "interfaces": ["eth7"] });
    all.create("wrong", spec).await;
    let told = all.ready("wrong", "False", "PoolNotFound").await;
    for part in ["no AddressPool: nowhere;", "with our program: eth7;"] {
        assert!(told.message.contains(part), "{told:?}");
    }
    assert!(!is_old(&told));
    // One fault is mended, and the condition stays what it was.
    let told = all.backdate("wrong", "False", "PoolNotFound").await;
    assert!(is_old(&told), "{told:?}");
    all.patch("wrong", json!({ "pools": ["main"] })).await;
    let told = all.ready("wrong", "False", "InterfaceNotFound").await;
    assert!(is_old(&told), "{told:?}");
    // The other is mended by an agent, without a word about the advertisement.
    let both = json!({ "spec": { "interfaces": [interface("eth0"), interface("eth7")] } });
    let params = PatchParams::default();
    nodes
        .patch("n1", &params, &Patch::Merge(both))
        .await
        .unwrap();
    let told = all.ready("wrong", "True", "AllFound").await;
    assert!(!is_old(&told), "it turned just now: {told:?}");
    let told = all.backdate("wrong", "True", "AllFound").await;
    assert!(is_old(&told), "{told:?}");

    all.ready("good", "True", "AllFound").await;
    let gone = DeleteParams::default();
    nodes.delete("n1", &gone).await.unwrap();
    let told = all.ready("wrong", "False", "NoAnnouncer").await;
    assert!(!is_old(&told), "{told:?}");
    for name in ["good", "nonsense", "wrong"] {
        all.0.delete(name, &gone).await.unwrap();
    }
}
