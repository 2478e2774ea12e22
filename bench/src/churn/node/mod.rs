//! The nodes of the simulated cluster: real maps and programs in the kernel, and the agent that fills them.

pub(super) mod agent;
pub(super) mod kernel;
mod pins;
