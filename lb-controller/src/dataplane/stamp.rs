//! The agent's sign of life: what tells the programs that the tables are fresh. Written from a thread of its own, so it
//! knows nothing of the rest of the agent.

use lb_ebpf::abi::{self, map};

use super::load::LoadError;
use super::mapping::Mapping;
use super::pin::PinDir;
use super::table::ArrayTable;

/// The agent's sign of life: two stores, no system call.
pub struct StampWriter {
    memory: Mapping,
}

impl StampWriter {
    pub(super) fn open(pins: &PinDir) -> Result<Self, LoadError> {
        let table: ArrayTable<abi::Stamp> = ArrayTable::open(pins, map::STAMP)?;
        let words = size_of::<abi::Stamp>() / size_of::<u64>();
        let memory = Mapping::new(table.fd(), words).map_err(|source| LoadError::System {
            what: "mapping the stamp",
            source,
        })?;
        Ok(Self { memory })
    }

    /// Says that the agent lives at `stamped_ns` and has been fresh since `fresh_since_ns` (0: is not fresh); both
    /// monotonic.
    ///
    /// A program between the two stores sees the new freshness with the old stamp: when freshness is lost that is seen
    /// first, and a node that becomes fresh only waits a moment longer.
    pub fn write(&self, stamped_ns: u64, fresh_since_ns: u64) {
        self.memory.store(1, fresh_since_ns);
        self.memory.store(0, stamped_ns);
    }
}
