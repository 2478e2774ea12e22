//! Which API server, and where Bowline is in its cluster: arguments of manager and agent.

use std::path::PathBuf;

use anyhow::Context;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

/// Which API server.
#[derive(Clone, Debug, clap::Args)]
pub struct Cluster {
    /// How to reach the API server; if left out, as pods do, or as kubectl does.
    #[arg(long, value_name = "PATH")]
    pub kubeconfig: Option<PathBuf>,
    /// Namespace of Bowline: its Lease and its Secret are there.
    #[arg(
        long,
        value_name = "NAME",
        env = "POD_NAMESPACE",
        default_value = "bowline-system"
    )]
    pub namespace: String,
}

impl Cluster {
    /// A client: of a file, else of the cluster that we run in, else as `kubectl` has it. The API server need not be there yet.
    pub async fn client(&self) -> anyhow::Result<Client> {
        let config = match &self.kubeconfig {
            Some(path) => {
                let file = Kubeconfig::read_from(path)
                    .with_context(|| format!("kubeconfig {} is of no use", path.display()))?;
                Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?
            }
            None => Config::infer().await.context(
                "no cluster is known; run in a pod, or give --kubeconfig or --manifests",
            )?,
        };
        Ok(Client::try_from(config)?)
    }
}
