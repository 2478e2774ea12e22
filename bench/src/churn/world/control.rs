//! Who hears of what the API server says, and when: the manager and the agents of all nodes, each with a delay of its own.

use super::{Control, Event, World};
use crate::churn::dice::Dice;
use crate::churn::queue::{MS, Nanos, SECOND};
use crate::churn::schemes::Life;
use crate::churn::wire::NodeId;

/// How long after a change somebody hears of it.
const SKEW: (Nanos, Nanos) = (5 * MS, 50 * MS);
/// How often somebody hears late, of a million, and how late at most.
const STALE: u64 = 20_000;
const STALE_MAX: Nanos = 3 * SECOND;
/// What nothing names is freed so long after a change.
const TIDY_AFTER: Nanos = 500 * MS;

/// When somebody hears of a change.
fn skew(dice: &mut Dice) -> Nanos {
    if dice.chance(STALE) {
        dice.between(SKEW.1, STALE_MAX)
    } else {
        dice.between(SKEW.0, SKEW.1)
    }
}

impl World<'_> {
    /// A node comes up, with an agent that has heard of nothing yet.
    pub(super) fn add_node(&mut self, node: NodeId) -> anyhow::Result<()> {
        self.api.add_node(node);
        self.up.insert(node);
        self.ears.entry(node).or_default();
        self.scheme.begin(node)
    }

    /// The API server says something else now.
    pub(super) fn changed(&mut self) {
        if !self.manager_looks_soon {
            self.manager_looks_soon = true;
            let delay = self.views.between(SKEW.0, SKEW.1);
            self.queue.after(delay, Event::Control(Control::Look));
        }
        for node in self.up.clone() {
            self.hear_soon(node);
        }
    }

    /// A node's agent hears, some time later.
    pub(super) fn hear_soon(&mut self, node: NodeId) {
        let ear = self.ears.entry(node).or_default();
        if !ear.hears_soon {
            ear.hears_soon = true;
            let delay = skew(&mut self.views);
            self.queue.after(delay, Event::Control(Control::Hear(node)));
        }
    }

    pub(super) fn look(&mut self) {
        self.manager_looks_soon = false;
        let look = self.manager.look(&self.api, self.queue.now());
        if look.wrote {
            for node in self.up.clone() {
                self.hear_soon(node);
            }
        }
        self.look_again(look.again);
    }

    pub(super) fn look_again(&mut self, again: Option<Nanos>) {
        if let Some(again) = again {
            self.queue.at(again, Event::Control(Control::Look));
        }
    }

    pub(super) fn hear(&mut self, node: NodeId) -> anyhow::Result<()> {
        let ear = self.ears.entry(node).or_default();
        ear.hears_soon = false;
        if ear.is_deaf || !self.up.contains(&node) {
            return Ok(());
        }
        if !ear.tidies_soon {
            ear.tidies_soon = true;
            self.queue
                .after(TIDY_AFTER, Event::Control(Control::Tidy(node)));
        }
        let now = self.queue.now();
        self.scheme.hear(node, &self.manager.tables, &self.api, now)
    }

    pub(super) fn tidy(&mut self, node: NodeId) -> anyhow::Result<()> {
        self.ears.entry(node).or_default().tidies_soon = false;
        self.scheme.tidy(node, self.queue.now())
    }

    /// A node's agent does not hear the API server any more, or again.
    pub(super) fn set_deaf(&mut self, node: NodeId, is_deaf: bool) -> anyhow::Result<()> {
        self.ears.entry(node).or_default().is_deaf = is_deaf;
        if is_deaf {
            self.scheme.live(node, Life::Deaf)
        } else {
            self.hear_soon(node);
            Ok(())
        }
    }
}
