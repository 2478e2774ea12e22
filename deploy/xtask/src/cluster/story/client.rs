//! Runs `lbctl lab-client` on the client's machine. Knows what it prints, and nothing of the cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rig::cluster::plan;
use rig::{Cluster, Machine};
use serde::Deserialize;

use super::child::Teller;

/// The last answers are waited for by the client itself: 8 s at most, 10 s on sessions.
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// A running client; killed when dropped.
pub(super) struct Client(Teller);

/// What `steady` and `many` tell.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Steady {
    pub(super) connections: u64,
    pub(super) failed: u64,
    pub(super) address_changed: u64,
    pub(super) pods: usize,
    pub(super) reasons: Vec<String>,
    /// Of transfers: `many` only.
    #[serde(default)]
    pub(super) bytes: u64,
    #[serde(default)]
    pub(super) segments: u64,
    #[serde(default)]
    pub(super) retransmits: u64,
}

/// What `probe` tells.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Probed {
    pub(super) tries: usize,
    pub(super) failed: usize,
    pub(super) outages_ms: Vec<u64>,
    pub(super) failed_of_last_hundred: usize,
}

impl Probed {
    /// The longest time without a success.
    pub(super) fn worst_ms(&self) -> u64 {
        self.outages_ms.iter().copied().max().unwrap_or(0)
    }
}

/// What `stream` tells.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Streamed {
    pub(super) sent: u64,
    pub(super) lost: u64,
}

/// What `sessions` tells, by UID of the pod.
pub(super) type Sessions = BTreeMap<String, Held>;

/// What became of the sessions on one pod.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Held {
    pub(super) sessions: u64,
    pub(super) broken: u64,
    pub(super) longest_wait_ms: u64,
    pub(super) reasons: Vec<String>,
}

impl Held {
    /// Those of these pods as one; an error if there are none, since then nothing is shown.
    pub(super) fn on(pods: &BTreeSet<String>, sessions: Sessions) -> anyhow::Result<Self> {
        let mut all = Self::default();
        for (_, held) in sessions.into_iter().filter(|(pod, _)| pods.contains(pod)) {
            all.sessions += held.sessions;
            all.broken += held.broken;
            all.longest_wait_ms = all.longest_wait_ms.max(held.longest_wait_ms);
            all.reasons.extend(held.reasons);
        }
        ensure!(
            all.sessions > 0,
            "no long connection is to a pod that must keep it"
        );
        Ok(all)
    }
}

impl Client {
    /// Starts it on the client's machine, with all of its addresses.
    pub(super) fn start(
        cluster: &Cluster,
        lbctl: &Path,
        what: &[&str],
        to: &[SocketAddr],
    ) -> anyhow::Result<Self> {
        let machine: Machine = cluster.client();
        let mut command = machine.on_network(&lbctl.display().to_string());
        command
            .arg("lab-client")
            .args(["--to", &joined(to)])
            .args(["--from", &joined(&own_addresses())])
            .args(what);
        Ok(Self(Teller::start(&mut command)?))
    }

    /// Waits until it says that it has begun: the first answer has come. Returns when that was.
    pub(super) fn begun(&mut self, limit: Duration) -> anyhow::Result<Instant> {
        self.0.line(limit).map(|(when, _)| when)
    }

    /// Waits until it ends by itself, and returns what it tells.
    pub(super) fn told<T: for<'de> Deserialize<'de>>(
        mut self,
        limit: Duration,
    ) -> anyhow::Result<T> {
        let (_, line) = self.0.line(limit)?;
        parse(&line)
    }

    /// Lets it end, and returns what it tells.
    pub(super) fn stop<T: for<'de> Deserialize<'de>>(self) -> anyhow::Result<T> {
        parse(&self.0.stop(STOP_LIMIT)?)
    }
}

fn own_addresses() -> Vec<IpAddr> {
    plan::client_addresses().collect()
}

fn joined<T: ToString>(items: &[T]) -> String {
    let items: Vec<String> = items.iter().map(T::to_string).collect();
    items.join(",")
}

fn parse<T: for<'de> Deserialize<'de>>(line: &str) -> anyhow::Result<T> {
    serde_json::from_str(line).with_context(|| format!("the client says {line:?}"))
}
