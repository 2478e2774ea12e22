//! The control plane by itself: what tests of others rely on.

use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::Api;
use kube::api::{ListParams, ObjectMeta, PostParams};
use rig::{ControlPlane, Controllers, Options, User};

fn map(name: &str) -> ConfigMap {
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            ..ObjectMeta::default()
        },
        ..ConfigMap::default()
    }
}

#[tokio::test]
async fn objects_outlive_the_api_server_and_a_compaction() {
    let mut plane = ControlPlane::start().await.unwrap();
    let maps: Api<ConfigMap> = Api::namespaced(plane.client(), "default");
    maps.create(&PostParams::default(), &map("first"))
        .await
        .unwrap();

    plane.compact().await.unwrap();
    plane.kill_api_server();
    assert!(maps.get("first").await.is_err(), "nobody answers");
    plane.restart_etcd().await.unwrap();
    plane.start_api_server().await.unwrap();
    assert_eq!(
        maps.get("first").await.unwrap().metadata.name.as_deref(),
        Some("first")
    );
}

#[tokio::test]
async fn a_service_account_may_do_what_rbac_says() {
    let plane = ControlPlane::start().await.unwrap();
    let agent = User::service_account("default", "agent");
    let maps: Api<ConfigMap> = Api::namespaced(plane.client_as(&agent).await.unwrap(), "default");
    let refused = maps.list(&ListParams::default()).await.unwrap_err();
    assert!(
        refused
            .to_string()
            .contains("system:serviceaccount:default:agent"),
        "{refused}"
    );
    let role = "create clusterrole see --verb=list --resource=configmaps";
    let binding = "create clusterrolebinding see --clusterrole=see --serviceaccount=default:agent";
    for command in [role, binding] {
        let mut kubectl = plane.kubectl().unwrap();
        let made = kubectl.args(command.split(' ')).output().unwrap();
        assert!(made.status.success(), "{made:?}");
    }
    // The authorizer learns of it through a watch.
    let mut seen = maps.list(&ListParams::default()).await;
    for _ in 0..200 {
        if seen.is_ok() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        seen = maps.list(&ListParams::default()).await;
    }
    assert_eq!(seen.unwrap().items, []);
}

#[tokio::test]
async fn controllers_work_for_objects_that_no_node_runs() {
    let options = Options {
        controllers: Controllers::WithoutNodes,
        scheduler: true,
        ..Options::default()
    };
    let plane = ControlPlane::start_with(options).await.unwrap();
    let spaces: Api<Namespace> = Api::all(plane.client());
    let mut kubectl = plane.kubectl().unwrap();
    let made = kubectl
        .args(["create", "namespace", "short"])
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let mut kubectl = plane.kubectl().unwrap();
    let gone = kubectl
        .args(["delete", "namespace", "short", "--timeout=60s"])
        .output()
        .unwrap();
    assert!(gone.status.success(), "{gone:?}");
    assert!(spaces.get_opt("short").await.unwrap().is_none());
}
