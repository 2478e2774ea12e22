//! Whether connections are spread as Maglev promises: Pearson's chi-square against equal shares.
//!
//! With equal weights every slot has ⌊rows / slots⌋ or one more row, so shares differ by less than 1 % of a share at 100
//! rows a slot; over some 10,000 connections that adds less than 0.1 to the statistic and is left out. The hash is keyed
//! and does not know the tables, so connections fall independently, and the statistic follows chi-square with one degree
//! of freedom less than there are pods.

use serde::Serialize;

/// Standard normal quantile of 0.9999: a run in 10,000 fails without a fault.
const QUANTILE: f64 = 3.719;

/// A comparison of counts with equal shares.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Spread {
    /// Pearson's statistic.
    pub(crate) chi_square: f64,
    /// What it stays below in 9,999 of 10,000 runs.
    pub(crate) bound: f64,
    /// Fewest connections of a pod, over the mean.
    pub(crate) least: f64,
    /// Most connections of a pod, over the mean.
    pub(crate) most: f64,
}

impl Spread {
    /// Of these counts, one for every pod that should get connections; none for less than two pods or no connection.
    #[expect(
        clippy::cast_precision_loss,
        reason = "a lab opens far fewer than 2^52 connections"
    )]
    pub(crate) fn of(counts: &[u64]) -> Option<Self> {
        let total: u64 = counts.iter().sum();
        if counts.len() < 2 || total == 0 {
            return None;
        }
        let mean = total as f64 / counts.len() as f64;
        let chi_square = counts
            .iter()
            .map(|count| (*count as f64 - mean).powi(2) / mean)
            .sum();
        // Wilson and Hilferty: the cube root of chi-square over its degrees of freedom is close to normal.
        let freedom = (counts.len() - 1) as f64;
        let part = 2.0 / (9.0 * freedom);
        let bound = freedom * (1.0 - part + QUANTILE * part.sqrt()).powi(3);
        let over_mean = |count: Option<&u64>| count.map_or(0.0, |count| *count as f64 / mean);
        Some(Self {
            chi_square,
            bound,
            least: over_mean(counts.iter().min()),
            most: over_mean(counts.iter().max()),
        })
    }

    /// Within the bound.
    pub(crate) fn is_even(self) -> bool {
        self.chi_square <= self.bound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bound_is_that_of_the_tables() {
        // chi-square, 5 degrees of freedom, 0.9999: 25.745; the approximation is within a few per cent.
        let bound = Spread::of(&[1; 6]).unwrap().bound;
        assert!((bound - 25.745).abs() < 1.0, "{bound}");
    }

    #[test]
    fn a_pod_with_a_tenth_too_many_is_noticed() {
        assert!(
            Spread::of(&[2000, 2040, 1960, 2010, 1990])
                .unwrap()
                .is_even()
        );
        assert!(
            !Spread::of(&[2000, 2300, 1900, 1900, 1900])
                .unwrap()
                .is_even()
        );
        assert_eq!(Spread::of(&[5]), None);
    }
}
