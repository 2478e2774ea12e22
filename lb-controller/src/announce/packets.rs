//! Sends what [`Bursts`] says: gratuitous ARP and unsolicited neighbour advertisements. Moves bytes and time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use lb_ebpf::neighbour::{arp, discovery};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::burst::{Announced, Bursts};
use crate::dataplane::packet::PacketSocket;

/// What is to be told.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Telling {
    /// What this node announces.
    pub announced: BTreeSet<Announced>,
    /// What others were told before this agent started.
    pub adopted: BTreeSet<Announced>,
    /// What other nodes have claimed, and when last, on a clock that only grows.
    pub claimed: BTreeMap<Announced, u64>,
    /// Grows when everything is to be told again.
    pub repeats: u64,
}

/// Before groups that could not be joined are tried again: their interface may be down or about to go.
const GROUPS_RETRY: Duration = Duration::from_secs(5);

/// Tells the network until stopped.
pub async fn tell(mut telling: watch::Receiver<Telling>, stop: CancellationToken) {
    let mut bursts = Bursts::default();
    let mut groups = Groups::default();
    let mut socket = None;
    let first = telling.borrow_and_update().clone();
    bursts.adopt(&first.adopted);
    let mut repeats = first.repeats;
    loop {
        let now = Instant::now();
        {
            let told = telling.borrow_and_update();
            bursts.set(&told.announced, now);
            groups.wanted(&told.announced);
            for (one, at) in &told.claimed {
                bursts.contradict(*one, *at, now);
            }
            if told.repeats != repeats {
                repeats = told.repeats;
                bursts.repeat(now);
            }
        }
        let due = bursts.take(now);
        if !(due.is_empty() && groups.is_done()) && socket.is_none() {
            socket = open();
        }
        if let Some(socket) = &socket {
            groups.apply(socket);
            for one in &due {
                send(socket, one);
            }
        }
        let again = (!groups.is_done()).then_some(now + GROUPS_RETRY);
        let next = bursts.next().into_iter().chain(again).min();
        let sleep = async {
            match next {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            changed = telling.changed() => if changed.is_err() { return },
            () = sleep => {}
        }
    }
}

fn open() -> Option<PacketSocket> {
    match PacketSocket::open() {
        Ok(socket) => Some(socket),
        Err(error) => {
            tracing::error!(%error, "VIPs can not be announced actively; give the agent CAP_NET_RAW");
            None
        }
    }
}

fn send(socket: &PacketSocket, (vip, ifindex, mac): &Announced) {
    let outcome = match vip {
        IpAddr::V4(vip) => {
            let frame = arp::frame(arp::Form::Announcement, vip.octets(), *mac);
            socket.send(*ifindex, &frame)
        }
        IpAddr::V6(vip) => socket.send(*ifindex, &discovery::announcement(vip.octets(), *mac)),
    };
    if let Err(error) = outcome {
        // The interface may be down; the next packet of the burst may get through, and questions are answered anyway.
        tracing::warn!(%vip, ifindex, %error, "announcement is not sent");
    }
}

/// Multicast groups that solicitations for IPv6 VIPs are sent to: network cards filter them.
#[derive(Default)]
struct Groups {
    wanted: BTreeSet<(u32, [u8; 6])>,
    joined: BTreeSet<(u32, [u8; 6])>,
}

impl Groups {
    fn wanted(&mut self, announced: &BTreeSet<Announced>) {
        self.wanted = announced
            .iter()
            .filter_map(|(vip, ifindex, _)| match vip {
                IpAddr::V4(_) => None,
                IpAddr::V6(vip) => Some((*ifindex, discovery::solicited(vip.octets()).1)),
            })
            .collect();
    }

    fn is_done(&self) -> bool {
        self.wanted == self.joined
    }

    fn apply(&mut self, socket: &PacketSocket) {
        let (wanted, joined) = (&self.wanted, &mut self.joined);
        for (ifindex, group) in wanted.difference(&joined.clone()) {
            match socket.join(*ifindex, *group) {
                Ok(()) => _ = joined.insert((*ifindex, *group)),
                Err(error) => {
                    tracing::warn!(ifindex, %error, "solicitations for a VIP may be filtered");
                }
            }
        }
        let left: Vec<_> = joined.difference(wanted).copied().collect();
        for (ifindex, group) in left {
            // Gone with its interface is as good.
            _ = socket.leave(ifindex, group);
            joined.remove(&(ifindex, group));
        }
    }
}
