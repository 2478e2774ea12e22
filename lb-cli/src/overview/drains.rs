//! Drains of nodes, as `lbctl status` of a cluster shows them.

use jiff::Timestamp;
use kube::ResourceExt;
use lb_controller::api::node_drain::{NodeDrain, Phase};
use serde::Serialize;

use super::{Problem, age};
use crate::output::{lines, table};
use crate::units;

/// A node that is to be left, or was.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Drain {
    pub(super) node: String,
    pub(super) phase: Phase,
    /// Since when it stands there; none while no manager has seen it.
    pub(super) since: Option<Timestamp>,
    /// Connections of its pods that are open.
    pub(super) open: u64,
    pub(super) waits_for: Vec<String>,
}

impl Drain {
    /// As the manager sees it.
    pub(super) fn of(drain: &NodeDrain) -> Self {
        let status = drain.status.clone().unwrap_or_default();
        Self {
            node: drain.name_any(),
            phase: status.phase,
            since: status.since,
            open: status.connections.open,
            waits_for: status.waits_for,
        }
    }
}

/// One that was given up: whoever wanted the node to be empty may not know.
pub(super) fn problem(drain: &NodeDrain) -> Option<Problem> {
    let status = drain.status.as_ref()?;
    let why = status.log.last().map(|entry| entry.message.as_str());
    (status.phase == Phase::Failed).then(|| Problem {
        object: format!("NodeDrain {}", drain.name_any()),
        sentence: format!(
            "{}; `lbctl undrain {}` removes it",
            why.unwrap_or("given up"),
            drain.name_any()
        ),
        nodes: Vec::new(),
    })
}

/// A line for each.
pub(super) fn show(drains: &[Drain], now: Timestamp) -> String {
    let mut rows = table(["DRAIN", "PHASE", "SINCE", "OPEN", "WAITS FOR"]);
    for drain in drains {
        let Drain {
            node,
            phase,
            since,
            open,
            waits_for,
        } = drain;
        let since = since.map_or("-".to_owned(), |since| {
            format!("{} ago", units::duration(age(now, since)))
        });
        rows.add_row([
            node,
            &format!("{phase:?}"),
            &since,
            &open.to_string(),
            &waits_for.join("; "),
        ]);
    }
    lines(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const NOW: &str = "2026-01-01T00:01:00Z";

    #[test]
    fn a_drain_that_was_given_up_is_a_problem_and_one_that_no_manager_has_seen_is_listed() {
        let of = |status: serde_json::Value| -> NodeDrain {
            serde_json::from_value(json!({
                "apiVersion": "bowline.dev/v1alpha1", "kind": "NodeDrain", "metadata": {"name": "node2"}, "spec": {},
                "status": status
            }))
            .unwrap()
        };
        let failed =
            of(json!({"phase": "Failed", "log": [{"at": NOW, "message": "given up after 60 s"}]}));
        let found = problem(&failed).unwrap();
        assert_eq!(
            (found.object.as_str(), found.sentence.as_str()),
            (
                "NodeDrain node2",
                "given up after 60 s; `lbctl undrain node2` removes it"
            )
        );
        let new = of(json!(null));
        assert_eq!(problem(&new), None);
        assert_eq!(problem(&of(json!({"phase": "Drained"}))), None);
        assert_eq!(
            show(&[Drain::of(&new)], NOW.parse().unwrap()),
            "DRAIN  PHASE      SINCE  OPEN  WAITS FOR\nnode2  Preflight  -      0\n"
        );
    }
}
