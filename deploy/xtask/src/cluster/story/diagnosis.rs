//! What the person on call needs when a promise did not hold: objects, pods, what agents and managers say. Read only.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::router;
use super::world::{NAMESPACE, World};
use crate::process;

/// A cluster that is broken answers late or never.
const LIMIT: Duration = Duration::from_secs(10);
/// Lines of each log.
const LINES: usize = 25;

/// All of it as one text. Whatever cannot be had says why not.
pub(super) fn of(world: &World) -> String {
    let mut text = String::new();
    let mut part = |title: &str, what: anyhow::Result<String>| {
        let what = what.unwrap_or_else(|error| format!("{error:#}"));
        let _ = writeln!(text, "--- {title}\n{}", what.trim_end());
    };
    for words in [
        "get services -o yaml",
        "get events --sort-by=.metadata.creationTimestamp",
        "get pods --all-namespaces -o wide",
        "get endpointslices",
        "get servicetables,loadbalancernodes --all-namespaces",
    ] {
        part(&format!("kubectl {words}"), kubectl(world, words));
    }
    part("lbctl status", overview(world));
    for index in 1..=world.nodes {
        let node = rig::cluster::plan::node_name(index);
        if world.cluster.node(index).init().is_none() {
            part(&node, Ok("has no power".to_owned()));
            continue;
        }
        let title = format!("lbctl --node {node} status");
        part(&title, status(world, &node));
        for component in ["agent", "manager", "bird"] {
            let title = format!("log of the {component} on {node}");
            part(&title, log(world, index, component));
        }
    }
    if let Ok(log) = std::fs::read_to_string(world.cluster.fabric().directory().join(router::LOG)) {
        part("log of the router's BIRD", Ok(log));
    }
    text
}

fn kubectl(world: &World, words: &str) -> anyhow::Result<String> {
    let mut command = world.cluster.kubectl()?;
    command.args(words.split_whitespace());
    process::output_within(&mut command, LIMIT)
}

/// The whole cluster as an operator sees it; a failure if something is not well. Needs the API server.
pub(super) fn overview(world: &World) -> anyhow::Result<String> {
    process::output_within(world.lbctl()?.arg("status"), LIMIT)
}

/// One agent as an operator sees it. Needs the API server.
fn status(world: &World, node: &str) -> anyhow::Result<String> {
    process::output_within(world.lbctl()?.args(["--node", node, "status"]), LIMIT)
}

/// Read from the node's disk, so that nothing else has to work.
fn log(world: &World, index: u8, component: &str) -> anyhow::Result<String> {
    let logs = world.cluster.node(index).directory().join("var/log/pods");
    let mut text = String::new();
    for file in files(&logs, &format!("{NAMESPACE}_bowline-{component}-"))? {
        let all = String::from_utf8_lossy(&std::fs::read(&file)?).into_owned();
        text.push_str(&tail(&all, LINES));
    }
    Ok(text)
}

/// The newest log of each pod whose directory has this prefix: `<pod>/<container>/<restarts>.log`.
fn files(logs: &Path, prefix: &str) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for pod in std::fs::read_dir(logs)?.flatten() {
        if !pod.file_name().to_string_lossy().starts_with(prefix) {
            continue;
        }
        for container in std::fs::read_dir(pod.path())?.flatten() {
            let all = std::fs::read_dir(container.path())?.flatten();
            found.extend(all.map(|file| file.path()).max());
        }
    }
    Ok(found)
}

/// The last lines, without what the container runtime puts in front: time, stream, flag.
fn tail(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let mut tail = String::new();
    for line in &lines[lines.len().saturating_sub(count)..] {
        tail.push_str(line.splitn(4, ' ').nth(3).unwrap_or(line));
        tail.push('\n');
    }
    tail
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_of_a_log_is_what_the_program_wrote() {
        let text =
            "2026-01-01T00:00:00.1Z stderr F one\n2026-01-01T00:00:00.2Z stderr F two words\n";
        assert_eq!(tail(text, 1), "two words\n");
        assert_eq!(tail(text, 9), "one\ntwo words\n");
    }
}
