//! Suite `control`: from an object to the tables in the maps. Real cores of manager and agent, real maps, generated objects.
//!
//! ```text
//! gone      an endpoint has begun to end      slice ─▶ manager ─▶ table ─▶ agent ─▶ maps
//! arrive    another pod has taken its place   the same way
//! ```
//!
//! Own time is all that our code does, decoding and encoding included. What goes away goes through the manager too: an
//! agent does not act on its own view of endpoints yet.

mod cores;
mod lists;
mod memory;
mod node;
mod objects;
mod server;

pub(crate) use self::node::PINS;
use std::path::Path;
use std::time::Duration;

use lb_controller::agent::core::Core as Agent;

use self::cores::{Cluster, Took};
use self::node::{Handoff, Node};
use self::objects::{First, OWN_NODE, Scale};
use crate::pin_dir::PinDir;
use crate::report::{Aim, Row};
use crate::rounds::{Samples, percentile};
use crate::{Length, Outcome};

/// What was promised, on the machine that `README.md` describes.
pub(crate) const AIMS: &[Aim] = &[
    Aim {
        case: "control/gone-p99/services=10000",
        limit: 5.0,
    },
    Aim {
        case: "control/arrive-p99/services=10000",
        limit: 5.0,
    },
    Aim {
        case: "control/start/services=10000",
        limit: 3000.0,
    },
    Aim {
        case: "control/start-manager/services=10000",
        limit: 3000.0,
    },
    Aim {
        case: "control/memory/services=10000",
        limit: 150.0,
    },
    Aim {
        case: "control/writes-of-tables/services=10000",
        limit: 1.0,
    },
    Aim {
        case: "control/writes-of-others/services=10000",
        limit: 0.0,
    },
    Aim {
        case: "control/writes-of-agent/services=10000",
        limit: 0.0,
    },
];

/// Of each Service.
const ENDPOINTS: u32 = 10;

/// Measures all cases whose name contains `only`.
pub(crate) fn run(length: Length, only: &str) -> Outcome {
    let sizes: &[u32] = match length {
        Length::Quick => &[10, 1000],
        Length::Full => &[10, 1000, 10_000],
    };
    let mut outcome = Outcome::default();
    // A size takes its time, so others are left out if one is named.
    let named = only.split_once("services=").map(|(_, size)| size);
    let sizes = sizes
        .iter()
        .filter(|size| named.is_none_or(|named| size.to_string() == named));
    for services in sizes {
        let scale = Scale {
            services: *services,
            endpoints: ENDPOINTS,
        };
        let rows = own(scale, length).and_then(|mut rows| {
            // Making a thousand Services at an API server takes longer than all the rest.
            if length == Length::Full || *services <= 10 {
                rows.extend(whole(scale, length, &rows)?);
            }
            Ok(rows)
        });
        match rows {
            Ok(rows) => outcome.rows.extend(rows),
            Err(error) => outcome
                .errors
                .push(format!("control/services={services}: {error:#}")),
        }
    }
    let small = outcome.rows.clone();
    for row in &mut outcome.rows {
        let Some((case, _)) = row.case.split_once("/services=") else {
            continue;
        };
        let peer = format!("{case}/services=10");
        let peer = small.iter().find(|other| other.case == peer);
        if let Some(peer) = peer.filter(|peer| peer.case != row.case && case.contains("-p")) {
            *row = row.clone().beside(peer);
        }
    }
    outcome.rows.retain(|row| row.case.contains(only));
    outcome
}

/// The hidden suite: an agent that is weighed.
pub(crate) fn agent() -> anyhow::Result<()> {
    let weighed = memory::serve()?;
    println!("{}", serde_json::to_string(&weighed)?);
    Ok(())
}

/// An agent in the smallest cluster, with maps of its own at `dir`, that is told pins.
pub(crate) fn balancer(dir: &Path) -> anyhow::Result<Agent> {
    let scale = Scale {
        services: 1,
        endpoints: ENDPOINTS,
    };
    let mut node = Node::open_at(dir, Handoff::On)?;
    node.start(lists::agent_lists(scale)?, lists::no_tables())?;
    Ok(node.agent)
}

/// A node of that cluster that has another agent.
pub(crate) fn other_node() -> String {
    objects::node_name(OWN_NODE + 1)
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// What our own code takes at one size.
fn own(scale: Scale, length: Length) -> anyhow::Result<Vec<Row>> {
    let (rounds, events) = match length {
        Length::Quick => (2, 50),
        Length::Full => (5, 200),
    };
    let name = format!("services={}", scale.services);
    let dir = PinDir::make()?;
    let mut cluster = Cluster::start(scale, &dir)?;
    let once = |case: &str, unit: &str, value: f64| {
        Row::new(
            &format!("control/{case}/{name}"),
            unit,
            &Samples::from([value]),
        )
    };
    let mut rows = vec![
        once("start", "ms", milliseconds(cluster.agent_start)),
        once("start-manager", "ms", milliseconds(cluster.manager_start)),
    ];
    let mut figures: Vec<(String, Samples)> = Vec::new();
    let mut note =
        |case: String, value: f64| match figures.iter_mut().find(|(known, _)| *known == case) {
            Some((_, samples)) => samples.push(value),
            None => figures.push((case, Samples::from([value]))),
        };
    let mut next = (0..scale.services).cycle();
    for _ in 0..rounds {
        let mut took: [Vec<Took>; 2] = Default::default();
        for _ in 0..events {
            let service = next.next().unwrap_or_default();
            took[0].push(cluster.change(service, First::Terminating)?);
            took[1].push(cluster.change(service, First::Replaced)?);
            cluster.change(service, First::Original)?;
        }
        for (case, took) in ["gone", "arrive"].into_iter().zip(took) {
            let both = |took: &Took| milliseconds(took.manager + took.agent);
            let all: Vec<f64> = took.iter().map(both).collect();
            note(format!("{case}-p50"), percentile(all.clone(), 50));
            note(format!("{case}-p99"), percentile(all, 99));
            let manager = took.iter().map(|took| milliseconds(took.manager)).collect();
            note(format!("{case}-manager-p99"), percentile(manager, 99));
            let agent = took.iter().map(|took| milliseconds(took.agent)).collect();
            note(format!("{case}-agent-p99"), percentile(agent, 99));
        }
    }
    rows.extend(
        figures
            .iter()
            .map(|(case, samples)| Row::new(&format!("control/{case}/{name}"), "ms", samples)),
    );
    let tables: Vec<_> = cluster.tables()?.into_values().collect();
    rows.push(once("restart", "ms", milliseconds(cluster.restart(&dir)?)));
    let weighed = memory::weigh(lists::agent_objects(scale), &tables)?;
    rows.push(once("memory", "MB", weighed.resident / 1e6));
    rows.push(once("memory-peak", "MB", weighed.peak / 1e6));
    Ok(rows)
}

/// The same through a real API server, and who writes how often.
fn whole(scale: Scale, length: Length, own: &[Row]) -> anyhow::Result<Vec<Row>> {
    let changes = match length {
        Length::Quick => 20,
        Length::Full => 500,
    };
    let dir = PinDir::make()?;
    let found = server::measure(scale, changes, &dir)?;
    let name = format!("services={}", scale.services);
    let row = |case: &str, unit: &str, value: f64| {
        Row::new(
            &format!("control/{case}/{name}"),
            unit,
            &Samples::from([value]),
        )
    };
    let mut rows = vec![row("start-whole", "ms", found.start)];
    for (case, times) in [("gone", found.gone), ("arrive", found.arrive)] {
        let median = percentile(times.clone(), 50);
        rows.push(row(&format!("{case}-whole-p50"), "ms", median));
        let late = percentile(times, 99);
        rows.push(row(&format!("{case}-whole-p99"), "ms", late));
        let ours = format!("control/{case}-p50/{name}");
        if let Some(ours) = own.iter().find(|row| row.case == ours) {
            let server = median - ours.median;
            rows.push(row(&format!("{case}-server-p50"), "ms", server));
        }
    }
    rows.extend([
        row("writes-of-tables", "per change", found.table_writes),
        row("writes-of-others", "per change", found.other_writes),
        row("writes-of-agent", "per change", found.agent_writes),
        row("watch-events", "per change", found.watch_events),
        row("watch-bytes", "per change", found.watch_bytes),
    ]);
    Ok(rows)
}
