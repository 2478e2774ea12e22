//! The cluster as the story sees it: kubectl, counters of agents, who announces. Decides nothing, and waits for nothing
//! without an end.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use rig::Cluster;
use rig::cluster::plan;
use serde_json::Value;

use super::child::Teller;
use super::client::{Client, Probed};
use super::kernel::Held;
use crate::process;

/// Port of the agents' metrics in `deploy/kustomize`.
const METRICS: u16 = 6085;
/// Our own namespace.
pub(super) const NAMESPACE: &str = "bowline-system";
/// No command takes longer; those that wait for something end before.
const KUBECTL_LIMIT: Duration = Duration::from_secs(150);
/// A node whose containers start again is ready within a fraction of this.
const CALM_LIMIT: Duration = Duration::from_secs(90);

/// A cluster with Bowline in it.
pub(super) struct World {
    pub(super) cluster: Cluster,
    /// Where the programs are that were built.
    pub(super) built: PathBuf,
    pub(super) nodes: u8,
    /// What others, such as a lab, have in the kernel.
    pub(super) held_before: Held,
}

impl World {
    /// Runs kubectl, and returns what it prints.
    pub(super) fn kubectl(&self, words: &str) -> anyhow::Result<String> {
        let mut command = self.cluster.kubectl()?;
        process::output_within(command.args(words.split_whitespace()), KUBECTL_LIMIT)
    }

    /// `lbctl` with the administrator's permissions.
    pub(super) fn lbctl(&self) -> anyhow::Result<Command> {
        let lbctl = self.built.join("lbctl").display().to_string();
        let mut command = self.cluster.fabric().on_network(&lbctl);
        command.arg("--kubeconfig").arg(self.cluster.kubeconfig()?);
        Ok(command)
    }

    /// Applies an object.
    pub(super) fn apply(&self, object: &Value) -> anyhow::Result<()> {
        let mut command = self.cluster.kubectl()?;
        command
            .args(["apply", "--request-timeout=30s", "-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null());
        let mut child = command.spawn().context("start kubectl")?;
        let mut input = child.stdin.take().context("kubectl has no input")?;
        input
            .write_all(object.to_string().as_bytes())
            .context("write to kubectl")?;
        drop(input);
        let status = child.wait().context("wait for kubectl")?;
        ensure!(status.success(), "`kubectl apply` ended with {status}");
        Ok(())
    }

    /// Tells of every Service that appears or changes: its name and its addresses.
    pub(super) fn watch_services(&self) -> anyhow::Result<Teller> {
        let mut command = self.cluster.kubectl()?;
        command.args(["get", "services", "--watch", "-o"]);
        command.arg(r#"jsonpath={.metadata.name} {.status.loadBalancer.ingress[*].ip}{"\n"}"#);
        Teller::start(&mut command)
    }

    /// Waits until a rollout has ended.
    pub(super) fn rolled_out(&self, what: &str) -> anyhow::Result<()> {
        self.kubectl(&format!("rollout status {what} --timeout=120s"))
            .map(drop)
    }

    /// Starts a client.
    pub(super) fn client(&self, what: &[&str], to: &[SocketAddr]) -> anyhow::Result<Client> {
        Client::start(&self.cluster, &self.built.join("lbctl"), what, to)
    }

    /// Waits until all connections of a second succeed.
    pub(super) fn calm(&self, to: &[SocketAddr]) -> anyhow::Result<()> {
        rig::wait_until(
            CALM_LIMIT,
            "a second in which every connection succeeds",
            || {
                let mut client = self.client(&["probe"], to)?;
                client.begun(CALM_LIMIT)?;
                std::thread::sleep(Duration::from_millis(1_100));
                let probed: Probed = client.stop()?;
                Ok(probed.failed == 0)
            },
        )
    }

    /// The sum of a metric over all agents that run, of the series whose labels hold a text.
    pub(super) fn metric(&self, name: &str, label: &str) -> anyhow::Result<u64> {
        let each = self.metric_of_each(name, label)?;
        Ok(each.into_iter().sum())
    }

    /// The same, node by node.
    pub(super) fn metric_of_each(&self, name: &str, label: &str) -> anyhow::Result<Vec<u64>> {
        (1..=self.nodes)
            .filter(|index| self.cluster.node(*index).init().is_some())
            .map(|index| {
                let text = self.metrics_of(index);
                let text = text.with_context(|| format!("ask the agent of node{index}"))?;
                Ok(sum_of(&text, name, label))
            })
            .collect()
    }

    /// What the agent of a node tells about itself; works without the API server.
    pub(super) fn metrics_of(&self, index: u8) -> anyhow::Result<String> {
        let address = SocketAddr::new(plan::node_addresses(index).0.into(), METRICS);
        self.cluster.fabric().work_on_network(|| {
            let limit = Duration::from_secs(3);
            let mut stream = TcpStream::connect_timeout(&address, limit)?;
            stream.set_read_timeout(Some(limit))?;
            stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        })
    }

    /// The node whose MAC address the router uses for a VIP; none if the router knows no node that runs.
    pub(super) fn announcer(&self, vip: IpAddr) -> anyhow::Result<Option<u8>> {
        let mut ip = self.cluster.fabric().on_network("ip");
        let text = process::output(ip.args([
            "neighbour",
            "show",
            "to",
            &vip.to_string(),
            "dev",
            plan::FABRIC,
        ]))?;
        let mut words = text.split_whitespace().skip_while(|word| *word != "lladdr");
        let Some(mac) = words.nth(1) else {
            return Ok(None);
        };
        for index in 1..=self.nodes {
            let node = self.cluster.node(index);
            if node.init().is_none() {
                continue;
            }
            let own = process::output(node.inside("cat").arg("/sys/class/net/eth0/address"))?;
            if own.trim() == mac {
                return Ok(Some(index));
            }
        }
        // Of a node that has no power.
        Ok(None)
    }

    /// The announcer, once there is one.
    pub(super) fn must_announcer(&self, vip: IpAddr) -> anyhow::Result<u8> {
        let mut found = None;
        let what = format!("somebody to announce {vip}");
        rig::wait_until(Duration::from_secs(20), &what, || {
            found = self.announcer(vip)?;
            Ok(found.is_some())
        })?;
        found.context("nobody announces")
    }

    /// Waits until every agent says that it is ready.
    pub(super) fn wait_for_agents(&self) -> anyhow::Result<()> {
        rig::wait_until(Duration::from_mins(2), "all agents to be ready", || {
            let ready = self.metric("bowline_node_ready", "")?;
            Ok(ready >= u64::from(self.nodes))
        })
    }

    /// Waits until every agent has the newest table of a Service.
    pub(super) fn programmed(&self, service: &str) -> anyhow::Result<()> {
        let get = format!("get servicetable {service} -o jsonpath={{.spec.version}}");
        let label = format!("service=\"default/{service}\"");
        let what = format!("every agent to have the table of {service}");
        rig::wait_until(Duration::from_secs(30), &what, || {
            let newest: u64 = self.kubectl(&get)?.trim().parse().context("a version")?;
            let each = self.metric_of_each("bowline_service_table_version", &label)?;
            Ok(each.iter().all(|version| *version == newest))
        })
    }

    /// Applies a directory with a kustomization.
    pub(super) fn apply_directory(&self, directory: &Path) -> anyhow::Result<()> {
        self.kubectl(&format!("apply --server-side -k {}", directory.display()))
            .map(drop)
    }
}

/// The sum of a metric's series whose labels hold a text.
fn sum_of(text: &str, name: &str, label: &str) -> u64 {
    let of_name = |line: &&str| {
        let rest = line.strip_prefix(name);
        rest.is_some_and(|rest| rest.starts_with(['{', ' ']))
    };
    text.lines()
        .filter(of_name)
        .filter(|line| line.contains(label))
        .filter_map(|line| {
            line.rsplit(' ')
                .next()?
                .split('.')
                .next()?
                .parse::<u64>()
                .ok()
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_of_a_metric_are_added_by_label() {
        let text = "# TYPE a gauge\n\
                    a_total{service=\"default/web\",port=\"80\"} 3\n\
                    a_total{service=\"default/web\",port=\"53\"} 4\n\
                    a_total{service=\"default/web-2\",port=\"53\"} 8\n\
                    a_total_more{service=\"default/web\"} 16\n\
                    b 1.0\n";
        assert_eq!(sum_of(text, "a_total", "\"default/web\""), 7);
        assert_eq!(sum_of(text, "b", ""), 1);
        assert_eq!(sum_of(text, "c", ""), 0);
    }
}
