//! What the kernel holds of Bowline: its programs and their maps, by id. All nodes share one kernel, and the id of something
//! that is gone names nothing else for two billion ids. A link needs no look of its own: its program lives as long.

use std::collections::BTreeSet;

use anyhow::Context;
use aya::maps::{MapError, loaded_maps};
use aya::programs::{ProgramError, loaded_programs};
use aya::sys::SyscallError;

/// Names of our programs begin with it.
const PREFIX: &str = "bowline_";

/// Programs, and maps that they use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Held {
    programs: BTreeSet<u32>,
    maps: BTreeSet<u32>,
}

impl Held {
    /// All that is loaded now, whoever has loaded it: a lab may run on the same machine.
    pub(super) fn now() -> anyhow::Result<Self> {
        let mut held = Self::default();
        for program in loaded_programs() {
            let program = match program {
                // It went while we looked.
                Err(ProgramError::SyscallError(error)) if is_gone(&error) => continue,
                program => program.context("list the programs in the kernel")?,
            };
            let is_ours = program.name_as_str();
            if is_ours.is_some_and(|name| name.starts_with(PREFIX)) {
                held.programs.insert(program.id());
                held.maps.extend(program.map_ids()?.unwrap_or_default());
            }
        }
        Ok(held)
    }

    /// What was not there before.
    pub(super) fn since(&self, before: &Self) -> Self {
        Self {
            programs: &self.programs - &before.programs,
            maps: &self.maps - &before.maps,
        }
    }

    /// What of it is still there.
    pub(super) fn left(&self) -> anyhow::Result<Self> {
        let mut maps = BTreeSet::new();
        for map in loaded_maps() {
            match map {
                Err(MapError::SyscallError(error)) if is_gone(&error) => {}
                map => _ = maps.insert(map.context("list the maps in the kernel")?.id()),
            }
        }
        Ok(Self {
            programs: &self.programs & &Self::now()?.programs,
            maps: &self.maps & &maps,
        })
    }

    /// How many programs there are, and how many maps.
    pub(super) fn count(&self) -> (usize, usize) {
        (self.programs.len(), self.maps.len())
    }
}

fn is_gone(error: &SyscallError) -> bool {
    error.io_error.kind() == std::io::ErrorKind::NotFound
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_hold_is_not_counted() {
        let held = |programs: &[u32], maps: &[u32]| Held {
            programs: programs.iter().copied().collect(),
            maps: maps.iter().copied().collect(),
        };
        let ours = held(&[3, 7, 9], &[2, 8]).since(&held(&[3, 4], &[2]));
        assert_eq!(ours, held(&[7, 9], &[8]));
        assert_eq!(ours.count(), (2, 1));
    }
}
