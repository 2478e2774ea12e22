//! The cases of the suite: which packets go to which program, and what must become of them.

mod owner;

pub(super) use owner::{Encapsulated, at_the_owner};

use lb_ebpf::abi::Stat;

use super::frames::{
    BALANCER, CLIENT_PORT, Clients, Ends, FIRST, Kind, MIDDLE, SERVICE_PORT, frame, vip4, vip6,
};
use super::kernel::Hook;
use super::script::{CHUNK, Field, HEAD_MAX, Script};
use super::tables::{PINNED_FLOWS, PORT_BITS, Services};

/// What the driver calls.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Target {
    /// Bowline with one Service.
    BalancerOne,
    /// Bowline with all Services.
    BalancerMany,
    /// The same behind a connection table.
    Tracked,
    /// Bowline on the node that owns the flows.
    Owner,
    /// A program that does one step only.
    Step(&'static str),
}

/// Where a packet is counted.
#[derive(Clone, Copy)]
pub(super) enum Counted {
    /// As a packet of a service and of a backend, by the balancer.
    Forwarded,
    /// As an event.
    As(Stat),
}

/// What must become of every packet, or the row is an error.
#[derive(Clone)]
pub(super) struct Expected {
    /// The program's answer.
    pub(super) verdict: u32,
    /// What each packet is counted as, and nothing else.
    pub(super) counted: Vec<Counted>,
    /// How much longer (or shorter) the packet becomes.
    pub(super) grows: isize,
}

/// One row to be.
pub(super) struct Case {
    pub(super) name: String,
    pub(super) hook: Hook,
    pub(super) target: Target,
    pub(super) packet: Vec<u8>,
    pub(super) script: Script,
    pub(super) expected: Expected,
    /// The case, or the bare program, that the ratio is to: one that comes before.
    pub(super) beside: &'static str,
}

pub(super) const XDP_DROP: u32 = 1;
pub(super) const XDP_PASS: u32 = 2;
pub(super) const XDP_TX: u32 = 3;
/// Bytes in front of a client's packet, without those that Ethernet takes anyway.
const OUTER_V4: usize = 60;
const OUTER_V6: usize = 92;
const FLOWS: [(&str, u32); 3] = [("1", 1), ("64Ki", 1 << 16), ("1Mi", 1 << 20)];

/// Where the fields are that differ between flows.
struct Places {
    /// The last two bytes of the client's address.
    addr: usize,
    /// The client's port.
    port: usize,
    /// The last two bytes of the VIP, if flows are spread over Services.
    vip: Option<usize>,
}

impl Places {
    /// Of a packet whose IP header is at `ip`: the client is its source.
    fn of_request(kind: Kind, ip: usize) -> Self {
        let (addr, port) = if kind.is_v6() { (22, 40) } else { (14, 20) };
        Self {
            addr: ip + addr,
            port: ip + port,
            vip: None,
        }
    }
    /// The client is its destination.
    fn of_reply(kind: Kind) -> Self {
        let (addr, port) = if kind.is_v6() { (38, 42) } else { (18, 22) };
        Self {
            addr: 14 + addr,
            port: 14 + port,
            vip: None,
        }
    }
}

/// A script that sends `packet` with `flows` different clients.
fn script(packet: &[u8], flows: u32, places: &Places) -> Script {
    let chunks = (packet.len() / CHUNK).min(HEAD_MAX / CHUNK);
    let mut head = [0; HEAD_MAX / 8];
    for (to, from) in head.iter_mut().zip(packet.as_chunks::<8>().0) {
        *to = u64::from_ne_bytes(*from);
    }
    let read = |at: usize| u32::from(u16::from_be_bytes([packet[at], packet[at + 1]]));
    let field = |at, base, shift, mask| Field {
        at: at as u32,
        base,
        shift,
        mask,
    };
    let port = field(places.port, u32::from(CLIENT_PORT), 0, (1 << PORT_BITS) - 1);
    Script {
        counter: 0,
        flows_mask: flows - 1,
        length: packet.len() as u32,
        chunks: chunks as u32,
        fields: [
            field(places.addr, read(places.addr), PORT_BITS, 0xffff),
            port,
            places
                .vip
                .map_or(port, |at| field(at, read(at), 0, flows.min(SPREAD) - 1)),
        ],
        head,
    }
}

/// Services that flows are spread over, in the one case where they are: the largest power of two below 10,000.
const SPREAD: u32 = 8192;

/// A frame from a client to Service `n`.
pub(super) fn request(kind: Kind, clients: Clients, n: u32, flags: u8, len: usize) -> Vec<u8> {
    let ends = if kind.is_v6() {
        Ends {
            src: clients.v6(0),
            dst: vip6(n),
            src_port: CLIENT_PORT,
            dst_port: SERVICE_PORT,
        }
    } else {
        Ends::v4(clients.v4(0), CLIENT_PORT, vip4(n), SERVICE_PORT)
    };
    frame(kind, BALANCER, &ends, flags, len)
}

/// Lengths of client frames: the shortest, and such that they and the headers in front fill whole chunks.
fn short(kind: Kind) -> usize {
    if kind.is_v6() { 80 } else { 64 }
}
/// See [`short`].
pub(super) fn whole(kind: Kind) -> usize {
    if kind.is_v6() {
        3 * CHUNK - OUTER_V6
    } else {
        2 * CHUNK - OUTER_V4
    }
}

/// What encapsulation adds.
fn outer(kind: Kind) -> isize {
    if kind.is_v6() { OUTER_V6 } else { OUTER_V4 }.cast_signed()
}

/// All cases at the balancer.
pub(super) fn at_the_balancer(services: Services) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |name: String, target, kind: Kind, n, flags, flows, spread| {
        let packet = request(kind, Clients::Known, n, flags, short(kind));
        let mut places = Places::of_request(kind, 14);
        if spread {
            places.vip = Some(14 + 18);
        }
        cases.push(Case {
            name,
            hook: Hook::Xdp,
            target,
            script: script(&packet, flows, &places),
            packet,
            expected: Expected {
                verdict: XDP_TX,
                counted: vec![Counted::Forwarded],
                grows: outer(kind),
            },
            beside: "packet/floor/xdp_tx",
        });
    };
    let (many, one) = (Target::BalancerMany, Target::BalancerOne);
    let hot = services.hot();
    for (kind, name) in [
        (Kind::Tcp4, "tcp4"),
        (Kind::Udp4, "udp4"),
        (Kind::Tcp6, "tcp6"),
    ] {
        for (label, flows) in FLOWS {
            let case = format!("packet/{name}/flows={label}");
            add(
                format!("{case}/services=1"),
                one,
                kind,
                0,
                MIDDLE,
                flows,
                false,
            );
            add(case, many, kind, hot, MIDDLE, flows, false);
        }
    }
    let max = 1 << 20;
    add("packet/syn4".into(), many, Kind::Tcp4, hot, FIRST, 1, false);
    add(
        "packet/syn4/flows=1Mi".into(),
        many,
        Kind::Tcp4,
        hot,
        FIRST,
        max,
        false,
    );
    add(
        "packet/tcp4-spread/flows=1Mi".into(),
        many,
        Kind::Tcp4,
        0,
        MIDDLE,
        max,
        true,
    );
    for (label, flows) in FLOWS {
        let name = format!("packet/tcp4-tracked/flows={label}");
        add(name, Target::Tracked, Kind::Tcp4, hot, MIDDLE, flows, false);
    }
    cases.extend(with_history(services));
    for (name, kind) in [("packet/pass4", Kind::Tcp4), ("packet/pass6", Kind::Tcp6)] {
        // No Service has this number.
        let packet = request(
            kind,
            Clients::Known,
            services.count + 1,
            MIDDLE,
            short(kind),
        );
        cases.push(Case {
            name: name.into(),
            hook: Hook::Xdp,
            target: many,
            script: script(&packet, 1, &Places::of_request(kind, 14)),
            packet,
            expected: Expected {
                verdict: XDP_PASS,
                counted: Vec::new(),
                grows: 0,
            },
            beside: "packet/floor/xdp_pass",
        });
    }
    cases
}

/// Packets in the middle of flows to Services that have changed: their slots remember older occupants, or they have pins.
/// Then they are of flows that are pinned, spread over all pins, or of others.
fn with_history(services: Services) -> Vec<Case> {
    let case = |name: &str, kind, clients, n, flows, along_pin: bool, beside| {
        let packet = request(kind, clients, n, MIDDLE, short(kind));
        let mut counted = vec![Counted::Forwarded];
        if along_pin {
            counted.push(Counted::As(Stat::AlongPin));
        }
        Case {
            name: name.to_owned(),
            hook: Hook::Xdp,
            target: Target::BalancerMany,
            script: script(&packet, flows, &Places::of_request(kind, 14)),
            packet,
            expected: Expected {
                verdict: XDP_TX,
                counted,
                grows: outer(kind),
            },
            beside,
        }
    };
    let older = case(
        "packet/tcp4-older/flows=1Mi",
        Kind::Tcp4,
        Clients::Known,
        services.hot_older(),
        1 << 20,
        false,
        "packet/tcp4/flows=1Mi",
    );
    let pins = |name, kind, clients, along_pin, beside| {
        let n = services.hot_pins();
        case(name, kind, clients, n, PINNED_FLOWS, along_pin, beside)
    };
    let (pinned, others) = (Clients::Known, Clients::Strangers);
    let clean = "packet/tcp4/flows=64Ki";
    vec![
        older,
        pins(
            "packet/tcp4-pinned/flows=64Ki",
            Kind::Tcp4,
            pinned,
            true,
            clean,
        ),
        pins(
            "packet/tcp4-unpinned/flows=64Ki",
            Kind::Tcp4,
            others,
            false,
            clean,
        ),
        pins(
            "packet/tcp6-pinned/flows=64Ki",
            Kind::Tcp6,
            pinned,
            true,
            "packet/tcp6/flows=64Ki",
        ),
    ]
}

/// Programs of single steps, and whether they make room for headers.
const STEPS: [(&str, &str, bool); 8] = [
    ("packet/step/call", "step_call", false),
    ("packet/step/clock", "step_clock", false),
    ("packet/step/hash-lookup", "step_hash", false),
    ("packet/step/probing-lookup", "step_probing", false),
    ("packet/step/three-arrays", "step_arrays", false),
    ("packet/step/two-counters", "step_counters", false),
    ("packet/step/move-head", "step_move_head", true),
    ("packet/step/move-head-and-copy", "step_headers", true),
];

/// What single steps cost: where the time of the real programs goes.
pub(super) fn steps(services: Services) -> Vec<Case> {
    let packet = request(Kind::Tcp4, Clients::Known, services.hot(), MIDDLE, 64);
    let case = |&(name, program, grows): &(&str, &'static str, bool)| {
        let (verdict, grows, beside) = if grows {
            (XDP_TX, outer(Kind::Tcp4), "packet/floor/xdp_tx")
        } else {
            (XDP_PASS, 0, "packet/floor/xdp_pass")
        };
        Case {
            name: name.to_owned(),
            hook: Hook::Xdp,
            target: Target::Step(program),
            script: script(&packet, 1, &Places::of_request(Kind::Tcp4, 14)),
            packet: packet.clone(),
            expected: Expected {
                verdict,
                counted: Vec::new(),
                grows,
            },
            beside,
        }
    };
    STEPS.iter().map(case).collect()
}
