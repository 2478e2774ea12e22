//! The kernel's maps as the traits of the library.

use aya_ebpf::bindings::BPF_ANY;
use aya_ebpf::maps::lpm_trie::Key as Prefix;
use lb_ebpf::abi::{
    AnnouncedKey, Announcement, Backend, Claim, Config, Event, FirstPod, Flow, FragmentKey,
    FragmentPorts, HalfOpen, Limited, LocalKey, LocalPod, Pin, ROWS_PER_ELEMENT, SOURCE_BITS,
    ServiceEntry, Set, Slot, SourceKey, SourceRange, Stamp, Stat, Tuple,
};
use lb_ebpf::directory::{self, Key as _};
use lb_ebpf::family::{Family, V4, V6};
use lb_ebpf::own::Scratch;
use lb_ebpf::tables::{Shared, Tables};
use lb_ebpf::wire::Addr6;

use crate::{clock, maps};

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
    opinions: [0; 2],
    half_open_reports_per_second: 0,
    pad: 0,
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

/// Processors that share a limit evenly; the receive queues of one interface rarely use more, and if they do, each has
/// the same share.
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
    fn admits(&self, source: &SourceKey) -> bool {
        let whole = SourceRange {
            prefix_len: SOURCE_BITS,
            key: *source,
        };
        // SAFETY: the same fields in the same places; ours is aligned, so that it is written by words.
        let whole = unsafe { &*(&raw const whole).cast::<Prefix<SourceKey>>() };
        maps::SOURCE_RANGES.get(whole).is_some()
    }

    #[inline(always)]
    fn announced(&self, key: &AnnouncedKey) -> Option<Announcement> {
        // SAFETY: copied at once.
        unsafe { maps::ANNOUNCED.get(key) }.copied()
    }

    #[inline(always)]
    fn insert_claim(&self, claim: &Claim, now_ns: u64) {
        // An LRU map makes room by itself; what still fails is a lost race for a free place.
        let _ = maps::CLAIMS.insert(claim, &now_ns, u64::from(BPF_ANY));
    }

    #[inline(always)]
    fn now_ns(&self) -> u64 {
        clock::now_ns()
    }

    #[inline(always)]
    fn take(&self, limited: Limited, now_ns: u64) -> bool {
        let config = self.config();
        let per_second = match limited {
            Limited::Relay => config.relays_per_second,
            Limited::IcmpError => u64::from(config.icmp_errors_per_second),
            Limited::Report => u64::from(config.half_open_reports_per_second),
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
    fn report(&self, event: &Event) {
        // Written where it stays: a copy on the stack would stand below those of the walk.
        let stat = match maps::EVENTS.reserve::<Event>(0) {
            Some(mut place) => {
                place.write(*event);
                place.submit(0);
                Stat::Reported
            }
            None => Stat::ReportLost,
        };
        self.count(stat);
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
