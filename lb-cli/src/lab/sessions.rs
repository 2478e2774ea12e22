//! Long connections: opened before a change, they ask their pod something now and then, and tell what became of them.
//!
//! A session is broken if it is reset, if its pod stays silent for longer than its [`Manner`] allows, or if another pod
//! answers.

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufStream};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::load::{self, Protocol, Way};
use super::wire::Who;

/// A datagram is asked again after this long.
const DATAGRAM_AGAIN: Duration = Duration::from_secs(1);

/// How a session asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Manner {
    /// Between two questions; random, so that sessions do not march in step.
    pause_ms: Range<u64>,
    /// Silence of a pod that counts as broken.
    silence_limit: Duration,
}

impl Manner {
    /// Often, so that a session meets every change. The promise is about silence of more than 30 s; scenarios are shorter
    /// than that, so the limit is stricter: a packet held back costs at most about two seconds (one retransmission more),
    /// and TCP's own timer has doubled to at most 6.4 s by then.
    pub(crate) const BUSY: Self = Self {
        pause_ms: 50..500,
        silence_limit: Duration::from_secs(10),
    };
    /// Often, and held to the promise by the word.
    pub(crate) const PATIENT: Self = Self {
        silence_limit: SILENCE_PROMISED,
        ..Self::BUSY
    };
    /// Hardly ever: such a session sleeps through most changes, and nobody has seen a packet of it since.
    pub(crate) const QUIET: Self = Self {
        pause_ms: 4_000..20_000,
        silence_limit: SILENCE_PROMISED,
    };
}

/// Longer silence is a break, as the README promises.
pub(crate) const SILENCE_PROMISED: Duration = Duration::from_secs(30);

/// How a session ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It goes on.
    Alive,
    /// It is broken; the sentence says how.
    Broken(String),
    /// Its pod has died, as [`Sessions::forsake`] was told.
    PodDied,
}

/// What a session tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Report {
    /// Between whom.
    pub(crate) way: Way,
    /// UID of its pod.
    pub(crate) pod: String,
    /// The pod's name, for people; whoever knows it fills it in.
    pub(crate) pod_name: String,
    /// Answers it got.
    pub(crate) answers: u64,
    /// Datagrams without an answer.
    pub(crate) lost: u64,
    /// The longest wait for an answer.
    pub(crate) longest_wait: Duration,
    /// When it asked last.
    pub(crate) asked: Instant,
    /// When it ended.
    pub(crate) ended: Instant,
    /// How it ended.
    pub(crate) end: End,
}

/// Open sessions.
#[derive(Debug)]
pub(crate) struct Sessions {
    tasks: JoinSet<Report>,
    stop: CancellationToken,
    /// UIDs of pods that have died.
    dead: watch::Sender<BTreeSet<String>>,
}

impl Sessions {
    /// Opens a session along each way, as tasks of a runtime; fails if one cannot be opened.
    pub(crate) async fn open(
        on: &Handle,
        ways: &[Way],
        seed: u64,
        manner: Manner,
    ) -> anyhow::Result<Self> {
        let stop = CancellationToken::new();
        let (dead, is_dead) = watch::channel(BTreeSet::new());
        let mut opening = JoinSet::new();
        for (way, seed) in ways.iter().copied().zip(seed..) {
            opening.spawn_on(Session::open(way, seed, manner.clone()), on);
        }
        let mut tasks = JoinSet::new();
        while let Some(session) = opening.join_next().await {
            let session = session.context("a session's task ended early")??;
            tasks.spawn_on(session.run(stop.clone(), is_dead.clone()), on);
        }
        Ok(Self { tasks, stop, dead })
    }

    /// Ends the sessions of pods that are about to die: nothing is promised to them.
    pub(crate) fn forsake(&self, pods: &BTreeSet<String>) {
        self.dead
            .send_modify(|dead| dead.extend(pods.iter().cloned()));
    }

    /// Lets every session ask once more, ends them, and returns what they tell.
    pub(crate) async fn close(mut self) -> anyhow::Result<Vec<Report>> {
        self.stop.cancel();
        let mut reports = Vec::new();
        while let Some(report) = self.tasks.join_next().await {
            reports.push(report.context("a session's task ended early")?);
        }
        Ok(reports)
    }
}

enum Line {
    Tcp(BufStream<tokio::net::TcpStream>),
    Udp(tokio::net::UdpSocket),
}

struct Session {
    line: Line,
    manner: Manner,
    random: StdRng,
    asked: u64,
    report: Report,
}

impl Session {
    async fn open(way: Way, seed: u64, manner: Manner) -> anyhow::Result<Self> {
        let opening = async {
            anyhow::Ok(match way.protocol {
                Protocol::Tcp => Line::Tcp(BufStream::new(load::connect(way).await?)),
                Protocol::Udp => Line::Udp(load::datagrams(way).await?),
            })
        };
        let line = tokio::time::timeout(manner.silence_limit, opening).await;
        let line = line.with_context(|| format!("{} does not answer", way.to))??;
        let report = Report {
            way,
            pod: String::new(),
            pod_name: String::new(),
            answers: 0,
            lost: 0,
            longest_wait: Duration::ZERO,
            asked: Instant::now(),
            ended: Instant::now(),
            end: End::Alive,
        };
        let mut session = Self {
            line,
            manner,
            random: StdRng::seed_from_u64(seed),
            asked: 0,
            report,
        };
        // The first answer tells whose session it is.
        session
            .ask()
            .await
            .with_context(|| format!("open a session to {}", way.to))?;
        session.report.longest_wait = Duration::ZERO;
        Ok(session)
    }

    async fn run(
        mut self,
        stop: CancellationToken,
        mut dead: watch::Receiver<BTreeSet<String>>,
    ) -> Report {
        let pod = self.report.pod.clone();
        let end = tokio::select! {
            end = self.ask_until(stop) => end,
            Ok(_) = dead.wait_for(|dead| dead.contains(&pod)) => End::PodDied,
        };
        let ended = Instant::now();
        Report {
            ended,
            end,
            ..self.report
        }
    }

    async fn ask_until(&mut self, stop: CancellationToken) -> End {
        loop {
            let pause = self.random.random_range(self.manner.pause_ms.clone());
            let pause = Duration::from_millis(pause);
            let last = tokio::time::timeout(pause, stop.cancelled()).await.is_ok();
            if let Err(error) = self.ask().await {
                return End::Broken(format!("{error:#}"));
            }
            if last {
                return End::Alive;
            }
        }
    }

    /// Asks, and waits for the answer of the same pod.
    async fn ask(&mut self) -> anyhow::Result<()> {
        self.asked += 1;
        let started = Instant::now();
        self.report.asked = started;
        let answer = tokio::time::timeout(self.manner.silence_limit, async {
            match &mut self.line {
                Line::Tcp(stream) => ask_tcp(stream, self.asked).await,
                Line::Udp(socket) => ask_udp(socket, self.asked, &mut self.report.lost).await,
            }
        });
        let Ok(answer) = answer.await else {
            bail!("silent for {} s", self.manner.silence_limit.as_secs());
        };
        let pod = answer?;
        let report = &mut self.report;
        report.longest_wait = report.longest_wait.max(started.elapsed());
        if report.pod.is_empty() {
            report.pod = pod;
        } else {
            ensure!(
                report.pod == pod,
                "another pod answers: {pod} instead of {}",
                report.pod
            );
        }
        report.answers += 1;
        Ok(())
    }
}

/// The UID of the pod that answers.
async fn ask_tcp(
    stream: &mut BufStream<tokio::net::TcpStream>,
    number: u64,
) -> anyhow::Result<String> {
    stream
        .write_all(format!("ping {number}\n").as_bytes())
        .await
        .context("write")?;
    stream.flush().await.context("write")?;
    let mut line = String::new();
    ensure!(
        stream.read_line(&mut line).await.context("read")? > 0,
        "closed by the pod"
    );
    let uid = line.trim_end().strip_prefix(&format!("pong {number} "));
    Ok(uid
        .with_context(|| format!("odd answer {line:?}"))?
        .to_owned())
}

/// The UID of the pod that answers; asks again when a datagram is lost.
async fn ask_udp(
    socket: &tokio::net::UdpSocket,
    number: u64,
    lost: &mut u64,
) -> anyhow::Result<String> {
    let mut buffer = [0; 512];
    loop {
        socket
            .send(format!("{number}").as_bytes())
            .await
            .context("send")?;
        let Ok(received) = tokio::time::timeout(DATAGRAM_AGAIN, socket.recv(&mut buffer)).await
        else {
            *lost += 1;
            continue;
        };
        let text = String::from_utf8_lossy(&buffer[..received.context("receive")?]).into_owned();
        let (count, who) = text
            .split_once(' ')
            .with_context(|| format!("odd answer {text:?}"))?;
        // A late answer to an earlier question.
        if count == number.to_string() {
            return Ok(Who::parse(who)
                .with_context(|| format!("odd answer {text:?}"))?
                .uid);
        }
    }
}
