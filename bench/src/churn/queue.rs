//! What happens when: events by time, those of one instant in the order in which they were said.
//!
//! Knows nothing of what an event is.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// Simulated time in nanoseconds since the start of a run.
pub(super) type Nanos = u64;

/// A millisecond.
pub(super) const MS: Nanos = 1_000_000;
/// A second.
pub(super) const SECOND: Nanos = 1_000 * MS;

/// When runs begin, for the model: it counts in instants, whose differences alone matter.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// A time as an instant.
pub(super) fn instant(now: Nanos) -> Instant {
    *START + Duration::from_nanos(now)
}

/// The time of an instant; never before the start of the run.
pub(super) fn nanos(at: Instant) -> Nanos {
    at.saturating_duration_since(*START).as_nanos() as Nanos
}

/// Events to come.
pub(super) struct Queue<E> {
    heap: BinaryHeap<Reverse<Entry<E>>>,
    now: Nanos,
    said: u64,
}

struct Entry<E> {
    at: Nanos,
    order: u64,
    event: E,
}

impl<E> Entry<E> {
    fn key(&self) -> (Nanos, u64) {
        (self.at, self.order)
    }
}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl<E> Eq for Entry<E> {}

impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for Entry<E> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(&other.key())
    }
}

impl<E> Queue<E> {
    /// Nothing to come, at time 0.
    pub(super) fn new() -> Self {
        Self {
            heap: BinaryHeap::new(),
            now: 0,
            said: 0,
        }
    }

    /// The time of the event that was taken last.
    pub(super) fn now(&self) -> Nanos {
        self.now
    }

    /// Time passes, though nothing of this queue happens.
    pub(super) fn advance(&mut self, to: Nanos) {
        self.now = self.now.max(to);
    }

    /// Says that something happens at a time; what is in the past happens now.
    pub(super) fn at(&mut self, at: Nanos, event: E) {
        let entry = Entry {
            at: at.max(self.now),
            order: self.said,
            event,
        };
        self.said += 1;
        self.heap.push(Reverse(entry));
    }

    /// Says that something happens so much later.
    pub(super) fn after(&mut self, delay: Nanos, event: E) {
        self.at(self.now + delay, event);
    }

    /// The time of the next event.
    pub(super) fn due(&self) -> Option<Nanos> {
        self.heap.peek().map(|Reverse(entry)| entry.at)
    }

    /// The next event; its time is now.
    pub(super) fn next(&mut self) -> Option<E> {
        let Reverse(entry) = self.heap.pop()?;
        self.now = entry.at;
        Some(entry.event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(queue: &mut Queue<&'static str>) -> Vec<(Nanos, &'static str)> {
        std::iter::from_fn(|| queue.next().map(|event| (queue.now(), event))).collect()
    }

    #[test]
    fn events_come_by_time_and_then_in_the_order_in_which_they_were_said() {
        let mut queue = Queue::new();
        for (at, event) in [(5, "c"), (3, "a"), (5, "d"), (3, "b"), (9, "e")] {
            queue.at(at, event);
        }
        assert_eq!(
            all(&mut queue),
            [(3, "a"), (3, "b"), (5, "c"), (5, "d"), (9, "e")]
        );
    }

    #[test]
    fn the_past_happens_now_and_after_what_was_said_before() {
        let mut queue = Queue::new();
        queue.at(7, "first");
        queue.at(7, "second");
        assert_eq!(queue.next(), Some("first"));
        queue.at(2, "late");
        queue.after(1, "later");
        assert_eq!(all(&mut queue), [(7, "second"), (7, "late"), (8, "later")]);
    }

    #[test]
    fn time_that_passes_elsewhere_does_not_come_back() {
        let mut queue = Queue::new();
        queue.at(7, "first");
        queue.advance(5);
        assert_eq!((queue.now(), queue.due()), (5, Some(7)));
        queue.advance(3);
        queue.after(1, "second");
        assert_eq!(all(&mut queue), [(6, "second"), (7, "first")]);
        assert_eq!(queue.due(), None);
    }

    #[test]
    fn instants_go_there_and_back() {
        for now in [0, 1, 17 * SECOND + 5] {
            assert_eq!(nanos(instant(now)), now);
        }
    }
}
