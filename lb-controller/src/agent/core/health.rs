//! What is wrong, why the node is not ready, and what its file says about it.

use std::time::Instant;

use super::{Core, view};
use crate::admin::Problem;
use crate::model::template::NodeAddresses;

impl Core {
    /// Writes the node's file if it has changed.
    pub(super) fn write_node_file(&mut self, now: Instant) {
        let file = view::node_file(self);
        if self.node_file.as_ref() != Some(&file)
            && let Ok(text) = serde_saphyr::to_string(&file)
        {
            let path = self
                .settings
                .outputs
                .nodes()
                .join(format!("{}.yaml", self.settings.node));
            self.writer.write(path, text, now);
            self.node_file = Some(file);
        }
        self.writer.flush(now);
    }

    /// Everything that is wrong.
    pub(in crate::agent) fn problems(&self) -> Vec<Problem> {
        let mut problems = self.files.problems();
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
        for (named, table) in &self.tables {
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
            add(
                format!("file {}", self.settings.outputs.secret().display()),
                fault,
            );
        }
        if let Some(error) = &self.watch_error {
            add(
                format!("directory {}", self.settings.manifests.display()),
                error,
            );
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
        for interface in &self.interfaces {
            if let Some(problem) = &interface.problem {
                add(format!("interface {}", interface.name), problem);
            }
        }
        problems.extend(self.writer.problems());
        problems
    }

    /// Why the node should not be used yet, or not as it is.
    pub fn not_ready_because(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        let mut unless = |holds: bool, reason: &str| {
            if !holds {
                reasons.push(reason.to_owned());
            }
        };
        unless(self.listed, "the directory has not been read yet");
        unless(
            self.secrets.is_some(),
            "the secrets of the cluster are missing; start the manager",
        );
        unless(
            self.watch_error.is_none(),
            "changes of the directory may be missed; see problems",
        );
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
        let untold = self.known().into_iter().filter(|(named, table)| {
            table.is_none()
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
