//! Whether a manager is there that sees to a drain, judged by what it keeps changing, or holds; never by clocks of others. Pure.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::LeaseSpec;

/// How long a manager may be silent. One that leads renews its lease every two seconds, and another follows one that died within
/// ten.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(30);

/// What was found of a manager.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Sign {
    /// Its lease, if there is one.
    Lease(Option<Box<LeaseSpec>>),
    /// Whether somebody holds the lock of the directory.
    Lock {
        /// It is held.
        is_held: bool,
    },
    /// It may not be looked at. Taken for a manager that is there: nobody's drain fails for that.
    Hidden,
}

/// When a manager was last heard.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Heard {
    at: Instant,
    /// It has said something about this drain. Until then a manager that is there may be one that knows no drains.
    has_answered: bool,
    lease: Option<Box<LeaseSpec>>,
}

impl Heard {
    /// Somebody begins to listen.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            at: now,
            has_answered: false,
            lease: None,
        }
    }

    /// It has said something about the drain.
    pub(super) fn answers(&mut self, now: Instant) {
        self.has_answered = true;
        self.at = now;
    }

    /// Something was found of it.
    pub(super) fn note(&mut self, sign: Sign, now: Instant) {
        let is_there = match sign {
            Sign::Lease(lease) => {
                // One that was never seen before may be an old one.
                let is_renewed = lease.is_some() && self.lease.is_some() && lease != self.lease;
                self.lease = lease.or(self.lease.take());
                is_renewed
            }
            Sign::Lock { is_held } => is_held,
            Sign::Hidden => true,
        };
        if is_there && self.has_answered {
            self.at = now;
        }
    }

    /// Nothing was heard of it for too long.
    pub(super) fn is_silent(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.at) >= SILENCE_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(transitions: i32) -> Sign {
        Sign::Lease(Some(Box::new(LeaseSpec {
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        })))
    }

    #[test]
    fn a_lease_that_is_renewed_is_a_manager_and_one_that_only_lies_there_is_none() {
        let start = Instant::now();
        let mut heard = Heard::new(start);
        heard.answers(start);
        let at = |seconds| start + Duration::from_secs(seconds);
        heard.note(lease(1), at(10));
        heard.note(lease(2), at(20));
        assert!(!heard.is_silent(at(49)));
        heard.note(lease(2), at(49));
        heard.note(Sign::Lease(None), at(49));
        assert!(heard.is_silent(at(50)));
        // The same lease that is seen again was not renewed.
        heard.note(lease(2), at(51));
        assert!(heard.is_silent(at(51)));
        heard.note(lease(3), at(52));
        assert!(!heard.is_silent(at(52)));
    }

    #[test]
    fn a_manager_that_never_answers_is_silent_though_it_is_there() {
        let start = Instant::now();
        let end = start + SILENCE_MAX;
        for sign in [lease(2), Sign::Lock { is_held: true }, Sign::Hidden] {
            let mut heard = Heard::new(start);
            heard.note(lease(1), start);
            heard.note(sign.clone(), end);
            assert!(heard.is_silent(end), "{sign:?}");
            heard.answers(end);
            heard.note(sign, end + SILENCE_MAX);
            assert!(!heard.is_silent(end), "it has answered");
        }
    }

    #[test]
    fn a_lock_that_nobody_holds_is_no_manager() {
        let start = Instant::now();
        let mut heard = Heard::new(start);
        heard.answers(start);
        let end = start + SILENCE_MAX;
        heard.note(Sign::Lock { is_held: false }, end);
        assert!(heard.is_silent(end));
        heard.note(Sign::Lock { is_held: true }, end);
        assert!(!heard.is_silent(end));
    }
}
