//! An agent in a process of its own, so that what it keeps can be told from what the harness keeps. It is told objects as
//! lines on standard input, and answers one line.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufWriter, Write as _};
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use lb_controller::source::index::Event;
use lb_controller::source::parse::{Kind, Object, ObjectKey};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::cores::resident;
use super::lists::{Who, decoded};
use super::node::Node;
use crate::pin_dir::PinDir;

/// What is told, in this order. An agent's lists come at the same time; the tables are what it can do nothing without.
const KINDS: [(&str, Kind); 8] = [
    ("node", Kind::Node),
    ("pool", Kind::AddressPool),
    ("advertisement", Kind::L2Advertisement),
    ("balancer", Kind::LoadBalancerNode),
    ("pod", Kind::Pod),
    ("service", Kind::Service),
    ("slice", Kind::EndpointSlice),
    ("table", Kind::ServiceTable),
];

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Weighed {
    /// Resident bytes when all is applied.
    pub(super) resident: f64,
    /// Most that it ever had.
    pub(super) peak: f64,
    /// From complete lists to tables in the maps, ms.
    pub(super) start_ms: f64,
}

/// The agent's side.
pub(super) fn serve() -> anyhow::Result<Weighed> {
    let dir = PinDir::make()?;
    let mut node = Node::open(&dir)?;
    let mut lists: BTreeMap<Kind, BTreeMap<ObjectKey, Object>> = BTreeMap::new();
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let (kind, json) = line.split_once(' ').context("no kind")?;
        let (_, kind) = KINDS
            .iter()
            .find(|(name, _)| *name == kind)
            .context("an unknown kind")?;
        let (key, object) = decoded(Who::Agent, *kind, json)?;
        lists.entry(*kind).or_default().insert(key, object);
    }
    let mut events: Vec<_> = lists
        .into_iter()
        .map(|(kind, objects)| Event::Reset {
            kind,
            objects,
            refused: BTreeMap::new(),
        })
        .collect();
    let tables = events.iter().position(
        |event| matches!(event, Event::Reset { kind, .. } if *kind == Kind::ServiceTable),
    );
    let tables = events.remove(tables.context("no tables")?);
    let took = node.start(events, tables)?;
    let (resident, peak) = resident()?;
    Ok(Weighed {
        resident,
        peak,
        start_ms: took.as_secs_f64() * 1e3,
    })
}

/// The harness's side: tells it all objects.
pub(super) fn weigh(
    objects: impl IntoIterator<Item = (Kind, Value)>,
    tables: &[Object],
) -> anyhow::Result<Weighed> {
    let mut child = Command::new(std::env::current_exe()?)
        .arg("control-agent")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("start an agent of its own")?;
    let mut input = BufWriter::new(child.stdin.take().context("no pipe")?);
    for (kind, object) in objects {
        let (name, _) = KINDS
            .iter()
            .find(|(_, known)| *known == kind)
            .context("an unknown kind")?;
        writeln!(input, "{name} {object}")?;
    }
    for table in tables.iter().filter_map(Object::service_table) {
        writeln!(input, "table {}", serde_json::to_string(table)?)?;
    }
    input.flush()?;
    drop(input);
    let output = child.wait_with_output()?;
    ensure!(
        output.status.success(),
        "the agent ended: {}",
        output.status
    );
    Ok(serde_json::from_slice(&output.stdout)?)
}
