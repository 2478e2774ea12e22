//! Machines and nodes, as root.

use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::ListParams;
use rig::Cluster;

/// Removes the cluster however the test ends.
struct Down(Cluster);

impl Drop for Down {
    fn drop(&mut self) {
        if let Err(error) = self.0.down() {
            eprintln!("{error:#}");
        }
    }
}

#[test]
fn a_node_that_lost_its_power_comes_back_and_down_leaves_nothing() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: machines are made of namespaces and cgroups, which needs root");
        return;
    }
    let name = format!("rig-{}", std::process::id());
    let cluster = Down(Cluster::open(&name).unwrap());
    cluster.0.up(1).unwrap();
    let node = cluster.0.node(1);
    let first = node.init().unwrap();
    cluster.0.cut_power(&node).unwrap();
    cluster.0.up(1).unwrap();
    assert_ne!(node.init().unwrap(), first);
    let nodes = cluster.0.with_client(|client| async move {
        Ok(Api::<Node>::all(client)
            .list(&ListParams::default())
            .await?)
    });
    assert_eq!(nodes.unwrap().items.len(), 1);
    cluster.0.down().unwrap();
    assert_eq!(cluster.0.running(), []);
    assert!(
        !std::path::Path::new("/srv")
            .join(format!("bowline-{name}"))
            .exists()
    );
}
