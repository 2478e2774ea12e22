//! Whether a node's tables can be trusted so far that a packet which nobody knows may be delivered: it knows what others
//! know, and hears them. What it misses here it would otherwise answer with a reset.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Silence after which nothing is known any more of what others know.
pub const SILENCE_MAX: Duration = Duration::from_secs(1);
/// How long the stream of a live node is waited for: one that never brings its pins must not hold packets back for ever.
pub const STREAMS_WAIT: Duration = Duration::from_mins(1);

/// Nodes hear of a change within some tens of milliseconds of each other. One that is behind for longer has missed something;
/// with the time that gossip takes this is less than a packet is held back for, or what was missed would decide about it.
pub const LAG_MAX: Duration = Duration::from_millis(300);
/// A source that answers all the while has told everything by then: what peers still speak of is gone.
pub const LAG_END: Duration = Duration::from_mins(1);

/// What an agent knows about itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Facts {
    /// Its first lists are complete, and what they say is in the maps.
    pub applied: bool,
    /// When somebody was heard last.
    pub heard: Heard,
    /// Some peer names a version that is newer than the one applied here.
    pub behind: bool,
}

/// Whose silence would mean that this node is cut off, and when it was heard last.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Heard {
    /// Peers, by their gossip.
    Peers(Option<Instant>),
    /// The source of objects, by its answers. While it answers, peers may be silent: the last node of a cluster that is left
    /// goes on.
    Source(Option<Instant>),
}

/// Why a node is not fresh.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, thiserror::Error)]
pub enum Stale {
    /// It does not know everything yet.
    #[error("its lists are not complete and applied yet")]
    Lists,
    /// It may have missed something.
    #[error("no peer was heard for {SILENCE_MAX:?}")]
    NoPeer,
    /// It may have missed something.
    #[error("the source of objects has not answered for {SILENCE_MAX:?}")]
    NoSource,
    /// It has missed something.
    #[error("a peer has applied a newer version of a table")]
    Behind,
}

/// Whether a node is fresh.
pub fn fresh(facts: &Facts, now: Instant) -> Result<(), Stale> {
    let Facts {
        applied,
        heard,
        behind,
    } = *facts;
    let (last, silent) = match heard {
        Heard::Peers(last) => (last, Stale::NoPeer),
        Heard::Source(last) => (last, Stale::NoSource),
    };
    let is_heard = last.is_some_and(|last| now.saturating_duration_since(last) <= SILENCE_MAX);
    if !applied {
        Err(Stale::Lists)
    } else if !is_heard {
        Err(silent)
    } else if behind {
        Err(Stale::Behind)
    } else {
        Ok(())
    }
}

/// Whether peers know newer tables than this node, by the numbers that they and it give what they were told.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Lag {
    /// What peers named when this node fell behind, and when that was.
    since: Option<(u64, Instant)>,
    /// What they have named in vain.
    ignored: u64,
}

impl Lag {
    /// Notes what this node was told, what peers name, and whether the source answers.
    pub fn note(&mut self, own: u64, named: Option<u64>, answers: bool, now: Instant) {
        let named = named.unwrap_or_default();
        if named < self.ignored {
            self.ignored = 0;
        }
        let own = own.max(self.ignored);
        match self.since {
            _ if named <= own => self.since = None,
            Some((missed, since)) if own < missed => {
                if answers && now.saturating_duration_since(since) >= LAG_END {
                    *self = Self {
                        since: None,
                        ignored: named,
                    };
                }
            }
            Some(_) | None => self.since = Some((named, now)),
        }
    }

    /// Whether this node has missed something.
    pub fn is_behind(&self, now: Instant) -> bool {
        self.since
            .is_some_and(|(_, since)| now.saturating_duration_since(since) >= LAG_MAX)
    }

    /// When to look again, whatever happens.
    pub fn next(&self, now: Instant) -> Option<Instant> {
        let (_, since) = self.since?;
        let times = [since + LAG_MAX, since + LAG_END];
        times.into_iter().find(|time| *time > now)
    }
}

/// The handoff stream of a node, as a balancer has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stream {
    /// Up, and past its snapshot.
    Complete,
    /// The node lives, and its stream is waited for since then: when it came, when the stream ended, or when this agent
    /// started.
    Awaited(Instant),
    /// The node is not alive as far as anybody hears.
    Down,
}

/// Whether the pins of a Service's flows are all here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Streams {
    /// As far as they can be waited for.
    Up,
    /// Some are missing.
    Missing {
        /// Whose.
        nodes: BTreeSet<Arc<str>>,
        /// When the next of them is given up.
        until: Instant,
    },
}

/// Whether the streams of all live nodes that have pods of a Service are past their snapshots; each is waited for as long as
/// [`STREAMS_WAIT`].
pub fn streams<'a>(
    owners: impl IntoIterator<Item = (&'a Arc<str>, Stream)>,
    now: Instant,
) -> Streams {
    let mut nodes = BTreeSet::new();
    let mut next: Option<Instant> = None;
    for (node, stream) in owners {
        let until = match stream {
            Stream::Complete | Stream::Down => continue,
            Stream::Awaited(since) => since + STREAMS_WAIT,
        };
        if now < until {
            nodes.insert(node.clone());
            next = Some(next.map_or(until, |next| next.min(until)));
        }
    }
    match next {
        None => Streams::Up,
        Some(until) => Streams::Missing { nodes, until },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_fresh_while_it_knows_what_others_know_and_hears_them() {
        let start = Instant::now();
        let facts = Facts {
            applied: true,
            heard: Heard::Peers(Some(start)),
            behind: false,
        };
        assert_eq!(fresh(&facts, start + SILENCE_MAX), Ok(()));
        let late = start + SILENCE_MAX + Duration::from_millis(1);
        assert_eq!(fresh(&facts, late), Err(Stale::NoPeer));
        for (heard, stale) in [
            (Heard::Peers(None), Stale::NoPeer),
            (Heard::Source(None), Stale::NoSource),
        ] {
            assert_eq!(fresh(&Facts { heard, ..facts }, start), Err(stale));
        }
        let alone = Heard::Source(Some(start));
        assert_eq!(
            fresh(
                &Facts {
                    heard: alone,
                    ..facts
                },
                start
            ),
            Ok(())
        );
        let behind = Facts {
            behind: true,
            ..facts
        };
        assert_eq!(fresh(&behind, start), Err(Stale::Behind));
        let starts = Facts {
            applied: false,
            ..behind
        };
        assert_eq!(fresh(&starts, start), Err(Stale::Lists));
    }

    #[test]
    fn a_node_is_behind_when_what_a_peer_knows_does_not_come() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut lag = Lag::default();
        lag.note(5, Some(5), true, start);
        assert_eq!((lag.is_behind(at(900)), lag.next(start)), (false, None));
        lag.note(5, Some(6), true, start);
        assert_eq!(lag.next(start), Some(at(300)));
        assert_eq!(
            (lag.is_behind(at(299)), lag.is_behind(at(300))),
            (false, true)
        );
        // What it was behind by has come, and the next change is on its way.
        lag.note(6, Some(7), true, at(200));
        assert!(!lag.is_behind(at(400)) && lag.is_behind(at(500)));
        lag.note(7, None, true, at(500));
        assert!(!lag.is_behind(at(500)));
    }

    #[test]
    fn what_a_source_that_answers_does_not_tell_is_gone() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut cut_off = Lag::default();
        let mut lag = Lag::default();
        for second in 0..=60 {
            cut_off.note(5, Some(9), false, at(second));
            lag.note(5, Some(9), true, at(second));
        }
        assert!(cut_off.is_behind(at(60)) && !lag.is_behind(at(60)));
        lag.note(5, Some(9), true, at(70));
        assert!(!lag.is_behind(at(80)));
        lag.note(5, Some(10), true, at(80));
        assert!(lag.is_behind(at(81)));
        // The peer that spoke of it is gone, and later numbers count again.
        lag.note(5, Some(5), true, at(82));
        lag.note(5, Some(9), true, at(83));
        assert!(lag.is_behind(at(84)));
    }

    #[test]
    fn streams_of_the_living_are_waited_for_but_not_for_ever() {
        let start = Instant::now();
        let [a, b, c] = ["a", "b", "c"].map(Arc::from);
        let second = Duration::from_secs(1);
        let owners = [
            (&a, Stream::Complete),
            (&b, Stream::Awaited(start + second)),
            (&c, Stream::Awaited(start)),
        ];
        let missing = |nodes: &[&Arc<str>], until| Streams::Missing {
            nodes: nodes.iter().map(|node| (*node).clone()).collect(),
            until,
        };
        let at = |seconds| streams(owners, start + seconds * second);
        assert_eq!(at(59), missing(&[&b, &c], start + STREAMS_WAIT));
        assert_eq!(at(60), missing(&[&b], start + second + STREAMS_WAIT));
        assert_eq!(at(61), Streams::Up);
        assert_eq!(streams([(&c, Stream::Down)], start), Streams::Up);
    }
}
