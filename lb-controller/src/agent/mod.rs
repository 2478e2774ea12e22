//! The agent of one node: reads objects and tables, programs the maps, follows next hops, answers questions.
//!
//! ```text
//! objects   ─┐                                    ┌─ stamp thread, every 100 ms
//! network  ──┼─▶ core (one thread, owns the maps) ─┤
//! questions ─┘                                    └─ maps, links, node file
//! ```
//!
//! [`core`] knows and decides; this file moves bytes and time.

mod answers;
mod attempt;
pub mod check;
mod cluster;
pub mod core;
mod flows;
mod handle;
mod handoff;
mod options;
pub mod stamp;
mod sweep;
mod view;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::core::{Core, Origin, Settings};
use self::handle::{Handle, Job};
pub use self::options::{Options, PIN_DIR_DEFAULT, XdpMode};
use self::stamp::{Fresh, STAMP_PERIOD, monotonic_ns};
use crate::announce::bgp::{self, config::Config};
use crate::announce::routes::Routes;
use crate::announce::{self, Telling};
use crate::api::load_balancer_node::LoadBalancerNodeSpec;
use crate::dataplane::attach::{self, Attacher, ModeChoice};
use crate::dataplane::bpf::{self, BpfDataplane};
use crate::dataplane::claims::Claims;
use crate::dataplane::events::Events;
use crate::dataplane::links::XdpMode as Mode;
use crate::dataplane::load::{self, LoadError, Programs, Sizes};
use crate::dataplane::network::{self, Network};
use crate::dataplane::pin::PinError;
use crate::dataplane::routes::{self, Held};
use crate::dataplane::stamp::StampWriter;
use crate::liveness::{self, Gossip, Members};
use crate::serve;
use crate::source::output::Outputs;

/// How long a predecessor may take to let go of what it holds: the kernel takes its memory apart first.
pub(crate) const PREDECESSOR_WAIT: Duration = Duration::from_secs(2);
/// How often to look whether it has.
pub(crate) const PREDECESSOR_POLL: Duration = Duration::from_millis(20);
/// How often the interfaces are looked at without an event: what failed there is tried again.
const ATTACH_PERIOD: Duration = Duration::from_secs(2);

/// Runs until stopped. Links and maps stay pinned and keep forwarding.
pub async fn run(options: Options, stop: CancellationToken) -> anyhow::Result<()> {
    let origin = open_origin(&options)?;
    let client = match &origin {
        Origin::Directory { .. } => None,
        Origin::Cluster => Some(options.cluster.client().await?),
    };
    let (dataplane, programs) = open_maps(&options.pin_dir, &options.sizes()).await?;
    // From here on the node says that it is alive, and not yet that it is fresh.
    let fresh = Fresh::default();
    let stamps = stamp_thread(dataplane.open_stamp()?, fresh.clone(), stop.clone())?;
    let flows = Arc::new(dataplane.open_flows()?);
    let swept = Arc::new(AtomicU64::new(0));
    let events = dataplane.open_events()?;

    let (wanted, wanted_nodes) = tokio::sync::watch::channel(std::collections::BTreeSet::new());
    let network = network::follow(wanted_nodes, stop.clone()).await?;
    let claims = dataplane.open_claims()?;
    let attacher = Attacher::new(programs, dataplane.pins(), attach_settings(&options))?;
    let settings_origin = origin.to_string();
    let settings = Settings::new(&options, origin);
    let mut writers = tokio::task::JoinSet::new();
    let mut feed = None;
    let (node_object, node_wanted) = tokio::sync::watch::channel(None);
    let (node_fault, node_faults) = tokio::sync::watch::channel(None);
    if let Some(client) = client {
        feed = Some(cluster::Feed::new(
            &client,
            &options.node,
            &options.cluster.namespace,
            &stop,
        ));
        let node = options.node.clone();
        writers.spawn(cluster::write_node(
            client,
            node,
            node_wanted,
            node_fault,
            stop.clone(),
        ));
    }
    let core = Core::start(settings, Box::new(dataplane), fresh, wanted)?;

    let (members, members_told) = tokio::sync::watch::channel(Members::default());
    let gossip = liveness::spawn(&options.node, members_told, stop.clone())?;
    let (telling, told) = tokio::sync::watch::channel(core.telling());
    writers.spawn(announce::tell(told, stop.clone()));
    let (routes, held_routes) = keep_routes(options.route_table(), &mut writers, &stop);
    let (bird, bird_told) = keep_bird(options.bird(), &mut writers, &stop);
    let (handle, jobs) = Handle::new(Some(Arc::clone(&flows)), Arc::clone(&swept));
    let handle = Arc::new(handle);
    let asked = Arc::clone(&core.pins.sweep);
    let sweeper = sweep::run(flows, swept, Arc::clone(&handle), asked, stop.clone());
    let sweeper = tokio::spawn(sweeper);
    let streams = handoff::Streams::start(
        &options.handoff,
        &options.node,
        core.pins.server.clone(),
        &stop,
    );
    let mut servers = tokio::task::JoinSet::new();
    let socket = serve::listen_unix(&options.admin_socket)?;
    servers.spawn(serve::serve_unix(socket, Arc::clone(&handle), stop.clone()));
    if let Some(address) = options.metrics_listen {
        let listener = serve::listen_tcp(address).await?;
        servers.spawn(serve::serve_tcp(listener, handle, stop.clone()));
    }
    tracing::info!(node = options.node, origin = %settings_origin, "agent starts");
    let shell = Shell {
        core,
        feed,
        node_object,
        node_faults,
        members,
        gossip,
        telling,
        routes,
        held_routes,
        bird,
        bird_told,
        claims,
        events,
        streams,
        attacher,
        network,
        jobs,
        stop: stop.clone(),
    };
    let ended = on_own_thread("core", move || shell.run())?;
    let outcome = ended
        .await
        .context("the core thread has died; see the log")?;
    // Whatever ended it ends everything else.
    stop.cancel();
    while servers.join_next().await.is_some() {}
    while writers.join_next().await.is_some() {}
    _ = sweeper.await;
    _ = stamps.await;
    _ = std::fs::remove_file(&options.admin_socket);
    outcome
}

/// Where objects come from; of a directory, also where outputs go.
fn open_origin(options: &Options) -> anyhow::Result<Origin> {
    let Some(manifests) = options.manifests.clone() else {
        return Ok(Origin::Cluster);
    };
    anyhow::ensure!(
        manifests.is_dir(),
        "directory {} does not exist; create it or choose another --manifests",
        manifests.display()
    );
    let outputs = Outputs::below(&manifests);
    outputs.create().with_context(|| {
        format!(
            "{} can not be made; see that its directory may be written",
            outputs.root().display()
        )
    })?;
    Ok(Origin::Directory { manifests, outputs })
}

/// Opens the maps. A predecessor that is just ending (killed, or being replaced) still holds them for a moment.
async fn open_maps(pin_dir: &Path, sizes: &Sizes) -> Result<(BpfDataplane, Programs), LoadError> {
    let until = Instant::now() + PREDECESSOR_WAIT;
    loop {
        match bpf::open(pin_dir, sizes) {
            Err(LoadError::Pins(PinError::InUse { .. })) if Instant::now() < until => {
                tokio::time::sleep(PREDECESSOR_POLL).await;
            }
            outcome => return outcome,
        }
    }
}

/// Keeps a table of routes, if one was named: where to say what it should hold, and to hear what it does.
fn keep_routes(
    table: Option<u32>,
    writers: &mut tokio::task::JoinSet<()>,
    stop: &CancellationToken,
) -> (
    tokio::sync::watch::Sender<Option<Routes>>,
    tokio::sync::watch::Receiver<Held>,
) {
    let routes = tokio::sync::watch::Sender::new(None);
    let (told, held) = tokio::sync::watch::channel(Held::default());
    if let Some(table) = table {
        writers.spawn(routes::keep(table, routes.subscribe(), told, stop.clone()));
    }
    (routes, held)
}

/// Keeps BIRD configured, if it is to be: where to say how, and to hear what it does.
fn keep_bird(
    settings: Option<bgp::Settings>,
    writers: &mut tokio::task::JoinSet<()>,
    stop: &CancellationToken,
) -> (
    tokio::sync::watch::Sender<Option<Config>>,
    tokio::sync::watch::Receiver<bgp::Told>,
) {
    let config = tokio::sync::watch::Sender::new(None);
    let (told, heard) = tokio::sync::watch::channel(bgp::Told::default());
    if let Some(settings) = settings {
        let wanted = config.subscribe();
        writers.spawn(bgp::keep(settings, wanted, told, stop.clone()));
    }
    (config, heard)
}

fn attach_settings(options: &Options) -> attach::Settings {
    attach::Settings {
        interfaces: options.interface.clone(),
        mode: match options.xdp_mode {
            XdpMode::Auto => ModeChoice::Auto,
            XdpMode::Native => ModeChoice::Only(Mode::Native),
            XdpMode::Generic => ModeChoice::Only(Mode::Generic),
        },
        ..attach::Settings::default()
    }
}

/// Runs a function on a thread of its own, and tells when it ends.
fn on_own_thread<T: Send + 'static>(
    name: &str,
    run: impl FnOnce() -> T + Send + 'static,
) -> std::io::Result<tokio::sync::oneshot::Receiver<T>> {
    let (ended, wait) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            // Nobody waits any more when the runtime is being shut down.
            _ = ended.send(run());
        })?;
    Ok(wait)
}

/// Writes the sign of life until stopped. It only sleeps and stores, so nothing else can delay it.
fn stamp_thread(
    writer: StampWriter,
    fresh: Fresh,
    stop: CancellationToken,
) -> std::io::Result<tokio::sync::oneshot::Receiver<()>> {
    on_own_thread("stamp", move || {
        while !stop.is_cancelled() {
            let stamp = fresh.stamp(monotonic_ns());
            writer.write(stamp.stamped_ns, stamp.fresh_since_ns);
            std::thread::sleep(STAMP_PERIOD);
        }
    })
}

/// The core, and where its events come from.
struct Shell {
    core: Core,
    /// None for a directory.
    feed: Option<cluster::Feed>,
    node_object: tokio::sync::watch::Sender<Option<LoadBalancerNodeSpec>>,
    node_faults: tokio::sync::watch::Receiver<Option<String>>,
    members: tokio::sync::watch::Sender<Members>,
    gossip: Gossip,
    telling: tokio::sync::watch::Sender<Telling>,
    routes: tokio::sync::watch::Sender<Option<Routes>>,
    held_routes: tokio::sync::watch::Receiver<Held>,
    bird: tokio::sync::watch::Sender<Option<Config>>,
    bird_told: tokio::sync::watch::Receiver<bgp::Told>,
    claims: Claims,
    events: Events,
    streams: handoff::Streams,
    attacher: Attacher,
    network: Network,
    jobs: mpsc::Receiver<Job>,
    stop: CancellationToken,
}

impl Shell {
    fn run(self) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            match self.core.origin().clone() {
                Origin::Directory { manifests, outputs } => {
                    self.follow_directory(&manifests, &outputs).await
                }
                Origin::Cluster => self.follow_cluster().await,
            }
        })
    }

    async fn follow_cluster(mut self) -> anyhow::Result<()> {
        let Some(mut feed) = self.feed.take() else {
            return Ok(());
        };
        self.attach();
        loop {
            let now = Instant::now();
            if !self.core.is_listed() && feed.is_listed() {
                self.core.listed(now);
            }
            self.core.watch_state(feed.error());
            let wake = self.core.work(now);
            self.tell_node();
            self.tell_others();
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return Ok(()),
                Ok(()) = self.gossip.liveness.changed() => self.hear_others(),
                Ok(()) = self.held_routes.changed() => self.routes_held(),
                Ok(()) = self.bird_told.changed() => self.bird_heard(),
                Ok(()) = self.network.links.changed() => self.attach(),
                Ok(()) = self.network.next_hops.changed() => self.hops(),
                Some(job) = self.jobs.recv() => job(&mut self.core),
                () = self.streams.certificates.changed() => {}
                (writer, message) = self.streams.copies.next() => self.core.take_copied(&writer, message, Instant::now()),
                reported = self.events.next() => self.core.take_events(&reported),
                Some(arrival) = self.streams.arrivals.recv() => self.core.take_arrival(arrival, Instant::now()),
                events = feed.next() => self.core.take_objects(events, Instant::now()),
                () = tokio::time::sleep_until(wake.min(now + ATTACH_PERIOD).into()) => {
                    self.attach();
                    self.hear_claims();
                }
            }
        }
    }

    fn hear_others(&mut self) {
        let liveness = Arc::clone(&self.gossip.liveness.borrow_and_update());
        self.core.take_liveness(liveness, Instant::now());
    }

    fn hear_claims(&mut self) {
        match self.claims.read() {
            Ok(claims) => self.core.take_claims(&claims),
            Err(error) => tracing::warn!(%error, "claims to VIPs can not be read"),
        }
    }

    /// Tells the other agents and the network what they need to know, if it has changed.
    fn tell_others(&mut self) {
        self.streams.tell(&mut self.core);
        let members = self.core.members();
        self.members.send_if_modified(|told| {
            let is_new = *told != members;
            *told = members;
            is_new
        });
        let routes = self.core.routes();
        self.routes.send_if_modified(|told| {
            let is_new = *told != routes;
            *told = routes;
            is_new
        });
        // What BIRD is to do was decided with the routes.
        let bird = self.core.bird();
        self.bird.send_if_modified(|told| {
            let is_new = *told != bird;
            *told = bird;
            is_new
        });
        let telling = self.core.telling();
        self.telling.send_if_modified(|told| {
            let is_new = *told != telling;
            *told = telling;
            is_new
        });
    }

    fn routes_held(&mut self) {
        let held = self.held_routes.borrow_and_update().clone();
        self.core.take_routes(held);
    }

    fn bird_heard(&mut self) {
        let told = self.bird_told.borrow_and_update().clone();
        self.core.take_bird(told);
    }

    /// Has the node's object written if it has changed.
    fn tell_node(&mut self) {
        self.core.node_fault(self.node_faults.borrow().clone());
        let object = self.core.node_object();
        self.node_object.send_if_modified(|told| {
            let is_new = *told != object;
            *told = object;
            is_new
        });
    }

    async fn follow_directory(mut self, manifests: &Path, outputs: &Outputs) -> anyhow::Result<()> {
        let (mut directory, first) = Core::open_directory(manifests, outputs)?;
        self.attach();
        self.core.take(&first, Instant::now());
        self.core.listed(Instant::now());
        loop {
            let now = Instant::now();
            self.core
                .watch_state(directory.error().map(ToString::to_string));
            let wake = self.core.work(now);
            self.tell_others();
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return Ok(()),
                batch = directory.next() => self.core.take(&batch, Instant::now()),
                Ok(()) = self.network.links.changed() => self.attach(),
                Ok(()) = self.network.next_hops.changed() => self.hops(),
                Some(job) = self.jobs.recv() => job(&mut self.core),
                Ok(()) = self.gossip.liveness.changed() => self.hear_others(),
                Ok(()) = self.held_routes.changed() => self.routes_held(),
                Ok(()) = self.bird_told.changed() => self.bird_heard(),
                () = self.streams.certificates.changed() => {}
                (writer, message) = self.streams.copies.next() => self.core.take_copied(&writer, message, Instant::now()),
                reported = self.events.next() => self.core.take_events(&reported),
                Some(arrival) = self.streams.arrivals.recv() => self.core.take_arrival(arrival, Instant::now()),
                () = tokio::time::sleep_until(wake.min(now + ATTACH_PERIOD).into()) => self.attach(),
            }
        }
    }

    /// Brings the programs to the interfaces, and tells the core what came of it.
    fn attach(&mut self) {
        let links = Arc::clone(&self.network.links.borrow_and_update());
        let interfaces = self.attacher.reconcile(&links).to_vec();
        self.core
            .interfaces(&interfaces, self.attacher.xdp_interfaces(), &links);
        self.hops();
    }

    fn hops(&mut self) {
        let next_hops = Arc::clone(&self.network.next_hops.borrow_and_update());
        self.core.next_hops(next_hops);
    }
}

/// Prints what the verifier says: one line per program.
#[expect(clippy::print_stdout, reason = "printing is what the command is for")]
pub fn verify() -> anyhow::Result<()> {
    for load::Verified {
        name,
        verified_instructions,
        translated_bytes,
        machine_bytes,
    } in load::verify(load::OBJECT)?
    {
        println!(
            "{name}: {} instructions, {verified_instructions} looked at by the verifier, {machine_bytes} bytes of machine code",
            translated_bytes / BYTES_PER_INSTRUCTION
        );
    }
    Ok(())
}

/// Of BPF.
const BYTES_PER_INSTRUCTION: u32 = 8;

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
