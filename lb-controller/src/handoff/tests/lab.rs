//! A few agents on addresses of loopback, each with a server, a client and a core that keeps pins.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use authority::Pair;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::certs::{Authority, pem};
use crate::handoff::client::Client;
use crate::handoff::counts::{Cause, ServerCounts, StreamCounts, Streams, Tally};
use crate::handoff::dial::Dialler;
use crate::handoff::message::{Hello, Instruction, Refused, Report};
use crate::handoff::outbox::Outbox;
use crate::handoff::peer::Role;
use crate::handoff::reload::Tls;
use crate::handoff::server::{ARRIVALS_MAX, Arrival, Server};
use crate::handoff::tls::Credentials;
use crate::handoff::{HANDOFF_PORT, Nodes, Others, Times};
use crate::model::pins::{FlowKey, Incarnation, PINS_MAX, PinnedPod, Receiver, Snapshot, Writer};
use crate::model::template::NodeAddresses;

/// Longest wait for anything in these tests; the machine may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Short times, so that what ends by time ends soon.
pub(crate) fn times() -> Times {
    Times {
        ping: Duration::from_millis(500),
        unread_max: Duration::from_millis(300),
        retry_first: Duration::from_millis(5),
        retry_max: Duration::from_millis(50),
        ..Times::default()
    }
}

/// Waits until it is so.
pub(crate) async fn until(what: &str, is_so: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// A test's own piece of 127.0.0.0/8, so that all can use the same port at once, other processes included.
pub(crate) struct Net {
    prefix: [u8; 3],
}

impl Net {
    fn new() -> Self {
        static NEXT: AtomicU8 = AtomicU8::new(1);
        let process = std::process::id() % 251 + 1;
        Self {
            prefix: [127, process as u8, NEXT.fetch_add(1, Ordering::Relaxed)],
        }
    }

    pub(crate) fn address(&self, node: &str) -> Ipv4Addr {
        let [a, b, c] = self.prefix;
        Ipv4Addr::new(a, b, c, node.as_bytes()[0])
    }

    pub(crate) fn addresses(&self, node: &str) -> NodeAddresses {
        NodeAddresses {
            v4: Some(self.address(node)),
            v6: None,
        }
    }
}

pub(crate) fn credentials(authorities: &[&Authority], role: Role, pair: &Pair) -> Tls {
    let pem = pem(authorities, pair);
    let made = Credentials::new(&pem, role, "", jiff::Timestamp::now());
    Tls {
        credentials: Some(Arc::new(made.expect("good"))),
        fault: None,
        loads: 1,
    }
}

/// Nodes that know each other.
pub(crate) struct Lab {
    pub(crate) net: Net,
    pub(crate) authority: Authority,
    names: Vec<&'static str>,
}

impl Lab {
    pub(crate) fn new(names: &[&'static str]) -> Self {
        Self {
            net: Net::new(),
            authority: Authority::new("lab"),
            names: names.to_vec(),
        }
    }

    pub(crate) fn nodes(&self, own: &str) -> Nodes {
        let all = self.names.iter();
        Nodes {
            own: self.net.addresses(own),
            nodes: all
                .map(|name| ((*name).into(), self.net.addresses(name)))
                .collect(),
        }
    }

    pub(crate) fn others(&self, names: &[&str]) -> Others {
        let names = names.iter();
        names
            .map(|name| ((*name).into(), self.net.addresses(name)))
            .collect()
    }

    pub(crate) fn agent(&self) -> Tls {
        let pair = self.authority.issue(&["agent.bowline"]);
        credentials(&[&self.authority], Role::Agent, &pair)
    }

    pub(crate) fn manager(&self) -> Tls {
        let pair = self.authority.issue(&["manager.bowline"]);
        credentials(&[&self.authority], Role::Manager, &pair)
    }

    /// Dials as a node does.
    pub(crate) fn dialler(&self, node: &str, tls: watch::Receiver<Tls>) -> Dialler {
        Dialler {
            from: Some(watch::channel(self.nodes(node)).1),
            port: HANDOFF_PORT,
            tls,
            times: times(),
        }
    }

    pub(crate) fn balancer(&self, name: &'static str) -> Balancer {
        Balancer::start(self, name, watch::channel(self.agent()).0, PINS_MAX)
    }

    pub(crate) fn owner(&self, name: &'static str, writer: Writer, to: &[&str]) -> Owner {
        Owner::start(self, name, watch::channel(self.agent()).0, writer, to)
    }
}

/// A pod of a node.
pub(crate) fn pod(node: &str) -> PinnedPod {
    PinnedPod {
        uid: format!("pod-on-{node}").into(),
        node: node.into(),
        address: [10, 0, 0, node.as_bytes()[0]].into(),
        port: 8080,
    }
}

pub(crate) fn writer(incarnation: u64) -> Writer {
    Writer::new(Incarnation(incarnation), [])
}

/// Flow number `n`.
pub(crate) fn flow(n: u32) -> FlowKey {
    let client = Ipv4Addr::from_bits(0xc633_0000 + n / 50_000);
    let port = (n % 50_000) as u16 + 1;
    let vip = ([203, 0, 113, 1], 443).into();
    FlowKey::new(6, (client, port).into(), vip).unwrap()
}

/// What a core keeps.
pub(crate) struct Kept {
    pub(crate) receiver: Receiver,
    /// Operations, in order of their times.
    pub(crate) ops: usize,
    pub(crate) hellos: Vec<Hello>,
    pub(crate) ended: Vec<Arc<str>>,
    pub(crate) instructions: Vec<Instruction>,
    pub(crate) managers: BTreeMap<u64, mpsc::Sender<Report>>,
    pub(crate) first: Vec<Report>,
    pub(crate) is_ready: bool,
}

/// A balancer: a server and a core.
pub(crate) struct Balancer {
    pub(crate) kept: Arc<Mutex<Kept>>,
    pub(crate) tally: Tally<ServerCounts>,
    pub(crate) tls: watch::Sender<Tls>,
    nodes: watch::Sender<Nodes>,
    arrivals: mpsc::Sender<Arrival>,
    stop: CancellationToken,
    server: JoinHandle<()>,
    core: JoinHandle<()>,
}

impl Balancer {
    pub(crate) fn start(
        lab: &Lab,
        name: &'static str,
        tls: watch::Sender<Tls>,
        limit: usize,
    ) -> Self {
        let kept = Arc::new(Mutex::new(Kept {
            receiver: Receiver::new(limit),
            ops: 0,
            hellos: Vec::new(),
            ended: Vec::new(),
            instructions: Vec::new(),
            managers: BTreeMap::new(),
            first: Vec::new(),
            is_ready: true,
        }));
        let (arrivals, taken) = mpsc::channel(ARRIVALS_MAX);
        let core = tokio::spawn(core(taken, Arc::clone(&kept)));
        let (nodes, _) = watch::channel(lab.nodes(name));
        let tally = Tally::default();
        let stop = CancellationToken::new();
        let server = tokio::spawn(serve(&nodes, &tls, &arrivals, &tally, &stop));
        Self {
            kept,
            tally,
            tls,
            nodes,
            arrivals,
            stop,
            server,
            core,
        }
    }

    pub(crate) fn look<T>(&self, look: impl FnOnce(&mut Kept) -> T) -> T {
        look(&mut self.kept.lock().unwrap())
    }

    /// The pins that it has of a writer.
    pub(crate) fn pins(&self, writer: &str) -> BTreeMap<FlowKey, PinnedPod> {
        self.look(|kept| kept.receiver.pins_of(writer))
    }

    pub(crate) fn refused(&self, cause: Cause) -> u64 {
        self.tally.read().refused.get(&cause).copied().unwrap_or(0)
    }

    /// Ends the server, and all its connections; the core stays.
    pub(crate) async fn cut(&mut self) {
        self.stop.cancel();
        (&mut self.server).await.unwrap();
    }

    pub(crate) fn resume(&mut self) {
        self.stop = CancellationToken::new();
        let serve = serve(
            &self.nodes,
            &self.tls,
            &self.arrivals,
            &self.tally,
            &self.stop,
        );
        self.server = tokio::spawn(serve);
    }

    /// Ends, and shows that nothing is left.
    pub(crate) async fn end(mut self) {
        self.cut().await;
        let counts = self.tally.read();
        assert_eq!((counts.connections, counts.streams), (0, 0));
        drop(self.arrivals);
        self.core.await.unwrap();
    }
}

fn serve(
    nodes: &watch::Sender<Nodes>,
    tls: &watch::Sender<Tls>,
    core: &mpsc::Sender<Arrival>,
    tally: &Tally<ServerCounts>,
    stop: &CancellationToken,
) -> impl Future<Output = ()> + use<> {
    Server {
        port: HANDOFF_PORT,
        nodes: nodes.subscribe(),
        tls: tls.subscribe(),
        core: core.clone(),
        tally: tally.clone(),
        times: times(),
    }
    .run(stop.clone())
}

async fn core(mut arrivals: mpsc::Receiver<Arrival>, kept: Arc<Mutex<Kept>>) {
    while let Some(arrival) = arrivals.recv().await {
        take(&mut kept.lock().unwrap(), arrival);
    }
}

fn take(kept: &mut Kept, arrival: Arrival) {
    match arrival {
        Arrival::Hello {
            writer,
            hello,
            answer,
        } => {
            kept.hellos.push(hello);
            _ = answer.send(Ok(kept.receiver.position(&writer)));
        }
        Arrival::Message {
            writer,
            message,
            answer,
        } => {
            let taken = kept.receiver.take(&writer, message);
            kept.ops += taken.ops.len();
            let told = match &taken.refused {
                Some(refusal) => Err(Refused::from(refusal)),
                None => Ok(kept.receiver.position(&writer)),
            };
            _ = answer.send(told);
        }
        Arrival::Ended { writer } => kept.ended.push(writer),
        Arrival::Manager {
            stream,
            first,
            reports,
        } => {
            _ = first.send(kept.first.clone());
            kept.managers.insert(stream, reports);
        }
        Arrival::Instruction { instruction, .. } => kept.instructions.push(instruction),
        Arrival::ManagerEnded { stream } => _ = kept.managers.remove(&stream),
        Arrival::Copy { after, answer, .. } => {
            let next = kept
                .receiver
                .positions()
                .find(|(writer, _)| Some(*writer) > after.as_ref())
                .map(|(writer, position)| (Arc::clone(writer), position));
            let told = next.map(|(writer, position)| {
                let pins = kept.receiver.pins_of(&writer).into_iter().collect();
                (writer, Snapshot { position, pins })
            });
            _ = answer.send(if kept.is_ready {
                Ok(told)
            } else {
                Err("this balancer is not ready itself".to_owned())
            });
        }
    }
}

/// An owner: a writer and a client.
pub(crate) struct Owner {
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) tally: Tally<Streams>,
    pub(crate) tls: watch::Sender<Tls>,
    pub(crate) balancers: watch::Sender<Others>,
    pod: PinnedPod,
    stop: CancellationToken,
    client: JoinHandle<()>,
}

impl Owner {
    pub(crate) fn start(
        lab: &Lab,
        name: &'static str,
        tls: watch::Sender<Tls>,
        writer: Writer,
        to: &[&str],
    ) -> Self {
        let outbox = Outbox::new(writer);
        let tally = Tally::default();
        let (balancers, told) = watch::channel(lab.others(to));
        let stop = CancellationToken::new();
        let client = Client {
            node: name.into(),
            dialler: lab.dialler(name, tls.subscribe()),
            outbox: Arc::clone(&outbox),
            tally: tally.clone(),
        };
        let client = tokio::spawn(client.run(told, stop.clone()));
        Self {
            outbox,
            tally,
            tls,
            balancers,
            pod: pod(name),
            stop,
            client,
        }
    }

    pub(crate) fn pin(&self, flows: std::ops::Range<u32>) {
        for n in flows {
            let pod = self.pod.clone();
            let pinned = self.outbox.with(|writer| writer.pin(flow(n), pod));
            pinned.expect("room");
        }
    }

    pub(crate) fn unpin(&self, flows: std::ops::Range<u32>) {
        for n in flows {
            self.outbox.with(|writer| writer.unpin(&flow(n)));
        }
    }

    pub(crate) fn pins(&self) -> BTreeMap<FlowKey, PinnedPod> {
        self.outbox.with(|writer| writer.pins().clone())
    }

    pub(crate) fn counts(&self, balancer: &str) -> StreamCounts {
        let streams = self.tally.read();
        streams.get(balancer).cloned().unwrap_or_default()
    }

    /// Waits until these balancers have acknowledged all.
    pub(crate) async fn settled(&self, balancers: &[&str]) {
        let balancers: Vec<Arc<str>> = balancers.iter().map(|name| (*name).into()).collect();
        until("all is acknowledged", || {
            self.outbox
                .with(|writer| writer.settled(writer.position(), &balancers))
        })
        .await;
    }

    pub(crate) async fn end(self) {
        self.stop.cancel();
        self.client.await.unwrap();
    }
}
