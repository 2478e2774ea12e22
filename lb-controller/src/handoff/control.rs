//! A manager's stream, at the agent: reports go, instructions come.

use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tonic::Streaming;

use super::convert::Malformed;
use super::message::{Instruction, Report};
use super::out::{End, Out};
use super::server::Arrival;
use super::wire;

/// Reports that wait to be sent: a change of as many tables at once. If there are more, the core drops the stream, and the
/// manager comes again and is told everything.
const REPORTS_MAX: usize = 4096;

/// The stream.
pub(super) struct Control {
    pub(super) stream: u64,
    pub(super) instructions: Streaming<wire::Instruction>,
    pub(super) out: Out<wire::Report>,
    /// Its place among managers.
    pub(super) place: OwnedSemaphorePermit,
}

impl Control {
    pub(super) async fn run(mut self) {
        let _streams = self.out.desk.streams();
        let stop = self.out.desk.stop.clone();
        _ = stop.run_until_cancelled(self.talk()).await;
        let ended = self.out.tell(Arrival::ManagerEnded {
            stream: self.stream,
        });
        _ = stop.run_until_cancelled(ended).await;
        drop(self.place);
    }

    async fn talk(&mut self) -> Result<(), End> {
        let (reports, mut changes) = mpsc::channel(REPORTS_MAX);
        let (first, told) = oneshot::channel();
        self.out
            .tell(Arrival::Manager {
                stream: self.stream,
                first,
                reports,
            })
            .await?;
        for report in told.await.map_err(|_| End)? {
            self.out.send(Ok((&report).into())).await?;
        }
        let Self {
            stream,
            instructions,
            out,
            place: _,
        } = self;
        tokio::select! {
            end = take(*stream, instructions, out) => end,
            end = give(&mut changes, out) => end,
            () = out.gone() => Err(End),
        }
    }
}

async fn take(
    stream: u64,
    instructions: &mut Streaming<wire::Instruction>,
    out: &Out<wire::Report>,
) -> Result<(), End> {
    loop {
        let told = out.next(instructions).await?;
        let instruction: Result<Instruction, Malformed> = told.try_into();
        match instruction {
            Ok(instruction) => {
                out.tell(Arrival::Instruction {
                    stream,
                    instruction,
                })
                .await?;
            }
            Err(why) => return Err(out.malformed(&why).await),
        }
    }
}

async fn give(changes: &mut mpsc::Receiver<Report>, out: &Out<wire::Report>) -> Result<(), End> {
    loop {
        // The core has let go of the stream.
        let report = changes.recv().await.ok_or(End)?;
        out.send(Ok((&report).into())).await?;
    }
}
