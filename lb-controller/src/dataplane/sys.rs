//! The `bpf(2)` calls that the maps, pins and links need, and nothing above them.
//!
//! aya loads the object; this file does what aya has no call for (batches, memory maps, links replaced in place) and
//! keeps the kernel's error number, so that callers can tell a full map from a missing key. Together with
//! [`super::mapping`] it is the only `unsafe` of this crate.

use std::ffi::CString;
use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use lb_ebpf::abi::Plain;

mod link;
pub(super) use link::{
    ATTACH_TCX_EGRESS, ATTACH_XDP, XDP_GENERIC, XDP_NATIVE, link_create, link_info, link_update,
    program_name,
};

/// Commands of `bpf(2)`, from `enum bpf_cmd` of `linux/bpf.h`.
mod cmd {
    pub(super) const MAP_CREATE: u32 = 0;
    pub(super) const MAP_LOOKUP_ELEM: u32 = 1;
    pub(super) const MAP_UPDATE_ELEM: u32 = 2;
    pub(super) const MAP_DELETE_ELEM: u32 = 3;
    pub(super) const MAP_GET_NEXT_KEY: u32 = 4;
    pub(super) const OBJ_PIN: u32 = 6;
    pub(super) const OBJ_GET: u32 = 7;
    pub(super) const PROG_GET_FD_BY_ID: u32 = 13;
    pub(super) const OBJ_GET_INFO_BY_FD: u32 = 15;
    pub(super) const MAP_LOOKUP_AND_DELETE_ELEM: u32 = 21;
    pub(super) const MAP_LOOKUP_BATCH: u32 = 24;
    pub(super) const LINK_CREATE: u32 = 28;
    pub(super) const LINK_UPDATE: u32 = 29;
}

const MAP_TYPE_ARRAY: u32 = 2;
const MAP_TYPE_ARRAY_OF_MAPS: u32 = 12;

/// `BPF_ANY`: add or replace.
pub(super) const ANY: u64 = 0;
/// `BPF_NOEXIST`: add only.
pub(super) const NO_EXIST: u64 = 1;

/// The kernel takes any prefix of `union bpf_attr` whose rest would be zero, so each command has its own struct.
fn bpf<T: Copy>(command: u32, attr: &mut T) -> io::Result<i32> {
    // SAFETY: `attr` is a live, initialised struct without padding and its size is passed along; the pointers inside it
    // are checked by the callers of this function, all in this file.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attr),
            size_of::<T>(),
        )
    };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(answer as i32)
}

/// As [`bpf`], for commands that answer a new descriptor.
fn bpf_fd<T: Copy>(command: u32, attr: &mut T) -> io::Result<OwnedFd> {
    let fd = bpf(command, attr)?;
    // SAFETY: the kernel has just made this descriptor for us and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Descriptors are not negative, so nothing is lost.
fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn address<T: ?Sized>(value: &T) -> u64 {
    std::ptr::from_ref(value).cast::<()>() as u64
}

fn address_mut<T: ?Sized>(value: &mut T) -> u64 {
    std::ptr::from_mut(value).cast::<()>() as u64
}

#[repr(C)]
#[derive(Clone, Copy)]
struct ElementAttr {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// The value at `key`. `per_cpu` values are read by [`lookup_batch`] only.
pub(super) fn lookup<K: Plain, V: Plain>(map: BorrowedFd<'_>, key: &K) -> io::Result<V> {
    read_element(cmd::MAP_LOOKUP_ELEM, map, key)
}

/// Takes the value at `key` out of a hash map, in one step for readers and writers.
pub(super) fn lookup_and_delete<K: Plain, V: Plain>(map: BorrowedFd<'_>, key: &K) -> io::Result<V> {
    read_element(cmd::MAP_LOOKUP_AND_DELETE_ELEM, map, key)
}

/// The value in bytes that the kernel has handed out, of any alignment; zero in place of those that are missing.
pub(super) fn value_of<V: Plain>(bytes: &[u8]) -> V {
    let mut value = MaybeUninit::<V>::zeroed();
    let len = bytes.len().min(size_of::<V>());
    // SAFETY: `len` is at most the size of either; every bit pattern of a `Plain` type is valid, zeroes included.
    unsafe {
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), value.as_mut_ptr().cast::<u8>(), len);
        value.assume_init()
    }
}

fn read_element<K: Plain, V: Plain>(command: u32, map: BorrowedFd<'_>, key: &K) -> io::Result<V> {
    let mut value = MaybeUninit::<V>::zeroed();
    bpf(
        command,
        &mut ElementAttr {
            map_fd: number(map),
            pad: 0,
            key: address(key),
            value: value.as_mut_ptr() as u64,
            flags: ANY,
        },
    )?;
    // SAFETY: zeroed and then filled by the kernel; every bit pattern of a `Plain` type is valid. The map's value size
    // is that of `V`: `super::table` compares them when it opens the map.
    Ok(unsafe { value.assume_init() })
}

/// Writes `value` at `key`.
pub(super) fn update<K: Plain, V: Plain>(
    map: BorrowedFd<'_>,
    key: &K,
    value: &V,
    flags: u64,
) -> io::Result<()> {
    bpf(
        cmd::MAP_UPDATE_ELEM,
        &mut ElementAttr {
            map_fd: number(map),
            pad: 0,
            key: address(key),
            value: address(value),
            flags,
        },
    )?;
    Ok(())
}

/// Writes one value for each possible processor at `index` of a per-CPU array.
///
/// `V` is a multiple of eight bytes, as the kernel lays such values out.
pub(super) fn update_per_cpu<V: Plain>(
    map: BorrowedFd<'_>,
    index: u32,
    values: &[V],
) -> io::Result<()> {
    const { assert!(size_of::<V>().is_multiple_of(8)) };
    bpf(
        cmd::MAP_UPDATE_ELEM,
        &mut ElementAttr {
            map_fd: number(map),
            pad: 0,
            key: address(&index),
            value: address(values),
            flags: ANY,
        },
    )?;
    Ok(())
}

/// Removes `key`.
pub(super) fn delete<K: Plain>(map: BorrowedFd<'_>, key: &K) -> io::Result<()> {
    bpf(
        cmd::MAP_DELETE_ELEM,
        &mut ElementAttr {
            map_fd: number(map),
            pad: 0,
            key: address(key),
            value: 0,
            flags: 0,
        },
    )?;
    Ok(())
}

/// The key after `key` in the map's own order; the first one after none. `ENOENT`: there is no other.
pub(super) fn next_key<K: Plain>(map: BorrowedFd<'_>, key: Option<&K>) -> io::Result<K> {
    let mut next = MaybeUninit::<K>::zeroed();
    bpf(
        cmd::MAP_GET_NEXT_KEY,
        &mut ElementAttr {
            map_fd: number(map),
            pad: 0,
            key: key.map_or(0, address),
            value: next.as_mut_ptr() as u64,
            flags: 0,
        },
    )?;
    // SAFETY: zeroed and then filled by the kernel; every bit pattern of a `Plain` type is valid. The map's key size is
    // that of `K`: `super::table` compares them when it opens the map.
    Ok(unsafe { next.assume_init() })
}

#[repr(C)]
#[derive(Clone, Copy)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    element_flags: u64,
    flags: u64,
}

/// Whether a batch was the last.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum More {
    /// There may be more: go on from the cursor.
    Yes,
    /// That was all.
    No,
}

/// Where a scan goes on. Hash maps keep a bucket in it, arrays an index; both are 32 bits wide.
#[derive(Clone, Copy, Default)]
pub(super) struct Cursor(Option<u32>);

impl Cursor {
    /// Before the element with this index of an array.
    pub(super) fn before(index: u32) -> Self {
        Self(index.checked_sub(1))
    }
}

/// Reads up to `keys.len()` entries; `values` has room for as many (for per-CPU maps: times the possible processors).
/// Answers how many were read.
///
/// A hash map may refuse with `ENOSPC` when a single bucket holds more entries than `keys` has room for.
///
/// # Panics
/// If `values` is not a whole multiple of `keys`.
pub(super) fn lookup_batch<K: Plain, V: Plain>(
    map: BorrowedFd<'_>,
    cursor: &mut Cursor,
    keys: &mut [K],
    values: &mut [V],
) -> io::Result<(usize, More)> {
    assert!(
        values.len().is_multiple_of(keys.len()),
        "one value, or one per processor, for each key"
    );
    let start = cursor.0;
    let mut next = 0_u32;
    let mut attr = BatchAttr {
        in_batch: start.as_ref().map_or(0, address),
        out_batch: address_mut(&mut next),
        keys: address_mut(keys),
        values: address_mut(values),
        count: keys.len() as u32,
        map_fd: number(map),
        element_flags: 0,
        flags: 0,
    };
    let more = match bpf(cmd::MAP_LOOKUP_BATCH, &mut attr) {
        Ok(_) => More::Yes,
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => More::No,
        Err(error) => return Err(error),
    };
    cursor.0 = Some(next);
    Ok((attr.count as usize, more))
}

#[repr(C)]
#[derive(Clone, Copy)]
struct ObjectAttr {
    path: u64,
    fd: u32,
    flags: u32,
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|error| io::Error::other(error.to_string()))
}

/// Pins a map, program or link at `path`, on a bpffs. Names may not contain dots.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    bpf(
        cmd::OBJ_PIN,
        &mut ObjectAttr {
            path: path.as_ptr() as u64,
            fd: number(object),
            flags: 0,
        },
    )?;
    Ok(())
}

/// Opens what is pinned at `path`.
pub(super) fn open(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    bpf_fd(
        cmd::OBJ_GET,
        &mut ObjectAttr {
            path: path.as_ptr() as u64,
            fd: 0,
            flags: 0,
        },
    )
}

#[repr(C)]
#[derive(Clone, Copy)]
struct InfoAttr {
    fd: u32,
    len: u32,
    info: u64,
}

fn info<T: Copy>(object: BorrowedFd<'_>, into: &mut T) -> io::Result<()> {
    bpf(
        cmd::OBJ_GET_INFO_BY_FD,
        &mut InfoAttr {
            fd: number(object),
            len: size_of::<T>() as u32,
            info: address_mut(into),
        },
    )?;
    Ok(())
}

/// The beginning of `struct bpf_map_info`.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct MapInfo {
    pub(super) kind: u32,
    pub(super) id: u32,
    pub(super) key_size: u32,
    pub(super) value_size: u32,
    pub(super) max_entries: u32,
    pub(super) flags: u32,
}

/// What the kernel knows of a map.
pub(super) fn map_info(map: BorrowedFd<'_>) -> io::Result<MapInfo> {
    let mut into = MapInfo::default();
    info(map, &mut into)?;
    Ok(into)
}

#[repr(C)]
#[derive(Clone, Copy)]
struct CreateAttr {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
    inner_map_fd: u32,
}

/// Waits for RCU grace periods that the packet programs take part in.
///
/// The kernel waits for one (`maybe_wait_bpf_programs` in `kernel/bpf/syscall.c`, since 4.20) before it returns from
/// the update of an element of a map of maps: XDP and TC programs run inside RCU read sections (or with bottom halves
/// disabled, which counts as one since 5.0), so every program that could hold what was unnamed before has returned.
/// The map is of no other use.
pub(super) struct GracePeriods {
    outer: OwnedFd,
    inner: OwnedFd,
}

impl GracePeriods {
    /// Makes the map.
    pub(super) fn new() -> io::Result<Self> {
        let attr = |kind, inner_map_fd| CreateAttr {
            kind,
            key_size: 4,
            value_size: 4,
            max_entries: 1,
            flags: 0,
            inner_map_fd,
        };
        let inner = bpf_fd(cmd::MAP_CREATE, &mut attr(MAP_TYPE_ARRAY, 0))?;
        let outer = bpf_fd(
            cmd::MAP_CREATE,
            &mut attr(MAP_TYPE_ARRAY_OF_MAPS, number(inner.as_fd())),
        )?;
        Ok(Self { outer, inner })
    }

    /// Returns after every program run that was under way at the call.
    pub(super) fn wait(&self) -> io::Result<()> {
        update(self.outer.as_fd(), &0_u32, &number(self.inner.as_fd()), ANY)
    }
}
