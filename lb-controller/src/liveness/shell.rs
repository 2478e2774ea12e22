//! Moves datagrams and time between [`Membership`] and the network. On a thread of its own, as late work looks like
//! silence. Decides nothing.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lb_ebpf::abi::PROBE_PORT;
use lb_ebpf::probe;
use lb_ebpf::wire::Be32;
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::envelope::{Condition, Key};
use super::identity::Identity;
use super::membership::{Counts, Membership, Outgoing};
use super::{GOSSIP_PORT, Liveness};
use crate::model::template::NodeAddresses;

/// Largest datagram that is looked at; those of agents are smaller.
const DATAGRAM_MAX: usize = 2048;
/// Datagrams taken in before other work: more than ever come at once, and a flood does not stop the rest.
const BATCH_MAX: usize = 256;
/// How long to wait before a socket that can not be had is tried again: an address may come later than the agent.
const BIND_RETRY: Duration = Duration::from_secs(1);

/// What other agents and we need to know of each other.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Members {
    /// Addresses of this node; none are known yet if empty.
    pub own: NodeAddresses,
    /// The gossip key of the cluster; waited for.
    pub key: Option<[u8; 32]>,
    /// What questions to programs carry, so that only those of the same cluster answer.
    pub secret: [Be32; 2],
    /// What they are told of this node.
    pub condition: Condition,
    /// All nodes with an agent.
    pub nodes: BTreeMap<Arc<str>, NodeAddresses>,
}

/// What the thread tells.
#[derive(Clone, Debug)]
pub struct Gossip {
    /// How the other nodes are.
    pub liveness: watch::Receiver<Arc<Liveness>>,
    /// What was counted so far.
    pub counts: watch::Receiver<Counts>,
}

/// Follows the other agents until stopped. Waits for addresses and key.
pub fn spawn(
    node: &str,
    members: watch::Receiver<Members>,
    stop: CancellationToken,
) -> io::Result<Gossip> {
    let (tell, liveness) = watch::channel(Arc::default());
    let (count, counts) = watch::channel(Counts::default());
    let shell = Shell {
        node: node.into(),
        members,
        tell,
        count,
        stop,
    };
    std::thread::Builder::new()
        .name("liveness".to_owned())
        .spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            match runtime {
                Ok(runtime) => runtime.block_on(shell.run()),
                Err(error) => tracing::error!(%error, "other agents can not be followed"),
            }
        })?;
    Ok(Gossip { liveness, counts })
}

struct Shell {
    node: Arc<str>,
    members: watch::Receiver<Members>,
    tell: watch::Sender<Arc<Liveness>>,
    count: watch::Sender<Counts>,
    stop: CancellationToken,
}

/// A socket of each family that the node has an address of.
struct Sockets {
    gossip: [Option<UdpSocket>; 2],
    questions: [Option<UdpSocket>; 2],
}

impl Shell {
    async fn run(mut self) {
        let stop = self.stop.clone();
        _ = stop.run_until_cancelled(self.follow()).await;
    }

    async fn follow(&mut self) {
        // Before there is a key nobody could be believed, and without an address nobody could answer.
        let Ok(members) = self
            .members
            .wait_for(|members| members.key.is_some() && members.own != NodeAddresses::default())
            .await
            .map(|members| members.clone())
        else {
            return;
        };
        let now = Instant::now();
        let incarnation = jiff::Timestamp::now().as_millisecond().unsigned_abs();
        let identity = Identity::new(Arc::clone(&self.node), members.own, incarnation);
        let key = Key::new(&members.key.unwrap_or_default());
        let mut membership = Membership::new(identity, key, rand::random(), now);
        membership.name(&members.nodes, now);
        membership.set_condition(members.condition);
        let mut named = members.nodes;
        loop {
            let own = self.members.borrow().own;
            let sockets = self.bind(own).await;
            if self
                .talk(&mut membership, &mut named, &sockets, own)
                .await
                .is_none()
            {
                return;
            }
        }
    }

    /// Sockets on the node's addresses; tried until they can be had.
    async fn bind(&self, own: NodeAddresses) -> Sockets {
        let mut is_told = false;
        loop {
            match Sockets::bind(own).await {
                Ok(sockets) => return sockets,
                Err(error) if is_told => tracing::debug!(%error, "still no socket"),
                Err(error) => {
                    is_told = true;
                    tracing::warn!(port = GOSSIP_PORT, ?own, %error, "other agents can not be heard; tried again");
                }
            }
            tokio::time::sleep(BIND_RETRY).await;
        }
    }

    /// Works until the node's addresses change. None: whoever names the members has ended.
    async fn talk(
        &mut self,
        membership: &mut Membership,
        named: &mut BTreeMap<Arc<str>, NodeAddresses>,
        sockets: &Sockets,
        own: NodeAddresses,
    ) -> Option<()> {
        let mut buffer = [0; DATAGRAM_MAX];
        loop {
            // What has arrived comes before what is due.
            let secret = self.members.borrow().secret;
            sockets.take_in(membership, secret, &mut buffer);
            let next = membership.work(Instant::now());
            for outgoing in membership.outgoing() {
                sockets.send(&outgoing, secret);
            }
            self.tell(membership);
            let changed = tokio::select! {
                changed = self.members.changed() => Some(changed.ok()?),
                () = sockets.readable() => None,
                () = tokio::time::sleep_until(next.into()) => None,
            };
            if changed.is_some() {
                let members = self.members.borrow_and_update().clone();
                let now = Instant::now();
                if let Some(key) = &members.key {
                    membership.set_key(Key::new(key));
                }
                membership.set_condition(members.condition);
                if *named != members.nodes {
                    membership.name(&members.nodes, now);
                    *named = members.nodes;
                }
                if members.own != own && members.own != NodeAddresses::default() {
                    membership.set_addresses(members.own, now);
                    return Some(());
                }
            }
        }
    }

    fn tell(&self, membership: &Membership) {
        self.count.send_replace(membership.counts());
        let liveness = membership.liveness(Instant::now());
        self.tell.send_if_modified(|told| {
            if **told == liveness {
                return false;
            }
            for (node, peer) in &liveness.peers {
                let before = told.peers.get(node).map(|peer| peer.state);
                if before != Some(peer.state) {
                    tracing::info!(
                        %node,
                        state = peer.state.label(),
                        before = before.map_or("unknown", super::State::label),
                        "other node"
                    );
                }
            }
            *told = Arc::new(liveness);
            true
        });
    }
}

impl Sockets {
    async fn bind(NodeAddresses { v4, v6 }: NodeAddresses) -> io::Result<Self> {
        let own = [v4.map(IpAddr::V4), v6.map(IpAddr::V6)];
        let any: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        let mut sockets = Self {
            gossip: [None, None],
            questions: [None, None],
        };
        for (family, address) in own.into_iter().enumerate() {
            let Some(address) = address else { continue };
            sockets.gossip[family] = Some(UdpSocket::bind((address, GOSSIP_PORT)).await?);
            sockets.questions[family] = Some(UdpSocket::bind((any[family], 0)).await?);
        }
        Ok(sockets)
    }

    fn all(&self) -> impl Iterator<Item = &UdpSocket> {
        self.gossip.iter().chain(&self.questions).flatten()
    }

    /// Something can be read from one of them.
    async fn readable(&self) {
        let waits = self.all().map(|socket| {
            Box::pin(async move {
                // An error is met again when reading.
                _ = socket.readable().await;
            })
        });
        futures::future::select_all(waits).await;
    }

    fn take_in(&self, membership: &mut Membership, secret: [Be32; 2], buffer: &mut [u8]) {
        for socket in self.questions.iter().flatten() {
            for _ in 0..BATCH_MAX {
                // Errors of earlier sends (unreachable) are reported here; the lack of an answer says as much.
                let Ok((len, _)) = socket.try_recv_from(buffer) else {
                    break;
                };
                if let Some((nonce, age)) = answer(&buffer[..len], secret) {
                    membership.answered(nonce, age, Instant::now());
                }
            }
        }
        for socket in self.gossip.iter().flatten() {
            for _ in 0..BATCH_MAX {
                let Ok((len, from)) = socket.try_recv_from(buffer) else {
                    break;
                };
                membership.receive(from.ip(), &buffer[..len], Instant::now());
            }
        }
    }

    /// Sends; what can not be sent is as good as lost on the way.
    fn send(&self, outgoing: &Outgoing, secret: [Be32; 2]) {
        let (sockets, to, bytes) = match outgoing {
            Outgoing::Gossip { to, datagram } => (
                &self.gossip,
                SocketAddr::new(*to, GOSSIP_PORT),
                datagram.clone(),
            ),
            Outgoing::Question { to, nonce } => (
                &self.questions,
                SocketAddr::new(*to, PROBE_PORT),
                probe::question(secret, *nonce).to_vec(),
            ),
        };
        let socket = &sockets[usize::from(to.is_ipv6())];
        if let Some(Err(error)) = socket.as_ref().map(|socket| socket.try_send_to(&bytes, to)) {
            tracing::debug!(%to, %error, "datagram is not sent");
        }
    }
}

/// Nonce of an answer, and age of the agent's stamp.
fn answer(bytes: &[u8], secret: [Be32; 2]) -> Option<(u64, Duration)> {
    let nonce = u64::from_be_bytes(bytes.get(NONCE)?.try_into().ok()?);
    let age_ns = probe::age_ns(bytes, secret, nonce)?;
    Some((nonce, Duration::from_nanos(age_ns)))
}

/// Where an answer has its nonce, see [`probe`].
const NONCE: std::ops::Range<usize> = 16..24;
