//! Switching a link's offloads, as `ethtool -K` does, by generic netlink: no crate does it, and two messages suffice.
//! Must be called inside the link's namespace.
//!
//! ```text
//! GETFAMILY  { NAME: "ethtool" }                                         → FAMILY_ID
//! FEATURES_SET { HEADER { DEV_NAME }, WANTED { BITS { BIT { NAME, VALUE } … } } } → acknowledgement
//! ```

use anyhow::{Context, bail};
use rtnetlink::sys::protocols::NETLINK_GENERIC;
use rtnetlink::sys::{Socket, SocketAddr};

/// An offload by the kernel's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Offload {
    /// Leaving transport checksums to the device. Towards a veth with XDP they must be complete: the program sees bytes,
    /// not the kernel's note that a checksum is still to come.
    TxChecksum,
    /// Joining segments on receipt. A veth that does so, or has an XDP program, takes packets from one queue in their order;
    /// without, they go through the queues of whichever processors sent them, and overtake each other.
    Gro,
}

impl Offload {
    fn name(self) -> &'static str {
        match self {
            Self::TxChecksum => "tx-checksum-ip-generic",
            Self::Gro => "rx-gro",
        }
    }
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Switch {
    /// On.
    On,
    /// Off.
    Off,
}

/// `GENL_ID_CTRL`: the family that knows the numbers of the others.
const CONTROLLER: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
const FEATURES_SET: u8 = 12;
const FEATURES_HEADER: u16 = 1;
const FEATURES_WANTED: u16 = 3;
const HEADER_LINK_NAME: u16 = 2;
const BITSET_BITS: u16 = 3;
const BITSET_BIT: u16 = 1;
const BIT_NAME: u16 = 2;
const BIT_VALUE: u16 = 3;
const NESTED: u16 = 0x8000;
/// `NLM_F_REQUEST | NLM_F_ACK`.
const REQUEST: u16 = 1 | 4;
const NLMSG_ERROR: u16 = 2;
/// Netlink header and generic netlink header.
const HEADERS: usize = 16 + 4;

/// Switches offloads of a link.
pub(crate) fn switch(link: &str, offloads: &[(Offload, Switch)]) -> anyhow::Result<()> {
    let mut socket = Socket::new(NETLINK_GENERIC).context("open generic netlink")?;
    socket.bind_auto().context("bind generic netlink")?;
    socket
        .connect(&SocketAddr::new(0, 0))
        .context("connect generic netlink")?;
    let family = family(&socket)?;

    let mut bits = Vec::new();
    for (offload, to) in offloads {
        let mut bit = attribute(BIT_NAME, &text(offload.name()));
        if *to == Switch::On {
            bit.extend(attribute(BIT_VALUE, &[]));
        }
        bits.extend(attribute(BITSET_BIT | NESTED, &bit));
    }
    let mut body = attribute(
        FEATURES_HEADER | NESTED,
        &attribute(HEADER_LINK_NAME, &text(link)),
    );
    body.extend(attribute(
        FEATURES_WANTED | NESTED,
        &attribute(BITSET_BITS | NESTED, &bits),
    ));
    ask(&socket, &message(family, FEATURES_SET, &body))
        .map(drop)
        .with_context(|| format!("switch offloads of {link}"))
}

/// The number of the family `ethtool`.
fn family(socket: &Socket) -> anyhow::Result<u16> {
    let request = message(
        CONTROLLER,
        GET_FAMILY,
        &attribute(FAMILY_NAME, &text("ethtool")),
    );
    let answer = ask(socket, &request).context("ask for the netlink family ethtool")?;
    let mut rest = answer.get(HEADERS..).unwrap_or_default();
    while let [l0, l1, k0, k1, value @ ..] = rest {
        let length = usize::from(u16::from_ne_bytes([*l0, *l1]));
        if let (FAMILY_ID, [a, b, ..]) = (u16::from_ne_bytes([*k0, *k1]), value) {
            return Ok(u16::from_ne_bytes([*a, *b]));
        }
        rest = rest
            .get(length.next_multiple_of(4).max(4)..)
            .unwrap_or_default();
    }
    bail!("the kernel has no netlink interface for ethtool (CONFIG_ETHTOOL_NETLINK)")
}

/// Sends a request, waits for its acknowledgement, and returns the answer before it, if there was one.
fn ask(socket: &Socket, request: &[u8]) -> anyhow::Result<Vec<u8>> {
    socket.send(request, 0).context("send")?;
    let mut answer = Vec::new();
    loop {
        let (datagram, _) = socket.recv_from_full().context("receive")?;
        let mut rest = datagram.as_slice();
        while let [a, b, c, d, k0, k1, ..] = rest {
            let length = u32::from_ne_bytes([*a, *b, *c, *d]) as usize;
            let one = rest.get(..length).context("a netlink message is cut")?;
            if u16::from_ne_bytes([*k0, *k1]) == NLMSG_ERROR {
                let code = one.get(16..20).and_then(|code| code.try_into().ok());
                return match code
                    .map(i32::from_ne_bytes)
                    .context("a netlink message is cut")?
                {
                    0 => Ok(answer),
                    code => Err(std::io::Error::from_raw_os_error(-code).into()),
                };
            }
            answer = one.to_vec();
            rest = rest
                .get(length.next_multiple_of(4).max(16)..)
                .unwrap_or_default();
        }
    }
}

fn message(family: u16, command: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADERS + body.len());
    bytes.extend(((HEADERS + body.len()) as u32).to_ne_bytes());
    bytes.extend(family.to_ne_bytes());
    bytes.extend(REQUEST.to_ne_bytes());
    bytes.extend([0; 8]); // sequence number and port: one question at a time
    bytes.extend([command, 1, 0, 0]);
    bytes.extend(body);
    bytes
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = 4 + value.len();
    let mut bytes = Vec::with_capacity(length.next_multiple_of(4));
    bytes.extend((length as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(length.next_multiple_of(4), 0);
    bytes
}

/// A string as netlink has them: with a zero at the end.
fn text(value: &str) -> Vec<u8> {
    let mut bytes = value.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_their_length_is_not() {
        assert_eq!(attribute(2, b"ab\0"), [7, 0, 2, 0, b'a', b'b', 0, 0]);
    }
}
