//! What must come out of each case. The changes of flow state are in the files beside ([`super`]).

mod back;
mod balance;
mod icmp;
mod neighbour;
mod owner;
mod pins;
mod policy;
mod relay;
mod sctp;
mod shapes;

use lb_ebpf::abi::{DropReason, Stat};
use lb_ebpf::family::{Family, V4, V6};
use lb_ebpf::wire::{Be16, Ports};

use super::outcome::Outcome;
use super::packet::{Encap, NODE};
use super::scene::{CLIENT_PORT, Net, Pod, Proto, Scene, addr6, be32, mac};

/// All cases, by topic.
pub(crate) fn all() -> Vec<(&'static str, Vec<Case>)> {
    vec![
        ("balance", balance::cases()),
        ("owner", owner::cases()),
        ("relay", relay::cases()),
        ("icmp", icmp::cases()),
        ("shapes", shapes::cases()),
        ("neighbour", neighbour::cases()),
        ("policy", policy::cases()),
        ("back", back::cases()),
        ("sctp", sctp::cases()),
        ("pins", pins::cases()),
    ]
}

/// Which program a packet meets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Program {
    Xdp,
    Egress,
}

/// One packet, the tables that it meets, and what must become of it.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) tables: Scene,
    pub(crate) program: Program,
    pub(crate) input: Vec<u8>,
    verdict: &'static str,
    output: Vec<u8>,
    stats: Vec<Stat>,
    drop: Option<DropReason>,
}

/// A packet from the wire.
pub(crate) fn xdp(name: impl Into<String>, tables: Scene, input: Vec<u8>) -> Case {
    Case {
        name: name.into(),
        tables,
        program: Program::Xdp,
        output: input.clone(),
        input,
        verdict: "pass",
        stats: Vec::new(),
        drop: None,
    }
}

/// A packet on its way out.
pub(crate) fn egress(name: impl Into<String>, tables: Scene, input: Vec<u8>) -> Case {
    Case {
        program: Program::Egress,
        verdict: "next",
        ..xdp(name, tables, input)
    }
}

impl Case {
    /// Passes as `output`. Without any such word a case passes untouched.
    pub(crate) fn becomes(self, output: Vec<u8>) -> Self {
        Self { output, ..self }
    }
    pub(crate) fn transmits(self, output: Vec<u8>) -> Self {
        Self {
            verdict: "transmit",
            output,
            ..self
        }
    }
    pub(crate) fn redirects(self, output: Vec<u8>) -> Self {
        Self {
            verdict: "redirect",
            output,
            ..self
        }
    }
    pub(crate) fn drops(self, reason: DropReason) -> Self {
        Self {
            verdict: "drop",
            output: Vec::new(),
            drop: Some(reason),
            ..self
        }
    }
    /// Each counter that goes up by one.
    pub(crate) fn counts(self, stats: &[Stat]) -> Self {
        Self {
            stats: stats.to_vec(),
            ..self
        }
    }

    /// In what an outcome differs from what must come out.
    pub(crate) fn fault(&self, outcome: &Outcome) -> Option<String> {
        if outcome.verdict != self.verdict {
            return Some(format!(
                "{} instead of {}, {:?}",
                outcome.verdict, self.verdict, outcome.counts
            ));
        }
        if outcome.output != self.output {
            let at = outcome
                .output
                .iter()
                .zip(&self.output)
                .position(|(a, b)| a != b);
            return Some(format!(
                "other bytes, first at {at:?}:\n{:02x?}\ninstead of\n{:02x?}",
                outcome.output, self.output
            ));
        }
        let mut expected: Vec<String> = self
            .stats
            .iter()
            .map(|stat| stat.label().to_string())
            .collect();
        expected.extend(self.drop.map(|reason| format!("drop {}", reason.label())));
        let mut counted: Vec<String> = Vec::new();
        for (name, count) in &outcome.counts {
            if !name.starts_with("service ") && !name.starts_with("backend ") {
                counted.extend((0..*count).map(|_| name.clone()));
            }
        }
        expected.sort();
        (counted != expected).then(|| format!("counted {counted:?} instead of {expected:?}"))
    }
}

/// What this node puts in front of a client's packet: flow hash and traffic class are the packet's.
pub(crate) fn sent(tables: &Scene, pod: Pod, net: Net, outer: Net, proto: Proto) -> Encap {
    let ports = Ports {
        src: Be16::new(CLIENT_PORT),
        dst: Be16::new(proto.port()),
    };
    let key = &tables.tables.config.hash_key;
    let (client, vip, number) = (net.client(), net.vip(), proto.number());
    let hash = match net {
        Net::V4 => V4::hash(key, be32(client), be32(vip), ports, number, 0),
        Net::V6 => V6::hash(key, addr6(client), addr6(vip), ports, number, 0),
    };
    Encap {
        macs: (mac(pod.1), NODE),
        source_port: 0xc000 | hash as u16 & 0x3fff,
        ..pod.sent_over(net, outer, 1)
    }
}
