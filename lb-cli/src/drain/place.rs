//! Where `NodeDrain`s are: in a cluster, or in a directory of manifests that plays one.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use kube::{Client, ResourceExt};
use lb_controller::api::file;
use lb_controller::api::load_balancer_node::LoadBalancerNode;
use lb_controller::api::node_drain::{NodeDrain, NodeDrainSpec};
use lb_controller::source::output::{Mode, Outputs, replace};

use crate::agent;
use crate::cluster::Cluster;

/// Beginning of what we write into a directory of manifests, so that nobody else's file is ever touched.
const FIRST_LINE: &str = "# Written by lbctl drain; `lbctl undrain` removes it.\n";

/// See the head of the file.
pub(crate) enum Place {
    Cluster {
        runtime: tokio::runtime::Runtime,
        client: Client,
    },
    Directory(PathBuf),
}

impl Place {
    pub(crate) fn open(manifests: Option<&Path>, cluster: &Cluster) -> anyhow::Result<Self> {
        if let Some(manifests) = manifests {
            if !Outputs::below(manifests).root().is_dir() {
                bail!(
                    "no manager has run on {}; name the directory that it was started with",
                    manifests.display()
                );
            }
            return Ok(Self::Directory(manifests.to_owned()));
        }
        let runtime = agent::runtime()?;
        let client = runtime.block_on(agent::within(agent::ANSWER_LIMIT, cluster.client()))?;
        Ok(Self::Cluster { runtime, client })
    }

    /// Nodes with an agent.
    pub(crate) fn nodes(&self) -> anyhow::Result<BTreeSet<String>> {
        match self {
            Self::Cluster { runtime, client } => {
                let api = Api::<LoadBalancerNode>::all(client.clone());
                let listed = async {
                    let listed = api.list(&ListParams::default()).await;
                    listed.context("list loadbalancernodes")
                };
                let listed = runtime.block_on(agent::within(agent::ANSWER_LIMIT, listed))?;
                Ok(listed.items.iter().map(ResourceExt::name_any).collect())
            }
            Self::Directory(manifests) => {
                let directory = Outputs::below(manifests).nodes();
                let files = std::fs::read_dir(&directory);
                let files = files.with_context(|| format!("read {}", directory.display()))?;
                let stem = |file: std::io::Result<std::fs::DirEntry>| {
                    let path = file.ok()?.path();
                    (path.extension()? == "yaml").then(|| ())?;
                    Some(path.file_stem()?.to_str()?.to_owned())
                };
                Ok(files.filter_map(stem).collect())
            }
        }
    }

    /// The drain of a node with what it has come to.
    pub(crate) fn get(&self, node: &str) -> anyhow::Result<Option<NodeDrain>> {
        match self {
            Self::Cluster { runtime, client } => {
                let api = Api::<NodeDrain>::all(client.clone());
                let got = async { api.get_opt(node).await.context("get the NodeDrain") };
                runtime.block_on(agent::within(agent::ANSWER_LIMIT, got))
            }
            Self::Directory(manifests) => {
                let Some(asked) = read(&wish(manifests, node))? else {
                    return Ok(None);
                };
                let told = read(&told(manifests, node))?;
                let told = told.filter(|told| told.metadata.uid == asked.metadata.uid);
                Ok(Some(told.unwrap_or(asked)))
            }
        }
    }

    /// Asks for a drain.
    pub(crate) fn create(&self, node: &str, spec: &NodeDrainSpec) -> anyhow::Result<NodeDrain> {
        let mut drain = NodeDrain::new(node, spec.clone());
        match self {
            Self::Cluster { runtime, client } => {
                let api = Api::<NodeDrain>::all(client.clone());
                let made = async {
                    let made = api.create(&PostParams::default(), &drain).await;
                    made.context("create the NodeDrain; that needs the verb create on nodedrains")
                };
                runtime.block_on(agent::within(agent::ANSWER_LIMIT, made))
            }
            Self::Directory(manifests) => {
                let path = wish(manifests, node);
                if path.exists() {
                    bail!(
                        "{} was not written by lbctl; remove it first",
                        path.display()
                    );
                }
                drain.metadata.uid = Some(format!("{:032x}", rand::random::<u128>()));
                let text = serde_saphyr::to_string(&drain).context("write YAML")?;
                replace(&path, &format!("{FIRST_LINE}{text}"), Mode::Public)
                    .with_context(|| format!("write {}", path.display()))?;
                Ok(drain)
            }
        }
    }

    /// Takes it back.
    pub(crate) fn delete(&self, node: &str) -> anyhow::Result<()> {
        match self {
            Self::Cluster { runtime, client } => {
                let api = Api::<NodeDrain>::all(client.clone());
                let gone = async {
                    match api.delete(node, &DeleteParams::default()).await {
                        Ok(_) => Ok(()),
                        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
                        Err(error) => Err(error).context(
                            "delete the NodeDrain; that needs the verb delete on nodedrains",
                        ),
                    }
                };
                runtime.block_on(agent::within(agent::ANSWER_LIMIT, gone))
            }
            Self::Directory(manifests) => {
                let path = wish(manifests, node);
                match std::fs::remove_file(&path) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        Err(error).with_context(|| format!("remove {}", path.display()))
                    }
                    _ => Ok(()),
                }
            }
        }
    }

    /// Whether agents may still hold a node for drained.
    pub(crate) fn is_out(&self, node: &str) -> anyhow::Result<bool> {
        match self {
            Self::Cluster { .. } => Ok(self.get(node)?.is_some()),
            Self::Directory(manifests) => Ok(told(manifests, node).exists()),
        }
    }
}

/// The file that asks for a drain.
fn wish(manifests: &Path, node: &str) -> PathBuf {
    manifests.join(format!("nodedrain-{node}.yaml"))
}

/// The file that says what it has come to.
fn told(manifests: &Path, node: &str) -> PathBuf {
    Outputs::below(manifests)
        .drains()
        .join(format!("{node}.yaml"))
}

/// Reads one of these files; none if it is not there.
fn read(path: &Path) -> anyhow::Result<Option<NodeDrain>> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    };
    let drain: NodeDrain = serde_saphyr::from_str(&text)
        .with_context(|| format!("{} is no {} NodeDrain", path.display(), file::API_VERSION))?;
    Ok(Some(drain))
}
