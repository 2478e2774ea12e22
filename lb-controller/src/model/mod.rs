//! The pure core: values in, values out. No async, no clock, no I/O; time is an argument.
//!
//! ```text
//! manager   service, endpoint, ipam → assign (slot, table) → ServiceTable, problems
//! agent     ServiceTable → plan → diff → op, against what is installed (ids)
//! both      shape → maglev; secret; template
//! ```

pub mod allocation;
pub mod assign;
pub mod assignment;
pub mod backends;
pub mod candidate;
pub mod claim;
pub mod collect;
pub mod diff;
mod draft;
pub mod drain;
pub mod endpoint;
pub mod explain;
pub mod findable;
mod forgets;
pub mod freshness;
pub mod gate;
mod ids;
pub mod installed;
pub mod ipam;
mod local;
pub mod maglev;
pub mod op;
mod opinion;
mod pinning;
pub mod pins;
pub mod plan;
pub mod pool;
pub mod problem;
pub mod retire;
pub mod secret;
pub mod service;
pub mod shape;
pub mod slot;
pub mod substitute;
pub mod table;
pub mod template;
