//! The kernel's packets as the traits of the library. With `tables.rs` and the types of `abi.rs`, all of this crate that
//! needs `unsafe`.
//!
//! Bounds are written as the verifier wants them: a pointer is used only after its end was compared with the packet's.

use core::mem::{size_of, size_of_val};

use aya_ebpf::bindings::{__sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, xdp_action, xdp_md};
use aya_ebpf::helpers::{
    bpf_csum_diff, bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_skb_load_bytes,
    bpf_skb_store_bytes, bpf_xdp_adjust_head, bpf_xdp_adjust_tail,
};
use lb_ebpf::abi::Plain;
use lb_ebpf::back::{Covers, Skb};
use lb_ebpf::frame::Frame;
use lb_ebpf::verdict::Verdict;

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
    fn ifindex(&self) -> u32 {
        // SAFETY: a valid context. Volatile as in `open`.
        unsafe { (&raw const (*self.ctx).ingress_ifindex).read_volatile() }
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

/// What the kernel is told to do with a packet.
#[inline(always)]
pub(crate) fn act(verdict: Verdict) -> u32 {
    if verdict.drop_reason().is_some() {
        return xdp_action::XDP_DROP;
    }
    match verdict.redirect() {
        // Flags 0: an interface that is missing aborts, which shows in the kernel's tracepoint and not as a silent pass.
        Some(ifindex) => maps::INTERFACES
            .redirect(ifindex, 0)
            .unwrap_or(xdp_action::XDP_ABORTED),
        None if verdict == Verdict::TRANSMIT => xdp_action::XDP_TX,
        None => xdp_action::XDP_PASS,
    }
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
