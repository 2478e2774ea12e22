//! How long a new Service takes, and that it is we who serve it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rig::cluster::plan;

use super::super::child::Teller;
use super::super::client::Probed;
use super::super::objects;
use super::super::summary::{Spread, Summary};
use super::super::world::World;
use super::ANSWER_LIMIT;
use crate::process;

/// Packets towards the VIP of the shortest connection: SYN, ACK, a question.
const PACKETS_MIN: u64 = 3;
/// What a node's stack has seen, service proxy included.
const CONNECTIONS: &str = "/proc/net/nf_conntrack";
/// From `kubectl apply` to the address, and to the first byte, at the median.
const LIMIT_MS: u64 = 1_000;

/// From `kubectl apply` of a Service to its address, and to the first byte through its VIP; several times.
pub(in super::super) fn first_byte(
    world: &World,
    times: u32,
    summary: &mut Summary,
) -> anyhow::Result<()> {
    let mut watch = world.watch_services()?;
    // What is there already is told first.
    until_told(&mut watch, "web ")?;
    let (mut addresses, mut bytes) = (Vec::new(), Vec::new());
    for number in 0..times {
        let (name, vip) = (name(number), objects::first_vip(number));
        let to = [SocketAddr::new(vip, 80)];
        let mut client = world.client(&["probe", "--every-ms", "5"], &to)?;
        let start = Instant::now();
        world.apply(&objects::service(&name, &vip.to_string()))?;
        let address = until_told(&mut watch, &format!("{name} {vip}"))?;
        addresses.push((address - start).as_millis() as u64);
        let byte = client.begun(ANSWER_LIMIT)?;
        bytes.push((byte - start).as_millis() as u64);
        let _: Probed = client.stop()?;
    }
    summary.address_ms = Spread::of(&addresses);
    summary.first_byte_ms = Spread::of(&bytes);
    for (what, spread) in [
        ("address", &summary.address_ms.clone()),
        ("first byte", &summary.first_byte_ms.clone()),
    ] {
        let promise = format!("kubectl apply to {what} within a second (median)");
        summary.note(&promise, spread.median <= LIMIT_MS, spread.to_string());
    }
    our_path(world, times, summary)?;
    let names: Vec<String> = (0..times).map(name).collect();
    world.kubectl(&format!("delete service {} --timeout=60s", names.join(" ")))?;
    Ok(())
}

fn name(number: u32) -> String {
    format!("first-{number}")
}

/// Waits for a line that begins so; says when it came.
fn until_told(watch: &mut Teller, prefix: &str) -> anyhow::Result<Instant> {
    let start = Instant::now();
    while start.elapsed() < ANSWER_LIMIT {
        let (when, line) = watch
            .line(ANSWER_LIMIT)
            .with_context(|| format!("wait for the Service {prefix:?}"))?;
        if line.starts_with(prefix) {
            return Ok(when);
        }
    }
    bail!("no Service is told of as {prefix:?}")
}

/// Our programs counted packets of every Service. What they pass up to the node, for its service proxy to translate, is
/// tracked there as a connection to the VIP.
fn our_path(world: &World, times: u32, summary: &mut Summary) -> anyhow::Result<()> {
    let mut least = u64::MAX;
    for number in 0..times {
        let label = format!("\"default/{}\"", name(number));
        least = least.min(world.metric("bowline_service_packets_total", &label)?);
    }
    let mut tracked = 0;
    for index in 1..=world.nodes {
        let mut cat = world.cluster.node(index).inside("cat");
        let text = process::output_within(cat.arg(CONNECTIONS), Duration::from_secs(20))
            .with_context(|| format!("what {} tracks", plan::node_name(index)))?;
        let vips = (0..times).map(|number| format!("dst={} ", objects::first_vip(number)));
        tracked += vips.filter(|vip| text.contains(vip)).count();
    }
    summary.note(
        "what answered took our path",
        least >= PACKETS_MIN && tracked == 0,
        format!(
            "{least} packets or more of each counted by our programs, {tracked} VIPs seen by the service proxy"
        ),
    );
    Ok(())
}
