//! The server that runs in the lab's pods.

use crate::Outcome;

/// Arguments of `lbctl lab-server`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// Serves until killed.
pub(crate) fn run(_args: &Args) -> anyhow::Result<Outcome> {
    anyhow::bail!("the lab is being built")
}
