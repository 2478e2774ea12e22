//! What the single steps of a packet cost on a machine, each as a program of its own behind the driver: where the time
//! of the real programs goes, and what another way to do a step would save.

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::helpers::generated::{bpf_ktime_get_coarse_ns, bpf_xdp_adjust_head};
use aya_ebpf::macros::{map, xdp};
use aya_ebpf::maps::{Array, HashMap, PerCpuArray};
use aya_ebpf::programs::XdpContext;

/// Keys and values as large as those of Services; `bench` fills it.
#[map(name = "steps_hash")]
static HASH: HashMap<[u32; 2], [u32; 13]> = HashMap::with_max_entries(1 << 14, 0);
/// The same in an array with open addressing: 16 words of which the first two are the key.
#[map(name = "steps_probing")]
static PROBING: Array<[u32; 16]> = Array::with_max_entries(1 << 15, 0);
#[map(name = "steps_array")]
static ARRAY: Array<[u64; 16]> = Array::with_max_entries(1 << 16, 0);
#[map(name = "steps_counters")]
static COUNTERS: PerCpuArray<[u64; 2]> = PerCpuArray::with_max_entries(1 << 16, 0);

/// Bytes of outer headers over IPv4, Ethernet excluded.
const OUTER: i32 = 60;
/// The same with Ethernet, in words.
const HEADER_WORDS: usize = 9;

/// The VIP and the ports of an IPv4 packet, or nothing if it is too short.
#[inline(always)]
fn key(ctx: &XdpContext) -> Option<[u32; 2]> {
    let at = ctx.data() + 30;
    if at + 8 > ctx.data_end() {
        return None;
    }
    // SAFETY: checked above.
    let (vip, ports) = unsafe { (*(at as *const u32), *((at + 4) as *const u32)) };
    Some([vip, ports >> 16 | 6 << 16])
}

/// One lookup in a hash map that hits.
#[xdp]
pub fn step_hash(ctx: XdpContext) -> u32 {
    let Some(key) = key(&ctx) else {
        return xdp_action::XDP_ABORTED;
    };
    // SAFETY: only compared with null.
    if unsafe { HASH.get(&key) }.is_some() {
        xdp_action::XDP_PASS
    } else {
        xdp_action::XDP_DROP
    }
}

/// The same by open addressing in an array, without a call.
#[xdp]
pub fn step_probing(ctx: XdpContext) -> u32 {
    let Some(key) = key(&ctx) else {
        return xdp_action::XDP_ABORTED;
    };
    let word = u64::from(key[0]) << 32 | u64::from(key[1]);
    let mut at = (word.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 49) as u32;
    let mut n = 0;
    while n < 8 {
        let Some(entry) = PROBING.get_ptr(at & 0x7fff) else {
            return xdp_action::XDP_ABORTED;
        };
        // SAFETY: in the map.
        let found = unsafe { [(*entry)[0], (*entry)[1]] };
        if found == key {
            return xdp_action::XDP_PASS;
        }
        at += 1;
        n += 1;
    }
    xdp_action::XDP_DROP
}

/// Room for outer headers.
#[xdp]
pub fn step_move_head(ctx: XdpContext) -> u32 {
    // SAFETY: a valid context; no packet pointer is kept over the call.
    let moved = unsafe { bpf_xdp_adjust_head(ctx.ctx, -OUTER) };
    if moved == 0 {
        xdp_action::XDP_TX
    } else {
        xdp_action::XDP_ABORTED
    }
}

/// Room for outer headers, and 72 bytes of them copied from a map.
#[xdp]
pub fn step_headers(ctx: XdpContext) -> u32 {
    let Some(key) = key(&ctx) else {
        return xdp_action::XDP_ABORTED;
    };
    // SAFETY: a valid context; packet pointers are taken anew below.
    let moved = unsafe { bpf_xdp_adjust_head(ctx.ctx, -OUTER) };
    let Some(header) = ARRAY.get_ptr(key[1] & 0xffff) else {
        return xdp_action::XDP_ABORTED;
    };
    let to = ctx.data();
    if moved != 0 || to + HEADER_WORDS * 8 > ctx.data_end() {
        return xdp_action::XDP_ABORTED;
    }
    let to = to as *mut u64;
    let mut n = 0;
    while n < HEADER_WORDS {
        // SAFETY: checked above; an element has sixteen words.
        unsafe { *to.add(n) = (*header)[n] };
        n += 1;
    }
    xdp_action::XDP_TX
}

/// Three lookups in arrays, each with what the one before said: row, slot, backend.
#[xdp]
pub fn step_arrays(ctx: XdpContext) -> u32 {
    let Some(key) = key(&ctx) else {
        return xdp_action::XDP_ABORTED;
    };
    let mut at = key[1] as u64;
    let mut n = 0;
    while n < 3 {
        let Some(element) = ARRAY.get_ptr(at as u32 & 0xffff) else {
            return xdp_action::XDP_ABORTED;
        };
        // SAFETY: in the map.
        at = at.wrapping_add(unsafe { (*element)[0] });
        n += 1;
    }
    if at == 0 {
        xdp_action::XDP_DROP
    } else {
        xdp_action::XDP_PASS
    }
}

/// Two counters of packets and bytes: service and backend.
#[xdp]
pub fn step_counters(ctx: XdpContext) -> u32 {
    let Some(key) = key(&ctx) else {
        return xdp_action::XDP_ABORTED;
    };
    let mut n = 0;
    while n < 2 {
        let Some(count) = COUNTERS.get_ptr_mut((key[1] + n) & 0xffff) else {
            return xdp_action::XDP_ABORTED;
        };
        // SAFETY: this processor's own copy, in the map.
        unsafe {
            (*count)[0] += 1;
            (*count)[1] += 64;
        }
        n += 1;
    }
    xdp_action::XDP_PASS
}

/// The coarse clock, as the owner reads it once per packet.
#[xdp]
pub fn step_clock(_: XdpContext) -> u32 {
    // SAFETY: no preconditions.
    if unsafe { bpf_ktime_get_coarse_ns() } == 0 {
        xdp_action::XDP_DROP
    } else {
        xdp_action::XDP_PASS
    }
}

/// A function of the program itself that is not inlined: what a `call` and a `ret` cost under the machine's mitigations.
#[xdp]
pub fn step_call(ctx: XdpContext) -> u32 {
    if apart(ctx.rx_queue_index()) == 1 {
        xdp_action::XDP_DROP
    } else {
        xdp_action::XDP_PASS
    }
}

#[inline(never)]
fn apart(x: u32) -> u32 {
    x >> 1 ^ x
}
