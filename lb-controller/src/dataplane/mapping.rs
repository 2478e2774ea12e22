//! Memory maps of array maps: stores of eight aligned bytes that packet programs see at once and whole.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// An array map (`BPF_F_MMAPABLE`) as a slice of 64-bit words.
pub(super) struct Mapping {
    start: NonNull<AtomicU64>,
    words: usize,
}

// SAFETY: the mapping belongs to no thread, and all access goes through atomics.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `words` words of a map whose elements are whole words.
    pub(super) fn new(map: BorrowedFd<'_>, words: usize) -> io::Result<Self> {
        let length = NonZeroUsize::new(words * size_of::<u64>())
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        // SAFETY: a fresh shared mapping at an address of the kernel's choice; it refuses lengths beyond the map.
        let start = unsafe {
            mmap(
                None,
                length,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_SHARED,
                map,
                0,
            )
        }?;
        Ok(Self {
            start: start.cast(),
            words,
        })
    }

    /// The words. Everyone else who writes them, the kernel included, does so in aligned words.
    pub(super) fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping lives as long as `self`, starts at a page boundary and is `words` long; the memory is
        // shared, so it is only ever seen as atomics.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.words) }
    }

    /// Stores one word; what was stored before it is visible to whoever sees it.
    pub(super) fn store(&self, index: usize, word: u64) {
        self.words()[index].store(word, Ordering::Release);
    }

    /// Loads one word.
    pub(super) fn load(&self, index: usize) -> u64 {
        self.words()[index].load(Ordering::Acquire)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly what `new` has mapped; `words()` cannot outlive `self`.
        let unmapped = unsafe { munmap(self.start.cast(), self.words * size_of::<u64>()) };
        debug_assert!(unmapped.is_ok(), "unmapping what was mapped cannot fail");
    }
}
