//! Routes to VIPs, and the sessions by which routers are told of them.

use jiff::Timestamp;
use lb_controller::admin::{BgpSession, Bird, Routes};

use super::age;
use crate::output::{facts, lines, parts, table};
use crate::units;

pub(super) fn routes(routes: &Routes, now: Timestamp) -> String {
    let Routes {
        table: number,
        wanted,
        installed,
        bird,
    } = routes;
    let kept = if installed == wanted {
        format!("{installed} in table {number}")
    } else {
        format!("{installed} in table {number}, which should have {wanted}")
    };
    let mut said = vec![("routes", kept)];
    said.extend(bird.as_ref().map(|bird| ("bird", state(bird).to_owned())));
    let sessions = bird.iter().flat_map(|bird| &bird.sessions);
    parts([facts(&said), session_table(sessions, now)])
}

fn state(bird: &Bird) -> &'static str {
    match (bird.answers, bird.configured) {
        (false, _) => "does not answer",
        (true, false) => "does not do yet what peers and advertisements say",
        (true, true) => "does what peers and advertisements say",
    }
}

fn session_table<'a>(sessions: impl Iterator<Item = &'a BgpSession>, now: Timestamp) -> String {
    let mut rows = table(["BGP PEER", "SESSION", "FOR", "TOLD", "LAST ERROR"]);
    for session in sessions {
        let BgpSession {
            peer,
            state,
            is_up: _,
            since,
            exported,
            error,
        } = session;
        let since = since.map_or_else(|| "-".to_owned(), |since| units::duration(age(since, now)));
        let error = error.as_deref().unwrap_or_default();
        rows.add_row([peer, state, &since, &exported.to_string(), error]);
    }
    lines(&rows)
}
