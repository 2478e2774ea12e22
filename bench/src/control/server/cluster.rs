//! The objects of a cluster at an API server: ours, and those that the benchmark makes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use k8s_openapi::api::core::v1::{Namespace, Node as KubeNode, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{ApiResource, DynamicObject, PostParams};
use kube::{Api, Client, Resource};
use lb_controller::api::address_pool::AddressPool;
use lb_controller::api::l2_advertisement::L2Advertisement;
use lb_controller::api::load_balancer_node::LoadBalancerNode;
use lb_controller::api::service_table::ServiceTable;
use rig::ControlPlane;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::LIMIT;
use crate::control::objects::{self, BALANCERS, First, NAMESPACE, NODES, PodNumber, SYSTEM, Scale};

/// Requests at once while objects are made: below what the API server lets through.
const REQUESTS_MAX: usize = 64;
/// Applies definitions and rights as they are delivered.
pub(super) fn deploy(plane: &ControlPlane) -> anyhow::Result<()> {
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
pub(super) async fn make_objects(
    client: &Client,
    scale: Scale,
) -> anyhow::Result<BTreeMap<u32, String>> {
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
pub(super) async fn all_tables(client: &Client, scale: Scale) -> anyhow::Result<()> {
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
