//! The steps of the story. Each holds promises up to what it sees, and leaves the cluster as it found it.

mod api_away;
mod connections;
mod drain;
mod failover;
mod first_byte;
mod install;
mod meetings;
mod remove;
mod rollout;
mod routed;

pub(super) use api_away::api_away;
pub(super) use connections::connections;
pub(super) use drain::{drain, without_api_server};
pub(super) use failover::{agent_restart, power_cuts};
pub(super) use first_byte::first_byte;
pub(super) use install::{install, upgrade};
pub(super) use meetings::{rollout_cut_off, rollout_power_cut, scale_up_agent_restart};
pub(super) use remove::{remove, uninstall};
pub(super) use rollout::rollout;
pub(super) use routed::routed;

use std::time::Duration;

/// The first answer of something that should answer.
const ANSWER_LIMIT: Duration = Duration::from_mins(1);

/// Reasons as an afterthought.
fn because(reasons: &[String]) -> String {
    if reasons.is_empty() {
        return String::new();
    }
    format!(" ({})", reasons.join("; "))
}
