//! What the lab's clients and servers say to each other. Lines of text, so that `nc` and `curl` can join in.
//!
//! ```text
//! TCP  who                 → <pod> <uid> <client address and port>
//!      ping <n>            → pong <n> <uid>
//!      send <n>            → <n> bytes of the pattern
//!      take <n> <n bytes>  → taken <n> good | taken <n> corrupt
//!      GET <path> …        → an HTTP response with the line of `who`; the connection is closed
//! UDP  <anything>          → <anything> <pod> <uid> <client address and port>
//! ```

use std::net::SocketAddr;
use std::sync::LazyLock;

/// Longest line that is read: a header of a browser fits, and nobody can make us keep more.
pub(crate) const LINE_MAX: u64 = 16 * 1024;
/// Bytes of the pattern that are written at once.
pub(crate) const CHUNK: usize = 64 * 1024;

/// Who answered, and whom it saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Who {
    /// The pod's name.
    pub(crate) pod: String,
    /// The pod's UID.
    pub(crate) uid: String,
    /// The client as the pod sees it.
    pub(crate) client: SocketAddr,
}

impl Who {
    /// The line, without its end.
    pub(crate) fn line(&self) -> String {
        format!("{} {} {}", self.pod, self.uid, self.client)
    }

    /// Reads a line of [`Self::line`].
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let (pod, uid, client) = (words.next()?, words.next()?, words.next()?);
        let who = Self {
            pod: pod.to_owned(),
            uid: uid.to_owned(),
            client: client.parse().ok()?,
        };
        words.next().is_none().then_some(who)
    }
}

/// A socket that takes both families shows IPv4 clients as mapped addresses; people want to see the client's own.
pub(crate) fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Bytes after which the pattern repeats: a prime, so that a segment out of place is noticed.
const PERIOD: usize = 251;

/// A chunk of the pattern from any offset on is a part of this.
static PATTERN: LazyLock<Vec<u8>> =
    LazyLock::new(|| (0..CHUNK + PERIOD).map(|at| (at % PERIOD) as u8).collect());

/// At most [`CHUNK`] bytes of a transfer, from an offset on.
pub(crate) fn pattern(offset: u64, length: usize) -> &'static [u8] {
    let start = (offset % PERIOD as u64) as usize;
    &PATTERN[start..start + length.min(CHUNK)]
}

/// The bytes are those of a transfer from an offset on.
pub(crate) fn is_pattern(bytes: &[u8], offset: u64) -> bool {
    let mut chunks = (offset..).step_by(CHUNK).zip(bytes.chunks(CHUNK));
    chunks.all(|(at, chunk)| chunk == pattern(at, chunk.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_survives_its_line() {
        let who = Who {
            pod: "web-1".to_owned(),
            uid: "u-1".to_owned(),
            client: "[fd50:0:0:1::a]:4711".parse().unwrap(),
        };
        assert_eq!(Who::parse(&who.line()), Some(who));
        assert_eq!(Who::parse("a b 1.2.3.4:5 more"), None);
    }

    #[test]
    fn mapped_addresses_are_shown_as_ipv4() {
        let mapped = "[::ffff:10.50.1.10]:99".parse().unwrap();
        assert_eq!(plain(mapped).to_string(), "10.50.1.10:99");
    }

    #[test]
    fn a_segment_out_of_place_is_noticed() {
        let buffer = pattern(1_000, 600);
        assert_eq!(buffer[..2], [247, 248]);
        assert!(is_pattern(buffer, 1_000));
        assert!(!is_pattern(buffer, 1_001));
        assert!(!is_pattern(&buffer[300..], 1_000));
    }
}
