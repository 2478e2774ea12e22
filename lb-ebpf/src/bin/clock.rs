//! The kernel's clock. A simulator's object has another module of this name (`bowline_sim/clock.rs`).

use aya_ebpf::helpers::bpf_ktime_get_coarse_ns;

/// Monotonic time, good to a few milliseconds.
#[inline(always)]
pub(crate) fn now_ns() -> u64 {
    // SAFETY: no preconditions.
    unsafe { bpf_ktime_get_coarse_ns() }
}
