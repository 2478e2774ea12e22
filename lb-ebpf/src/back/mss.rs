//! The MSS option of SYN-ACKs.

use super::{Covers, Skb};
use crate::checksum;
use crate::wire::Tcp;

/// Kinds of TCP options (RFC 9293, section 3.1).
mod option {
    pub(super) const END: u8 = 0;
    pub(super) const NO_OP: u8 = 1;
    pub(super) const MSS: u8 = 2;
}

/// Most options that are looked through for the MSS. Systems put it first; 40 bytes hold no more than this of any use.
const OPTIONS_MAX: usize = 8;

/// Lowers the MSS option of a SYN-ACK (RFC 9293, section 3.7.1), so that the client's segments fit with outer headers.
/// `None`: nothing to lower.
#[inline(never)]
pub(super) fn clamp<S: Skb>(skb: &mut S, tcp_at: usize, limit: u16) -> Option<()> {
    let end = tcp_at + usize::from(skb.load::<u8>(tcp_at + 12)? >> 4) * 4;
    let mut at = tcp_at + size_of::<Tcp>();
    let mut i = 0;
    while i < OPTIONS_MAX {
        i += 1;
        if at + 4 > end {
            return None;
        }
        let [kind, len] = skb.load::<[u8; 2]>(at)?;
        match kind {
            option::END => return None,
            option::NO_OP => at += 1,
            option::MSS => {
                let old = skb.load::<[u8; 2]>(at + 2)?;
                if limit == 0 || u16::from_be_bytes(old) <= limit {
                    return None;
                }
                skb.write(at + 2, limit.to_be_bytes())?;
                // The checksum adds words at even offsets of the segment: an option at an odd one is summed swapped.
                let (old, new) = (
                    word_at(at - tcp_at, old),
                    word_at(at - tcp_at, limit.to_be_bytes()),
                );
                return skb.update_transport(tcp_at + 16, checksum::delta(old, new), Covers::Data);
            }
            _ if len < 2 => return None,
            _ => at += usize::from(len),
        }
    }
    None
}

#[inline(always)]
fn word_at(offset: usize, bytes: [u8; 2]) -> u32 {
    let word = u16::from_ne_bytes(bytes);
    u32::from(if offset.is_multiple_of(2) {
        word
    } else {
        word.swap_bytes()
    })
}
