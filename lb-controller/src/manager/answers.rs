//! What a manager tells: health, metrics and status. The rest only agents know.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use lb_ebpf::abi;

use super::retiring::Counts;
use crate::admin::{self, Problem, Role, ServiceCounts};
use crate::metrics::{self, ManagerScrape};
use crate::serve::{Answer, Answers, AskError, FlowsWanted};

/// What the loop has found, and the servers tell.
#[derive(Clone, Debug)]
pub(super) struct Found {
    /// The directory, or the API server.
    pub(super) source: String,
    /// The watch is alive.
    pub(super) alive: bool,
    /// When it was looked at last.
    pub(super) last_list: jiff::Timestamp,
    /// Services by state.
    pub(super) services: ServiceCounts,
    /// Things that are wrong.
    pub(super) problems: Vec<Problem>,
    /// Writes done, and writes that wait.
    pub(super) writes: (u64, usize),
    /// Writes that failed; each is tried again.
    pub(super) writes_failed: u64,
    /// Events that could not be told.
    pub(super) events_lost: u64,
    /// Whether it is the one that writes.
    pub(super) leading: bool,
    /// What is known of agents and retirements.
    pub(super) handoff: Handoff,
    /// Why it is not ready; empty when it is.
    pub(super) not_ready_because: Vec<String>,
}

/// What is told about agents and retirements; nothing where connections are not handed off.
#[derive(Clone, Debug, Default)]
pub(super) struct Handoff {
    /// Agents that are followed, and those of them whose streams are up.
    pub(super) agents: [usize; 2],
    /// By Service.
    pub(super) retirements: Vec<admin::Retirement>,
    /// What became of them.
    pub(super) counts: Counts,
}

/// Written by the loop, read by the servers.
pub(super) struct Shared {
    started: Instant,
    found: Mutex<Option<Found>>,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            found: Mutex::default(),
        }
    }
}

impl Shared {
    /// Replaces what is told.
    pub(super) fn set(&self, found: Found) {
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = Some(found);
    }

    fn get(&self) -> Result<Found, AskError> {
        let found = self
            .found
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        found.ok_or_else(|| AskError::Unavailable("nothing has been read yet".to_owned()))
    }

    fn not_here<T: Send + 'static>() -> Answer<T> {
        answer(Err(AskError::Unavailable(
            "a manager does not know that; ask an agent".to_owned(),
        )))
    }

    fn told(&self) -> Result<admin::Status, AskError> {
        let Found {
            source,
            alive,
            last_list,
            services,
            problems,
            not_ready_because: reasons,
            writes: _,
            writes_failed: _,
            events_lost: _,
            leading: _,
            handoff,
        } = self.get()?;
        Ok(admin::Status {
            node: "manager".to_owned(),
            role: Role::Manager,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            abi_version: abi::ABI_VERSION,
            pin_dir: String::new(),
            uptime_seconds: self.started.elapsed().as_secs(),
            addresses: Vec::new(),
            interfaces: Vec::new(),
            ready: reasons.is_empty(),
            not_ready_because: reasons,
            fresh: false,
            sources: vec![admin::Source {
                name: source,
                alive,
                last_list: Some(last_list),
                last_apply: None,
            }],
            services,
            problems,
            maps: Vec::new(),
            drops: Vec::new(),
            stats: Vec::new(),
            next_hops_unresolved: Vec::new(),
            peers: Vec::new(),
            announced: Vec::new(),
            pins: None,
            routes: None,
            retirements: handoff.retirements,
        })
    }
}

fn answer<T: Send + 'static>(answer: Result<T, AskError>) -> Answer<T> {
    Box::pin(async { answer })
}

impl Answers for Shared {
    fn not_ready_because(&self) -> Answer<Vec<String>> {
        answer(Ok(match self.get() {
            Ok(found) => found.not_ready_because,
            Err(error) => vec![error.to_string()],
        }))
    }

    fn metrics(&self) -> Answer<String> {
        answer(self.get().and_then(|found| {
            let scrape = ManagerScrape {
                services: found.services,
                problems: found.problems.len(),
                writes: found.writes.0,
                writes_pending: found.writes.1,
                writes_failed: found.writes_failed,
                events_lost: found.events_lost,
                leading: found.leading,
                agents: found.handoff.agents,
                retirements: found.handoff.counts.under_way,
                retired: [
                    found.handoff.counts.abandoned,
                    found.handoff.counts.completed,
                ],
            };
            metrics::render(scrape).map_err(|error| AskError::Unavailable(error.to_string()))
        }))
    }

    fn status(&self) -> Answer<admin::Status> {
        answer(self.told())
    }

    fn services(&self) -> Answer<admin::Services> {
        Self::not_here()
    }

    fn backends(&self) -> Answer<admin::Backends> {
        Self::not_here()
    }

    fn flows(&self, _wanted: FlowsWanted) -> Answer<admin::Flows> {
        Self::not_here()
    }

    fn check(&self) -> Answer<admin::Checks> {
        Self::not_here()
    }

    fn explain(&self, _request: admin::ExplainRequest) -> Answer<admin::Explanation> {
        Self::not_here()
    }
}
