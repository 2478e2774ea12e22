//! Everything is deleted, and nothing stays.

use std::time::Duration;

use anyhow::Context;

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

/// Bowline itself, as its README says: nothing of it stays on a node.
pub(in super::super) fn uninstall(world: &World, summary: &mut Summary) -> anyhow::Result<()> {
    let directory = process::workspace().join("deploy/kustomize");
    world.kubectl(&format!("delete -k {} --timeout=90s", directory.display()))?;
    world.kubectl(&format!(
        "wait --for=delete namespace/{NAMESPACE} --timeout=90s"
    ))?;
    let mut left = Vec::new();
    for index in 1..=world.nodes {
        let node = world.cluster.node(index);
        let inside = |program: &str, words: &str| {
            let mut command = node.inside(program);
            command.args(words.split_whitespace());
            process::output_within(&mut command, Duration::from_secs(30))
                .with_context(|| format!("{program} {words} on {}", node.name()))
        };
        let program = world.built.join("lb-controller");
        inside(&program.display().to_string(), "detach")?;
        // The kernel itself puts two files of this ending there.
        let pinned = inside("find", "/sys/fs/bpf -mindepth 1 -not -name *.debug")?;
        let links = inside("ip", "-details link show")?;
        let network = inside("ip", "address show")? + &inside("ip", "route show table all")?;
        let ours = links.lines().filter(|line| line.contains("prog/xdp"));
        let vips = WEB.map(|vip| vip.to_string());
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
    let seen = left.first().cloned().unwrap_or_default();
    summary.note(
        "uninstalled, no node has a link, a pin, an address or a route",
        left.is_empty(),
        seen,
    );
    Ok(())
}
