//! The judge of golden packets has to find what is wrong, or its silence says nothing.

#[path = "support/tshark.rs"]
mod tshark;

use tshark::{assert_clean, problems};

/// Ethernet, IPv4, UDP to port 6081, Geneve with one option of four words, and in it IPv4 and UDP of four bytes; all
/// checksums right, the outer one of UDP zero.
fn geneve() -> Vec<u8> {
    let inner = ipv4(
        17,
        [203, 0, 113, 9],
        [198, 51, 100, 1],
        &udp_of_four_bytes(),
    );
    let mut geneve = vec![
        0x05, 0x40, 0x08, 0x00, // option words, critical, protocol IPv4
        0, 0, 1, 0, // VNI 1
        0xff, 0x42, 0x81, 0x04, // class, critical type, four words
    ];
    geneve.extend([0; 16]);
    geneve.extend(inner);
    let mut udp = Vec::new();
    udp.extend(50_000_u16.to_be_bytes());
    udp.extend(6081_u16.to_be_bytes());
    udp.extend(u16::try_from(8 + geneve.len()).unwrap().to_be_bytes());
    udp.extend([0, 0]);
    udp.extend(geneve);
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x08, 0x00];
    frame.extend(ipv4(17, [10, 0, 0, 1], [10, 0, 0, 2], &udp));
    frame
}

/// 203.0.113.9:1000 → 198.51.100.1:53.
fn udp_of_four_bytes() -> Vec<u8> {
    let pseudo = [203, 0, 113, 9, 198, 51, 100, 1, 0, 17, 0, 12];
    let mut udp = vec![0x03, 0xe8, 0, 53, 0, 12, 0, 0, b'p', b'i', b'n', b'g'];
    let sum = checksum(&[&pseudo[..], &udp[..]].concat());
    udp[6..8].copy_from_slice(&sum);
    udp
}

fn ipv4(protocol: u8, from: [u8; 4], to: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + payload.len()).unwrap().to_be_bytes();
    let mut header = vec![
        0x45, 0, length[0], length[1], 0, 0, 0x40, 0, 64, protocol, 0, 0,
    ];
    header.extend(from);
    header.extend(to);
    let sum = checksum(&header);
    header[10..12].copy_from_slice(&sum);
    header.extend(payload);
    header
}

/// RFC 1071, of an even number of bytes.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    (!u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap()).to_be_bytes()
}

#[test]
fn a_right_packet_in_geneve_is_clean() {
    assert_clean("geneve", &[geneve(), geneve()]);
}

#[test]
fn a_wrong_checksum_inside_geneve_is_found() {
    let mut wrong = geneve();
    *wrong.last_mut().unwrap() ^= 1;
    let Some(found) = problems(&[geneve(), wrong]) else {
        eprintln!("skipped: no tshark on this machine (Debian package tshark)");
        return;
    };
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("packet 2 (eth:ethertype:ip:udp:geneve:ip:udp"));
    assert!(found[0].contains("Bad checksum"), "{found:?}");
}

#[test]
fn a_cut_packet_is_found() {
    let mut cut = geneve();
    cut.truncate(60);
    let Some(found) = problems(&[cut]) else {
        eprintln!("skipped: no tshark on this machine (Debian package tshark)");
        return;
    };
    assert!(!found.is_empty());
}
