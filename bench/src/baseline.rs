//! A committed run to compare with, by ratios only: times differ between machines, ratios within one run hardly do.

use std::path::Path;

use crate::report::{Report, Row};

/// How much a ratio may grow, and by how much at least, before it is a regression.
///
/// Minima of single-flow cases repeat within 3 ns, those of many flows move by up to 40 % on a shared machine with
/// shared caches, and a short run sees fewer quiet moments: so a case must be far off to fail.
struct Tolerance {
    /// Which cases: a part of their names. The first that fits counts.
    part: &'static str,
    /// Factor.
    factor: f64,
    /// Addend, in units of the row that the ratio is to: what a small ratio may move by noise alone.
    slack: f64,
}

const TOLERANCES: &[Tolerance] = &[
    // Counted, not timed.
    Tolerance {
        part: "table/memory",
        factor: 1.05,
        slack: 0.0,
    },
    Tolerance {
        part: "table/rows-changed",
        factor: 1.05,
        slack: 0.0,
    },
    Tolerance {
        part: "table/",
        factor: 2.0,
        slack: 0.0,
    },
    // Bound by caches that others use too.
    Tolerance {
        part: "flows=64Ki",
        factor: 2.0,
        slack: 2.0,
    },
    Tolerance {
        part: "flows=1Mi",
        factor: 2.0,
        slack: 2.0,
    },
    Tolerance {
        part: "packet/",
        factor: 1.5,
        slack: 1.5,
    },
];

/// One sentence for each case that has become worse or has vanished.
pub(crate) fn regressions(now: &[Row], baseline: &[Row], suite: &str) -> Vec<String> {
    baseline
        .iter()
        .filter(|was| was.case.starts_with(suite))
        .filter_map(|was| regression(now.iter().find(|row| row.case == was.case), was))
        .collect()
}

fn regression(now: Option<&Row>, was: &Row) -> Option<String> {
    let Some(now) = now else {
        return Some(format!("{}: in the baseline, but not measured", was.case));
    };
    let (ratio, before) = (now.ratio?, was.ratio?);
    let tolerance = TOLERANCES.iter().find(|t| was.case.contains(t.part))?;
    let limit = before * tolerance.factor + tolerance.slack;
    (ratio > limit).then(|| {
        format!(
            "{}: {ratio:.2} × {}, was {before:.2} and may be {limit:.2}",
            was.case,
            now.ratio_to.as_deref().unwrap_or_default(),
        )
    })
}

/// Puts the rows of this suite into the baseline in place of those that it has.
pub(crate) fn replace(path: &Path, report: &Report, suite: &str) -> anyhow::Result<()> {
    let mut rows = if path.exists() {
        Report::read(path)?.rows
    } else {
        Vec::new()
    };
    rows.retain(|row| !row.case.starts_with(suite));
    rows.extend(report.rows.iter().cloned());
    let merged = Report {
        rows,
        ..report.clone()
    };
    merged.write(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rounds::Samples;

    fn row(case: &str, figure: f64) -> Row {
        let base = Row::new("packet/floor/xdp_tx", "ns", &Samples::from([10.0]));
        Row::new(case, "ns", &Samples::from([figure])).beside(&base)
    }

    #[test]
    fn a_ratio_far_beyond_the_baseline_is_a_regression() {
        let was = [row("packet/syn4", 30.0)];
        assert!(regressions(&[row("packet/syn4", 59.0)], &was, "packet/").is_empty());
        assert_eq!(
            regressions(&[row("packet/syn4", 90.0)], &was, "packet/"),
            ["packet/syn4: 9.00 × packet/floor/xdp_tx, was 3.00 and may be 6.00"]
        );
    }

    #[test]
    fn a_case_that_is_no_longer_measured_is_a_regression() {
        let was = [row("packet/syn4", 30.0)];
        assert_eq!(
            regressions(&[], &was, "packet/"),
            ["packet/syn4: in the baseline, but not measured"]
        );
        assert!(regressions(&[], &was, "table/").is_empty());
    }
}
