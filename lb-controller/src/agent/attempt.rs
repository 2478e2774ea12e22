//! Something that is tried until it succeeds, with growing pauses. Knows no clock.

use std::time::{Duration, Instant};

/// First pause after a failure …
const RETRY_FIRST: Duration = Duration::from_millis(50);
/// … doubled after each one up to this.
const RETRY_MAX: Duration = Duration::from_secs(5);

/// Something that is tried until it succeeds.
#[derive(Clone, Debug, Default)]
pub(super) struct Attempt {
    /// When to try (again); none when there is nothing to do.
    pub(super) due: Option<Instant>,
    pause: Duration,
    /// Why the last try failed.
    pub(super) error: Option<String>,
}

impl Attempt {
    /// Wants it done now, or when its pause is over.
    pub(super) fn want(&mut self, now: Instant) {
        if self.error.is_none() || self.due.is_none() {
            self.due = Some(now);
        }
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.due.is_some_and(|due| due <= now)
    }

    pub(super) fn record(&mut self, outcome: Result<(), String>, now: Instant) {
        match outcome {
            Ok(()) => *self = Self::default(),
            Err(error) => {
                self.pause = (self.pause * 2).clamp(RETRY_FIRST, RETRY_MAX);
                self.due = Some(now + self.pause);
                self.error = Some(error);
            }
        }
    }

    /// Wanted, and not yet tried: nothing has failed.
    pub(super) fn is_waiting(&self) -> bool {
        self.due.is_some() && self.error.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_while_it_fails_and_end_with_success() {
        let start = Instant::now();
        let mut attempt = Attempt::default();
        attempt.want(start);
        assert!(attempt.is_due(start) && attempt.is_waiting());
        let mut pauses = Vec::new();
        let mut now = start;
        for _ in 0..9 {
            attempt.record(Err("no".to_owned()), now);
            let due = attempt.due.unwrap();
            pauses.push((due - now).as_millis());
            // Wanting it again does not shorten the pause.
            attempt.want(now);
            assert_eq!(attempt.due, Some(due));
            now = due;
        }
        assert_eq!(pauses, [50, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        attempt.record(Ok(()), now);
        assert_eq!(
            (attempt.due, attempt.error, attempt.pause),
            (None, None, Duration::ZERO)
        );
    }
}
