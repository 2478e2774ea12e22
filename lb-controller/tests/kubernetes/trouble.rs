//! Managers that end, several at once, and API servers that go away, hang or refuse.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use rig::{ControlPlane, Options};
use serde_json::json;

use crate::world::{
    FINALIZER, LOG, Manager, PATIENCE, World, apply_definitions, finalizers, until,
};

pub(crate) async fn a_restart_changes_nothing(world: &mut World) {
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

pub(crate) async fn the_secret_is_made(world: &World) {
    let secrets = Api::<Secret>::namespaced(world.client.clone(), "bowline-system");
    let secret = until("the secret", || async {
        secrets.get_opt("bowline-cluster").await.unwrap()
    })
    .await;
    assert_eq!(secret.data.unwrap()["hash"].0.len(), 32);
}

pub(crate) async fn two_managers_and_one_writes(world: &mut World) {
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

pub(crate) async fn an_api_server_that_goes_away_and_forgets(world: &mut World) {
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

/// Somebody else takes the lease of a manager that lives: it stops to write at once, and goes on when that one is silent.
async fn a_lost_lease(world: &World) {
    let leases = Api::<Lease>::namespaced(world.client.clone(), "bowline-system");
    let place = world.place("thief").await;
    place.service("before", json!({})).await;
    let before = (place.vips("before").await, place.table("before").await);
    let seen = world.log().len();
    let patch = json!({ "spec": { "holderIdentity": "thief", "leaseTransitions": 99 } });
    leases
        .patch(
            "bowline-manager",
            &PatchParams::default(),
            &Patch::Merge(patch),
        )
        .await
        .unwrap();
    until("it leads no more", || async {
        world.log()[seen..].contains("leads no more").then_some(())
    })
    .await;
    let made = place.service("meanwhile", json!({})).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(
        place.services.get("meanwhile").await.unwrap(),
        made,
        "not even a finalizer"
    );
    place.vips("meanwhile").await;
    let after = (place.vips("before").await, place.table("before").await);
    assert_eq!(before, after);
}

/// An API server that hangs: whoever leads stops before another may, and goes on when it answers again.
async fn a_frozen_api_server(world: &World) {
    let place = world.place("frozen").await;
    place.service("before", json!({})).await;
    let before = (place.vips("before").await, place.table("before").await);
    let seen = world.log().len();
    world.plane.freeze_api_server().unwrap();
    let start = Instant::now();
    while !world.log()[seen..].contains("leads no more") {
        assert!(start.elapsed() < PATIENCE, "it still leads");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    world.plane.resume_api_server().unwrap();
    place.service("after", json!({})).await;
    place.vips("after").await;
    let after = (place.vips("before").await, place.table("before").await);
    assert_eq!(before, after);
}

/// Refused with 429, hung and taken over: everything is written in the end, and nothing twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_server_that_refuses_and_hangs_and_a_lease_that_is_lost() {
    let world = World::start_with(Options {
        // Plain limits, without queues: whoever comes when there is no room gets 429. Administrators are exempt.
        api_server: [
            "--enable-priority-and-fairness=false",
            "--max-requests-inflight=1",
            "--max-mutating-requests-inflight=1",
        ]
        .map(str::to_owned)
        .into(),
        ..Options::default()
    })
    .await;
    let place = world.place("busy").await;
    let names: Vec<_> = (0..40).map(|n| format!("s{n}")).collect();
    for name in &names {
        place.service(name, json!({})).await;
    }
    for name in &names {
        place.vips(name).await;
        assert_eq!(place.table(name).await.spec.version, 1);
    }
    // What is tried again within half a second is not worth a line in the log, so the server is asked.
    let metrics = world
        .plane
        .kubectl()
        .unwrap()
        .args(["get", "--raw", "/metrics"])
        .output()
        .unwrap();
    let metrics = String::from_utf8(metrics.stdout).unwrap();
    let refused = metrics
        .lines()
        .find(|line| line.starts_with("apiserver_request_total") && line.contains("code=\"429\""));
    assert!(refused.is_some(), "nothing was refused");
    a_lost_lease(&world).await;
    a_frozen_api_server(&world).await;
}

/// A manager that is down misses what others do to its objects; the next one puts it right.
pub(crate) async fn what_is_done_while_no_manager_runs(world: &mut World) {
    let place = world.place("alone").await;
    for name in ["stripped", "ended", "kept"] {
        place.service(name, json!({})).await;
        place.vips(name).await;
        place.table(name).await;
    }
    let kept = place.table("kept").await;
    if let Some(manager) = world.manager.take() {
        manager.end();
    }
    let strip = json!({ "metadata": { "finalizers": null } });
    place.patch("stripped", strip.clone()).await;
    // Nobody holds it back: it is gone at once, and its table has lost its owner.
    place.patch("ended", strip.clone()).await;
    place.delete("ended").await;
    let params = PatchParams::default();
    place
        .tables
        .patch("kept", &params, &Patch::Merge(strip))
        .await
        .unwrap();
    let gone = DeleteParams::default();
    place.tables.delete("kept", &gone).await.unwrap();
    world.restart();
    until("the finalizer", || async {
        let service = place.services.get("stripped").await.unwrap();
        (finalizers(&service) == [FINALIZER]).then_some(())
    })
    .await;
    place.gone("ended").await;
    until("the table", || async {
        let table = place.tables.get_opt("kept").await.unwrap()?;
        (table.spec.vips == kept.spec.vips).then_some(())
    })
    .await;
}
