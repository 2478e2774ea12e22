//! Retirements as operators see them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Retiree, Retiring};
use crate::admin::{self, Problem};
use crate::handoff::counts::Streams;
use crate::model::retire::{Nodes, Wanted};
use crate::source::index::Named;

/// How long it is no problem that a change waits for history to leave.
const WAITS_MAX: Duration = Duration::from_mins(1);
/// Nodes named in one sentence; the rest is counted, and all are in the list of retirements.
const NAMED_MAX: usize = 3;

impl Retiring {
    /// Nodes whose agents a Service's history waits for.
    fn waits_for(&self, retiree: &Retiree) -> BTreeSet<Arc<str>> {
        let waits = |nodes: &Nodes<'_>| retiree.machine.waits_for(nodes);
        let mut all = self.reached.with(&retiree.uid, waits);
        all.extend(retiree.stay.iter().cloned());
        all
    }

    /// What is wanted and under way, by Service.
    pub(in crate::manager) fn shown(&self, now: Instant) -> Vec<admin::Retirement> {
        let shown = self.services.iter().map(|(named, retiree)| {
            let waits_for = self.waits_for(retiree).into_iter();
            admin::Retirement {
                service: named.to_string(),
                because: retiree.why.label().to_owned(),
                phase: retiree.machine.label().to_owned(),
                waits_for: waits_for.map(|node| node.to_string()).collect(),
                for_seconds: now.saturating_duration_since(retiree.since).as_secs(),
            }
        });
        shown.collect()
    }

    /// Changes that wait for history to leave for too long. `streams` may say why an agent is not heard.
    pub(in crate::manager) fn problems(&self, streams: &Streams, now: Instant) -> Vec<Problem> {
        let waits = self.services.iter().filter(|(_, retiree)| {
            let is_waited_for = match retiree.why {
                Wanted::HistoryFull | Wanted::ShapeWaits => retiree.is_wanted,
                Wanted::Drain | Wanted::Quiet => false,
            };
            is_waited_for && now.saturating_duration_since(retiree.since) >= WAITS_MAX
        });
        let problem = |(named, retiree): (&Named, &Retiree)| Problem {
            object: format!("Service {named}"),
            sentence: sentence(&self.waits_for(retiree), streams),
        };
        waits.map(problem).collect()
    }
}

/// Without a number that changes: it is logged when it changes.
fn sentence(waits_for: &BTreeSet<Arc<str>>, streams: &Streams) -> String {
    let named = waits_for.iter().take(NAMED_MAX).map(|node| {
        let fault = streams.get(node).and_then(|stream| stream.fault.as_ref());
        fault.map_or_else(|| node.to_string(), |fault| format!("{node} ({fault})"))
    });
    let mut named: Vec<_> = named.collect();
    if named.is_empty() {
        return "the history of its table is full, so pods that have left keep their slots; connections are handed off again \
                soon, without anybody to wait for"
            .to_owned();
    }
    if let rest @ 1.. = waits_for.len() - named.len() {
        named.push(format!("{rest} more"));
    }
    format!(
        "the history of its table is full, so pods that have left keep their slots until the agents of these nodes have handed \
         their connections off: {}; see that these agents run and can be reached, or remove the Node objects of nodes that \
         are gone",
        named.join(", ")
    )
}
