//! Links, addresses and routes inside namespaces, by netlink. Knows no names of the lab.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;

use anyhow::Context;
use futures::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::IpProtocol;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags};
use rtnetlink::packet_route::route::{RouteMessage, RouteScope};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage, RulePortRange};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

use super::netns::Namespace;

/// Bytes of a packet on every link.
pub(crate) const MTU: u32 = 1500;

/// One end of a pair of virtual Ethernet devices.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End<'a> {
    /// Where it is.
    pub(crate) namespace: &'a Namespace,
    /// Its name there.
    pub(crate) link: &'a str,
}

/// A netlink connection; its task runs on the runtime that calls.
pub(crate) fn connect() -> anyhow::Result<Handle> {
    let (connection, handle, _) = rtnetlink::new_connection().context("open netlink")?;
    tokio::spawn(connection);
    Ok(handle)
}

/// Runs `work` with a netlink connection of the namespace.
fn inside<T: Send>(
    namespace: &Namespace,
    work: impl AsyncFnOnce(Handle) -> anyhow::Result<T> + Send,
) -> anyhow::Result<T> {
    namespace.inside(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("start a runtime")?;
        runtime.block_on(async { work(connect()?).await })
    })
}

/// Makes a pair of devices between two namespaces. Both are down.
pub(crate) fn pair(here: End<'_>, there: End<'_>) -> anyhow::Result<()> {
    inside(here.namespace, async |netlink| {
        // A locally administered address of our own choice would do, too; the kernel's random ones cannot collide here.
        let message = LinkVeth::new(here.link, there.link).mtu(MTU).build();
        netlink
            .link()
            .add(message)
            .execute()
            .await
            .with_context(|| {
                format!(
                    "{}: make links {} and {}",
                    here.namespace.name(),
                    here.link,
                    there.link
                )
            })?;
        let moved = LinkMessageBuilder::<LinkUnspec>::new()
            .name(there.link)
            .setns_by_fd(there.namespace.file().as_raw_fd())
            .build();
        netlink
            .link()
            .set(moved)
            .execute()
            .await
            .with_context(|| format!("move link {} to {}", there.link, there.namespace.name()))
    })
}

/// Brings a link up with addresses on it. Addresses are usable at once: nobody else can have them.
pub(crate) fn up(end: End<'_>, addresses: &[IpNet]) -> anyhow::Result<()> {
    let End { namespace, link } = end;
    inside(namespace, async |netlink| {
        let index = index(&netlink, link).await?;
        for address in addresses {
            let mut request = netlink
                .address()
                .add(index, address.addr(), address.prefix_len());
            let message = request.message_mut();
            message.header.flags |= AddressHeaderFlags::Nodad;
            message
                .attributes
                .push(AddressAttribute::Flags(AddressFlags::Nodad));
            let done = request.execute().await;
            done.with_context(|| format!("{}: add {address} to {link}", namespace.name()))?;
        }
        let message = LinkUnspec::new_with_index(index).mtu(MTU).up().build();
        let done = netlink.link().set(message).execute().await;
        done.with_context(|| format!("{}: bring {link} up", namespace.name()))
    })
}

/// Brings a link down: nothing leaves by it, nothing comes in, and the other end loses its carrier.
pub(crate) fn down(end: End<'_>) -> anyhow::Result<()> {
    let End { namespace, link } = end;
    inside(namespace, async |netlink| {
        let index = index(&netlink, link).await?;
        let message = LinkUnspec::new_with_index(index).down().build();
        let done = netlink.link().set(message).execute().await;
        done.with_context(|| format!("{}: bring {link} down", namespace.name()))
    })
}

/// Brings the loopback device up.
pub(crate) fn loopback_up(namespace: &Namespace) -> anyhow::Result<()> {
    inside(namespace, async |netlink| {
        let index = index(&netlink, "lo").await?;
        let message = LinkUnspec::new_with_index(index).up().build();
        let done = netlink.link().set(message).execute().await;
        done.with_context(|| format!("{}: bring lo up", namespace.name()))
    })
}

/// Where packets to `to` go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Route<'a> {
    /// To whom; `0.0.0.0/0` and `::/0` are the default.
    pub(crate) to: IpNet,
    /// The next router; none: `to` is on the link.
    pub(crate) via: Option<IpAddr>,
    /// The link.
    pub(crate) link: &'a str,
}

/// Adds routes. A next router need not be in a subnet of the link.
pub(crate) fn routes(namespace: &Namespace, routes: &[Route<'_>]) -> anyhow::Result<()> {
    inside(namespace, async |netlink| {
        for Route { to, via, link } in routes {
            let mut message = empty_route(*to);
            let index = index(&netlink, link).await?;
            message = message.output_interface(index);
            message = match via {
                Some(next) => message
                    .gateway(*next)
                    .context("address families differ")?
                    .onlink(),
                None => message.scope(RouteScope::Link),
            };
            let done = netlink.route().add(message.build()).execute().await;
            done.with_context(|| format!("{}: add a route to {to}", namespace.name()))?;
        }
        Ok(())
    })
}

/// A path among several with equal cost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Path {
    /// The next router.
    pub(crate) via: IpAddr,
    /// Its share of flows, against the other paths' weights.
    pub(crate) weight: u8,
}

/// Sends packets to `to` along several paths, by a hash of addresses and ports; replaces what was there.
/// Must be called inside the namespace.
pub(crate) async fn multipath(netlink: &Handle, to: IpNet, paths: &[Path]) -> anyhow::Result<()> {
    let mut hops = Vec::new();
    for Path { via, weight } in paths {
        let hop = match via {
            IpAddr::V4(_) => rtnetlink::RouteNextHopBuilder::new_ipv4(),
            IpAddr::V6(_) => rtnetlink::RouteNextHopBuilder::new_ipv6(),
        };
        let hop = hop.via(*via).context("address families differ")?;
        // The kernel wants the weight less one.
        hops.push(hop.weight(weight.saturating_sub(1)).build());
    }
    let message: RouteMessage = empty_route(to).multipath(hops).build();
    let done = netlink.route().add(message).replace().execute().await;
    done.with_context(|| format!("replace the paths to {to}"))
}

/// Which UDP datagrams get lost on their way through a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lost {
    /// From it, or to it.
    pub(crate) side: Side,
    /// The address.
    pub(crate) address: IpAddr,
    /// To these ports.
    pub(crate) ports: (u16, u16),
}

/// Where an address is in a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// Its source.
    From,
    /// Its destination.
    To,
}

impl Lost {
    /// A rule of routing that such datagrams have no route. Before all routes, and after those to the namespace itself.
    fn rule(self) -> RuleMessage {
        const PRIORITY: u32 = 100;
        let host = host(self.address);
        let mut rule = RuleMessage::default();
        rule.header.family = match self.address {
            IpAddr::V4(_) => AddressFamily::Inet,
            IpAddr::V6(_) => AddressFamily::Inet6,
        };
        rule.header.action = RuleAction::Blackhole;
        rule.attributes.push(match self.side {
            Side::From => {
                rule.header.src_len = host.prefix_len();
                RuleAttribute::Source(self.address)
            }
            Side::To => {
                rule.header.dst_len = host.prefix_len();
                RuleAttribute::Destination(self.address)
            }
        });
        let (start, end) = self.ports;
        rule.attributes.extend([
            RuleAttribute::Priority(PRIORITY),
            RuleAttribute::IpProtocol(IpProtocol::Udp),
            RuleAttribute::DestinationPortRange(RulePortRange { start, end }),
        ]);
        rule
    }

    /// From now on they get lost. Must be called inside the namespace.
    pub(crate) async fn begin(self, netlink: &Handle) -> anyhow::Result<()> {
        let mut request = netlink.rule().add();
        *request.message_mut() = self.rule();
        let done = request.execute().await;
        done.with_context(|| format!("lose datagrams of {}", self.address))
    }

    /// They pass again. Must be called inside the namespace.
    pub(crate) async fn end(self, netlink: &Handle) -> anyhow::Result<()> {
        let done = netlink.rule().del(self.rule()).execute().await;
        done.with_context(|| format!("let datagrams of {} pass", self.address))
    }
}

fn empty_route(to: IpNet) -> RouteMessageBuilder<IpAddr> {
    let message = RouteMessageBuilder::<IpAddr>::new();
    match message
        .clone()
        .destination_prefix(to.network(), to.prefix_len())
    {
        Ok(message) => message,
        // A prefix length above the family's: `IpNet` has none.
        Err(_) => message,
    }
}

async fn index(netlink: &Handle, link: &str) -> anyhow::Result<u32> {
    let mut found = netlink.link().get().match_name(link.to_owned()).execute();
    let message = found
        .try_next()
        .await
        .with_context(|| format!("look for link {link}"))?;
    Ok(message
        .with_context(|| format!("there is no link {link}"))?
        .header
        .index)
}

/// The network of an address: `10.0.0.1/24` → `10.0.0.0/24`.
pub(crate) fn host(address: IpAddr) -> IpNet {
    match address {
        IpAddr::V4(address) => IpNet::from(IpAddr::V4(address)),
        IpAddr::V6(address) => IpNet::from(IpAddr::V6(address)),
    }
}

/// The default route's destination in the family of `like`.
pub(crate) fn everywhere(like: IpAddr) -> IpNet {
    let (address, prefix) = match like {
        IpAddr::V4(_) => (IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0),
        IpAddr::V6(_) => (IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0),
    };
    IpNet::new_assert(address, prefix)
}
