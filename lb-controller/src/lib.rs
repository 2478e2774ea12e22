//! What the tables should hold, who is told, who agrees: the library behind `lb-controller manager` and `lb-controller
//! agent`.
//!
//! ```text
//! lb-ebpf ← model ← {source, dataplane, liveness, announce} ← {agent, manager} ← main
//! ```

// Two files of the map glue are excepted, see `dataplane`.
#![deny(unsafe_code)]

pub mod admin;
pub mod agent;
pub mod announce;
pub mod api;
pub mod ask;
pub mod dataplane;
pub mod handoff;
pub mod liveness;
pub mod manager;
pub mod metrics;
pub mod model;
pub mod serve;
pub mod source;
pub mod uninstall;
pub mod watchdog;
