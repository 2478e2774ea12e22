//! What a manager tells.

use std::fmt::Error;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;

use super::{Families, number, one, service_counts};
use crate::admin;

/// Everything that is told of a manager.
#[derive(Clone, Debug, Default)]
pub struct ManagerScrape {
    /// Services by state.
    pub services: admin::ServiceCounts,
    /// Things that are wrong.
    pub problems: usize,
    /// Files written.
    pub writes: u64,
    /// Files that wait to be written.
    pub writes_pending: usize,
    /// Requests that failed; each is tried again.
    pub writes_failed: u64,
    /// Events that could not be told.
    pub events_lost: u64,
    /// Whether it is the one that writes.
    pub leading: bool,
    /// Agents that are followed, and those of them whose streams are up.
    pub agents: [usize; 2],
    /// Retirements of histories that are under way.
    pub retirements: usize,
    /// Retirements that came to nothing, and those that were completed.
    pub retired: [u64; 2],
}

impl Collector for ManagerScrape {
    fn encode(&self, encoder: DescriptorEncoder) -> Result<(), Error> {
        let Self {
            services,
            problems,
            writes,
            writes_pending,
            writes_failed,
            events_lost,
            leading,
            agents: _,
            retirements: _,
            retired: _,
        } = self;
        let mut families = Families(encoder);
        families.gauge(
            "bowline_manager_leading",
            "Whether it is the one that writes",
            one(number(u64::from(*leading))),
        )?;
        families.counter(
            "bowline_events_lost",
            "Events that could not be told",
            [(Vec::new(), *events_lost)],
        )?;
        families.gauge(
            "bowline_services",
            "Services by state",
            service_counts(services),
        )?;
        families.gauge(
            "bowline_problems",
            "Objects with something wrong",
            one(number(*problems as u64)),
        )?;
        families.counter(
            "bowline_writes",
            "Files written, or requests carried out",
            [(Vec::new(), *writes)],
        )?;
        families.counter(
            "bowline_writes_failed",
            "Requests to write that failed, each tried again",
            [(Vec::new(), *writes_failed)],
        )?;
        families.gauge(
            "bowline_writes_pending",
            "Services or files that wait to be written",
            one(number(*writes_pending as u64)),
        )?;
        handoff(&mut families, self)
    }
}

fn handoff(families: &mut Families<'_>, scrape: &ManagerScrape) -> Result<(), Error> {
    let [followed, heard] = scrape.agents;
    let [abandoned, completed] = scrape.retired;
    families.gauge(
        "bowline_manager_agents",
        "Agents that the manager follows, by whether their streams are up",
        [("up", heard), ("down", followed.saturating_sub(heard))]
            .map(|(stream, count)| (vec![("stream", stream)], number(count as u64))),
    )?;
    families.gauge(
        "bowline_retirements_under_way",
        "Services whose history is being handed off",
        one(number(scrape.retirements as u64)),
    )?;
    families.counter(
        "bowline_retirements",
        "Ended retirements of a Service's history, by outcome",
        [
            (vec![("outcome", "abandoned")], abandoned),
            (vec![("outcome", "completed")], completed),
        ],
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retirements_and_streams_are_told() {
        let scrape = ManagerScrape {
            agents: [5, 3],
            retirements: 1,
            retired: [7, 9],
            ..ManagerScrape::default()
        };
        let text = super::super::render(scrape).unwrap();
        for line in [
            "bowline_manager_agents{stream=\"up\"} 3.0",
            "bowline_manager_agents{stream=\"down\"} 2.0",
            "bowline_retirements_under_way{} 1.0",
            "bowline_retirements_total{outcome=\"abandoned\"} 7",
            "bowline_retirements_total{outcome=\"completed\"} 9",
        ] {
            assert!(text.lines().any(|told| told == line), "{line} in {text}");
        }
    }
}
