//! A rollout under load, and long connections to pods that stay.

use std::thread::sleep;
use std::time::Duration;

use super::super::client::{Held, Sessions, Steady};
use super::super::objects;
use super::super::summary::Summary;
use super::super::world::World;
use super::{ANSWER_LIMIT, because};

/// Connections a second during rollouts.
const PER_SECOND: u32 = 500;
/// Long connections; those to pods that stay must not notice.
const SESSIONS: u32 = 260;
/// The last pods are still ending when a rollout has ended.
const AFTER: Duration = Duration::from_secs(objects::GRACE_S as u64 + 2);

/// Counters of the programs before and after.
struct Counted {
    packets: u64,
    relayed: u64,
    held_back: u64,
}

impl Counted {
    fn now(world: &World) -> anyhow::Result<Self> {
        let handled = |action: &str| world.metric("bowline_handled_packets_total", action);
        Ok(Self {
            packets: world.metric("bowline_service_packets_total", "\"default/web\"")?,
            relayed: handled("\"relayed\"")?,
            held_back: world.metric("bowline_dropped_packets_total", "\"held_back\"")?,
        })
    }
}

/// One under a traffic policy.
pub(in super::super) fn rollout(
    world: &World,
    policy: &str,
    summary: &mut Summary,
) -> anyhow::Result<()> {
    world.apply(&objects::web(policy))?;
    world.programmed("web")?;
    world.calm(&objects::web_tcp())?;
    let before = Counted::now(world)?;
    let to = objects::web_tcp();
    let mut sessions = world.client(&["sessions", "--count", &SESSIONS.to_string()], &to)?;
    sessions.begun(ANSWER_LIMIT)?;
    let load = world.client(&["steady", "--per-second", &PER_SECOND.to_string()], &to)?;
    sleep(Duration::from_secs(1));
    world.kubectl("rollout restart deployment/web")?;
    let ended = world.rolled_out("deployment/web");
    sleep(AFTER);
    let load: Steady = load.stop()?;
    let held = on_staying_pods(world, sessions.stop()?)?;
    let after = Counted::now(world)?;
    ended?;
    judge(policy, &load, &held, summary);
    // Every connection is at least three packets towards the VIP.
    let packets = after.packets.saturating_sub(before.packets);
    let relayed = after.relayed.saturating_sub(before.relayed);
    let held_back = after.held_back.saturating_sub(before.held_back);
    summary.note(
        "  all of it took our path",
        packets >= 3 * load.connections,
        format!(
            "our programs counted {packets} packets, passed {relayed} on, held {held_back} back"
        ),
    );
    summary.relayed += relayed;
    summary.held_back += held_back;
    if policy != "Cluster" {
        world.apply(&objects::web("Cluster"))?;
        world.programmed("web")?;
    }
    Ok(())
}

/// The sessions on pods that were not replaced, as one.
fn on_staying_pods(world: &World, sessions: Sessions) -> anyhow::Result<Held> {
    let uids = world.kubectl("get pods -l app=stay -o jsonpath={.items[*].metadata.uid}")?;
    let staying = uids.split_whitespace().map(str::to_owned).collect();
    Held::on(&staying, sessions)
}

fn judge(policy: &str, load: &Steady, held: &Held, summary: &mut Summary) {
    summary.connections += load.connections + held.sessions;
    summary.failed += load.failed;
    summary.client_address_preserved &= load.address_changed == 0;
    summary.sessions_on_living_pods += held.sessions;
    summary.broken += held.broken;
    summary.longest_wait_ms = summary.longest_wait_ms.max(held.longest_wait_ms);
    let seen = format!(
        "{} of {} failed, {} pods{}",
        load.failed,
        load.connections,
        load.pods,
        because(&load.reasons)
    );
    summary.note(
        &format!("rollout at {PER_SECOND} new connections/s, policy {policy}"),
        load.failed == 0 && load.connections > 0,
        seen,
    );
    summary.note(
        "  the client's address is preserved",
        load.address_changed == 0,
        format!("{} changed", load.address_changed),
    );
    summary.note(
        "  long connections to pods that stay never notice",
        held.broken == 0,
        format!(
            "{} of {} broken, longest wait {} ms{}",
            held.broken,
            held.sessions,
            held.longest_wait_ms,
            because(&held.reasons)
        ),
    );
}
