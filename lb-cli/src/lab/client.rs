//! `lbctl lab-client`: the client's side of a test on a real cluster. Goes on until its standard input ends, then prints
//! what happened as one line of JSON. Knows servers of [`super::wire`] and no cluster.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde::Serialize;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::load::{self, Protocol, Stream, Tally, Way};
use super::segments::Segments;
use super::server::raise_file_limit;
use super::sessions::{End, Manner, Sessions};
use crate::Outcome;

/// Arguments of `lbctl lab-client`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
    /// VIPs with ports, taken in turn.
    #[arg(long, required = true, value_delimiter = ',')]
    to: Vec<SocketAddr>,
    /// Addresses of our own, taken in turn; those of the kernel's choice if not given.
    #[arg(long, value_delimiter = ',')]
    from: Vec<IpAddr>,
    /// UDP instead of TCP.
    #[arg(long)]
    udp: bool,
}

#[derive(Clone, Copy, Debug, clap::Subcommand)]
enum What {
    /// Open so many connections a second, each answered once.
    Steady {
        /// Connections a second.
        #[arg(long, default_value_t = 500)]
        per_second: u32,
    },
    /// Open so many connections, several at a time, each answered once, and move bytes both ways on some more.
    Many {
        /// Connections.
        #[arg(long, default_value_t = 6_000)]
        count: usize,
        /// Megabytes that each of the transfers moves, each way.
        #[arg(long, default_value_t = 8)]
        megabytes: u64,
    },
    /// Send so many numbered datagrams a second from one socket, and count those without an answer; with `--udp`.
    Stream {
        /// Datagrams a second.
        #[arg(long, default_value_t = 500)]
        per_second: u32,
    },
    /// Try at short intervals, and say when it worked and when it did not; the first success is told at once.
    Probe {
        /// Milliseconds between two tries.
        #[arg(long, default_value_t = 10)]
        every_ms: u64,
        /// A try without an answer by then has failed.
        #[arg(long, default_value_t = 300)]
        limit_ms: u64,
    },
    /// Hold so many connections open, and ask on each now and then.
    Sessions {
        /// Connections.
        #[arg(long, default_value_t = 100)]
        count: usize,
    },
}

/// Reasons that are kept word for word, for each pod.
const REASONS_MAX: usize = 2;
/// Transfers at the same time.
const TRANSFERS: usize = 8;

/// Does it.
pub(crate) fn run(args: &Args) -> anyhow::Result<Outcome> {
    raise_file_limit();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let ways = ways(args)?;
    runtime.context("start a runtime")?.block_on(async {
        let stop = CancellationToken::new();
        let ended = stop.clone();
        // Not joined: it may wait for ever if we end for another reason.
        std::thread::spawn(move || {
            // Nothing is expected but the end.
            let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
            ended.cancel();
        });
        match args.what {
            What::Many { count, megabytes } => say(&many(&ways, count, megabytes << 20).await?)?,
            What::Stream { per_second } => {
                let way = *ways.first().context("no way to send along")?;
                let Stream { sent, lost } = load::stream(way, per_second, stop).await?;
                say(&serde_json::json!({ "sent": sent, "lost": lost }))?;
            }
            What::Steady { per_second } => {
                let tally = load::steady(ways.iter().copied().cycle(), per_second, stop).await?;
                say(&Steady::from(tally))?;
            }
            What::Probe { every_ms, limit_ms } => {
                let every = Duration::from_millis(every_ms.max(1));
                say(&probe(&ways, every, Duration::from_millis(limit_ms), stop).await?)?;
            }
            What::Sessions { count } => {
                let ways: Vec<Way> = ways.iter().copied().cycle().take(count).collect();
                let here = tokio::runtime::Handle::current();
                let sessions = Sessions::open(&here, &ways, 1, Manner::BUSY).await?;
                say(&serde_json::json!({ "open": count }))?;
                stop.cancelled().await;
                say(&held(sessions.close().await?))?;
            }
        }
        anyhow::Ok(())
    })?;
    Ok(Outcome::Well)
}

fn ways(args: &Args) -> anyhow::Result<Vec<Way>> {
    let mut ways = Vec::new();
    for to in &args.to {
        let mut own: Vec<IpAddr> = args
            .from
            .iter()
            .copied()
            .filter(|from| from.is_ipv4() == to.is_ipv4())
            .collect();
        if args.from.is_empty() {
            own.push(if to.is_ipv4() {
                [0; 4].into()
            } else {
                [0_u16; 8].into()
            });
        }
        ensure!(
            !own.is_empty(),
            "no address of --from is of the family of {to}"
        );
        ways.extend(own.into_iter().map(|from| Way {
            protocol: if args.udp {
                Protocol::Udp
            } else {
                Protocol::Tcp
            },
            from: SocketAddr::new(from, 0),
            to: *to,
        }));
    }
    Ok(ways)
}

fn say(value: &impl Serialize) -> anyhow::Result<()> {
    let line = serde_json::to_string(value).context("write JSON")?;
    writeln!(std::io::stdout(), "{line}").context("write to standard output")
}

/// What became of short connections.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Steady {
    connections: u64,
    failed: u64,
    address_changed: u64,
    pods: usize,
    reasons: Vec<String>,
}

impl From<Tally> for Steady {
    fn from(tally: Tally) -> Self {
        Self {
            connections: tally.connections,
            failed: tally.failed,
            address_changed: tally.address_changed,
            pods: tally.by_pod.len(),
            reasons: tally.reasons,
        }
    }
}

/// What became of many short connections, and of transfers beside them.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Many {
    #[serde(flatten)]
    short: Steady,
    bytes: u64,
    segments: u64,
    retransmits: u64,
}

async fn many(ways: &[Way], count: usize, bytes: u64) -> anyhow::Result<Many> {
    let before = Segments::here()?;
    let cycle = || ways.iter().copied().cycle();
    let mut transfers = JoinSet::new();
    for way in cycle().take(TRANSFERS) {
        transfers.spawn(load::transfer(way, bytes));
    }
    let tally = load::many(cycle().take(count)).await?;
    let mut total = 0;
    while let Some(moved) = transfers.join_next().await {
        total += moved
            .context("a transfer ended early")?
            .context("a transfer")?;
    }
    let sent = Segments::here()? - before;
    Ok(Many {
        short: tally.into(),
        bytes: total,
        segments: sent.sent,
        retransmits: sent.again,
    })
}

/// What became of the long ones on one pod.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Held {
    sessions: usize,
    broken: usize,
    longest_wait_ms: u128,
    /// How the first few broke.
    reasons: Vec<String>,
}

/// By UID of the pod.
fn held(reports: Vec<super::sessions::Report>) -> BTreeMap<String, Held> {
    let mut pods = BTreeMap::<String, Held>::new();
    for report in reports {
        let held = pods.entry(report.pod).or_default();
        held.sessions += 1;
        held.longest_wait_ms = held.longest_wait_ms.max(report.longest_wait.as_millis());
        if let End::Broken(reason) = report.end {
            held.broken += 1;
            if held.reasons.len() < REASONS_MAX {
                held.reasons.push(reason);
            }
        }
    }
    pods
}

/// What became of tries.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Probed {
    tries: usize,
    failed: usize,
    /// From the first try that failed to the next one that did not, since the first success.
    outages_ms: Vec<u128>,
    /// Tries that failed of the last hundred.
    failed_of_last_hundred: usize,
}

async fn probe(
    ways: &[Way],
    every: Duration,
    limit: Duration,
    stop: CancellationToken,
) -> anyhow::Result<Probed> {
    let begin = Instant::now();
    let mut told = false;
    let mut results = Vec::new();
    let mut tries = JoinSet::new();
    let mut tick = tokio::time::interval(every);
    let mut ways = ways.iter().copied().cycle();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            _ = tick.tick() => {
                let Some(way) = ways.next() else { break };
                let start = begin.elapsed();
                tries.spawn(async move { (start, load::answers(way, limit).await) });
            }
            Some(ended) = tries.join_next() => {
                let (start, good) = ended.context("a try ended early")?;
                results.push((start, good));
                if good && !told {
                    told = true;
                    say(&serde_json::json!({ "firstMs": begin.elapsed().as_millis() }))?;
                }
            }
        }
    }
    while let Some(ended) = tries.join_next().await {
        results.push(ended.context("a try ended early")?);
    }
    Ok(outages(results))
}

/// Tries (when, whether it worked) in any order.
fn outages(mut results: Vec<(Duration, bool)>) -> Probed {
    results.sort();
    let last = &results[results.len().saturating_sub(100)..];
    let mut probed = Probed {
        tries: results.len(),
        failed: 0,
        outages_ms: Vec::new(),
        failed_of_last_hundred: last.iter().filter(|(_, good)| !good).count(),
    };
    let mut since = None;
    let from_success = results.iter().skip_while(|(_, good)| !good);
    for (when, good) in from_success {
        if *good {
            let began = since.take();
            probed
                .outages_ms
                .extend(began.map(|began: Duration| when.saturating_sub(began).as_millis()));
        } else {
            probed.failed += 1;
            since.get_or_insert(*when);
        }
    }
    // Still down at the end: at least so long.
    if let (Some(began), Some((last, _))) = (since, results.last()) {
        probed
            .outages_ms
            .push(last.saturating_sub(began).as_millis());
    }
    probed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64, good: bool) -> (Duration, bool) {
        (Duration::from_millis(ms), good)
    }

    #[test]
    fn an_outage_lasts_from_the_first_failure_to_the_next_success() {
        let results = vec![
            at(0, false),
            at(30, false),
            at(10, true),
            at(20, true),
            at(40, false),
            at(50, true),
        ];
        let expected = Probed {
            tries: 6,
            failed: 2,
            outages_ms: vec![20],
            failed_of_last_hundred: 3,
        };
        assert_eq!(outages(results), expected);
    }

    #[test]
    fn an_outage_at_the_end_counts() {
        assert_eq!(
            outages(vec![at(0, true), at(10, false), at(90, false)]).outages_ms,
            [80]
        );
    }
}
