//! What people and machines read about a drain.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use lb_controller::api::node_drain::{
    self, Finding, NodeDrainSpec, NodeDrainStatus, Phase, Receiver, condition,
};
use serde::Serialize;

use super::wish::holds;
use crate::output::{Paint, parts};
use crate::units;

/// What came of it. Names of fields are stable.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Summary {
    pub(super) node: String,
    pub(super) phase: Phase,
    pub(super) dry_run: bool,
    pub(super) safe_to_reboot: bool,
    pub(super) balancer_drained: bool,
    pub(super) connections: Connections,
    pub(super) balancers: Vec<Receiver>,
    pub(super) findings: Vec<Finding>,
    pub(super) waits_for: Vec<String>,
    pub(super) log: Vec<String>,
    pub(super) duration_ms: u64,
}

/// Connections of the node's pods.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Connections {
    pub(super) handed_off: u64,
    pub(super) open: u64,
}

/// What came of taking it back.
#[derive(Debug, Serialize)]
pub(super) struct Undrained {
    pub(super) node: String,
    pub(super) duration_ms: u64,
}

impl Summary {
    pub(super) fn of(
        node: &str,
        spec: &NodeDrainSpec,
        status: &NodeDrainStatus,
        took: Duration,
    ) -> Self {
        let node_drain::Connections { handed_off, open } = status.connections;
        Self {
            node: node.to_owned(),
            phase: status.phase,
            dry_run: spec.dry_run,
            safe_to_reboot: holds(status, condition::SAFE_TO_REBOOT),
            balancer_drained: holds(status, condition::BALANCER_DRAINED),
            connections: Connections { handed_off, open },
            balancers: status.balancers.clone(),
            findings: status.findings.clone(),
            waits_for: status.waits_for.clone(),
            log: status
                .log
                .iter()
                .map(|entry| entry.message.clone())
                .collect(),
            duration_ms: milliseconds(took),
        }
    }
}

/// As a number of JSON.
pub(super) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// For people.
pub(super) fn text(summary: &Summary, paint: Paint) -> String {
    let Summary { node, phase, .. } = summary;
    let findings = summary.findings.iter().map(|finding| {
        let mark = if finding.blocks {
            paint.bad("in the way")
        } else {
            "to know".to_owned()
        };
        format!("{mark}  {}\n", finding.message)
    });
    let findings = findings.collect::<Vec<_>>().concat();
    let result = match phase {
        _ if summary.dry_run && summary.findings.is_empty() => {
            format!("nothing is in the way of draining {node}; nothing was done")
        }
        _ if summary.dry_run => "nothing was done: it was a dry run".to_owned(),
        Phase::Drained if summary.safe_to_reboot => {
            let took = units::duration(Duration::from_millis(summary.duration_ms));
            paint.good(&format!("{node} is safe to reboot, after {took}"))
        }
        Phase::Drained if summary.balancer_drained => paint.good(&format!(
            "nothing enters at {node} any more; its pods keep serving"
        )),
        Phase::Failed => {
            let why = summary.log.last().map_or("no reason was given", |why| why);
            paint.bad(&format!("{node} is in use: {why}"))
        }
        Phase::Preflight
        | Phase::Exclude
        | Phase::HandOff
        | Phase::Deprefer
        | Phase::Withdraw
        | Phase::Quiesce
        | Phase::Drained => format!(
            "{node} is being drained; `lbctl drain {node} --wait` with the same options waits for its end, `lbctl undrain {node}` \
             takes it back"
        ),
    };
    parts([findings, result])
}

/// Balancers that are named with what they still lack; a line has no room for more.
const LACKING_NAMED_MAX: usize = 3;

/// Where a drain stands, in one line.
pub(super) fn line(status: &NodeDrainStatus) -> String {
    let node_drain::Connections { handed_off, open } = status.connections;
    let handing = if status.phase.has_reached(Phase::HandOff) {
        let all = status.balancers.len();
        let acknowledged = status.balancers.iter().filter(|one| one.behind == Some(0));
        let acknowledged = acknowledged.count();
        let lacking = lacking(&status.balancers);
        format!(
            ": {handed_off} connections handed off, acknowledged by {acknowledged} of {all}{lacking}, {open} open"
        )
    } else {
        String::new()
    };
    let waits = match status.waits_for.as_slice() {
        [] => String::new(),
        waits => format!("; waits for {}", waits.join("; ")),
    };
    format!("{:?}{handing}{waits}", status.phase)
}

/// Who lacks how many changes, those that lack most first.
fn lacking(balancers: &[Receiver]) -> String {
    let lack = |one: &Receiver| Some((one.behind.filter(|behind| *behind > 0)?, one.node.clone()));
    let mut lacking: Vec<(u64, String)> = balancers.iter().filter_map(lack).collect();
    lacking.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    let named = lacking.iter().take(LACKING_NAMED_MAX);
    let mut named: Vec<String> = named
        .map(|(behind, node)| format!("{node} lacks {behind}"))
        .collect();
    if let Some(rest @ 1..) = lacking.len().checked_sub(LACKING_NAMED_MAX) {
        named.push(format!("{rest} more"));
    }
    if named.is_empty() {
        String::new()
    } else {
        format!(" ({})", named.join(", "))
    }
}

/// A line that moves on a terminal, and a line for each change elsewhere.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    line: String,
    /// What was read last.
    pub(crate) status: NodeDrainStatus,
}

impl Progress {
    pub(crate) fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed} {wide_msg}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Self {
            bar,
            line: String::new(),
            status: NodeDrainStatus::default(),
        }
    }

    /// Shows a status. Says whether it is another one than before.
    pub(crate) fn show(&mut self, status: &NodeDrainStatus) -> bool {
        if *status == self.status {
            return false;
        }
        self.status.clone_from(status);
        let line = line(status);
        if line != self.line {
            match &self.bar {
                Some(bar) => bar.set_message(line.clone()),
                None => eprintln!("{line}"),
            }
            self.line = line;
        }
        true
    }

    pub(crate) fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
