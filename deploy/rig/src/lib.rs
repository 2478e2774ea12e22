//! Real Kubernetes on one machine, for tests and demonstrations.
//!
//! ```text
//! control_plane   etcd, API server and, if wanted, controllers and scheduler, on a loopback address of their own
//!      └─▶ {binaries, credentials, daemon}
//! ```
//!
//! [`ControlPlane`] takes seconds and no privileges: for tests of what speaks to the API server. Its nodes and pods are
//! whatever objects a test writes. Nothing here knows Bowline.
//!
//! Errors are sentences for the person who runs a test, so they are `anyhow`'s.

#![forbid(unsafe_code)]

use std::fmt::Write;

pub mod binaries;
mod control_plane;
mod credentials;
mod daemon;
pub mod image;

pub use binaries::Binaries;
pub use control_plane::{ControlPlane, Controllers, Options};
pub use credentials::User;

/// Bytes as hexadecimal digits.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
