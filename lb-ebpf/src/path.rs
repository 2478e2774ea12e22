//! The whole way of one packet through the XDP program.
//!
//! ```text
//! VLAN tags off ─▶ IPv4 or IPv6 ─┬─ TCP, UDP, SCTP: service? ─▶ balance ─▶ encapsulate, or the owner's decision
//!                                ├─ UDP to the Geneve port: ours? ─▶ take off ─▶ the owner's decision
//!                                └─ fragments, ICMP, options: for a VIP? ─▶ their own way
//! questions about VIPs by ARP and neighbour discovery, liveness probes ─▶ answered
//! everything else passes untouched
//! ```

use core::marker::PhantomData;
use core::mem::offset_of;

use crate::abi::{CANDIDATES_MAX, DropReason, Stat, service_flag};
use crate::balance::{self, Look};
use crate::family::{Family, Next, V4, V6};
use crate::frame::Frame;
use crate::icmp;
use crate::neighbour::discovery;
use crate::parts::{
    self, Acquaintance, Admit, Arrived, Ask, Deliver, Errand, Geneve, Neighbour, Nobody, Parts,
    Probe, Refuse, Relay, Stranger, TooBig, Uncommon, Untag, Unusual, Walk,
};
use crate::probe;
use crate::subject::{self, IP_AT};
use crate::tables::{AllTables, Tables};
use crate::tags::{is_tag, retag};
use crate::verdict::Verdict;
use crate::wire::{Be16, Ports, Sctp, Tcp, ethertype, protocol, sctp_chunk, tcp_flag};

/// What becomes of a packet; it is rewritten in place. The caller counts drops.
///
/// A packet for a pod of this node comes out of the first half as an arrival, whichever way it came, so that the owner's
/// decision stands in one place per family.
#[inline(always)]
pub fn packet<X: Frame, T: Parts<X>>(frame: &mut X, tables: T, kind: Be16) -> Verdict {
    let verdict = if kind == ethertype::IPV4 {
        let verdict = ip::<V4, X, T>(frame, tables);
        rest::<V4, X, T>(frame, tables, verdict)
    } else if kind == ethertype::IPV6 {
        let verdict = ip6::<X, T>(frame.handle(), tables);
        rest::<V6, X, T>(frame, tables, verdict)
    } else if kind == ethertype::ARP {
        return tables.call::<V4, Neighbour>(frame.handle());
    } else {
        return Verdict::PASS;
    };
    if verdict.is_final() {
        return verdict;
    }
    let verdict = if verdict == Verdict::ARRIVED_4 {
        arrived::<V4, X, T>(frame, tables)
    } else if verdict == Verdict::ARRIVED_6 {
        arrived::<V6, X, T>(frame, tables)
    } else {
        verdict
    };
    if verdict == Verdict::REFUSE_4 {
        return refuse::<V4, X, T>(frame, tables);
    }
    if verdict == Verdict::REFUSE_6 {
        return refuse::<V6, X, T>(frame, tables);
    }
    if let Some(mtu) = verdict.told_mtu(false) {
        return tell_mtu::<V4, X, T>(frame, tables, mtu);
    }
    if let Some(mtu) = verdict.told_mtu(true) {
        return tell_mtu::<V6, X, T>(frame, tables, mtu);
    }
    verdict
}

/// [`ip`] over IPv6, with a stack frame of its own: its addresses would fill the one that everything else stands on.
#[inline(never)]
fn ip6<X: Frame, T: AllTables>(handle: X::Handle, tables: T) -> Verdict {
    ip::<V6, X, T>(&mut X::open(handle), tables)
}

/// An arrival at a node that may own its flow.
#[inline(always)]
fn arrived<F: Family, X: Frame, T: Parts<X> + Tables<F>>(frame: &X, tables: T) -> Verdict {
    let handle = frame.handle();
    let mut verdict = tables.call::<F, Arrived>(handle);
    if verdict == Verdict::UNUSUAL {
        verdict = tables.call::<F, parts::Subject>(handle);
        if verdict == Verdict::FOUND {
            verdict = tables.call::<F, Unusual>(handle);
        } else if verdict == Verdict::OTHER {
            return DropReason::EncapMalformed.into();
        }
    }
    // Known: most packets leave here.
    if verdict.is_final() {
        return verdict;
    }
    if verdict == Verdict::STRANGER {
        verdict = tables.call::<F, Acquaintance>(handle);
    }
    if verdict == Verdict::STRANGER {
        verdict = tables.call::<F, Stranger>(handle);
    }
    if verdict == Verdict::WALK {
        verdict = tables.call::<F, Walk>(handle);
        let mut asked = 0;
        // Each one asked has a place in the list of the asked, so the walk ends before this does.
        while verdict == Verdict::NEXT && asked <= CANDIDATES_MAX {
            verdict = tables.call::<F, parts::Next>(handle);
            if verdict == Verdict::ASK {
                verdict = tables.call::<F, Ask>(handle);
            }
            asked += 1;
        }
    }
    if verdict == Verdict::NOBODY {
        verdict = tables.call::<F, Nobody>(handle);
    }
    if verdict == Verdict::ADMIT {
        verdict = tables.call::<F, Admit>(handle);
    }
    if verdict == Verdict::DELIVER {
        tables.call::<F, Deliver>(handle)
    } else if verdict == Verdict::RELAY {
        tables.call::<F, Relay>(handle)
    } else if verdict == Verdict::NEXT {
        DropReason::TableFault.into()
    } else {
        verdict
    }
}

#[inline(always)]
fn tell_mtu<F: Family, X: Frame, T: Parts<X> + Tables<F>>(
    frame: &X,
    tables: T,
    mtu: u16,
) -> Verdict {
    match tables.scratch() {
        Some(mut scratch) => scratch.mtu = u32::from(mtu),
        None => return DropReason::TableFault.into(),
    }
    let verdict = tables.call::<F, TooBig>(frame.handle());
    if verdict == Verdict::TRANSMIT {
        tables.count(Stat::TooBigSent);
    }
    verdict
}

#[inline(always)]
fn refuse<F: Family, X: Frame, T: Parts<X> + Tables<F>>(frame: &X, tables: T) -> Verdict {
    let verdict = tables.call::<F, Refuse>(frame.handle());
    if verdict == Verdict::TRANSMIT {
        tables.count(Stat::Refused);
    }
    verdict
}

/// What [`ip`] leaves to others, called from here so that their stack frames do not stand on its own.
#[inline(always)]
fn rest<F: Family, X: Frame, T: Parts<X> + Tables<F>>(
    frame: &X,
    tables: T,
    verdict: Verdict,
) -> Verdict {
    if verdict == Verdict::UNCOMMON {
        let handle = frame.handle();
        let verdict = tables.call::<F, Uncommon>(handle);
        if verdict == Verdict::NEIGHBOUR {
            return tables.call::<F, Neighbour>(handle);
        }
        if verdict == Verdict::PROBE {
            return tables.call::<F, Probe>(handle);
        }
        if verdict != Verdict::UNUSUAL {
            return verdict;
        }
        let verdict = tables.call::<F, parts::Subject>(handle);
        if verdict == Verdict::FOUND {
            tables.call::<F, Errand>(handle)
        } else if verdict == Verdict::OTHER {
            Verdict::PASS
        } else {
            verdict
        }
    } else if verdict == Verdict::GENEVE {
        tables.call::<F, Geneve>(frame.handle())
    } else {
        verdict
    }
}

/// Whole TCP, UDP and SCTP packets of our services; anything else is not decided here.
#[inline(always)]
fn ip<F: Family, X: Frame, T: AllTables + Tables<F>>(frame: &mut X, tables: T) -> Verdict {
    let Some(ip) = frame.read::<F::Header>(IP_AT) else {
        return Verdict::PASS;
    };
    if !subject::is_whole::<F>(&ip) {
        return Verdict::UNCOMMON;
    }
    let proto = F::proto(&ip);
    let transport_at = IP_AT + F::HEADER_LEN;
    let Some(ports) = frame.read::<Ports>(transport_at) else {
        return Verdict::PASS;
    };
    if proto == protocol::UDP && ports.dst == tables.config().geneve_port {
        return Verdict::GENEVE;
    }
    let Some(service) =
        Tables::<F>::service(&tables, &F::service_key(F::dst(&ip), ports.dst, proto))
    else {
        return if probe::may_be(proto, ports) {
            Verdict::UNCOMMON
        } else {
            Verdict::PASS
        };
    };
    if service.flags & service_flag::SOURCE_RANGES != 0
        && !balance::admits_sender::<F, X, T>(frame.handle(), tables, service.id)
    {
        return DropReason::SourceRange.into();
    }
    let tuple = crate::abi::Tuple {
        src: F::src(&ip),
        dst: F::dst(&ip),
        ports,
        proto,
        pad: [0; 3],
    };
    let look = Whole::<F, T> {
        proto,
        tables,
        family: PhantomData,
    };
    let verdict = balance::balance::<F, X, T>(frame, tables, service, &ip, &tuple, &look);
    if verdict == Verdict::drop(DropReason::NoBackend)
        && (proto == protocol::UDP || look.is_first(frame))
    {
        return if F::IS_V6 {
            Verdict::REFUSE_6
        } else {
            Verdict::REFUSE_4
        };
    }
    verdict
}

/// A [`Look`] at a packet that is whole.
struct Whole<F, T> {
    proto: u8,
    tables: T,
    family: PhantomData<F>,
}

impl<F: Family, X: Frame, T: Tables<F>> Look<X> for Whole<F, T> {
    #[inline(always)]
    fn is_first(&self, frame: &X) -> bool {
        opens(frame, self.proto, IP_AT + F::HEADER_LEN)
    }

    #[inline(always)]
    fn pinned(&self, frame: &X) -> u32 {
        balance::pinned::<F, X, T>(frame.handle(), self.tables)
    }
}

/// Whether a packet opens a flow: a SYN without ACK, an INIT. Nobody can tell for UDP.
#[inline(always)]
fn opens<X: Frame>(frame: &X, proto: u8, transport_at: usize) -> bool {
    if proto == protocol::TCP {
        frame
            .read::<u8>(transport_at + offset_of!(Tcp, flags))
            .is_some_and(|flags| flags & (tcp_flag::SYN | tcp_flag::ACK) == tcp_flag::SYN)
    } else if proto == protocol::SCTP {
        frame.read::<u8>(transport_at + offset_of!(Sctp, chunk)) == Some(sctp_chunk::INIT)
    } else {
        false
    }
}

/// Fragments, ICMP, options: for VIPs only, everything else passes untouched. What [`rest`] sends on comes out as a verdict
/// of its own, so that no stack frame stands on this one.
#[inline(always)]
pub(crate) fn uncommon<F: Family, X: Frame, T: Tables<F>>(handle: X::Handle, tables: T) -> Verdict {
    let mut frame = X::open(handle);
    let Some(ip) = frame.read::<F::Header>(IP_AT) else {
        return Verdict::PASS;
    };
    if !F::is_valid(&ip) {
        return Verdict::PASS;
    }
    if F::next(&ip) == Next::Whole {
        if F::IS_V6
            && F::proto(&ip) == F::ICMP
            && frame
                .read::<u8>(IP_AT + F::HEADER_LEN)
                .is_some_and(discovery::is_about_neighbour)
        {
            return Verdict::NEIGHBOUR;
        }
        if F::proto(&ip) == protocol::UDP {
            return Verdict::PROBE;
        }
    }
    if tables
        .service(&subject::vip_key::<F>(F::dst(&ip)))
        .is_none()
    {
        return Verdict::PASS;
    }
    if F::proto(&ip) == F::ICMP && F::next(&ip) == Next::Whole && icmp::is_echo::<F, X>(&frame) {
        if F::is_martian(F::src(&ip)) {
            return DropReason::MartianAddress.into();
        }
        tables.count(Stat::EchoAnswered);
        return icmp::echo::<F, X>(&mut frame);
    }
    Verdict::UNUSUAL
}

/// A fragment or an ICMP error for a VIP, once its subject is found.
#[inline(always)]
pub(crate) fn errand<F: Family, X: Frame, T: Tables<F>>(handle: X::Handle, tables: T) -> Verdict {
    let mut frame = X::open(handle);
    let Some(ip) = frame.read::<F::Header>(IP_AT) else {
        return Verdict::PASS;
    };
    let subject = match tables.scratch() {
        Some(mut scratch) => F::work(&mut scratch).1.subject,
        None => return DropReason::TableFault.into(),
    };
    balance::balance_subject::<F, X, T>(&mut frame, tables, &ip, &subject)
}

/// The whole way, tags and drop counter included: what the XDP program does.
#[inline(always)]
pub fn run<X: Frame, T: Parts<X>>(frame: &mut X, tables: T) -> Verdict {
    let Some(mut kind) = frame.read::<Be16>(12) else {
        return Verdict::PASS;
    };
    let tagged = is_tag(kind);
    if tagged {
        // In the scratch memory, so that the verifier need not look at everything that follows once for each depth.
        let untagged = tables.call::<V4, Untag>(frame.handle());
        if untagged.drop_reason().is_some() {
            return counted(tables, untagged);
        }
        *frame = X::open(frame.handle());
        kind = match frame.read::<Be16>(12) {
            Some(kind) => kind,
            None => return Verdict::PASS,
        };
    }
    let mut verdict = packet(frame, tables, kind);
    if tagged
        && verdict.drop_reason().is_none()
        && let Some(scratch) = tables.scratch()
    {
        let tags = scratch.tags;
        if let Err(reason) = retag::<X>(&mut X::open(frame.handle()), &tags) {
            verdict = reason.into();
        }
    }
    counted(tables, verdict)
}

#[inline(always)]
fn counted<T: AllTables>(tables: T, verdict: Verdict) -> Verdict {
    if let Some(reason) = verdict.drop_reason() {
        tables.count_drop(reason);
    }
    verdict
}
