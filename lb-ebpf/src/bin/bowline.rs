//! Entry points of the programs: XDP in, TC out. No decisions here; [`packets`] and [`tables`] are the glue to the kernel.

#![no_std]
#![no_main]

use aya_ebpf::bindings::{TC_ACT_UNSPEC, xdp_action};
use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};
use lb_ebpf::frame::Frame;
use lb_ebpf::{back, path};

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

/// Passes everything: for the far end of a veth, which needs a program to receive what `XDP_TX` sends (see
/// `lb_controller::dataplane::pass`).
#[xdp]
pub fn bowline_pass(_: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// Packets that leave for the wire. Programs and filters after this one still see the packet.
#[classifier]
pub fn bowline_egress(ctx: TcContext) -> i32 {
    back::reply(&mut Outgoing(ctx.skb.skb), Maps);
    TC_ACT_UNSPEC
}

/// The kernel opens its GPL-only helpers to these exact strings alone. The objects are under "Apache-2.0 OR
/// GPL-2.0-only"; this names the half that the kernel knows.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
pub static LICENSE: [u8; 7] = *b"GPL v2\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
