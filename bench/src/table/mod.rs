//! Suite `table`: how long tables take to build and to change, how much of them changes, and what they weigh.
//!
//! Times are processor time of one thread.

mod build;
mod change;
mod memory;
mod objects;
mod rendezvous;
mod rows_changed;

use lb_controller::model::maglev::{self, Rows};
use lb_controller::model::shape::{HashFields, Shape, TableSize, Weights};

use crate::report::{Aim, Row};
use crate::rounds;
use crate::{Length, Outcome};

/// What was promised, on the machine that `README.md` describes.
pub(crate) const AIMS: &[Aim] = &[
    Aim {
        case: "table/build/m=65537,n=1000",
        limit: 0.5,
    },
    Aim {
        case: "table/change/m=65537,n=1000",
        limit: 0.002,
    },
    Aim {
        case: "table/memory/services=10000,endpoints=5",
        limit: 20.0,
    },
];

/// Seed of all tables here.
const SEED: u64 = 0;

/// Measures all cases whose name contains `only`.
pub(crate) fn run(length: Length, only: &str) -> anyhow::Result<Outcome> {
    rounds::pin_to_a_processor()?;
    let mut outcome = Outcome::default();
    let parts = [
        ("build", build::rows(length, only)),
        ("change, resize", change::rows(length, only)),
        ("rows-changed", rows_changed::rows(only)),
        ("memory", memory::rows(only)),
    ];
    for (part, rows) in parts {
        match rows {
            Ok(rows) => outcome.rows.extend(rows),
            Err(error) => outcome.errors.push(format!("table/{part}: {error:#}")),
        }
    }
    Ok(outcome)
}

/// The rows of `n` slots of equal weight, at the size that the rule picks.
pub(crate) fn equal_rows(n: u16) -> anyhow::Result<Rows> {
    Ok(maglev::rows(&equal_shape(n, TableSize::choose(n))?))
}

fn equal_shape(n: u16, size: TableSize) -> anyhow::Result<Shape> {
    Ok(Shape::new(
        n,
        Weights::default(),
        size,
        SEED,
        HashFields::FiveTuple,
    )?)
}

/// Whether a case is asked for.
fn wanted(case: &str, only: &str) -> bool {
    case.contains(only)
}

/// Each row of `rows` beside its peer of the same run, if there is one.
fn beside_peers(rows: Vec<Row>, peer: impl Fn(&str) -> Option<String>) -> Vec<Row> {
    let all = rows.clone();
    let find = |case: &str| {
        let peer = peer(case)?;
        all.iter().find(|row| row.case == peer)
    };
    rows.into_iter()
        .map(|row| match find(&row.case) {
            Some(other) => row.beside(other),
            None => row,
        })
        .collect()
}
