//! Services of one family in the kernel: records and the directory that finds them, see [`lb_ebpf::directory`].
//!
//! A new version of a service is a fresh record; one store of eight bytes makes packets find it in place of the old one,
//! which is written again only after a grace period.

use std::collections::HashMap;
use std::hash::Hash;
use std::os::fd::AsFd;

use lb_ebpf::abi::{Plain, ServiceEntry, ServiceRecord, capacity};
use lb_ebpf::directory::{self, Key};

use super::mapping::Mapping;
use super::pin::PinDir;
use super::sys::GracePeriods;
use super::table::{self, ArrayTable};
use super::{ApplyError, load::LoadError};

/// Where a service is.
#[derive(Clone, Copy)]
struct Place {
    /// Position of its word.
    at: u32,
    /// Index of its record.
    record: u32,
}

/// The services of one family.
pub(super) struct Services<K> {
    name: &'static str,
    records: ArrayTable<ServiceRecord<K>>,
    words: Mapping,
    places: HashMap<K, Place>,
    /// Records that nobody can read.
    free: Vec<u32>,
    /// Records that a program may still read.
    retired: Vec<u32>,
}

impl<K> Services<K>
where
    K: Key + Hash + Default + Plain,
    ServiceRecord<K>: Plain + Default,
{
    /// Opens both maps and finds out what is in them.
    pub(super) fn open(
        pins: &PinDir,
        name: &'static str,
        directory: &'static str,
    ) -> Result<Self, LoadError> {
        let records: ArrayTable<ServiceRecord<K>> = ArrayTable::open(pins, name)?;
        let words = table::open_one::<[u64; capacity::DIRECTORY as usize]>(pins, directory)?;
        let words =
            Mapping::new(words.as_fd(), capacity::DIRECTORY as usize).map_err(|source| {
                LoadError::System {
                    what: "mapping the directory of services",
                    source,
                }
            })?;
        let mut services = Self {
            name,
            records,
            words,
            places: HashMap::new(),
            free: Vec::new(),
            retired: Vec::new(),
        };
        let found = services.read().map_err(|error| LoadError::System {
            what: "reading the services",
            source: std::io::Error::other(error),
        })?;
        let mut used = vec![false; services.records.len() as usize];
        for (key, _, place) in found {
            used[place.record as usize] = true;
            services.places.insert(key, place);
        }
        // The agent before this one may have replaced them a moment ago.
        services.retired = (1..services.records.len())
            .filter(|index| !used[*index as usize])
            .collect();
        Ok(services)
    }

    /// How many services there is room for.
    pub(super) fn limit(&self) -> u32 {
        self.records
            .len()
            .saturating_sub(1 + capacity::SPARE_RECORDS)
    }

    /// All services, as packets find them.
    pub(super) fn all(&self) -> Result<Vec<(K, ServiceEntry)>, ApplyError> {
        let all = self.read()?.into_iter();
        Ok(all.map(|(key, entry, _)| (key, entry)).collect())
    }

    fn read(&self) -> Result<Vec<(K, ServiceEntry, Place)>, ApplyError> {
        let records = self.records.read(self.records.len())?;
        let words = (0..capacity::DIRECTORY).map(|at| (at, self.word_at(at)));
        let found = words.filter_map(|(at, word)| {
            let record = directory::record(word)?;
            let ServiceRecord { key, entry } = *records.get(record as usize)?;
            Some((key, entry, Place { at, record }))
        });
        Ok(found.collect())
    }

    fn word_at(&self, at: u32) -> u64 {
        self.words.load(at as usize)
    }

    /// Adds or replaces a service: its record first, then the word that leads there.
    pub(super) fn put(
        &mut self,
        key: &K,
        entry: &ServiceEntry,
        graces: &GracePeriods,
    ) -> Result<(), ApplyError> {
        let hash = directory::hash(key);
        let full = ApplyError::Full {
            map: self.name,
            limit: self.limit(),
        };
        let old = self.places.get(key).copied();
        let at = match old {
            Some(place) => place.at,
            None if self.places.len() >= self.limit() as usize => return Err(full),
            None => match directory::vacancy(hash, |at| self.word_at(at)) {
                Some(at) => at,
                None => return Err(full),
            },
        };
        if self.free.is_empty() {
            wait(graces)?;
            self.grace();
        }
        let Some(&record) = self.free.last() else {
            return Err(full);
        };
        let value = ServiceRecord {
            key: *key,
            entry: *entry,
        };
        self.records.put(record, &value)?;
        self.free.pop();
        self.words.store(at as usize, directory::word(hash, record));
        self.places.insert(*key, Place { at, record });
        self.retired.extend(old.map(|place| place.record));
        Ok(())
    }

    /// Removes a service. Removing what is not there is no error: operations may be repeated.
    pub(super) fn remove(&mut self, key: &K) {
        if let Some(Place { at, record }) = self.places.remove(key) {
            let word = directory::removed(at, |at| self.word_at(at));
            self.words.store(at as usize, word);
            self.retired.push(record);
        }
    }

    /// A grace period has passed.
    pub(super) fn grace(&mut self) {
        self.free.append(&mut self.retired);
    }
}

/// Waits until no program can read what was unnamed before.
pub(super) fn wait(graces: &GracePeriods) -> Result<(), ApplyError> {
    graces.wait().map_err(|source| ApplyError::Syscall {
        map: "grace",
        call: "wait for a grace period",
        source,
    })
}
