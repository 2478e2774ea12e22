//! Where objects come from: an API server ([`kubernetes`]), or a directory of YAML files that plays one ([`directory`]);
//! both are read into an [`index`].
//!
//! ```text
//! kubernetes (watches) ───────────────────────────────────────────┐
//! directory (inotify, reading) → files (last good by file) → parse ┴→ index (all objects) → manager, agent
//! output (writing by rename) ← manager, agent
//! ```
//!
//! Knows nothing of slots, tables and maps.

pub mod directory;
pub mod files;
pub mod index;
pub mod kubelet;
pub mod kubernetes;
pub mod output;
pub mod parse;
mod read;
pub mod secret;
pub mod serving;
