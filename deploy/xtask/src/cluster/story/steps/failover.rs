//! The announcer of a VIP loses its power, or its agent.

use std::thread::sleep;
use std::time::{Duration, SystemTime};

use anyhow::ensure;
use rig::cluster::plan;

use super::super::client::{Probed, Streamed};
use super::super::objects::{WEB, web_tcp, web_udp};
use super::super::summary::{Spread, Summary};
use super::super::world::{NAMESPACE, World};
use super::ANSWER_LIMIT;

/// First VIP of a failover within these, at the median and at most.
pub(super) const MEDIAN_MS: u64 = 1_000;
pub(super) const MAX_MS: u64 = 1_500;
/// How long the client looks on after a cut.
const AFTER: Duration = Duration::from_secs(4);

/// Cuts the announcer's power several times, and brings the node back each time.
pub(in super::super) fn power_cuts(
    world: &World,
    times: u32,
    summary: &mut Summary,
) -> anyhow::Result<()> {
    let mut outages = Vec::new();
    let mut still_failing = Vec::new();
    for _ in 0..times {
        let probed = power_cut(world)?;
        outages.push(probed.worst_ms());
        still_failing.push(probed.failed_of_last_hundred as u64);
        world.cluster.up(world.nodes)?;
        world.wait_for_agents()?;
        world.calm(&web_tcp())?;
    }
    let spread = Spread::of(&outages);
    summary.note(
        "power cut of the announcer, seen by the client",
        spread.median <= MEDIAN_MS && spread.max <= MAX_MS,
        format!("{spread}: {outages:?}"),
    );
    // Kubernetes takes the pods of a dead node out of its lists after some 50 s.
    eprintln!(
        "          new connections that still fail {} s later, for their pods are dead: median {} %",
        AFTER.as_secs(),
        Spread::of(&still_failing).median
    );
    summary.failover_ms = spread;
    Ok(())
}

/// One cut, at a random moment. The node stays off.
pub(super) fn power_cut(world: &World) -> anyhow::Result<Probed> {
    let mut client = world.client(&["probe"], &web_tcp()[..1])?;
    client.begun(ANSWER_LIMIT)?;
    let node = world.must_announcer(WEB[0])?;
    sleep(Duration::from_millis(500) + random_part_of_a_second());
    world.cluster.cut_power(&world.cluster.node(node))?;
    sleep(AFTER);
    let probed: Probed = client.stop()?;
    ensure!(probed.tries > 0, "the client tried nothing");
    Ok(probed)
}

/// The agent of the announcer is replaced; packets go on.
pub(in super::super) fn agent_restart(world: &World, summary: &mut Summary) -> anyhow::Result<()> {
    world.calm(&web_tcp())?;
    let node = world.must_announcer(WEB[0])?;
    let probe = ["probe", "--every-ms", "5", "--limit-ms", "1000"];
    let mut tries = world.client(&probe, &web_tcp()[..1])?;
    tries.begun(ANSWER_LIMIT)?;
    let stream = world.client(&["--udp", "stream"], &[web_udp()])?;
    let selector = "app.kubernetes.io/component=agent";
    let name = plan::node_name(node);
    let delete = format!(
        "--namespace {NAMESPACE} delete pod --selector {selector} --field-selector spec.nodeName={name}"
    );
    world.kubectl(&delete)?;
    world.rolled_out(&format!("--namespace {NAMESPACE} daemonset/bowline-agent"))?;
    world.wait_for_agents()?;
    sleep(Duration::from_secs(2));
    let probed: Probed = tries.stop()?;
    let Streamed { sent, lost } = stream.stop()?;
    summary.udp_sent += sent;
    summary.udp_lost += lost;
    summary.connections += probed.tries as u64;
    summary.failed += probed.failed as u64;
    let after = world.must_announcer(WEB[0])?;
    summary.note(
        "agent restart of the announcer loses no packet",
        probed.failed == 0 && lost == 0 && sent > 0,
        format!(
            "{} of {} connections failed, {lost} of {sent} datagrams lost, announced by node{node}, then node{after}",
            probed.failed, probed.tries
        ),
    );
    Ok(())
}

/// So that cuts do not march in step with timers.
fn random_part_of_a_second() -> Duration {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    Duration::from_nanos(u64::from(now.subsec_nanos()))
}
