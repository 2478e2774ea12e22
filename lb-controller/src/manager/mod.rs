//! The manager: assigns slots, and writes tables and status.

use std::net::SocketAddr;
use std::path::PathBuf;

use tokio_util::sync::CancellationToken;

/// How the manager runs.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Directory of objects (Service, endpoint slice, Pod, Node); outputs go to `.bowline` below it.
    #[arg(long, value_name = "DIR")]
    pub manifests: PathBuf,
    /// Where /metrics, /healthz and /readyz are served; nowhere if not given.
    #[arg(long, value_name = "ADDR")]
    pub metrics_listen: Option<SocketAddr>,
    /// Where the admin answers are given; nowhere if not given.
    #[arg(long, value_name = "PATH")]
    pub admin_socket: Option<PathBuf>,
}

/// Runs until stopped.
pub async fn run(options: Options, stop: CancellationToken) -> anyhow::Result<()> {
    _ = options;
    stop.cancelled().await;
    Ok(())
}
