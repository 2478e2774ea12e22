//! The parts of a packet's way as global functions, see [`lb_ebpf::parts`].
//!
//! A name that is exported, in a section, and a context as the only argument: that makes a function global to the
//! verifier. It believes nothing of what one returns, so nobody uses a verdict's number as an index.

use aya_ebpf::bindings::xdp_md;
use lb_ebpf::family::{Family, V4, V6};
use lb_ebpf::frame::Frame;
use lb_ebpf::parts::{
    Acquaintance, Admit, Arrived, Ask, Deliver, Errand, Geneve, Neighbour, Next, Nobody, Part,
    Parts, Probe, Refuse, Relay, Stranger, Subject, TooBig, Uncommon, Untag, Unusual, Walk,
};
use lb_ebpf::tables::Tables;
use lb_ebpf::verdict::Verdict;

use crate::packets::XdpFrame;
use crate::tables::Maps;

macro_rules! functions {
    ($($name:ident = $part:ident over $family:ident;)+) => {
        $(
            #[unsafe(no_mangle)]
            #[unsafe(link_section = ".text")]
            #[inline(never)]
            extern "C" fn $name(ctx: *mut xdp_md) -> u64 {
                // Some parts look at the scratch memory alone. If nobody used the context, the compiler would pass
                // anything in its place, and the verifier wants a context.
                let _ = XdpFrame::open(ctx);
                $part::run::<$family, XdpFrame, Maps>(ctx, Maps).to_word()
            }
        )+

        impl Parts<XdpFrame> for Maps {
            #[inline(always)]
            fn call<F: Family, P: Part>(self, ctx: *mut xdp_md) -> Verdict
            where
                Self: Tables<F>,
            {
                $(
                    if P::NUMBER == $part::NUMBER && F::IS_V6 == $family::IS_V6 {
                        return Verdict::from_word($name(ctx));
                    }
                )+
                // A part that is not in the list below: compiled into its caller.
                P::run::<F, XdpFrame, Self>(ctx, self)
            }
        }
    };
}

functions! {
    arrived4 = Arrived over V4;
    arrived6 = Arrived over V6;
    subject4 = Subject over V4;
    subject6 = Subject over V6;
    unusual4 = Unusual over V4;
    unusual6 = Unusual over V6;
    errand4 = Errand over V4;
    errand6 = Errand over V6;
    acquaintance4 = Acquaintance over V4;
    acquaintance6 = Acquaintance over V6;
    stranger4 = Stranger over V4;
    stranger6 = Stranger over V6;
    walk4 = Walk over V4;
    walk6 = Walk over V6;
    next4 = Next over V4;
    next6 = Next over V6;
    ask4 = Ask over V4;
    ask6 = Ask over V6;
    nobody4 = Nobody over V4;
    nobody6 = Nobody over V6;
    admit4 = Admit over V4;
    admit6 = Admit over V6;
    deliver4 = Deliver over V4;
    deliver6 = Deliver over V6;
    relay4 = Relay over V4;
    relay6 = Relay over V6;
    geneve4 = Geneve over V4;
    geneve6 = Geneve over V6;
    uncommon4 = Uncommon over V4;
    uncommon6 = Uncommon over V6;
    neighbour4 = Neighbour over V4;
    neighbour6 = Neighbour over V6;
    probe4 = Probe over V4;
    probe6 = Probe over V6;
    refuse4 = Refuse over V4;
    refuse6 = Refuse over V6;
    too_big4 = TooBig over V4;
    too_big6 = TooBig over V6;
    untag = Untag over V4;
}
