//! Who announces which VIP on the local network, and the packets that say so.
//!
//! ```text
//! advertisements, pools, nodes, liveness ─▶ choose (pure, the same on every node) ─▶ agent ─▶ map `announced` (XDP answers)
//!                                                                                      └─▶ burst (pure) ─▶ packet socket
//! ```
//!
//! ARP and neighbour solicitations are answered by the programs, not here. Knows no tables and no flows.

pub mod bgp;
mod burst;
pub mod choose;
mod conflict;
pub mod facts;
pub mod fault;
mod packets;
pub mod routes;
pub mod select;

pub use burst::{Announced, Bursts};
pub use conflict::{Claimed, Conflict, claimed};
pub use packets::{Telling, tell};
