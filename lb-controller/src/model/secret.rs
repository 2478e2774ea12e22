//! What is derived from the cluster's secrets and from pods' names, the same on every node: keys of the flow hash and
//! identities.

use std::hash::Hasher;

use lb_ebpf::abi::HASH_KEY_WORDS;
use lb_ebpf::wire::Be32;
use siphasher::sip::SipHasher24;

/// Bytes of the secret that the flow hash's keys are derived from.
pub const HASH_SECRET_LEN: usize = 32;

/// The secret carried in every encapsulation (8 bytes), as the maps hold it.
pub type EncapSecret = [Be32; 2];

/// The keys of the flow hash: word `n` is SipHash-2-4 of `n` (one little-endian 64-bit word) under the secret's first
/// half, plus the same under its second half, so that all 32 bytes count.
pub fn hash_key(secret: &[u8; HASH_SECRET_LEN]) -> [u64; HASH_KEY_WORDS] {
    let half = |at: usize| std::array::from_fn::<u8, 16, _>(|n| secret[at + n]);
    let (left, right) = (half(0), half(16));
    std::array::from_fn(|n| {
        let word = |key: &[u8; 16]| {
            let mut hasher = SipHasher24::new_with_key(key);
            hasher.write(&(n as u64).to_le_bytes());
            hasher.finish()
        };
        word(&left).wrapping_add(word(&right))
    })
}

/// The secret of the encapsulation as the maps hold it.
pub fn encap_secret(secret: [u8; 8]) -> EncapSecret {
    let half = |at: usize| Be32::from_bytes(std::array::from_fn(|n| secret[at + n]));
    [half(0), half(4)]
}

/// Identity of a pod and port: the lower 32 bits of SipHash-2-4 under the zero key over the UID, 0xff and the port in
/// network byte order. Never 0, which means "nobody": 0 becomes 1.
///
/// Two pods of one node may collide only if they also had the same address: a lookup compares both.
pub fn identity(uid: &str, port: u16) -> u32 {
    let mut hasher = SipHasher24::new_with_keys(0, 0);
    hasher.write(uid.as_bytes());
    hasher.write(&[0xff]);
    hasher.write(&port.to_be_bytes());
    (hasher.finish() as u32).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_that_every_node_must_agree_on() {
        let ids = [
            identity("", 0),
            identity("0b9f5f0e-6a0c-4b1e-9a65-1f6f3a8f6a10", 8080),
            identity("0b9f5f0e-6a0c-4b1e-9a65-1f6f3a8f6a10", 8081),
        ];
        assert_eq!(ids, [384_513_259, 4_255_445_897, 3_314_800_327]);
    }

    #[test]
    fn keys_that_every_node_must_agree_on() {
        let secret = std::array::from_fn(|n| n as u8);
        let expected = [
            11_815_248_566_900_105_931,
            8_750_967_410_284_050_841,
            1_582_433_501_416_982_543,
            1_856_703_810_725_698_340,
            14_225_017_281_078_494_437,
            12_875_787_611_970_205_183,
            12_534_703_379_384_668_335,
            13_433_020_737_837_316_011,
            3_827_908_875_731_968_828,
            7_995_606_944_440_315_329,
            7_156_432_551_365_494_964,
        ];
        assert_eq!(hash_key(&secret), expected);
    }

    #[test]
    fn every_byte_of_the_secret_counts() {
        let base = hash_key(&[0; HASH_SECRET_LEN]);
        for at in 0..HASH_SECRET_LEN {
            let mut secret = [0; HASH_SECRET_LEN];
            secret[at] = 1;
            let key = hash_key(&secret);
            assert!(key.iter().zip(&base).all(|(a, b)| a != b), "byte {at}");
        }
    }

    #[test]
    fn encapsulation_secret_keeps_its_bytes() {
        let [a, b] = encap_secret([1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!([a.to_bytes(), b.to_bytes()], [[1, 2, 3, 4], [5, 6, 7, 8]]);
    }
}
