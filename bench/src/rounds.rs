//! Rounds: every case once, then all of them again, so that what a shared machine does in between falls on all alike.

use std::time::Duration;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

/// Figures of one case, one a round.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples(Vec<f64>);

impl<const N: usize> From<[f64; N]> for Samples {
    fn from(values: [f64; N]) -> Self {
        Self(values.to_vec())
    }
}

impl Samples {
    /// Adds the figure of a round.
    pub(crate) fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// Adds all figures of others.
    pub(crate) fn extend(&mut self, others: &Self) {
        self.0.extend_from_slice(&others.0);
    }

    /// Their mean; zero without samples.
    #[expect(
        clippy::cast_precision_loss,
        reason = "there are fewer rounds than 2^52"
    )]
    pub(crate) fn mean(&self) -> f64 {
        self.0.iter().sum::<f64>() / self.0.len().max(1) as f64
    }

    /// How many rounds there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Minimum, median and maximum; zeroes without samples.
    pub(crate) fn spread(&self) -> (f64, f64, f64) {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        match (sorted.first(), sorted.get(sorted.len() / 2), sorted.last()) {
            (Some(&min), Some(&median), Some(&max)) => (min, median, max),
            _ => (0.0, 0.0, 0.0),
        }
    }

    /// Every round less `cost`.
    pub(crate) fn less(&self, cost: f64) -> Self {
        Self(self.0.iter().map(|value| value - cost).collect())
    }
}

/// Keeps this thread on the last processor that it may use: interrupts and other people's work prefer the first.
pub(crate) fn pin_to_a_processor() -> anyhow::Result<usize> {
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this)?;
    let last = (0..CpuSet::count())
        .rev()
        .find(|&n| allowed.is_set(n).unwrap_or(false))
        .unwrap_or(0);
    let mut only = CpuSet::new();
    only.set(last)?;
    sched_setaffinity(this, &only)?;
    Ok(last)
}

/// Processor time of this thread, in the kernel too: others that run in between do not count.
pub(crate) fn processor_time() -> anyhow::Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}

/// The processor time that `work` takes.
pub(crate) fn time<T>(work: impl FnOnce() -> T) -> anyhow::Result<(Duration, T)> {
    let start = processor_time()?;
    let done = work();
    Ok((processor_time()?.saturating_sub(start), done))
}

/// So many percent of the samples are at most this.
pub(crate) fn percentile(mut samples: Vec<f64>, percent: usize) -> f64 {
    samples.sort_by(f64::total_cmp);
    let at = (samples.len() * percent).div_ceil(100);
    samples
        .get(at.saturating_sub(1))
        .copied()
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spread_is_minimum_median_maximum_and_there_is_a_mean() {
        assert_eq!(Samples::from([3.0, 1.0, 9.0]).spread(), (1.0, 3.0, 9.0));
        assert_eq!(Samples::default().spread(), (0.0, 0.0, 0.0));
        let means = [Samples::default(), Samples::from([3.0, 1.0, 8.0])].map(|of| of.mean());
        assert_eq!((means[0], means[1]), (0.0, 4.0));
        assert_eq!(
            Samples::from([3.0, 5.0]).less(1.0).spread(),
            (2.0, 4.0, 4.0)
        );
    }
}
