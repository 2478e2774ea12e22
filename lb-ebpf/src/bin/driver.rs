//! The programs in front of a program that is timed by `BPF_PROG_TEST_RUN`, which repeats a program on the same packet
//! and never restores it. A driver takes off what the program put in front (or puts back what it took off), writes the
//! head of the packet anew with the next of 2^k flows in it, and tail-calls the program. What this costs is measured
//! with a trivial program in its place and subtracted (`bench packet`).
//!
//! Knows nothing of Bowline's tables. The second place of unsafe code beside `bowline.rs`.

#![no_std]
#![no_main]

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{TC_ACT_OK, TC_ACT_SHOT, xdp_action};
use aya_ebpf::helpers::generated::bpf_xdp_adjust_head;
use aya_ebpf::macros::{classifier, map, xdp};
use aya_ebpf::maps::{Array, LruHashMap, ProgramArray};
use aya_ebpf::programs::{TcContext, XdpContext};

#[path = "driver/script.rs"]
mod script;
#[path = "driver/steps.rs"]
mod steps;

use script::{CHUNK, Field, HEAD_MAX, Script};

#[map(name = "script")]
static SCRIPT: Array<Script> = Array::with_max_entries(1, 0);
/// 0: what the driver calls, 1: what [`lru`] calls.
#[map(name = "xdp_targets")]
static XDP_TARGETS: ProgramArray = ProgramArray::with_max_entries(2, 0);
#[map(name = "tc_targets")]
static TC_TARGETS: ProgramArray = ProgramArray::with_max_entries(1, 0);
/// What a connection table at the balancer would be: addresses and ports to a backend.
#[map(name = "connections")]
static CONNECTIONS: LruHashMap<[u32; 3], u32> = LruHashMap::with_max_entries(1 << 21, 0);

/// Restores the packet and calls the program under test.
#[xdp]
pub fn drive_xdp(ctx: XdpContext) -> u32 {
    let Some(script) = SCRIPT.get_ptr_mut(0) else {
        return xdp_action::XDP_ABORTED;
    };
    // SAFETY: the pointer is a map value's, and test runs on this map are made one at a time.
    let script = unsafe { &mut *script };
    // In memory, so that the subtraction stays one of 64 bits: the verifier knows no other on packet pointers.
    let length = ctx.data_end() - ctx.data();
    // SAFETY: a reference to a local is valid.
    let length = unsafe { core::ptr::read_volatile(&raw const length) } as i32;
    // Called even when nothing is to be moved, so that it costs the same in front of every program.
    // SAFETY: the context is the one that the kernel gave us; no packet pointer is kept over the call.
    let moved = unsafe { bpf_xdp_adjust_head(ctx.ctx, length - script.length as i32) };
    if moved != 0 || !write_head(script, ctx.data(), ctx.data_end()) {
        return xdp_action::XDP_ABORTED;
    }
    // SAFETY: nothing lives on over the call.
    unsafe { XDP_TARGETS.tail_call(&ctx, 0) };
    xdp_action::XDP_ABORTED
}

/// The same for a classifier; what is tested rewrites in place, so there is no length to restore.
#[classifier]
pub fn drive_tc(ctx: TcContext) -> i32 {
    let Some(script) = SCRIPT.get_ptr_mut(0) else {
        return TC_ACT_SHOT;
    };
    // SAFETY: the pointer is a map value's, and test runs on this map are made one at a time.
    let script = unsafe { &mut *script };
    if !write_head(script, ctx.data(), ctx.data_end()) {
        return TC_ACT_SHOT;
    }
    // SAFETY: nothing lives on over the call.
    unsafe { TC_TARGETS.tail_call(&ctx, 0) };
    TC_ACT_SHOT
}

/// A connection table in front of the program under test, as other balancers have one (IPv4 without options).
#[xdp]
pub fn lru(ctx: XdpContext) -> u32 {
    let at = ctx.data() + 26;
    if at + 12 > ctx.data_end() {
        return xdp_action::XDP_ABORTED;
    }
    let at = at as *const u32;
    // SAFETY: the check above covers addresses and ports.
    let key = unsafe { [*at, *at.add(1), *at.add(2)] };
    // SAFETY: the value is an integer that is only read.
    if unsafe { CONNECTIONS.get(&key) }.is_none() {
        let _ = CONNECTIONS.insert(&key, &1, 0);
    }
    // SAFETY: nothing lives on over the call.
    unsafe { XDP_TARGETS.tail_call(&ctx, 1) };
    xdp_action::XDP_ABORTED
}

/// A bare program.
#[xdp]
pub fn bare_pass(_: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// A bare program.
#[xdp]
pub fn bare_tx(_: XdpContext) -> u32 {
    xdp_action::XDP_TX
}

/// A bare program.
#[xdp]
pub fn bare_drop(_: XdpContext) -> u32 {
    xdp_action::XDP_DROP
}

/// A bare program.
#[classifier]
pub fn bare_tc(_: TcContext) -> i32 {
    TC_ACT_OK
}

/// Copies the script's head over the packet's, with the next flow in it. False: the packet is too short.
#[inline(always)]
fn write_head(script: &mut Script, start: usize, end: usize) -> bool {
    let flow = script.counter & script.flows_mask;
    script.counter = script.counter.wrapping_add(1);
    let chunks = script.chunks as usize;
    let [a, b, c] = &script.fields;
    (0..HEAD_MAX / CHUNK).all(|n| n >= chunks || write_chunk(&script.head, n, start, end))
        && write_field(a, flow, start, end)
        && write_field(b, flow, start, end)
        && write_field(c, flow, start, end)
}

#[inline(always)]
fn write_chunk(head: &[u64; HEAD_MAX / 8], chunk: usize, start: usize, end: usize) -> bool {
    const WORDS: usize = CHUNK / 8;
    let to = start + chunk * CHUNK;
    if to + CHUNK > end {
        return false;
    }
    let to = to as *mut u64;
    let mut n = 0;
    while n < WORDS {
        // SAFETY: the check above covers all words of the chunk.
        unsafe { *to.add(n) = head[chunk * WORDS + n] };
        n += 1;
    }
    true
}

#[inline(always)]
fn write_field(field: &Field, flow: u32, start: usize, end: usize) -> bool {
    // The mask is what the verifier believes.
    let to = start + (field.at & 0xff) as usize;
    if to + 2 > end {
        return false;
    }
    let value = (field.base + ((flow >> field.shift) & field.mask)) as u16;
    // SAFETY: the check above covers both bytes.
    unsafe { *(to as *mut u16) = value.to_be() };
    true
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
