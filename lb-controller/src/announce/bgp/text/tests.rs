//! Whole configurations, and what BIRD says of them.

use std::process::Command;

use super::*;
use crate::announce::bgp::config::Pattern;
use crate::api::bgp_peer::Bfd;
use crate::api::community::{Community, LargeCommunity};

fn peer(name: &str, address: &str) -> Peer {
    Peer {
        name: name.to_owned(),
        address: address.parse().unwrap(),
        port: None,
        asn: 64500.try_into().unwrap(),
        own_asn: 64501.try_into().unwrap(),
        source: None,
        hops: None,
        password: None,
        hold_time: None,
        keepalive_time: None,
        bfd: None,
        graceful_restart: true,
        told: Vec::new(),
    }
}

fn pattern(net: &str, length: u8) -> Pattern {
    Pattern {
        net: net.parse().unwrap(),
        length,
    }
}

fn told(name: &str, prefixes: &[Pattern]) -> Told {
    Told {
        advertisement: name.to_owned(),
        prefixes: prefixes.iter().copied().collect(),
        communities: Vec::new(),
        large_communities: Vec::new(),
        local_preference: None,
    }
}

fn config(peers: Vec<Peer>) -> Config {
    Config {
        table: 6081,
        router_id: [10, 0, 0, 11].into(),
        peers,
    }
}

/// With everything that there is.
fn full() -> Config {
    let first = Peer {
        port: Some(1179.try_into().unwrap()),
        asn: 64501.try_into().unwrap(),
        source: Some("10.0.0.11".parse().unwrap()),
        hops: Some(4.try_into().unwrap()),
        password: Some("rack-a".to_owned()),
        hold_time: Some(9),
        keepalive_time: Some(3.try_into().unwrap()),
        bfd: Some(Bfd::default()),
        told: vec![
            Told {
                communities: vec![Community(64501, 100), Community(0, 65535)],
                large_communities: vec![LargeCommunity(4_200_000_000, 1, 2)],
                local_preference: Some(300),
                ..told(
                    "shop",
                    &[pattern("198.51.100.0/24", 32), pattern("192.0.2.0/25", 28)],
                )
            },
            told("office", &[pattern("203.0.113.7/32", 32)]),
        ],
        ..peer("rack-a", "10.0.0.1")
    };
    let second = Peer {
        graceful_restart: false,
        told: vec![told("shop", &[pattern("2001:db8:1::/64", 128)])],
        ..peer("rack-a.v6", "2001:db8::1")
    };
    config(vec![first, second])
}

fn passwords() -> BTreeMap<String, Password> {
    let password = Password::parse("};#\\ '$1").unwrap();
    [("rack-a".to_owned(), password)].into()
}

/// Compares with a file beside this one, whole.
fn golden(text: &str, name: &str) {
    let path = format!(
        "{}/src/announce/bgp/text/{name}",
        env!("CARGO_MANIFEST_DIR")
    );
    if std::env::var_os("BOWLINE_GOLDEN").is_some_and(|mode| mode == "write") {
        std::fs::write(&path, text).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(text == expected, "{path} differs from:\n{text}");
}

/// Whether BIRD takes it; none without BIRD.
fn is_taken(text: &str) -> Option<Result<(), String>> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bird.conf");
    std::fs::write(&path, text).unwrap();
    let mut command = Command::new("bird");
    let told = command.args(["-p", "-c"]).arg(&path).output().ok()?;
    let why = String::from_utf8_lossy(&told.stderr).into_owned();
    Some(told.status.success().then_some(()).ok_or(why))
}

#[test]
fn everything_that_a_peer_can_say_is_in_the_configuration() {
    let rendered = render(&full(), &passwords());
    golden(&rendered.text, "full.conf");
    let sessions = [("peer-rack-a", "rack-a"), ("peer-rack-a.v6", "rack-a.v6")];
    let sessions = sessions.map(|(symbol, peer)| (symbol.to_owned(), peer.to_owned()));
    assert_eq!(rendered.sessions, sessions.into());
}

#[test]
fn without_peers_there_is_a_table_and_nobody_to_tell() {
    golden(
        &render(&config(Vec::new()), &BTreeMap::new()).text,
        "empty.conf",
    );
}

#[test]
fn a_peer_without_its_password_is_left_out() {
    let rendered = render(&full(), &BTreeMap::new());
    assert!(!rendered.text.contains("10.0.0.1 "), "{}", rendered.text);
    assert_eq!(rendered.sessions.len(), 1);
}

#[test]
fn bird_takes_what_is_written() {
    let long = Peer {
        told: vec![told(&"b.".repeat(126), &[pattern("0.0.0.0/0", 32)])],
        ..peer(&"a-".repeat(126), "10.0.0.2")
    };
    for config in [full(), config(Vec::new()), config(vec![long])] {
        let text = render(&config, &passwords()).text;
        let Some(taken) = is_taken(&text) else {
            eprintln!("skipped: no bird on this machine (Debian package bird2)");
            return;
        };
        assert_eq!(taken, Ok(()), "{text}");
    }
    assert!(is_taken("protocol nonsense {}").is_some_and(|taken| taken.is_err()));
}

#[test]
fn a_symbol_is_one_word_of_bounded_length_and_of_one_peer() {
    let long = "a".repeat(200);
    let longer = "a".repeat(201);
    let symbols = [&long, &longer, "a'; }", "a}"].map(|name| symbol(PEER_PREFIX, name));
    for (at, one) in symbols.iter().enumerate() {
        assert!(one.len() <= 64, "{one}");
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-.".contains(c);
        assert!(one.chars().all(is_plain), "{one}");
        assert!(!symbols[..at].contains(one), "{one}");
    }
    assert_eq!(symbol(PEER_PREFIX, "rack-a.1"), "peer-rack-a.1");
}

#[test]
fn what_is_rendered_does_not_show_passwords() {
    let shown = format!("{:?}", render(&full(), &passwords()));
    assert!(!shown.contains("$1"), "{shown}");
}
