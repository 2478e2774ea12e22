//! What programs and kernels of a lab have counted, over all machines.

use std::collections::BTreeMap;

use lb_controller::admin;

use super::run::Run;
use super::segments::Segments;

/// What the programs counted, over all machines.
#[derive(Clone, Debug, Default)]
pub(super) struct Counted {
    pub(super) relayed: u64,
    pub(super) asked_in_place: u64,
    pub(super) drops: BTreeMap<String, u64>,
}

impl Run {
    /// Sums the programs' counters up.
    pub(super) async fn counted(&self) -> anyhow::Result<Counted> {
        use lb_ebpf::abi::Stat::{AskedInPlace, Relayed};
        let mut counted = Counted::default();
        for machine in self.cluster.machines() {
            let status: admin::Status = self.cluster.ask(&machine, "/v1/status").await?;
            for stat in status.stats {
                if stat.name == Relayed.label() {
                    counted.relayed += stat.packets;
                } else if stat.name == AskedInPlace.label() {
                    counted.asked_in_place += stat.packets;
                }
            }
            for drop in status.drops {
                *counted.drops.entry(drop.name).or_default() += drop.packets;
            }
        }
        Ok(counted)
    }

    /// Segments of the client and of every pod.
    pub(super) fn segments(&self) -> anyhow::Result<Segments> {
        let mut sum = Segments::of(&self.cluster.network.client)?;
        for namespace in self.cluster.pod_namespaces() {
            sum = sum + Segments::of(namespace)?;
        }
        Ok(sum)
    }
}
