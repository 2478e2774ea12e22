//! BIRD on the router of the cluster's network: takes what nodes tell it, and spreads flows over all that are equally good.

use std::collections::BTreeSet;
use std::fs::File;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::Context;
use rig::Machine;
use rig::cluster::plan;

use super::world::World;
use crate::process;

/// Autonomous systems of the router and of the nodes.
pub(super) const ROUTER_AS: u32 = 64_500;
pub(super) const NODES_AS: u32 = 64_501;

/// Three missing in a row are a dead node: less than a second, and more than a machine with two processors makes a daemon wait while
/// three nodes of a cluster boot on it.
pub(super) const BFD_INTERVAL_MS: u32 = 300;

/// Nodes are heard from their whole network. Those that ask to be used last (RFC 8326) are.
const CONFIG: &str = r#"router id ROUTER4;
log stderr all;
protocol device {}
protocol bfd { accept direct; interface "*" { interval INTERVAL ms; multiplier 3; }; }
protocol kernel { merge paths on; ipv4 { import none; export where source = RTS_BGP; }; }
protocol kernel { merge paths on; ipv6 { import none; export where source = RTS_BGP; }; }
filter from_nodes {
    if (65535, 0) ~ bgp_community then bgp_local_pref = 0;
    accept;
}
template bgp nodes {
    local as ROUTER_AS;
    bfd on;
    # A node that was lost is taken back as soon as it is there: by default it is refused for a minute.
    error wait time 1, 2;
    error forget time 3;
}
protocol bgp nodes4 from nodes {
    neighbor range 172.30.0.0/24 as NODES_AS;
    dynamic name "node4_";
    ipv4 { import filter from_nodes; export none; };
}
protocol bgp nodes6 from nodes {
    neighbor range fd00:30::/64 as NODES_AS;
    dynamic name "node6_";
    ipv6 { import filter from_nodes; export none; };
}
"#;

/// An answer of a daemon on this machine.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// The routing daemon; ends when dropped, and its routes with it.
pub(super) struct Router {
    machine: Machine,
    bird: Child,
}

impl Router {
    pub(super) fn start(world: &World) -> anyhow::Result<Self> {
        let machine = world.cluster.fabric();
        let config = CONFIG
            .replace("ROUTER4", &plan::ROUTER.0.to_string())
            .replace("INTERVAL", &BFD_INTERVAL_MS.to_string())
            .replace("ROUTER_AS", &ROUTER_AS.to_string())
            .replace("NODES_AS", &NODES_AS.to_string());
        let path = machine.directory().join("bird.conf");
        std::fs::write(&path, config).with_context(|| format!("write {}", path.display()))?;
        // By ports too: connections of one client are spread.
        for family in ["ipv4", "ipv6"] {
            let policy = format!("echo 1 >/proc/sys/net/{family}/fib_multipath_hash_policy");
            process::output(machine.on_network("sh").args(["-euc", &policy]))?;
        }
        let log = machine.directory().join(LOG);
        let log = File::create(&log).with_context(|| format!("write {}", log.display()))?;
        // It ends with us, however we end.
        let mut command = machine.on_network("setpriv");
        command.args(["--pdeathsig", "KILL", "--", "bird", "-f", "-c"]);
        command.arg(&path);
        command.arg("-s").arg(machine.directory().join(SOCKET));
        let bird = command.stdin(Stdio::null()).stderr(log).spawn();
        Ok(Self {
            bird: bird.context("start bird (Debian package bird2)")?,
            machine,
        })
    }

    /// How many nodes a VIP's packets are sent to.
    pub(super) fn paths(&self, vip: IpAddr) -> anyhow::Result<usize> {
        let family = if vip.is_ipv4() { "-4" } else { "-6" };
        let mut ip = self.machine.on_network("ip");
        let shown = process::output(ip.args([family, "route", "show", &vip.to_string()]))?;
        Ok(shown.matches("via ").count())
    }

    /// Both ends of each session's connection: another one is another session.
    pub(super) fn sessions(&self) -> anyhow::Result<BTreeSet<String>> {
        let mut ss = self.machine.on_network("ss");
        ss.args(["-Htn", "state", "established", "sport", "=", ":179"]);
        let shown = process::output(&mut ss)?;
        // Two columns about queues are before them.
        let ends = |line: &str| {
            line.split_whitespace()
                .skip(2)
                .collect::<Vec<_>>()
                .join(" ")
        };
        Ok(shown.lines().map(ends).collect())
    }

    /// What it was told of a VIP.
    pub(super) fn told(&self, vip: IpAddr) -> anyhow::Result<String> {
        self.ask(&["show", "route", "all", "for", &vip.to_string()])
    }

    fn ask(&self, words: &[&str]) -> anyhow::Result<String> {
        let mut birdc = std::process::Command::new("birdc");
        birdc.arg("-s").arg(self.socket()).args(words);
        process::output_within(&mut birdc, ANSWER_LIMIT)
    }

    fn socket(&self) -> PathBuf {
        self.machine.directory().join(SOCKET)
    }
}

/// Where it is asked, in the directory of its machine.
const SOCKET: &str = "bird.ctl";
/// What it says there.
pub(super) const LOG: &str = "bird.log";

impl Drop for Router {
    fn drop(&mut self) {
        // It takes its routes out when it is asked to end. SIGTERM would not reach it: programs inherit what this one blocks.
        if self.ask(&["down"]).is_err() {
            // It has ended already if something went wrong.
            _ = self.bird.kill();
        }
        _ = self.bird.wait();
    }
}
