//! The agent of one node: reads objects and tables, programs the maps, follows next hops, answers questions.

pub mod check;
pub mod stamp;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use tokio_util::sync::CancellationToken;

use crate::admin;

/// Where links and maps are pinned if not told otherwise.
pub const PIN_DIR_DEFAULT: &str = "/sys/fs/bpf/bowline";

/// How the agent runs.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Directory of objects (Service, endpoint slice, Pod, Node); tables come from `.bowline` below it.
    #[arg(long, value_name = "DIR")]
    pub manifests: PathBuf,
    /// Name of this node, as its Node object has it.
    #[arg(long, value_name = "NAME")]
    pub node: String,
    /// What this node does.
    #[arg(long, value_enum, default_value = "both")]
    pub role: admin::Role,
    /// Interfaces that carry the programs; without it, each with a default route.
    #[arg(long, value_name = "IF")]
    pub interface: Vec<String>,
    /// Addresses of this node, at most one of each family; without it, the first internal ones of its Node object.
    #[arg(long, value_name = "IP")]
    pub node_address: Vec<IpAddr>,
    /// Where links and maps are pinned: a directory of a bpffs.
    #[arg(long, value_name = "PATH", default_value = PIN_DIR_DEFAULT)]
    pub pin_dir: PathBuf,
    /// Where the admin answers are given.
    #[arg(long, value_name = "PATH", default_value = admin::SOCKET_DEFAULT)]
    pub admin_socket: PathBuf,
    /// Where /metrics, /healthz and /readyz are served; nowhere if not given.
    #[arg(long, value_name = "ADDR")]
    pub metrics_listen: Option<SocketAddr>,
    /// How XDP is attached.
    #[arg(long, value_enum, default_value = "auto")]
    pub xdp_mode: XdpMode,
    /// Known flows of each family that this node has room for.
    #[arg(long, value_name = "N", default_value_t = lb_ebpf::abi::capacity::FLOWS)]
    pub flows: u32,
    /// Do not pass on packets of unknown flows: for control experiments only, it breaks connections.
    #[arg(long)]
    pub no_relay: bool,
}

/// How XDP is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum XdpMode {
    /// Natively where the driver can, else generically.
    Auto,
    /// Natively or not at all.
    Native,
    /// Generically.
    Generic,
}

/// Runs until stopped. Links and maps stay pinned and keep forwarding.
pub async fn run(options: Options, stop: CancellationToken) -> anyhow::Result<()> {
    _ = options;
    stop.cancelled().await;
    Ok(())
}

/// Removes all programs and maps of a pin directory.
pub fn detach(pin_dir: &Path) -> anyhow::Result<()> {
    anyhow::bail!("{}: not yet", pin_dir.display())
}

/// Prints what the verifier says.
pub fn verify() -> anyhow::Result<()> {
    anyhow::bail!("not yet")
}
