//! A clock that user space sets: time in a simulated cluster passes as its events do.

use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::macros::map;
use aya_ebpf::maps::Array;

/// Nanoseconds, of one element.
#[map(name = "clock")]
pub(crate) static CLOCK: Array<u64> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// What user space has stored last.
#[inline(always)]
pub(crate) fn now_ns() -> u64 {
    CLOCK.get(0).copied().unwrap_or(0)
}
