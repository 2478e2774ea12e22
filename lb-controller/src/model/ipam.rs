//! Which Service has which VIP, port and protocol. Addresses are asked for by Services; pools come later.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::problem::{Fault, Problem};
use super::service::Service;
use crate::api::service_table::Protocol;

/// Settles who has each VIP, port and protocol: the Service created first, then the first by name. Others lose that port
/// and get a problem; a Service that loses its last port has [`Fault::NoPorts`] too.
///
/// A Service loses a port for all its VIPs, so that its families stay alike.
pub fn settle(services: &mut [Service]) {
    let mut order: Vec<usize> = (0..services.len()).collect();
    order.sort_by(|a, b| {
        let key = |n: &usize| {
            let Service { created, name, .. } = &services[*n];
            (created.is_none(), *created, name.clone())
        };
        key(a).cmp(&key(b))
    });
    let mut owners: BTreeMap<(IpAddr, u16, Protocol), usize> = BTreeMap::new();
    for at in order {
        let mut lost = Vec::new();
        for port in &services[at].ports {
            let taken = services[at].vips.iter().find_map(|vip| {
                let owner = owners.get(&(*vip, port.port, port.protocol))?;
                Some((*vip, services[*owner].name.clone()))
            });
            if let Some((vip, owner)) = taken {
                let (port, protocol) = (port.port, port.protocol);
                lost.push(Fault::AddressTaken {
                    vip,
                    port,
                    protocol,
                    owner,
                });
            } else {
                for vip in &services[at].vips {
                    owners.insert((*vip, port.port, port.protocol), at);
                }
            }
        }
        lose(&mut services[at], lost);
    }
}

fn lose(service: &mut Service, lost: Vec<Fault>) {
    if lost.is_empty() {
        return;
    }
    service.ports.retain(|kept| {
        !lost.iter().any(|fault| {
            matches!(fault, Fault::AddressTaken { port, protocol, .. }
                if (*port, *protocol) == (kept.port, kept.protocol))
        })
    });
    let empty = service.ports.is_empty().then_some(Fault::NoPorts);
    let faults = lost.into_iter().chain(empty);
    service
        .problems
        .extend(faults.map(|fault| Problem::new("Service", &service.name, fault)));
}

#[cfg(test)]
mod tests {
    use super::super::shape::HashFields;
    use super::*;
    use crate::api::service_table::Port;

    fn service(name: &str, created: i64, vips: &[&str], ports: &[u16]) -> Service {
        let port = |port: &u16| Port {
            name: String::new(),
            port: *port,
            protocol: Protocol::Tcp,
        };
        Service {
            name: name.into(),
            uid: name.into(),
            created: Some(jiff::Timestamp::from_second(created).unwrap()),
            vips: vips.iter().map(|vip| vip.parse().unwrap()).collect(),
            ports: ports.iter().map(port).collect(),
            fields: HashFields::FiveTuple,
            source_ranges: vec![],
            traffic_policy: crate::api::service_table::TrafficPolicy::Cluster,
            tracking: crate::api::service_table::Tracking::Auto,
            publish_not_ready: false,
            problems: vec![],
        }
    }

    #[test]
    fn the_older_service_keeps_a_port_and_the_other_keeps_the_rest() {
        let mut services = [
            service("a/new", 2, &["198.51.100.1", "2001:db8::1"], &[80, 443]),
            service("b/old", 1, &["198.51.100.1"], &[80]),
            service("c/other", 3, &["198.51.100.2"], &[80]),
        ];
        settle(&mut services);
        let ports = services
            .each_ref()
            .map(|s| s.ports.iter().map(|p| p.port).collect::<Vec<_>>());
        assert_eq!(ports, [vec![443], vec![80], vec![80]]);
        assert_eq!(
            services[0].problems[0].to_string(),
            "Service a/new: 198.51.100.1 port 80/TCP belongs to Service b/old; choose another port or address"
        );
    }

    #[test]
    fn of_the_same_age_the_first_by_name_wins_whatever_the_order() {
        let (a, b) = (
            service("x/a", 1, &["198.51.100.1"], &[80]),
            service("x/b", 1, &["198.51.100.1"], &[80]),
        );
        let mut services = [b, a];
        settle(&mut services);
        assert_eq!(
            services[0].fatal().map(Problem::reason),
            Some("PortInvalid")
        );
        assert_eq!(services[1].problems, []);
    }
}
