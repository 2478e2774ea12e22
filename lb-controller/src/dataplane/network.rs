//! The netlink task: follows links, routes and neighbours of this network namespace.
//!
//! Events only say that something has changed; what is true is read again, in one pass, so a lost or overrun event
//! costs a moment and never a wrong picture. What follows from the reading is decided in [`super::links`] and
//! [`super::next_hop`].

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt, TryStreamExt};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::neighbour::{
    NeighbourAttribute, NeighbourExtFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::{Handle, MulticastGroup, RouteMessageBuilder};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::links::{IfIndex, Links};
use super::netlink::{self, Listed};
use super::next_hop::{NextHops, Route, next_hop};

/// Events come in bursts; one pass answers those that come within this time.
const SETTLE: Duration = Duration::from_millis(20);
/// A pass even without an event, in case one was lost before we listened.
const RESYNC: Duration = Duration::from_secs(10);
/// Before netlink is tried again after an error.
const RETRY: Duration = Duration::from_secs(1);

/// What went wrong with netlink.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The socket could not be opened.
    #[error("opening a netlink socket")]
    Socket(#[source] io::Error),
    /// A question was not answered.
    #[error("netlink: {what}")]
    Netlink {
        /// What was asked for.
        what: &'static str,
        /// What netlink said.
        source: rtnetlink::Error,
    },
    /// The connection has ended.
    #[error("the netlink connection has ended")]
    Closed,
}

/// What the task publishes. Receivers see the newest state only, so nothing queues up.
#[derive(Debug)]
pub struct Network {
    /// The interfaces.
    pub links: watch::Receiver<Arc<Links>>,
    /// The ways to the nodes that were asked for.
    pub next_hops: watch::Receiver<Arc<NextHops>>,
    /// Ends after the token is cancelled.
    pub task: JoinHandle<()>,
}

/// Follows the network of the calling thread's namespace: reads everything once, then in a task until `stop`.
///
/// `wanted` are the addresses of the nodes to find the way to.
pub async fn follow(
    wanted: watch::Receiver<BTreeSet<IpAddr>>,
    stop: CancellationToken,
) -> Result<Network, NetworkError> {
    let mut connection = Connection::open()?;
    let addresses = wanted.borrow().clone();
    let (links, next_hops) = connection.read(&addresses).await?;
    let (links_tx, links) = watch::channel(Arc::new(links));
    let (next_hops_tx, next_hops) = watch::channel(Arc::new(next_hops));
    let follower = Follower {
        connection,
        wanted,
        links: links_tx,
        next_hops: next_hops_tx,
    };
    Ok(Network {
        links,
        next_hops,
        task: tokio::spawn(follower.run(stop)),
    })
}

struct Follower {
    connection: Connection,
    wanted: watch::Receiver<BTreeSet<IpAddr>>,
    links: watch::Sender<Arc<Links>>,
    next_hops: watch::Sender<Arc<NextHops>>,
}

impl Follower {
    async fn run(mut self, stop: CancellationToken) {
        let mut failing = false;
        let mut wanted_open = true;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.connection.changed() => {}
                changed = self.wanted.changed(), if wanted_open => wanted_open = changed.is_ok(),
                () = tokio::time::sleep(RESYNC) => {}
            }
            match self.pass().await {
                Ok(()) => {
                    if failing {
                        tracing::info!("netlink answers again");
                    }
                    failing = false;
                }
                Err(error) => {
                    if !failing {
                        tracing::warn!(
                            error = &error as &dyn std::error::Error,
                            "interfaces and next hops are not followed"
                        );
                    }
                    failing = true;
                    tokio::select! {
                        () = stop.cancelled() => return,
                        () = tokio::time::sleep(RETRY) => {}
                    }
                    // Whatever the socket had to say is read again from a new one.
                    if let Ok(connection) = Connection::open() {
                        self.connection.replace(connection);
                    }
                }
            }
        }
    }

    async fn pass(&mut self) -> Result<(), NetworkError> {
        let addresses = self.wanted.borrow_and_update().clone();
        let (links, next_hops) = self.connection.read(&addresses).await?;
        publish(&self.links, links);
        publish(&self.next_hops, next_hops);
        Ok(())
    }
}

/// Wakes the receivers only when something differs.
fn publish<T: PartialEq>(sender: &watch::Sender<Arc<T>>, value: T) {
    sender.send_if_modified(|current| {
        let differs = **current != value;
        if differs {
            *current = Arc::new(value);
        }
        differs
    });
}

type Events = Pin<Box<dyn Stream<Item = ()> + Send + Sync>>;

/// A netlink socket for questions and one for events. On one socket, what the kernel tells everybody of somebody else's request
/// could pass for an answer: it has the number of that request, and answers are told apart by numbers.
struct Connection {
    handle: Handle,
    /// The library's queue behind it has no limit; it is emptied whenever the task wakes, and holds no more than the
    /// kernel's socket buffer lets through meanwhile.
    events: Events,
    /// Without it the other socket would be closed.
    _follower: Handle,
    tasks: [JoinHandle<()>; 2],
    /// Neighbours that we have asked the kernel to keep resolved.
    managed: HashSet<(IfIndex, IpAddr)>,
}

impl Connection {
    fn open() -> Result<Self, NetworkError> {
        let (questions, handle, _) = rtnetlink::new_connection().map_err(NetworkError::Socket)?;
        let (following, follower, events) = rtnetlink::new_multicast_connection(&[
            MulticastGroup::Link,
            MulticastGroup::Neigh,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
            MulticastGroup::Ipv4Rule,
            MulticastGroup::Ipv6Rule,
        ])
        .map_err(NetworkError::Socket)?;
        Ok(Self {
            handle,
            _follower: follower,
            events: Box::pin(events.map(|_event| ())),
            tasks: [tokio::spawn(questions), tokio::spawn(following)],
            managed: HashSet::new(),
        })
    }

    /// Takes over from a connection that has failed, and remembers what it had asked for.
    fn replace(&mut self, new: Self) {
        let managed = std::mem::take(&mut self.managed);
        *self = new;
        self.managed = managed;
    }

    /// Returns when something has changed and the burst of events is over; at the end of the connection, too.
    async fn changed(&mut self) {
        self.events.next().await;
        let settled = tokio::time::sleep(SETTLE);
        tokio::pin!(settled);
        loop {
            tokio::select! {
                () = &mut settled => return,
                event = self.events.next() => if event.is_none() { return },
            }
        }
    }

    async fn read(
        &mut self,
        addresses: &BTreeSet<IpAddr>,
    ) -> Result<(Links, NextHops), NetworkError> {
        if self.tasks.iter().any(JoinHandle::is_finished) {
            return Err(NetworkError::Closed);
        }
        let mut links = self.links().await?;
        self.mark_routes(&mut links).await?;
        let neighbours = self.neighbours().await?;
        let mut next_hops = NextHops::new();
        let mut needed = HashSet::new();
        for address in addresses {
            let route = self.route(*address).await?;
            let hop = next_hop(*address, route.as_ref(), &links, &neighbours.usable);
            if let Some(route) = route.filter(|route| !route.own) {
                needed.insert(route.neighbour(*address));
            }
            next_hops.insert(*address, hop);
        }
        self.manage(needed, &neighbours, &links).await;
        Ok((links, next_hops))
    }

    async fn links(&self) -> Result<Links, NetworkError> {
        let messages: Vec<_> = self
            .handle
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(asking("listing interfaces"))?;
        Ok(messages.into_iter().map(netlink::link).collect())
    }

    async fn mark_routes(&self, links: &mut Links) -> Result<(), NetworkError> {
        for family in [
            RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
            RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
        ] {
            let mut routes = self.handle.route().get(family).execute();
            while let Some(route) = routes.try_next().await.map_err(asking("listing routes"))? {
                netlink::mark_route(links, &route);
            }
        }
        Ok(())
    }

    async fn neighbours(&self) -> Result<Listed, NetworkError> {
        let mut listed = Listed::default();
        let mut messages = self.handle.neighbours().get().execute();
        while let Some(message) = messages
            .try_next()
            .await
            .map_err(asking("listing neighbours"))?
        {
            listed.add(&message);
        }
        Ok(listed)
    }

    async fn route(&self, address: IpAddr) -> Result<Option<Route>, NetworkError> {
        let question = match address {
            IpAddr::V4(address) => RouteMessageBuilder::<std::net::Ipv4Addr>::new()
                .destination_prefix(address, 32)
                .build(),
            IpAddr::V6(address) => RouteMessageBuilder::<std::net::Ipv6Addr>::new()
                .destination_prefix(address, 128)
                .build(),
        };
        match self.handle.route().get(question).execute().try_next().await {
            Ok(answer) => Ok(answer.and_then(|message| netlink::route(&message))),
            // No route is an answer as well; so are `unreachable`, `prohibit` and `blackhole` routes.
            Err(rtnetlink::Error::NetlinkError(_)) => Ok(None),
            Err(source) => Err(NetworkError::Netlink {
                what: "looking up a route",
                source,
            }),
        }
    }

    /// Asks the kernel to resolve the needed neighbours and to keep them resolved (`NTF_EXT_MANAGED`, kernel 5.16), and
    /// lets go of those that are no longer needed.
    async fn manage(
        &mut self,
        needed: HashSet<(IfIndex, IpAddr)>,
        neighbours: &Listed,
        links: &Links,
    ) {
        for (ifindex, address) in &needed {
            let on_ethernet = links
                .get(*ifindex)
                .is_some_and(|link| link.running && link.mac.is_some());
            if !on_ethernet || neighbours.kept.contains(&(*ifindex, *address)) {
                continue;
            }
            let mut request = self
                .handle
                .neighbours()
                .add(*ifindex, *address)
                .state(NeighbourState::None)
                .replace();
            request
                .message_mut()
                .attributes
                .push(NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed));
            if let Err(error) = request.execute().await {
                tracing::debug!(%address, ifindex, %error, "asking for a neighbour");
            }
        }
        for (ifindex, address) in self.managed.difference(&needed) {
            let mut message = NeighbourMessage::default();
            message.header.ifindex = *ifindex;
            message.header.family = match address {
                IpAddr::V4(_) => AddressFamily::Inet,
                IpAddr::V6(_) => AddressFamily::Inet6,
            };
            message
                .attributes
                .push(NeighbourAttribute::Destination((*address).into()));
            // Gone already, with its interface for instance, is as good.
            let _ = self.handle.neighbours().del(message).execute().await;
        }
        self.managed = needed;
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

fn asking(what: &'static str) -> impl Fn(rtnetlink::Error) -> NetworkError {
    move |source| NetworkError::Netlink { what, source }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::dataplane::testing::{in_namespace, ip, is_root};

    /// Connections that change routes, each from its first request on: that the numbers of their requests meet those of ours is
    /// then likely.
    async fn disturb(done: &AtomicBool) {
        while !done.load(Ordering::Relaxed) {
            let (connection, handle, _) = rtnetlink::new_connection().unwrap();
            let connection = tokio::spawn(connection);
            for number in 0..8 {
                let route = RouteMessageBuilder::<Ipv4Addr>::new()
                    .destination_prefix(Ipv4Addr::new(192, 0, 2, number), 32)
                    .output_interface(1)
                    .build();
                _ = handle.route().add(route.clone()).execute().await;
                _ = handle.route().del(route).execute().await;
            }
            connection.abort();
        }
    }

    fn runtime() -> tokio::runtime::Runtime {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().build().unwrap()
    }

    #[test]
    fn what_others_change_is_never_taken_for_an_answer() {
        if !is_root("what_others_change_is_never_taken_for_an_answer") {
            return;
        }
        in_namespace(|| {
            ip("link set lo up");
            let done = AtomicBool::new(false);
            std::thread::scope(|scope| {
                // A thread has the namespace of the one that starts it.
                let others = scope.spawn(|| runtime().block_on(disturb(&done)));
                let read = runtime().block_on(async {
                    for _ in 0..300 {
                        Connection::open()?.read(&BTreeSet::new()).await?;
                    }
                    Ok::<_, NetworkError>(())
                });
                done.store(true, Ordering::Relaxed);
                others.join().unwrap();
                read.unwrap();
            });
        });
    }
}
