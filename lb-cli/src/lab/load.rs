//! Many short connections, datagram streams and transfers from the client's namespace. Everything here runs on the
//! client's worker; results are values.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufStream};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::sync::{Mutex, Semaphore};
use tokio_util::sync::CancellationToken;

use super::server;
use super::wire::Who;

/// A connection that is not open and answered by then has failed: eight times what a lost SYN costs.
const ANSWER_LIMIT: Duration = Duration::from_secs(8);
/// A datagram without an answer by then is lost: a round trip takes less than a millisecond.
const DATAGRAM_LIMIT: Duration = Duration::from_secs(2);
/// A refusal that takes longer is none: a client would have sent its SYN again.
const REFUSAL_LIMIT: Duration = Duration::from_millis(900);
/// Connections under way at the same moment.
const CONCURRENT: usize = 128;
/// Bytes of one of many transfers, each way, and the pause after it: some 10 MB/s, so that the queues of 256 frames on
/// veths do not overflow when a busy machine empties them late. Whoever counts lost datagrams must not count those.
const TRANSFER_PART: u64 = 256 << 10;
const TRANSFER_PAUSE: Duration = Duration::from_millis(25);
/// Reasons of failures that are kept word for word.
const REASONS_MAX: usize = 5;

/// Transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A way to reach a Service: from an address of the client to a VIP and port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Way {
    /// TCP or UDP.
    pub(crate) protocol: Protocol,
    /// The client's address and port.
    pub(crate) from: SocketAddr,
    /// VIP and port.
    pub(crate) to: SocketAddr,
}

/// What happened to short connections (of UDP: one datagram and its answer).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Tried.
    pub(crate) connections: u64,
    /// Of them failed.
    pub(crate) failed: u64,
    /// Of the failed, datagrams without an answer.
    pub(crate) udp_lost: u64,
    /// The server saw another client address or port than the client has.
    pub(crate) address_changed: u64,
    /// Answers by UID of the pod.
    pub(crate) by_pod: BTreeMap<String, u64>,
    /// UIDs of the pods that answered each address of the client.
    pub(crate) by_client: BTreeMap<IpAddr, BTreeSet<String>>,
    /// The first few reasons of failures.
    pub(crate) reasons: Vec<String>,
}

impl Tally {
    fn note(&mut self, way: Way, result: anyhow::Result<(Who, SocketAddr)>) {
        self.connections += 1;
        match result {
            Ok((who, local)) => {
                self.address_changed += u64::from(who.client != local);
                let pods = self.by_client.entry(way.from.ip()).or_default();
                if !pods.contains(&who.uid) {
                    pods.insert(who.uid.clone());
                }
                *self.by_pod.entry(who.uid).or_default() += 1;
            }
            Err(error) => {
                self.failed += 1;
                self.udp_lost += u64::from(way.protocol == Protocol::Udp);
                if self.reasons.len() < REASONS_MAX {
                    self.reasons
                        .push(format!("{} → {}: {error:#}", way.from, way.to));
                }
            }
        }
    }
}

/// Opens one connection (or sends one datagram) along every way, several at a time, and asks each pod who it is.
pub(crate) async fn many(ways: impl IntoIterator<Item = Way>) -> anyhow::Result<Tally> {
    let tally = Arc::new(Mutex::new(Tally::default()));
    let places = Arc::new(Semaphore::new(CONCURRENT));
    let mut tasks = tokio::task::JoinSet::new();
    for way in ways {
        let place = Arc::clone(&places)
            .acquire_owned()
            .await
            .context("wait for a place")?;
        let tally = Arc::clone(&tally);
        tasks.spawn(async move {
            let result = once(way).await;
            tally.lock().await.note(way, result);
            drop(place);
        });
        // Keeps the set as small as the number of places.
        while tasks.try_join_next().is_some() {}
    }
    while let Some(ended) = tasks.join_next().await {
        ended.context("a connection's task ended early")?;
    }
    let tally = tally.lock().await;
    Ok(tally.clone())
}

/// Opens so many connections a second, each along the next way, until told to stop.
pub(crate) async fn steady(
    ways: impl Iterator<Item = Way>,
    per_second: u32,
    stop: CancellationToken,
) -> anyhow::Result<Tally> {
    let tally = Arc::new(Mutex::new(Tally::default()));
    let mut tasks = tokio::task::JoinSet::new();
    let mut tick = tokio::time::interval(Duration::from_secs(1) / per_second.max(1));
    for way in ways {
        tokio::select! {
            () = stop.cancelled() => break,
            _ = tick.tick() => {}
        }
        let tally = Arc::clone(&tally);
        tasks.spawn(async move {
            let result = once(way).await;
            tally.lock().await.note(way, result);
        });
        while tasks.try_join_next().is_some() {}
    }
    while let Some(ended) = tasks.join_next().await {
        ended.context("a connection's task ended early")?;
    }
    let tally = tally.lock().await;
    Ok(tally.clone())
}

/// Who answers, and the client's own address.
async fn once(way: Way) -> anyhow::Result<(Who, SocketAddr)> {
    match way.protocol {
        Protocol::Tcp => match tokio::time::timeout(ANSWER_LIMIT, once_tcp(way)).await {
            Ok(result) => result,
            Err(_) => bail!("no answer within {} s", ANSWER_LIMIT.as_secs()),
        },
        Protocol::Udp => once_udp(way).await,
    }
}

/// A connection, or a datagram, is answered within `limit`.
pub(crate) async fn answers(way: Way, limit: Duration) -> bool {
    matches!(tokio::time::timeout(limit, once(way)).await, Ok(Ok(_)))
}

async fn once_tcp(way: Way) -> anyhow::Result<(Who, SocketAddr)> {
    let stream = connect(way).await?;
    let local = stream.local_addr().context("own address")?;
    let mut stream = BufStream::new(stream);
    stream.write_all(b"who\n").await.context("write")?;
    stream.flush().await.context("write")?;
    let mut line = String::new();
    stream.read_line(&mut line).await.context("read")?;
    let who = Who::parse(&line).with_context(|| format!("odd answer {line:?}"))?;
    Ok((who, local))
}

async fn once_udp(way: Way) -> anyhow::Result<(Who, SocketAddr)> {
    let socket = datagrams(way).await?;
    let local = socket.local_addr().context("own address")?;
    socket.send(b"hello").await.context("send")?;
    let mut buffer = [0; 512];
    let Ok(received) = tokio::time::timeout(DATAGRAM_LIMIT, socket.recv(&mut buffer)).await else {
        bail!("no answer within {} s", DATAGRAM_LIMIT.as_secs());
    };
    let text = String::from_utf8_lossy(&buffer[..received.context("receive")?]).into_owned();
    let who = text.strip_prefix("hello ").and_then(Who::parse);
    Ok((who.with_context(|| format!("odd answer {text:?}"))?, local))
}

/// Finds out whether a new connection, or a datagram, is refused at once.
pub(crate) async fn refused(way: Way) -> anyhow::Result<()> {
    let tried = async {
        match way.protocol {
            Protocol::Tcp => connect(way).await.map(drop),
            Protocol::Udp => once_udp(way).await.map(drop),
        }
    };
    let to = way.to;
    match tokio::time::timeout(REFUSAL_LIMIT, tried).await {
        Err(_) => bail!("{to} is silent instead of refusing"),
        Ok(Ok(())) => bail!("{to} answers instead of refusing"),
        Ok(Err(error)) => {
            let refused = error
                .chain()
                .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
                .any(|cause| cause.kind() == std::io::ErrorKind::ConnectionRefused);
            ensure!(refused, "{to} does not refuse: {error:#}");
            Ok(())
        }
    }
}

/// Opens a TCP connection from the way's own address and port.
pub(crate) async fn connect(way: Way) -> anyhow::Result<TcpStream> {
    connect_with(way, Window::Automatic).await
}

/// How much may be under way on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Window {
    /// As much as the kernel finds good.
    Automatic,
    /// Little, so that several transfers together do not overflow a queue. TCP fills the narrowest queue of a way until it
    /// overflows; here that is the ring of a veth, which holds 256 frames, far fewer than a network card or a switch.
    Small,
}

/// Bytes of socket buffers with [`Window::Small`]: some 20 segments, so that eight transfers stay below 256.
const SMALL_WINDOW: u32 = 32 * 1024;

async fn connect_with(way: Way, window: Window) -> anyhow::Result<TcpStream> {
    let socket = if way.to.is_ipv4() {
        TcpSocket::new_v4()
    } else {
        TcpSocket::new_v6()
    };
    let socket = socket.context("open a socket")?;
    if window == Window::Small {
        socket
            .set_send_buffer_size(SMALL_WINDOW)
            .context("size a buffer")?;
        socket
            .set_recv_buffer_size(SMALL_WINDOW)
            .context("size a buffer")?;
    }
    socket
        .bind(way.from)
        .with_context(|| format!("bind to {}", way.from))?;
    let stream = socket.connect(way.to).await.context("connect")?;
    stream.set_nodelay(true).context("switch delays off")?;
    Ok(stream)
}

/// Opens a UDP socket that speaks to one address only.
pub(crate) async fn datagrams(way: Way) -> anyhow::Result<UdpSocket> {
    let socket = UdpSocket::bind(way.from).await;
    let socket = socket.with_context(|| format!("bind to {}", way.from))?;
    socket.connect(way.to).await.context("connect")?;
    Ok(socket)
}

/// Sends so many bytes to the pod and receives as many on a connection of their own; returns how many went over the wire.
pub(crate) async fn transfer(way: Way, bytes: u64) -> anyhow::Result<u64> {
    let mut stream = BufStream::new(connect_with(way, Window::Small).await?);
    exchange(&mut stream, bytes).await
}

/// Sends so many bytes to the pod and receives as many, checks both, and returns how many went over the wire.
async fn exchange(stream: &mut BufStream<TcpStream>, bytes: u64) -> anyhow::Result<u64> {
    stream
        .write_all(format!("take {bytes}\n").as_bytes())
        .await
        .context("ask")?;
    server::send(stream, bytes).await.context("send")?;
    let mut line = String::new();
    stream.read_line(&mut line).await.context("read")?;
    ensure!(
        line == format!("taken {bytes} good\n"),
        "the pod says {line:?} of {bytes} bytes sent"
    );
    stream
        .write_all(format!("send {bytes}\n").as_bytes())
        .await
        .context("ask")?;
    stream.flush().await.context("ask")?;
    ensure!(
        server::take(stream, bytes).await.context("receive")?,
        "bytes that came back are not those that were sent"
    );
    Ok(2 * bytes)
}

/// Transfers both ways again and again on one connection until told to stop; returns bytes.
pub(crate) async fn transfers(way: Way, stop: CancellationToken) -> anyhow::Result<u64> {
    let mut stream = BufStream::new(connect_with(way, Window::Small).await?);
    let mut total = 0;
    while !stop.is_cancelled() {
        total += exchange(&mut stream, TRANSFER_PART).await?;
        tokio::time::sleep(TRANSFER_PAUSE).await;
    }
    Ok(total)
}

/// What happened to a stream of datagrams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stream {
    /// Datagrams sent.
    pub(crate) sent: u64,
    /// Datagrams without an answer.
    pub(crate) lost: u64,
}

/// Sends so many numbered datagrams a second from one socket until told to stop, then waits for the last answers.
pub(crate) async fn stream(
    way: Way,
    per_second: u32,
    stop: CancellationToken,
) -> anyhow::Result<Stream> {
    let socket = datagrams(way).await?;
    let mut answered = BTreeSet::new();
    let mut sent = 0_u64;
    let mut buffer = [0; 512];
    let mut tick = tokio::time::interval(Duration::from_secs(1) / per_second.max(1));
    let number = |datagram: &[u8]| -> Option<u64> {
        std::str::from_utf8(datagram)
            .ok()?
            .split(' ')
            .next()?
            .parse()
            .ok()
    };
    while !stop.is_cancelled() {
        tokio::select! {
            _ = tick.tick() => {
                socket.send(sent.to_string().as_bytes()).await.context("send")?;
                sent += 1;
            }
            received = socket.recv(&mut buffer) => {
                answered.extend(number(&buffer[..received.context("receive")?]));
            }
        }
    }
    let last = Instant::now() + DATAGRAM_LIMIT;
    while (answered.len() as u64) < sent {
        match tokio::time::timeout_at(last.into(), socket.recv(&mut buffer)).await {
            Ok(received) => answered.extend(number(&buffer[..received.context("receive")?])),
            Err(_) => break,
        }
    }
    Ok(Stream {
        sent,
        lost: sent - answered.len() as u64,
    })
}
