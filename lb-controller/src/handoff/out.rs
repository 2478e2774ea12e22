//! One call, as the task behind it sees it: what the peer says, what it is told, and what goes to the core.

use std::sync::Arc;

use tokio::sync::mpsc;
use tonic::{Code, Status, Streaming};

use super::convert::Malformed;
use super::counts::Cause;
use super::link::Caller;
use super::message::Reason;
use super::server::Arrival;
use super::session::Desk;

/// What is sent back in one call.
pub(super) struct Out<T> {
    pub(super) answers: mpsc::Sender<Result<T, Status>>,
    pub(super) caller: Caller,
    pub(super) desk: Arc<Desk>,
}

/// A call has come to its end.
pub(super) struct End;

impl<T> Out<T> {
    /// Sends; a peer that does not take it in time loses its connection, since HTTP/2 would keep what it was not sent.
    pub(super) async fn send(&self, answer: Result<T, Status>) -> Result<(), End> {
        let unread_max = self.desk.times.unread_max;
        match self.answers.send_timeout(answer, unread_max).await {
            Ok(()) => Ok(()),
            Err(mpsc::error::SendTimeoutError::Closed(_)) => Err(End),
            Err(mpsc::error::SendTimeoutError::Timeout(_)) => {
                self.desk.tally.refuse(Cause::Unread);
                self.caller.close.cancel();
                Err(End)
            }
        }
    }

    /// The next message of the peer.
    pub(super) async fn next<M>(&self, messages: &mut Streaming<M>) -> Result<M, End> {
        match messages.message().await {
            Ok(Some(message)) => Ok(message),
            Ok(None) => Err(End),
            Err(status) => {
                match status.code() {
                    // What tonic says of a message that is larger than it may be.
                    Code::OutOfRange => self.desk.tally.refuse(Cause::TooLarge),
                    // … and of bytes that are none.
                    Code::Internal => {
                        self.desk.tally.refuse(Cause::Refused(Reason::Malformed));
                    }
                    _ => {}
                }
                // The peer is told if it is still there.
                _ = self.send(Err(status)).await;
                Err(End)
            }
        }
    }

    /// Tells that something can not be understood.
    pub(super) async fn malformed(&self, why: &Malformed) -> End {
        let cause = Cause::Refused(Reason::Malformed);
        self.desk.tally.refuse(cause);
        _ = self
            .send(Err(Status::invalid_argument(why.to_string())))
            .await;
        End
    }

    /// Ends when nobody waits for answers any more: the connection has ended.
    pub(super) async fn gone(&self) {
        self.answers.closed().await;
    }

    /// Gives something to the core. It waits while the core's queue is full, and the peer with it.
    pub(super) async fn tell(&self, arrival: Arrival) -> Result<(), End> {
        self.desk.core.send(arrival).await.map_err(|_| End)
    }
}
