//! Real Kubernetes on one machine, for tests and demonstrations.
//!
//! ```text
//! control_plane   etcd, API server and, if wanted, controllers and scheduler, on a loopback address of their own
//!      └─▶ {binaries, credentials, daemon}
//! cluster         nodes, pods, a fabric and a client: machines made of namespaces
//!      └─▶ {binaries, credentials, machine ─▶ cgroup, image}
//! ```
//!
//! [`ControlPlane`] takes seconds and no privileges: for tests of what speaks to the API server. Its nodes and pods are
//! whatever objects a test writes. [`Cluster`] is the real thing, as root, with three nodes in ten seconds. Nothing here
//! knows Bowline.
//!
//! Errors are sentences for the person who runs a test, so they are `anyhow`'s.

#![forbid(unsafe_code)]

use std::fmt::Write;

pub mod binaries;
mod cgroup;
pub mod cluster;
mod control_plane;
mod credentials;
mod daemon;
pub mod image;
mod machine;

pub use binaries::Binaries;
pub use cluster::Cluster;
pub use control_plane::{ControlPlane, Controllers, Options};
pub use credentials::User;
pub use machine::{Machine, wait_until};

/// Bytes as hexadecimal digits.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
