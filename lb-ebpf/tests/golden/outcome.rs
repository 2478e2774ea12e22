//! What became of a packet and of the tables, in a form that the host and the kernel share.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Debug;
use std::hash::Hash;
use std::net::IpAddr;

use lb_ebpf::abi::{Claim, FirstPod, Flow, FragmentKey, FragmentPorts, HalfOpen, Tuple};
use lb_ebpf::wire::{Addr6, Be32};

use super::packet;

/// What became of one packet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// `pass`, `transmit`, `redirect`, `drop`; at egress always `next`.
    pub(crate) verdict: String,
    /// The packet afterwards; empty for drops.
    pub(crate) output: Vec<u8>,
    /// Counters that went up, and by how much.
    pub(crate) counts: BTreeMap<String, u64>,
    /// Flow state that came (+) and went (-).
    pub(crate) changes: Vec<String>,
}

/// What the packet path writes in one family.
#[derive(Clone, Debug)]
pub(crate) struct Written<A> {
    pub(crate) flows: HashMap<Tuple<A>, Flow<A>>,
    pub(crate) half_open: HashMap<Tuple<A>, HalfOpen<A>>,
    pub(crate) first: HashMap<Tuple<A>, FirstPod<A>>,
    pub(crate) held: HashMap<Tuple<A>, u64>,
    pub(crate) fragments: HashMap<FragmentKey<A>, FragmentPorts<A>>,
}

/// What the packet path writes.
#[derive(Clone, Debug)]
pub(crate) struct State {
    pub(crate) v4: Written<Be32>,
    pub(crate) v6: Written<Addr6>,
    pub(crate) claims: HashMap<Claim, u64>,
    /// Counters by name, those that are zero left out.
    pub(crate) counts: BTreeMap<String, u64>,
}

/// An address to be shown.
pub(crate) trait Address: Copy + Eq + Hash + Debug {
    fn ip(self) -> IpAddr;
}

impl Address for Be32 {
    fn ip(self) -> IpAddr {
        let [a, b, c, d] = self.to_bytes();
        packet::v4(a, b, c, d)
    }
}

impl Address for Addr6 {
    fn ip(self) -> IpAddr {
        IpAddr::V6(self.to_bytes().into())
    }
}

impl State {
    /// The changes to `self`; times from `now_ns` on are called now.
    pub(crate) fn outcome(
        &self,
        before: &Self,
        now_ns: u64,
        verdict: &str,
        output: Vec<u8>,
    ) -> Outcome {
        let (old, new) = (before.lines(now_ns), self.lines(now_ns));
        let gone = old.difference(&new).map(|line| format!("- {line}"));
        let come = new.difference(&old).map(|line| format!("+ {line}"));
        let counts = self
            .counts
            .iter()
            .map(|(name, count)| (name.clone(), count - before.counts.get(name).unwrap_or(&0)))
            .filter(|(_, count)| *count > 0)
            .collect();
        Outcome {
            verdict: verdict.to_string(),
            output: if verdict == "drop" {
                Vec::new()
            } else {
                output
            },
            counts,
            changes: gone.chain(come).collect(),
        }
    }

    fn lines(&self, now_ns: u64) -> BTreeSet<String> {
        let mut lines = self.v4.lines(now_ns);
        lines.extend(self.v6.lines(now_ns));
        lines.extend(self.claims.iter().map(|(claim, seen_ns)| {
            let when = if *seen_ns >= now_ns { "now" } else { "before" };
            let mac = claim.mac.to_bytes().map(|byte| format!("{byte:02x}"));
            let vip = IpAddr::from(claim.addr.to_bytes()).to_canonical();
            format!(
                "claim {vip} on {}: {}, {when}",
                claim.ifindex,
                mac.join(":")
            )
        }));
        lines
    }
}

fn tuple<A: Address>(tuple: &Tuple<A>) -> String {
    let Tuple {
        src,
        dst,
        ports,
        proto,
        ..
    } = tuple;
    let proto = match proto {
        6 => "tcp",
        17 => "udp",
        132 => "sctp",
        _ => "other",
    };
    let (from, to) = (end(*src, ports.src.get()), end(*dst, ports.dst.get()));
    format!("{proto} {from} → {to}")
}

fn end<A: Address>(address: A, port: u16) -> String {
    std::net::SocketAddr::new(address.ip(), port).to_string()
}

impl<A: Address> Written<A> {
    fn lines(&self, now_ns: u64) -> BTreeSet<String> {
        let mut lines = BTreeSet::new();
        for (key, value) in &self.flows {
            let Flow {
                vip,
                vip_port,
                client,
                pod,
                identity,
                flags,
                ..
            } = value;
            lines.insert(format!(
                "flow {}: vip {}, client {client}, pod {pod}, identity {identity:08x}, flags {flags}",
                tuple(key),
                end(*vip, vip_port.get()),
            ));
        }
        for (key, value) in &self.half_open {
            let HalfOpen {
                vip,
                vip_port,
                answers,
                mark,
                identity,
                isn,
                high,
                ..
            } = value;
            lines.insert(format!(
                "half-open {}: vip {}, mark {mark}, identity {identity:08x}, {answers} answers {isn:?} up to {high}",
                tuple(key),
                end(*vip, vip_port.get()),
            ));
        }
        for (key, value) in &self.first {
            let FirstPod {
                pod,
                port,
                identity,
                ..
            } = value;
            let pod = end(*pod, port.get());
            lines.insert(format!(
                "first {}: {pod}, identity {identity:08x}",
                tuple(key)
            ));
        }
        for (key, first_ns) in &self.held {
            let when = if *first_ns >= now_ns { "now" } else { "before" };
            lines.insert(format!("held {}: {when}", tuple(key)));
        }
        for (key, value) in &self.fragments {
            let FragmentKey {
                src,
                dst,
                id,
                proto,
                ..
            } = key;
            let FragmentPorts { ports, vip } = value;
            lines.insert(format!(
                "fragments {proto} {} → {} id {:x}: ports {} → {}, vip {}",
                src.ip(),
                dst.ip(),
                id.get(),
                ports.src.get(),
                ports.dst.get(),
                vip.ip(),
            ));
        }
        lines
    }
}
