//! What is wrong, why the node is not ready, and what its file says about it.

use std::time::Instant;

use super::{Core, Origin, view};
use crate::admin::Problem;
use crate::api::load_balancer_node::LoadBalancerNodeSpec;
use crate::model::template::NodeAddresses;
use crate::source::index::Named;

impl Core {
    /// Writes the node's file if it has changed.
    pub(super) fn write_node_file(&mut self, now: Instant) {
        let Origin::Directory { outputs, .. } = &self.settings.origin else {
            return;
        };
        let directory = outputs.nodes();
        let file = view::node_file(self);
        if self.node_file.as_ref() != Some(&file)
            && let Ok(text) = serde_saphyr::to_string(&file)
        {
            let path = directory.join(format!("{}.yaml", self.settings.node));
            self.writer.write(path, text, now);
            self.node_file = Some(file);
        }
        self.writer.flush(now);
    }

    /// The node's object as it should be; none before the node has an address.
    pub fn node_object(&self) -> Option<LoadBalancerNodeSpec> {
        (self.own != NodeAddresses::default()).then(|| view::node_object(self))
    }

    /// Everything that is wrong.
    pub(in crate::agent) fn problems(&self) -> Vec<Problem> {
        let mut problems = self.files.problems();
        let (secret, source) = match &self.settings.origin {
            Origin::Directory { manifests, outputs } => (
                format!("file {}", outputs.secret().display()),
                format!("directory {}", manifests.display()),
            ),
            Origin::Cluster => (
                format!("Secret {}", crate::source::secret::NAME),
                "API server".to_owned(),
            ),
        };
        let mut add = |object: String, sentence: &str| {
            problems.push(Problem {
                object,
                sentence: sentence.to_owned(),
            });
        };
        for (named, status) in &self.statuses {
            for sentence in &status.problems {
                add(format!("Service {named}"), sentence);
            }
        }
        for (named, table) in self.tables.iter() {
            if let Some(fault) = &table.fault {
                add(
                    format!("ServiceTable {named}"),
                    &format!("{fault}; remove its file, the manager writes it anew"),
                );
            }
            if let Some(error) = &table.attempt.error {
                add(
                    format!("Service {named}"),
                    &format!("is not programmed as its table says: {error}; it is tried again"),
                );
            }
        }
        if let Some(fault) = &self.secret_fault {
            add(secret, fault);
        }
        if let Some(error) = &self.watch_error {
            add(source, error);
        }
        if let Some(fault) = &self.node_fault {
            add(format!("LoadBalancerNode {}", self.settings.node), fault);
        }
        if let Some(fault) = self.route_fault() {
            add("routes".to_owned(), fault);
        }
        for (object, sentence) in self.bgp_faults() {
            add(object.clone(), sentence);
        }
        for (name, sentence) in &self.announcing.faults {
            add(format!("L2Advertisement {name}"), sentence);
        }
        for conflict in &self.announcing.claimed.conflicts {
            let mac = view::mac_text(conflict.mac);
            add(
                format!("VIP {}", conflict.vip),
                &format!(
                    "is claimed by {mac}, which is no node of ours; find that machine and give it another address"
                ),
            );
        }
        for (key, sentence) in &self.refused {
            add(key.to_string(), sentence);
        }
        for (what, attempt) in [
            ("configuration", &self.common),
            ("local pods", &self.locals),
            ("clearing up", &self.tidy),
        ] {
            if let Some(error) = &attempt.error {
                add(
                    format!("{what} of node {}", self.settings.node),
                    &format!("has not succeeded: {error}; it is tried again"),
                );
            }
        }
        if let Some(fault) = &self.pins.fault {
            add(
                format!("pins of node {}", self.settings.node),
                &format!("{fault}; flows that are not pinned may be lost with later changes"),
            );
        }
        if self.is_behind() {
            add(
                format!("tables of node {}", self.settings.node),
                "other agents know newer ones; until they come this node does not decide about packets of unknown flows; see that the agent reaches its source",
            );
        }
        for interface in &self.interfaces {
            if let Some(problem) = &interface.problem {
                add(format!("interface {}", interface.name), problem);
            }
        }
        problems.extend(self.writer.problems());
        problems
    }

    /// Whether a Service without a table is one that the manager owes one. In a cluster its status says whether it has an
    /// address; one that has none is not this node's business.
    fn waits_for_a_table(&self, named: &Named) -> bool {
        match self.settings.origin {
            Origin::Directory { .. } => true,
            Origin::Cluster => self
                .index
                .service(named)
                .and_then(|service| service.status.as_ref()?.load_balancer.as_ref())
                .and_then(|balancer| balancer.ingress.as_ref())
                .is_some_and(|ingress| !ingress.is_empty()),
        }
    }

    /// Why the node should not be used yet, or not as it is.
    pub fn not_ready_because(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        let mut unless = |holds: bool, reason: &str| {
            if !holds {
                reasons.push(reason.to_owned());
            }
        };
        let (unread, missed) = match self.settings.origin {
            Origin::Directory { .. } => (
                "the directory has not been read yet",
                "changes of the directory may be missed; see problems",
            ),
            Origin::Cluster => (
                "the objects of the cluster have not been read yet",
                "changes of the cluster may be missed; see problems",
            ),
        };
        unless(self.listed, unread);
        unless(
            self.secrets.is_some(),
            "the secrets of the cluster are missing; start the manager",
        );
        unless(self.watch_error.is_none(), missed);
        unless(
            self.common.due.is_none(),
            "configuration and peers are not applied yet",
        );
        unless(
            self.own != NodeAddresses::default(),
            "the node has no address; add its Node object with an InternalIP, or give --node-address",
        );
        unless(
            self.interfaces
                .iter()
                .any(|interface| interface.xdp.is_some()),
            "no interface carries the XDP program; see problems",
        );
        if !self.pins.is_complete {
            let missing: Vec<&str> = self.pins.missing().map(|node| &**node).collect();
            reasons.push(format!(
                "pins of {} are not here yet; they are waited for a minute",
                if missing.is_empty() {
                    "other nodes".to_owned()
                } else {
                    missing.join(", ")
                }
            ));
        }
        let untold = self.known().into_iter().filter(|(named, table)| {
            table.is_none()
                && self.waits_for_a_table(named)
                && self
                    .statuses
                    .get(named)
                    .is_none_or(|status| status.problems.is_empty())
        });
        reasons.extend(untold.map(|(named, _)| {
            format!("Service {named} has no table yet; see that the manager runs")
        }));
        reasons.extend(
            self.tables
                .iter()
                .filter(|(_, table)| table.attempt.due.is_some())
                .map(|(named, table)| {
                    let why = table.attempt.error.as_deref().unwrap_or("not applied yet");
                    format!("Service {named}: {why}")
                }),
        );
        reasons
    }
}
