//! Puts our images and our objects into the cluster.

use std::time::{Instant, SystemTime};

use authority::handoff::{Holder, Signer};

use super::super::summary::Summary;
use super::super::world::{NAMESPACE, World};
use super::super::{diagnosis, objects};
use crate::{image, process};

/// Agents, managers, pods and the Service `web`.
pub(in super::super) fn install(
    world: &World,
    images: &image::Images,
    summary: &mut Summary,
) -> anyhow::Result<()> {
    for archive in [&images.bowline, &images.echo, &images.bird] {
        world.cluster.load(archive)?;
    }
    certify(world)?;
    let start = Instant::now();
    world.apply_directory(&process::workspace().join("deploy/bgp"))?;
    world.kubectl("wait crd --all --for=condition=Established --timeout=30s")?;
    world.apply(&objects::addresses())?;
    world.apply(&objects::list(&[
        objects::deployment("web", objects::WEB_PODS),
        objects::deployment("stay", objects::STAY_PODS),
        objects::web("Cluster"),
    ]))?;
    for what in [
        "daemonset/bowline-agent",
        "daemonset/bowline-bird",
        "deployment/bowline-manager",
    ] {
        world.rolled_out(&format!("--namespace {NAMESPACE} {what}"))?;
    }
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
