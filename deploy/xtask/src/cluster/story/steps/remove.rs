//! Everything is deleted, and nothing stays.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use super::super::kernel::Held;
use super::super::objects::WEB;
use super::super::summary::Summary;
use super::super::world::{NAMESPACE, World};
use crate::process;

/// Everything that the story made for itself: no finalizer, no table, no entry in a map stays.
pub(in super::super) fn remove(world: &World, summary: &mut Summary) -> anyhow::Result<()> {
    let gone = world.kubectl("delete service web --timeout=60s");
    let seen = gone.as_ref().err().map(|error| format!("{error:#}"));
    summary.note(
        "deleted Services go, and their finalizers with them",
        gone.is_ok(),
        seen.unwrap_or_default(),
    );
    // A pod's own node remembers it while it lives: it may have connections.
    world.kubectl("delete deployment web stay --cascade=foreground --timeout=60s")?;
    let mut left = 0;
    let empty = rig::wait_until(Duration::from_secs(30), "empty maps", || {
        left = world.metric("bowline_map_entries", "")?;
        Ok(left == 0)
    });
    summary.note(
        "  the maps are empty",
        empty.is_ok(),
        format!("{left} entries"),
    );
    let tables = world.kubectl("get servicetables --all-namespaces --output name")?;
    let tables = tables.trim().to_owned();
    summary.note("  no table is left", tables.is_empty(), tables);
    world.kubectl("delete l2advertisement,addresspool story --timeout=30s")?;
    Ok(())
}

/// Bowline itself, by the three commands of its README: nothing of it stays on a node, or in the kernel.
pub(in super::super) fn uninstall(world: &World, summary: &mut Summary) -> anyhow::Result<()> {
    let directory = process::workspace().join("deploy/kustomize");
    let ours = Held::now()?.since(&world.held_before);
    let (programs, maps) = ours.count();
    // An agent that loads none would make all that follows true.
    ensure!(
        programs >= usize::from(world.nodes) && maps > 0,
        "only {programs} programs and {maps} maps of {} nodes are in the kernel",
        world.nodes
    );
    let start = Instant::now();
    world.kubectl(&format!(
        "patch --namespace {NAMESPACE} daemonset bowline-agent --patch-file {}",
        directory.join("uninstall.yaml").display()
    ))?;
    world.rolled_out(&format!("--namespace {NAMESPACE} daemonset/bowline-agent"))?;
    summary.note(
        "uninstalling says when every node is clean",
        true,
        format!("{:.1} s", start.elapsed().as_secs_f64()),
    );
    let left = on_nodes(world)?;
    summary.note(
        "  no node has a link, a pin, an address or a route",
        left.is_empty(),
        left.first().cloned().unwrap_or_default(),
    );
    // The kernel takes them apart after whoever used them last.
    let gone = rig::wait_until(Duration::from_secs(10), "an empty kernel", || {
        Ok(ours.left()?.count() == (0, 0))
    });
    let (programs_left, maps_left) = ours.left()?.count();
    summary.note(
        "  the kernel has none of its programs and maps",
        gone.is_ok(),
        format!("{programs_left} of {programs} programs, {maps_left} of {maps} maps"),
    );
    world.kubectl(&format!("delete -k {} --timeout=90s", directory.display()))?;
    world.kubectl(&format!(
        "wait --for=delete namespace/{NAMESPACE} --timeout=90s"
    ))?;
    let kinds = world.kubectl("get crd --output name")?;
    let kinds: Vec<_> = kinds
        .lines()
        .filter(|name| name.ends_with(".bowline.dev"))
        .collect();
    summary.note(
        "  and the API server has no kind of it",
        kinds.is_empty(),
        kinds.join(", "),
    );
    Ok(())
}

/// What of Bowline is on a node, as the node's own tools tell it.
fn on_nodes(world: &World) -> anyhow::Result<Vec<String>> {
    let mut left = Vec::new();
    let vips = WEB.map(|vip| vip.to_string());
    for index in 1..=world.nodes {
        let node = world.cluster.node(index);
        let inside = |program: &str, words: &str| {
            let mut command = node.inside(program);
            command.args(words.split_whitespace());
            process::output_within(&mut command, Duration::from_secs(30))
                .with_context(|| format!("{program} {words} on {}", node.name()))
        };
        // The kernel itself puts two files of this ending there.
        let pinned = inside("find", "/sys/fs/bpf -mindepth 1 -not -name *.debug")?;
        let links = inside("ip", "-details link show")?;
        let network = inside("ip", "address show")? + &inside("ip", "route show table all")?;
        let ours = links.lines().filter(|line| line.contains("prog/xdp"));
        let named = network
            .lines()
            .filter(|line| vips.iter().any(|vip| line.contains(vip)));
        left.extend(
            pinned
                .lines()
                .chain(ours)
                .chain(named)
                .map(|line| format!("{}: {}", node.name(), line.trim())),
        );
    }
    Ok(left)
}
