//! Questions to the core from other threads: a bounded queue of jobs, each run by the core between two steps.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tokio::sync::{mpsc, oneshot};

use super::core::Core;
use super::core::handing::Wanted;
use super::core::pins::Swept;
use super::flows::{self, Pinned};
use crate::admin;
use crate::dataplane::flows::Flows;
use crate::metrics;
use crate::model::pins::FlowKey;
use crate::serve::{Answer, Answers, AskError, FlowsWanted};

/// Questions that wait. More than that many at once come from a runaway script; they are refused and counted.
const JOBS_MAX: usize = 64;

/// A question.
pub(super) type Job = Box<dyn FnOnce(&mut Core) + Send>;

/// Asks the core.
pub(super) struct Handle {
    jobs: mpsc::Sender<Job>,
    overflows: Arc<AtomicU64>,
    swept: Arc<AtomicU64>,
    /// Flows are read beside the core, since there may be a million of them. None without maps.
    flows: Option<Arc<Flows>>,
}

impl Handle {
    /// A handle and the queue that the core drains.
    pub(super) fn new(
        flows: Option<Arc<Flows>>,
        swept: Arc<AtomicU64>,
    ) -> (Self, mpsc::Receiver<Job>) {
        let (jobs, queue) = mpsc::channel(JOBS_MAX);
        (
            Self {
                jobs,
                overflows: Arc::default(),
                swept,
                flows,
            },
            queue,
        )
    }

    /// What to look for among the flows, and what is pinned.
    pub(super) fn sweep_wanted(&self) -> Answer<(Wanted, Vec<(FlowKey, SocketAddr)>)> {
        self.ask(|core| Ok((core.sweep_wanted(), core.own_pins())))
    }

    /// What was found there.
    pub(super) fn swept(&self, swept: Swept) -> Answer<()> {
        self.ask(move |core| {
            core.take_swept(&swept, Instant::now());
            Ok(())
        })
    }

    /// Asks for something that the core computes.
    fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Core) -> Result<T, AskError> + Send + 'static,
    ) -> Answer<T> {
        let (answer, answered) = oneshot::channel();
        let (overflows, swept) = (Arc::clone(&self.overflows), Arc::clone(&self.swept));
        let job: Job = Box::new(move |core| {
            core.work.queue_overflows = overflows.load(Ordering::Relaxed);
            core.work.flows_swept = swept.load(Ordering::Relaxed);
            // Whoever asked may have gone away.
            _ = answer.send(question(core));
        });
        let sent = self.jobs.try_send(job);
        if sent.is_err() {
            self.overflows.fetch_add(1, Ordering::Relaxed);
        }
        Box::pin(async move {
            sent.map_err(|_| AskError::Silent)?;
            answered.await.unwrap_or(Err(AskError::Silent))
        })
    }
}

impl Answers for Handle {
    fn not_ready_because(&self) -> Answer<Vec<String>> {
        self.ask(|core| Ok(core.not_ready_because()))
    }

    fn metrics(&self) -> Answer<String> {
        self.ask(|core| {
            metrics::render(core.scrape()?)
                .map_err(|error| AskError::Unavailable(error.to_string()))
        })
    }

    fn status(&self) -> Answer<admin::Status> {
        self.ask(|core| Ok(core.status()?))
    }

    fn services(&self) -> Answer<admin::Services> {
        self.ask(|core| Ok(core.services()?))
    }

    fn backends(&self) -> Answer<admin::Backends> {
        self.ask(|core| Ok(core.backends()?))
    }

    fn flows(&self, wanted: FlowsWanted) -> Answer<admin::Flows> {
        let Some(flows) = self.flows.clone() else {
            return Box::pin(async {
                Err(AskError::Unavailable("there is no flow table".to_owned()))
            });
        };
        let known = self.sweep_wanted();
        Box::pin(async move {
            let (Wanted { tracked, .. }, pods) = known.await?;
            let pods = pods.into_iter().collect();
            let pinned = Pinned { pods, tracked };
            tokio::task::spawn_blocking(move || flows::list(&flows, &wanted, &pinned))
                .await
                .map_err(|_| AskError::Silent)?
        })
    }

    fn check(&self) -> Answer<admin::Checks> {
        self.ask(|core| Ok(core.check()))
    }

    fn explain(&self, request: admin::ExplainRequest) -> Answer<admin::Explanation> {
        self.ask(move |core| core.explain(&request))
    }
}

impl From<crate::dataplane::ApplyError> for AskError {
    fn from(error: crate::dataplane::ApplyError) -> Self {
        Self::Unavailable(format!(
            "the maps can not be read: {error}; see the agent's log"
        ))
    }
}
