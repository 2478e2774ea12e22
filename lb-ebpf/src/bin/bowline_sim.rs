//! The programs of `bowline.rs` by a clock that user space sets, for simulated clusters: the same modules, so the same
//! decisions.

#![no_std]
#![no_main]

use aya_ebpf::bindings::TC_ACT_UNSPEC;
use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};
use lb_ebpf::frame::Frame;
use lb_ebpf::{back, path};

#[path = "bowline_sim/clock.rs"]
mod clock;
mod maps;
mod packets;
mod parts;
mod tables;

use packets::{Outgoing, XdpFrame};
use tables::Maps;

/// Packets from the wire.
#[xdp]
pub fn bowline_xdp(ctx: XdpContext) -> u32 {
    packets::act(path::run(&mut XdpFrame::open(ctx.ctx), Maps))
}

/// Packets that leave for the wire.
#[classifier]
pub fn bowline_egress(ctx: TcContext) -> i32 {
    back::reply(&mut Outgoing(ctx.skb.skb), Maps);
    TC_ACT_UNSPEC
}

/// As in `bowline.rs`.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
pub static LICENSE: [u8; 7] = *b"GPL v2\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
