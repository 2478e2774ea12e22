//! Which connections a load opens: VIPs, ports and addresses of the client. Pure.

use std::net::{IpAddr, SocketAddr};

use super::load::{Protocol, Way};
use super::plan;

/// Ports of the Service that the promises are about.
const TCP_PORT: u16 = 80;
const UDP_PORT: u16 = 53;

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
    /// So many ways to the VIPs of the Service that the promises are about.
    pub(super) fn ways(self, vips: &[IpAddr], count: usize) -> Vec<Way> {
        to(vips, count, |i| match self {
            Self::OneInFiveUdp if i % 5 == 4 => (Protocol::Udp, UDP_PORT),
            Self::OnlyTcp | Self::OneInFiveUdp => (Protocol::Tcp, TCP_PORT),
            Self::OnlyUdp => (Protocol::Udp, UDP_PORT),
        })
    }
}

/// So many ways to VIPs: VIPs alternate, and the client's addresses take turns.
pub(super) fn to(
    vips: &[IpAddr],
    count: usize,
    port: impl Fn(usize) -> (Protocol, u16),
) -> Vec<Way> {
    let (clients, _) = plan::client();
    let vips_in_turn = vips.iter().cycle().take(count).enumerate();
    vips_in_turn
        .map(|(i, vip)| {
            let [v4, v6] = clients[(i / vips.len()) % clients.len()];
            let (protocol, port) = port(i);
            let from = if vip.is_ipv4() { v4.addr() } else { v6.addr() };
            Way {
                protocol,
                from,
                to: SocketAddr::new(*vip, port),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_vip_protocol_and_client_address_has_its_turn() {
        let vips = [
            "203.0.113.10".parse().unwrap(),
            "2001:db8:113::10".parse().unwrap(),
        ];
        let ways = Mix::OneInFiveUdp.ways(&vips, 1_000);
        let udp = ways.iter().filter(|way| way.protocol == Protocol::Udp);
        assert_eq!(udp.clone().count(), 200);
        assert_eq!(udp.filter(|way| way.to.is_ipv6()).count(), 100);
        assert!(
            ways.iter()
                .all(|way| way.from.is_ipv4() == way.to.is_ipv4())
        );
        let mut clients: Vec<IpAddr> = ways.iter().map(|way| way.from).collect();
        clients.sort();
        clients.dedup();
        assert_eq!(clients.len(), 2 * usize::from(plan::CLIENT_ADDRESSES));
    }
}
