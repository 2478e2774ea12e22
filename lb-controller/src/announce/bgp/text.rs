//! BIRD's configuration as text. Pure. Names of objects are quoted symbols, passwords were checked, all else is numbers.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::hash::Hasher;

use siphasher::sip::SipHasher24;

use super::config::{Config, Peer, Told};
use super::password::Password;
use crate::announce::routes;

/// Longest name that is kept: BIRD takes 64 characters for a symbol (`SYM_MAX_LEN`), of which prefixes of ours take some.
const NAME_LENGTH_MAX: usize = 48;
/// Digits of the hash that stands for the rest of a longer one.
const HASH_DIGITS: usize = 16;

/// What BIRD's part of `show protocols` names our sessions by.
pub(super) const PEER_PREFIX: &str = "peer-";

/// So often the nodes' autonomous system is put before a path that is the last choice: longer than any detour between a router and a
/// rack.
const PREPENDED: usize = 3;

/// Between a metric of ours and one that is the last choice.
const METRIC_LIMIT: u32 = u32::midpoint(routes::METRIC, routes::METRIC_LAST);

/// A configuration, and what is left out of it.
#[derive(Clone, PartialEq, Eq)]
pub struct Rendered {
    /// The text; it may have passwords in it.
    pub text: String,
    /// Symbols of sessions, and the peers that they are of.
    pub sessions: BTreeMap<String, String>,
}

/// Has no text: it may have passwords in it.
impl fmt::Debug for Rendered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { text: _, sessions } = self;
        f.debug_struct("Rendered")
            .field("sessions", sessions)
            .finish_non_exhaustive()
    }
}

/// Writes a configuration. A peer whose password is not among `passwords` is left out: without it the session would not come up,
/// and should not.
pub fn render(config: &Config, passwords: &BTreeMap<String, Password>) -> Rendered {
    let mut rendered = Rendered {
        text: String::new(),
        sessions: BTreeMap::new(),
    };
    let has_password = |peer: &&Peer| {
        let key = peer.password.as_ref();
        key.is_none_or(|key| passwords.contains_key(key))
    };
    let peers: Vec<_> = config.peers.iter().filter(has_password).collect();
    // Writing to a string does not fail.
    _ = head(&mut rendered.text, config, &peers);
    for peer in peers {
        let password = peer.password.as_ref().and_then(|key| passwords.get(key));
        let symbol = symbol(PEER_PREFIX, &peer.name);
        _ = filter(&mut rendered.text, peer);
        _ = protocol(&mut rendered.text, peer, &symbol, password);
        rendered.sessions.insert(symbol, peer.name.clone());
    }
    rendered
}

/// A symbol for a peer: its name, as long as BIRD takes that. Names of objects have lower-case letters, digits, '-' and '.' only.
fn symbol(prefix: &str, name: &str) -> String {
    let is_plain = |c: &char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(*c);
    let plain: String = name.chars().filter(is_plain).collect();
    if plain == name && name.len() <= NAME_LENGTH_MAX {
        return format!("{prefix}{name}");
    }
    let mut hasher = SipHasher24::new_with_key(b"bowline bgp peer");
    hasher.write(name.as_bytes());
    let kept: String = plain
        .chars()
        .take(NAME_LENGTH_MAX - HASH_DIGITS - 1)
        .collect();
    format!("{prefix}{kept}-{:016x}", hasher.finish())
}

fn head(text: &mut String, config: &Config, peers: &[&Peer]) -> fmt::Result {
    let Config {
        table,
        router_id,
        peers: _,
    } = config;
    let protocol = routes::PROTOCOL;
    write!(
        text,
        "# Written by Bowline's agent from BGPPeers and BGPAdvertisements; what is changed here is lost.\n\
         router id {router_id};\n\
         log stderr all;\n\
         timeformat protocol \"%s\";\n\
         graceful restart wait {RECOVERY_S};\n\
         protocol device {{}}\n"
    )?;
    if peers.iter().any(|peer| peer.bfd.is_some()) {
        text.push_str("protocol bfd {}\n");
    }
    for family in ["4", "6"] {
        write!(
            text,
            "protocol kernel vips{family} {{\n    \
                 kernel table {table};\n    \
                 learn;\n    \
                 scan time 5;\n    \
                 ipv{family} {{ import where krt_source = {protocol}; export none; }};\n\
             }}\n"
        )?;
    }
    Ok(())
}

/// Routers keep routes so long while BIRD restarts: longer than a pod takes to be replaced, and no longer than that, since a node that
/// is shut down looks the same at first.
const RESTART_S: u32 = 60;

/// A BIRD that was restarted waits this long for routers before it tells them that it has told all. They tell nothing.
const RECOVERY_S: u32 = 10;

fn filter(text: &mut String, peer: &Peer) -> fmt::Result {
    let name = symbol("to-", &peer.name);
    write!(
        text,
        "filter '{name}' {{\n    bool chosen = false;\n    int highest = 0;\n    bool is_ranked = false;\n"
    )?;
    for told in &peer.told {
        advertisement(text, told)?;
    }
    text.push_str(
        "    if !chosen then reject;\n    \
             if is_ranked then bgp_local_pref = highest;\n",
    );
    // GRACEFUL_SHUTDOWN (RFC 8326): the last choice. Routers that do not know it compare lengths of paths; inside an autonomous system
    // nobody may prepend its number.
    let is_outside = peer.asn != peer.own_asn;
    let prepended = format!("        bgp_path.prepend({});\n", peer.own_asn);
    let prepended = prepended.repeat(if is_outside { PREPENDED } else { 0 });
    write!(
        text,
        "    if krt_metric > {METRIC_LIMIT} then {{\n        \
                 bgp_community.add((65535, 0));\n        \
                 bgp_local_pref = 0;\n\
         {prepended}    \
             }}\n    \
             accept;\n\
         }}\n"
    )
}

fn advertisement(text: &mut String, told: &Told) -> fmt::Result {
    let Told {
        advertisement,
        prefixes,
        communities,
        large_communities,
        local_preference,
    } = told;
    let prefixes: Vec<_> = prefixes.iter().map(ToString::to_string).collect();
    let name = symbol("", advertisement);
    write!(
        text,
        "    if net ~ [ {} ] then {{ # {name}\n        chosen = true;\n",
        prefixes.join(", ")
    )?;
    for community in communities {
        let (high, low) = (community.0, community.1);
        writeln!(text, "        bgp_community.add(({high}, {low}));")?;
    }
    for community in large_communities {
        let (administrator, first, second) = (community.0, community.1, community.2);
        writeln!(
            text,
            "        bgp_large_community.add(({administrator}, {first}, {second}));"
        )?;
    }
    if let Some(preference) = local_preference {
        write!(
            text,
            "        is_ranked = true;\n        \
                     if highest < {preference} then highest = {preference};\n"
        )?;
    }
    text.push_str("    }\n");
    Ok(())
}

fn protocol(
    text: &mut String,
    peer: &Peer,
    symbol: &str,
    password: Option<&Password>,
) -> fmt::Result {
    writeln!(text, "protocol bgp '{symbol}' {{")?;
    let mut option = |option: String| writeln!(text, "    {option};");
    let source = peer
        .source
        .map(|source| format!("{source} "))
        .unwrap_or_default();
    option(format!("local {source}as {}", peer.own_asn))?;
    let port = peer
        .port
        .map(|port| format!("port {port} "))
        .unwrap_or_default();
    option(format!("neighbor {} {port}as {}", peer.address, peer.asn))?;
    option(match peer.hops {
        None => "direct".to_owned(),
        Some(hops) => format!("multihop {hops}"),
    })?;
    if let Some(password) = password {
        option(format!("password \"{}\"", password.reveal()))?;
    }
    if let Some(seconds) = peer.hold_time {
        option(format!("hold time {seconds}"))?;
    }
    if let Some(seconds) = peer.keepalive_time {
        option(format!("keepalive time {seconds}"))?;
    }
    if peer.graceful_restart {
        option("graceful restart on".to_owned())?;
        option(format!("graceful restart time {RESTART_S}"))?;
    } else {
        option("graceful restart off".to_owned())?;
    }
    if let Some(bfd) = peer.bfd {
        let (interval, multiplier) = (bfd.interval_milliseconds, bfd.multiplier);
        option(format!(
            "bfd {{ interval {interval} ms; multiplier {multiplier}; }}"
        ))?;
    }
    // A node that comes back is to be used again within seconds.
    option("connect delay time 1".to_owned())?;
    option("connect retry time 5".to_owned())?;
    option("error wait time 1, 30".to_owned())?;
    let family = if peer.address.is_ipv4() { 4 } else { 6 };
    let filter = self::symbol("to-", &peer.name);
    option(format!(
        "ipv{family} {{ import none; export filter '{filter}'; next hop self; }}"
    ))?;
    text.push_str("}\n");
    Ok(())
}

#[cfg(test)]
mod tests;
