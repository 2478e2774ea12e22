//! Where objects come from: a directory of YAML files that plays the API server ([`directory`]), read into an [`index`].
//!
//! ```text
//! directory (inotify, reading) → files (last good objects by file) → parse → index (all objects) → manager, agent
//! output (writing by rename) ← manager, agent
//! ```
//!
//! Knows nothing of slots, tables and maps.

pub mod directory;
pub mod files;
pub mod index;
pub mod output;
pub mod parse;
mod read;
pub mod secret;
