//! What listens on the node's addresses: takes connections whose certificates are believed, and gives every call to a task
//! that ends with the server. What is said there goes to the core as an [`Arrival`].

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::convert::Answer;
use super::counts::{Cause, ServerCounts, Tally};
use super::link::{Caller, Link};
use super::message::{Hello, Instruction, Report};
use super::reload::Tls;
use super::session::Desk;
use super::wire::handoff_server::HandoffServer;
use super::{MESSAGE_MAX, Nodes, Times, WINDOW_BYTES, peer, tls};
use crate::liveness::MEMBERS_MAX;
use crate::model::pins::{Message, Snapshot};
use crate::model::template::NodeAddresses;

/// What may wait for the core. One message of each stream at most is under way, so this is reached only when very many streams
/// begin at once; they wait, and TCP makes their peers wait.
pub const ARRIVALS_MAX: usize = 256;
/// Connections at once: one of each node, one more while its predecessor is not known to be dead, and the managers'.
const CONNECTIONS_MAX: usize = 2 * MEMBERS_MAX + 8;
/// Handshakes at once with addresses of nodes, and as many with others; more are closed at once. Each takes well below a
/// millisecond of work, so this many are a crowd.
const HANDSHAKES_MAX: usize = 64;
/// Calls at once in one connection; peers make one.
const CALLS_MAX: u32 = 4;
/// Connections in the kernel that nobody has taken yet.
const BACKLOG: u32 = 256;
/// How long to wait before a socket that can not be had is tried again: an address may come later than the agent.
const BIND_RETRY: Duration = Duration::from_secs(1);
/// How long connections may take to end in an orderly way.
const END_MAX: Duration = Duration::from_secs(2);

/// What others tell the core. Dropping an answer refuses what was asked.
#[derive(Debug)]
pub enum Arrival {
    /// A writer's stream begins. The answer is what the maps hold of its pins.
    Hello {
        /// The writer, checked.
        writer: Arc<str>,
        /// What it says.
        hello: Hello,
        /// What the maps hold of its pins.
        answer: oneshot::Sender<Answer>,
    },
    /// A writer tells something.
    Message {
        /// The writer.
        writer: Arc<str>,
        /// What it says.
        message: Message,
        /// What the maps hold of its pins now. To be given after they do.
        answer: oneshot::Sender<Answer>,
    },
    /// A writer's stream has ended.
    Ended {
        /// The writer.
        writer: Arc<str>,
    },
    /// A manager wants to know how things are, and may have instructions.
    Manager {
        /// Tells its stream from others'.
        stream: u64,
        /// What is the case now: the greeting, then every table.
        first: oneshot::Sender<Vec<Report>>,
        /// What changes after that. If it is full, drop it: the manager comes again and is told everything.
        reports: mpsc::Sender<Report>,
    },
    /// A manager wants something.
    Instruction {
        /// Of which stream.
        stream: u64,
        /// What.
        instruction: Instruction,
    },
    /// A manager's stream has ended.
    ManagerEnded {
        /// Which.
        stream: u64,
    },
    /// A node that joins wants the pins of the next writer.
    Copy {
        /// The node.
        node: Arc<str>,
        /// The writer told last; none at first.
        after: Option<Arc<str>>,
        /// The next in the order of names; none when all are told.
        answer: oneshot::Sender<CopyAnswer>,
    },
}

/// The next writer and its pins; or why this balancer has no copy to give, for people.
pub type CopyAnswer = Result<Option<(Arc<str>, Snapshot)>, String>;

/// The server of one agent.
pub struct Server {
    /// Port to listen on; see [`super::HANDOFF_PORT`].
    pub port: u16,
    /// Who may come, and where we are.
    pub nodes: watch::Receiver<Nodes>,
    /// Keys and certificates; as long as there are none, nobody is let in.
    pub tls: watch::Receiver<Tls>,
    /// The core; see [`ARRIVALS_MAX`].
    pub core: mpsc::Sender<Arrival>,
    /// What is counted.
    pub tally: Tally<ServerCounts>,
    /// How long others may take.
    pub times: Times,
}

impl Server {
    /// Listens until stopped.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            let known = self
                .nodes
                .wait_for(|nodes| nodes.own != NodeAddresses::default());
            let known = async { known.await.ok().map(|nodes| nodes.own) };
            let Some(Some(own)) = stop.run_until_cancelled(known).await else {
                return;
            };
            let until = stop.child_token();
            let mut nodes = self.nodes.clone();
            let moved = async {
                let moved = async { nodes.wait_for(|nodes| nodes.own != own).await.is_ok() };
                // If nobody tells addresses any more, these stay.
                if until.run_until_cancelled(moved).await == Some(true) {
                    until.cancel();
                }
            };
            tokio::join!(self.listen(own, until.clone()), moved);
            if stop.is_cancelled() {
                return;
            }
        }
    }

    /// Listens on these addresses.
    async fn listen(&self, own: NodeAddresses, stop: CancellationToken) {
        let Some(listeners) = stop.run_until_cancelled(self.bind(own)).await else {
            return;
        };
        let desk = Desk::new(
            self.nodes.clone(),
            self.core.clone(),
            self.tally.clone(),
            self.times,
            stop.child_token(),
        );
        let service = HandoffServer::from_arc(Arc::clone(&desk))
            .max_decoding_message_size(MESSAGE_MAX)
            .max_encoding_message_size(MESSAGE_MAX);
        // One place: connections wait in their own tasks, which are limited.
        let (give, mut taken) = mpsc::channel(1);
        let incoming = futures::stream::poll_fn(move |cx| {
            let next = taken.poll_recv(cx);
            next.map(|link| link.map(Ok::<Link, io::Error>))
        });
        let serve = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(self.times.ping))
            .http2_keepalive_timeout(Some(self.times.ping_max))
            .initial_stream_window_size(WINDOW_BYTES)
            .max_concurrent_streams(CALLS_MAX)
            .add_service(service)
            .serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned());
        // Ends connections that do not end themselves.
        let close = CancellationToken::new();
        let accept = Accept {
            server: self,
            give,
            close: close.clone(),
            connections: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            of_nodes: Arc::new(Semaphore::new(HANDSHAKES_MAX)),
            of_others: Arc::new(Semaphore::new(HANDSHAKES_MAX)),
        };
        let served = async {
            let end = async {
                stop.cancelled().await;
                desk.end().await;
                tokio::time::sleep(END_MAX).await;
                close.cancel();
                std::future::pending::<()>().await;
            };
            let served = tokio::select! {
                served = serve => served,
                () = end => Ok(()),
            };
            // Whatever ended it, nobody takes connections any more.
            stop.cancel();
            served
        };
        let ((), served) = tokio::join!(accept.run(listeners, stop.clone()), served);
        if let Err(error) = served {
            tracing::error!(%error, "the handoff stream is served anew");
        }
        close.cancel();
        desk.end().await;
    }

    /// Sockets on the node's addresses; tried until they can be had.
    async fn bind(&self, own: NodeAddresses) -> Vec<TcpListener> {
        let mut is_told = false;
        let addresses = [own.v4.map(IpAddr::V4), own.v6.map(IpAddr::V6)];
        loop {
            let listeners = addresses.into_iter().flatten();
            let listeners: io::Result<Vec<_>> = listeners
                .map(|address| listen(SocketAddr::new(address, self.port)))
                .collect();
            match listeners {
                Ok(listeners) => return listeners,
                Err(error) if is_told => tracing::debug!(%error, "still no socket"),
                Err(error) => {
                    is_told = true;
                    tracing::warn!(port = self.port, ?own, %error, "other nodes can not hand connections off; tried again");
                }
            }
            tokio::time::sleep(BIND_RETRY).await;
        }
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // An agent that starts again must not wait for connections of its predecessor.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Takes connections.
struct Accept<'a> {
    server: &'a Server,
    give: mpsc::Sender<Link>,
    close: CancellationToken,
    connections: Arc<Semaphore>,
    of_nodes: Arc<Semaphore>,
    of_others: Arc<Semaphore>,
}

impl Accept<'_> {
    async fn run(self, listeners: Vec<TcpListener>, stop: CancellationToken) {
        let mut handshakes = JoinSet::new();
        let any = async {
            loop {
                let accepts = listeners.iter().map(|listener| Box::pin(listener.accept()));
                tokio::select! {
                    (accepted, ..) = futures::future::select_all(accepts) => match accepted {
                        Ok((tcp, from)) => self.begin(tcp, from, &mut handshakes),
                        Err(error) => {
                            // No more file descriptors, for example: waiting is all that helps.
                            tracing::warn!(%error, "a connection can not be taken");
                            tokio::time::sleep(BIND_RETRY).await;
                        }
                    },
                    Some(_) = handshakes.join_next() => {}
                }
            }
        };
        _ = stop.run_until_cancelled(any).await;
        handshakes.shutdown().await;
    }

    /// Strangers never take the places of nodes, neither while they shake hands nor, without a certificate, after that.
    fn begin(&self, tcp: TcpStream, from: SocketAddr, handshakes: &mut JoinSet<()>) {
        let tally = &self.server.tally;
        let places = if self.is_node(from.ip()) {
            &self.of_nodes
        } else {
            &self.of_others
        };
        let place = Arc::clone(places).try_acquire_owned();
        let connection = Arc::clone(&self.connections).try_acquire_owned();
        let (Ok(place), Ok(connection)) = (place, connection) else {
            tally.refuse(Cause::Busy);
            return;
        };
        let Some(credentials) = self.server.tls.borrow().credentials.clone() else {
            tally.refuse(Cause::NoCredentials);
            return;
        };
        let handshake = Handshake {
            acceptor: TlsAcceptor::from(Arc::clone(&credentials.server)),
            give: self.give.clone(),
            tally: tally.clone(),
            times: self.server.times,
            close: self.close.child_token(),
            connection,
        };
        handshakes.spawn(async move {
            let begin_max = handshake.times.begin_max;
            let tally = handshake.tally.clone();
            match tokio::time::timeout(begin_max, handshake.run(tcp, from.ip())).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tally.refuse(Cause::Handshake);
                    tracing::debug!(%from, %error, "a connection is not believed");
                }
                Err(_) => tally.refuse(Cause::Slow),
            }
            drop(place);
        });
    }

    fn is_node(&self, address: IpAddr) -> bool {
        let nodes = self.server.nodes.borrow();
        nodes.nodes.values().any(|node| peer::has(node, address))
    }
}

struct Handshake {
    acceptor: TlsAcceptor,
    give: mpsc::Sender<Link>,
    tally: Tally<ServerCounts>,
    times: Times,
    close: CancellationToken,
    connection: OwnedSemaphorePermit,
}

impl Handshake {
    async fn run(self, tcp: TcpStream, address: IpAddr) -> io::Result<()> {
        // An acknowledgement is one small message that must not wait for another.
        tcp.set_nodelay(true)?;
        let stream = self.acceptor.accept(tcp).await?;
        let (_, session) = stream.get_ref();
        let own = session.peer_certificates().and_then(<[_]>::first);
        let caller = Caller {
            address,
            names: own.and_then(tls::names).unwrap_or_default().into(),
            close: self.close,
            has_called: Arc::new(AtomicBool::new(false)),
        };
        let silence_max = self.times.ping + self.times.ping_max;
        let link = Link::new(stream, caller, silence_max, self.connection, &self.tally);
        // The server has ended if nobody takes it.
        _ = self.give.send(link).await;
        Ok(())
    }
}
