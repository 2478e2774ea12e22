//! Maps with the types of their keys and values: hash maps, arrays and per-processor arrays.
//!
//! Knows which call fits which kind, and turns the kernel's error numbers into [`ApplyError`]; does not know what the
//! entries mean.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use lb_ebpf::abi::Plain;

use super::sys::{self, Cursor, More};
use super::{ApplyError, pin::PinDir, pin::PinError};

/// Entries read by one system call: enough that the call itself costs nothing, few enough for the processor's caches.
const BATCH: usize = 2_048;
/// The same at most, when a single bucket of a hash map is fuller than the batch.
const BATCH_MAX: usize = 1 << 16;

/// A pinned map.
struct Opened {
    name: &'static str,
    fd: OwnedFd,
    entries: u32,
}

impl Opened {
    fn new<K, V>(pins: &PinDir, name: &'static str) -> Result<Self, PinError> {
        let path = pins.map(name);
        let opened = sys::open(&path).and_then(|fd| Ok((sys::map_info(fd.as_fd())?, fd)));
        let (info, fd) = opened.map_err(|source| PinError::Pin {
            path: path.clone(),
            source,
        })?;
        if (info.key_size as usize, info.value_size as usize) != (size_of::<K>(), size_of::<V>()) {
            return Err(PinError::Layout { path });
        }
        Ok(Self {
            name,
            fd,
            entries: info.max_entries,
        })
    }

    fn failed(&self, call: &'static str) -> impl Fn(io::Error) -> ApplyError {
        let (map, limit) = (self.name, self.entries);
        move |source| match source.raw_os_error() {
            Some(libc::E2BIG) => ApplyError::Full { map, limit },
            _ => ApplyError::Syscall { map, call, source },
        }
    }
}

/// Opens an array of one element, for its memory to be mapped.
pub(super) fn open_one<V>(pins: &PinDir, name: &'static str) -> Result<OwnedFd, PinError> {
    Ok(Opened::new::<u32, V>(pins, name)?.fd)
}

/// A hash map, LRU or not.
pub(super) struct HashTable<K, V> {
    map: Opened,
    types: PhantomData<fn(K) -> V>,
}

impl<K: Plain + Default, V: Plain + Default> HashTable<K, V> {
    pub(super) fn open(pins: &PinDir, name: &'static str) -> Result<Self, PinError> {
        Ok(Self {
            map: Opened::new::<K, V>(pins, name)?,
            types: PhantomData,
        })
    }

    /// Name, used entries and all entries. Scans the map.
    pub(super) fn usage(&self) -> Result<(&'static str, u64, u64), ApplyError> {
        let mut used = 0;
        self.scan(|_, _| {
            used += 1;
            More::Yes
        })?;
        Ok((self.map.name, used, self.map.entries.into()))
    }

    pub(super) fn put(&self, key: &K, value: &V) -> Result<(), ApplyError> {
        sys::update(self.fd(), key, value, sys::ANY).map_err(self.map.failed("update"))
    }

    /// Removing what is not there is no error: operations may be repeated.
    pub(super) fn remove(&self, key: &K) -> Result<(), ApplyError> {
        match sys::delete(self.fd(), key) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            other => other.map_err(self.map.failed("delete")),
        }
    }

    /// The value at `key`, if there is one.
    pub(super) fn get(&self, key: &K) -> Result<Option<V>, ApplyError> {
        found(sys::lookup(self.fd(), key)).map_err(self.map.failed("look up"))
    }

    /// Removes `key` if its value, at that very moment, is one that `gone` accepts.
    ///
    /// An entry that a packet has changed since it was chosen stays where it is: were it taken out even for an instant, a reply
    /// that leaves just then would leave under the pod's address, and the client would reset the connection. One that is changed
    /// between the last look and its removal is put back, unless the packet's successor has already made another.
    pub(super) fn remove_if(
        &self,
        key: &K,
        gone: impl Fn(&K, &V) -> bool,
    ) -> Result<bool, ApplyError> {
        let Some(value) = self.get(key)? else {
            return Ok(false);
        };
        if !gone(key, &value) {
            return Ok(false);
        }
        let taken = found(sys::lookup_and_delete(self.fd(), key))
            .map_err(self.map.failed("look up and delete"))?;
        let Some(value) = taken else { return Ok(false) };
        if gone(key, &value) {
            return Ok(true);
        }
        match sys::update(self.fd(), key, &value, sys::NO_EXIST) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
            other => other.map_err(self.map.failed("update")).map(|()| false),
        }
    }

    /// Calls `visit` for every entry until it says [`More::No`]. Entries that come or go meanwhile may be missed or seen
    /// twice.
    pub(super) fn scan(&self, mut visit: impl FnMut(&K, &V) -> More) -> Result<(), ApplyError> {
        let mut room = BATCH;
        let mut keys = vec![K::default(); room];
        let mut values = vec![V::default(); room];
        let mut cursor = Cursor::default();
        loop {
            match sys::lookup_batch(self.fd(), &mut cursor, &mut keys, &mut values) {
                Ok((read, more)) => {
                    for (key, value) in keys.iter().zip(&values).take(read) {
                        if visit(key, value) == More::No {
                            return Ok(());
                        }
                    }
                    if more == More::No {
                        return Ok(());
                    }
                }
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && room < BATCH_MAX => {
                    room *= 2;
                    keys.resize(room, K::default());
                    values.resize(room, V::default());
                }
                Err(error) => return Err(self.map.failed("read")(error)),
            }
        }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.map.fd.as_fd()
    }
}

/// A trie of prefixes; the key begins with its length in bits.
pub(super) struct PrefixTable<K, V> {
    map: Opened,
    types: PhantomData<fn(K) -> V>,
}

impl<K: Plain + Default, V: Plain> PrefixTable<K, V> {
    pub(super) fn open(pins: &PinDir, name: &'static str) -> Result<Self, PinError> {
        Ok(Self {
            map: Opened::new::<K, V>(pins, name)?,
            types: PhantomData,
        })
    }

    pub(super) fn put(&self, key: &K, value: &V) -> Result<(), ApplyError> {
        let written = sys::update(self.map.fd.as_fd(), key, value, sys::ANY);
        written.map_err(|source| match source.raw_os_error() {
            // What tries say instead of `E2BIG` (`trie_update_elem` in `kernel/bpf/lpm_trie.c`).
            Some(libc::ENOSPC) => ApplyError::Full {
                map: self.map.name,
                limit: self.map.entries,
            },
            _ => self.map.failed("update")(source),
        })
    }

    /// Removing what is not there is no error: operations may be repeated.
    pub(super) fn remove(&self, key: &K) -> Result<(), ApplyError> {
        match sys::delete(self.map.fd.as_fd(), key) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            other => other.map_err(self.map.failed("delete")),
        }
    }

    /// All keys. Bounded by the size of the map, whatever is written meanwhile.
    pub(super) fn keys(&self) -> Result<Vec<K>, ApplyError> {
        let mut keys: Vec<K> = Vec::new();
        for _ in 0..self.map.entries {
            match found(sys::next_key(self.map.fd.as_fd(), keys.last()))
                .map_err(self.map.failed("read"))?
            {
                Some(key) => keys.push(key),
                None => break,
            }
        }
        Ok(keys)
    }
}

fn found<V>(answer: io::Result<V>) -> io::Result<Option<V>> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// An array.
pub(super) struct ArrayTable<V> {
    map: Opened,
    types: PhantomData<fn() -> V>,
}

impl<V: Plain + Default> ArrayTable<V> {
    pub(super) fn open(pins: &PinDir, name: &'static str) -> Result<Self, PinError> {
        Ok(Self {
            map: Opened::new::<u32, V>(pins, name)?,
            types: PhantomData,
        })
    }

    pub(super) fn len(&self) -> u32 {
        self.map.entries
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.map.fd.as_fd()
    }

    pub(super) fn put(&self, index: u32, value: &V) -> Result<(), ApplyError> {
        self.check(index)?;
        sys::update(self.fd(), &index, value, sys::ANY).map_err(self.map.failed("update"))
    }

    pub(super) fn get(&self, index: u32) -> Result<V, ApplyError> {
        self.check(index)?;
        sys::lookup(self.fd(), &index).map_err(self.map.failed("look up"))
    }

    /// All elements below `end`.
    pub(super) fn read(&self, end: u32) -> Result<Vec<V>, ApplyError> {
        read_array(&self.map, end, 1)
    }

    pub(super) fn check(&self, index: u32) -> Result<(), ApplyError> {
        if index < self.map.entries {
            return Ok(());
        }
        Err(ApplyError::OutOfRange {
            map: self.map.name,
            index,
        })
    }
}

/// An array with one value for each possible processor.
pub(super) struct PerCpuTable<V> {
    map: Opened,
    cpus: usize,
    types: PhantomData<fn() -> V>,
}

impl<V: Plain + Default> PerCpuTable<V> {
    /// `cpus` is the number of possible processors, which is how many values the kernel copies for each element.
    pub(super) fn open(pins: &PinDir, name: &'static str, cpus: usize) -> Result<Self, PinError> {
        Ok(Self {
            map: Opened::new::<u32, V>(pins, name)?,
            cpus,
            types: PhantomData,
        })
    }

    pub(super) fn len(&self) -> u32 {
        self.map.entries
    }

    /// The values of all elements below `end`, each a slice over processors.
    pub(super) fn read(&self, end: u32) -> Result<Vec<V>, ApplyError> {
        read_array(&self.map, end, self.cpus)
    }

    /// Zeroes an element.
    pub(super) fn clear(&self, index: u32) -> Result<(), ApplyError> {
        sys::update_per_cpu(self.map.fd.as_fd(), index, &vec![V::default(); self.cpus])
            .map_err(self.map.failed("update"))
    }
}

fn read_array<V: Plain + Default>(
    map: &Opened,
    end: u32,
    per_element: usize,
) -> Result<Vec<V>, ApplyError> {
    let end = end.min(map.entries) as usize;
    let mut all = vec![V::default(); end * per_element];
    let mut keys = vec![0_u32; BATCH.min(end)];
    let mut at = 0;
    while at < end {
        let now = (end - at).min(BATCH);
        let (read, more) = sys::lookup_batch(
            map.fd.as_fd(),
            &mut Cursor::before(at as u32),
            &mut keys[..now],
            &mut all[at * per_element..(at + now) * per_element],
        )
        .map_err(map.failed("read"))?;
        at += read;
        if more == More::No || read == 0 {
            break;
        }
    }
    Ok(all)
}
