//! Internet checksums: one's complement sums (RFC 1071) and their incremental update (RFC 1624).
//!
//! Sums are over native-order words: the one's complement sum is the same in either order once stored back (RFC 1071,
//! section 2 (B)), so nothing is swapped.

/// Folds a sum to 16 bits.
#[inline(always)]
pub const fn fold(mut sum: u64) -> u16 {
    sum = (sum & 0xffff_ffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// The difference that replacing `old` by `new` makes to a one's complement sum, to be added up and given to [`update`].
#[inline(always)]
pub const fn delta(old: u32, new: u32) -> u64 {
    (!old) as u64 + new as u64
}

/// A checksum after a change: `HC' = ~(~HC + ~m + m')` (RFC 1624, equation 3).
#[inline(always)]
pub const fn update(checksum: u16, delta: u64) -> u16 {
    !fold((!checksum) as u64 + delta)
}

/// The one's complement sum of `bytes` in native 16-bit words; an odd last byte counts as followed by zero.
pub fn sum(bytes: &[u8]) -> u64 {
    let (pairs, rest) = bytes.as_chunks::<2>();
    let sum: u64 = pairs
        .iter()
        .map(|pair| u64::from(u16::from_ne_bytes(*pair)))
        .sum();
    sum + rest
        .first()
        .map_or(0, |last| u64::from(u16::from_ne_bytes([*last, 0])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc_1624_section_4_example() {
        // HC = 0xdd2f, m = 0x5555 -> m' = 0x3285: HC' = 0x0000.
        let updated = update(0xdd2f, delta(0x5555, 0x3285));
        assert_eq!(updated, 0x0000);
    }

    #[test]
    fn update_equals_recomputing() {
        let mut packet =
            *b"\x45\x00\x00\x3c\x1c\x46\x40\x00\x40\x06\x00\x00\xac\x10\x0a\x63\xac\x10\x0a\x0c";
        let before = !fold(sum(&packet));
        let old = u32::from_ne_bytes([packet[16], packet[17], packet[18], packet[19]]);
        let new = u32::from_ne_bytes([10, 1, 2, 3]);
        packet[16..].copy_from_slice(&[10, 1, 2, 3]);
        assert_eq!(update(before, delta(old, new)), !fold(sum(&packet)));
    }
}
