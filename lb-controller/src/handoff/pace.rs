//! When to send: many changes at once, a few after a moment, so that a burst is one message and a single change is not late.
//! Pure.

use std::time::{Duration, Instant};

use super::RECORDS_MAX;

/// Since when there has been something to send.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Pace {
    since: Option<Instant>,
}

impl Pace {
    /// When `behind` changes are to be sent; never, if there are none. `now` or earlier means now.
    pub(super) fn due(&mut self, behind: u64, flush: Duration, now: Instant) -> Option<Instant> {
        if behind == 0 {
            self.since = None;
            return None;
        }
        let since = *self.since.get_or_insert(now);
        if behind >= RECORDS_MAX as u64 {
            return Some(now);
        }
        Some(since + flush)
    }

    /// They were sent.
    pub(super) fn sent(&mut self) {
        self.since = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLUSH: Duration = Duration::from_millis(20);

    #[test]
    fn a_few_changes_wait_from_the_first_one_on() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        let later = start + Duration::from_millis(7);
        assert_eq!(pace.due(0, FLUSH, start), None);
        assert_eq!(pace.due(1, FLUSH, start), Some(start + FLUSH));
        assert_eq!(pace.due(9, FLUSH, later), Some(start + FLUSH));
        pace.sent();
        assert_eq!(pace.due(1, FLUSH, later), Some(later + FLUSH));
    }

    #[test]
    fn a_full_message_does_not_wait() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        let later = start + Duration::from_millis(7);
        assert_eq!(pace.due(999, FLUSH, start), Some(start + FLUSH));
        assert_eq!(pace.due(1000, FLUSH, later), Some(later));
    }

    #[test]
    fn draining_hurries_what_waits_already() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        let urgent = Duration::from_millis(5);
        pace.due(1, FLUSH, start);
        assert_eq!(
            pace.due(1, urgent, start + Duration::from_millis(6)),
            Some(start + urgent)
        );
    }
}
