//! One run of the lab: sets the cluster up, puts load on it, changes it, and sums up what was seen.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use lb_controller::admin;
use nix::sys::signal::Signal;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use super::cluster::Cluster;
use super::echo;
use super::load::{self, Protocol, Tally, Way};
use super::netns::Worker;
use super::network::Network;
use super::objects::Phase;
use super::plan;
use super::scenario::{self, CALM_MS, Change, Scenario, Step, TAIL_MS};
use super::segments::Segments;
use super::sessions::Sessions;
use super::spread::Spread;
use super::summary::{About, Summary};
use super::voice::Voice;

/// The Service that the promises are about.
const SERVICE: &str = "web";
/// Its ports.
const TCP_PORT: u16 = 80;
const UDP_PORT: u16 = 53;
/// The other examples, with one port of each protocol.
const OTHERS: [(&str, Protocol, u16); 3] = [
    (AFFINE, Protocol::Tcp, 7000),
    (AFFINE, Protocol::Udp, 7001),
    ("ledger", Protocol::Tcp, 5432),
];
/// The one with session affinity.
const AFFINE: &str = "game";
/// Long TCP connections and UDP sessions during changes.
const TCP_SESSIONS: usize = 500;
const UDP_SESSIONS: usize = 100;
/// Connections that carry the transfers: half of them IPv6.
const TRANSFERS: usize = 8;
/// New connections a second while pods change, and while agents are away.
const NEW_PER_SECOND: u32 = 50;
const NEW_PER_SECOND_AGENTS: u32 = 200;
/// Datagrams a second of each stream while agents are away.
const DATAGRAMS_PER_SECOND: u32 = 200;
/// New connections that show where first packets go after a change.
const PROBES: usize = 400;
/// Between two moves of the router's ECMP.
const ECMP_PAUSE_MS: std::ops::Range<u64> = 150..1_200;
/// How long a node is without its agent: longer than what makes it not fresh.
const AGENT_AWAY: Duration = Duration::from_millis(1_500);

/// How much load there is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Amount {
    /// Short connections.
    pub(crate) connections: u32,
    /// Bytes of every transfer, each way.
    pub(crate) transfer_bytes: u64,
}

/// What the programs counted, over all machines.
#[derive(Clone, Debug, Default)]
struct Counted {
    relayed: u64,
    drops: BTreeMap<String, u64>,
}

/// A run.
pub(crate) struct Run {
    /// Its cluster.
    pub(crate) cluster: Cluster,
    client: Worker,
    voice: Voice,
    random: StdRng,
    started: Instant,
    before: Counted,
    summary: Summary,
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
        let balancers = cluster.network.every_balancer();
        let relay = cluster.relays();
        cluster.network.move_ecmp(&balancers).await?;
        let (first, more) = start
            .first
            .split_first()
            .context("a run starts with pods")?;
        voice.say(&format!("starting {first} pods with real servers"));
        cluster.add_pods(*first, scenario::FIRST)?;
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
        for target in more {
            let count = target.saturating_sub(cluster.pods.len());
            voice.say(&format!("adding {count} pods"));
            cluster.add_pods(count, scenario::FIRST)?;
            cluster.publish()?;
            cluster.applied().await?;
        }
        if start.next > 0 {
            voice.say(&format!(
                "starting {} pods that no Service selects yet",
                start.next
            ));
            cluster.add_pods(start.next, scenario::NEXT)?;
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
        self.transfers(amount.transfer_bytes).await?;
        let sessions = self.open_sessions().await?;
        self.story(scenario::demonstration()).await?;
        self.close_sessions(sessions).await?;
        self.probe().await?;
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
        let sessions = self.open_sessions().await?;
        if scenario.is_about_agents() {
            self.agents(scenario).await?;
        } else {
            self.story(scenario.timeline()).await?;
        }
        self.close_sessions(sessions).await?;
        if self.summary.relay {
            self.probe().await?;
        }
        let relays = !scenario.is_about_agents();
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
        let ways = self.ways(count, Mix::OneInFiveUdp);
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
                .run(load::many(ways(&vips, 80, |_| (protocol, port))))
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
        for way in self.ways(TRANSFERS, Mix::OnlyTcp) {
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
        self.voice.say(&format!(
            "opening {TCP_SESSIONS} long TCP connections and {UDP_SESSIONS} UDP sessions"
        ));
        let mut ways = self.ways(TCP_SESSIONS, Mix::OnlyTcp);
        ways.extend(self.ways(UDP_SESSIONS, Mix::OnlyUdp));
        let seed = u64::from(self.random.random::<u32>());
        Sessions::open(&self.client, &ways, seed).await
    }

    async fn close_sessions(&mut self, sessions: Sessions) -> anyhow::Result<()> {
        let mut reports = sessions.close().await?;
        for report in &mut reports {
            report.pod_name = self.cluster.name_of(&report.pod);
        }
        let wanted = self.wanted();
        self.summary
            .add_sessions(reports, |uid| !wanted.contains(uid));
        Ok(())
    }

    /// Changes pods step by step, while the router moves flows and new connections come.
    async fn story(&mut self, steps: Vec<Step>) -> anyhow::Result<()> {
        let stop = CancellationToken::new();
        let ways = self.ways(1_000, Mix::OneInFiveUdp);
        let new = self
            .client
            .handle()
            .spawn(load::steady(ways, NEW_PER_SECOND, stop.clone()));
        let moves = self.move_ecmp(stop.clone());
        let start = Instant::now();
        for Step { at_ms, change } in steps {
            tokio::time::sleep_until((start + Duration::from_millis(at_ms)).into()).await;
            self.change(change)?;
        }
        tokio::time::sleep(Duration::from_millis(TAIL_MS)).await;
        stop.cancel();
        self.summary.ecmp_moves += moves.await.context("the mover of ECMP ended early")??;
        self.summary
            .add_tally(new.await.context("the load's task ended early")??);
        Ok(())
    }

    /// Moves the router's ECMP at random moments until told to stop; says how often.
    fn move_ecmp(&mut self, stop: CancellationToken) -> JoinHandle<anyhow::Result<u64>> {
        let network: Arc<Network> = Arc::clone(&self.cluster.network);
        let mut random = StdRng::seed_from_u64(self.random.random());
        tokio::spawn(async move {
            let mut moves = 0;
            loop {
                let pause = Duration::from_millis(random.random_range(ECMP_PAUSE_MS));
                if tokio::time::timeout(pause, stop.cancelled()).await.is_ok() {
                    break;
                }
                let balancers = network.some_balancers(&mut random);
                network.move_ecmp(&balancers).await?;
                moves += 1;
            }
            network.move_ecmp(&network.every_balancer()).await?;
            Ok(moves)
        })
    }

    fn change(&mut self, change: Change) -> anyhow::Result<()> {
        match change {
            Change::Add(count) => {
                let names = self.cluster.add_pods(count, scenario::FIRST)?;
                self.voice.say(&format!("new: {}", names.join(", ")));
            }
            Change::Phase(pods, phase) => {
                let names: Vec<String> = pods
                    .iter()
                    .filter_map(|pod| Some(self.cluster.pods.get(*pod)?.name.clone()))
                    .collect();
                self.cluster.set_phase(&names, phase);
                let becomes = match phase {
                    Phase::Ready => "ready again",
                    Phase::Unready => "not ready any more",
                    Phase::Terminating => "told to end",
                    Phase::Gone => "out of the Service (and still alive)",
                };
                self.voice.say(&format!("{}: {becomes}", names.join(", ")));
            }
            Change::SwitchSelector => {
                self.voice
                    .say(&format!("the Service selects app={}", scenario::NEXT));
                self.cluster.change_service(SERVICE, |service| {
                    let selector = [("app".to_owned(), scenario::NEXT.to_owned())];
                    if let Some(spec) = &mut service.spec {
                        spec.selector = Some(selector.into());
                    }
                })?;
            }
            Change::SwitchTargetPorts => {
                self.voice
                    .say("the Service points to other ports of its pods");
                self.cluster.change_service(SERVICE, |service| {
                    let spec = service.spec.iter_mut();
                    for port in spec.flat_map(|spec| spec.ports.iter_mut().flatten()) {
                        if let Some(IntOrString::Int(target)) = &mut port.target_port {
                            *target += 1;
                        }
                    }
                })?;
            }
        }
        self.cluster.publish()
    }

    /// New connections go to the pods that should get them, and to all of these.
    async fn probe(&mut self) -> anyhow::Result<()> {
        let tally = self
            .client
            .run(load::many(self.ways(PROBES, Mix::OneInFiveUdp)))
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

    /// Takes the agent of every machine away and brings it back, under load.
    async fn agents(&mut self, scenario: Scenario) -> anyhow::Result<()> {
        let before = self.ids().await?;
        let stop = CancellationToken::new();
        let ways = self.ways(1_000, Mix::OnlyTcp);
        let spawn = self.client.handle();
        let new = spawn.spawn(load::steady(ways, NEW_PER_SECOND_AGENTS, stop.clone()));
        let streams: Vec<_> = self
            .ways(4, Mix::OnlyUdp)
            .into_iter()
            .map(|way| spawn.spawn(load::stream(way, DATAGRAMS_PER_SECOND, stop.clone())))
            .collect();
        let transfers: Vec<_> = self
            .ways(4, Mix::OnlyTcp)
            .into_iter()
            .map(|way| spawn.spawn(load::transfers(way, stop.clone())))
            .collect();
        for machine in self.cluster.machines() {
            tokio::time::sleep(Duration::from_millis(CALM_MS)).await;
            self.replace_agent(scenario, &machine).await?;
        }
        tokio::time::sleep(Duration::from_millis(CALM_MS)).await;
        stop.cancel();
        self.summary
            .add_tally(new.await.context("the load's task ended early")??);
        for stream in streams {
            self.summary
                .add_stream(stream.await.context("a stream's task ended early")??);
        }
        for transfer in transfers {
            match transfer.await.context("a transfer's task ended early")? {
                Ok(bytes) => self.summary.bytes += bytes,
                Err(error) => {
                    self.summary.broken += 1;
                    self.summary.sentence(format!("transfer: {error:#}"));
                }
            }
        }
        let after = self.ids().await?;
        let changed = before
            .iter()
            .filter(|(backend, id)| after.get(*backend) != Some(id));
        self.summary.ids_changed = changed.count() as u64;
        Ok(())
    }

    async fn replace_agent(&mut self, scenario: Scenario, machine: &str) -> anyhow::Result<()> {
        let (signal, says) = match scenario {
            Scenario::AgentKill => (Signal::SIGKILL, "killed"),
            _ => (Signal::SIGTERM, "asked to end"),
        };
        self.voice.say(&format!("the agent of {machine} is {says}"));
        self.cluster.end_agent(machine, signal).await?;
        tokio::time::sleep(AGENT_AWAY).await;
        if scenario == Scenario::AgentUpgrade {
            let build: PathBuf = self.cluster.other_build()?;
            self.voice
                .say(&format!("another build starts on {machine}"));
            self.cluster.start_agent_of(machine, &build)?;
        } else {
            self.cluster.start_agent(machine)?;
        }
        self.cluster.settled().await
    }

    /// Backend ids of every machine, by pod address and port.
    async fn ids(&self) -> anyhow::Result<BTreeMap<(String, SocketAddr, u32), u32>> {
        let mut ids = BTreeMap::new();
        for machine in self.cluster.machines() {
            let backends: admin::Backends = self.cluster.ask(&machine, "/v1/backends").await?;
            for backend in backends.backends {
                let address = SocketAddr::new(backend.address, backend.port);
                ids.insert((machine.clone(), address, backend.identity), backend.id);
            }
        }
        Ok(ids)
    }

    /// Sums the programs' counters up.
    async fn counted(&self) -> anyhow::Result<Counted> {
        use lb_ebpf::abi::Stat::{AskedInPlace, Relayed};
        let mut counted = Counted::default();
        for machine in self.cluster.machines() {
            let status: admin::Status = self.cluster.ask(&machine, "/v1/status").await?;
            let relays = [Relayed.label(), AskedInPlace.label()];
            let relayed = status
                .stats
                .iter()
                .filter(|stat| relays.contains(&stat.name.as_str()));
            counted.relayed += relayed.map(|stat| stat.packets).sum::<u64>();
            for drop in status.drops {
                *counted.drops.entry(drop.name).or_default() += drop.packets;
            }
        }
        Ok(counted)
    }

    /// Segments of the client and of every pod.
    fn segments(&self) -> anyhow::Result<Segments> {
        let mut sum = Segments::of(&self.cluster.network.client)?;
        for namespace in self.cluster.pod_namespaces() {
            sum = sum + Segments::of(namespace)?;
        }
        Ok(sum)
    }

    async fn finish(mut self, about: About) -> anyhow::Result<(Cluster, Summary)> {
        let now = self.counted().await?;
        self.summary.relayed = now.relayed - self.before.relayed;
        for (reason, packets) in now.drops {
            let packets = packets - self.before.drops.get(&reason).copied().unwrap_or(0);
            if packets > 0 {
                self.summary.drops.insert(reason, packets);
            }
        }
        let held = lb_ebpf::abi::DropReason::HeldBack.label();
        self.summary.held_back = self.summary.drops.get(held).copied().unwrap_or(0);
        self.summary.seconds = self.started.elapsed().as_secs_f64();
        self.summary.judge(about);
        Ok((self.cluster, self.summary))
    }

    /// Ways to the Service.
    fn ways(&self, count: usize, mix: Mix) -> Vec<Way> {
        ways(&self.cluster.vips(SERVICE), count, |i| match mix {
            Mix::OneInFiveUdp if i % 5 == 4 => (Protocol::Udp, UDP_PORT),
            Mix::OnlyTcp | Mix::OneInFiveUdp => (Protocol::Tcp, TCP_PORT),
            Mix::OnlyUdp => (Protocol::Udp, UDP_PORT),
        })
    }
}

/// So many ways to VIPs: VIPs alternate, and the client's addresses take turns.
fn ways(vips: &[IpAddr], count: usize, port: impl Fn(usize) -> (Protocol, u16)) -> Vec<Way> {
    let (clients, _) = plan::client();
    let vips_in_turn = vips.iter().cycle().take(count).enumerate();
    vips_in_turn
        .map(|(i, vip)| {
            let [v4, v6] = clients[(i / vips.len()) % clients.len()];
            let (protocol, port) = port(i);
            let from = if vip.is_ipv4() { v4.addr() } else { v6.addr() };
            Way {
                protocol,
                from,
                to: SocketAddr::new(*vip, port),
            }
        })
        .collect()
}

/// Which protocols a load has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mix {
    OnlyTcp,
    OnlyUdp,
    OneInFiveUdp,
}
