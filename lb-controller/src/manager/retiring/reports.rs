//! What agents let a manager know, and what it means for retirements under way.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use super::{Retiree, Retiring};
use crate::handoff::message::Report;
use crate::model::retire::Round;
use crate::source::index::Named;

impl Retiring {
    /// An agent's stream is up.
    pub(in crate::manager) fn up(&mut self, node: &Arc<str>) {
        self.reached.up(node);
        for retiree in self.services.values_mut() {
            retiree.machine.asked_anew(node);
            retiree.is_due = true;
            if retiree.stay.contains(node) {
                retiree.look_at = None;
            }
        }
    }

    /// An agent's stream has ended.
    pub(in crate::manager) fn down(&mut self, node: &str) {
        self.reached.down(node);
        for retiree in self.under_way() {
            retiree.is_due = true;
        }
    }

    /// An agent reports.
    pub(in crate::manager) fn report(&mut self, node: &Arc<str>, report: Report, now: Instant) {
        match report {
            Report::Hello { .. } | Report::Drain(_) | Report::Pins { .. } => {}
            Report::Applied {
                service_uid,
                version,
                digest: _,
            } => {
                // Of one that is gone meanwhile nothing is kept.
                if let Some((uid, named)) = self.named.get_key_value(&service_uid) {
                    self.reached.applied(node, uid, version);
                    if let Some(retiree) = self.services.get_mut(named) {
                        retiree.is_due = true;
                    }
                }
            }
            Report::RetireReady { id, position } => {
                if self.reached.was_told(node, Round(id)) {
                    self.reached.speaks(node);
                    for retiree in self.under_way() {
                        retiree.machine.handed_off(node, Round(id), position);
                        retiree.is_due = true;
                    }
                }
            }
            Report::RetireRefused { id, why } => {
                if self.reached.was_told(node, Round(id)) {
                    tracing::warn!(%node, why, "connections can not be handed off");
                    self.refused(node, Round(id), now);
                }
            }
        }
    }

    fn refused(&mut self, node: &Arc<str>, round: Round, now: Instant) {
        self.reached.mute(node, now);
        let of_round =
            |(_, retiree): &(&Named, &mut Retiree)| retiree.machine.round() == Some(round);
        let Some((named, retiree)) = self.services.iter_mut().find(of_round) else {
            return;
        };
        let named = named.clone();
        let actions = retiree.machine.refused(node, round, now);
        if !retiree.is_under_way() {
            retiree.stay = BTreeSet::from([Arc::clone(node)]);
            self.abandoned += 1;
        }
        self.carry(&named, actions);
    }
}
