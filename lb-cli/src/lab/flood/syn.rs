//! First packets of TCP connections that nobody will open, from addresses that nobody has. Pure.

use std::net::{Ipv4Addr, SocketAddrV4};

/// Bytes of a packet: both headers, and the one option that every client sends.
pub(super) const LENGTH: usize = 20 + 24;
/// Addresses that a source is taken from: those for benchmarks (RFC 2544 appendix C.2.2), so that nobody's are in here.
pub(super) const SOURCES: (Ipv4Addr, u8) = (Ipv4Addr::new(198, 18, 0, 0), 15);
/// From one source to the next: odd, so that every address and port has its turn, and scattered over hashes.
const STRIDE: u32 = 0x9e37_79b1;
/// Ports of sources, as a power of two: all but the first 1,024.
const PORT_FIRST: u32 = 1_024;
const PORTS: u32 = 65_536 - PORT_FIRST;

/// Number so-and-so of a flood.
pub(super) fn packet(number: u32, to: SocketAddrV4) -> [u8; LENGTH] {
    let scattered = number.wrapping_mul(STRIDE);
    let (network, prefix) = SOURCES;
    let host = scattered >> prefix;
    let from = Ipv4Addr::from_bits(network.to_bits() | host);
    let port = (PORT_FIRST + scattered % PORTS) as u16;
    let mut packet = [0; LENGTH];
    // Version and length of the header, total length; the kernel fills in identification and checksum (raw(7)).
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&(LENGTH as u16).to_be_bytes());
    packet[8] = 64;
    packet[9] = 6;
    packet[12..16].copy_from_slice(&from.octets());
    packet[16..20].copy_from_slice(&to.ip().octets());
    let tcp = &mut packet[20..];
    tcp[0..2].copy_from_slice(&port.to_be_bytes());
    tcp[2..4].copy_from_slice(&to.port().to_be_bytes());
    tcp[4..8].copy_from_slice(&scattered.to_be_bytes());
    // Six words of header, SYN, a window, and 1,460 bytes as the largest segment.
    tcp[12..16].copy_from_slice(&[6 << 4, 0x02, 0xff, 0xff]);
    tcp[20..24].copy_from_slice(&[2, 4, 0x05, 0xb4]);
    let sum = checksum(from, *to.ip(), tcp);
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// RFC 9293 section 3.1: over the addresses, protocol and length, and the segment.
fn checksum(from: Ipv4Addr, to: Ipv4Addr, segment: &[u8]) -> u16 {
    let pseudo = [from.octets(), to.octets()];
    let words = pseudo.as_flattened().chunks(2).chain(segment.chunks(2));
    let words =
        words.map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)));
    let mut sum = words.sum::<u32>() + 6 + segment.len() as u32;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn to() -> SocketAddrV4 {
        "203.0.113.10:80".parse().unwrap()
    }

    #[test]
    fn a_packet_is_a_syn_with_a_sound_checksum() {
        let packet = packet(7, to());
        let tcp = &packet[20..];
        let from = Ipv4Addr::new(packet[12], packet[13], packet[14], packet[15]);
        assert_eq!(tcp[13], 0x02);
        assert_eq!(tcp[2..4], [0, 80]);
        // The sum over a segment with its checksum is nothing.
        assert_eq!(checksum(from, *to().ip(), tcp), 0);
    }

    #[test]
    fn sources_are_all_different_and_all_nobodys() {
        let sources: BTreeSet<[u8; 6]> = (0..100_000)
            .map(|number| {
                let packet = packet(number, to());
                assert_eq!((packet[12], packet[13] & !1), (198, 18));
                let mut source = [0; 6];
                source[..4].copy_from_slice(&packet[12..16]);
                source[4..].copy_from_slice(&packet[20..22]);
                source
            })
            .collect();
        assert_eq!(sources.len(), 100_000);
    }
}
