//! Which connections a load opens: VIPs, ports and addresses of the client. Pure but for one counter.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::load::{Protocol, Way};
use super::plan;

/// Ports of the Service that the promises are about.
const TCP_PORT: u16 = 80;
const UDP_PORT: u16 = 53;
/// The client's ports: all that are not reserved.
const CLIENT_PORTS: std::ops::RangeInclusive<u16> = 1024..=u16::MAX;
/// Connections with the same client address before its next two ports are taken.
const ROUND: u32 = 2 * plan::CLIENT_ADDRESSES as u32;

/// Which protocols a load has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mix {
    /// TCP.
    OnlyTcp,
    /// UDP.
    OnlyUdp,
    /// Four of five TCP, the fifth UDP.
    OneInFiveUdp,
}

impl Mix {
    /// Protocol and port of a load's connection number `i` to the Service that the promises are about.
    fn port(self, i: usize) -> (Protocol, u16) {
        match self {
            Self::OneInFiveUdp if i % 5 == 4 => (Protocol::Udp, UDP_PORT),
            Self::OnlyTcp | Self::OneInFiveUdp => (Protocol::Tcp, TCP_PORT),
            Self::OnlyUdp => (Protocol::Udp, UDP_PORT),
        }
    }
}

/// Gives out ways: no two of a run have the same address and port of the client.
///
/// The kernel would take a port again for another destination, or soon after a datagram's socket is closed. But nobody can
/// tell a first datagram from a later one of the same addresses and ports: it would rightly reach the pod of the earlier
/// flow. And two VIPs can lead to the same port of a pod, which can have one connection only with each port of a client.
#[derive(Clone, Debug, Default)]
pub(super) struct Ways {
    /// How many were given out.
    given: Arc<AtomicU32>,
}

impl Ways {
    /// Endless ways to VIPs: VIPs alternate, and the client's addresses take turns.
    pub(super) fn to<P>(&self, vips: &[IpAddr], port: P) -> impl Iterator<Item = Way> + use<P>
    where
        P: Fn(usize) -> (Protocol, u16),
    {
        let given = Arc::clone(&self.given);
        let vips = vips.to_vec();
        let (clients, _) = plan::client();
        let in_turn = (0..vips.len()).cycle().enumerate();
        in_turn.map(move |(i, vip)| {
            let vip = vips[vip];
            let number = given.fetch_add(1, Ordering::Relaxed);
            let [v4, v6] = clients[(number % ROUND / 2) as usize];
            let address = if vip.is_ipv4() { v4 } else { v6 };
            let (protocol, port) = port(i);
            Way {
                protocol,
                from: SocketAddr::new(address.addr(), client_port(number)),
                to: SocketAddr::new(vip, port),
            }
        })
    }

    /// Endless ways to the VIPs of the Service that the promises are about.
    pub(super) fn mixed(&self, vips: &[IpAddr], mix: Mix) -> impl Iterator<Item = Way> + use<> {
        self.to(vips, move |i| mix.port(i))
    }
}

/// Half a million connections go by before one meets the port of an earlier one.
fn client_port(number: u32) -> u16 {
    let ports = u32::from(CLIENT_PORTS.end() - CLIENT_PORTS.start()) + 1;
    let offset = (number / ROUND * 2 + number % 2) % ports;
    CLIENT_PORTS.start() + offset as u16
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_vip_protocol_and_client_address_has_its_turn() {
        let vips = [
            "203.0.113.10".parse().unwrap(),
            "2001:db8:113::10".parse().unwrap(),
        ];
        let ways = Ways::default().mixed(&vips, Mix::OneInFiveUdp);
        let ways: Vec<Way> = ways.take(1_000).collect();
        let udp = ways.iter().filter(|way| way.protocol == Protocol::Udp);
        assert_eq!(udp.clone().count(), 200);
        assert_eq!(udp.filter(|way| way.to.is_ipv6()).count(), 100);
        assert!(
            ways.iter()
                .all(|way| way.from.is_ipv4() == way.to.is_ipv4())
        );
        let clients: BTreeSet<IpAddr> = ways.iter().map(|way| way.from.ip()).collect();
        assert_eq!(clients.len(), 2 * usize::from(plan::CLIENT_ADDRESSES));
    }

    #[test]
    fn no_port_of_the_client_is_used_twice() {
        let given = Ways::default();
        let one: [IpAddr; 1] = ["203.0.113.10".parse().unwrap()];
        let other: [IpAddr; 1] = ["203.0.113.11".parse().unwrap()];
        let most = 500_000;
        let ways = given.mixed(&one, Mix::OnlyTcp).take(most / 2);
        let ways = ways.chain(given.mixed(&other, Mix::OnlyUdp).take(most / 2));
        let used: BTreeSet<SocketAddr> = ways.map(|way| way.from).collect();
        assert_eq!(used.len(), most);
    }
}
