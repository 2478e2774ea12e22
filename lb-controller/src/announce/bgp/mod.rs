//! VIPs told to routers by BGP, as `BGPPeer`s and `BGPAdvertisement`s ask for it, with BIRD beside the agent.
//!
//! ```text
//! peers, advertisements, pools, tables ─▶ plan (pure) ─┬▶ routes of a table ─▶ kernel ─▶ BIRD imports them
//!                                                      └▶ config ─▶ text (pure) ─▶ daemon ─▶ file, `configure`
//! ```
//!
//! VIPs that come and go change the table only: BIRD's filters choose attributes by prefixes of pools. Where single VIPs are meant
//! (`serviceSelector`, policy Local beside an aggregate) filters name them, and change with them; no session ends by that.

mod answer;
pub mod config;
mod daemon;
mod password;
pub mod plan;
mod tellers;
mod text;

pub use answer::{Reply, ReplyError, Session, sessions};
pub use daemon::{AskError, ESTABLISHED, FILES, Settings, Told, ask, keep, prepare};
pub use password::{Password, PasswordError};
pub use tellers::tellers;
pub use text::{Rendered, render};
