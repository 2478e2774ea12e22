//! The agent's sign of life: what tells the programs that the tables are fresh. Written from a thread of its own, so it
//! knows nothing of the rest of the agent.

use lb_ebpf::abi::{self, map};

use super::ApplyError;
use super::load::LoadError;
use super::mapping::Mapping;
use super::pin::{PinDir, PinError};
use super::table::ArrayTable;

/// Why there is no telling whether an agent lives.
#[derive(Debug, thiserror::Error)]
pub enum StampError {
    /// The map can not be opened.
    #[error("the agent's sign of life can not be opened")]
    Open(#[from] PinError),
    /// The map can not be read.
    #[error("the agent's sign of life can not be read")]
    Read(#[from] ApplyError),
}

/// The sign of life of the agent whose maps are pinned there; none where no agent has been.
pub fn read(pins: &PinDir) -> Result<Option<abi::Stamp>, StampError> {
    match ArrayTable::<abi::Stamp>::open(pins, map::STAMP) {
        Ok(table) => Ok(Some(table.get(0)?)),
        Err(PinError::Pin { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

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
