//! Who takes part: an owner that pins flows of its pod, and balancers, each a real agent's core behind a real server.

use std::net::Ipv4Addr;
use std::ops::Range;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Instant, SystemTime};

use anyhow::Context as _;
use authority::handoff::{Files, Holder, Signer};
use jiff::Timestamp;
use lb_controller::handoff::client::Client;
use lb_controller::handoff::counts::{Streams, Tally};
use lb_controller::handoff::dial::Dialler;
use lb_controller::handoff::outbox::Outbox;
use lb_controller::handoff::peer::Role;
use lb_controller::handoff::reload::Tls;
use lb_controller::handoff::server::{ARRIVALS_MAX, Arrival, Server};
use lb_controller::handoff::tls::{Credentials, Pem};
use lb_controller::handoff::{HANDOFF_PORT, Nodes, Others, Times};
use lb_controller::model::pins::{FlowKey, Incarnation, LOG_MAX, PinnedPod, Writer};
use lb_controller::model::template::NodeAddresses;
use lb_ebpf::wire::protocol;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::control;
use crate::pin_dir::PinDir;

/// Last byte of the owner's address; balancers have their numbers.
const OWNER: u8 = 200;
/// Ports of a client that opens many flows.
const PORTS: u32 = 50_000;

fn addresses(number: u8) -> NodeAddresses {
    NodeAddresses {
        v4: Some(Ipv4Addr::new(127, 0, 1, number)),
        v6: None,
    }
}

/// Flow number `n`.
fn flow(n: u32) -> anyhow::Result<FlowKey> {
    let client = Ipv4Addr::from_bits(0xc633_6400 + n / PORTS);
    let port = 1 + (n % PORTS) as u16;
    let vip = (Ipv4Addr::new(203, 0, 113, 1), 443);
    let key = FlowKey::new(protocol::TCP, (client, port).into(), vip.into());
    Ok(key?)
}

/// What all agents show each other.
fn tls() -> anyhow::Result<Tls> {
    let files = Signer::new(SystemTime::now())?.files(Holder::Agents)?;
    let pem = Pem {
        authorities: file(&files, "ca.crt")?,
        certificate: file(&files, "tls.crt")?,
        key: file(&files, "tls.key")?,
    };
    let credentials = Credentials::new(&pem, Role::Agent, "", Timestamp::now())?;
    Ok(Tls {
        credentials: Some(Arc::new(credentials)),
        fault: None,
        loads: 1,
    })
}

fn file(files: &Files, name: &str) -> anyhow::Result<Vec<u8>> {
    let found = files.iter().find(|(known, _)| *known == name);
    let (_, text) = found.with_context(|| format!("no {name} among the files of an agent"))?;
    Ok(text.clone().into_bytes())
}

/// The pins of a node, with as much room as a balancer has.
fn writer(start: u64, pins: impl IntoIterator<Item = (FlowKey, PinnedPod)>) -> Writer {
    let writer = Writer::new(Incarnation(start), pins);
    writer.with_limits(control::PINS as usize, LOG_MAX)
}

/// A node that owns flows.
pub(super) struct Owner {
    name: Arc<str>,
    pod: PinnedPod,
    tls: watch::Sender<Tls>,
    nodes: watch::Sender<Nodes>,
    balancers: watch::Sender<Others>,
    outbox: Arc<Outbox>,
    tally: Tally<Streams>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Owner {
    /// It has pinned nothing, and tells nobody yet.
    pub(super) fn new() -> anyhow::Result<Self> {
        let name: Arc<str> = control::other_node().into();
        let pod = PinnedPod {
            uid: "00000001-6a0c-4b1e-9a65-1f6f3a8f6a10".into(),
            node: Arc::clone(&name),
            address: Ipv4Addr::new(10, 128, 0, 1).into(),
            port: 8080,
        };
        let own = Nodes {
            own: addresses(OWNER),
            ..Nodes::default()
        };
        Ok(Self {
            name,
            pod,
            tls: watch::Sender::new(tls()?),
            nodes: watch::Sender::new(own),
            balancers: watch::Sender::new(Others::new()),
            outbox: Outbox::new(writer(1, [])),
            tally: Tally::default(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        })
    }

    /// Tells these balancers from now on.
    pub(super) fn tell(&self, balancers: &[Balancer]) {
        let names = balancers.iter();
        let names = names.map(|one| (Arc::clone(&one.name), one.addresses));
        self.balancers.send_replace(names.collect());
        let client = Client {
            node: Arc::clone(&self.name),
            dialler: Dialler {
                from: Some(self.nodes.subscribe()),
                port: HANDOFF_PORT,
                tls: self.tls.subscribe(),
                times: Times::default(),
            },
            outbox: Arc::clone(&self.outbox),
            tally: self.tally.clone(),
        };
        let told = self.balancers.subscribe();
        self.tasks.spawn(client.run(told, self.stop.clone()));
    }

    /// Its agent starts again, and has pinned what it had; nobody is told yet.
    pub(super) fn restart(&mut self, start: u64) {
        self.end();
        self.stop = CancellationToken::new();
        self.tasks = TaskTracker::new();
        let pins = self.outbox.with(|writer| writer.pins().clone());
        self.outbox = Outbox::new(writer(1 + start, pins));
    }

    /// Ends its streams.
    pub(super) fn end(&self) {
        self.stop.cancel();
        self.tasks.close();
        Handle::current().block_on(self.tasks.wait());
    }

    /// Pins flows.
    pub(super) fn pin(&self, flows: Range<u32>) -> anyhow::Result<()> {
        for n in flows {
            let (key, pod) = (flow(n)?, self.pod.clone());
            self.outbox.with(|writer| writer.pin(key, pod))?;
        }
        Ok(())
    }

    /// They have ended.
    pub(super) fn unpin(&self, flows: Range<u32>) -> anyhow::Result<()> {
        for n in flows {
            let key = flow(n)?;
            self.outbox.with(|writer| writer.unpin(&key));
        }
        Ok(())
    }

    /// Whether all balancers have acknowledged everything.
    pub(super) fn is_settled(&self) -> bool {
        let told = self.balancers.borrow();
        self.outbox
            .with(|writer| writer.settled(writer.position(), told.keys()))
    }

    /// Why streams have ended.
    pub(super) fn faults(&self) -> String {
        let streams = self.tally.read();
        let faults = streams.values().filter_map(|stream| stream.fault.clone());
        faults.collect::<Vec<_>>().join("; ")
    }
}

/// A node that is told.
pub(super) struct Balancer {
    name: Arc<str>,
    addresses: NodeAddresses,
    /// Who is told may come; kept for as long as the server looks at it.
    _nodes: watch::Sender<Nodes>,
    stop: CancellationToken,
    server: tokio::task::JoinHandle<()>,
    core: JoinHandle<()>,
}

impl Balancer {
    /// Begins to listen, with maps of its own and nothing pinned.
    pub(super) fn start(number: u8, dir: &PinDir, owner: &Owner) -> anyhow::Result<Self> {
        let name = format!("balancer-{number}");
        let mut agent = control::balancer(&dir.path().join(&name))?;
        let addresses = addresses(1 + number);
        let nodes = watch::Sender::new(Nodes {
            own: addresses,
            nodes: [(Arc::clone(&owner.name), self::addresses(OWNER))].into(),
        });
        let (arrivals, mut arrived) = mpsc::channel::<Arrival>(ARRIVALS_MAX);
        let core = thread::spawn(move || {
            while let Some(arrival) = arrived.blocking_recv() {
                agent.take_arrival(arrival, Instant::now());
            }
        });
        let stop = CancellationToken::new();
        let server = Server {
            port: HANDOFF_PORT,
            nodes: nodes.subscribe(),
            tls: owner.tls.subscribe(),
            core: arrivals,
            tally: Tally::default(),
            times: Times::default(),
        };
        let server = tokio::spawn(server.run(stop.clone()));
        Ok(Self {
            name: name.into(),
            addresses,
            _nodes: nodes,
            stop,
            server,
            core,
        })
    }

    /// Ends its server, and then its core.
    pub(super) fn end(self) -> anyhow::Result<()> {
        self.stop.cancel();
        Handle::current().block_on(self.server)?;
        if let Err(panic) = self.core.join() {
            std::panic::resume_unwind(panic);
        }
        Ok(())
    }
}
