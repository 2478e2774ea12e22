//! The agent's sign of life: a thread of its own writes it every 100 ms, so that no apply, no list and no scrape can delay
//! it; and what it says: whether the node is fresh, and since when.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lb_ebpf::abi;

/// How often. A tenth of [`abi::STAMP_FRESH_NS`], so that a late write or two are not noticed.
pub const STAMP_PERIOD: Duration = Duration::from_millis(100);

/// Since when the node is fresh, in nanoseconds of the monotonic clock; shared by the core, which knows, and the thread,
/// which writes.
#[derive(Clone, Debug, Default)]
pub struct Fresh(Arc<AtomicU64>);

impl Fresh {
    /// Says whether the node is fresh; the beginning of a fresh period is kept while it lasts.
    pub fn set(&self, fresh: bool, now_ns: u64) {
        if !fresh {
            self.0.store(0, Ordering::Relaxed);
        } else if self.0.load(Ordering::Relaxed) == 0 {
            // Only the core sets it, so nothing can come between.
            self.0.store(now_ns.max(1), Ordering::Relaxed);
        }
    }

    /// Whether it is.
    pub fn is(&self) -> bool {
        self.0.load(Ordering::Relaxed) != 0
    }

    /// What to write now.
    pub fn stamp(&self, now_ns: u64) -> abi::Stamp {
        abi::Stamp {
            stamped_ns: now_ns,
            fresh_since_ns: self.0.load(Ordering::Relaxed),
        }
    }
}

/// Nanoseconds of the clock that programs read with `bpf_ktime_get_ns`.
pub fn monotonic_ns() -> u64 {
    // Linux never refuses; were it to, 0 reads as a stamp of long ago, which is safe.
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .map_or(0, |now| Duration::from(now).as_nanos() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fresh_period_keeps_its_beginning_until_it_ends() {
        let fresh = Fresh::default();
        assert_eq!(
            fresh.stamp(5),
            abi::Stamp {
                stamped_ns: 5,
                fresh_since_ns: 0
            }
        );
        fresh.set(true, 10);
        fresh.set(true, 20);
        assert_eq!(
            fresh.stamp(30),
            abi::Stamp {
                stamped_ns: 30,
                fresh_since_ns: 10
            }
        );
        fresh.set(false, 40);
        fresh.set(true, 50);
        assert_eq!(
            fresh.stamp(60),
            abi::Stamp {
                stamped_ns: 60,
                fresh_since_ns: 50
            }
        );
    }
}
