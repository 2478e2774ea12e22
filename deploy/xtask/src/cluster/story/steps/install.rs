//! Puts our images and our objects into the cluster.

use std::path::Path;
use std::time::{Instant, SystemTime};

use anyhow::Context;
use authority::handoff::{Holder, Signer};

use super::super::summary::Summary;
use super::super::world::{NAMESPACE, World};
use super::super::{diagnosis, objects};
use super::meetings::{self, Load};
use crate::{image, process};

/// Agents, managers, pods and the Service `web`, by the manifests of a checkout.
pub(in super::super) fn install(
    world: &World,
    images: &image::Images,
    checkout: &Path,
    summary: &mut Summary,
) -> anyhow::Result<()> {
    for archive in [&images.bowline, &images.echo, &images.bird] {
        world.cluster.load(archive)?;
    }
    certify(world)?;
    let start = Instant::now();
    apply(world, checkout)?;
    world.apply(&objects::addresses())?;
    world.apply(&objects::list(&[
        objects::deployment("web", objects::WEB_PODS),
        objects::deployment("stay", objects::STAY_PODS),
        objects::web("Cluster"),
    ]))?;
    are_up(world)?;
    for what in ["deployment/web", "deployment/stay"] {
        world.rolled_out(what)?;
    }
    world.calm(&objects::web_tcp())?;
    let pods = objects::WEB_PODS + objects::STAY_PODS;
    summary.pods = pods;
    let seconds = start.elapsed().as_secs_f64();
    summary.note(
        "kubectl apply -k installs it",
        true,
        format!("{seconds:.1} s, with {pods} pods behind two VIPs"),
    );
    let status = diagnosis::overview(world);
    summary.note(
        "  lbctl status finds all well",
        status.is_ok(),
        status.map_or_else(|error| format!("{error:#}"), |_| String::new()),
    );
    Ok(())
}

fn apply(world: &World, checkout: &Path) -> anyhow::Result<()> {
    // A release before the routing daemon has only one directory.
    let directories = ["deploy/bgp", "deploy/kustomize"].map(|one| checkout.join(one));
    let directory = directories.iter().find(|one| one.is_dir());
    world.apply_directory(directory.context("a checkout has no deploy/kustomize")?)?;
    world
        .kubectl("wait crd --all --for=condition=Established --timeout=30s")
        .map(drop)
}

/// Waits until everything of ours has been rolled out.
fn are_up(world: &World) -> anyhow::Result<()> {
    let ours = world.kubectl(&format!(
        "get daemonsets,deployments --namespace {NAMESPACE} --output name"
    ))?;
    for what in ours.lines() {
        world.rolled_out(&format!("--namespace {NAMESPACE} {what}"))?;
    }
    world.wait_for_agents()
}

/// From the release that is installed to what was built, while all pods roll.
pub(in super::super) fn upgrade(
    world: &World,
    images: &image::Images,
    summary: &mut Summary,
) -> anyhow::Result<()> {
    // Nodes have images before they are told to use them.
    for archive in [&images.bowline, &images.bird] {
        world.cluster.load(archive)?;
    }
    let load = Load::begin(world)?;
    let living = meetings::uids(world, "stay", None)?;
    let start = Instant::now();
    let met = meetings::at_once(
        || meetings::restart(world),
        || {
            apply(world, &process::workspace())?;
            // The name of an image says nothing about what is in it.
            for what in ["daemonset/bowline-agent", "deployment/bowline-manager"] {
                world.kubectl(&format!("--namespace {NAMESPACE} rollout restart {what}"))?;
            }
            are_up(world)
        },
    );
    let took = start.elapsed();
    world.rolled_out("deployment/web")?;
    world.programmed("web")?;
    let (new, held) = load.end(&living)?;
    met?;
    summary.note(
        "the previous release is upgraded while all pods roll",
        true,
        format!("{} s", took.as_secs()),
    );
    meetings::judge("  under long connections", &held, summary);
    meetings::judge_new(&new, summary);
    Ok(())
}

/// The Secrets without which no connection is handed off, of an authority that signs nothing else. Those of an installation
/// that was there stay: agents hear of others at different times, and would not believe each other in between.
fn certify(world: &World) -> anyhow::Result<()> {
    const SECRETS: [(&str, Holder<'static>); 2] = [
        ("bowline-handoff-agent", Holder::Agents),
        ("bowline-handoff-manager", Holder::Manager),
    ];
    let [agents, manager] = SECRETS.map(|(name, _)| name);
    let get = format!("get secrets --namespace {NAMESPACE} {agents} {manager}");
    if world.kubectl(&get).is_ok() {
        return Ok(());
    }
    let namespace = process::workspace().join("deploy/kustomize/namespace.yaml");
    world.kubectl(&format!("apply --server-side -f {}", namespace.display()))?;
    let signer = Signer::new(SystemTime::now())?;
    let secrets: anyhow::Result<Vec<_>> = SECRETS
        .iter()
        .map(|(name, holder)| {
            let files = signer.files(*holder)?;
            Ok(objects::certificates(NAMESPACE, name, &files))
        })
        .collect();
    world.apply(&objects::list(&secrets?))
}
