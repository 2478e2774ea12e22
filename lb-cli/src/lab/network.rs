//! Builds the plan: namespaces, links, addresses, routes, offloads. Knows no agents, pods' servers or Services.

use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::Context;
use ipnet::IpNet;
use lb_controller::dataplane::pass;
use lb_controller::liveness::GOSSIP_PORT;
use lb_ebpf::abi::PROBE_PORT;
use rand::Rng;
use rand::seq::IndexedRandom;

use super::ledger::Ledger;
use super::links::{self, End, Lost, Path, Route, Side};
use super::netns::{Namespace, Worker};
use super::offloads::{self, Offload, Switch};
use super::plan::{self, Machine};

/// The link of every namespace but the router's.
pub(crate) const LINK: &str = "eth0";

/// The machine that floods come from.
const STRANGER: &str = "stranger";

/// The machines of a lab and what joins them.
#[derive(Debug)]
pub(crate) struct Network {
    prefix: String,
    /// Where clients run.
    pub(crate) client: Namespace,
    /// Between clients and machines.
    pub(crate) router: Namespace,
    /// Balancers and nodes.
    pub(crate) machines: Vec<(Machine, Namespace)>,
    router_worker: Worker,
    /// A bpf file system of the lab's own.
    pub(crate) pins: PathBuf,
}

impl Network {
    /// Builds everything but the pods.
    pub(crate) fn build(name: &str, balancers: u8, ledger: &mut Ledger) -> anyhow::Result<Self> {
        let prefix = format!("bowline-{name}");
        let mut namespace = |of: &str| namespace(&prefix, of, ledger);
        let client = namespace("client")?;
        let router = namespace("router")?;
        let mut machines = Vec::new();
        for machine in plan::machines(balancers) {
            let namespace = namespace(&machine.name)?;
            machines.push((machine, namespace));
        }
        join_client(&client, &router)?;
        for (machine, namespace) in &machines {
            join_machine(machine, namespace, &router)?;
        }
        let names: Vec<&str> = machines
            .iter()
            .map(|(machine, _)| machine.name.as_str())
            .collect();
        let pins = ledger.pins()?;
        let router_pins = pins.join("router");
        std::fs::create_dir(&router_pins).context("make a directory for pins")?;
        router
            .inside(|| Ok(pass::attach(&names, &router_pins)?))
            .context("prepare the router's links")?;
        let router_worker = router.worker()?;
        Ok(Self {
            prefix,
            client,
            router,
            machines,
            router_worker,
            pins,
        })
    }

    /// Makes a pod's namespace on a node.
    pub(crate) fn pod(
        &self,
        node: &str,
        pod: &str,
        addresses: [IpAddr; 2],
        ledger: &mut Ledger,
    ) -> anyhow::Result<Namespace> {
        let (_, host) = self
            .machines
            .iter()
            .find(|(machine, _)| machine.name == node)
            .with_context(|| format!("there is no node {node}"))?;
        let inside = namespace(&self.prefix, pod, ledger)?;
        let here = End {
            namespace: &inside,
            link: LINK,
        };
        let there = End {
            namespace: host,
            link: pod,
        };
        links::pair(here, there)?;
        in_order(&[here, there])?;
        links::up(there, &plan::pod_gateways().map(links::host))?;
        links::up(here, &addresses.map(links::host))?;
        let to_pod = addresses.map(|address| Route {
            to: links::host(address),
            via: None,
            link: pod,
        });
        links::routes(host, &to_pod)?;
        links::routes(&inside, &defaults(plan::pod_gateways()))?;
        Ok(inside)
    }

    /// Makes the machine that floods come from. Whatever answers their sources reaches it, and nobody else.
    pub(crate) fn stranger(
        &self,
        sources: IpNet,
        ledger: &mut Ledger,
    ) -> anyhow::Result<Namespace> {
        let inside = namespace(&self.prefix, STRANGER, ledger)?;
        // What is not for an address of its own gets lost without a word.
        inside.set("ipv4/ip_forward", "0")?;
        let here = End {
            namespace: &inside,
            link: LINK,
        };
        let there = End {
            namespace: &self.router,
            link: STRANGER,
        };
        let (addresses, gateway) = plan::stranger();
        links::pair(here, there)?;
        in_order(&[here, there])?;
        links::up(there, &gateway)?;
        links::up(here, &addresses)?;
        links::routes(&inside, &defaults(gateway.map(|address| address.addr())))?;
        let [via, _] = addresses;
        let back = Route {
            to: sources,
            via: Some(via.addr()),
            link: STRANGER,
        };
        links::routes(&self.router, &[back])?;
        Ok(inside)
    }

    /// Names of the machines that the router sends packets for VIPs to.
    pub(crate) fn every_balancer(&self) -> Vec<String> {
        let machines = self.machines.iter();
        let balancers = machines.filter(|(machine, _)| machine.role.balances());
        balancers.map(|(machine, _)| machine.name.clone()).collect()
    }

    /// Gossip of a machine, and questions to programs from and to it, get lost on the router, or pass again. Not on the
    /// machine itself: there a program answers questions before any rule sees them.
    pub(crate) async fn gossip(&self, machine: &Machine, passes: Passes) -> anyhow::Result<()> {
        let addresses = machine.addresses();
        self.router_worker
            .run(async move {
                let netlink = links::connect()?;
                for address in addresses {
                    for side in [Side::From, Side::To] {
                        let lost = Lost {
                            side,
                            address: address.addr(),
                            ports: (PROBE_PORT, GOSSIP_PORT),
                        };
                        match passes {
                            Passes::No => lost.begin(&netlink).await?,
                            Passes::Yes => lost.end(&netlink).await?,
                        }
                    }
                }
                Ok(())
            })
            .await
    }

    /// Makes the router send packets for VIPs to these balancers, in shares.
    pub(crate) async fn move_ecmp(&self, balancers: &[(String, u8)]) -> anyhow::Result<()> {
        let mut paths = [Vec::new(), Vec::new()];
        for (name, weight) in balancers {
            let machine = self
                .machines
                .iter()
                .find(|(machine, _)| machine.name == *name);
            let (machine, _) = machine.with_context(|| format!("there is no balancer {name}"))?;
            for (paths, address) in paths.iter_mut().zip(machine.addresses()) {
                paths.push(Path {
                    via: address.addr(),
                    weight: *weight,
                });
            }
        }
        self.router_worker
            .run(async move {
                let netlink = links::connect()?;
                for (vips, paths) in plan::VIPS.iter().zip(&paths) {
                    let vips: IpNet = vips.parse().context("a prefix of VIPs")?;
                    links::multipath(&netlink, vips, paths).await?;
                }
                Ok(())
            })
            .await
    }
}

/// Whether datagrams pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Passes {
    Yes,
    No,
}

/// Each of these, with the same share.
pub(crate) fn equally(balancers: &[String]) -> Vec<(String, u8)> {
    balancers.iter().map(|name| (name.clone(), 1)).collect()
}

/// At least one of these, with random shares: most flows of before meet another balancer.
pub(crate) fn some_of(balancers: &[String], random: &mut impl Rng) -> Vec<(String, u8)> {
    let count = random.random_range(1..=balancers.len());
    balancers
        .choose_multiple(random, count)
        .map(|name| (name.clone(), random.random_range(1..=4)))
        .collect()
}

fn namespace(prefix: &str, name: &str, ledger: &mut Ledger) -> anyhow::Result<Namespace> {
    let name = format!("{prefix}-{name}");
    ledger.namespace(&name)?;
    let namespace = Namespace::create(&name)?;
    for (setting, value) in SETTINGS {
        namespace.set(setting, value)?;
    }
    links::loopback_up(&namespace)?;
    Ok(namespace)
}

/// The same everywhere: where a setting is not needed it does no harm.
const SETTINGS: [(&str, &str); 11] = [
    ("ipv4/ip_forward", "1"),
    ("ipv6/conf/all/forwarding", "1"),
    // Replies come straight from the node, requests by way of a balancer: strict checks would drop them.
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
    // Nobody else can have our addresses: no waiting for duplicates.
    ("ipv6/conf/all/accept_dad", "0"),
    ("ipv6/conf/default/accept_dad", "0"),
    // ECMP by addresses and ports.
    ("ipv4/fib_multipath_hash_policy", "1"),
    ("ipv6/fib_multipath_hash_policy", "1"),
    // Ports for tens of thousands of connections, and `ping` without a raw socket.
    ("ipv4/ip_local_port_range", "1024 65535"),
    ("ipv4/ping_group_range", "0 2147483647"),
    // A round trip takes microseconds here, so that a probe for lost tails (RFC 8985 section 7.2) would be due after a few
    // milliseconds, and a busy machine pauses a receiver for longer. Segments sent again shall tell of losses alone.
    ("ipv4/tcp_early_retrans", "0"),
];

fn join_client(client: &Namespace, router: &Namespace) -> anyhow::Result<()> {
    let (addresses, gateway) = plan::client();
    let here = End {
        namespace: client,
        link: LINK,
    };
    let there = End {
        namespace: router,
        link: "client",
    };
    links::pair(here, there)?;
    in_order(&[here, there])?;
    links::up(there, &gateway)?;
    links::up(here, addresses.as_flattened())?;
    links::routes(client, &defaults(gateway.map(|address| address.addr())))
}

fn join_machine(
    machine: &Machine,
    namespace: &Namespace,
    router: &Namespace,
) -> anyhow::Result<()> {
    let here = End {
        namespace,
        link: LINK,
    };
    let there = End {
        namespace: router,
        link: &machine.name,
    };
    links::pair(here, there)?;
    router.inside(|| offloads::switch(&machine.name, &[(Offload::TxChecksum, Switch::Off)]))?;
    links::up(there, &machine.router())?;
    links::up(here, &machine.addresses())?;
    links::routes(
        namespace,
        &defaults(machine.router().map(|address| address.addr())),
    )?;
    let Some(pods) = machine.pods() else {
        return Ok(());
    };
    let mut to_pods = Vec::new();
    for (to, via) in pods.into_iter().zip(machine.addresses()) {
        to_pods.push(Route {
            to,
            via: Some(via.addr()),
            link: &machine.name,
        });
    }
    links::routes(router, &to_pods)
}

/// Makes links without XDP programs keep the order of packets.
fn in_order(ends: &[End<'_>]) -> anyhow::Result<()> {
    ends.iter().try_for_each(|end| {
        let on = [(Offload::Gro, Switch::On)];
        end.namespace.inside(|| offloads::switch(end.link, &on))
    })
}

fn defaults(gateways: [IpAddr; 2]) -> [Route<'static>; 2] {
    gateways.map(|gateway| Route {
        to: links::everywhere(gateway),
        via: Some(gateway),
        link: LINK,
    })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
    use std::time::Duration;

    use lb_controller::handoff::HANDOFF_PORT;

    use super::*;
    use crate::lab::{echo, netns};

    /// A word takes microseconds.
    const LIMIT: Duration = Duration::from_secs(2);

    /// One word each way, between sockets that were opened in these namespaces.
    fn say(from: &Namespace, to: &Namespace, address: IpAddr) -> anyhow::Result<()> {
        let gossip = SocketAddr::new(address, GOSSIP_PORT);
        let there = to.inside(|| Ok(UdpSocket::bind(gossip)?))?;
        let here = from.inside(|| Ok(UdpSocket::bind(SocketAddr::new(any(address), 0))?))?;
        there.set_read_timeout(Some(LIMIT))?;
        here.set_read_timeout(Some(LIMIT))?;
        let mut word = [0; 8];
        here.send_to(b"question", gossip).context("ask over UDP")?;
        let (_, asker) = there.recv_from(&mut word).context("hear over UDP")?;
        there.send_to(b"answered", asker)?;
        here.recv_from(&mut word).context("an answer over UDP")?;
        anyhow::ensure!(&word == b"answered");

        let handoff = SocketAddr::new(address, HANDOFF_PORT);
        let listener = to.inside(|| Ok(TcpListener::bind(handoff)?))?;
        let mut here = from.inside(|| Ok(TcpStream::connect_timeout(&handoff, LIMIT)?))?;
        let (mut there, _) = listener.accept().context("accept")?;
        here.write_all(b"question").context("ask over TCP")?;
        there.set_read_timeout(Some(LIMIT))?;
        there.read_exact(&mut word).context("hear over TCP")?;
        anyhow::ensure!(&word == b"question");
        Ok(())
    }

    fn any(of_family: IpAddr) -> IpAddr {
        match of_family {
            IpAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
        }
    }

    /// Agents speak with each other, and the manager, which runs on the router, with each of them.
    fn all_speak(network: &Network) -> anyhow::Result<()> {
        let router = std::iter::once(("router", &network.router));
        let machines = network.machines.iter();
        let machines = machines.map(|(machine, namespace)| (machine.name.as_str(), namespace));
        for (name, from) in router.chain(machines) {
            for (machine, to) in &network.machines {
                for address in machine.addresses() {
                    let address = address.addr();
                    say(from, to, address)
                        .with_context(|| format!("{name} speaks with {address}"))?;
                }
            }
        }
        Ok(())
    }

    #[test]
    fn machines_speak_with_each_other_and_all_and_their_pods_are_reached_from_the_client() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: network namespaces need root");
            return;
        }
        let name = format!("test-{}", std::process::id());
        let mut ledger = Ledger::open(&name).unwrap();
        let tried = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let network = Network::build(&name, 2, &mut ledger).unwrap();
            let (node, _) = &network.machines[2];
            let addresses = node.pod(1).unwrap();
            let node = node.name.clone();
            network.pod(&node, "pod-1", addresses, &mut ledger).unwrap();
            let mut all = addresses.to_vec();
            for (machine, _) in &network.machines {
                all.extend(machine.addresses().map(|address| address.addr()));
            }
            all_speak(&network).unwrap();
            let client = &network.client;
            client
                .inside(|| all.iter().try_for_each(|address| echo::ping(*address)))
                .unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .build()
                .unwrap();
            for moved in [
                equally(&network.every_balancer()),
                vec![("lb-2".to_owned(), 3)],
            ] {
                runtime.block_on(network.move_ecmp(&moved)).unwrap();
            }
        }));
        ledger.sweep().unwrap();
        std::fs::remove_dir_all(ledger.directory()).unwrap();
        assert!(netns::processes_in(&format!("bowline-{name}-client")).is_empty());
        tried.unwrap();
    }
}
