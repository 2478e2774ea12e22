//! Where `NodeDrain`s are: in a cluster, or in a directory of manifests that plays one.
//!
//! Permissions that a person needs in a cluster: `get`, `create` and `delete` of `nodedrains`, `list` of `loadbalancernodes`; to
//! notice a manager that is gone also those of [`crate::cluster`], and `get` of `leases` in Bowline's namespace.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{Api, DeleteParams, ListParams, PostParams, Preconditions};
use kube::{Client, Resource, ResourceExt};
use lb_controller::api::file::API_VERSION;
use lb_controller::api::load_balancer_node::LoadBalancerNode;
use lb_controller::api::node_drain::{NodeDrain, NodeDrainSpec};
use lb_controller::manager::kubernetes::lease;
use lb_controller::source::output::Outputs;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::heard::Sign;
use crate::agent::{ANSWER_LIMIT, within};
use crate::cluster::{self, Cluster};

/// Beginning of what we write into a directory of manifests, so that nobody else's file is ever touched.
const FIRST_LINE: &str = "# Written by lbctl drain; `lbctl undrain` removes it.\n";

/// See the head of the file.
pub(crate) enum Place {
    Cluster {
        client: Client,
        /// Where the manager has its lease, if that can be told.
        namespace: Option<String>,
    },
    Directory(PathBuf),
}

impl Place {
    pub(crate) async fn open(manifests: Option<&Path>, cluster: &Cluster) -> anyhow::Result<Self> {
        let Some(manifests) = manifests else {
            let client = within(ANSWER_LIMIT, cluster.client()).await;
            let client = client.context(
                "reach the cluster; name one with --kubeconfig, or a directory with --manifests",
            )?;
            let agents = within(ANSWER_LIMIT, cluster::agents(client.clone())).await;
            let namespace = agents.unwrap_or_default();
            let namespace = namespace.first().and_then(ResourceExt::namespace);
            return Ok(Self::Cluster { client, namespace });
        };
        if !Outputs::below(manifests).root().is_dir() {
            bail!(
                "no manager has run on {}; name the directory that it was started with",
                manifests.display()
            );
        }
        Ok(Self::Directory(manifests.to_owned()))
    }

    /// Nodes with an agent.
    pub(crate) async fn nodes(&self) -> anyhow::Result<BTreeSet<String>> {
        match self {
            Self::Cluster { client, .. } => {
                let api = Api::<LoadBalancerNode>::all(client.clone());
                let listed = within(ANSWER_LIMIT, async {
                    let listed = api.list(&ListParams::default()).await;
                    listed.context(
                        "list loadbalancernodes; that needs the verb list on loadbalancernodes",
                    )
                });
                let listed = listed.await?;
                Ok(listed.items.iter().map(ResourceExt::name_any).collect())
            }
            Self::Directory(manifests) => {
                let directory = Outputs::below(manifests).nodes();
                let files = std::fs::read_dir(&directory);
                let files = files.with_context(|| format!("read {}", directory.display()))?;
                let node = |file: std::io::Result<std::fs::DirEntry>| {
                    let name = file.ok()?.file_name().into_string().ok()?;
                    Some(name.strip_suffix(".yaml")?.to_owned())
                };
                let names = files.filter_map(node);
                Ok(names.filter(|name| !name.starts_with('.')).collect())
            }
        }
    }

    /// The drain of a node with what it has come to.
    pub(crate) async fn get(&self, node: &str) -> anyhow::Result<Option<NodeDrain>> {
        match self {
            Self::Cluster { client, .. } => {
                let api = Api::<NodeDrain>::all(client.clone());
                within(ANSWER_LIMIT, async {
                    let got = api.get_opt(node).await;
                    got.context("get the NodeDrain; that needs the verb get on nodedrains")
                })
                .await
            }
            Self::Directory(manifests) => {
                let Some(wish) = wish(manifests, node)? else {
                    return Ok(None);
                };
                let told = told(manifests, node)?;
                let told = told.filter(|told| told.metadata.uid == wish.metadata.uid);
                Ok(Some(told.unwrap_or(wish)))
            }
        }
    }

    /// Asks for a drain.
    pub(crate) async fn create(
        &self,
        node: &str,
        spec: &NodeDrainSpec,
    ) -> anyhow::Result<NodeDrain> {
        let mut drain = NodeDrain::new(node, spec.clone());
        match self {
            Self::Cluster { client, .. } => {
                let api = Api::<NodeDrain>::all(client.clone());
                within(ANSWER_LIMIT, async {
                    match api.create(&PostParams::default(), &drain).await {
                        Err(kube::Error::Api(status)) if status.code == 409 => {
                            bail!(
                                "somebody else has asked for a drain of {node} just now; look again"
                            )
                        }
                        made => made.context(
                            "create the NodeDrain; that needs the verb create on nodedrains",
                        ),
                    }
                })
                .await
            }
            Self::Directory(manifests) => {
                drain.metadata.uid = Some(format!("{:032x}", rand::random::<u128>()));
                let text = serde_saphyr::to_string(&drain).context("write YAML")?;
                let path = wish_file(manifests, node);
                write_new(&path, &format!("{FIRST_LINE}{text}"))
                    .with_context(|| format!("write {}", path.display()))?;
                Ok(drain)
            }
        }
    }

    /// Takes a drain back, that one and no later one. Says whether it was there.
    pub(crate) async fn delete(&self, drain: &NodeDrain) -> anyhow::Result<bool> {
        let node = drain.name_any();
        match self {
            Self::Cluster { client, .. } => {
                let api = Api::<NodeDrain>::all(client.clone());
                let this = DeleteParams {
                    preconditions: Some(Preconditions {
                        uid: drain.uid(),
                        ..Preconditions::default()
                    }),
                    ..DeleteParams::default()
                };
                within(ANSWER_LIMIT, async {
                    match api.delete(&node, &this).await {
                        Ok(_) => Ok(true),
                        // Gone, or another one.
                        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {
                            Ok(false)
                        }
                        Err(error) => Err(error).context(
                            "delete the NodeDrain; that needs the verb delete on nodedrains",
                        ),
                    }
                })
                .await
            }
            Self::Directory(manifests) => {
                let there = wish(manifests, &node)?;
                if there.is_none_or(|there| there.metadata.uid != drain.metadata.uid) {
                    return Ok(false);
                }
                let path = wish_file(manifests, &node);
                match std::fs::remove_file(&path) {
                    Ok(()) => Ok(true),
                    Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
                    Err(error) => Err(error).with_context(|| format!("remove {}", path.display())),
                }
            }
        }
    }

    /// What agents go by, whoever asked for it; none: the node is in use.
    pub(crate) async fn told(&self, node: &str) -> anyhow::Result<Option<NodeDrain>> {
        match self {
            Self::Cluster { .. } => self.get(node).await,
            Self::Directory(manifests) => told(manifests, node),
        }
    }

    /// What there is to see of a manager.
    pub(super) async fn sign(&self) -> Sign {
        match self {
            Self::Cluster { namespace, client } => {
                let Some(namespace) = namespace else {
                    return Sign::Hidden;
                };
                let leases: Api<Lease> = Api::namespaced(client.clone(), namespace);
                let lease = within(ANSWER_LIMIT, async {
                    Ok(leases.get_opt(lease::NAME).await?)
                });
                match lease.await {
                    Ok(lease) => Sign::Lease(lease.and_then(|lease| lease.spec).map(Box::new)),
                    Err(_) => Sign::Hidden,
                }
            }
            Self::Directory(manifests) => held(&Outputs::below(manifests).manager_lock()),
        }
    }
}

/// Whether somebody holds a lock. It is taken for a moment, for which a manager that starts waits.
fn held(lock: &Path) -> Sign {
    let file = match std::fs::File::open(lock) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Sign::Lock { is_held: false };
        }
        Err(_) => return Sign::Hidden,
    };
    match Flock::lock(file, FlockArg::LockSharedNonblock) {
        Ok(_) => Sign::Lock { is_held: false },
        Err((_, Errno::EWOULDBLOCK)) => Sign::Lock { is_held: true },
        Err(_) => Sign::Hidden,
    }
}

/// The file that asks for a drain.
fn wish_file(manifests: &Path, node: &str) -> PathBuf {
    manifests.join(format!("nodedrain-{node}.yaml"))
}

/// What was asked for here, by us.
fn wish(manifests: &Path, node: &str) -> anyhow::Result<Option<NodeDrain>> {
    let path = wish_file(manifests, node);
    let Some(text) = read(&path)? else {
        return Ok(None);
    };
    if !text.starts_with(FIRST_LINE) {
        bail!(
            "{} was not written by lbctl, which leaves it alone; see what it is for, and remove it",
            path.display()
        );
    }
    parse(&path, &text).map(Some)
}

/// What the manager says that a drain has come to.
fn told(manifests: &Path, node: &str) -> anyhow::Result<Option<NodeDrain>> {
    let path = Outputs::below(manifests)
        .drains()
        .join(format!("{node}.yaml"));
    read(&path)?.map(|text| parse(&path, &text)).transpose()
}

fn read(path: &Path) -> anyhow::Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

fn parse(path: &Path, text: &str) -> anyhow::Result<NodeDrain> {
    let kind = NodeDrain::kind(&());
    serde_saphyr::from_str(text)
        .with_context(|| format!("{} is no {API_VERSION} {kind}", path.display()))
}

/// Writes a file in one step, and never over another one.
fn write_new(path: &Path, text: &str) -> std::io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let beside = path.with_file_name(format!(".{name}.{}.tmp", std::process::id()));
    let written = std::fs::File::create(&beside).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        // A rename would replace what is there.
        std::fs::hard_link(&beside, path)
    });
    _ = std::fs::remove_file(&beside);
    written
}
