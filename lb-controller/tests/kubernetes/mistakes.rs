//! What people and other controllers get wrong, or undo.

use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;

use crate::world::{FINALIZER, World, conditions, create, finalizers, until};

pub(crate) async fn what_others_undo_is_done_again(world: &World) {
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

pub(crate) async fn bad_input_never_stops_others(world: &World) {
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
    let about = |line: &&str| line.contains("bad/many") && line.contains("usable endpoint");
    until("what is wrong with many ports", || async {
        world.log().lines().any(|line| about(&line)).then_some(())
    })
    .await;
    let lines = world.log().lines().filter(about).count();
    assert_eq!(lines, 1, "one line, whatever the number of ports");
    place.vips("nonsense").await;
}

/// The largest Service that there may be, in slices as large as they may be.
pub(crate) async fn five_thousand_endpoints(world: &World) {
    let place = world.place("large").await;
    let slice = |number: u32, ready: bool| {
        let endpoints: Vec<_> = (0..1000)
            .map(|n| {
                let address = format!("10.6.{}.{}", number * 4 + n / 250, n % 250);
                json!({ "addresses": [address], "nodeName": "n1", "conditions": { "ready": ready || n > 0 } })
            })
            .collect();
        json!({
            "metadata": { "name": format!("web-{number}"), "labels": { "kubernetes.io/service-name": "web" } },
            "addressType": "IPv4",
            "ports": [{ "name": "", "port": 8080, "protocol": "TCP" }],
            "endpoints": endpoints,
        })
    };
    for number in 0..5 {
        create(&place.slices, slice(number, true)).await;
    }
    place.service("web", json!({})).await;
    place.vips("web").await;
    let table = until("all of them", || async {
        let table = place.tables.get_opt("web").await.unwrap()?;
        (table.spec.pods.len() == 5000).then_some(table)
    })
    .await;
    assert_eq!(table.spec.groups[0].current.len(), 5000);
    let changed = Patch::Merge(slice(0, false));
    let params = PatchParams::default();
    place
        .slices
        .patch("web-0", &params, &changed)
        .await
        .unwrap();
    let after = until("one goes", || async {
        let after = place.table("web").await;
        (after.spec.version > table.spec.version).then_some(after)
    })
    .await;
    assert_eq!(after.spec.version, table.spec.version + 1, "one write");
    assert_eq!(
        after.spec.groups[0].shape, table.spec.groups[0].shape,
        "no row moves"
    );
}
