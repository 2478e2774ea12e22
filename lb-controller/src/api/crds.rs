//! The definitions of our objects, as an API server takes them: what `lb-controller crds` prints and `deploy/crds` holds.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

use super::address_pool::AddressPool;
use super::bgp_advertisement::BGPAdvertisement;
use super::bgp_peer::BGPPeer;
use super::l2_advertisement::L2Advertisement;
use super::load_balancer_node::LoadBalancerNode;
use super::node_drain::NodeDrain;
use super::service_table::ServiceTable;

/// All of them, by name.
pub fn all() -> Vec<CustomResourceDefinition> {
    vec![
        AddressPool::crd(),
        BGPAdvertisement::crd(),
        BGPPeer::crd(),
        L2Advertisement::crd(),
        LoadBalancerNode::crd(),
        NodeDrain::crd(),
        ServiceTable::crd(),
    ]
}

/// All of them as files: name and content.
pub fn files() -> Result<Vec<(String, String)>, serde_saphyr::ser::Error> {
    let text = |crd: &CustomResourceDefinition| serde_saphyr::to_string(crd);
    all()
        .iter()
        .map(|crd| Ok((format!("{}.yaml", crd.spec.names.plural), text(crd)?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_in_deploy_are_those_of_these_types() {
        let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/crds");
        for (name, text) in files().unwrap() {
            let found = std::fs::read_to_string(format!("{directory}/{name}")).unwrap_or_default();
            assert!(
                found == text,
                "deploy/crds/{name} is stale; run `cargo xtask crds`"
            );
        }
    }

    #[test]
    fn every_field_has_a_description() {
        fn bare(path: &str, schema: &serde_json::Value, found: &mut Vec<String>) {
            for (name, field) in schema["properties"].as_object().into_iter().flatten() {
                let path = format!("{path}.{name}");
                if field["description"].as_str().is_none_or(str::is_empty) {
                    found.push(path.clone());
                }
                // Selectors and conditions are Kubernetes' own.
                if !(name.ends_with("elector") || name == "conditions") {
                    bare(&path, field, found);
                    bare(&path, &field["items"], found);
                }
            }
        }
        let mut found = Vec::new();
        for crd in all() {
            let schema = crd.spec.versions[0].schema.clone().unwrap();
            let schema = serde_json::to_value(schema).unwrap()["openAPIV3Schema"].clone();
            bare(
                &crd.spec.names.kind,
                &schema["properties"]["spec"],
                &mut found,
            );
        }
        assert_eq!(found, Vec::<String>::new());
    }
}
