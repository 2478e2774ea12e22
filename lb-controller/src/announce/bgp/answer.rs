//! What BIRD answers on its control socket. Pure: lines in, values out.

use std::collections::BTreeMap;

use super::text::PEER_PREFIX;

/// The longest answer that is read: some thousand sessions with all that is told of each.
pub(super) const ANSWER_LENGTH_MAX: usize = 4 << 20;

/// A whole answer.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Reply {
    /// Its lines, each with its code.
    pub lines: Vec<(u16, String)>,
}

/// Why an answer is none.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ReplyError {
    /// BIRD refuses.
    #[error("BIRD says {code}: {text}")]
    Refused {
        /// From 8000.
        code: u16,
        /// What it says.
        text: String,
    },
    /// Not BIRD.
    #[error("not an answer of BIRD: {0:?}")]
    Malformed(String),
}

/// First code of errors at work (8xxx) and in questions (9xxx).
const ERRORS_FROM: u16 = 8000;
/// An answer to a question about what is not there.
const NO_PROTOCOLS: u16 = 8003;

impl Reply {
    /// Takes in a line; true if it is the last. Each line has a code of four digits and `-`, or a space if it is the last, or is a
    /// space and more text of the same code.
    pub fn take(&mut self, line: &str) -> Result<bool, ReplyError> {
        let malformed = || ReplyError::Malformed(line.chars().take(80).collect());
        if let Some(more) = line.strip_prefix(' ') {
            let code = self.lines.last().ok_or_else(malformed)?.0;
            self.lines.push((code, more.to_owned()));
            return Ok(false);
        }
        let (code, rest) = line.split_at_checked(4).ok_or_else(malformed)?;
        let code = code.parse().map_err(|_| malformed())?;
        let is_last = rest.starts_with(' ');
        let text = rest.strip_prefix(['-', ' ']).ok_or_else(malformed)?;
        if code >= ERRORS_FROM && code != NO_PROTOCOLS {
            let text = text.to_owned();
            return Err(ReplyError::Refused { code, text });
        }
        self.lines.push((code, text.to_owned()));
        Ok(is_last)
    }
}

/// A BGP session.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Session {
    /// Name of the peer.
    pub peer: String,
    /// `Established`, or what it does instead.
    pub state: String,
    /// Since when, in seconds since 1970.
    pub since: Option<i64>,
    /// What was wrong last.
    pub error: Option<String>,
    /// Prefixes that the router is told.
    pub exported: u64,
}

/// The line of one protocol.
const PROTOCOL: u16 = 1002;
/// What is told of it.
const DETAILS: u16 = 1006;

/// Our sessions in the answer to `show protocols all`, by the names that the configuration has given them.
pub fn sessions(reply: &Reply, names: &BTreeMap<String, String>) -> Vec<Session> {
    let mut sessions: Vec<Session> = Vec::new();
    let mut is_ours = false;
    for (code, line) in &reply.lines {
        if *code == PROTOCOL {
            let mut words = line.split_whitespace();
            let symbol = words.next().unwrap_or_default();
            let peer = names
                .get(symbol)
                .filter(|_| symbol.starts_with(PEER_PREFIX));
            is_ours = peer.is_some();
            // Kind, table and state of the protocol are before the time.
            let since = words.nth(3).and_then(|word| word.parse().ok());
            let state = words.next().unwrap_or("Down");
            sessions.extend(peer.map(|peer| Session {
                peer: peer.clone(),
                state: state.trim_end_matches(':').to_owned(),
                since,
                ..Session::default()
            }));
        } else if *code == DETAILS
            && is_ours
            && let Some(session) = sessions.last_mut()
        {
            detail(session, line);
        }
    }
    sessions
}

fn detail(session: &mut Session, line: &str) {
    let Some((what, told)) = line.trim().split_once(':') else {
        return;
    };
    let told = told.trim();
    match what {
        "BGP state" => told.clone_into(&mut session.state),
        "Last error" => session.error = Some(told.to_owned()),
        // `0 imported, 3 exported, 0 preferred`
        "Routes" => {
            let mut counts = told.split(',');
            let exported = counts.find_map(|count| count.trim().strip_suffix(" exported"));
            session.exported += exported.and_then(|count| count.parse().ok()).unwrap_or(0);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(text: &str) -> Reply {
        let mut reply = Reply::default();
        let mut lines = text.lines();
        while !reply.take(lines.next().unwrap()).unwrap() {}
        assert_eq!(lines.next(), None);
        reply
    }

    #[test]
    fn sessions_are_read_by_their_peers() {
        let reply = reply(
            "2002-Name       Proto      Table      State  Since         Info\n\
             1002-peer-a     BGP        ---        up     1796092618    Established   \n\
             1006-  BGP state:          Established\n     Neighbor address: 10.99.0.2\n   Channel ipv4\n     \
             State:          UP\n     Routes:         0 imported, 3 exported, 0 preferred\n \n\
             1002-device1    Device     ---        up     1796092616    \n \n\
             1002-peer-b     BGP        ---        start  1796092700    Idle          Error: Hold timer expired\n\
             1006-  BGP state:          Idle\n     Last error:       Error: Hold timer expired\n \n\
             1002-peer-other BGP        ---        up     1796092618    Established   \n\
             1006-  BGP state:          Established\n \n\
             0000 ",
        );
        let names = [("peer-a", "a"), ("peer-b", "b")];
        let names = names.map(|(symbol, peer)| (symbol.to_owned(), peer.to_owned()));
        assert_eq!(
            sessions(&reply, &names.into()),
            [
                Session {
                    peer: "a".to_owned(),
                    state: "Established".to_owned(),
                    since: Some(1_796_092_618),
                    error: None,
                    exported: 3,
                },
                Session {
                    peer: "b".to_owned(),
                    state: "Idle".to_owned(),
                    since: Some(1_796_092_700),
                    error: Some("Error: Hold timer expired".to_owned()),
                    exported: 0,
                },
            ]
        );
    }

    #[test]
    fn a_refusal_says_what_bird_says() {
        let mut reply = Reply::default();
        reply.take("0002-Reading configuration from /x").unwrap();
        let refused = reply.take("8002 /x:10:9 syntax error");
        let text = "/x:10:9 syntax error".to_owned();
        assert_eq!(refused, Err(ReplyError::Refused { code: 8002, text }));
        let none = Reply::default().take("8003 No protocols match");
        assert_eq!(none, Ok(true), "there may be no peers");
    }

    #[test]
    fn what_is_no_answer_is_refused() {
        for line in ["", "abc", "12", "00a1 x", "0001", "0001x", " more", "ää"] {
            let taken = Reply::default().take(line);
            assert!(matches!(taken, Err(ReplyError::Malformed(_))), "{line:?}");
        }
    }
}
