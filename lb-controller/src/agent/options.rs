//! How an agent runs, by its command line.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use crate::admin;
use crate::announce::bgp;
use crate::announce::routes::TABLE_DEFAULT;
use crate::dataplane::load::Sizes;
use crate::source::kubernetes::Cluster;

/// Where links and maps are pinned if not told otherwise.
pub const PIN_DIR_DEFAULT: &str = "/sys/fs/bpf/bowline";

/// As many as a node has flows, so that any one can be drained whole.
const PINS_DEFAULT: u32 = lb_ebpf::abi::capacity::FLOWS;

/// How the agent runs.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Directory of objects (Service, endpoint slice, Pod, Node) instead of an API server; tables come from `.bowline`
    /// below it.
    #[arg(long, value_name = "DIR", conflicts_with = "kubeconfig")]
    pub manifests: Option<PathBuf>,
    /// Which API server.
    #[command(flatten)]
    pub cluster: Cluster,
    /// Name of this node, as its Node object has it.
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
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
    /// Keep a route to each VIP that is served from here in this routing table, for a routing daemon to export; 6081 is a number
    /// that nobody else uses.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(256..))]
    pub route_table: Option<u32>,
    /// Directory of BIRD's configuration and control socket: BIRD tells routers as `BGPPeer`s and `BGPAdvertisement`s say. Its
    /// routes are in table 6081 if no other is named.
    #[arg(long, value_name = "DIR")]
    pub bird_directory: Option<PathBuf>,
    /// Directory of passwords of BGP sessions, one file for each key of the Secret.
    #[arg(long, value_name = "DIR", requires = "bird_directory")]
    pub bgp_passwords: Option<PathBuf>,
    /// Connections of each family that all nodes together can have pinned here, such as those of a node that is drained; the same at
    /// every node.
    #[arg(long, value_name = "N", default_value_t = PINS_DEFAULT, value_parser = clap::value_parser!(u32).range(1024..=16_777_216))]
    pub pins: u32,
    /// Whether connections are handed off.
    #[command(flatten)]
    pub handoff: crate::handoff::Options,
    /// Do not pass on packets of unknown flows: for control experiments only, it breaks connections.
    #[arg(long)]
    pub no_relay: bool,
}

impl Options {
    pub(super) fn sizes(&self) -> Sizes {
        Sizes {
            flows: self.flows,
            pins: self.pins,
            ..Sizes::default()
        }
    }

    /// The table of routes to VIPs.
    pub(super) fn route_table(&self) -> Option<u32> {
        let of_bird = self.bird_directory.as_ref().map(|_| TABLE_DEFAULT);
        self.route_table.or(of_bird)
    }

    pub(super) fn bird(&self) -> Option<bgp::Settings> {
        Some(bgp::Settings {
            directory: self.bird_directory.clone()?,
            passwords: self.bgp_passwords.clone(),
        })
    }
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
