//! Long connections: opened before a change, they ask their pod something now and then, and tell what became of them.
//!
//! A session is broken if it is reset, if its pod stays silent for [`SILENCE_LIMIT`], or if another pod answers. The
//! promise is about silence of more than 30 s; runs here are shorter than that, so the limit is stricter.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufStream};
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::load::{self, Protocol, Way};
use super::wire::Who;

/// Silence of a pod that counts as broken. A packet held back costs at most about two seconds (one retransmission more),
/// and TCP's own timer has doubled to at most 6.4 s by then.
pub(crate) const SILENCE_LIMIT: Duration = Duration::from_secs(10);
/// A datagram is asked again after this long.
const DATAGRAM_AGAIN: Duration = Duration::from_secs(1);
/// Between two questions: short, so that a session meets every change; random, so that sessions do not march in step.
const PAUSE_MS: std::ops::Range<u64> = 50..500;

/// How a session ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It goes on.
    Alive,
    /// It is broken; the sentence says how.
    Broken(String),
}

/// What a session tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Report {
    /// TCP or UDP.
    pub(crate) protocol: Protocol,
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
    /// How it ended.
    pub(crate) end: End,
}

/// Open sessions.
#[derive(Debug)]
pub(crate) struct Sessions {
    tasks: JoinSet<Report>,
    stop: CancellationToken,
}

impl Sessions {
    /// Opens a session along each way, as tasks of a runtime; fails if one cannot be opened.
    pub(crate) async fn open(on: &Handle, ways: &[Way], seed: u64) -> anyhow::Result<Self> {
        let stop = CancellationToken::new();
        let mut opening = JoinSet::new();
        for (way, seed) in ways.iter().copied().zip(seed..) {
            opening.spawn_on(Session::open(way, seed), on);
        }
        let mut tasks = JoinSet::new();
        while let Some(session) = opening.join_next().await {
            let session = session.context("a session's task ended early")??;
            tasks.spawn_on(session.run(stop.clone()), on);
        }
        Ok(Self { tasks, stop })
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
    random: StdRng,
    asked: u64,
    report: Report,
}

impl Session {
    async fn open(way: Way, seed: u64) -> anyhow::Result<Self> {
        let opening = async {
            anyhow::Ok(match way.protocol {
                Protocol::Tcp => Line::Tcp(BufStream::new(load::connect(way).await?)),
                Protocol::Udp => Line::Udp(load::datagrams(way).await?),
            })
        };
        let line = tokio::time::timeout(SILENCE_LIMIT, opening).await;
        let line = line.with_context(|| format!("{} does not answer", way.to))??;
        let report = Report {
            protocol: way.protocol,
            pod: String::new(),
            pod_name: String::new(),
            answers: 0,
            lost: 0,
            longest_wait: Duration::ZERO,
            end: End::Alive,
        };
        let mut session = Self {
            line,
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

    async fn run(mut self, stop: CancellationToken) -> Report {
        loop {
            let pause = Duration::from_millis(self.random.random_range(PAUSE_MS));
            let last = tokio::time::timeout(pause, stop.cancelled()).await.is_ok();
            if let Err(error) = self.ask().await {
                self.report.end = End::Broken(format!("{error:#}"));
                return self.report;
            }
            if last {
                return self.report;
            }
        }
    }

    /// Asks, and waits for the answer of the same pod.
    async fn ask(&mut self) -> anyhow::Result<()> {
        self.asked += 1;
        let started = Instant::now();
        let answer = tokio::time::timeout(SILENCE_LIMIT, async {
            match &mut self.line {
                Line::Tcp(stream) => ask_tcp(stream, self.asked).await,
                Line::Udp(socket) => ask_udp(socket, self.asked, &mut self.report.lost).await,
            }
        });
        let Ok(answer) = answer.await else {
            bail!("silent for {} s", SILENCE_LIMIT.as_secs());
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
