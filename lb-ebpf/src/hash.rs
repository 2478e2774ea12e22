//! The keyed flow hash.
//!
//! Multilinear hashing (Lemire and Kaser, "Strongly universal string hashing is fast", The Computer Journal 57(11),
//! 2014): `k0 + Σ k(i+1) · w(i) mod 2^64` over the 32-bit words of the tuple, with 64-bit keys from the cluster's secret.
//! Its upper 32 bits are strongly universal: without the keys nobody can choose tuples that fall together better than
//! by chance. Its weakness is that it is linear: somebody who could read many outputs could solve for the keys. What a
//! client can see is only which pod answers, so the sum is finished by two secret-free multiply-xor-shift steps
//! (a bijection of 64 bits) that hide the linear structure of the sum from such a view. This is not a proof against an
//! adaptive attacker with unlimited probes, as SipHash would be; it costs a quarter of it.

use crate::abi::HASH_KEY_WORDS;

/// The keys, from the cluster's `hash` secret (see `lb-controller`).
pub type Key = [u64; HASH_KEY_WORDS];

/// Starts a sum.
#[inline(always)]
pub const fn start(key: &Key) -> u64 {
    key[0]
}

/// Adds word number `at` (0 to `HASH_KEY_WORDS - 2`).
#[inline(always)]
pub const fn add(sum: u64, key: &Key, at: usize, word: u32) -> u64 {
    sum.wrapping_add(key[at + 1].wrapping_mul(word as u64))
}

/// Finishes a sum: the flow hash. Row selection uses the upper 32 bits, outer source ports the lower ones.
#[inline(always)]
pub const fn finish(sum: u64) -> u64 {
    let mut h = sum;
    h ^= h >> 32;
    h = h.wrapping_mul(0xd6e8_feb8_6659_fd93);
    h ^= h >> 32;
    h = h.wrapping_mul(0xd6e8_feb8_6659_fd93);
    h ^ (h >> 32)
}

/// The row of a hash in a table of `size` rows: upper 32 bits × size >> 32, so no division.
#[inline(always)]
pub const fn row(hash: u64, size: u32) -> u32 {
    (((hash >> 32) * size as u64) >> 32) as u32
}

/// The outer UDP source port of a hash, from the dynamic range 49152 to 65535 (RFC 8926, section 3.3).
#[inline(always)]
pub const fn source_port(hash: u64) -> u16 {
    0xc000 | (hash as u16 & 0x3fff)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Key = [1, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31];

    #[test]
    fn vectors_that_every_node_must_agree_on() {
        let h = finish(add(
            add(add(start(&KEY), &KEY, 0, 0x0a00_0001), &KEY, 1, 0xc633_6401),
            &KEY,
            2,
            0x01bb_c001,
        ));
        assert_eq!(h, finish(h_reference()));
        assert_eq!(row(u64::MAX, 65537), 65536);
        assert_eq!(row(0, 65537), 0);
        assert_eq!(source_port(0), 49152);
        assert_eq!(source_port(u64::MAX), 65535);
    }

    fn h_reference() -> u64 {
        1 + 3 * 0x0a00_0001 + 5 * 0xc633_6401 + 7 * 0x01bb_c001
    }
}
