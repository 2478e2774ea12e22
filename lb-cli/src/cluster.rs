//! Agents in a Kubernetes cluster: finding their pods, and asking them by exec. Needs no way to a node but the API server.
//!
//! Permissions that a person needs: `list` of pods in all namespaces and `create` of `pods/exec` in Bowline's.

use std::path::PathBuf;

use anyhow::{Context, bail};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, AttachParams, ListParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use lb_controller::ask::ANSWER_BYTES_MAX;
use tokio::io::AsyncReadExt;

/// Labels of agents' pods, as the manifests in `deploy` set them.
const AGENTS: &str = "app.kubernetes.io/name=bowline,app.kubernetes.io/component=agent";
/// Container of the agent in its pod.
const CONTAINER: &str = "agent";

/// How to reach a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub(crate) struct Cluster {
    /// Ask a cluster, by this kubeconfig file; without it `$KUBECONFIG`, `~/.kube/config`, or the pod that this runs in.
    #[arg(long, global = true, value_name = "PATH")]
    kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig file; without it the current one.
    #[arg(long, global = true, value_name = "NAME")]
    context: Option<String>,
    /// In a cluster: the node whose agent to ask; without it, the first ready one by name.
    #[arg(long, global = true, value_name = "NAME")]
    node: Option<String>,
}

impl Cluster {
    /// A cluster was asked for by name.
    pub(crate) fn is_named(&self) -> bool {
        *self != Self::default()
    }

    /// Some cluster is configured, whether or not it answers.
    pub(crate) fn may_be_inferred() -> bool {
        let home = std::env::home_dir().map(|home| home.join(".kube/config"));
        std::env::var_os("KUBECONFIG").is_some_and(|path| !path.is_empty())
            || std::env::var_os("KUBERNETES_SERVICE_HOST").is_some()
            || home.is_some_and(|path| path.exists())
    }

    /// A node was asked for by name.
    pub(crate) fn node(&self) -> Option<&str> {
        self.node.as_deref()
    }

    /// A client with the permissions of whoever runs this.
    pub(crate) async fn client(&self) -> anyhow::Result<Client> {
        let options = KubeConfigOptions {
            context: self.context.clone(),
            ..KubeConfigOptions::default()
        };
        let config = match &self.kubeconfig {
            Some(path) => {
                let file = Kubeconfig::read_from(path)
                    .with_context(|| format!("read {}; name another --kubeconfig", path.display()))?;
                Config::from_custom_kubeconfig(file, &options).await?
            }
            None if self.context.is_some() => Config::from_kubeconfig(&options).await?,
            None => Config::infer().await.context(
                "there is neither an agent on this machine nor a cluster to ask; name one with --socket or --kubeconfig",
            )?,
        };
        Ok(Client::try_from(config)?)
    }

    /// The agent to ask: of the node that was named, else the first ready one.
    pub(crate) async fn agent(&self) -> anyhow::Result<AgentPod> {
        let pods = agents(self.client().await?).await?;
        let Some(pod) = choose(&pods, self.node()) else {
            match self.node() {
                Some(node) => bail!(
                    "node {node} has no running agent; see `kubectl get pods -A -o wide -l {AGENTS}`"
                ),
                None => bail!("no agent runs in this cluster; install Bowline first"),
            }
        };
        Ok(self.agent_in(pod))
    }

    /// The agent in a pod.
    pub(crate) fn agent_in(&self, pod: &Pod) -> AgentPod {
        AgentPod {
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            name: pod.metadata.name.clone().unwrap_or_default(),
            cluster: self.clone(),
        }
    }
}

/// All agents' pods.
pub(crate) async fn agents(client: Client) -> anyhow::Result<Vec<Pod>> {
    let pods: Api<Pod> = Api::all(client);
    let listed = pods.list(&ListParams::default().labels(AGENTS)).await;
    let listed = listed.context("list the agents' pods; that needs the verb list on pods")?;
    Ok(listed.items)
}

/// The node that a pod runs on, or is meant for.
pub(crate) fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref()
}

/// Its containers run, and nobody has asked for its end.
pub(crate) fn runs(pod: &Pod) -> bool {
    phase(pod) == Some("Running") && pod.metadata.deletion_timestamp.is_none()
}

/// The running agent of a node, or the first ready one by name of its node.
fn choose<'a>(pods: &'a [Pod], node: Option<&str>) -> Option<&'a Pod> {
    let mut running: Vec<_> = pods
        .iter()
        .filter(|pod| runs(pod))
        .filter(|pod| node.is_none_or(|wanted| node_of(pod) == Some(wanted)))
        .collect();
    // Ready ones first: an agent that still starts answers, but knows little.
    running.sort_by_key(|pod| (!is_ready(pod), node_of(pod)));
    running.first().copied()
}

fn phase(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.phase.as_deref()
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    conditions
        .filter(|condition| condition.type_ == "Ready")
        .any(|condition| condition.status == "True")
}

/// An agent's pod.
#[derive(Clone, Debug)]
pub(crate) struct AgentPod {
    namespace: String,
    name: String,
    /// How to get there.
    pub(crate) cluster: Cluster,
}

impl std::fmt::Display for AgentPod {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl AgentPod {
    /// The body of the answer to one request, made by the agent's own program in its own container.
    pub(crate) async fn ask(
        &self,
        client: Client,
        method: &str,
        path: &str,
        body: &[u8],
    ) -> anyhow::Result<Vec<u8>> {
        let mut command = vec!["lb-controller", "admin", method, path];
        if !body.is_empty() {
            command.push(std::str::from_utf8(body).context("the request is not text")?);
        }
        let pods: Api<Pod> = Api::namespaced(client, &self.namespace);
        let attach = AttachParams::default()
            .container(CONTAINER)
            .stdin(false)
            .stdout(true)
            .stderr(true);
        let mut process = pods
            .exec(&self.name, command, &attach)
            .await
            .context("run a command in the pod; that needs the verb create on pods/exec")?;
        let (stdout, stderr) = (process.stdout(), process.stderr());
        let (mut answer, mut complaint) = (Vec::new(), Vec::new());
        let read = async {
            if let Some(stdout) = stdout {
                let limit = ANSWER_BYTES_MAX as u64;
                stdout.take(limit).read_to_end(&mut answer).await?;
            }
            std::io::Result::Ok(())
        };
        let complain = async {
            if let Some(stderr) = stderr {
                stderr
                    .take(COMPLAINT_BYTES_MAX)
                    .read_to_end(&mut complaint)
                    .await?;
            }
            std::io::Result::Ok(())
        };
        tokio::try_join!(read, complain).context("read the answer")?;
        if answer.is_empty() {
            bail!("{}", String::from_utf8_lossy(&complaint).trim());
        }
        Ok(answer)
    }
}

/// A sentence with its causes.
const COMPLAINT_BYTES_MAX: u64 = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, node: &str, phase: &str, ready: &str) -> Pod {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": name, "namespace": "bowline-system"},
            "spec": {"nodeName": node, "containers": []},
            "status": {"phase": phase, "conditions": [{"type": "Ready", "status": ready}]},
        }))
        .unwrap()
    }

    fn chosen(node: Option<&str>) -> Option<String> {
        let pods = [
            pod("agent-d", "node4", "Failed", "False"),
            pod("agent-c", "node3", "Running", "True"),
            pod("agent-a", "node1", "Running", "False"),
            pod("agent-b", "node2", "Running", "True"),
        ];
        choose(&pods, node)?.metadata.name.clone()
    }

    #[test]
    fn the_first_ready_agent_by_node_is_asked_unless_a_node_is_named() {
        assert_eq!(chosen(None).as_deref(), Some("agent-b"));
        assert_eq!(chosen(Some("node1")).as_deref(), Some("agent-a"));
    }

    #[test]
    fn an_agent_that_does_not_run_is_not_asked() {
        assert_eq!(chosen(Some("node4")), None);
        assert_eq!(chosen(Some("node9")), None);
    }
}
