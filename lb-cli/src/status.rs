//! `lbctl status`: the agent at a glance.

use std::time::Duration;

use jiff::Timestamp;
use lb_controller::admin::{
    Announced, Counter, Interface, MapUsage, Peer, PinStream, Pins, Retirement, Role,
    ServiceCounts, Source, Status, UnresolvedNextHop,
};

use crate::agent::Agent;
use crate::output::{Output, Paint, facts, lines, parts, table};
use crate::{Outcome, agent, units};

mod routes;

/// Asks the agent and prints its state. Unwell if it is not ready, or anything has a problem.
pub(crate) fn run(agent: &Agent, output: Output) -> anyhow::Result<Outcome> {
    let status: Status = agent::get(agent, "/v1/status")?;
    output.emit(&status, |status, paint| {
        show(status, Timestamp::now(), paint)
    })?;
    Ok(outcome(&status))
}

fn outcome(status: &Status) -> Outcome {
    let birds = status.routes.iter().flat_map(|routes| &routes.bird);
    let mut sessions = birds.flat_map(|bird| &bird.sessions);
    let well = status.ready
        && status.problems.is_empty()
        && status.next_hops_unresolved.is_empty()
        && status.services.failed == 0
        && status.services.pending == 0
        && status.sources.iter().all(|source| source.alive)
        && status.interfaces.iter().all(|i| i.problem.is_none())
        && sessions.all(|session| session.is_up);
    if well { Outcome::Well } else { Outcome::Unwell }
}

/// The whole answer.
fn show(status: &Status, now: Timestamp, paint: Paint) -> String {
    let Status {
        node: _,
        role: _,
        version: _,
        abi_version: _,
        pin_dir: _,
        uptime_seconds: _,
        addresses: _,
        ready: _,
        not_ready_because: _,
        fresh: _,
        services: _,
        interfaces: found,
        sources,
        problems: wrong,
        maps: usage,
        drops,
        stats,
        next_hops_unresolved,
        peers,
        announced,
        routes,
        pins,
        retirements: leaving,
    } = status;
    parts([
        head(status, paint),
        problems(wrong.iter().map(|p| (&p.object, &p.sentence)), paint),
        interfaces(found),
        source_table(sources, now),
        next_hops(next_hops_unresolved),
        peer_table(peers),
        announcements(announced),
        routes
            .as_ref()
            .map_or_else(String::new, |routes| routes::routes(routes, now)),
        pins.as_ref().map_or_else(String::new, pinned),
        retirements(leaving),
        maps(usage),
        counters("DROPPED BECAUSE", drops),
        counters("COUNTED", stats),
    ])
}

fn head(status: &Status, paint: Paint) -> String {
    let role = match status.role {
        Role::Balancer => "balancer",
        Role::Owner => "owner",
        Role::Both => "balancer and owner",
        Role::Manager => "manager",
    };
    let state = match (status.ready, status.fresh) {
        (true, true) => paint.good("ready"),
        (true, false) => format!(
            "{}, {}",
            paint.good("ready"),
            paint.warn("not fresh: packets of flows that nobody knows are not decided here")
        ),
        (false, _) => format!(
            "{}: {}",
            paint.bad("not ready"),
            status.not_ready_because.join("; ")
        ),
    };
    let ServiceCounts {
        total,
        programmed,
        pending,
        failed,
    } = status.services;
    let up = units::duration(Duration::from_secs(status.uptime_seconds));
    let addresses: Vec<String> = status.addresses.iter().map(ToString::to_string).collect();
    facts(&[
        ("node", format!("{} ({role})", paint.bold(&status.node))),
        ("state", state),
        (
            "services",
            format!("{total}: {programmed} programmed, {pending} pending, {failed} failed"),
        ),
        ("addresses", addresses.join(", ")),
        (
            "agent",
            format!(
                "version {}, up {up}, map layout {}, pins in {}",
                status.version, status.abi_version, status.pin_dir
            ),
        ),
    ])
}

fn problems<'a>(problems: impl Iterator<Item = (&'a String, &'a String)>, paint: Paint) -> String {
    let lines = problems.map(|(object, sentence)| format!("{}: {sentence}\n", paint.bad(object)));
    lines.collect::<Vec<_>>().concat()
}

fn interfaces(interfaces: &[Interface]) -> String {
    let mut rows = table(["INTERFACE", "INDEX", "XDP", "PROGRAM", "EGRESS", "PROBLEM"]);
    for interface in interfaces {
        let Interface {
            name,
            ifindex,
            xdp_mode,
            xdp_program_id,
            tc_kind,
            problem,
        } = interface;
        let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        rows.add_row([
            name.clone(),
            ifindex.to_string(),
            or_none(xdp_mode),
            or_none(&xdp_program_id.map(|id| id.to_string())),
            or_none(tc_kind),
            problem.clone().unwrap_or_default(),
        ]);
    }
    lines(&rows)
}

/// How long ago it was. A clock that was set back gives zero.
fn age(then: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(then)).unwrap_or_default()
}

fn source_table(sources: &[Source], now: Timestamp) -> String {
    let mut rows = table(["SOURCE", "WATCH", "LISTED", "APPLIED"]);
    for source in sources {
        let Source {
            name,
            alive,
            last_list,
            last_apply,
        } = source;
        let ago = |then: &Option<Timestamp>| match then {
            None => "never".to_owned(),
            Some(then) => format!("{} ago", units::duration(age(*then, now))),
        };
        rows.add_row([
            name.clone(),
            if *alive { "alive" } else { "lost" }.to_owned(),
            ago(last_list),
            ago(last_apply),
        ]);
    }
    lines(&rows)
}

fn next_hops(unresolved: &[UnresolvedNextHop]) -> String {
    let mut rows = table(["UNREACHABLE NODE", "ADDRESS", "REASON"]);
    for hop in unresolved {
        let UnresolvedNextHop {
            node,
            address,
            reason,
        } = hop;
        rows.add_row([node, &address.to_string(), reason]);
    }
    lines(&rows)
}

fn peer_table(peers: &[Peer]) -> String {
    let mut rows = table(["PEER", "STATE", "FOR"]);
    for peer in peers {
        let Peer {
            node,
            state,
            for_seconds,
        } = peer;
        let since = units::duration(Duration::from_secs(*for_seconds));
        rows.add_row([node, state, &since]);
    }
    lines(&rows)
}

fn pinned(pins: &Pins) -> String {
    let Pins {
        own,
        held,
        written,
        missing,
        proposals,
        unpinned,
        refused,
        streams,
    } = pins;
    let waits = match missing.as_slice() {
        [] => String::new(),
        [..] => format!("waits for  pins of {}\n", missing.join(", ")),
    };
    let hands = match proposals {
        0 => String::new(),
        _ => format!("hands off  flows for {proposals} tables that forget\n"),
    };
    let lost = match unpinned {
        0 => String::new(),
        _ => format!("unpinned   {unpinned} flows, since there are as many pins as there may be\n"),
    };
    let text = format!(
        "pins       {own} own, {held} held, written up to {written}\n{waits}{hands}{lost}\n"
    );
    let mut rows = table([
        "PINS TO",
        "STATE",
        "BEHIND",
        "SENT",
        "SNAPSHOTS",
        "RECEIVED",
    ]);
    for stream in streams {
        let PinStream {
            node,
            up,
            behind,
            records,
            snapshots,
            received,
            fault,
        } = stream;
        let state = match fault {
            Some(fault) if !up => fault,
            _ => "up",
        };
        rows.add_row([
            node,
            state,
            &behind.map_or("-".to_owned(), |behind| behind.to_string()),
            &records.to_string(),
            &snapshots.to_string(),
            received.as_deref().unwrap_or("-"),
        ]);
    }
    parts([text + &lines(&rows), refusals(refused)])
}

fn announcements(announced: &[Announced]) -> String {
    let mut rows = table(["ANNOUNCED", "INTERFACE", "MAC"]);
    for announced in announced {
        let Announced {
            vip,
            interface,
            mac,
        } = announced;
        rows.add_row([&vip.to_string(), interface, mac]);
    }
    lines(&rows)
}

fn retirements(retirements: &[Retirement]) -> String {
    let mut rows = table(["HISTORY OF", "LEAVES FOR", "PHASE", "WAITS FOR", "SINCE"]);
    for retirement in retirements {
        let Retirement {
            service,
            because,
            phase,
            waits_for,
            for_seconds,
        } = retirement;
        let since = units::duration(Duration::from_secs(*for_seconds));
        rows.add_row([service, because, phase, &waits_for.join(", "), &since]);
    }
    lines(&rows)
}

fn maps(maps: &[MapUsage]) -> String {
    let mut rows = table(["MAP", "USED", "OF"]);
    for usage in maps {
        let MapUsage {
            map,
            used,
            capacity,
        } = usage;
        rows.add_row([map, &used.to_string(), &capacity.to_string()]);
    }
    lines(&rows)
}

fn refusals(refused: &[Counter]) -> String {
    let mut rows = table(["REFUSED BECAUSE", "TIMES"]);
    for Counter { name, packets } in refused {
        rows.add_row([name, &packets.to_string()]);
    }
    lines(&rows)
}

fn counters(title: &str, counters: &[Counter]) -> String {
    let mut rows = table([title, "PACKETS"]);
    for Counter { name, packets } in counters {
        rows.add_row([name, &packets.to_string()]);
    }
    lines(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As an agent writes it, so that the names of fields are pinned too.
    const STATUS: &str = r#"{
        "node": "node-1", "role": "both", "version": "0.1.0", "abi_version": 1,
        "pin_dir": "/sys/fs/bpf/bowline/abi-1", "uptime_seconds": 192,
        "addresses": ["10.0.0.11", "fd00::11"],
        "interfaces": [
            {"name": "eth0", "ifindex": 2, "xdp_mode": "native", "xdp_program_id": 41, "tc_kind": "tcx", "problem": null},
            {"name": "eth9", "ifindex": 0, "xdp_mode": null, "xdp_program_id": null, "tc_kind": null,
             "problem": "does not exist: name another one with --interface"}
        ],
        "ready": true, "not_ready_because": [], "fresh": true,
        "sources": [{"name": "/etc/bowline", "alive": true, "last_list": "2026-01-01T00:00:00Z", "last_apply": null}],
        "services": {"total": 2, "programmed": 1, "pending": 1, "failed": 0},
        "problems": [{"object": "Service default/new", "sentence": "has no address: set bowline.dev/addresses"}],
        "maps": [{"map": "backends", "used": 6, "capacity": 65536}],
        "drops": [{"name": "held_back", "packets": 3}],
        "stats": [],
        "next_hops_unresolved": [{"node": "node-2", "address": "10.0.0.12", "reason": "no neighbour"}],
        "peers": [{"node": "node-2", "state": "agent-away", "for_seconds": 2}],
        "announced": [{"vip": "198.51.100.1", "interface": "eth0", "mac": "02:00:00:00:00:01"}],
        "routes": {"table": 6081, "wanted": 2, "installed": 1, "bird": {"answers": true, "configured": true, "sessions": [
            {"peer": "rack-a", "state": "Established", "is_up": true, "since": "2026-01-01T00:00:18Z", "exported": 1, "error": null},
            {"peer": "rack-b", "state": "Active", "is_up": false, "since": null, "exported": 0, "error": "Socket: No route to host"}
        ]}},
        "pins": {"own": 3, "held": 17, "written": "1700000000000/5", "missing": ["node-3"], "proposals": 1, "unpinned": 2,
            "refused": [{"name": "handshake", "packets": 4}], "streams": [
            {"node": "node-2", "up": true, "behind": 0, "records": 5, "snapshots": 1, "received": "1700000000009/14", "fault": null},
            {"node": "node-3", "up": false, "behind": null, "records": 0, "snapshots": 0, "received": null, "fault": "no answer"}
        ]},
        "retirements": [{"service": "default/web", "because": "history-full", "phase": "handing-off",
                         "waits_for": ["node-1", "node-2"], "for_seconds": 7}]
    }"#;

    fn status() -> Status {
        serde_json::from_str(STATUS).unwrap()
    }

    #[test]
    fn everything_that_an_agent_says_has_its_place() {
        let a_minute_later = "2026-01-01T00:01:00Z".parse().unwrap();
        assert_eq!(
            show(&status(), a_minute_later, Paint(false)),
            "\
node       node-1 (balancer and owner)
state      ready
services   2: 1 programmed, 1 pending, 0 failed
addresses  10.0.0.11, fd00::11
agent      version 0.1.0, up 3 m 12 s, map layout 1, pins in /sys/fs/bpf/bowline/abi-1

Service default/new: has no address: set bowline.dev/addresses

INTERFACE  INDEX  XDP     PROGRAM  EGRESS  PROBLEM
eth0       2      native  41       tcx
eth9       0      -       -        -       does not exist: name another one with --interface

SOURCE        WATCH  LISTED       APPLIED
/etc/bowline  alive  1 m 0 s ago  never

UNREACHABLE NODE  ADDRESS    REASON
node-2            10.0.0.12  no neighbour

PEER    STATE       FOR
node-2  agent-away  2 s

ANNOUNCED     INTERFACE  MAC
198.51.100.1  eth0       02:00:00:00:00:01

routes  1 in table 6081, which should have 2
bird    does what peers and advertisements say

BGP PEER  SESSION      FOR   TOLD  LAST ERROR
rack-a    Established  42 s  1
rack-b    Active       -     0     Socket: No route to host

pins       3 own, 17 held, written up to 1700000000000/5
waits for  pins of node-3
hands off  flows for 1 tables that forget
unpinned   2 flows, since there are as many pins as there may be

PINS TO  STATE      BEHIND  SENT  SNAPSHOTS  RECEIVED
node-2   up         0       5     1          1700000000009/14
node-3   no answer  -       0     0          -

REFUSED BECAUSE  TIMES
handshake        4

HISTORY OF   LEAVES FOR    PHASE        WAITS FOR       SINCE
default/web  history-full  handing-off  node-1, node-2  7 s

MAP       USED  OF
backends  6     65536

DROPPED BECAUSE  PACKETS
held_back        3
"
        );
    }

    #[test]
    fn any_problem_is_unwell_and_none_is_well() {
        let mut status = status();
        assert_eq!(outcome(&status), Outcome::Unwell);
        status.problems.clear();
        status.interfaces.pop();
        status.next_hops_unresolved.clear();
        status.services.pending = 0;
        assert_eq!(outcome(&status), Outcome::Unwell, "a session is down");
        status.routes = None;
        assert_eq!(outcome(&status), Outcome::Well);
        status.ready = false;
        assert_eq!(outcome(&status), Outcome::Unwell);
    }

    #[test]
    fn the_reason_stands_behind_not_ready() {
        let mut status = status();
        status.ready = false;
        status.not_ready_because = vec!["no complete list yet".into(), "eth9 is gone".into()];
        let text = show(&status, Timestamp::UNIX_EPOCH, Paint(false));
        assert!(
            text.contains("not ready: no complete list yet; eth9 is gone\n"),
            "{text}"
        );
    }

    #[test]
    fn colours_appear_only_when_asked_for() {
        assert!(!show(&status(), Timestamp::UNIX_EPOCH, Paint(false)).contains('\u{1b}'));
        assert!(show(&status(), Timestamp::UNIX_EPOCH, Paint(true)).contains("\u{1b}[32mready"));
    }
}
