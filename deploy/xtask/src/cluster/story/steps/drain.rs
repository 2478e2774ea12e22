//! A node is drained while its pods are evicted and all others roll, loses its power as soon as that is safe, and comes back.

use std::net::SocketAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::ensure;
use rig::cluster::plan;
use serde::Deserialize;

use super::super::objects::{WEB, web_tcp};
use super::super::summary::Summary;
use super::super::world::World;
use super::meetings::{self, Load};
use crate::process;

/// How it is asked for. Neighbour tables follow a gratuitous announcement within milliseconds; pods take as long as they may to
/// end.
const DRAIN: [&str; 5] = ["--wait", "--timeout=100s", "--convergence=1s", "-o", "json"];
const DRAIN_LIMIT: Duration = Duration::from_secs(140);
/// How long a node is without power: from a suspicion to longer than TCP pauses after it has lost some packets in a row.
const DARK: Duration = Duration::from_secs(6);

/// What `lbctl drain -o json` tells.
#[derive(Debug, Deserialize)]
struct Drained {
    safe_to_reboot: bool,
    connections: Connections,
    duration_ms: u64,
}

#[derive(Debug, Deserialize)]
struct Connections {
    handed_off: u64,
}

/// Drains the announcer so many times; each time it is another node.
pub(in super::super) fn drain(
    world: &World,
    times: u32,
    summary: &mut Summary,
) -> anyhow::Result<()> {
    for _ in 0..times {
        let node = world.must_announcer(WEB[0])?;
        let has_left = || Ok(world.announcer(WEB[0])? != Some(node));
        one(world, node, &web_tcp(), has_left, summary)?;
    }
    Ok(())
}

/// Drains a node, powers it off and on, and uses it again; nothing may be sent there in between.
pub(super) fn one(
    world: &World,
    node: u8,
    to: &[SocketAddr],
    has_left: impl Fn() -> anyhow::Result<bool>,
    summary: &mut Summary,
) -> anyhow::Result<()> {
    let load = Load::on(world, to)?;
    let name = plan::node_name(node);
    // Those of the node are evicted.
    let living = meetings::uids(world, "stay", Some(node))?;
    let began = Instant::now();
    let mut told = Ok(String::new());
    let met = meetings::at_once(
        || meetings::at_once(|| evict(world, &name), || meetings::restart(world)),
        || {
            told = lbctl(world, &[&["drain", &name], &DRAIN[..]].concat());
            Ok(())
        },
    );
    let met = met.and(told).and_then(|text| {
        let drained: Drained = serde_json::from_str(&text)?;
        world.cluster.cut_power(&world.cluster.node(node))?;
        sleep(DARK);
        Ok(drained)
    });
    // The next steps need a whole cluster, whatever has failed.
    world.cluster.up(world.nodes)?;
    world.wait_for_agents()?;
    let stayed_away = has_left()?;
    world.kubectl(&format!("uncordon {name}"))?;
    lbctl(world, &["undrain", &name, "--wait"])?;
    world.rolled_out("deployment/web")?;
    world.programmed("web")?;
    let (new, held) = load.end(&living)?;
    let drained = met?;
    summary.note(
        &format!("{name} is drained while its pods are evicted and all roll"),
        drained.safe_to_reboot && stayed_away,
        format!(
            "safe to reboot after {} ms ({} s with what came before), {} connections handed off",
            drained.duration_ms,
            began.elapsed().as_secs(),
            drained.connections.handed_off
        ),
    );
    meetings::judge("  and powered off, and on again", &held, summary);
    meetings::judge_new(&new, summary);
    Ok(())
}

/// Phases of a drain that last, in their order.
const PHASES: [&str; 5] = ["Exclude", "HandOff", "Deprefer", "Withdraw", "Quiesce"];
/// How long the API server is away: longer than a manager believes that it leads.
const AWAY: Duration = Duration::from_secs(8);

/// The API server is away while a drain is in each phase; every drain is done all the same.
pub(in super::super) fn without_api_server(
    world: &World,
    summary: &mut Summary,
) -> anyhow::Result<()> {
    let load = Load::begin(world)?;
    let living = meetings::uids(world, "stay", None)?;
    let mut met = Vec::new();
    for (number, phase) in (1..).zip(PHASES) {
        let name = plan::node_name(number % world.nodes + 1);
        lbctl(
            world,
            &["drain", &name, "--balancer-only", "--convergence=2s"],
        )?;
        // Short ones may be over before anybody looks.
        met.push(reaches(world, &name, |at| at >= place(phase))?);
        world.cluster.kill_api_server()?;
        sleep(AWAY);
        world.cluster.start_api_server()?;
        world.cluster.wait_for_api_server()?;
        reaches(world, &name, |at| at == PHASES.len())?;
        lbctl(world, &["undrain", &name, "--wait"])?;
    }
    let (new, held) = load.end(&living)?;
    summary.note(
        "drains are done though the API server goes away under them",
        true,
        format!("in {}", met.join(", ")),
    );
    meetings::judge("  under long connections", &held, summary);
    meetings::judge_new(&new, summary);
    Ok(())
}

/// Where a phase is among those that last; behind them all if it is the last one.
fn place(phase: &str) -> usize {
    match phase {
        "Drained" => PHASES.len(),
        _ => PHASES.iter().position(|one| *one == phase).unwrap_or(0),
    }
}

/// Waits until the phase of a drain is as wanted, and tells it.
fn reaches(world: &World, name: &str, wanted: impl Fn(usize) -> bool) -> anyhow::Result<String> {
    let get = format!("get nodedrain {name} -o jsonpath={{.status.phase}}");
    let mut phase = String::new();
    rig::wait_until(DRAIN_LIMIT, &format!("the drain of {name}"), || {
        world.kubectl(&get)?.trim().clone_into(&mut phase);
        ensure!(phase != "Failed", "the drain of {name} has failed");
        Ok(!phase.is_empty() && wanted(place(&phase)))
    })?;
    Ok(phase)
}

/// As before a reboot; whatever may not be evicted stays.
fn evict(world: &World, name: &str) -> anyhow::Result<String> {
    world.kubectl(&format!(
        "drain {name} --ignore-daemonsets --delete-emptydir-data --force --timeout=90s"
    ))
}

fn lbctl(world: &World, words: &[&str]) -> anyhow::Result<String> {
    let mut command = world.lbctl()?;
    process::output_within(command.args(words), DRAIN_LIMIT)
}
