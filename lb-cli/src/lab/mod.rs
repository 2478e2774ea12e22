//! `lbctl lab`: a cluster of network namespaces on one machine, real servers and clients, and the promises held up to it.

pub(crate) mod server;

use crate::Outcome;
use crate::output::Output;

/// Arguments of `lbctl lab`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// Runs the lab.
pub(crate) fn run(_args: Args, _output: Output) -> anyhow::Result<Outcome> {
    anyhow::bail!("the lab is being built")
}
