//! The parts of a packet's way that stand apart from [`crate::path`].
//!
//! In the kernel each is a global function: the verifier looks at it once, by itself, whatever leads to it, where a part
//! that is compiled into its caller is looked at again for every way there. So a part takes a packet's handle and nothing
//! else; what it must know besides is in the scratch memory. On the host parts are plain calls.
//!
//! What every packet of an open flow pays for is no part, but compiled into its caller.

use crate::abi::DropReason;
use crate::decap;
use crate::family::Family;
use crate::frame::Frame;
use crate::icmp;
use crate::neighbour::{arp, discovery};
use crate::own::{self, Scratch};
use crate::path;
use crate::probe;
use crate::refuse;
use crate::subject;
use crate::tables::{AllTables, Shared, Tables};
use crate::tags;
use crate::verdict::Verdict;

/// One part, over either family.
pub trait Part {
    /// Its number, by which the programs find the function.
    const NUMBER: u32;

    /// Does it.
    fn run<F: Family, X: Frame, T: Parts<X> + Tables<F>>(handle: X::Handle, tables: T) -> Verdict;
}

/// Tables through which parts are called.
pub trait Parts<X: Frame>: AllTables {
    /// Calls a part.
    #[inline(always)]
    fn call<F: Family, P: Part>(self, handle: X::Handle) -> Verdict
    where
        Self: Tables<F>,
    {
        P::run::<F, X, Self>(handle, self)
    }
}

macro_rules! parts {
    ($($(#[$meta:meta])* $name:ident = $number:literal, |$handle:ident, $tables:ident| $run:expr;)+) => { $(
        $(#[$meta])*
        #[derive(Clone, Copy, Debug)]
        pub struct $name;

        impl Part for $name {
            const NUMBER: u32 = $number;

            #[inline(always)]
            fn run<F: Family, X: Frame, T: Parts<X> + Tables<F>>(
                $handle: X::Handle,
                $tables: T,
            ) -> Verdict {
                $run
            }
        }
    )+ };
}

parts! {
    /// What lies in the scratch memory has reached a node which may own its flow, see [`own::node`].
    Arrived = 0, |handle, tables| with_scratch(tables, |scratch| own::node::<F, X, T>(handle, tables, scratch));
    /// Finds the subject of a packet that is not whole.
    Subject = 17, |handle, tables| with_scratch(tables, |scratch| {
        subject::of::<F, X, T>(handle, tables, &mut F::work(scratch).1.subject).verdict()
    });
    /// See [`own::unusual`].
    Unusual = 18, |handle, tables| with_scratch(tables, |scratch| own::unusual::<F, X, T>(handle, tables, scratch));
    /// See [`path::errand`].
    Errand = 19, |handle, tables| path::errand::<F, X, T>(handle, tables);
    /// See [`own::acquaintance`].
    Acquaintance = 14, |_handle, tables| with_scratch(tables, |scratch| own::acquaintance::<F, T>(tables, scratch));
    /// See [`own::stranger`].
    Stranger = 1, |_handle, tables| with_scratch(tables, |scratch| own::stranger::<F, T>(tables, scratch));
    /// See [`own::walk`].
    Walk = 9, |_handle, tables| with_scratch(tables, |scratch| own::walk::<F, T>(tables, scratch));
    /// See [`own::next`].
    Next = 15, |_handle, tables| with_scratch(tables, |scratch| own::next::<F, T>(tables, scratch));
    /// See [`own::ask`].
    Ask = 16, |_handle, tables| with_scratch(tables, |scratch| own::ask::<F, T>(tables, scratch));
    /// See [`own::nobody`].
    Nobody = 10, |_handle, tables| with_scratch(tables, |scratch| own::nobody::<F, T>(tables, scratch));
    /// See [`own::admit`].
    Admit = 11, |_handle, tables| with_scratch(tables, |scratch| own::admit::<F, T>(tables, scratch));
    /// See [`own::deliver`].
    Deliver = 12, |handle, tables| with_scratch(tables, |scratch| own::deliver::<F, X, T>(handle, tables, scratch));
    /// See [`own::relay`].
    Relay = 13, |handle, tables| with_scratch(tables, |scratch| own::relay::<F, X, T>(handle, tables, scratch));
    /// UDP to the Geneve port.
    Geneve = 2, |handle, tables| decap::arrive::<F, X, T>(&mut X::open(handle), tables);
    /// Fragments, ICMP, options, and what else may be for a VIP.
    Uncommon = 3, |handle, tables| path::uncommon::<F, X, T>(handle, tables);
    /// ARP, or neighbour discovery.
    Neighbour = 4, |handle, tables| if F::IS_V6 {
        discovery::arrive::<X, T>(handle, tables)
    } else {
        arp::arrive::<X, T>(handle, tables)
    };
    /// A liveness probe.
    Probe = 5, |handle, tables| probe::arrive::<F, X, T>(handle, tables);
    /// A new flow that nobody serves.
    Refuse = 6, |handle, tables| refuse::refuse::<F, X, T>(handle, tables);
    /// A packet that is too big for outer headers; the MTU to tell is in the scratch memory.
    TooBig = 7, |handle, tables| with_scratch(tables, |scratch| {
        icmp::too_big::<F, X, T>(handle, tables, scratch.mtu)
    });
    /// A tagged packet loses its tags, see [`tags::Tags`].
    Untag = 8, |handle, tables| with_scratch(tables, |scratch| {
        tags::untag::<X, T>(handle, tables, &mut scratch.tags)
    });
}

#[inline(always)]
fn with_scratch<T: Shared>(tables: T, with: impl FnOnce(&mut Scratch) -> Verdict) -> Verdict {
    match tables.scratch() {
        Some(mut scratch) => with(&mut scratch),
        None => DropReason::TableFault.into(),
    }
}
