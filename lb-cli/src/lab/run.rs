//! One run of the lab: sets the cluster up, puts load on it, changes it, and sums up what was seen.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Instant;

use anyhow::Context;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinSet;

use super::cluster::{Cluster, Place};
use super::counted::Counted;
use super::echo;
use super::floor::Floor;
use super::load::{self, Protocol, Tally, Way};
use super::netns::Worker;
use super::network::equally;
use super::objects::Phase;
use super::scenario::{self, Scenario};
use super::sessions::{Manner, Sessions};
use super::spread::Spread;
use super::summary::{About, Summary};
use super::voice::Voice;
use super::ways::{Mix, Ways};

/// The Service that the promises are about.
pub(super) const SERVICE: &str = "web";
/// The other examples, with one port of each protocol.
const OTHERS: [(&str, Protocol, u16); 3] = [
    (AFFINE, Protocol::Tcp, 7000),
    (AFFINE, Protocol::Udp, 7001),
    ("ledger", Protocol::Tcp, 5432),
];
/// The one with session affinity.
const AFFINE: &str = "game";
/// The example that nobody serves, with a port of each protocol.
pub(super) const UNSERVED: &str = "soon";
const UNSERVED_PORTS: [(Protocol, u16); 2] = [(Protocol::Tcp, 80), (Protocol::Udp, 53)];
/// Long TCP connections and UDP sessions during changes.
const TCP_SESSIONS: usize = 500;
const UDP_SESSIONS: usize = 100;
/// Connections that carry the transfers: half of them IPv6.
const TRANSFERS: usize = 8;
/// Connections to each port of the other examples: several from every address of the client.
const OTHER_PROBES: usize = 80;
/// New connections that show where first packets go after a change.
const PROBES: usize = 400;

/// How much load there is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Amount {
    /// Short connections.
    pub(crate) connections: u32,
    /// Bytes of every transfer, each way.
    pub(crate) transfer_bytes: u64,
}

/// A run.
pub(crate) struct Run {
    /// Its cluster.
    pub(crate) cluster: Cluster,
    pub(super) client: Worker,
    given: Ways,
    pub(super) voice: Voice,
    pub(super) random: StdRng,
    started: Instant,
    before: Counted,
    pub(super) summary: Summary,
}

impl Run {
    /// Brings a cluster up: pods, objects, manager, agents.
    pub(crate) async fn start(
        mut cluster: Cluster,
        name: String,
        seed: u64,
        start: &scenario::Start,
        voice: Voice,
    ) -> anyhow::Result<Self> {
        let started = Instant::now();
        let balancers = equally(&cluster.balancers());
        let relay = cluster.relays();
        if cluster.settings.bird {
            voice.say("starting BIRD on balancers and router");
            cluster.start_birds()?;
        } else {
            cluster.network.move_ecmp(&balancers).await?;
        }
        let (first, more) = start
            .first
            .split_first()
            .context("a run starts with pods")?;
        voice.say(&format!("starting {first} pods with real servers"));
        let places = std::iter::repeat_n(Place::FewestPods, *first);
        cluster.add_pods(places, scenario::FIRST)?;
        cluster.publish()?;
        let machines = cluster.machines();
        voice.say(&format!(
            "starting a manager, and an agent on each of {}",
            machines.join(", ")
        ));
        cluster.start_manager()?;
        for machine in &machines {
            cluster.start_agent(machine)?;
        }
        cluster.settled().await?;
        if cluster.settings.bird {
            cluster.routes_learnt().await?;
        }
        for target in more {
            let count = target.saturating_sub(cluster.pods.len());
            voice.say(&format!("adding {count} pods"));
            let places = std::iter::repeat_n(Place::FewestPods, count);
            cluster.add_pods(places, scenario::FIRST)?;
            cluster.publish()?;
            cluster.applied().await?;
        }
        if start.next > 0 {
            voice.say(&format!(
                "starting {} pods that no Service selects yet",
                start.next
            ));
            cluster.add_pods((0..start.next).map(Place::AwayFrom), scenario::NEXT)?;
            cluster.publish()?;
        }
        let client = cluster.network.client.worker()?;
        let summary = Summary {
            run: name,
            seed,
            balancers: u8::try_from(balancers.len()).unwrap_or(u8::MAX),
            relay,
            client_address_preserved: true,
            ..Summary::default()
        };
        let mut run = Self {
            cluster,
            client,
            given: Ways::default(),
            voice,
            random: StdRng::seed_from_u64(seed),
            started,
            before: Counted::default(),
            summary,
        };
        run.before = run.counted().await?;
        run.voice
            .say("every agent is ready, and all agree on the tables");
        Ok(run)
    }

    /// What plain `lbctl lab` shows.
    pub(crate) async fn demonstrate(
        mut self,
        amount: Amount,
    ) -> anyhow::Result<(Cluster, Summary)> {
        self.ping();
        self.short_connections(amount.connections as usize).await?;
        self.other_examples().await?;
        self.refusals().await?;
        self.transfers(amount.transfer_bytes).await?;
        let sessions = self.open_sessions().await?;
        self.story(scenario::demonstration()).await?;
        self.close_sessions(sessions).await?;
        self.probe().await?;
        let sessions = self.open_many_sessions().await?;
        self.live_drain().await?;
        self.close_sessions(sessions).await?;
        let floor = self.cluster.floor().await?;
        self.note_floor(&floor);
        let about = About {
            connections_min: u64::from(amount.connections),
            spread: true,
            relays: true,
            datagrams: true,
        };
        self.finish(about).await
    }

    /// One scenario.
    pub(crate) async fn play(mut self, scenario: Scenario) -> anyhow::Result<(Cluster, Summary)> {
        let sessions = match scenario {
            Scenario::Drain | Scenario::DrainFaults => self.open_many_sessions().await?,
            _ => self.open_sessions().await?,
        };
        if scenario.is_about_agents() {
            self.agents(scenario).await?;
        } else if scenario == Scenario::Flood {
            self.flood().await?;
        } else if scenario == Scenario::Drain {
            self.drains().await?;
        } else if scenario == Scenario::DrainFaults {
            self.faulty_drains().await?;
        } else {
            self.story(scenario.timeline()).await?;
        }
        self.close_sessions(sessions).await?;
        if self.summary.relay {
            self.probe().await?;
            let floor = if scenario == Scenario::Forgetting {
                self.voice.say("waiting until everything is forgotten");
                self.cluster.forgets().await
            } else {
                self.cluster.floor().await?
            };
            self.note_floor(&floor);
        }
        let relays = !scenario.is_about_agents() && scenario != Scenario::DrainFaults;
        let about = About {
            relays,
            datagrams: !relays,
            ..About::default()
        };
        self.finish(about).await
    }

    fn ping(&mut self) {
        for vip in self.cluster.vips(SERVICE) {
            match self.cluster.network.client.inside(|| echo::ping(vip)) {
                Ok(()) => {
                    self.voice.say(&format!("{vip} answers pings"));
                    self.summary.pinged.push(vip);
                }
                Err(error) => self.summary.sentence(format!("{error:#}")),
            }
        }
    }

    async fn short_connections(&mut self, count: usize) -> anyhow::Result<()> {
        self.voice.say(&format!(
            "opening {count} connections: TCP and UDP, IPv4 and IPv6"
        ));
        let ways = self.ways(Mix::OneInFiveUdp).take(count);
        let tally = self.client.run(load::many(ways)).await?;
        self.count_pods(&tally);
        self.summary.add_tally(tally);
        Ok(())
    }

    /// The other example Services: one sends all connections of a client address to one pod, one has IPv6 only.
    async fn other_examples(&mut self) -> anyhow::Result<()> {
        self.voice.say("trying the other example Services");
        for (service, protocol, port) in OTHERS {
            let vips = self.cluster.vips(service);
            let tally = self
                .client
                .run(load::many(
                    self.given
                        .to(&vips, move |_| (protocol, port))
                        .take(OTHER_PROBES),
                ))
                .await?;
            if service == AFFINE {
                let torn = tally
                    .by_client
                    .values()
                    .filter(|pods| pods.len() > 1)
                    .count();
                self.summary.affinity_broken += torn as u64;
            }
            self.summary.add_tally(tally);
        }
        Ok(())
    }

    /// The example that nobody serves refuses, over both families and protocols.
    async fn refusals(&mut self) -> anyhow::Result<()> {
        let vips = self.cluster.vips(UNSERVED);
        for (protocol, port) in UNSERVED_PORTS {
            let ways = self.given.to(&vips, move |_| (protocol, port));
            for way in ways.take(vips.len()) {
                let asked = self.client.run(async move { Ok(load::refused(way).await) });
                match asked.await? {
                    Ok(()) => self.summary.refused += 1,
                    Err(error) => {
                        self.summary.not_refused += 1;
                        self.summary.sentence(format!("{error:#}"));
                    }
                }
            }
        }
        Ok(())
    }

    /// How connections were spread over the pods that should get them.
    fn count_pods(&mut self, tally: &Tally) {
        let wanted = self.wanted();
        let count = |uid: &String| tally.by_pod.get(uid).copied().unwrap_or(0);
        let counts: Vec<u64> = wanted.iter().map(count).collect();
        self.summary.pods = wanted.len();
        self.summary.pods_used = counts.iter().filter(|count| **count > 0).count();
        self.summary.spread = Spread::of(&counts);
        for (uid, count) in &tally.by_pod {
            *self
                .summary
                .by_pod
                .entry(self.cluster.name_of(uid))
                .or_default() += count;
        }
    }

    /// UIDs of pods that get new connections.
    fn wanted(&self) -> BTreeSet<String> {
        let app = self.cluster.selected_app(SERVICE);
        let pods = self.cluster.pods.iter();
        let wanted = pods.filter(|pod| pod.phase == Phase::Ready && pod.app == app);
        wanted.map(|pod| pod.uid.clone()).collect()
    }

    async fn transfers(&mut self, bytes: u64) -> anyhow::Result<()> {
        let megabytes = bytes / 1_000_000;
        self.voice.say(&format!(
            "transferring {megabytes} MB each way on {TRANSFERS} connections at a time"
        ));
        let before = self.segments()?;
        let mut tasks = JoinSet::new();
        for way in self.ways(Mix::OnlyTcp).take(TRANSFERS) {
            tasks.spawn_on(load::transfer(way, bytes), self.client.handle());
        }
        while let Some(ended) = tasks.join_next().await {
            self.summary.connections += 1;
            match ended.context("a transfer's task ended early")? {
                Ok(bytes) => self.summary.bytes += bytes,
                Err(error) => {
                    self.summary.broken += 1;
                    self.summary.sentence(format!("transfer: {error:#}"));
                }
            }
        }
        let after = self.segments()?;
        self.summary.add_segments(after - before);
        Ok(())
    }

    async fn open_sessions(&mut self) -> anyhow::Result<Sessions> {
        self.open(TCP_SESSIONS, UDP_SESSIONS).await
    }

    /// Twice as many, under which machines are drained.
    async fn open_many_sessions(&mut self) -> anyhow::Result<Sessions> {
        self.open(2 * TCP_SESSIONS, 2 * UDP_SESSIONS).await
    }

    async fn open(&mut self, tcp: usize, udp: usize) -> anyhow::Result<Sessions> {
        self.voice.say(&format!(
            "opening {tcp} long TCP connections and {udp} UDP sessions"
        ));
        let tcp = self.ways(Mix::OnlyTcp).take(tcp);
        let udp = self.ways(Mix::OnlyUdp).take(udp);
        let ways: Vec<Way> = tcp.chain(udp).collect();
        let seed = u64::from(self.random.random::<u32>());
        Sessions::open(self.client.handle(), &ways, seed, Manner::BUSY).await
    }

    async fn close_sessions(&mut self, sessions: Sessions) -> anyhow::Result<()> {
        let mut reports = sessions.close().await?;
        if let Some(drain) = &mut self.summary.drain {
            drain.flows = reports.len() as u64;
        }
        for report in &mut reports {
            report.pod_name = self.cluster.name_of(&report.pod);
        }
        let wanted = self.wanted();
        self.summary
            .add_sessions(reports, |uid| !wanted.contains(uid));
        Ok(())
    }

    /// New connections go to the pods that should get them, and to all of these.
    async fn probe(&mut self) -> anyhow::Result<()> {
        let tally = self
            .client
            .run(load::many(self.ways(Mix::OneInFiveUdp).take(PROBES)))
            .await?;
        let wanted = self.wanted();
        for (uid, count) in &tally.by_pod {
            if !wanted.contains(uid) {
                self.summary.strays += count;
                let name = self.cluster.name_of(uid);
                self.summary
                    .sentence(format!("{count} new connections reached {name}"));
            }
        }
        if self.summary.pods == 0 {
            let used = |uid: &&String| tally.by_pod.contains_key(*uid);
            self.summary.pods = wanted.len();
            self.summary.pods_used = wanted.iter().filter(used).count();
        }
        self.summary.add_tally(tally);
        Ok(())
    }

    fn note_floor(&mut self, floor: &Floor) {
        self.voice.say(&floor.to_string());
        self.summary.forgotten_ms = floor.took.as_millis() as u64;
        self.summary.left = floor.leaks();
    }

    async fn finish(mut self, about: About) -> anyhow::Result<(Cluster, Summary)> {
        let now = self.counted().await?;
        self.summary.asked_in_place = now.asked_in_place - self.before.asked_in_place;
        self.summary.relayed = now.relayed - self.before.relayed + self.summary.asked_in_place;
        for (reason, packets) in now.drops {
            let packets = packets - self.before.drops.get(&reason).copied().unwrap_or(0);
            if packets > 0 {
                self.summary.drops.insert(reason, packets);
            }
        }
        let held = lb_ebpf::abi::DropReason::HeldBack.label();
        let broken = self.summary.broken;
        if let Some(drain) = &mut self.summary.drain {
            drain.broken = broken;
            drain.refused = self.summary.failed;
        }
        self.summary.held_back = self.summary.drops.get(held).copied().unwrap_or(0);
        self.summary.seconds = self.started.elapsed().as_secs_f64();
        self.summary.judge(about);
        Ok((self.cluster, self.summary))
    }

    /// Endless ways to a port of these addresses.
    pub(super) fn ways_to(
        &self,
        addresses: &[IpAddr],
        protocol: Protocol,
        port: u16,
    ) -> impl Iterator<Item = Way> + use<> {
        self.given.to(addresses, move |_| (protocol, port))
    }

    /// Endless ways to the Service.
    pub(super) fn ways(&self, mix: Mix) -> impl Iterator<Item = Way> + use<> {
        self.given.mixed(&self.cluster.vips(SERVICE), mix)
    }
}
