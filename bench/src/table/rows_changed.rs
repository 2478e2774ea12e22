//! How many rows change owner when one of `n` slots closes and the size stays. (A pod that is replaced changes none.)

use lb_controller::model::maglev;
use lb_controller::model::shape::TableSize;

use super::{beside_peers, equal_shape, rendezvous, wanted};
use crate::report::Row;
use crate::rounds::Samples;

const CASES: [(u32, u16); 4] = [(65_537, 100), (65_537, 1000), (16_381, 100), (1_021, 10)];

pub(super) fn rows(only: &str) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (size, n) in CASES {
        let name = format!("m={size},n={n}");
        let case = format!("table/rows-changed/{name}");
        if !wanted(&case, only) {
            continue;
        }
        let size = TableSize::try_from(size)?;
        let before = maglev::rows(&equal_shape(n, size)?);
        let after = maglev::rows(&equal_shape(n - 1, size)?);
        rows.push(row(&case, &before, &after));
        // Rendezvous changes no more than must be.
        let (before, after) = (
            rendezvous::rows(n, size.get()),
            rendezvous::rows(n - 1, size.get()),
        );
        rows.push(row(
            &format!("table/rows-changed-rendezvous/{name}"),
            &before,
            &after,
        ));
    }
    Ok(beside_peers(rows, |case| {
        let of = case.strip_prefix("table/rows-changed/")?;
        Some(format!("table/rows-changed-rendezvous/{of}"))
    }))
}

fn row(case: &str, before: &[u16], after: &[u16]) -> Row {
    let pairs = before.iter().zip(after);
    // Ones and zeroes, so that no count is cast.
    let changed: f64 = pairs.map(|(a, b)| f64::from(u8::from(a != b))).sum();
    let percent = changed * 100.0 / before.iter().map(|_| 1.0).sum::<f64>();
    Row::new(case, "%", &Samples::from([percent]))
}
