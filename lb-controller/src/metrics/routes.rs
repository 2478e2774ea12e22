//! Routes to VIPs and the sessions by which routers are told of them, as Prometheus reads them.

use std::fmt::Error;

use super::{Families, number, one, truth};
use crate::admin::{Bird, Routes};

/// Writes them; nothing if no routes are kept.
pub(super) fn routes(families: &mut Families<'_>, routes: Option<&Routes>) -> Result<(), Error> {
    let Some(Routes {
        table: _,
        wanted,
        installed,
        bird,
    }) = routes
    else {
        return Ok(());
    };
    families.gauge(
        "bowline_routes",
        "Routes to VIPs: that there should be, and that the table had when it was last as it should be",
        [
            (vec![("state", "wanted")], number(*wanted as u64)),
            (vec![("state", "installed")], number(*installed as u64)),
        ],
    )?;
    bird.as_ref().map_or(Ok(()), |bird| told(families, bird))
}

fn told(families: &mut Families<'_>, bird: &Bird) -> Result<(), Error> {
    let Bird {
        answers,
        configured,
        sessions,
    } = bird;
    families.gauge(
        "bowline_bird_up",
        "1 when BIRD answers",
        one(truth(*answers)),
    )?;
    families.gauge(
        "bowline_bird_configured",
        "1 when BIRD does what peers and advertisements say",
        one(truth(*configured)),
    )?;
    families.gauge(
        "bowline_bgp_session_up",
        "1 when the session is established, by BGPPeer",
        sessions
            .iter()
            .map(|session| (vec![("peer", session.peer.as_str())], truth(session.is_up))),
    )?;
    families.gauge(
        "bowline_bgp_exported_prefixes",
        "Prefixes that a router is told, by BGPPeer",
        sessions.iter().map(|session| {
            let peer = vec![("peer", session.peer.as_str())];
            (peer, number(session.exported))
        }),
    )
}
