//! Rows of the contract about addresses: asked for, shared, of both families, from pools.

use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use lb_controller::api::address_pool::AddressPool;
use serde_json::json;

use crate::world::{World, create, until, vips};

pub(crate) async fn requested_addresses(world: &World) {
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

pub(crate) async fn sharing(world: &World) {
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

pub(crate) async fn families(world: &World) {
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

pub(crate) async fn pools_that_shrink_and_pools_that_are_wrong(world: &World) {
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
