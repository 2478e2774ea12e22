//! The API server is away; traffic and failover go on, and nothing happens when it is back.

use std::thread::sleep;
use std::time::Duration;

use super::super::client::Probed;
use super::super::objects::{WEB, web_tcp};
use super::super::summary::Summary;
use super::super::world::World;
use super::ANSWER_LIMIT;
use super::failover::{MAX_MS, power_cut};

/// How long we look on after its return.
const AFTER: Duration = Duration::from_secs(8);
/// What a cut takes of the time.
const CUT: Duration = Duration::from_secs(6);
/// Without an answer for so long, somebody would notice.
const PAUSE_MAX_MS: u64 = 300;

/// What must not change when the API server comes back.
#[derive(Debug, PartialEq, Eq)]
struct Told {
    /// Who announces each VIP, as the router knows it.
    announcers: Vec<Option<u8>>,
    /// Addresses in the status of Services.
    addresses: String,
    /// Events about Services.
    events: usize,
}

/// Traffic for a while, a dead announcer, and its return.
pub(in super::super) fn api_away(
    world: &World,
    time: Duration,
    summary: &mut Summary,
) -> anyhow::Result<()> {
    world.calm(&web_tcp())?;
    let (addresses, events) = of_services(world)?;
    world.cluster.kill_api_server()?;
    let half = time.saturating_sub(CUT) / 2;
    let seconds = half.as_secs();
    let probed = look_on(world, half)?;
    summary.note(
        "without the API server traffic goes on",
        probed.failed == 0,
        format!(
            "{} of {} tries failed in {seconds} s",
            probed.failed, probed.tries
        ),
    );
    let outage = power_cut(world)?.worst_ms();
    summary.note(
        "  and failover does",
        outage <= MAX_MS,
        format!("{outage} ms"),
    );
    let probed = look_on(world, half)?;
    let worst = probed.worst_ms();
    summary.note(
        "  and then it is quiet",
        worst <= PAUSE_MAX_MS,
        format!("longest pause {worst} ms in {seconds} s"),
    );
    let before = Told {
        announcers: announcers(world)?,
        addresses,
        events,
    };
    back(world, &before, summary)?;
    world.cluster.up(world.nodes)?;
    world.wait_for_agents()?;
    world.calm(&web_tcp())
}

/// It returns, while the node that was cut is still dead.
fn back(world: &World, before: &Told, summary: &mut Summary) -> anyhow::Result<()> {
    let mut client = world.client(&["probe"], &web_tcp()[..1])?;
    client.begun(ANSWER_LIMIT)?;
    world.cluster.start_api_server()?;
    sleep(AFTER);
    let probed: Probed = client.stop()?;
    let worst = probed.worst_ms();
    let (addresses, events) = of_services(world)?;
    let after = Told {
        announcers: announcers(world)?,
        addresses,
        events,
    };
    let seen = if after == *before {
        format!(
            "longest pause {worst} ms, announcers {:?}",
            after.announcers
        )
    } else {
        format!("longest pause {worst} ms, {before:?}, then {after:?}")
    };
    summary.note(
        "  its return moves no VIP and disturbs nobody",
        after == *before && worst <= PAUSE_MAX_MS,
        seen,
    );
    Ok(())
}

fn look_on(world: &World, time: Duration) -> anyhow::Result<Probed> {
    let mut client = world.client(&["probe"], &web_tcp()[..1])?;
    client.begun(ANSWER_LIMIT)?;
    sleep(time);
    client.stop()
}

fn announcers(world: &World) -> anyhow::Result<Vec<Option<u8>>> {
    WEB[..1].iter().map(|vip| world.announcer(*vip)).collect()
}

/// Addresses of all Services, and how many Events there are about them.
fn of_services(world: &World) -> anyhow::Result<(String, usize)> {
    let get = "get services -o jsonpath={.items[*].status.loadBalancer.ingress[*].ip}";
    let events =
        world.kubectl("get events --field-selector involvedObject.kind=Service -o name")?;
    Ok((world.kubectl(get)?, events.lines().count()))
}
