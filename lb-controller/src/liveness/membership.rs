//! The members as this node sees them: drives `foca`, the envelope of its datagrams and a [`Verdict`] for each node. A state
//! machine: it is told the time, datagrams and answers, and gives datagrams and questions to send. Pure.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::num::{NonZeroU8, NonZeroUsize};
use std::sync::Arc;
use std::time::{Duration, Instant};

use foca::{AccumulatingRuntime, Config, Foca, NoCustomBroadcast, PeriodicParams, PostcardCodec};
use rand_foca::rngs::StdRng;
use rand_foca::{RngExt, SeedableRng};

use super::envelope::{Condition, Envelope, Key, OVERHEAD, Refused, sender};
use super::identity::Identity;
use super::verdict::{Said, Verdict};
use super::{Liveness, MEMBERS_MAX, Peer};
use crate::model::freshness::SILENCE_MAX;
use crate::model::template::NodeAddresses;

/// Each member asks one other per period. In a cluster of any size the first to ask a silent node does so after 1.6 periods
/// on average, and after five in more than 99 of 100 cases; with the time for an answer and the questions to its programs
/// that makes about 0.4 s, and less than 1 s nearly always. It costs each node 40 small packets a second.
const PROBE_PERIOD: Duration = Duration::from_millis(100);
/// How long an answer may take before others are asked to ask.
const PROBE_RTT: Duration = Duration::from_millis(40);
/// How long a suspected member may take to say that it lives, before members forget it until it comes back. What a node
/// announces does not hang on it, see [`Verdict`].
const SUSPECT_TO_DOWN: Duration = Duration::from_secs(2);
/// How long members that are down are remembered.
const REMEMBERED: Duration = Duration::from_hours(1);
/// News are passed on this often, while there are any.
const GOSSIP_PERIOD: Duration = Duration::from_millis(100);
/// Largest datagram: fits into any path that carries encapsulated packets.
const DATAGRAM_MAX: usize = 1280;
/// How often nodes that are not heard are called.
const CALL_PERIOD: Duration = Duration::from_millis(500);
/// How many of them at once, in turn: at the start one is enough, since it tells of the others.
const CALLS_MAX: usize = 8;
/// How long after the first members are named the silence of one that still answers for itself is held to mean something.
const SETTLE_MAX: Duration = Duration::from_secs(5);
/// How late work may be before all timers are moved: then we were kept from running, and not the others silent.
const STALL: Duration = Duration::from_millis(250);
/// How long a question to a node's programs stays open.
const QUESTION_MAX: Duration = Duration::from_secs(1);
/// Pause between datagrams to members that have a wrong idea of us, so that replayed ones can not be amplified.
const CORRECTION_PAUSE: Duration = Duration::from_millis(100);

/// Something to send.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outgoing {
    /// A datagram to another agent.
    Gossip {
        /// Its address.
        to: IpAddr,
        /// What to send.
        datagram: Vec<u8>,
    },
    /// A question to the programs of another node.
    Question {
        /// Its address.
        to: IpAddr,
        /// What its answer must carry.
        nonce: u64,
    },
}

/// What was counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Datagrams sent to other agents.
    pub sent: u64,
    /// Genuine ones received.
    pub received: u64,
    /// Refused: not ours, or signed with another key.
    pub not_genuine: u64,
    /// Refused: seen before, or of an earlier session.
    pub replayed: u64,
    /// Genuine, but not understood.
    pub malformed: u64,
    /// Questions to programs of other nodes.
    pub questions: u64,
    /// Their answers.
    pub answers: u64,
}

/// The members as one node sees them.
pub struct Membership {
    foca: Foca<Identity, PostcardCodec, StdRng, NoCustomBroadcast>,
    envelope: Envelope,
    runtime: AccumulatingRuntime<Identity>,
    timers: BTreeMap<(Instant, u64), foca::Timer<Identity>>,
    timer_number: u64,
    /// Nodes that objects name; they alone are reported.
    named: BTreeMap<Arc<str>, Identity>,
    verdicts: BTreeMap<Arc<str>, Verdict>,
    /// What this node says of itself.
    condition: Condition,
    /// What others have said of themselves last, and when.
    conditions: HashMap<u64, (Condition, Instant)>,
    /// Open questions: which node, and when.
    questions: HashMap<u64, (Arc<str>, Instant)>,
    nonces: StdRng,
    call_at: Instant,
    called_last: Option<Arc<str>>,
    settle_at: Option<Instant>,
    settled: bool,
    correct_at: Instant,
    returns: u64,
    outgoing: Vec<Outgoing>,
    counts: Counts,
}

impl Membership {
    /// A node that has heard of nobody. `seed` is for what must not be guessed or aligned: nonces, order of asking.
    pub fn new(identity: Identity, key: Key, seed: u64, now: Instant) -> Self {
        let mut nonces = StdRng::seed_from_u64(seed);
        let order = StdRng::from_rng(&mut nonces);
        Self {
            foca: Foca::new(identity, config(), order, PostcardCodec),
            envelope: Envelope::new(key),
            runtime: AccumulatingRuntime::new(),
            timers: BTreeMap::new(),
            timer_number: 0,
            named: BTreeMap::new(),
            verdicts: BTreeMap::new(),
            condition: Condition::default(),
            conditions: HashMap::new(),
            questions: HashMap::new(),
            nonces,
            call_at: now,
            called_last: None,
            settle_at: None,
            settled: false,
            correct_at: now,
            returns: 0,
            outgoing: Vec::new(),
            counts: Counts::default(),
        }
    }

    /// Who we are.
    pub fn identity(&self) -> &Identity {
        self.foca.identity()
    }

    /// Another key from now on.
    pub fn set_key(&mut self, key: Key) {
        self.envelope.set_key(key);
    }

    /// What every datagram says of this node from now on.
    pub fn set_condition(&mut self, condition: Condition) {
        self.condition = condition;
    }

    /// Our addresses have changed.
    pub fn set_addresses(&mut self, addresses: NodeAddresses, now: Instant) {
        let own = self.foca.identity();
        let moved = Identity::new(Arc::clone(&own.node), addresses, own.incarnation + 1);
        if moved.addresses != own.addresses {
            self.become_again(moved, now);
        }
    }

    /// Names all nodes that have an agent, this one apart; at most [`MEMBERS_MAX`] are followed.
    pub fn name(&mut self, nodes: &BTreeMap<Arc<str>, NodeAddresses>, now: Instant) {
        let own = Arc::clone(&self.foca.identity().node);
        let others = nodes
            .iter()
            .filter(|(node, _)| **node != own)
            .take(MEMBERS_MAX);
        self.named = others
            .map(|(node, addresses)| {
                let identity = Identity::unheard(Arc::clone(node), *addresses);
                (Arc::clone(node), identity)
            })
            .collect();
        self.verdicts
            .retain(|node, _| self.named.contains_key(node));
        for node in self.named.keys() {
            if !self.verdicts.contains_key(node) {
                self.verdicts
                    .insert(Arc::clone(node), Verdict::unheard(now));
                self.call_at = now;
            }
        }
        self.envelope
            .keep(self.named.keys().map(std::convert::AsRef::as_ref));
        let senders: HashSet<u64> = self.named.keys().map(|node| sender(node)).collect();
        self.conditions.retain(|from, _| senders.contains(from));
        self.settle_at.get_or_insert(now + SETTLE_MAX);
    }

    /// Takes in a datagram from another agent.
    pub fn receive(&mut self, from: IpAddr, datagram: &[u8], now: Instant) {
        let own = self.foca.identity().incarnation;
        match self.envelope.open(datagram) {
            Ok(opened) => {
                self.counts.received += 1;
                if let Some(condition) = opened.condition {
                    self.conditions.insert(opened.sender, (condition, now));
                }
                // Empty ones only tell us what is known of us.
                if !opened.content.is_empty()
                    && let Err(error) = self.foca.handle_data(opened.content, &mut self.runtime)
                {
                    self.counts.malformed += 1;
                    tracing::debug!(%from, %error, "datagram of an agent is not understood");
                }
                if opened.known > own {
                    // Our clock went back since then: only a later incarnation is listened to.
                    let own = self.foca.identity();
                    let later = Identity {
                        incarnation: opened.known + 1,
                        ..own.clone()
                    };
                    self.become_again(later, now);
                }
            }
            Err(Refused::NotGenuine) => self.counts.not_genuine += 1,
            Err(Refused::Replayed) => self.counts.replayed += 1,
            Err(Refused::EarlierSession(known)) => {
                self.counts.replayed += 1;
                if now >= self.correct_at {
                    self.correct_at = now + CORRECTION_PAUSE;
                    self.send(from, known, &[]);
                }
            }
        }
        self.drain(now);
    }

    /// Takes in the answer of another node's programs; `stamp_age` is that of its agent's stamp.
    pub fn answered(&mut self, nonce: u64, stamp_age: Duration, now: Instant) {
        let Some((node, _)) = self.questions.remove(&nonce) else {
            return;
        };
        self.counts.answers += 1;
        if let Some(verdict) = self.verdicts.get_mut(&node) {
            verdict.answered(stamp_age, now);
        }
    }

    /// Does what is due, and says when something will be. Datagrams and answers that have arrived come first, or their
    /// senders would be taken for silent.
    pub fn work(&mut self, now: Instant) -> Instant {
        self.make_up_for_a_stall(now);
        while let Some(entry) = self.timers.first_entry()
            && entry.key().0 <= now
        {
            let timer = entry.remove();
            if let Err(error) = self.foca.handle_timer(timer, &mut self.runtime) {
                // It goes on by itself: a period without a finished question is left out.
                tracing::debug!(%error, "a period of asking is left out");
            }
            self.drain(now);
        }
        self.listen(now);
        self.ask(now);
        self.call(now);
        self.settle(now);
        let timers = self.timers.keys().next().map(|(at, _)| *at);
        let questions = self.verdicts.values().filter_map(Verdict::asks_at).min();
        [timers, questions, self.settle_at]
            .into_iter()
            .flatten()
            .fold(self.call_at, Instant::min)
    }

    /// What is to be sent.
    pub fn outgoing(&mut self) -> Vec<Outgoing> {
        std::mem::take(&mut self.outgoing)
    }

    /// What was counted.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// How the others are.
    pub fn liveness(&self, now: Instant) -> Liveness {
        let peer = |node: &str, verdict: &Verdict| Peer {
            state: verdict.state(),
            since: verdict.since(),
            condition: self
                .conditions
                .get(&sender(node))
                .map(|(condition, _)| *condition)
                .unwrap_or_default(),
        };
        let heard = self
            .conditions
            .values()
            .filter(|(_, heard)| now.saturating_duration_since(*heard) <= SILENCE_MAX);
        Liveness {
            peers: self
                .verdicts
                .iter()
                .map(|(node, verdict)| (Arc::clone(node), peer(node, verdict)))
                .collect(),
            unnamed: self.unnamed(),
            tables: heard.map(|(condition, _)| condition.tables).max(),
            settled: self.settled,
            returns: self.returns,
        }
    }

    fn unnamed(&self) -> BTreeMap<Arc<str>, NodeAddresses> {
        let own = &self.foca.identity().node;
        let members = self.foca.iter_membership_state();
        let alive = members.filter(|member| member.state() == foca::State::Alive);
        let unnamed = alive
            .map(foca::Member::id)
            .filter(|identity| identity.node != *own && !self.named.contains_key(&identity.node));
        unnamed
            .take(MEMBERS_MAX)
            .map(|identity| {
                let addresses = identity.addresses.iter().flatten().copied();
                (Arc::clone(&identity.node), addresses.collect())
            })
            .collect()
    }

    /// Moves all timers by the time in which we did not run.
    fn make_up_for_a_stall(&mut self, now: Instant) {
        let due = self.timers.keys().next().map(|(at, _)| *at);
        let late = due.map_or(Duration::ZERO, |due| now.saturating_duration_since(due));
        if late > STALL {
            self.timers = std::mem::take(&mut self.timers)
                .into_iter()
                .map(|((at, number), timer)| ((at + late, number), timer))
                .collect();
        }
    }

    /// Turns what the members say into verdicts.
    fn listen(&mut self, now: Instant) {
        for member in self.foca.iter_membership_state() {
            let Some(verdict) = self.verdicts.get_mut(&member.id().node) else {
                continue;
            };
            let said = match member.state() {
                foca::State::Alive => Said::Alive,
                foca::State::Suspect | foca::State::Down => Said::Silent,
            };
            verdict.said(said, now);
        }
    }

    /// Asks the programs of nodes whose agents are silent.
    fn ask(&mut self, now: Instant) {
        self.questions
            .retain(|_, (_, asked)| now.saturating_duration_since(*asked) < QUESTION_MAX);
        for (node, verdict) in &mut self.verdicts {
            if !verdict.asks(now) {
                continue;
            }
            // A node without an address that we reach is as silent as one that is off.
            let own = self.foca.identity();
            if let Some(to) = self.named.get(node).and_then(|named| own.reach(named)) {
                let nonce = self.nonces.random();
                self.questions.insert(nonce, (Arc::clone(node), now));
                self.counts.questions += 1;
                self.outgoing.push(Outgoing::Question { to, nonce });
            }
        }
    }

    /// Calls nodes that objects name and that are no members, in turn.
    fn call(&mut self, now: Instant) {
        if now < self.call_at {
            return;
        }
        self.call_at = now + CALL_PERIOD;
        let members: Vec<_> = self
            .foca
            .iter_members()
            .map(|member| Arc::clone(&member.id().node))
            .collect();
        let after = self.called_last.clone();
        let is_later = |node: &Arc<str>| after.as_ref().is_none_or(|last| node > last);
        let mut missing: Vec<_> = self
            .named
            .iter()
            .filter(|(node, _)| !members.contains(node))
            .collect();
        missing.sort_by_key(|(node, _)| !is_later(node));
        let missing: Vec<_> = missing
            .into_iter()
            .take(CALLS_MAX)
            .map(|(_, identity)| identity.clone())
            .collect();
        self.called_last = missing.last().map(|last| Arc::clone(&last.node));
        for node in missing {
            if let Err(error) = self.foca.announce(node, &mut self.runtime) {
                tracing::debug!(%error, "a node can not be called");
            }
        }
        self.drain(now);
    }

    fn settle(&mut self, now: Instant) {
        let Some(until) = self.settle_at else { return };
        let open = self.verdicts.values().any(Verdict::is_open);
        if now >= until || !open {
            self.settled = true;
            self.settle_at = None;
        }
    }

    /// Goes on as another identity of the same node.
    fn become_again(&mut self, identity: Identity, now: Instant) {
        self.returns += 1;
        if let Err(error) = self.foca.change_identity(identity, &mut self.runtime) {
            tracing::debug!(%error, "the identity stays");
        }
        self.call_at = now;
        self.drain(now);
    }

    /// Takes what `foca` wants done.
    fn drain(&mut self, now: Instant) {
        while let Some((to, content)) = self.runtime.to_send() {
            if let Some(address) = self.foca.identity().reach(&to) {
                let known = self.envelope.session_of(&to.node);
                self.send(address, known, &content);
            }
        }
        while let Some((after, timer)) = self.runtime.to_schedule() {
            self.timer_number += 1;
            self.timers.insert((now + after, self.timer_number), timer);
        }
        while let Some(notification) = self.runtime.to_notify() {
            if let foca::OwnedNotification::Rejoin(_) = notification {
                self.returns += 1;
                self.call_at = now;
            }
        }
    }

    fn send(&mut self, to: IpAddr, known: u64, content: &[u8]) {
        let own = self.foca.identity();
        let datagram =
            self.envelope
                .seal(&own.node, own.incarnation, known, self.condition, content);
        self.counts.sent += 1;
        self.outgoing.push(Outgoing::Gossip { to, datagram });
    }
}

fn config() -> Config {
    const THREE: NonZeroUsize = NonZeroUsize::new(3).expect("three is not zero");
    const ONE: NonZeroUsize = NonZeroUsize::MIN;
    const NEWS: NonZeroU8 = NonZeroU8::new(10).expect("ten is not zero");
    const PACKET: NonZeroUsize =
        NonZeroUsize::new(DATAGRAM_MAX - OVERHEAD).expect("the overhead is smaller");
    let every = |frequency, num_members| {
        Some(PeriodicParams {
            frequency,
            num_members,
        })
    };
    Config {
        probe_period: PROBE_PERIOD,
        probe_rtt: PROBE_RTT,
        num_indirect_probes: THREE,
        max_transmissions: NEWS,
        suspect_to_down_after: SUSPECT_TO_DOWN,
        remove_down_after: Some(REMEMBERED),
        max_packet_size: PACKET,
        notify_down_members: true,
        periodic_announce: every(Duration::from_secs(10), ONE),
        // Nodes that objects name are called anyway, see `call`.
        periodic_announce_to_down_members: None,
        periodic_gossip: every(GOSSIP_PERIOD, THREE),
    }
}

#[cfg(test)]
mod tests;
