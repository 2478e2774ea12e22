//! Maps that fail on purpose: wraps any [`Dataplane`] and refuses operations by a plan.
//!
//! The plan is a function of the operation's number and of the operation, so a failing test is repeated exactly.

use lb_ebpf::abi::map;

use super::{ApplyError, Capacity, Contents, Counters, Dataplane};
use crate::model::op::{Op, ServiceKey};

/// How an operation fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The map has no room.
    Full,
    /// The kernel was interrupted (`EINTR`): it works when tried again.
    Interrupted,
    /// The kernel had no memory (`ENOMEM`).
    NoMemory,
}

/// Says whether operation number `n` (from 0, failed ones counted) fails, and how.
pub type Plan = Box<dyn FnMut(u64, &Op) -> Option<Fault> + Send>;

/// A [`Dataplane`] that fails by plan. A failed operation does not reach the wrapped one.
pub struct FaultyDataplane<D> {
    inner: D,
    plan: Plan,
    asked: u64,
    failed: u64,
}

impl<D: Dataplane> FaultyDataplane<D> {
    /// Fails whenever `plan` says so.
    pub fn new(inner: D, plan: impl FnMut(u64, &Op) -> Option<Fault> + Send + 'static) -> Self {
        Self {
            inner,
            plan: Box::new(plan),
            asked: 0,
            failed: 0,
        }
    }

    /// Fails operation number `n` (from 0), and no other.
    pub fn at(inner: D, n: u64, fault: Fault) -> Self {
        Self::new(inner, move |number, _| (number == n).then_some(fault))
    }

    /// Fails about one operation in `one_in`, chosen by `seed`.
    ///
    /// # Panics
    /// If `one_in` is 0.
    pub fn seeded(inner: D, seed: u64, one_in: u64) -> Self {
        assert!(one_in > 0, "one in none is no rate");
        Self::new(inner, move |number, _| {
            let random = mix(seed ^ mix(number));
            let fault = match (random >> 32) % 3 {
                0 => Fault::Full,
                1 => Fault::Interrupted,
                _ => Fault::NoMemory,
            };
            random.is_multiple_of(one_in).then_some(fault)
        })
    }

    /// From now on by another plan.
    pub fn set_plan(&mut self, plan: impl FnMut(u64, &Op) -> Option<Fault> + Send + 'static) {
        self.plan = Box::new(plan);
    }

    /// From now on nothing fails.
    pub fn heal(&mut self) {
        self.set_plan(|_, _| None);
    }

    /// How many operations were refused.
    pub fn failed(&self) -> u64 {
        self.failed
    }

    /// The wrapped maps.
    pub fn inner(&self) -> &D {
        &self.inner
    }

    /// The wrapped maps.
    pub fn inner_mut(&mut self) -> &mut D {
        &mut self.inner
    }
}

/// The finisher of `SplitMix64`: every bit of the answer depends on every bit of the input.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// The map that an operation is about.
fn map_of(op: &Op) -> &'static str {
    match op {
        Op::Backend { .. } | Op::FreeBackend { .. } => map::BACKENDS,
        Op::Rows { .. } => map::ROWS,
        Op::FreeRegion { .. } => map::REGIONS,
        Op::Set { .. } | Op::FreeSet { .. } => map::SETS,
        Op::Slot { .. } => map::SLOTS,
        Op::Service {
            key: ServiceKey::V4(_),
            ..
        }
        | Op::RemoveService {
            key: ServiceKey::V4(_),
        } => map::SERVICES4,
        Op::Service {
            key: ServiceKey::V6(_),
            ..
        }
        | Op::RemoveService {
            key: ServiceKey::V6(_),
        } => map::SERVICES6,
        Op::ClearCount { .. } => map::SERVICES_COUNT,
        Op::Local { .. } | Op::RemoveLocal { .. } => map::LOCALS4,
        Op::Pin { .. } | Op::RemovePin { .. } => map::PINS4,
        Op::PurgeFlows { .. } => map::FLOWS4,
        Op::Peer { .. } | Op::RemovePeer { .. } => map::PEERS,
        Op::SourceRange { .. } | Op::RemoveSourceRange { .. } => map::SOURCE_RANGES,
        Op::Announce { .. } | Op::RemoveAnnounce { .. } => map::ANNOUNCED,
        Op::Config { .. } => map::CONFIG,
        Op::Grace => "grace",
    }
}

impl<D: Dataplane> Dataplane for FaultyDataplane<D> {
    fn capacity(&self) -> Capacity {
        self.inner.capacity()
    }

    fn read(&mut self) -> Result<Contents, ApplyError> {
        self.inner.read()
    }

    fn apply(&mut self, op: &Op) -> Result<(), ApplyError> {
        let number = self.asked;
        self.asked += 1;
        let Some(fault) = (self.plan)(number, op) else {
            return self.inner.apply(op);
        };
        self.failed += 1;
        let map = map_of(op);
        let syscall = |errno| ApplyError::Syscall {
            map,
            call: "write",
            source: std::io::Error::from_raw_os_error(errno),
        };
        Err(match fault {
            Fault::Full => ApplyError::Full { map, limit: 0 },
            Fault::Interrupted => syscall(libc::EINTR),
            Fault::NoMemory => syscall(libc::ENOMEM),
        })
    }

    fn counters(&mut self) -> Result<Counters, ApplyError> {
        self.inner.counters()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::fake::FakeDataplane;

    #[test]
    fn failed_operations_leave_the_maps_alone_and_work_when_tried_again() {
        let mut maps = FaultyDataplane::at(FakeDataplane::default(), 1, Fault::Interrupted);
        maps.apply(&Op::Grace).unwrap();
        let error = maps.apply(&Op::Grace).unwrap_err();
        assert!(
            matches!(error, ApplyError::Syscall { source, .. } if source.kind() == std::io::ErrorKind::Interrupted)
        );
        assert_eq!(maps.inner().graces(), 1);
        maps.apply(&Op::Grace).unwrap();
        assert_eq!((maps.inner().graces(), maps.failed()), (2, 1));
    }

    #[test]
    fn same_seed_gives_the_same_faults() {
        let failures = |seed| {
            let mut maps = FaultyDataplane::seeded(FakeDataplane::default(), seed, 10);
            (0..1000)
                .map(|_| maps.apply(&Op::Grace).is_err())
                .collect::<Vec<_>>()
        };
        assert_eq!(failures(1), failures(1));
        assert_ne!(failures(1), failures(2));
        let share = failures(1).iter().filter(|failed| **failed).count();
        assert!((50..200).contains(&share), "{share} of 1000");
    }
}
