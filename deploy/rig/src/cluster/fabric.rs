//! The network between machines: a switch, a router, cables to nodes and to the client. Knows nothing of Kubernetes.

use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context;

use super::{pass, plan};
use crate::machine::{Machine, must_run, output_of, wait_until};

/// The kernel removes interfaces of a machine that lost its power a moment later.
const LINK_LIMIT: Duration = Duration::from_secs(10);

/// The program of ports, in the fabric's directory.
const PASS: &str = "pass.o";

/// Runs `ip` with one line of words on a machine's network.
pub(crate) fn ip(machine: &Machine, words: &str) -> anyhow::Result<()> {
    let mut command = machine.on_network("ip");
    command.args(words.split_whitespace());
    output_of(&mut command).map(drop)
}

/// The machine has an interface of this name.
fn has(machine: &Machine, interface: &str) -> bool {
    let mut test = machine.on_network("ip");
    test.args(["link", "show", interface])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    test.status().is_ok_and(|status| status.success())
}

/// Attaches the program of an object to a port: port, object, section.
const LOAD: &str =
    "mount -t bpf bpf /sys/fs/bpf; exec ip -force link set dev $1 xdpdrv object $2 section $3";

/// The switch and the router's address on it.
pub(crate) fn switch(fabric: &Machine) -> anyhow::Result<()> {
    let object = fabric.directory().join(PASS);
    std::fs::write(&object, pass::object()?)
        .with_context(|| format!("write {}", object.display()))?;
    if !has(fabric, plan::FABRIC) {
        // A bridge without a MAC address of its own takes the lowest of its ports, and neighbours lose the router.
        ip(
            fabric,
            "link add fabric address 02:00:00:00:00:01 type bridge",
        )?;
    }
    addresses(
        fabric,
        "fabric",
        &[plan::ROUTER.0.into(), plan::ROUTER.1.into()],
    )?;
    ip(fabric, "link set fabric up")
}

/// A cable from a node's `eth0` to the switch. The port has the node's name.
pub(crate) fn node_cable(fabric: &Machine, node: &Machine, index: u8) -> anyhow::Result<()> {
    let port = node.name();
    cable(fabric, port, node, &plan::node_mac(index), plan::MTU)?;
    ip(fabric, &format!("link set {port} master fabric up"))?;
    // A network card takes nothing that is for another one; what a switch floods would reach a veth's XDP program.
    ip(
        fabric,
        &format!("link set {port} type bridge_slave flood off"),
    )?;
    // As with network cards: frames towards the node have complete checksums, and those that its XDP program sends back
    // are taken in. A plain veth does neither.
    let mut offloads = fabric.on_network("ethtool");
    offloads
        .args(["-K", port, "tx", "off"])
        .stdout(Stdio::null());
    must_run(&mut offloads)?;
    // `ip` makes directories in the BPF file system before it loads: in one that goes with the command.
    let mut load = fabric.on_network("unshare");
    load.args(["--mount", "sh", "-euc", LOAD, "sh", port])
        .arg(fabric.directory().join(PASS))
        .arg(pass::SECTION);
    must_run(&mut load)?;
    let (four, six) = plan::node_addresses(index);
    end_of_cable(
        node,
        &[four.into(), six.into()],
        plan::ROUTER.0.into(),
        plan::ROUTER.1.into(),
    )
}

/// A cable from the client to the router.
pub(crate) fn client_cable(fabric: &Machine, client: &Machine) -> anyhow::Result<()> {
    cable(
        fabric,
        plan::CLIENT,
        client,
        plan::CLIENT_MAC,
        plan::POD_MTU,
    )?;
    let (four, six) = plan::CLIENT_GATEWAY;
    addresses(fabric, plan::CLIENT, &[four.into(), six.into()])?;
    ip(fabric, "link set client up")?;
    let own: Vec<IpAddr> = plan::client_addresses().collect();
    end_of_cable(client, &own, four.into(), six.into())
}

/// Takes the cable of a machine out, as a switch sees it when the machine is off.
pub(crate) fn unplug(fabric: &Machine, machine: &Machine) -> anyhow::Result<()> {
    let delete = format!("link delete {}", machine.name());
    match ip(fabric, &delete) {
        // The kernel removes it, too, a moment after the machine's namespaces: whoever comes first.
        Err(error) if has(fabric, machine.name()) => Err(error),
        _ => Ok(()),
    }
}

/// What a node itself sends to this port of the fabric is lost. Sockets stay open on both sides, as when a cable fails
/// somewhere on the way.
pub(crate) fn cut_off(fabric: &Machine, index: u8, port: u16) -> anyhow::Result<()> {
    let (four, six) = plan::node_addresses(index);
    let name = cut_off_name(index);
    // In one transaction, so that nothing passes in between; and again does no harm.
    let words = format!(
        "add table inet {name}; delete table inet {name}; add table inet {name}; \
         add chain inet {name} lost {{ type filter hook input priority filter; }}; \
         add rule inet {name} lost ip saddr {four} tcp dport {port} drop; \
         add rule inet {name} lost ip6 saddr {six} tcp dport {port} drop"
    );
    output_of(fabric.on_network("nft").arg(words)).map(drop)
}

/// Ends [`cut_off`].
pub(crate) fn connect(fabric: &Machine, index: u8) -> anyhow::Result<()> {
    let name = cut_off_name(index);
    let end = format!("add table inet {name}; delete table inet {name}");
    output_of(fabric.on_network("nft").arg(end)).map(drop)
}

/// A table of its own, so that ending it disturbs no other.
fn cut_off_name(index: u8) -> String {
    format!("cut-off-{}", plan::node_name(index))
}

/// Routes to a node's pods: through the node, and at the node nowhere else. Without the latter, packets to a pod that is
/// gone travel between node and router until their hop limit ends.
pub(crate) fn pod_routes(
    fabric: &Machine,
    node: &Machine,
    index: u8,
    ranges: &[String],
) -> anyhow::Result<()> {
    let (four, six) = plan::node_addresses(index);
    for range in ranges {
        let via: IpAddr = if range.contains(':') {
            six.into()
        } else {
            four.into()
        };
        ip(fabric, &format!("route replace {range} via {via}"))?;
        ip(node, &format!("route replace blackhole {range}"))?;
    }
    Ok(())
}

/// The machine's end has a MAC address that it keeps when it boots again, as a network card has.
fn cable(
    fabric: &Machine,
    port: &str,
    machine: &Machine,
    mac: &str,
    mtu: u32,
) -> anyhow::Result<()> {
    if has(machine, "eth0") {
        return Ok(());
    }
    let ours = fabric.init().context("the fabric does not run")?;
    let theirs = machine
        .init()
        .with_context(|| format!("{} does not run", machine.name()))?;
    let words = format!(
        "link add eth0 address {mac} mtu {mtu} netns {theirs} type veth peer name {port} mtu {mtu} netns {ours}"
    );
    wait_until(
        LINK_LIMIT,
        &format!("the cable of {}", machine.name()),
        || {
            // What is left of an earlier life of the machine.
            unplug(fabric, machine)?;
            output_of(Command::new("ip").args(words.split_whitespace())).map(|_| true)
        },
    )
}

fn end_of_cable(
    machine: &Machine,
    own: &[IpAddr],
    via4: IpAddr,
    via6: IpAddr,
) -> anyhow::Result<()> {
    addresses(machine, "eth0", own)?;
    ip(machine, "link set eth0 up")?;
    for via in [via4, via6] {
        let family = if via.is_ipv4() { "-4" } else { "-6" };
        ip(
            machine,
            &format!("{family} route replace default via {via}"),
        )?;
    }
    Ok(())
}

fn addresses(machine: &Machine, interface: &str, own: &[IpAddr]) -> anyhow::Result<()> {
    for address in own {
        let quick = if address.is_ipv6() { "nodad" } else { "" };
        let address = plan::with_prefix(*address);
        ip(
            machine,
            &format!("address replace {address} dev {interface} {quick}"),
        )?;
    }
    Ok(())
}
