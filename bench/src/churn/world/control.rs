//! Who hears of what the API server says, and when: the manager and the agents of all nodes, each with a delay of its own.

use super::{Control, Event, World};
use crate::churn::dice::Dice;
use crate::churn::manager::Look;
use crate::churn::queue::{MS, Nanos, SECOND};
use crate::churn::schemes::{Life, Said};
use crate::churn::wire::NodeId;

/// How long after a change somebody hears of it: through an API server and a watch that is open. So two nodes' views differ
/// for up to 45 ms after each change.
const SKEW: (Nanos, Nanos) = (5 * MS, 50 * MS);
/// How often somebody hears late, of a million, and how late at most: a watch has ended and begins anew, or an agent was busy
/// with another table. Far more often than in a cluster, since here it is what is looked for.
const STALE: u64 = 20_000;
const STALE_MAX: Nanos = 3 * SECOND;
/// Between the manager and an agent. Always the same, so that what is said on a stream stays in order.
const MANAGER_HOP: Nanos = 2 * MS;
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
        self.scheme.begin(node, self.queue.now())
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

    pub(super) fn look(&mut self) -> anyhow::Result<()> {
        self.manager_looks_soon = false;
        let look = self.manager.look(&self.api, self.queue.now())?;
        if look.wrote {
            for node in self.up.clone() {
                self.hear_soon(node);
            }
        }
        self.follow_manager(look);
        Ok(())
    }

    /// Sees to what the manager wants after a look.
    pub(super) fn follow_manager(&mut self, look: Look) {
        if let Some(again) = look.again
            && self.looks_again.is_none_or(|known| again < known)
        {
            self.looks_again = Some(again);
            self.queue.at(again, Event::Control(Control::LookAgain));
        }
        for (node, instruction) in look.instructions {
            let event = Event::Control(Control::Instruct(node, instruction));
            self.queue.after(MANAGER_HOP, event);
        }
    }

    /// The time has come that the manager has named last, or one that it has named before.
    pub(super) fn look_again(&mut self) -> anyhow::Result<()> {
        if self.looks_again == Some(self.queue.now()) {
            self.looks_again = None;
            self.look()?;
        }
        Ok(())
    }

    /// What agents have said goes to the manager.
    pub(super) fn carry_said(&mut self) {
        for (node, said) in self.scheme.said() {
            let event = Event::Control(Control::Said(node, said));
            self.queue.after(MANAGER_HOP, event);
        }
    }

    /// The manager hears an agent.
    pub(super) fn manager_hears(&mut self, node: NodeId, said: Said) -> anyhow::Result<()> {
        self.manager.hear(node, said);
        let look = self.manager.retire(self.queue.now())?;
        self.follow_manager(look);
        Ok(())
    }

    /// Nodes that are gone are deleted, and their pods with them.
    pub(super) fn delete_dead_nodes(&mut self) {
        let dead = self.api.nodes.iter().filter(|node| !self.up.contains(node));
        for node in dead.copied().collect::<Vec<_>>() {
            self.api.remove_node(node);
        }
        self.changed();
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
            self.scheme.live(node, Life::Deaf, self.queue.now())
        } else {
            self.hear_soon(node);
            Ok(())
        }
    }
}
