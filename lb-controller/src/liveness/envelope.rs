//! What is around every datagram between agents: who sent it, that it is genuine, and that it is not an old one. Pure.
//!
//! ```text
//! 0        1          9            17         25         33         41       42       …  −32
//! version  sender u64 session u64  number u64 known u64  tables u64 flags u8 content     HMAC-SHA256
//! ```
//!
//! All integers are big-endian. *Session* is the sender's incarnation and *number* grows with every datagram, so one that
//! was seen, or belongs to an earlier session, is refused. A machine whose clock went back starts a session that looks old;
//! *known* tells it which incarnation of it the others know, and it goes on above that. *Tables* and two bits of the flags
//! are the sender's [`Condition`].

use std::collections::HashMap;
use std::hash::Hasher;

use ring::hmac;
use siphasher::sip::SipHasher24;

/// First byte of each datagram. Another one belongs to software that we are not.
const VERSION: u8 = 2;
/// Bytes before the content.
const HEADER_LEN: usize = 42;
/// Where the flags are.
const FLAGS_AT: usize = 41;
/// Flag: the sender is fresh.
const FRESH: u8 = 1 << 0;
/// Flag: the sender is ready.
const READY: u8 = 1 << 1;
/// Bytes after it.
const TAG_LEN: usize = 32;
/// Bytes around the content.
pub(super) const OVERHEAD: usize = HEADER_LEN + TAG_LEN;
/// Datagrams of one sender that may overtake each other. A second's worth on the fullest link is about a hundred.
const WINDOW: u64 = 128;

/// Signs and checks; made from the cluster's gossip key.
#[derive(Clone)]
pub struct Key(hmac::Key);

impl std::fmt::Debug for Key {
    /// Secrets stay out of logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key")
    }
}

impl Key {
    /// From the cluster's secret.
    pub fn new(secret: &[u8; 32]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }
}

/// Why a datagram is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refused {
    /// Not ours, cut short, or signed with another key.
    #[error("not genuine")]
    NotGenuine,
    /// Seen before, or too old to say.
    #[error("seen before")]
    Replayed,
    /// Of a session that has ended, or of a machine whose clock went back.
    #[error("of an earlier session than {0}")]
    EarlierSession(u64),
}

/// What a member says of itself with every datagram.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Condition {
    /// How new the tables are that it was told: two members that were told the same say the same number, and a table that
    /// is written makes it grow.
    pub tables: u64,
    /// It is fresh, see [`crate::model::freshness`].
    pub is_fresh: bool,
    /// It has all tables, and the pins of all that live: it may be chosen to announce.
    pub is_ready: bool,
}

/// A genuine datagram.
#[derive(PartialEq, Eq, Debug)]
pub struct Opened<'a> {
    /// Who sent it, as [`sender`] has it.
    pub sender: u64,
    /// How the sender is; none if a datagram that it sent later has come before.
    pub condition: Option<Condition>,
    /// Which incarnation of us its sender knows; 0 if none.
    pub known: u64,
    /// What it says; may be empty.
    pub content: &'a [u8],
}

/// What is known of one sender's datagrams.
#[derive(Clone, Copy, Debug)]
struct Window {
    session: u64,
    highest: u64,
    /// Bit `n`: number `highest − n` was seen.
    seen: u128,
}

/// Seals and opens the datagrams of one member.
#[derive(Debug)]
pub struct Envelope {
    key: Key,
    number: u64,
    windows: HashMap<u64, Window>,
}

impl Envelope {
    /// Nothing was seen yet.
    pub fn new(key: Key) -> Self {
        Self {
            key,
            number: 0,
            windows: HashMap::new(),
        }
    }

    /// Another key from now on.
    pub fn set_key(&mut self, key: Key) {
        self.key = key;
    }

    /// The incarnation of a node that its datagrams spoke of last; 0 if none came.
    pub fn session_of(&self, node: &str) -> u64 {
        self.windows
            .get(&sender(node))
            .map_or(0, |window| window.session)
    }

    /// Puts everything around the content that a datagram from `node` in its `session` needs.
    pub fn seal(
        &mut self,
        node: &str,
        session: u64,
        known: u64,
        condition: Condition,
        content: &[u8],
    ) -> Vec<u8> {
        let Condition {
            tables,
            is_fresh,
            is_ready,
        } = condition;
        self.number += 1;
        let mut datagram = Vec::with_capacity(content.len() + OVERHEAD);
        datagram.push(VERSION);
        for word in [sender(node), session, self.number, known, tables] {
            datagram.extend_from_slice(&word.to_be_bytes());
        }
        let fresh = if is_fresh { FRESH } else { 0 };
        let ready = if is_ready { READY } else { 0 };
        datagram.push(fresh | ready);
        datagram.extend_from_slice(content);
        let tag = hmac::sign(&self.key.0, &datagram);
        datagram.extend_from_slice(tag.as_ref());
        datagram
    }

    /// Checks a datagram and takes it out. What is refused changes nothing.
    pub fn open<'a>(&mut self, datagram: &'a [u8]) -> Result<Opened<'a>, Refused> {
        if datagram.len() < OVERHEAD || datagram[0] != VERSION {
            return Err(Refused::NotGenuine);
        }
        let (signed, tag) = datagram.split_at(datagram.len() - TAG_LEN);
        hmac::verify(&self.key.0, signed, tag).map_err(|_| Refused::NotGenuine)?;
        let (header, content) = signed.split_at(HEADER_LEN);
        let word = |n: usize| {
            let at = 1 + 8 * n;
            u64::from_be_bytes(std::array::from_fn(|byte| header[at + byte]))
        };
        let (sender, session, number, known) = (word(0), word(1), word(2), word(3));
        let is_newest = self.note(sender, session, number)?;
        let condition = Condition {
            tables: word(4),
            is_fresh: header[FLAGS_AT] & FRESH != 0,
            is_ready: header[FLAGS_AT] & READY != 0,
        };
        Ok(Opened {
            sender,
            condition: is_newest.then_some(condition),
            known,
            content,
        })
    }

    /// Notes that a datagram has come. The answer is whether none that was sent later has.
    fn note(&mut self, sender: u64, session: u64, number: u64) -> Result<bool, Refused> {
        let window = self.windows.entry(sender).or_insert(Window {
            session,
            highest: 0,
            seen: 0,
        });
        if session < window.session {
            return Err(Refused::EarlierSession(window.session));
        }
        if session > window.session {
            *window = Window {
                session,
                highest: 0,
                seen: 0,
            };
        }
        if number > window.highest {
            let ahead = number - window.highest;
            window.seen = if ahead < WINDOW {
                window.seen << ahead
            } else {
                0
            };
            window.seen |= 1;
            window.highest = number;
            return Ok(true);
        }
        let behind = window.highest - number;
        if behind >= WINDOW || window.seen & (1 << behind) != 0 {
            return Err(Refused::Replayed);
        }
        window.seen |= 1 << behind;
        Ok(false)
    }

    /// Forgets senders that are not among these nodes.
    pub fn keep<'a>(&mut self, nodes: impl Iterator<Item = &'a str>) {
        let senders: std::collections::HashSet<_> = nodes.map(sender).collect();
        self.windows.retain(|sender, _| senders.contains(sender));
    }
}

/// A name in eight bytes. Two nodes with the same one would refuse each other's sessions; among a thousand nodes that is
/// less likely than 2⁻⁴⁴.
pub(super) fn sender(node: &str) -> u64 {
    let mut hasher = SipHasher24::new_with_key(b"bowline gossip 1");
    hasher.write(node.as_bytes());
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HERE: Condition = Condition {
        tables: 7,
        is_fresh: true,
        is_ready: false,
    };

    fn pair() -> (Envelope, Envelope) {
        let key = Key::new(&[7; 32]);
        (Envelope::new(key.clone()), Envelope::new(key))
    }

    #[test]
    fn what_is_sealed_is_opened_once() {
        let (mut here, mut there) = pair();
        let datagram = here.seal("a", 5, 9, HERE, b"content");
        let opened = there.open(&datagram).unwrap();
        let expected = Opened {
            sender: sender("a"),
            condition: Some(HERE),
            known: 9,
            content: b"content",
        };
        assert_eq!(opened, expected);
        assert_eq!(there.open(&datagram), Err(Refused::Replayed));
    }

    #[test]
    fn another_key_is_not_genuine() {
        let (mut here, _) = pair();
        let mut other = Envelope::new(Key::new(&[8; 32]));
        assert_eq!(
            other.open(&here.seal("a", 5, 0, HERE, b"x")),
            Err(Refused::NotGenuine)
        );
    }

    #[test]
    fn datagrams_may_overtake_each_other_but_not_by_more_than_the_window() {
        let (mut here, mut there) = pair();
        let datagrams: Vec<_> = (0..WINDOW + 2)
            .map(|_| here.seal("a", 5, 0, HERE, b""))
            .collect();
        assert_eq!(there.open(&datagrams[1]).unwrap().condition, Some(HERE));
        // What it says of its sender is out of date.
        assert_eq!(there.open(&datagrams[0]).unwrap().condition, None);
        assert_eq!(there.open(&datagrams[0]), Err(Refused::Replayed));
        assert!(there.open(datagrams.last().unwrap()).is_ok());
        assert_eq!(there.open(&datagrams[0]), Err(Refused::Replayed));
        assert_eq!(there.open(&datagrams[1]), Err(Refused::Replayed));
        assert!(there.open(&datagrams[2]).is_ok());
    }

    #[test]
    fn a_new_session_starts_anew_and_the_earlier_one_is_over() {
        let (mut before, mut there) = pair();
        let mut after = Envelope::new(before.key.clone());
        let old = before.seal("a", 5, 0, HERE, b"");
        let late = before.seal("a", 5, 0, HERE, b"");
        assert!(there.open(&old).is_ok());
        assert!(there.open(&after.seal("a", 6, 0, HERE, b"")).is_ok());
        assert_eq!(there.open(&late), Err(Refused::EarlierSession(6)));
        assert_eq!(there.session_of("a"), 6);
        // Others are not concerned.
        assert!(there.open(&before.seal("b", 5, 0, HERE, b"")).is_ok());
        there.keep(["b"].into_iter());
        assert_eq!((there.session_of("a"), there.session_of("b")), (0, 5));
    }

    proptest! {
        #[test]
        fn any_changed_byte_is_noticed(content in proptest::collection::vec(any::<u8>(), 0..64), at in 0usize..1000, flip in 1u8..) {
            let (mut here, mut there) = pair();
            let mut datagram = here.seal("node", 1, 2, HERE, &content);
            let at = at % datagram.len();
            datagram[at] ^= flip;
            prop_assert_eq!(there.open(&datagram), Err(Refused::NotGenuine));
        }

        #[test]
        fn garbage_is_refused(datagram in proptest::collection::vec(any::<u8>(), 0..200)) {
            let (_, mut there) = pair();
            prop_assert_eq!(there.open(&datagram), Err(Refused::NotGenuine));
        }
    }
}
