//! What this node does for drains, its own and those of others: it pins all its flows, counts what still arrives and what is
//! open, and tells managers. What a drain comes to is decided there; the status of the `NodeDrain` says what to do.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::pins::Swept;
use super::{Core, chain};
use crate::api::node_drain::{NodeDrain, Phase};
use crate::handoff::message::{Drained, Report};
use crate::model::drain::QUIET_RATE;
use crate::model::pins::Position;

/// How often the flows of a node that is being drained are looked through, and what has arrived is counted.
const LOOK_PERIOD: Duration = Duration::from_secs(1);
/// How often managers are told how far pins are while a node is being drained.
const TELL_PERIOD: Duration = Duration::from_millis(100);

/// Drains, as this node knows them.
#[derive(Default)]
pub(super) struct Draining {
    /// This node's own.
    own: Option<Own>,
    /// What managers were told last of this node's pins.
    told: Option<Report>,
    tell_at: Option<Instant>,
}

/// The drain of this node.
struct Own {
    uid: Arc<str>,
    /// Up to where all flows are pinned, and how many that were.
    handed_off: Option<(Position, u64)>,
    fault: Option<String>,
    open: Option<u64>,
    /// What has arrived until then.
    arrived: Option<(Instant, u64)>,
    /// Since when next to nothing arrives.
    quiet_since: Option<Instant>,
    look_at: Instant,
    told: Option<Drained>,
}

impl Own {
    fn new(uid: Arc<str>, now: Instant) -> Self {
        Self {
            uid,
            handed_off: None,
            fault: None,
            open: None,
            arrived: None,
            quiet_since: None,
            look_at: now,
            told: None,
        }
    }

    /// Takes in how many packets have arrived from clients so far.
    fn arrived(&mut self, packets: u64, now: Instant) {
        let before = self.arrived.replace((now, packets));
        let is_quiet = before.is_some_and(|(at, before)| {
            let passed = now.saturating_duration_since(at).as_millis();
            let allowed = u128::from(QUIET_RATE) * passed / 1000;
            u128::from(packets.saturating_sub(before)) <= allowed
        });
        if !is_quiet {
            self.quiet_since = None;
        } else if self.quiet_since.is_none() {
            self.quiet_since = before.map(|(at, _)| at);
        }
    }
}

impl Core {
    /// The drain of this node and where it stands, unless it has been given up.
    fn own_drain(&self) -> Option<(&NodeDrain, Phase)> {
        let drain = self.index.drain(&self.settings.node)?;
        let phase = drain.status.as_ref()?.phase;
        (!phase.is_in_use()).then_some((drain, phase))
    }

    /// The drain for which all flows of this node must be pinned.
    pub(super) fn hands_all_off(&self) -> Option<Arc<str>> {
        let (drain, phase) = self.own_drain()?;
        let hands_off = phase.has_reached(Phase::HandOff) && !drain.spec.balancer_only;
        hands_off.then(|| drain.metadata.uid.as_deref().unwrap_or_default().into())
    }

    /// Does what is due for drains, and says when something will be.
    pub(super) fn work_drains(&mut self, now: Instant) -> Option<Instant> {
        self.follow_own_drain(now);
        let is_draining = self.hands_all_off().is_some();
        if let Some(outbox) = &self.pins.outbox {
            outbox.set_draining(is_draining);
        }
        let own = self.work_own_drain(now);
        let told = self.tell_pins(now);
        own.into_iter().chain(told).min()
    }

    /// Begins and ends with the object.
    fn follow_own_drain(&mut self, now: Instant) {
        let uid = self.own_drain().map(|(drain, _)| drain);
        let uid: Option<Arc<str>> =
            uid.map(|drain| drain.metadata.uid.as_deref().unwrap_or_default().into());
        if self.draining.own.as_ref().map(|own| &own.uid) != uid.as_ref() {
            self.draining.own = uid.map(|uid| Own::new(uid, now));
        }
    }

    fn work_own_drain(&mut self, now: Instant) -> Option<Instant> {
        let phase = self.applied_phase();
        let mut own = self.draining.own.take()?;
        if now >= own.look_at {
            own.look_at = now + LOOK_PERIOD;
            self.pins.sweep.notify_one();
            match self.dataplane.counters() {
                Ok(counters) => {
                    let packets = counters.services.values().map(|count| count.packets);
                    own.arrived(packets.sum(), now);
                }
                // What can not be counted is not quiet.
                Err(error) => {
                    tracing::warn!("what arrives can not be counted: {}", chain(&error));
                    (own.arrived, own.quiet_since) = (None, None);
                }
            }
        }
        // Before its flows were looked through once there is nothing to say.
        if let Some(open) = own.open {
            let quiet = own
                .quiet_since
                .map(|since| now.saturating_duration_since(since));
            let report = Drained {
                uid: Arc::clone(&own.uid),
                phase,
                handed_off: own.handed_off,
                fault: own.fault.clone(),
                open,
                // In steps of a second: else each look would be another report.
                quiet_for: Duration::from_secs(quiet.unwrap_or_default().as_secs()),
            };
            if own.told.as_ref() != Some(&report) && self.has_manager() {
                self.report(None, &Report::Drain(report.clone()));
                own.told = Some(report);
            }
        }
        let look_at = own.look_at;
        self.draining.own = Some(own);
        Some(look_at)
    }

    /// The phase whose wishes are carried out here; none while something is still to be done.
    fn applied_phase(&self) -> Option<Phase> {
        let (_, phase) = self.own_drain()?;
        self.has_announced().then_some(phase)
    }

    /// Whether some node hands off what others are to know.
    fn is_handed_off_to(&self) -> bool {
        let drains = self.index.drains();
        let mut phases = drains.filter_map(|drain| Some(drain.status.as_ref()?.phase));
        phases.any(|phase| phase.has_reached(Phase::HandOff) && !phase.is_final())
    }

    /// Tells managers how far this node's pins are, while any node is being drained.
    fn tell_pins(&mut self, now: Instant) -> Option<Instant> {
        if !self.is_handed_off_to() {
            self.draining.told = None;
            return None;
        }
        if let Some(at) = self.draining.tell_at.filter(|at| now < *at) {
            return Some(at);
        }
        self.draining.tell_at = Some(now + TELL_PERIOD);
        let outbox = self.pins.outbox.clone()?;
        let report = outbox.with(|writer| Report::Pins {
            written: writer.position(),
            acknowledged: writer
                .balancers()
                .map(|(node, at)| (Arc::clone(node), at))
                .collect(),
        });
        if self.draining.told.as_ref() != Some(&report) && self.has_manager() {
            self.report(None, &report);
            self.draining.told = Some(report);
        }
        self.draining.tell_at
    }

    /// Forgets what managers were told: another one listens.
    pub(super) fn tell_drains_anew(&mut self) {
        self.draining.told = None;
        if let Some(own) = &mut self.draining.own {
            own.told = None;
        }
    }

    /// The flows were looked through.
    pub(super) fn note_swept(&mut self, swept: &Swept, is_full: bool) {
        let written = self.pins.written();
        let pinned = self.own_pin_count() as u64;
        let fault = self.pins.fault.clone();
        let Some(own) = &mut self.draining.own else {
            return;
        };
        own.open = swept.open.or(own.open);
        if swept.drain.as_ref() != Some(&own.uid) {
            return;
        }
        if is_full {
            own.fault = Some(fault.unwrap_or_default());
        } else if let Some(written) = written {
            own.fault = None;
            own.handed_off.get_or_insert((written, pinned));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strays_are_quiet_and_anything_more_begins_anew() {
        let start = Instant::now();
        let at = |second: u64| start + Duration::from_secs(second);
        let mut own = Own::new("uid".into(), start);
        own.arrived(500, at(0));
        assert_eq!(own.quiet_since, None);
        own.arrived(510, at(1));
        own.arrived(512, at(2));
        assert_eq!(own.quiet_since, Some(at(0)));
        own.arrived(523, at(3));
        assert_eq!(own.quiet_since, None);
        own.arrived(523, at(4));
        assert_eq!(own.quiet_since, Some(at(3)));
        // Counters of a map that was made anew.
        own.arrived(2, at(5));
        assert_eq!(own.quiet_since, Some(at(3)));
    }
}
