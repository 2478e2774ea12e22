//! Who leads: the rules of the Lease, without an API server and without a clock of the wall.
//!
//! A lease is judged by how long *we* have seen it unchanged, never by the times written in it, so a clock that jumps
//! makes no second leader. A leader stops [`STOP_BEFORE`] after its last renewal *began*; others wait [`DURATION`] after
//! they last *saw* one, which is later.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

/// Name of the Lease, in the namespace of Bowline.
pub const NAME: &str = "bowline-manager";
/// How long a lease lasts that nobody renews.
pub(super) const DURATION: Duration = Duration::from_secs(10);
/// A leader that has not renewed for this long writes nothing any more.
pub(super) const STOP_BEFORE: Duration = Duration::from_secs(6);
/// How often it is renewed, and how often others look.
pub(super) const PERIOD: Duration = Duration::from_secs(2);

/// What to do about the lease.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Step {
    /// There is none: make it.
    Create(LeaseSpec),
    /// It is ours, or has ended: write this.
    Write(LeaseSpec),
    /// Somebody else leads.
    Wait,
}

/// One who would lead.
#[derive(Debug)]
pub(super) struct Candidate {
    identity: String,
    /// The lease as last seen, and since when it is so.
    seen: Option<(LeaseSpec, Instant)>,
    /// When the last renewal that succeeded began.
    renewed: Option<Instant>,
}

impl Candidate {
    /// Nobody has seen anything yet.
    pub(super) fn new(identity: String) -> Self {
        Self {
            identity,
            seen: None,
            renewed: None,
        }
    }

    #[cfg(test)]
    fn leads(&self, now: Instant) -> bool {
        self.until().is_some_and(|until| now < until)
    }

    /// Until when it leads, if it does.
    pub(super) fn until(&self) -> Option<Instant> {
        self.renewed.map(|renewed| renewed + STOP_BEFORE)
    }

    /// What to do, having read the lease.
    pub(super) fn step(&mut self, lease: Option<&Lease>, now: Instant, wall: Timestamp) -> Step {
        let Some(lease) = lease else {
            return Step::Create(self.ours(None, wall));
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.clone().unwrap_or_default();
        if holder == self.identity || holder.is_empty() {
            return Step::Write(self.ours(Some(&spec), wall));
        }
        self.renewed = None;
        match &self.seen {
            Some((seen, since)) if *seen == spec => {
                if now.saturating_duration_since(*since) >= DURATION {
                    return Step::Write(self.ours(Some(&spec), wall));
                }
            }
            Some(_) | None => self.seen = Some((spec, now)),
        }
        Step::Wait
    }

    /// A step was written, begun at `began`.
    pub(super) fn written(&mut self, began: Instant) {
        self.seen = None;
        self.renewed = Some(began);
    }

    /// The lease that lets another lead at once.
    pub(super) fn released(&self, lease: &Lease) -> Option<LeaseSpec> {
        let spec = lease.spec.clone()?;
        (spec.holder_identity.as_ref() == Some(&self.identity)).then_some(LeaseSpec {
            holder_identity: Some(String::new()),
            ..spec
        })
    }

    fn ours(&self, before: Option<&LeaseSpec>, wall: Timestamp) -> LeaseSpec {
        let same = before.is_some_and(|spec| spec.holder_identity.as_ref() == Some(&self.identity));
        let transitions = before.and_then(|spec| spec.lease_transitions).unwrap_or(0);
        let acquired = before
            .filter(|_| same)
            .and_then(|spec| spec.acquire_time.clone());
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            acquire_time: acquired.or(Some(MicroTime(wall))),
            renew_time: Some(MicroTime(wall)),
            lease_transitions: Some(transitions + i32::from(!same && before.is_some())),
            ..LeaseSpec::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(spec: &LeaseSpec) -> Lease {
        Lease {
            spec: Some(spec.clone()),
            ..Lease::default()
        }
    }

    fn written(step: Step) -> LeaseSpec {
        match step {
            Step::Create(spec) | Step::Write(spec) => spec,
            Step::Wait => panic!("it waits"),
        }
    }

    #[test]
    fn of_two_one_leads_and_the_other_follows_when_it_is_silent() {
        let (start, wall) = (Instant::now(), Timestamp::UNIX_EPOCH);
        let (mut a, mut b) = (Candidate::new("a".into()), Candidate::new("b".into()));
        let held = lease(&written(a.step(None, start, wall)));
        a.written(start);
        assert!(a.leads(start) && !b.leads(start));
        assert_eq!(b.step(Some(&held), start, wall), Step::Wait);
        let later = start + Duration::from_millis(9_999);
        assert_eq!(b.step(Some(&held), later, wall), Step::Wait);
        assert!(!a.leads(later), "it has stopped long before");
        let taken = written(b.step(Some(&held), start + DURATION, wall));
        b.written(start + DURATION);
        assert_eq!(
            (taken.holder_identity.as_deref(), taken.lease_transitions),
            (Some("b"), Some(1))
        );
        assert_eq!(
            a.step(Some(&lease(&taken)), start + DURATION, wall),
            Step::Wait
        );
    }

    #[test]
    fn a_clock_that_jumps_makes_no_second_leader() {
        let (start, wall) = (Instant::now(), Timestamp::UNIX_EPOCH);
        let (mut a, mut b) = (Candidate::new("a".into()), Candidate::new("b".into()));
        let mut held = lease(&written(a.step(None, start, wall)));
        a.written(start);
        for n in 1..50_u32 {
            let now = start + PERIOD * n;
            let jumped =
                Timestamp::from_second(i64::from(n) * 1_000_000_000 % 7_000_000_000).unwrap();
            assert_eq!(b.step(Some(&held), now, jumped), Step::Wait);
            held = lease(&written(a.step(Some(&held), now, jumped)));
            a.written(now);
            assert!(a.leads(now) && !b.leads(now));
        }
    }

    #[test]
    fn whoever_ends_lets_the_next_one_lead_at_once() {
        let (start, wall) = (Instant::now(), Timestamp::UNIX_EPOCH);
        let (mut a, mut b) = (Candidate::new("a".into()), Candidate::new("b".into()));
        let held = lease(&written(a.step(None, start, wall)));
        a.written(start);
        let free = lease(&a.released(&held).unwrap());
        assert!(matches!(b.step(Some(&free), start, wall), Step::Write(_)));
        assert_eq!(b.released(&held), None);
    }
}
