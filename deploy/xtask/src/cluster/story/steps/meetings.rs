//! Two events at the same instant, under new connections and long ones: a rollout beside the loss of a balancer or beside a
//! node that hears nothing of the API server, and more pods beside an agent that is replaced.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Context;
use rig::cluster::plan;

use super::super::client::{Client, Held, Steady};
use super::super::objects::{self, WEB, web_tcp};
use super::super::summary::Summary;
use super::super::world::{NAMESPACE, World};
use super::{ANSWER_LIMIT, because};

/// Connections a second: fewer than in a rollout alone, as a node boots beside it.
const PER_SECOND: u32 = 200;
/// Long connections, over all pods: some hundred are to pods that no rollout replaces.
const SESSIONS: u32 = 400;
/// How long a node is without power: from a suspicion to longer than TCP pauses after it has lost some packets in a row.
const DARK: Duration = Duration::from_secs(6);
/// How long a node hears nothing of the API server: pods that are told to end meanwhile elsewhere have died before it hears
/// of it.
const CUT_OFF: Duration = Duration::from_secs(objects::GRACE_S as u64 + 2);
/// Pods that come when there shall be more.
const MORE_PODS: u32 = 4;
/// How long we look on once every agent has heard of everything.
const AFTER: Duration = Duration::from_secs(3);
/// Pods that are one too many have ended.
const ENDING: Duration = Duration::from_secs(objects::GRACE_S as u64 + 2);

/// What connections do meanwhile.
pub(super) struct Load {
    sessions: Client,
    steady: Client,
}

impl Load {
    pub(super) fn begin(world: &World) -> anyhow::Result<Self> {
        Self::on(world, &web_tcp())
    }

    pub(super) fn on(world: &World, to: &[SocketAddr]) -> anyhow::Result<Self> {
        world.calm(to)?;
        let mut sessions = world.client(&["sessions", "--count", &SESSIONS.to_string()], to)?;
        sessions.begun(ANSWER_LIMIT)?;
        let steady = world.client(&["steady", "--per-second", &PER_SECOND.to_string()], to)?;
        sleep(Duration::from_secs(1));
        Ok(Self { sessions, steady })
    }

    /// New connections, and the long ones on these pods.
    pub(super) fn end(self, living: &BTreeSet<String>) -> anyhow::Result<(Steady, Held)> {
        let new = self.steady.stop()?;
        Ok((new, Held::on(living, self.sessions.stop()?)?))
    }
}

/// A rollout, and the power cut of the node that announces the VIP.
pub(in super::super) fn rollout_power_cut(
    world: &World,
    times: u32,
    summary: &mut Summary,
) -> anyhow::Result<()> {
    for _ in 0..times {
        let load = Load::begin(world)?;
        let node = world.must_announcer(WEB[0])?;
        // Those of the node die with it.
        let living = uids(world, "stay", Some(node))?;
        at_once(
            || restart(world),
            || world.cluster.cut_power(&world.cluster.node(node)),
        )?;
        sleep(DARK);
        world.cluster.up(world.nodes)?;
        world.wait_for_agents()?;
        world.rolled_out("deployment/web")?;
        let (new, held) = load.end(&living)?;
        let what = "rollout and power cut of the announcer at once";
        judge(what, &held, summary);
        // The outage that `PowerCut` measures.
        tell_new(
            &new,
            "until the VIP has moved, and while pods that died are still named",
        );
        recovers(world, summary);
    }
    Ok(())
}

/// More pods, and a new agent on the node that announces the VIP; then as few pods as before.
pub(in super::super) fn scale_up_agent_restart(
    world: &World,
    times: u32,
    summary: &mut Summary,
) -> anyhow::Result<()> {
    for _ in 0..times {
        let load = Load::begin(world)?;
        let node = world.must_announcer(WEB[0])?;
        let agent = "app.kubernetes.io/component=agent";
        let name = plan::node_name(node);
        at_once(
            || scale(world, objects::WEB_PODS + MORE_PODS),
            || {
                world.kubectl(&format!(
                    "--namespace {NAMESPACE} delete pod --wait=false --selector {agent} --field-selector spec.nodeName={name}"
                ))
            },
        )?;
        world.rolled_out("deployment/web")?;
        world.rolled_out(&format!("--namespace {NAMESPACE} daemonset/bowline-agent"))?;
        world.wait_for_agents()?;
        world.programmed("web")?;
        scale(world, objects::WEB_PODS)?;
        sleep(ENDING);
        // Whichever Kubernetes has taken away again; those that are left were there all the time, or are too young to have
        // a long connection.
        let mut living = uids(world, "stay", None)?;
        living.extend(uids(world, "web", None)?);
        let (new, held) = load.end(&living)?;
        judge(
            "more pods and a new agent at once, then fewer pods",
            &held,
            summary,
        );
        judge_new(&new, summary);
    }
    Ok(())
}

/// A rollout, and the node that announces the VIP hears nothing of the API server for a while.
pub(in super::super) fn rollout_cut_off(
    world: &World,
    times: u32,
    summary: &mut Summary,
) -> anyhow::Result<()> {
    for _ in 0..times {
        let load = Load::begin(world)?;
        let node = world.must_announcer(WEB[0])?;
        let living = uids(world, "stay", None)?;
        let met = at_once(|| restart(world), || world.cluster.cut_off(node));
        sleep(CUT_OFF);
        // The next steps need a whole cluster, whatever has failed.
        world.cluster.connect(node)?;
        met?;
        world.rolled_out("deployment/web")?;
        world.programmed("web")?;
        sleep(AFTER);
        let (new, held) = load.end(&living)?;
        let what = "rollout and a node without the API server at once";
        judge(what, &held, summary);
        // The node goes on with what it knows, and pods that are told to end end under the connections that it sends there.
        tell_new(
            &new,
            "with pods that ended before the node could hear of it",
        );
        recovers(world, summary);
    }
    Ok(())
}

/// Does both at the same time, and waits for both.
pub(super) fn at_once<T: Send, U: Send>(
    one: impl FnOnce() -> anyhow::Result<T> + Send,
    other: impl FnOnce() -> anyhow::Result<U> + Send,
) -> anyhow::Result<()> {
    std::thread::scope(|scope| {
        let one = scope.spawn(one);
        let other = other();
        let one = one
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        other?;
        one.map(drop)
    })
}

pub(super) fn restart(world: &World) -> anyhow::Result<String> {
    world.kubectl("rollout restart deployment/web")
}

fn scale(world: &World, pods: u32) -> anyhow::Result<String> {
    world.kubectl(&format!("scale deployment/web --replicas={pods}"))
}

/// UIDs of the pods of a deployment, but for those on a node.
pub(super) fn uids(
    world: &World,
    app: &str,
    but_on: Option<u8>,
) -> anyhow::Result<BTreeSet<String>> {
    let told = world.kubectl(&format!(
        "get pods -l app={app} -o jsonpath={{range.items[*]}}{{.spec.nodeName}}/{{.metadata.uid}}{{\"\\n\"}}{{end}}"
    ))?;
    let but_on = but_on.map(plan::node_name);
    let mut uids = BTreeSet::new();
    for line in told.split_whitespace() {
        let (node, uid) = line.split_once('/').context("a pod without a node")?;
        if but_on.as_deref() != Some(node) {
            uids.insert(uid.to_owned());
        }
    }
    Ok(uids)
}

/// Nothing is left of it.
fn recovers(world: &World, summary: &mut Summary) {
    let start = Instant::now();
    let calm = world.calm(&web_tcp());
    let held = calm.is_ok();
    let seen = calm.map_or_else(
        |error| format!("{error:#}"),
        |()| format!("after {:.1} s", start.elapsed().as_secs_f64()),
    );
    summary.note("  and then every new connection succeeds", held, seen);
}

pub(super) fn judge(what: &str, held: &Held, summary: &mut Summary) {
    summary.sessions_on_living_pods += held.sessions;
    summary.broken += held.broken;
    summary.longest_wait_ms = summary.longest_wait_ms.max(held.longest_wait_ms);
    summary.note(
        what,
        held.broken == 0,
        format!(
            "{} of {} long connections to pods that live broken, longest wait {} ms{}",
            held.broken,
            held.sessions,
            held.longest_wait_ms,
            because(&held.reasons)
        ),
    );
}

/// Nothing is promised about these.
fn tell_new(new: &Steady, when: &str) {
    eprintln!(
        "          {} of {} new connections failed {when}{}",
        new.failed,
        new.connections,
        because(&new.reasons)
    );
}

pub(super) fn judge_new(new: &Steady, summary: &mut Summary) {
    summary.connections += new.connections;
    summary.failed += new.failed;
    summary.client_address_preserved &= new.address_changed == 0;
    summary.note(
        "  and no new connection fails",
        new.failed == 0 && new.connections > 0,
        format!(
            "{} of {} failed{}",
            new.failed,
            new.connections,
            because(&new.reasons)
        ),
    );
}
