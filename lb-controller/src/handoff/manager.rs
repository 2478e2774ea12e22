//! The manager's side of control: one stream to every agent. What agents report goes to the core; instructions go the other
//! way through a queue that ends with the stream, so that none reaches another start of the agent than it was meant for.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::convert::Malformed;
use super::counts::{Cause, Streams, Tally};
use super::crew;
use super::dial::{DialError, Dialler};
use super::message::{Instruction, Reason, Report};
use super::{Others, wire};
use crate::model::template::NodeAddresses;

/// Instructions that wait to be sent to one agent. If there are more the core asks later: it repeats what is not done.
const INSTRUCTIONS_MAX: usize = 64;
/// Reports of all agents that wait for the core. If there are more, the tasks that have them wait, and by HTTP/2 and their own
/// bounded queues the agents, which then begin again.
pub const HEARD_MAX: usize = 1024;

/// What an agent lets us know.
#[derive(Debug)]
pub struct Heard {
    /// Its node.
    pub node: Arc<str>,
    /// What.
    pub news: News,
}

/// See [`Heard`].
#[derive(Debug)]
pub enum News {
    /// Its stream is up; its greeting and all its tables follow. What was instructed before is to be instructed again.
    Up {
        /// Where to put instructions; full means later.
        instructions: mpsc::Sender<Instruction>,
    },
    /// It reports.
    Report(Report),
    /// Its stream has ended; another will come up if there is a way.
    Down,
}

/// Why a stream has ended.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("the stream has ended: {}", .0.message())]
    Call(Status),
    #[error("the other end has ended the stream")]
    Ended,
    #[error("there is no answer for {} s", .0.as_secs_f32())]
    Unanswered(Duration),
    #[error("it is the agent of {0}")]
    OtherNode(Arc<str>),
    #[error("a report can not be understood: {0}")]
    Malformed(#[from] Malformed),
    #[error("the manager is ending")]
    Closed,
}

impl Broken {
    fn cause(&self) -> Cause {
        match self {
            Self::Dial(error) => error.cause(),
            Self::Call(_) | Self::Ended | Self::Closed => Cause::Lost,
            Self::Unanswered(_) => Cause::Unanswered,
            Self::OtherNode(_) => Cause::Stranger(super::peer::Stranger::OtherNode),
            Self::Malformed(_) => Cause::Refused(Reason::Malformed),
        }
    }
}

/// Follows agents.
#[derive(Clone)]
pub struct ControlClient {
    /// How agents are dialled.
    pub dialler: Dialler,
    /// The core; see [`HEARD_MAX`].
    pub core: mpsc::Sender<Heard>,
    /// What is counted, by agent.
    pub tally: Tally<Streams>,
}

impl ControlClient {
    /// Follows these agents until stopped.
    pub async fn run(self, agents: watch::Receiver<Others>, stop: CancellationToken) {
        let begin = |node: Arc<str>, addresses, stop: CancellationToken| {
            let client = self.clone();
            async move {
                let follow = Box::pin(client.follow(&node, addresses));
                _ = stop.run_until_cancelled(follow).await;
                // One that was up when it was stopped is down now; the core may have gone itself.
                let was_up = client
                    .tally
                    .note(|streams| streams.remove(&node).is_some_and(|counts| counts.is_up));
                if was_up {
                    let news = News::Down;
                    _ = client.core.try_send(Heard { node, news });
                }
            }
        };
        crew::keep(agents, begin, stop).await;
    }

    async fn follow(&self, node: &Arc<str>, addresses: NodeAddresses) {
        let mut tls = self.dialler.tls.clone();
        let mut pauses = crew::pauses(&self.dialler.times);
        loop {
            tls.mark_unchanged();
            let broken = match self.talk(node, addresses).await {
                Ok(never) => match never {},
                Err(broken) => broken,
            };
            if self.tell(node, &broken) {
                pauses = crew::pauses(&self.dialler.times);
                if self.news(node, News::Down).await.is_err() {
                    return;
                }
            }
            let pause = pauses.next().unwrap_or(self.dialler.times.retry_max);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                Ok(()) = tls.changed() => {}
            }
        }
    }

    /// Whether the stream was up.
    fn tell(&self, node: &Arc<str>, broken: &Broken) -> bool {
        let fault = broken.to_string();
        let mut was_up = false;
        self.tally.stream(node, |counts| {
            if counts.is_up || counts.fault.as_ref() != Some(&fault) {
                tracing::info!(%node, %fault, was_up = counts.is_up, "agent is not heard; tried again");
            }
            was_up = std::mem::replace(&mut counts.is_up, false);
            *counts.ended.entry(broken.cause()).or_default() += 1;
            counts.fault = Some(fault);
        });
        was_up
    }

    async fn news(&self, node: &Arc<str>, news: News) -> Result<(), Broken> {
        let node = Arc::clone(node);
        let told = self.core.send(Heard { node, news }).await;
        told.map_err(|_| Broken::Closed)
    }

    async fn talk(
        &self,
        node: &Arc<str>,
        addresses: NodeAddresses,
    ) -> Result<std::convert::Infallible, Broken> {
        let mut call = self.dialler.dial(node, addresses).await?;
        let (instructions, mut told) = mpsc::channel::<Instruction>(INSTRUCTIONS_MAX);
        let messages = futures::stream::poll_fn(move |cx| {
            let next = told.poll_recv(cx);
            next.map(|told| told.map(|instruction| wire::Instruction::from(&instruction)))
        });
        let answer_max = self.dialler.times.answer_max;
        let begin = async {
            let mut reports = call
                .control(messages)
                .await
                .map_err(Broken::Call)?
                .into_inner();
            let hello = next(&mut reports).await?;
            Ok::<_, Broken>((reports, hello))
        };
        let (mut reports, hello) = tokio::time::timeout(answer_max, begin)
            .await
            .map_err(|_| Broken::Unanswered(answer_max))??;
        match &hello {
            Report::Hello { node: said, .. } if said == node => {}
            Report::Hello { node: said, .. } => return Err(Broken::OtherNode(Arc::clone(said))),
            Report::Applied { .. }
            | Report::RetireReady { .. }
            | Report::RetireRefused { .. }
            | Report::Drain(_)
            | Report::Pins { .. } => {
                return Err(Malformed::Unexpected("a report before the greeting").into());
            }
        }
        self.tally.stream(node, |counts| {
            counts.is_up = true;
            counts.connects += 1;
            counts.fault = None;
        });
        self.news(node, News::Up { instructions }).await?;
        self.news(node, News::Report(hello)).await?;
        loop {
            let report = next(&mut reports).await?;
            self.tally.stream(node, |counts| counts.records += 1);
            self.news(node, News::Report(report)).await?;
        }
    }
}

async fn next(reports: &mut Streaming<wire::Report>) -> Result<Report, Broken> {
    let told = reports.message().await.map_err(Broken::Call)?;
    Ok(told.ok_or(Broken::Ended)?.try_into()?)
}
