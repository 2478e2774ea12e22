//! A node that joins takes a copy of all pins from a balancer that is ready. The copy is a snapshot of every writer, so the
//! receiver takes it in as it takes theirs.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tonic::Status;

use super::convert::{Malformed, Told};
use super::dial::{DialError, Dialler};
use super::wire;
use crate::model::pins::Message;
use crate::model::template::NodeAddresses;

/// Messages of a copy that wait for the core. If there are more, the balancer that gives it waits.
pub const COPIED_MAX: usize = 16;

/// Why there is no copy, or only a part of one. Another balancer may have it.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// No connection.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The balancer does not give it, or not to its end.
    #[error("the copy has ended early: {}", .0.message())]
    Call(Status),
    /// Nothing comes.
    #[error("nothing has come for {} s", .0.as_secs_f32())]
    Silent(Duration),
    /// What comes makes no sense.
    #[error("the copy can not be understood: {0}")]
    Malformed(#[from] Malformed),
    /// Nobody wants it any more.
    #[error("the agent is ending")]
    Closed,
}

/// Takes a copy from one balancer. Dropping it ends it.
#[derive(Clone)]
pub struct CopyClient {
    /// This node.
    pub node: Arc<str>,
    /// How it is dialled.
    pub dialler: Dialler,
}

impl CopyClient {
    /// Gives each writer's snapshot to the core, message by message; see [`COPIED_MAX`]. Answers how many writers there were,
    /// once all is given.
    pub async fn run(
        &self,
        balancer: &str,
        addresses: NodeAddresses,
        core: mpsc::Sender<(Arc<str>, Message)>,
    ) -> Result<u64, CopyError> {
        let mut call = self.dialler.dial(balancer, addresses).await?;
        let silent_max = self.dialler.times.answer_max;
        let silent = |_| CopyError::Silent(silent_max);
        let request = wire::CopyRequest {
            node: self.node.to_string(),
        };
        let chunks = tokio::time::timeout(silent_max, call.copy(request)).await;
        let mut chunks = chunks
            .map_err(silent)?
            .map_err(CopyError::Call)?
            .into_inner();
        let mut writers = 0;
        loop {
            let chunk = tokio::time::timeout(silent_max, chunks.message()).await;
            let Some(chunk) = chunk.map_err(silent)?.map_err(CopyError::Call)? else {
                return Ok(writers);
            };
            let message = chunk.message.ok_or(Malformed::Missing("a message"))?;
            let Told::Message(message) = message.try_into()? else {
                return Err(Malformed::Unexpected("a greeting").into());
            };
            writers += u64::from(message == Message::SnapshotEnd);
            let told = core.send((chunk.writer.into(), message)).await;
            told.map_err(|_| CopyError::Closed)?;
        }
    }
}
