//! What happens to a running cluster: an API server that goes away, machines without power, a node that is cut off.

use super::{Cluster, fabric, plan};
use crate::binaries::Program;
use crate::machine::Machine;

impl Cluster {
    /// Kills the API server; everything else goes on without it until [`Self::start_api_server`].
    pub fn kill_api_server(&self) -> anyhow::Result<()> {
        self.fabric().kill_daemon(Program::KubeApiserver.name())
    }

    /// Starts the API server, unless it runs, and waits until it answers.
    pub fn start_api_server(&self) -> anyhow::Result<()> {
        self.start_api_server_process()?;
        self.wait_for_api_server()
    }

    /// Cuts a node off from the API server: kubelet, service proxy and whatever else runs on the node's own network hear
    /// nothing of it, and it nothing of them, while everything between nodes goes on. Until [`Self::connect`].
    pub fn cut_off(&self, index: u8) -> anyhow::Result<()> {
        fabric::cut_off(&self.fabric(), index, plan::SERVER_PORT)
    }

    /// A node that was cut off reaches the API server again.
    pub fn connect(&self, index: u8) -> anyhow::Result<()> {
        fabric::connect(&self.fabric(), index)
    }

    /// Cuts the power of a machine: all its processes die at once, and its cable carries nothing any more.
    pub fn cut_power(&self, machine: &Machine) -> anyhow::Result<()> {
        machine.cut_power()?;
        if machine.name() == plan::FABRIC {
            return Ok(());
        }
        fabric::unplug(&self.fabric(), machine)
    }
}
