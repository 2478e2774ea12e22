//! VIPs that a router learns by BGP: it hears of them from every node, no session ends while all agents are replaced, and nodes are
//! drained one after the other while all pods roll and those of the node are evicted.

use std::time::{Duration, Instant};

use anyhow::ensure;

use super::super::objects::{self, ROUTED};
use super::super::router::Router;
use super::super::summary::Summary;
use super::super::world::{NAMESPACE, World};
use super::drain;
use super::meetings::{self, Load};

/// Sessions are up, and routes learnt, well within this: BIRD tries again every five seconds.
const LEARN_LIMIT: Duration = Duration::from_secs(30);

/// Drains so many nodes.
pub(in super::super) fn routed(
    world: &World,
    drains: u8,
    summary: &mut Summary,
) -> anyhow::Result<()> {
    let router = Router::start(world)?;
    let shown = show(world, &router, drains, summary);
    // The next steps find the cluster as it was, whatever has failed.
    world.kubectl("delete service routed --ignore-not-found --timeout=60s")?;
    world.kubectl(
        "delete bgpadvertisement,bgppeer,addresspool --selector story=routed --timeout=30s",
    )?;
    shown
}

fn show(world: &World, router: &Router, drains: u8, summary: &mut Summary) -> anyhow::Result<()> {
    learns(world, router, summary)?;
    survives(world, router, summary)?;
    for node in 1..=drains {
        let has_left = || {
            Ok(ROUTED.iter().all(|vip| {
                router
                    .paths(*vip)
                    .is_ok_and(|paths| paths + 1 == usize::from(world.nodes))
            }))
        };
        drain::one(world, node, &objects::routed_tcp(), has_left, summary)?;
        learnt(world, router)?;
    }
    Ok(())
}

/// From every node, with the attributes that objects give.
fn learns(world: &World, router: &Router, summary: &mut Summary) -> anyhow::Result<()> {
    let start = Instant::now();
    world.apply(&objects::routed())?;
    let learnt = learnt(world, router);
    summary.note(
        "a router learns VIPs by BGP from every node",
        learnt.is_ok(),
        learnt.as_ref().map_or_else(
            |error| format!("{error:#}"),
            |()| format!("{} ms after kubectl apply", start.elapsed().as_millis()),
        ),
    );
    learnt?;
    let community = format!("BGP.community: ({})", objects::COMMUNITY.replace(':', ","));
    for vip in ROUTED {
        let told = router.told(vip)?;
        let paths = told.matches(&community).count();
        ensure!(
            paths == usize::from(world.nodes),
            "{paths} nodes told {community} of {vip}:\n{told}"
        );
    }
    world.calm(&objects::routed_tcp())
}

fn learnt(world: &World, router: &Router) -> anyhow::Result<()> {
    rig::wait_until(
        LEARN_LIMIT,
        "the router to hear of VIPs from all nodes",
        || {
            let paths = ROUTED.map(|vip| router.paths(vip));
            Ok(paths.into_iter().collect::<anyhow::Result<Vec<_>>>()?
                == [usize::from(world.nodes); 2])
        },
    )
}

/// Agents are replaced one after the other, under load.
fn survives(world: &World, router: &Router, summary: &mut Summary) -> anyhow::Result<()> {
    let before = router.sessions()?;
    let load = Load::on(world, &objects::routed_tcp())?;
    let mut living = meetings::uids(world, "stay", None)?;
    living.extend(meetings::uids(world, "web", None)?);
    let agents = format!("--namespace {NAMESPACE} daemonset/bowline-agent");
    let start = Instant::now();
    world.kubectl(&format!("rollout restart {agents}"))?;
    world.rolled_out(&agents)?;
    world.wait_for_agents()?;
    let took = start.elapsed();
    let after = router.sessions()?;
    let (new, held) = load.end(&living)?;
    meetings::judge("all agents are replaced", &held, summary);
    meetings::judge_new(&new, summary);
    let sessions = before.len();
    summary.note(
        "  and no BGP session ends",
        before == after && sessions == 2 * usize::from(world.nodes),
        if before == after {
            format!("{sessions} sessions, {} s", took.as_secs())
        } else {
            format!("before {before:?}, after {after:?}")
        },
    );
    world.calm(&objects::routed_tcp())
}
