//! The glue to the kernel: packets and maps as the traits of the library. The one file of this crate, with the types of
//! `abi.rs`, that needs `unsafe`.
//!
//! Bounds are written as the verifier wants them: a pointer is used only after its end was compared with the packet's.

use core::mem::{size_of, size_of_val};

use aya_ebpf::bindings::{
    __sk_buff, BPF_ANY, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, xdp_action, xdp_md,
};
use aya_ebpf::helpers::{
    bpf_csum_diff, bpf_ktime_get_coarse_ns, bpf_l3_csum_replace, bpf_l4_csum_replace,
    bpf_skb_load_bytes, bpf_skb_store_bytes, bpf_xdp_adjust_head, bpf_xdp_adjust_tail,
};
use lb_ebpf::abi::{
    Backend, Config, FirstPod, Flow, FragmentKey, FragmentPorts, HalfOpen, Limited, LocalKey,
    LocalPod, Pin, Plain, ROWS_PER_ELEMENT, ServiceEntry, Set, Slot, Stamp, Stat, Tuple,
};
use lb_ebpf::back::{Covers, Skb};
use lb_ebpf::directory::{self, Key as _};
use lb_ebpf::family::{Family, V4, V6};
use lb_ebpf::frame::Frame;
use lb_ebpf::own::Scratch;
use lb_ebpf::tables::{Shared, Tables};
use lb_ebpf::wire::Addr6;

use crate::maps;

/// A packet at XDP.
#[derive(Clone, Copy)]
pub(crate) struct XdpFrame {
    ctx: *mut xdp_md,
    start: usize,
    end: usize,
}

impl XdpFrame {
    /// A pointer to `T` at `at`, if the packet holds all of it.
    #[inline(always)]
    fn at<T>(&self, at: usize) -> Option<*mut T> {
        // SAFETY: neither sum wraps: `start` is a kernel address, `at` and the size are at most a packet's length. Saying
        // so lets the compiler see that a check of a later end covers an earlier one.
        let end = unsafe { self.start.unchecked_add(at).unchecked_add(size_of::<T>()) };
        if end > self.end {
            None
        } else {
            Some((self.start + at) as *mut T)
        }
    }
}

impl Frame for XdpFrame {
    type Handle = *mut xdp_md;

    #[inline(always)]
    fn open(ctx: *mut xdp_md) -> Self {
        // SAFETY: the kernel hands out a valid context for the time of the program. Volatile, so that the compiler does not
        // load the two words in a caller and pass them on as integers: to the verifier they are pointers only as long as
        // they keep 64 bits.
        let (start, end) = unsafe {
            (
                (&raw const (*ctx).data).read_volatile() as usize,
                (&raw const (*ctx).data_end).read_volatile() as usize,
            )
        };
        Self { ctx, start, end }
    }

    #[inline(always)]
    fn handle(&self) -> *mut xdp_md {
        self.ctx
    }

    #[inline(always)]
    fn len(&self) -> usize {
        self.end - self.start
    }

    #[inline(always)]
    fn read<T: Plain>(&self, at: usize) -> Option<T> {
        let place = self.at::<T>(at)?;
        // SAFETY: `place` was compared with the end of the packet. It may be misaligned: BPF has no such notion on the
        // machines that the kernel's JIT serves, and reading by bytes instead would cost several times as much.
        Some(unsafe { *place })
    }

    #[inline(always)]
    fn write<T: Plain>(&mut self, at: usize, value: T) -> Option<()> {
        let place = self.at::<T>(at)?;
        // SAFETY: as in `read`.
        unsafe { *place = value };
        Some(())
    }

    #[inline(always)]
    fn move_head(&mut self, by: i32) -> Option<()> {
        // SAFETY: a valid context; the frame is opened again, since all packet pointers are void now.
        let result = unsafe { bpf_xdp_adjust_head(self.ctx, by) };
        *self = Self::open(self.ctx);
        if result == 0 { Some(()) } else { None }
    }

    #[inline(always)]
    fn move_tail(&mut self, by: i32) -> Option<()> {
        // SAFETY: as in `move_head`.
        let result = unsafe { bpf_xdp_adjust_tail(self.ctx, by) };
        *self = Self::open(self.ctx);
        if result == 0 { Some(()) } else { None }
    }

    #[inline(always)]
    fn sum<const N: usize>(&self, at: usize) -> Option<u64> {
        let place = self.at::<[u8; N]>(at)?;
        // SAFETY: `place` and `N` bytes after it are inside the packet.
        let sum = unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, place.cast(), N as u32, 0) };
        if sum < 0 { None } else { Some(sum as u64) }
    }
}

/// Out of another interface.
#[inline(always)]
pub(crate) fn redirect(ifindex: u32) -> u32 {
    // Flags 0: an interface that is missing aborts, which shows in the kernel's tracepoint and not as a silent pass.
    maps::INTERFACES
        .redirect(ifindex, 0)
        .unwrap_or(xdp_action::XDP_ABORTED)
}

/// A packet at TC egress.
pub(crate) struct Outgoing(pub(crate) *mut __sk_buff);

impl Skb for Outgoing {
    #[inline(always)]
    fn read<T: Plain>(&self, at: usize) -> Option<T> {
        // SAFETY: a valid context for the time of the program. Volatile as in `XdpFrame::open`.
        let (start, end) = unsafe {
            (
                (&raw const (*self.0).data).read_volatile() as usize,
                (&raw const (*self.0).data_end).read_volatile() as usize,
            )
        };
        // Kernel 6.1 follows a comparison with the packet's end only for an offset that it knows to be small.
        if start + at + size_of::<T>() <= end && at < 256 {
            // SAFETY: compared with the end of the linear part; alignment as in `XdpFrame::read`.
            return Some(unsafe { *((start + at) as *const T) });
        }
        self.load(at)
    }

    #[inline(always)]
    fn load<T: Plain>(&self, at: usize) -> Option<T> {
        let mut value = core::mem::MaybeUninit::<T>::uninit();
        // SAFETY: the helper writes the whole of `value` or fails, and any bytes are a `T`, since it is `Plain`.
        unsafe {
            let result = bpf_skb_load_bytes(
                self.0.cast(),
                at as u32,
                value.as_mut_ptr().cast(),
                size_of::<T>() as u32,
            );
            if result == 0 {
                Some(value.assume_init())
            } else {
                None
            }
        }
    }

    #[inline(always)]
    fn write<T: Plain>(&mut self, at: usize, value: T) -> Option<()> {
        // SAFETY: a valid context, and a value without padding.
        let result = unsafe {
            bpf_skb_store_bytes(
                self.0.cast(),
                at as u32,
                (&raw const value).cast(),
                size_of_val(&value) as u32,
                0,
            )
        };
        if result == 0 { Some(()) } else { None }
    }

    #[inline(always)]
    fn update_header(&mut self, at: usize, delta: u64) -> Option<()> {
        // SAFETY: a valid context. Size 0: the value is a difference.
        let result = unsafe { bpf_l3_csum_replace(self.0, at as u32, 0, difference(delta), 0) };
        if result == 0 { Some(()) } else { None }
    }

    #[inline(always)]
    fn update_transport(&mut self, at: usize, delta: u64, covers: Covers) -> Option<()> {
        let flags = match covers {
            Covers::Data => 0,
            Covers::DataUdp => BPF_F_MARK_MANGLED_0,
            Covers::PseudoHeader => BPF_F_PSEUDO_HDR,
            Covers::PseudoHeaderUdp => BPF_F_PSEUDO_HDR | BPF_F_MARK_MANGLED_0,
        };
        // SAFETY: a valid context. Size 0: the value is a difference.
        let result = unsafe {
            bpf_l4_csum_replace(self.0, at as u32, 0, difference(delta), u64::from(flags))
        };
        if result == 0 { Some(()) } else { None }
    }
}

/// A one's complement difference in 32 bits, as the kernel's helpers take it.
#[inline(always)]
const fn difference(delta: u64) -> u64 {
    let sum = (delta & 0xffff_ffff) + (delta >> 32);
    (sum & 0xffff_ffff) + (sum >> 32)
}

/// The kernel's maps.
#[derive(Clone, Copy)]
pub(crate) struct Maps;

/// A configuration for the moment before the agent has written one: no address, no keys.
static EMPTY: Config = Config {
    hash_key: [0; lb_ebpf::abi::HASH_KEY_WORDS],
    secrets: [[lb_ebpf::wire::Be32::new(0); 2]; 2],
    relays_per_second: 0,
    node4: lb_ebpf::wire::Be32::new(0),
    node6: Addr6([lb_ebpf::wire::Be32::new(0); 4]),
    geneve_port: lb_ebpf::wire::Be16::new(0),
    mss4: 0,
    mss6: 0,
    flags: 0,
    icmp_errors_per_second: 0,
};

#[inline(always)]
fn add(map: &aya_ebpf::maps::PerCpuArray<lb_ebpf::abi::Count>, id: u32, bytes: usize) {
    if let Some(count) = map.get_ptr_mut(id) {
        // SAFETY: this processor's own copy, in the map.
        unsafe {
            (*count).packets += 1;
            (*count).bytes += bytes as u64;
        }
    }
}

#[inline(always)]
fn increment(map: &aya_ebpf::maps::PerCpuArray<u64>, index: u32) {
    if let Some(count) = map.get_ptr_mut(index) {
        // SAFETY: this processor's own copy, in the map.
        unsafe { *count += 1 };
    }
}

/// Processors that share a limit evenly; the receive queues of one interface rarely use more.
const LIMIT_SHARES: u64 = 4;
/// What a processor may save up, as a fraction of a second: a burst after quiet.
const BURST_SHIFT: u32 = 2;

impl Shared for Maps {
    type Scratch = &'static mut Scratch;

    #[inline(always)]
    fn scratch(&self) -> Option<&'static mut Scratch> {
        // SAFETY: this processor's own copy; a program is not interrupted by another packet on its processor, and each of
        // the two borrowers, one after the other, lets go before the next.
        maps::SCRATCH
            .get_ptr_mut(0)
            .map(|scratch| unsafe { &mut *scratch })
    }

    #[inline(always)]
    fn config(&self) -> &Config {
        match maps::CONFIG.get(0) {
            Some(config) => config,
            None => &EMPTY,
        }
    }

    #[inline(always)]
    fn row(&self, index: u32) -> Option<u16> {
        let element = maps::ROWS.get_ptr(index / ROWS_PER_ELEMENT)?;
        // SAFETY: inside the element, which has four rows.
        Some(unsafe {
            *element
                .cast::<u16>()
                .add((index % ROWS_PER_ELEMENT) as usize)
        })
    }

    #[inline(always)]
    fn slot(&self, index: u32) -> Option<Slot> {
        let slot = maps::SLOTS.get_ptr(index)?.cast::<u64>();
        // SAFETY: in the map. One load of eight bytes: user space replaces a slot by one store.
        let word = unsafe { *slot };
        Some(Slot {
            first: word as u32,
            set: (word >> 32) as u32,
        })
    }

    #[inline(always)]
    fn set(&self, id: u32) -> Option<&Set> {
        maps::SETS.get(id)
    }

    #[inline(always)]
    fn backend(&self, id: u32) -> Option<&Backend> {
        maps::BACKENDS.get(id)
    }

    #[inline(always)]
    fn stamp(&self) -> Stamp {
        maps::STAMP.get(0).copied().unwrap_or_default()
    }

    #[inline(always)]
    fn is_peer(&self, addr: &Addr6) -> bool {
        maps::PEERS.get_ptr(addr).is_some()
    }

    #[inline(always)]
    fn now_ns(&self) -> u64 {
        // SAFETY: no preconditions.
        unsafe { bpf_ktime_get_coarse_ns() }
    }

    #[inline(always)]
    fn take(&self, limited: Limited, now_ns: u64) -> bool {
        let config = self.config();
        let per_second = match limited {
            Limited::Relay => config.relays_per_second,
            Limited::IcmpError => u64::from(config.icmp_errors_per_second),
        };
        let share = per_second / LIMIT_SHARES;
        let Some(bucket) = maps::BUCKETS.get_ptr_mut(limited as u32) else {
            return false;
        };
        // SAFETY: this processor's own copy, in the map.
        let bucket = unsafe { &mut *bucket };
        let elapsed_ns = now_ns.wrapping_sub(bucket.filled_ns);
        // 2^30 ns is close enough to a second for a limit, and dividing by it is a shift.
        let most = share >> BURST_SHIFT;
        let grown = if elapsed_ns >> 30 > 0 {
            most
        } else {
            elapsed_ns.wrapping_mul(share) >> 30
        };
        if grown > 0 {
            let tokens = bucket.tokens + grown;
            bucket.tokens = if tokens > most { most } else { tokens };
            bucket.filled_ns = now_ns;
        }
        if bucket.tokens == 0 {
            return false;
        }
        bucket.tokens -= 1;
        true
    }

    #[inline(always)]
    fn count_service(&self, id: u32, bytes: usize) {
        add(&maps::SERVICES_COUNT, id, bytes);
    }

    #[inline(always)]
    fn count_backend(&self, id: u32, bytes: usize) {
        add(&maps::BACKENDS_COUNT, id, bytes);
    }

    #[inline(always)]
    fn count(&self, stat: Stat) {
        increment(&maps::STATS, stat as u32);
    }

    #[inline(always)]
    fn count_drop(&self, reason: u32) {
        increment(&maps::DROPS, reason);
    }
}

macro_rules! tables {
    ($family:ty, $services:ident, $directory:ident, $pins:ident, $flows:ident, $half_open:ident, $first:ident, $held:ident, $fragments:ident, $locals:ident) => {
        impl Tables<$family> for Maps {
            #[inline(always)]
            fn service(&self, key: &<$family as Family>::ServiceKey) -> Option<&ServiceEntry> {
                type Key = <$family as Family>::ServiceKey;
                let wanted = key.words();
                let words = maps::$directory.get_ptr(0)?.cast::<u64>();
                directory::find(
                    Key::hash(&wanted),
                    // SAFETY: `at` is below the length. One load of eight bytes: user space replaces a word by one store.
                    |at| unsafe { *words.add(at as usize) },
                    |index| {
                        // A record is immutable until a grace period after the directory has ceased to name it.
                        let record = maps::$services.get_ptr(index)?;
                        // SAFETY: in the map, and a record begins with its key.
                        if Key::same(&wanted, unsafe { &*record.cast() }) {
                            // SAFETY: in the map.
                            Some(unsafe { &(*record).entry })
                        } else {
                            None
                        }
                    },
                )
            }
            #[inline(always)]
            fn pin(&self, key: &Tuple<<$family as Family>::Addr>) -> Option<Pin> {
                // SAFETY: as above.
                unsafe { maps::$pins.get(key) }.copied()
            }
            #[inline(always)]
            fn flow<R>(
                &self,
                key: &Tuple<<$family as Family>::Addr>,
                with: impl FnOnce(&mut Flow<<$family as Family>::Addr>) -> R,
            ) -> Option<R> {
                let flow = maps::$flows.get_ptr_mut(key)?;
                // SAFETY: a value in the map; fields are integers, and each side writes its own.
                Some(with(unsafe { &mut *flow }))
            }
            #[inline(always)]
            fn insert_flow(
                &self,
                key: &Tuple<<$family as Family>::Addr>,
                flow: &Flow<<$family as Family>::Addr>,
            ) -> bool {
                maps::$flows.insert(key, flow, u64::from(BPF_ANY)).is_ok()
            }
            #[inline(always)]
            fn remove_flow(&self, key: &Tuple<<$family as Family>::Addr>) {
                // Not there any more is what was wanted.
                let _ = maps::$flows.remove(key);
            }
            #[inline(always)]
            fn half_open<R>(
                &self,
                key: &Tuple<<$family as Family>::Addr>,
                with: impl FnOnce(&mut HalfOpen<<$family as Family>::Addr>) -> R,
            ) -> Option<R> {
                let half_open = maps::$half_open.get_ptr_mut(key)?;
                // SAFETY: as in `flow`.
                Some(with(unsafe { &mut *half_open }))
            }
            #[inline(always)]
            fn insert_half_open(
                &self,
                key: &Tuple<<$family as Family>::Addr>,
                half_open: &HalfOpen<<$family as Family>::Addr>,
            ) {
                // An LRU map makes room by itself; what still fails is a lost race for a free place.
                let _ = maps::$half_open.insert(key, half_open, u64::from(BPF_ANY));
            }
            #[inline(always)]
            fn remove_half_open(&self, key: &Tuple<<$family as Family>::Addr>) {
                let _ = maps::$half_open.remove(key);
            }
            #[inline(always)]
            fn first(
                &self,
                key: &Tuple<<$family as Family>::Addr>,
            ) -> Option<FirstPod<<$family as Family>::Addr>> {
                // SAFETY: copied at once.
                unsafe { maps::$first.get(key) }.copied()
            }
            #[inline(always)]
            fn insert_first(
                &self,
                key: &Tuple<<$family as Family>::Addr>,
                pod: &FirstPod<<$family as Family>::Addr>,
            ) {
                let _ = maps::$first.insert(key, pod, u64::from(BPF_ANY));
            }
            #[inline(always)]
            fn held(&self, key: &Tuple<<$family as Family>::Addr>) -> Option<u64> {
                // SAFETY: copied at once.
                unsafe { maps::$held.get(key) }.copied()
            }
            #[inline(always)]
            fn insert_held(&self, key: &Tuple<<$family as Family>::Addr>, first_ns: u64) {
                let _ = maps::$held.insert(key, &first_ns, u64::from(BPF_ANY));
            }
            #[inline(always)]
            fn remove_held(&self, key: &Tuple<<$family as Family>::Addr>) {
                let _ = maps::$held.remove(key);
            }
            #[inline(always)]
            fn fragment(
                &self,
                key: &FragmentKey<<$family as Family>::Addr>,
            ) -> Option<FragmentPorts<<$family as Family>::Addr>> {
                // SAFETY: copied at once.
                unsafe { maps::$fragments.get(key) }.copied()
            }
            #[inline(always)]
            fn insert_fragment(
                &self,
                key: &FragmentKey<<$family as Family>::Addr>,
                ports: &FragmentPorts<<$family as Family>::Addr>,
            ) {
                let _ = maps::$fragments.insert(key, ports, u64::from(BPF_ANY));
            }
            #[inline(always)]
            fn local(&self, key: &LocalKey<<$family as Family>::Addr>) -> Option<LocalPod> {
                // SAFETY: copied at once.
                unsafe { maps::$locals.get(key) }.copied()
            }
        }
    };
}

tables!(
    V4, SERVICES4, DIRECTORY4, PINS4, FLOWS4, HALF_OPEN4, FIRST4, HELD4, FRAGMENTS4, LOCALS4
);
tables!(
    V6, SERVICES6, DIRECTORY6, PINS6, FLOWS6, HALF_OPEN6, FIRST6, HELD6, FRAGMENTS6, LOCALS6
);
