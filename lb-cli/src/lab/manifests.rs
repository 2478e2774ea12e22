//! The directory that plays the API server: writes objects as YAML files, each by rename, so that nobody reads half of one.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::Context;
use k8s_openapi::api::core::v1::Service;
use serde::Serialize;

use super::objects::{self, Pod};
use super::plan::Machine;

/// The Services of the lab: `deploy/examples`, built in so that an installed `lbctl` has them too.
const EXAMPLES: [&str; 4] = [
    include_str!("../../../deploy/examples/web.yaml"),
    include_str!("../../../deploy/examples/game.yaml"),
    include_str!("../../../deploy/examples/ledger.yaml"),
    include_str!("../../../deploy/examples/soon.yaml"),
];

/// The directory, and what was written there last.
#[derive(Debug)]
pub(crate) struct Manifests {
    directory: PathBuf,
    /// Files are written here first: the same file system, but watched by nobody.
    staging: PathBuf,
    services: BTreeMap<String, Service>,
    written: BTreeMap<String, String>,
}

impl Manifests {
    /// Makes the directory below `parent`, with the example Services in it.
    pub(crate) fn create(parent: &Path) -> anyhow::Result<Self> {
        let directory = parent.join("manifests");
        let staging = parent.join("staging");
        for path in [&directory, &staging] {
            std::fs::create_dir_all(path).with_context(|| format!("make {}", path.display()))?;
        }
        let mut manifests = Self {
            directory,
            staging,
            services: BTreeMap::new(),
            written: BTreeMap::new(),
        };
        for text in EXAMPLES {
            let service: Service = serde_saphyr::from_str(text).context("read an example")?;
            let name = service
                .metadata
                .name
                .clone()
                .context("an example has no name")?;
            manifests.write(&format!("{name}.yaml"), text.to_owned())?;
            manifests.services.insert(name, service);
        }
        Ok(manifests)
    }

    /// Where it is.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Writes the Node of a machine.
    pub(crate) fn node(&mut self, machine: &Machine) -> anyhow::Result<()> {
        self.object(&format!("node-{}", machine.name), &objects::node(machine))
    }

    /// Removes the Node of a machine.
    pub(crate) fn remove_node(&mut self, machine: &str) -> anyhow::Result<()> {
        let file = format!("node-{machine}.yaml");
        let path = self.directory.join(&file);
        std::fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
        self.written.remove(&file);
        Ok(())
    }

    /// Changes a Service.
    pub(crate) fn change_service(
        &mut self,
        name: &str,
        change: impl FnOnce(&mut Service),
    ) -> anyhow::Result<()> {
        let service = self.services.get_mut(name);
        let service = service.with_context(|| format!("there is no Service {name}"))?;
        change(service);
        let service = service.clone();
        self.object(name, &service)
    }

    /// VIPs of a Service, as its annotation asks for them.
    pub(crate) fn vips(&self, service: &str) -> Vec<IpAddr> {
        let service = self.services.get(service);
        let annotations = service.and_then(|service| service.metadata.annotations.as_ref());
        let addresses =
            annotations.and_then(|annotations| annotations.get("bowline.dev/addresses"));
        let addresses = addresses.map_or("", String::as_str).split(',');
        addresses
            .filter_map(|address| address.trim().parse().ok())
            .collect()
    }

    /// The label `app` that a Service selects; empty if it selects none.
    pub(crate) fn selected_app(&self, service: &str) -> String {
        let spec = self
            .services
            .get(service)
            .and_then(|service| service.spec.as_ref());
        let selector = spec.and_then(|spec| spec.selector.as_ref());
        selector
            .and_then(|selector| selector.get("app"))
            .cloned()
            .unwrap_or_default()
    }

    /// Writes Pods, then the slices of every Service; what has not changed is left alone.
    pub(crate) fn publish(&mut self, pods: &[Pod]) -> anyhow::Result<()> {
        for pod in pods {
            self.object(&format!("pod-{}", pod.name), &objects::pod(pod))?;
        }
        let services: Vec<Service> = self.services.values().cloned().collect();
        for service in &services {
            for (name, slice) in objects::slices(service, pods)? {
                self.object(&format!("slice-{name}"), &slice)?;
            }
        }
        Ok(())
    }

    fn object(&mut self, name: &str, object: &impl Serialize) -> anyhow::Result<()> {
        let text = serde_saphyr::to_string(object).with_context(|| format!("write {name}"))?;
        self.write(&format!("{name}.yaml"), text)
    }

    fn write(&mut self, file: &str, text: String) -> anyhow::Result<()> {
        if self.written.get(file) == Some(&text) {
            return Ok(());
        }
        let (fresh, path) = (self.staging.join(file), self.directory.join(file));
        std::fs::write(&fresh, &text).with_context(|| format!("write {}", fresh.display()))?;
        std::fs::rename(&fresh, &path).with_context(|| format!("rename to {}", path.display()))?;
        self.written.insert(file.to_owned(), text);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_are_services_with_addresses_of_the_labs_prefixes() {
        let prefixes: Vec<ipnet::IpNet> = super::super::plan::VIPS
            .iter()
            .map(|prefix| prefix.parse().unwrap())
            .collect();
        for text in EXAMPLES {
            let service: Service = serde_saphyr::from_str(text).unwrap();
            let annotations = service.metadata.annotations.unwrap();
            for vip in annotations["bowline.dev/addresses"].split(',') {
                let vip: std::net::IpAddr = vip.parse().unwrap();
                assert!(prefixes.iter().any(|prefix| prefix.contains(&vip)), "{vip}");
            }
        }
    }
}
