//! What is around every datagram between agents: who sent it, that it is genuine, and that it is not an old one. Pure.
//!
//! ```text
//! 0        1          9            17         25          33         …            −32
//! version  sender u64 session u64  number u64 known u64   content                 HMAC-SHA256
//! ```
//!
//! All integers are big-endian. *Session* is the sender's incarnation and *number* grows with every datagram, so one that
//! was seen, or belongs to an earlier session, is refused. A machine whose clock went back starts a session that looks old;
//! *known* tells it which incarnation of it the others know, and it goes on above that.

use std::collections::HashMap;
use std::hash::Hasher;

use ring::hmac;
use siphasher::sip::SipHasher24;

/// First byte of each datagram. Another one belongs to software that we are not.
const VERSION: u8 = 1;
/// Bytes before the content.
const HEADER_LEN: usize = 33;
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

/// A genuine datagram.
#[derive(PartialEq, Eq, Debug)]
pub struct Opened<'a> {
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
    pub fn seal(&mut self, node: &str, session: u64, known: u64, content: &[u8]) -> Vec<u8> {
        self.number += 1;
        let mut datagram = Vec::with_capacity(content.len() + OVERHEAD);
        datagram.push(VERSION);
        for word in [sender(node), session, self.number, known] {
            datagram.extend_from_slice(&word.to_be_bytes());
        }
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
        self.note(sender, session, number)?;
        Ok(Opened { known, content })
    }

    fn note(&mut self, sender: u64, session: u64, number: u64) -> Result<(), Refused> {
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
            return Ok(());
        }
        let behind = window.highest - number;
        if behind >= WINDOW || window.seen & (1 << behind) != 0 {
            return Err(Refused::Replayed);
        }
        window.seen |= 1 << behind;
        Ok(())
    }

    /// Forgets senders that are not among these nodes.
    pub fn keep<'a>(&mut self, nodes: impl Iterator<Item = &'a str>) {
        let senders: std::collections::HashSet<_> = nodes.map(sender).collect();
        self.windows.retain(|sender, _| senders.contains(sender));
    }
}

/// A name in eight bytes. Two nodes with the same one would refuse each other's sessions; among a thousand nodes that is
/// less likely than 2⁻⁴⁴.
fn sender(node: &str) -> u64 {
    let mut hasher = SipHasher24::new_with_key(b"bowline gossip 1");
    hasher.write(node.as_bytes());
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pair() -> (Envelope, Envelope) {
        let key = Key::new(&[7; 32]);
        (Envelope::new(key.clone()), Envelope::new(key))
    }

    #[test]
    fn what_is_sealed_is_opened_once() {
        let (mut here, mut there) = pair();
        let datagram = here.seal("a", 5, 9, b"content");
        let opened = there.open(&datagram).unwrap();
        assert_eq!((opened.known, opened.content), (9, &b"content"[..]));
        assert_eq!(there.open(&datagram), Err(Refused::Replayed));
    }

    #[test]
    fn another_key_is_not_genuine() {
        let (mut here, _) = pair();
        let mut other = Envelope::new(Key::new(&[8; 32]));
        assert_eq!(
            other.open(&here.seal("a", 5, 0, b"x")),
            Err(Refused::NotGenuine)
        );
    }

    #[test]
    fn datagrams_may_overtake_each_other_but_not_by_more_than_the_window() {
        let (mut here, mut there) = pair();
        let datagrams: Vec<_> = (0..WINDOW + 2).map(|_| here.seal("a", 5, 0, b"")).collect();
        assert!(there.open(&datagrams[1]).is_ok());
        assert!(there.open(&datagrams[0]).is_ok());
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
        let old = before.seal("a", 5, 0, b"");
        let late = before.seal("a", 5, 0, b"");
        assert!(there.open(&old).is_ok());
        assert!(there.open(&after.seal("a", 6, 0, b"")).is_ok());
        assert_eq!(there.open(&late), Err(Refused::EarlierSession(6)));
        assert_eq!(there.session_of("a"), 6);
        // Others are not concerned.
        assert!(there.open(&before.seal("b", 5, 0, b"")).is_ok());
        there.keep(["b"].into_iter());
        assert_eq!((there.session_of("a"), there.session_of("b")), (0, 5));
    }

    proptest! {
        #[test]
        fn any_changed_byte_is_noticed(content in proptest::collection::vec(any::<u8>(), 0..64), at in 0usize..1000, flip in 1u8..) {
            let (mut here, mut there) = pair();
            let mut datagram = here.seal("node", 1, 2, &content);
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
