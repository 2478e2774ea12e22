//! Taking our encapsulation off: strict matching, what the option says, and what is left of the packet.

use crate::abi::{
    CANDIDATES_MAX, DropReason, GENEVE_OPTION_CLASS, GENEVE_OPTION_KIND, GENEVE_VNI,
    POD_ADDRESS_V4, POD_ADDRESS_V6, Stat,
};
use crate::encap::Asked;
use crate::family::{Family, V4, V6};
use crate::frame::Frame;
use crate::subject::IP_AT;
use crate::tables::{AllTables, Shared};
use crate::verdict::Verdict;
use crate::wire::{Addr6, Be16, Be32, Ethernet, GeneveHead, GeneveOption, Udp, ethertype};

/// What the encapsulation says about the packet in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arrival {
    /// Address of the pod that is meant, IPv4 mapped.
    pub pod: Addr6,
    /// Its port.
    pub port: Be16,
    /// The mark byte.
    pub mark: u8,
    /// 1: the pod's address is IPv6.
    pub is_v6: u8,
    /// Identity of the pod and port.
    pub identity: u32,
    /// Who was asked before.
    pub asked: Asked,
}

/// Notes what came in for the owner's decision.
#[inline(always)]
pub fn arrived<T: Shared>(tables: &T, arrival: Arrival) -> Verdict {
    let Some(mut scratch) = tables.scratch() else {
        return DropReason::TableFault.into();
    };
    let is_v6 = arrival.is_v6;
    scratch.arrival = arrival;
    if is_v6 == 0 {
        Verdict::ARRIVED_4
    } else {
        Verdict::ARRIVED_6
    }
}

/// Bytes of the option's data without pod address and the asked, in words: mark and port, identity, secret.
const OPTION_WORDS: u8 = 1 + 1 + 2;
/// The option header, in words.
const OPTION_HEADER_WORDS: u8 = 1;
/// The critical-options flag (RFC 8926, section 3.4).
const CRITICAL: u8 = 0x40;

/// A UDP packet to the Geneve port: ours is taken apart for the owner node's decision, anything else passes.
#[inline(always)]
pub fn arrive<O: Family, X: Frame, T: AllTables>(frame: &mut X, tables: T) -> Verdict {
    let Some(ip) = frame.read::<O::Header>(IP_AT) else {
        return Verdict::PASS;
    };
    let config = tables.config();
    let to_us = if O::IS_V6 {
        O::mapped(O::dst(&ip)) == config.node6
    } else {
        O::mapped(O::dst(&ip)) == Addr6::mapped(config.node4)
    };
    let geneve_at = IP_AT + O::HEADER_LEN + size_of::<Udp>();
    if !to_us {
        return Verdict::PASS;
    }
    // One read, one check: values that exist on some ways only are uninitialised registers to the verifier.
    let Some((geneve, option)) = frame
        .read::<GeneveHead>(geneve_at)
        .map(|head| (head.geneve, head.option))
    else {
        return Verdict::PASS;
    };
    let ours = geneve.vni == const { Be32::new(GENEVE_VNI << 8) }
        && geneve.flags == CRITICAL
        && option.class == const { Be16::new(GENEVE_OPTION_CLASS) }
        && option.kind == GENEVE_OPTION_KIND;
    if !ours {
        return Verdict::PASS;
    }
    let inner_v6 = geneve.kind == ethertype::IPV6;
    let address_words = if inner_v6 { 4 } else { 1 };
    let asked_words = (option.len & 0x1f).wrapping_sub(OPTION_WORDS + address_words);
    let lengths_agree = geneve.version_len == (option.len & 0x1f) + OPTION_HEADER_WORDS;
    if !lengths_agree
        || usize::from(asked_words) > CANDIDATES_MAX
        || !(inner_v6 || geneve.kind == ethertype::IPV4)
    {
        return DropReason::EncapMalformed.into();
    }
    let ecn = O::traffic_class(&ip) & 0b11;
    let address_at = if O::IS_V6 {
        POD_ADDRESS_V6
    } else {
        POD_ADDRESS_V4
    };
    let src = O::mapped(O::src(&ip));
    let head = Head {
        src,
        option,
        ecn,
        address_at,
        asked: u32::from(asked_words),
    };
    if inner_v6 {
        enter::<V6, X, T>(frame, tables, &head)
    } else {
        enter::<V4, X, T>(frame, tables, &head)
    }
}

/// What [`arrive`] has found, the same for both inner families.
#[derive(Clone, Copy)]
struct Head {
    src: Addr6,
    option: GeneveOption,
    ecn: u8,
    address_at: usize,
    asked: u32,
}

#[inline(always)]
fn enter<F: Family, X: Frame, T: AllTables>(frame: &mut X, tables: T, head: &Head) -> Verdict {
    let Head {
        src,
        option,
        ecn,
        address_at,
        asked: asked_len,
    } = *head;
    let identity_at = address_at + size_of::<F::Addr>();
    let list_at = identity_at + 4 + 8;
    let malformed = Verdict::drop(DropReason::EncapMalformed);
    let Some(pod) = frame.read::<F::Addr>(address_at) else {
        return malformed;
    };
    let Some(identity) = frame.read::<Be32>(identity_at) else {
        return malformed;
    };
    let Some(secret) = frame.read::<[Be32; 2]>(identity_at + 4) else {
        return malformed;
    };
    let secrets = &tables.config().secrets;
    if secret != secrets[0] && secret != secrets[1] {
        return Verdict::PASS;
    }
    if !tables.is_peer(&src) {
        tables.count(Stat::NotAPeer);
        return Verdict::PASS;
    }
    // Read as if the list were full: behind a shorter one is the inner packet, whose headers are longer than that.
    let Some(words) = frame.read::<[Be32; CANDIDATES_MAX]>(list_at) else {
        return DropReason::EncapMalformed.into();
    };
    let asked = Asked::from_wire(&words, asked_len);
    let Some(ethernet) = frame.read::<Ethernet>(0) else {
        return DropReason::Truncated.into();
    };
    let strip = list_at + 4 * asked_len as usize - IP_AT;
    if frame.move_head(strip as i32).is_none() {
        return DropReason::EncapMalformed.into();
    }
    if frame
        .write(
            0,
            Ethernet {
                kind: F::ETHERTYPE,
                ..ethernet
            },
        )
        .is_none()
    {
        return DropReason::EncapMalformed.into();
    }
    if let Err(reason) = carry_ecn::<F, X>(frame, ecn) {
        return reason.into();
    }
    let (pod, is_v6) = (F::mapped(pod), u8::from(F::IS_V6));
    arrived(
        &tables,
        Arrival {
            pod,
            port: option.port,
            mark: option.mark,
            is_v6,
            identity: identity.get(),
            asked,
        },
    )
}

/// Congestion experienced.
const CE: u8 = 0b11;

/// Carries a congestion mark of the outer header over to the inner one (RFC 6040, section 4.2).
#[inline(always)]
fn carry_ecn<F: Family, X: Frame>(frame: &mut X, outer: u8) -> Result<(), DropReason> {
    if outer != CE {
        return Ok(());
    }
    let ip = frame
        .read::<F::Header>(IP_AT)
        .ok_or(DropReason::Truncated)?;
    let class = F::traffic_class(&ip);
    if class & CE == 0 {
        return Err(DropReason::EcnInvalid);
    }
    frame
        .write(IP_AT, F::with_traffic_class(ip, class | CE))
        .ok_or(DropReason::Truncated)
}
