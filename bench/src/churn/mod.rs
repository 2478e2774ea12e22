//! Suite `churn`: broken flows under scripts of changes, in a simulated cluster whose nodes are real: maps in the kernel,
//! the programs that packets would meet, the model that fills the maps. Everything else is simulated (network, clients,
//! pods' TCP, who hears what when), by a seed, so a failing run is run again exactly.
//!
//! Beside it, under the same scripts: plain Maglev with and without a connection table on every node, and our programs
//! without relays or without pins. They must break flows, or the harness would be blind.
//!
//! ```text
//! client ─▶ router ─▶ node: XDP ─▶ node: XDP ─▶ pod ─▶ node: TC ─▶ client      world/traffic
//! script ─▶ API server ─▶ manager ─▶ tables ─▶ agents ─▶ maps                   world/changes, world/control
//! XDP, TC: reports ─▶ agent ─▶ pins ─▶ agents of all nodes ─▶ maps             schemes/bowline, node/pins
//! manager: may this be forgotten? ─▶ agents ─▶ pins acknowledged ─▶ manager     retiring
//! ```

#![expect(
    clippy::cast_precision_loss,
    reason = "counts of flows and times of runs are far below 2^52"
)]

mod api;
mod client;
mod dice;
mod found;
mod manager;
mod node;
mod oracle;
mod pod;
mod queue;
mod reduce;
mod retiring;
mod router;
mod schemes;
mod script;
mod segment;
mod suite;
mod wire;
mod world;

pub(crate) use suite::{Options, run};
