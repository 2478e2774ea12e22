//! A copy of all pins for a node that joins, at the balancer that gives it: one writer after the other, so that the core is
//! never held up for long. What changes meanwhile comes by the writers' own streams.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tonic::Status;

use super::out::{End, Out};
use super::server::Arrival;
use super::{RECORDS_MAX, wire};

/// The call.
pub(super) struct Copying {
    pub(super) node: Arc<str>,
    pub(super) out: Out<wire::CopyChunk>,
    /// Its place among copies.
    pub(super) place: OwnedSemaphorePermit,
}

impl Copying {
    pub(super) async fn run(self) {
        let _streams = self.out.desk.streams();
        let stop = self.out.desk.stop.clone();
        _ = stop.run_until_cancelled(self.give()).await;
        drop(self.place);
    }

    async fn give(&self) -> Result<(), End> {
        let mut after = None;
        loop {
            let (answer, told) = oneshot::channel();
            self.out
                .tell(Arrival::Copy {
                    node: Arc::clone(&self.node),
                    after,
                    answer,
                })
                .await?;
            let gone = || Ok::<_, String>(Err("the agent is ending".to_owned()));
            let (writer, snapshot) = match told.await.or_else(|_| gone()) {
                Ok(Ok(Some(next))) => next,
                Ok(Ok(None)) => return Ok(()),
                Ok(Err(why)) | Err(why) => {
                    return self.out.send(Err(Status::unavailable(why))).await;
                }
            };
            for message in snapshot.messages(RECORDS_MAX) {
                let chunk = wire::CopyChunk {
                    writer: writer.to_string(),
                    message: Some((&message).into()),
                };
                self.out.send(Ok(chunk)).await?;
            }
            after = Some(writer);
        }
    }
}
