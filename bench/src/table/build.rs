//! Building a whole table, beside the crate `maglev` and a rendezvous table.

use std::hint::black_box;

use lb_controller::model::maglev;
use lb_controller::model::shape::{HashFields, Shape, TableSize, Weight, Weights};

use ::maglev::ConsistentHasher as _;

use super::{SEED, beside_peers, equal_shape, rendezvous, wanted};
use crate::Length;
use crate::report::Row;
use crate::rounds::{self, Samples};

/// What is built in one case.
struct Build {
    case: String,
    rounds: usize,
    work: Box<dyn Fn() -> usize>,
}

/// Sizes that others have published figures for, and slots of the sizes that the rule picks.
const PUBLISHED: u32 = 65_537;
const PUBLISHED_SLOTS: [u16; 3] = [10, 100, 1000];
const RULE_SLOTS: [u16; 5] = [5, 10, 100, 1000, 5000];

pub(super) fn rows(length: Length, only: &str) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for build in builds(length)? {
        if !wanted(&build.case, only) && !only.is_empty() {
            continue;
        }
        let mut samples = Samples::default();
        for _ in 0..build.rounds {
            let (took, done) = rounds::time(&build.work)?;
            black_box(done);
            samples.push(took.as_secs_f64() * 1e3);
        }
        rows.push(Row::new(&build.case, "ms", &samples));
    }
    Ok(beside_peers(rows, peer))
}

/// The same table made by the crate.
fn peer(case: &str) -> Option<String> {
    ["table/build/", "table/weighted/", "table/build-rendezvous/"]
        .into_iter()
        .find_map(|kind| case.strip_prefix(kind))
        .map(|of| match of {
            _ if of.starts_with(&format!("m={PUBLISHED}")) => of,
            // The crate's permutations would not fit into memory: any of its tables serves as a clock.
            _ => "m=65537,n=10",
        })
        .map(|of| format!("table/build-crate-maglev/{of}"))
}

fn builds(length: Length) -> anyhow::Result<Vec<Build>> {
    let (ours, theirs) = match length {
        Length::Quick => (20, 2),
        Length::Full => (200, 5),
    };
    let mut builds = Vec::new();
    let mut add = |case: String, rounds, work: Box<dyn Fn() -> usize>| {
        builds.push(Build { case, rounds, work });
    };
    let published = TableSize::try_from(PUBLISHED)?;
    for n in PUBLISHED_SLOTS {
        let name = format!("m={PUBLISHED},n={n}");
        let equal = equal_shape(n, published)?;
        let weighted = Shape::new(n, weights(n)?, published, SEED, HashFields::FiveTuple)?;
        add(format!("table/build/{name}"), ours, build(equal));
        add(format!("table/weighted/{name}"), ours, build(weighted));
        add(
            format!("table/build-rendezvous/{name}"),
            theirs,
            Box::new(move || rendezvous::rows(n, PUBLISHED).len()),
        );
        add(
            format!("table/build-crate-maglev/{name}"),
            theirs,
            Box::new(move || {
                let made = ::maglev::Maglev::with_capacity(0..n, PUBLISHED as usize);
                usize::from(made.get(&0).copied().unwrap_or_default()) + made.capacity()
            }),
        );
    }
    for n in RULE_SLOTS {
        let size = TableSize::choose(n);
        let case = format!("table/build/m={},n={n}", size.get());
        add(case, ours, build(equal_shape(n, size)?));
    }
    Ok(builds)
}

fn build(shape: Shape) -> Box<dyn Fn() -> usize> {
    Box::new(move || {
        let rows: maglev::Rows = maglev::rows(&shape);
        rows.len()
    })
}

/// Weights from 1 to 10.
fn weights(n: u16) -> anyhow::Result<Weights> {
    let each: Result<Vec<Weight>, _> = (0..n)
        .map(|slot| Weight::try_from(u32::from(slot % 10) + 1))
        .collect();
    Ok(Weights::new(&each?))
}
