//! Entry points of the programs: XDP in, TC out.

#![no_std]
#![no_main]

use aya_ebpf::bindings::{TC_ACT_UNSPEC, xdp_action};
use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};

mod maps;

/// Packets from the wire.
#[xdp]
pub fn bowline_xdp(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// Packets that leave for the wire.
#[classifier]
pub fn bowline_egress(_ctx: TcContext) -> i32 {
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
