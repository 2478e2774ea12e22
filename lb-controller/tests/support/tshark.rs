//! What an independent program thinks of packets: tshark decodes them, with every checksum verified, Geneve and what is
//! inside included. Included by tests with `#[path = "support/tshark.rs"] mod tshark;`.

use std::io::{ErrorKind, Write};
use std::process::{Command, Stdio};

/// Severities as tshark numbers them: chat 0x200000, note 0x400000, warning 0x600000, error 0x800000.
const WARNING: u32 = 0x0060_0000;

/// Payloads of test packets are arbitrary bytes, to ports that belong to some protocol. Of UDP all but Geneve's and the
/// dynamic ports, from which its outer source port is taken: tshark would take that port's word for what is inside.
const DECODE_AS: [&str; 3] = [
    "udp.port==1-6080,data",
    "udp.port==6082-49151,data",
    "tcp.port==1-65535,data",
];

/// What tshark warns of although nothing is wrong with the packet itself.
const HARMLESS: [&str; 3] = [
    // Said of every reset, and sending one is what some cases are about.
    "Connection reset (RST)",
    // A request alone in its file.
    "No response seen to ICMP request",
    // Of a SYN-ACK that has it on purpose: what follows the end of options is no option.
    "Non-zero header padding",
];

/// Asserts that every packet (with its Ethernet header) decodes without a warning. Without tshark on this machine the
/// test is skipped, and says so.
pub(crate) fn assert_clean<P: AsRef<[u8]>>(name: &str, packets: &[P]) {
    match problems(packets) {
        Some(problems) => assert!(
            problems.is_empty(),
            "{name}: tshark finds fault:\n{}",
            problems.join("\n")
        ),
        None => eprintln!("skipped: no tshark on this machine (Debian package tshark)"),
    }
}

/// A line for each fault, with the number of the packet, from 1. `None`: there is no tshark.
pub(crate) fn problems<P: AsRef<[u8]>>(packets: &[P]) -> Option<Vec<String>> {
    let mut command = Command::new("tshark");
    command.args(["-n", "-r", "-", "-T", "fields", "-E", "separator=/t"]);
    for field in [
        "frame.number",
        "_ws.expert.severity",
        "_ws.expert.message",
        "frame.protocols",
        "ip.checksum.status",
        "icmp.checksum.status",
        "icmpv6.checksum.status",
    ] {
        command.args(["-e", field]);
    }
    for decode in DECODE_AS {
        command.args(["-d", decode]);
    }
    // Messages may hold commas, the default between several values of a field.
    command.args(["-E", "aggregator=|"]);
    for option in [
        "ip.check_checksum:TRUE",
        "tcp.check_checksum:TRUE",
        "udp.check_checksum:TRUE",
        // RFC 6935 and 6936: a zero checksum is right for the outer header of a tunnel over IPv6.
        "udp.ignore_ipv6_zero_checksum:TRUE",
        // Packets are looked at one by one; each may be from the middle of a flow.
        "tcp.analyze_sequence_numbers:FALSE",
    ] {
        command.args(["-o", option]);
    }
    let child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) if error.kind() == ErrorKind::NotFound => return None,
        Err(error) => panic!("starting tshark: {error}"),
    };
    let file = pcap(packets);
    let mut stdin = child.stdin.take().expect("it was asked for");
    let writer = std::thread::spawn(move || stdin.write_all(&file));
    let output = child.wait_with_output().expect("waiting for tshark");
    writer.join().expect("writing").expect("writing to tshark");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "tshark: {errors}");
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(text.lines().count(), packets.len(), "tshark: {errors}");
    Some(text.lines().flat_map(faults).collect())
}

/// The faults in a line of fields.
fn faults(line: &str) -> Vec<String> {
    let fields: Vec<&str> = line.split('\t').collect();
    let [number, severities, messages, protocols, checksums @ ..] = &fields[..] else {
        panic!("tshark gave other fields than it was asked for: {line}");
    };
    // An error quotes the beginning of a packet, whose transport checksum cannot be right when it is cut, and means nothing
    // to whoever gets it: what counts are the checksums of IP and ICMP, each of them 0 when it is wrong.
    let is_error = protocols.contains(":icmp:ip:") || protocols.contains(":icmpv6:ipv6:");
    let is_right = checksums
        .iter()
        .all(|statuses| statuses.split('|').all(|status| status != "0"));
    let is_quoted = |message: &str| is_error && is_right && message.contains("Bad checksum");
    severities
        .split('|')
        .zip(messages.split('|'))
        .filter(|(severity, _)| severity.parse().is_ok_and(|s: u32| s >= WARNING))
        .filter(|(_, message)| !HARMLESS.iter().any(|harmless| message.contains(harmless)))
        .filter(|(_, message)| !is_quoted(message))
        .map(|(_, message)| format!("packet {number} ({protocols}): {message}"))
        .collect()
}

/// Packets as a file that tshark reads (<https://www.tcpdump.org/manpages/pcap-savefile.5.txt>).
fn pcap<P: AsRef<[u8]>>(packets: &[P]) -> Vec<u8> {
    const MAGIC: u32 = 0xa1b2_c3d4;
    const ETHERNET: u32 = 1;
    let mut file = Vec::new();
    file.extend(MAGIC.to_le_bytes());
    file.extend([2, 0, 4, 0]); // version 2.4
    file.extend([0; 8]); // time zone and its accuracy
    file.extend(u32::from(u16::MAX).to_le_bytes()); // longest packet
    file.extend(ETHERNET.to_le_bytes());
    for packet in packets {
        let packet = packet.as_ref();
        let length = u32::try_from(packet.len()).expect("a packet of a test");
        file.extend([0; 8]); // seconds and microseconds
        file.extend(length.to_le_bytes()); // captured
        file.extend(length.to_le_bytes()); // on the wire
        file.extend(packet);
    }
    file
}
