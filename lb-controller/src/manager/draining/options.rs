//! How a manager drains nodes, by its command line.

use std::collections::BTreeSet;

use crate::api::node_drain::Trigger;

/// How nodes are drained.
#[derive(Clone, Debug, clap::Args)]
pub struct DrainOptions {
    /// Nodes that may be drained at once; others wait for their turn.
    #[arg(long = "max-concurrent-drains", value_name = "N", default_value_t = CONCURRENT_DEFAULT, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub concurrent: u16,
    /// Drain nodes that ask for it themselves, until they no longer do; none if left out.
    #[arg(
        long,
        value_name = "WHAT",
        value_enum,
        value_delimiter = ',',
        conflicts_with = "manifests"
    )]
    pub drain_on: Vec<DrainOn>,
}

impl Default for DrainOptions {
    fn default() -> Self {
        Self {
            concurrent: CONCURRENT_DEFAULT,
            drain_on: Vec::new(),
        }
    }
}

impl DrainOptions {
    pub(in crate::manager) fn heeded(&self) -> BTreeSet<Trigger> {
        let triggers = self.drain_on.iter();
        triggers.map(|on| Trigger::from(*on)).collect()
    }
}

/// What a Node asks for its drain by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum DrainOn {
    /// Its label `node.kubernetes.io/exclude-from-external-load-balancers`.
    Label,
    /// The cluster autoscaler's taint `ToBeDeletedByClusterAutoscaler`.
    Taint,
    /// Its kubelet, when it shuts down gracefully.
    Shutdown,
}

impl From<DrainOn> for Trigger {
    fn from(on: DrainOn) -> Self {
        match on {
            DrainOn::Label => Self::ExcludeLabel,
            DrainOn::Taint => Self::AutoscalerTaint,
            DrainOn::Shutdown => Self::Shutdown,
        }
    }
}

/// Drains that may be under way at once if nothing else is said.
const CONCURRENT_DEFAULT: u16 = 1;
