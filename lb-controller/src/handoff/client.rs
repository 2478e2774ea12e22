//! Tells this node's pins to every balancer: one task and one connection for each. A stream begins where the balancer is, and
//! whatever ends it, the next one does the same; so nothing is lost and nothing has to be remembered here.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prost::Message as _;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::convert::{Malformed, answer, records};
use super::counts::{Cause, Streams, Tally};
use super::crew;
use super::dial::{DialError, Dialler};
use super::message::{Hello, Reason, Refused};
use super::outbox::{Outbox, Told};
use super::pace::Pace;
use super::wire::{self, handoff_client::HandoffClient};
use super::{Others, RECORDS_MAX, Times};
use crate::model::pins::{Batch, Message, Position, Seq, Snapshot};
use crate::model::template::NodeAddresses;

/// Messages under way without an answer. Enough to keep a wire of a millisecond busy; a balancer that is slow gets no more,
/// and what it does not get stays in the writer's log, which is bounded itself.
const UNANSWERED_MAX: usize = 8;

/// Why a stream has ended.
#[derive(Debug, thiserror::Error)]
enum Broken {
    /// It never began.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The call has ended.
    #[error("the stream has ended: {}", .0.message())]
    Call(Status),
    /// The other end has ended it.
    #[error("the other end has ended the stream")]
    Ended,
    /// Nothing is heard.
    #[error("there is no answer for {} s", .0.as_secs_f32())]
    Unanswered(Duration),
    /// The balancer does not take what it is told.
    #[error("the balancer refuses pins: {0}")]
    Refused(Refused),
    /// What is answered makes no sense.
    #[error("an answer can not be understood: {0}")]
    Malformed(#[from] Malformed),
}

impl Broken {
    fn cause(&self) -> Cause {
        match self {
            Self::Dial(error) => error.cause(),
            Self::Call(_) | Self::Ended => Cause::Lost,
            Self::Unanswered(_) => Cause::Unanswered,
            Self::Refused(refused) => Cause::Refused(refused.reason),
            Self::Malformed(_) => Cause::Refused(Reason::Malformed),
        }
    }
}

/// Tells pins.
#[derive(Clone)]
pub struct Client {
    /// This node.
    pub node: Arc<str>,
    /// How balancers are dialled.
    pub dialler: Dialler,
    /// This node's pins.
    pub outbox: Arc<Outbox>,
    /// What is counted, by balancer.
    pub tally: Tally<Streams>,
}

impl Client {
    /// Tells `balancers` until stopped; this node, should it be among them, needs no stream.
    pub async fn run(self, balancers: watch::Receiver<Others>, stop: CancellationToken) {
        let begin = |balancer: Arc<str>, addresses, stop: CancellationToken| {
            let client = self.clone();
            async move {
                if balancer == client.node {
                    return;
                }
                let tally = client.tally.clone();
                let follow = Box::pin(client.follow(&balancer, addresses));
                _ = stop.run_until_cancelled(follow).await;
                tally.note(|streams| streams.remove(&balancer));
            }
        };
        crew::keep(balancers, begin, stop).await;
    }

    /// Tells one balancer, again and again.
    async fn follow(self, balancer: &Arc<str>, addresses: NodeAddresses) {
        let mut tls = self.dialler.tls.clone();
        let mut pauses = crew::pauses(&self.dialler.times);
        loop {
            tls.mark_unchanged();
            let mut has_answered = false;
            let broken = match self.talk(balancer, addresses, &mut has_answered).await {
                Ok(never) => match never {},
                Err(broken) => broken,
            };
            self.tell(balancer, &broken);
            if has_answered {
                pauses = crew::pauses(&self.dialler.times);
            }
            let pause = pauses.next().unwrap_or(self.dialler.times.retry_max);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                // Keys and certificates that are there now may be what was wrong.
                Ok(()) = tls.changed() => {}
            }
        }
    }

    fn tell(&self, balancer: &Arc<str>, broken: &Broken) {
        let fault = broken.to_string();
        self.tally.stream(balancer, |counts| {
            if counts.is_up || counts.fault.as_ref() != Some(&fault) {
                tracing::info!(%balancer, %fault, was_up = counts.is_up, "pins are not told; tried again");
            }
            counts.is_up = false;
            counts.unanswered = 0;
            *counts.ended.entry(broken.cause()).or_default() += 1;
            counts.fault = Some(fault);
        });
    }

    async fn talk(
        &self,
        balancer: &Arc<str>,
        addresses: NodeAddresses,
        has_answered: &mut bool,
    ) -> Result<std::convert::Infallible, Broken> {
        let mut call: HandoffClient<_> = self.dialler.dial(balancer, addresses).await?;
        // One place more than messages without an answer, so sending never waits.
        let (out, mut told) = mpsc::channel(UNANSWERED_MAX + 1);
        let messages = futures::stream::poll_fn(move |cx| told.poll_recv(cx));
        let mut stream = Stream {
            client: self,
            balancer,
            out,
            told: self.outbox.follow(),
            next: None,
            snapshot: None,
            unanswered: VecDeque::new(),
            pace: Pace::default(),
        };
        let written = stream.told.borrow_and_update().written;
        let hello = Hello {
            node: Arc::clone(&self.node),
            position: written,
            acknowledged: self.outbox.with(|writer| writer.balancer(balancer)),
        };
        stream.send((&hello).into())?;
        let answer_max = self.dialler.times.answer_max;
        let begin = async {
            let mut answers = call
                .pins(messages)
                .await
                .map_err(Broken::Call)?
                .into_inner();
            let held = stream.answer(answers.message().await)?;
            Ok::<_, Broken>((answers, held))
        };
        let (mut answers, held) = tokio::time::timeout(answer_max, begin)
            .await
            .map_err(|_| Broken::Unanswered(answer_max))??;
        *has_answered = true;
        self.tally.stream(balancer, |counts| {
            counts.is_up = true;
            counts.connects += 1;
            counts.fault = None;
        });
        tracing::info!(%balancer, held = held.map(tracing::field::display), "pins are told");
        stream.next = held;
        stream.run(&mut answers).await
    }
}

/// A snapshot that is being told.
struct Telling {
    snapshot: Arc<Snapshot>,
    /// Messages told.
    at: usize,
}

impl Telling {
    /// The next message: begin, chunks, end.
    fn next(&mut self) -> Option<Message> {
        let Self { snapshot, at } = self;
        let chunks = snapshot.pins.len().div_ceil(RECORDS_MAX);
        let told = *at;
        *at += 1;
        match told {
            0 => Some(Message::SnapshotBegin {
                position: snapshot.position,
            }),
            n if n <= chunks => {
                let from = (n - 1) * RECORDS_MAX;
                let to = (from + RECORDS_MAX).min(snapshot.pins.len());
                Some(Message::SnapshotChunk {
                    pins: snapshot.pins[from..to].to_vec(),
                })
            }
            n if n == chunks + 1 => Some(Message::SnapshotEnd),
            _ => None,
        }
    }
}

/// A stream that has been greeted.
struct Stream<'a> {
    client: &'a Client,
    balancer: &'a Arc<str>,
    out: mpsc::Sender<wire::PinMessage>,
    told: watch::Receiver<Told>,
    /// Up to where it was told; none: it needs a snapshot.
    next: Option<Position>,
    snapshot: Option<Telling>,
    /// When each message without an answer was sent.
    unanswered: VecDeque<Instant>,
    pace: Pace,
}

impl Stream<'_> {
    async fn run(
        &mut self,
        answers: &mut Streaming<wire::PinAck>,
    ) -> Result<std::convert::Infallible, Broken> {
        let Times { answer_max, .. } = self.client.dialler.times;
        loop {
            let due = self.send_due()?;
            let late = self.unanswered.front().map(|sent| *sent + answer_max);
            let wake = [due, late].into_iter().flatten().min();
            let woken = async {
                match wake {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                told = answers.message() => {
                    self.answer(told)?;
                }
                changed = self.told.changed() => {
                    // We hold the sender ourselves.
                    _ = changed;
                }
                () = woken => {
                    if late.is_some_and(|late| late <= Instant::now()) {
                        return Err(Broken::Unanswered(answer_max));
                    }
                }
            }
        }
    }

    /// Sends what is to be sent now. Answers when the rest is due; never, if answers must come first.
    fn send_due(&mut self) -> Result<Option<Instant>, Broken> {
        while self.unanswered.len() < UNANSWERED_MAX {
            if let Some(message) = self.snapshot.as_mut().and_then(Telling::next) {
                self.send((&message).into())?;
                continue;
            }
            self.snapshot = None;
            let now = Instant::now();
            match self.due(now) {
                None => return Ok(None),
                Some(at) if at > now => return Ok(Some(at)),
                Some(_) => {}
            }
            self.pace.sent();
            match self.client.outbox.read(self.next, RECORDS_MAX) {
                Batch::Nothing => {
                    // It was told that there is more than there is: what the balancer has is all.
                    self.next = Some(self.told.borrow().written);
                    return Ok(None);
                }
                Batch::Records(message) => {
                    self.next = last(&message).or(self.next);
                    self.send((&message).into())?;
                }
                Batch::Snapshot(snapshot) => {
                    self.next = Some(snapshot.position);
                    self.snapshot = Some(Telling { snapshot, at: 0 });
                    self.client
                        .tally
                        .stream(self.balancer, |counts| counts.snapshots += 1);
                }
            }
        }
        Ok(None)
    }

    fn due(&mut self, now: Instant) -> Option<Instant> {
        let Told { written, draining } = *self.told.borrow_and_update();
        let times = &self.client.dialler.times;
        let flush = if draining {
            times.flush_draining
        } else {
            times.flush
        };
        let behind = match self.next {
            Some(next) if next.incarnation == written.incarnation => {
                written.seq.0.abs_diff(next.seq.0)
            }
            // A snapshot does not wait.
            Some(_) | None => RECORDS_MAX as u64,
        };
        self.pace.due(behind, flush, now)
    }

    fn send(&mut self, message: wire::PinMessage) -> Result<(), Broken> {
        let (count, bytes) = (records(&message), message.encoded_len() as u64);
        self.out.try_send(message).map_err(|_| Broken::Ended)?;
        self.unanswered.push_back(Instant::now());
        self.client.tally.stream(self.balancer, |counts| {
            counts.records += count;
            counts.bytes += bytes;
            counts.unanswered += 1;
        });
        Ok(())
    }

    /// Takes an answer in. Answers what the balancer holds.
    fn answer(
        &mut self,
        told: Result<Option<wire::PinAck>, Status>,
    ) -> Result<Option<Position>, Broken> {
        let told = told.map_err(Broken::Call)?.ok_or(Broken::Ended)?;
        let held = answer(told)?.map_err(Broken::Refused)?;
        if self.unanswered.pop_front().is_none() {
            return Err(Malformed::Unexpected("an answer to nothing").into());
        }
        self.client
            .tally
            .stream(self.balancer, |counts| counts.unanswered -= 1);
        if let Some(held) = held {
            self.client.outbox.acknowledged(self.balancer, held);
        }
        Ok(held)
    }
}

/// Position of the last change in a message.
fn last(message: &Message) -> Option<Position> {
    match message {
        Message::Records { first, changes } => Some(Position {
            seq: Seq(first.seq.0 + changes.len() as u64 - 1),
            ..*first
        }),
        Message::SnapshotBegin { .. } | Message::SnapshotChunk { .. } | Message::SnapshotEnd => {
            None
        }
    }
}
