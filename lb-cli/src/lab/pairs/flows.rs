//! The flows that must outlive events that meet: long ones that speak often, long ones that hardly speak, UDP sessions, and
//! short ones that begin all the time.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::lab::load::{self, Way};
use crate::lab::run::Run;
use crate::lab::sessions::{Manner, Report, SILENCE_PROMISED, Sessions};
use crate::lab::ways::Mix;
use crate::lab::wire::Who;

/// Long TCP connections that speak several times a second. Fewer than in a scenario: there are many more runs.
const BUSY: usize = 200;
/// Long TCP connections that hardly speak.
const QUIET: usize = 200;
/// UDP sessions.
const DATAGRAMS: usize = 100;
/// TCP connections that begin each second, ask once, and end.
const SHORT_PER_SECOND: u32 = 50;
/// Failures of short flows that are kept, a few seconds of nothing else; all are counted.
const FAILURES_MAX: usize = 200;

/// What kind of flow one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Busy,
    Quiet,
    Datagrams,
    Short,
}

impl Kind {
    /// For people.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Busy => "busy TCP",
            Self::Quiet => "quiet TCP",
            Self::Datagrams => "UDP",
            Self::Short => "short TCP",
        }
    }
}

/// A short flow without an answer.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) way: Way,
    pub(super) begun: Instant,
    /// When the connection was open: from then on it had a pod.
    pub(super) open: Option<Instant>,
    pub(super) ended: Instant,
    pub(super) how: String,
}

/// What became of short flows.
#[derive(Clone, Debug, Default)]
pub(super) struct Short {
    pub(super) begun: u64,
    pub(super) failed: u64,
    /// The first of them.
    pub(super) failures: Vec<Failure>,
}

/// All flows of a run while they last.
#[derive(Debug)]
pub(super) struct Flows {
    long: [(Kind, Sessions); 3],
    short: JoinHandle<anyhow::Result<Short>>,
    stop: CancellationToken,
}

/// What became of all flows.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) long: Vec<(Kind, Report)>,
    pub(super) short: Short,
}

impl Flows {
    /// Opens the long ones, and begins with the short ones.
    pub(super) async fn open(run: &Run, seed: u64) -> anyhow::Result<Self> {
        let on = run.client.handle();
        let open = async |kind, mix, count, manner| {
            let ways: Vec<Way> = run.ways(mix).take(count).collect();
            anyhow::Ok((kind, Sessions::open(on, &ways, seed, manner).await?))
        };
        let long = [
            open(Kind::Busy, Mix::OnlyTcp, BUSY, Manner::PATIENT).await?,
            open(Kind::Quiet, Mix::OnlyTcp, QUIET, Manner::QUIET).await?,
            open(Kind::Datagrams, Mix::OnlyUdp, DATAGRAMS, Manner::PATIENT).await?,
        ];
        let stop = CancellationToken::new();
        let short = on.spawn(steady(run.ways(Mix::OnlyTcp), stop.clone()));
        Ok(Self { long, short, stop })
    }

    /// Nothing is promised to flows of these pods any more.
    pub(super) fn forsake(&self, pods: &BTreeSet<String>) {
        for (_, sessions) in &self.long {
            sessions.forsake(pods);
        }
    }

    /// Lets every long flow ask once more, and waits for all.
    pub(super) async fn close(self) -> anyhow::Result<Ended> {
        let Self { long, short, stop } = self;
        stop.cancel();
        let mut reports = Vec::new();
        for (kind, sessions) in long {
            let closed = sessions.close().await?.into_iter();
            reports.extend(closed.map(|report| (kind, report)));
        }
        let short = short.await.context("the short flows ended early")??;
        Ok(Ended {
            long: reports,
            short,
        })
    }
}

/// Begins short flows until told to stop.
async fn steady(ways: impl Iterator<Item = Way>, stop: CancellationToken) -> anyhow::Result<Short> {
    let mut flows = JoinSet::new();
    let mut short = Short::default();
    let mut tick = tokio::time::interval(Duration::from_secs(1) / SHORT_PER_SECOND);
    for way in ways {
        tokio::select! {
            () = stop.cancelled() => break,
            _ = tick.tick() => {}
        }
        flows.spawn(once(way));
        short.begun += 1;
        while let Some(ended) = flows.try_join_next() {
            short.note(ended.context("a short flow's task ended early")?);
        }
    }
    while let Some(ended) = flows.join_next().await {
        short.note(ended.context("a short flow's task ended early")?);
    }
    Ok(short)
}

impl Short {
    fn note(&mut self, ended: Result<(), Failure>) {
        if let Err(failure) = ended {
            self.failed += 1;
            if self.failures.len() < FAILURES_MAX {
                self.failures.push(failure);
            }
        }
    }
}

async fn once(way: Way) -> Result<(), Failure> {
    let begun = Instant::now();
    let mut open = None;
    let asked = tokio::time::timeout(SILENCE_PROMISED, ask(way, &mut open)).await;
    let how = match asked {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(error)) => format!("{error:#}"),
        Err(_) => format!("silent for {} s", SILENCE_PROMISED.as_secs()),
    };
    Err(Failure {
        way,
        begun,
        open,
        ended: Instant::now(),
        how,
    })
}

async fn ask(way: Way, open: &mut Option<Instant>) -> anyhow::Result<()> {
    let mut stream = BufStream::new(load::connect(way).await?);
    *open = Some(Instant::now());
    stream.write_all(b"who\n").await.context("write")?;
    stream.flush().await.context("write")?;
    let mut line = String::new();
    stream.read_line(&mut line).await.context("read")?;
    match Who::parse(&line) {
        Some(_) => Ok(()),
        None if line.is_empty() => bail!("closed by the pod"),
        None => bail!("odd answer {line:?}"),
    }
}
