//! The calls of others, each a task that ends with the server: here the desk that begins them, and a writer's stream.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures::Stream;
use prost::Message as _;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};

use super::control::Control;
use super::convert::{Answer, Malformed, Told, records, to_ack};
use super::copying::Copying;
use super::counts::{Cause, Gauge, ServerCounts, Tally};
use super::link::Caller;
use super::message::{Reason, Refused};
use super::out::{End, Out};
use super::peer::{self, Stranger};
use super::server::Arrival;
use super::wire::handoff_server::Handoff;
use super::{Nodes, Times, wire};
use crate::model::pins::Incarnation;

/// Answers that wait to be sent; the writer has at most as many messages under way.
const ANSWERS_MAX: usize = 16;
/// Managers' streams at once: the leader's, a predecessor's, and a few that are not known to be dead.
const MANAGERS_MAX: usize = 4;
/// Copies given at once. Each holds one writer's pins a second time.
const COPIES_MAX: usize = 2;

/// What a call answers, as it comes.
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Begins a task for each call.
pub(super) struct Desk {
    nodes: watch::Receiver<Nodes>,
    pub(super) core: mpsc::Sender<Arrival>,
    pub(super) tally: Tally<ServerCounts>,
    pub(super) times: Times,
    pub(super) stop: CancellationToken,
    tasks: TaskTracker,
    writers: Mutex<BTreeMap<Arc<str>, Turn>>,
    managers: Arc<Semaphore>,
    copies: Arc<Semaphore>,
    streams: AtomicU64,
}

/// A writer's stream, of which there is one at a time.
#[derive(Clone, Debug)]
struct Turn {
    incarnation: Incarnation,
    end: CancellationToken,
    ended: CancellationToken,
}

impl Desk {
    pub(super) fn new(
        nodes: watch::Receiver<Nodes>,
        core: mpsc::Sender<Arrival>,
        tally: Tally<ServerCounts>,
        times: Times,
        stop: CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self {
            nodes,
            core,
            tally,
            times,
            stop,
            tasks: TaskTracker::new(),
            writers: Mutex::default(),
            managers: Arc::new(Semaphore::new(MANAGERS_MAX)),
            copies: Arc::new(Semaphore::new(COPIES_MAX)),
            streams: AtomicU64::new(0),
        })
    }

    /// Waits for all calls.
    pub(super) async fn end(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
        let caller = request.extensions().get::<Caller>();
        let caller = caller.ok_or_else(|| Status::internal("a connection without a caller"))?;
        caller.has_called.store(true, Ordering::Relaxed);
        Ok(caller.clone())
    }

    /// The node that an agent speaks for.
    pub(super) fn node(&self, caller: &Caller, said: &str) -> Result<Arc<str>, Status> {
        let found = peer::node_of(
            &caller.names,
            caller.address,
            said,
            &self.nodes.borrow().nodes,
        );
        found.map_err(|stranger| self.stranger(caller, said, stranger))
    }

    fn stranger(&self, caller: &Caller, said: &str, stranger: Stranger) -> Status {
        self.tally.refuse(Cause::Stranger(stranger));
        tracing::debug!(from = %caller.address, said, %stranger, "a peer is refused");
        Status::permission_denied(stranger.to_string())
    }

    fn busy(&self, what: &str) -> Status {
        self.tally.refuse(Cause::Busy);
        Status::resource_exhausted(format!(
            "there are as many {what} as there may be; try later"
        ))
    }

    pub(super) fn streams(&self) -> Gauge {
        Gauge::up(&self.tally, |counts| &mut counts.streams)
    }

    /// Takes the place of the writer's last stream, which has ended when this returns; unless that is of a later start of the
    /// agent.
    async fn turn(&self, writer: &Arc<str>, incarnation: Incarnation) -> Result<Turn, Refused> {
        let turn = Turn {
            incarnation,
            end: self.stop.child_token(),
            ended: CancellationToken::new(),
        };
        let before = {
            let mut writers = self.writers.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(now) = writers
                .get(writer)
                .filter(|now| now.incarnation > incarnation)
            {
                let (Incarnation(now), Incarnation(former)) = (now.incarnation, incarnation);
                return Err(Refused {
                    reason: Reason::Stale,
                    sentence: format!("start {former} of this agent has a successor, start {now}"),
                });
            }
            writers.insert(Arc::clone(writer), turn.clone())
        };
        if let Some(before) = before {
            before.end.cancel();
            before.ended.cancelled().await;
            self.tally.note(|counts| counts.replaced += 1);
        }
        Ok(turn)
    }

    /// The writer's stream has ended; its place stays only if it is another's already.
    fn leave(&self, writer: &Arc<str>, turn: &Turn) {
        let mut writers = self.writers.lock().unwrap_or_else(PoisonError::into_inner);
        // A place whose stream has been told to end has a successor, unless all end.
        if !turn.end.is_cancelled() {
            writers.remove(writer);
        }
    }
}

fn stream_of<T: Send + 'static>(mut told: mpsc::Receiver<Result<T, Status>>) -> Answers<T> {
    Box::pin(futures::stream::poll_fn(move |cx| told.poll_recv(cx)))
}

#[tonic::async_trait]
impl Handoff for Desk {
    type PinsStream = Answers<wire::PinAck>;
    type ControlStream = Answers<wire::Report>;
    type CopyStream = Answers<wire::CopyChunk>;

    async fn pins(
        self: Arc<Self>,
        request: Request<Streaming<wire::PinMessage>>,
    ) -> Result<Response<Self::PinsStream>, Status> {
        let caller = Self::caller(&request)?;
        let (answers, told) = mpsc::channel(ANSWERS_MAX);
        let session = Session {
            out: Out {
                answers,
                caller,
                desk: Arc::clone(&self),
            },
            messages: request.into_inner(),
        };
        self.tasks.spawn(session.run());
        Ok(Response::new(stream_of(told)))
    }

    async fn control(
        self: Arc<Self>,
        request: Request<Streaming<wire::Instruction>>,
    ) -> Result<Response<Self::ControlStream>, Status> {
        let caller = Self::caller(&request)?;
        if !peer::is_manager(&caller.names) {
            return Err(self.stranger(&caller, "", Stranger::NoManager));
        }
        let place = Arc::clone(&self.managers).try_acquire_owned();
        let place = place.map_err(|_| self.busy("managers"))?;
        let (answers, told) = mpsc::channel(ANSWERS_MAX);
        let control = Control {
            stream: self.streams.fetch_add(1, Ordering::Relaxed),
            instructions: request.into_inner(),
            out: Out {
                answers,
                caller,
                desk: Arc::clone(&self),
            },
            place,
        };
        self.tasks.spawn(control.run());
        Ok(Response::new(stream_of(told)))
    }

    async fn copy(
        self: Arc<Self>,
        request: Request<wire::CopyRequest>,
    ) -> Result<Response<Self::CopyStream>, Status> {
        let caller = Self::caller(&request)?;
        let node = self.node(&caller, &request.get_ref().node)?;
        let place = Arc::clone(&self.copies).try_acquire_owned();
        let place = place.map_err(|_| self.busy("copies"))?;
        let (answers, told) = mpsc::channel(ANSWERS_MAX);
        let copying = Copying {
            node,
            out: Out {
                answers,
                caller,
                desk: Arc::clone(&self),
            },
            place,
        };
        self.tasks.spawn(copying.run());
        Ok(Response::new(stream_of(told)))
    }
}

/// A writer's stream.
struct Session {
    out: Out<wire::PinAck>,
    messages: Streaming<wire::PinMessage>,
}

impl Session {
    async fn run(mut self) {
        let _streams = self.out.desk.streams();
        let stop = self.out.desk.stop.clone();
        let begin_max = self.out.desk.times.begin_max;
        let first = tokio::time::timeout(begin_max, self.out.next(&mut self.messages));
        let first = match stop.run_until_cancelled(first).await {
            Some(Ok(Ok(first))) => first,
            Some(Err(_)) => {
                self.out.desk.tally.refuse(Cause::Slow);
                return;
            }
            Some(Ok(Err(End))) | None => return,
        };
        let hello = match Told::try_from(first) {
            Ok(Told::Hello(hello)) => hello,
            Ok(Told::Message(_)) => {
                self.out
                    .malformed(&Malformed::Unexpected("a message before the greeting"))
                    .await;
                return;
            }
            Err(why) => {
                self.out.malformed(&why).await;
                return;
            }
        };
        let writer = match self.out.desk.node(&self.out.caller, &hello.node) {
            Ok(writer) => writer,
            Err(status) => {
                _ = self.out.send(Err(status)).await;
                return;
            }
        };
        let turn = match self
            .out
            .desk
            .turn(&writer, hello.position.incarnation)
            .await
        {
            Ok(turn) => turn,
            Err(refused) => {
                _ = self.pass_on(Err(refused)).await;
                return;
            }
        };
        let ended = turn.ended.clone().drop_guard();
        let talk = self.talk(&writer, hello);
        _ = turn.end.run_until_cancelled(talk).await;
        // The core hears of the end before it hears of a successor.
        let told = self.out.tell(Arrival::Ended {
            writer: Arc::clone(&writer),
        });
        _ = stop.run_until_cancelled(told).await;
        self.out.desk.leave(&writer, &turn);
        drop(ended);
    }

    async fn talk(&mut self, writer: &Arc<str>, hello: super::message::Hello) -> Result<(), End> {
        let (answer, told) = oneshot::channel();
        self.out
            .tell(Arrival::Hello {
                writer: Arc::clone(writer),
                hello,
                answer,
            })
            .await?;
        self.answer(told).await?;
        loop {
            let message = tokio::select! {
                message = self.out.next(&mut self.messages) => message?,
                () = self.out.gone() => return Err(End),
            };
            self.out.desk.tally.note(|counts| {
                counts.messages += 1;
                counts.records += records(&message);
                counts.bytes += message.encoded_len() as u64;
            });
            let message = match Told::try_from(message) {
                Ok(Told::Message(message)) => message,
                Ok(Told::Hello(_)) => {
                    let again = Malformed::Unexpected("a second greeting");
                    return Err(self.out.malformed(&again).await);
                }
                Err(why) => return Err(self.out.malformed(&why).await),
            };
            let (answer, told) = oneshot::channel();
            self.out
                .tell(Arrival::Message {
                    writer: Arc::clone(writer),
                    message,
                    answer,
                })
                .await?;
            self.answer(told).await?;
        }
    }

    /// Waits for the core's answer and passes it on.
    async fn answer(&self, told: oneshot::Receiver<Answer>) -> Result<(), End> {
        let answer = tokio::select! {
            answer = told => answer,
            () = self.out.gone() => return Err(End),
        };
        let silent = |_| {
            Err(Refused {
                reason: Reason::Unavailable,
                sentence: "the agent does not take pins now".to_owned(),
            })
        };
        self.pass_on(answer.unwrap_or_else(silent)).await
    }

    /// A refusal ends the stream: the writer comes again and learns where it is.
    async fn pass_on(&self, answer: Answer) -> Result<(), End> {
        self.out.send(Ok(to_ack(&answer))).await?;
        match answer {
            Ok(_) => Ok(()),
            Err(Refused { reason, sentence }) => {
                self.out.desk.tally.refuse(Cause::Refused(reason));
                tracing::debug!(from = %self.out.caller.address, sentence, "pins are refused");
                Err(End)
            }
        }
    }
}
