//! How one other node is, from what the members say of it and what its programs answer. Pure.
//!
//! ```text
//!            members: alive                members: silent
//! Unheard ───────────────────▶ Alive ◀──────────────────▶ Suspected ── fresh answer ─▶ AgentAway
//!    └── no answer ─▶ Down ◀── no answer, or a stale one ─────┴──────────────────────────┘
//! ```
//!
//! Answers are counted, not timed: a node is down after a number of questions without an answer, so an agent that was kept
//! from running itself takes nobody for dead. Questions that were late themselves count only after a while, since whatever
//! kept them may have kept the answers, too.

use std::time::{Duration, Instant};

/// Age of the agent's stamp from which on a node's programs answer for no VIP any more.
pub(super) const STAMP_AGE_MAX: Duration = Duration::from_secs(3);
/// Questions without an answer that make a node down. With one packet in twenty lost, question or answer, five in a row
/// are lost once in 100,000 suspicions.
const UNANSWERED_MAX: u8 = 5;
/// Pause between questions while a node is suspected: many round trips in any network that SWIM works in.
const ASK_SUSPECTED: Duration = Duration::from_millis(50);
/// How late a question may be on a machine that is not too busy to be believed.
const LATE_MAX: Duration = Duration::from_millis(25);
/// How long late questions do not count. A busy machine then notices a power cut this much later at most.
const EXCUSED_MAX: Duration = Duration::from_millis(500);
/// … while its agent is away: a power cut then is noticed as soon as any other.
const ASK_AWAY: Duration = Duration::from_millis(60);
/// … while it is down.
const ASK_DOWN: Duration = Duration::from_millis(500);
/// Fresh answers in a row that bring back a node that was down, although its agent is not heard.
const ANSWERS_BACK: u8 = 4;

/// How a node is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum State {
    /// Not heard of since this agent started. It announces nothing, and nobody takes its place yet.
    Unheard,
    /// Its agent is heard.
    Alive,
    /// Its agent is silent; its programs are being asked.
    Suspected,
    /// Its agent is silent, but its programs forward and answer for its VIPs.
    AgentAway,
    /// Nothing answers, or its agent has been away for so long that its programs answer for no VIP.
    Down,
}

impl State {
    /// For people and labels.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Unheard => "unheard",
            Self::Alive => "alive",
            Self::Suspected => "suspected",
            Self::AgentAway => "agent-away",
            Self::Down => "down",
        }
    }

    /// All of them, in the order of labels.
    pub const ALL: [Self; 5] = [
        Self::Unheard,
        Self::Alive,
        Self::Suspected,
        Self::AgentAway,
        Self::Down,
    ];

    /// It may announce.
    pub const fn forwards(self) -> bool {
        match self {
            Self::Alive | Self::Suspected | Self::AgentAway => true,
            Self::Unheard | Self::Down => false,
        }
    }
}

/// What the members say of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Said {
    /// It was heard.
    Alive,
    /// It is suspected, or given up.
    Silent,
}

/// What is known of one node.
#[derive(Clone, Debug)]
pub(super) struct Verdict {
    state: State,
    since: Instant,
    /// Its agent was heard of since we started.
    heard: bool,
    ask_at: Instant,
    unanswered: u8,
    /// How many of them were late.
    late: u8,
    /// When the first of them was asked.
    silent_since: Option<Instant>,
    /// Fresh answers in a row.
    answers: u8,
}

impl Verdict {
    /// A node that only objects speak of.
    pub(super) fn unheard(now: Instant) -> Self {
        Self {
            state: State::Unheard,
            since: now,
            heard: false,
            ask_at: now,
            unanswered: 0,
            late: 0,
            silent_since: None,
            answers: 0,
        }
    }

    pub(super) fn state(&self) -> State {
        self.state
    }

    pub(super) fn since(&self) -> Instant {
        self.since
    }

    /// Only objects speak of it, and its programs have not been found silent.
    pub(super) fn is_open(&self) -> bool {
        self.state == State::Unheard
    }

    /// The members say something.
    pub(super) fn said(&mut self, said: Said, now: Instant) {
        match (said, self.state) {
            // Members remember those that were down before we came, so their silence says nothing of one unheard of.
            (Said::Alive, State::Alive)
            | (Said::Silent, State::Unheard | State::Suspected | State::AgentAway | State::Down) => {
            }
            (Said::Alive, _) => {
                self.heard = true;
                self.turn(State::Alive, now);
            }
            (Said::Silent, State::Alive) => self.turn(State::Suspected, now),
        }
    }

    /// Its programs have answered.
    pub(super) fn answered(&mut self, stamp_age: Duration, now: Instant) {
        if self.state == State::Alive {
            return;
        }
        self.unanswered = 0;
        self.late = 0;
        self.silent_since = None;
        if stamp_age > STAMP_AGE_MAX {
            self.answers = 0;
            self.turn(State::Down, now);
            return;
        }
        self.answers = self.answers.saturating_add(1);
        match self.state {
            State::Suspected => self.turn(State::AgentAway, now),
            State::Down if self.answers >= ANSWERS_BACK => {
                let back = if self.heard {
                    State::AgentAway
                } else {
                    State::Unheard
                };
                self.turn(back, now);
            }
            State::Down | State::Unheard | State::Alive | State::AgentAway => {}
        }
    }

    /// Whether to ask its programs now. Asking too often without an answer is an answer, too.
    pub(super) fn asks(&mut self, now: Instant) -> bool {
        if self.state == State::Alive || now < self.ask_at {
            return false;
        }
        let is_late = now > self.ask_at + LATE_MAX;
        let silent_since = *self.silent_since.get_or_insert(now);
        let excused = if now > silent_since + EXCUSED_MAX {
            0
        } else {
            self.late
        };
        if self.unanswered >= UNANSWERED_MAX.saturating_add(excused) {
            self.answers = 0;
            if self.state != State::Down {
                self.turn(State::Down, now);
            }
        }
        self.unanswered = self.unanswered.saturating_add(1);
        self.late = self.late.saturating_add(is_late.into());
        self.ask_at = now + self.pause();
        true
    }

    fn pause(&self) -> Duration {
        match self.state {
            State::Unheard | State::Suspected | State::Alive => ASK_SUSPECTED,
            State::AgentAway => ASK_AWAY,
            State::Down => ASK_DOWN,
        }
    }

    /// When to ask next.
    pub(super) fn asks_at(&self) -> Option<Instant> {
        (self.state != State::Alive).then_some(self.ask_at)
    }

    fn turn(&mut self, state: State, now: Instant) {
        if self.state != state {
            self.state = state;
            self.since = now;
            self.unanswered = 0;
            self.late = 0;
            self.silent_since = None;
            self.answers = 0;
            // A suspicion is looked into at once; the other turns follow an answer or the lack of one.
            self.ask_at = match state {
                State::Suspected => now,
                State::Unheard | State::Alive | State::AgentAway | State::Down => {
                    now + self.pause()
                }
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRESH: Duration = Duration::from_millis(90);

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    /// Asks whenever it is due until `until`, answering as told. Gives the time and state of each turn.
    fn run(
        verdict: &mut Verdict,
        start: Instant,
        from: u64,
        until: u64,
        answer: impl Fn(u64) -> Option<Duration>,
    ) -> Vec<(u64, State)> {
        let mut turns = Vec::new();
        let mut last = verdict.state();
        for at in from..until {
            let now = start + ms(at);
            if verdict.asks(now)
                && let Some(age) = answer(at)
            {
                verdict.answered(age, now);
            }
            if verdict.state() != last {
                last = verdict.state();
                turns.push((at, last));
            }
        }
        turns
    }

    fn alive(start: Instant) -> Verdict {
        let mut verdict = Verdict::unheard(start);
        verdict.said(Said::Alive, start);
        verdict
    }

    #[test]
    fn a_silent_node_is_down_within_a_quarter_of_a_second() {
        let start = Instant::now();
        let mut verdict = alive(start);
        verdict.said(Said::Silent, start);
        assert_eq!(
            run(&mut verdict, start, 0, 1000, |_| None),
            [(250, State::Down)]
        );
    }

    #[test]
    fn a_node_whose_programs_answer_keeps_its_place_until_its_stamp_is_old() {
        let start = Instant::now();
        let mut verdict = alive(start);
        verdict.said(Said::Silent, start + ms(500));
        // Its agent froze at 0.
        let turns = run(&mut verdict, start, 500, 5000, |at| Some(ms(at)));
        assert_eq!(turns[0], (500, State::AgentAway));
        assert!(
            matches!(turns[1..], [(3001..3100, State::Down)]),
            "{turns:?}"
        );
    }

    #[test]
    fn a_power_cut_during_a_restart_is_noticed_within_half_a_second() {
        let start = Instant::now();
        let mut verdict = alive(start);
        verdict.said(Said::Silent, start);
        let turns = run(&mut verdict, start, 0, 2000, |at| {
            (at < 1000).then_some(FRESH)
        });
        assert_eq!(turns[0], (0, State::AgentAway));
        assert!(
            matches!(turns[1..], [(1000..1400, State::Down)]),
            "{turns:?}"
        );
    }

    #[test]
    fn a_node_that_was_down_comes_back_when_heard_or_after_several_answers() {
        let start = Instant::now();
        let mut verdict = alive(start);
        verdict.said(Said::Silent, start);
        run(&mut verdict, start, 0, 500, |_| None);
        assert_eq!(verdict.state(), State::Down);
        let mut heard = verdict.clone();
        heard.said(Said::Alive, start + ms(500));
        assert_eq!(heard.state(), State::Alive);
        let turns = run(&mut verdict, start, 500, 4000, |_| Some(FRESH));
        assert!(
            matches!(turns[..], [(1500..2700, State::AgentAway)]),
            "{turns:?}"
        );
    }

    #[test]
    fn a_node_never_heard_of_does_not_announce_however_well_its_programs_answer() {
        let start = Instant::now();
        let mut verdict = Verdict::unheard(start);
        assert_eq!(run(&mut verdict, start, 0, 9000, |_| Some(FRESH)), []);
        assert!(verdict.is_open());
        assert!(!verdict.state().forwards());
        // And without an answer it is known to be down.
        let turns = run(&mut verdict, start, 9000, 9500, |_| None);
        assert!(matches!(turns[..], [(_, State::Down)]), "{turns:?}");
        // Answers bring it back to where it was.
        run(&mut verdict, start, 9500, 20_000, |_| Some(FRESH));
        assert_eq!(verdict.state(), State::Unheard);
    }

    #[test]
    fn a_machine_that_is_always_late_waits_longer_and_not_for_ever() {
        let start = Instant::now();
        let mut verdict = alive(start);
        verdict.said(Said::Silent, start);
        let mut down = None;
        for pass in 0_u64..20 {
            let now = start + ms(pass * 90);
            verdict.asks(now);
            if verdict.state() == State::Down {
                down = down.or(Some(pass * 90));
            }
        }
        assert!(matches!(down, Some(500..650)), "{down:?}");
    }

    #[test]
    fn an_agent_that_was_kept_from_running_takes_nobody_for_dead() {
        let start = Instant::now();
        let mut verdict = alive(start);
        verdict.said(Said::Silent, start);
        assert!(verdict.asks(start));
        // Ten seconds without running: one question is open, no more.
        let late = start + Duration::from_secs(10);
        assert!(verdict.asks(late));
        assert_eq!(verdict.state(), State::Suspected);
        verdict.answered(FRESH, late);
        assert_eq!(verdict.state(), State::AgentAway);
    }
}
