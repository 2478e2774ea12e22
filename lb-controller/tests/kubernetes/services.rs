//! Rows of the contract about one Service: class, type, ports, slices, names.

use std::time::{Duration, Instant};

use kube::api::{DeleteParams, Patch, PatchParams};
use lb_controller::api::service_table::ServiceTable;
use serde_json::json;

use crate::world::{
    FINALIZER, TABLE_FINALIZER, World, conditions, create, finalizers, programmed, until, vips,
};

pub(crate) async fn a_service_gets_an_address_a_table_events_and_loses_all_with_its_end(
    world: &World,
) {
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

pub(crate) async fn another_class_is_not_touched(world: &World) {
    let place = world.place("foreign").await;
    let spec = json!({ "spec": { "loadBalancerClass": "example.com/other" } });
    let made = place.service("other", spec).await;
    place.service("ours", json!({})).await;
    place.vips("ours").await;
    assert_eq!(place.services.get("other").await.unwrap(), made);
}

pub(crate) async fn a_type_change_releases_and_allocates_anew(world: &World) {
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

pub(crate) async fn ports_change_and_the_address_stays(world: &World) {
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

pub(crate) async fn slices_of_any_manager_are_merged(world: &World) {
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

pub(crate) async fn a_service_of_the_same_name_is_another_one(world: &World) {
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

/// Weights are the pods' own, and `publishNotReadyAddresses` lets endpoints serve that are ready and not serving.
pub(crate) async fn weights_and_addresses_that_are_not_ready(world: &World) {
    let place = world.place("weights").await;
    place.endpoint("web", "p1", "10.4.0.1").await;
    place.endpoint("web", "p2", "10.4.0.2").await;
    let weigh = json!({ "metadata": { "annotations": { "bowline.dev/weight": "3" } } });
    let params = PatchParams::default();
    place
        .pods
        .patch("p2", &params, &Patch::Merge(weigh))
        .await
        .unwrap();
    place.service("web", json!({})).await;
    let weights = until("weights", || async {
        let table = place.tables.get_opt("web").await.unwrap()?.spec;
        let weights = &table.groups.first()?.shape.weights;
        (!weights.is_empty()).then(|| {
            let of = weights.iter().map(|run| (run.weight, run.slots));
            of.collect::<std::collections::BTreeSet<_>>()
        })
    })
    .await;
    assert_eq!(weights, [(1, 1), (3, 1)].into());
    create(
        &place.slices,
        json!({
            "metadata": { "name": "early-x", "labels": { "kubernetes.io/service-name": "early" } },
            "addressType": "IPv4",
            "ports": [{ "name": "", "port": 8080, "protocol": "TCP" }],
            // As its controller writes them for such a Service: ready, whatever the pod says.
            "endpoints": [{ "addresses": ["10.4.0.9"], "nodeName": "n1",
                "conditions": { "ready": true, "serving": false, "terminating": true } }],
        }),
    )
    .await;
    place.service("early", json!({})).await;
    let serving = |table: &ServiceTable| {
        let mut slots = table.spec.groups.iter().flat_map(|group| &group.current);
        slots.any(Option::is_some)
    };
    assert!(
        !serving(&place.table("early").await),
        "it ends, and serves nobody"
    );
    let publish = json!({ "spec": { "publishNotReadyAddresses": true } });
    place.patch("early", publish).await;
    until("it serves", || async {
        serving(&place.table("early").await).then_some(())
    })
    .await;
}
