//! Many connections over all pods.

use std::time::Duration;

use super::super::client::Steady;
use super::super::objects;
use super::super::summary::Summary;
use super::super::world::World;
use super::because;

/// Short connections: more than the 5,000 that are asked for.
const CONNECTIONS: u64 = 6_000;
/// Some five seconds on two processors.
const LIMIT: Duration = Duration::from_mins(2);

/// Thousands of connections, and transfers beside them.
pub(in super::super) fn connections(world: &World, summary: &mut Summary) -> anyhow::Result<()> {
    let count = CONNECTIONS.to_string();
    let client = world.client(&["many", "--count", &count], &objects::web_tcp())?;
    let many: Steady = client.told(LIMIT)?;
    summary.connections += many.connections;
    summary.failed += many.failed;
    summary.pods_used = many.pods;
    summary.client_address_preserved &= many.address_changed == 0;
    summary.bytes += many.bytes;
    summary.segments += many.segments;
    summary.retransmits += many.retransmits;
    summary.note(
        "thousands of connections over all pods",
        many.failed == 0 && many.connections >= CONNECTIONS && many.pods == summary.pods as usize,
        format!(
            "{} of {} failed, {} of {} pods, {} MB, {} of {} segments sent again{}",
            many.failed,
            many.connections,
            many.pods,
            summary.pods,
            many.bytes / 1_000_000,
            many.retransmits,
            many.segments,
            because(&many.reasons)
        ),
    );
    summary.note(
        "  the client's address is preserved",
        many.address_changed == 0,
        format!("{} changed", many.address_changed),
    );
    Ok(())
}
