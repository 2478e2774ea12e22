//! The cases on the host: the packet path over plain memory.

use lb_ebpf::abi::{DropReason, Plain, Stat};
use lb_ebpf::back::{self, Covers, Skb};
use lb_ebpf::checksum;
use lb_ebpf::frame::{Buffer, Frame, Packet};
use lb_ebpf::path;
use lb_ebpf::tables::memory::{Memory, PerFamily};
use lb_ebpf::verdict::Action;

use super::cases::{Case, Program};
use super::outcome::{Outcome, State, Written};

/// What the packet path has written into `tables`.
pub(crate) fn state(tables: &Memory) -> State {
    let mut counts = std::collections::BTreeMap::new();
    for (id, count) in tables.services_count.borrow().iter() {
        counts.insert(format!("service {id} packets"), count.packets);
        counts.insert(format!("service {id} bytes"), count.bytes);
    }
    for (id, count) in tables.backends_count.borrow().iter() {
        counts.insert(format!("backend {id} packets"), count.packets);
        counts.insert(format!("backend {id} bytes"), count.bytes);
    }
    for stat in Stat::ALL {
        counts.insert(stat.label().to_string(), tables.stat(*stat));
    }
    for reason in DropReason::ALL {
        counts.insert(format!("drop {}", reason.label()), tables.dropped(*reason));
    }
    counts.retain(|_, count| *count > 0);
    State {
        v4: written(&tables.v4),
        v6: written(&tables.v6),
        claims: tables.claims.borrow().clone(),
        counts,
    }
}

fn written<K, A: Clone>(family: &PerFamily<K, A>) -> Written<A> {
    Written {
        flows: family.flows.borrow().clone(),
        half_open: family.half_open.borrow().clone(),
        first: family.first.borrow().clone(),
        held: family.held.borrow().clone(),
        fragments: family.fragments.borrow().clone(),
    }
}

/// Runs one case; its tables are changed.
pub(crate) fn run(case: &Case) -> Outcome {
    let tables = &case.tables.tables;
    let before = state(tables);
    let packet = Packet::new(&case.input);
    let verdict = match case.program {
        Program::Xdp => verdict(path::run(&mut Buffer(&packet), tables).action()),
        Program::Egress => {
            back::reply(&mut Outgoing(Buffer(&packet)), tables);
            "next"
        }
    };
    state(tables).outcome(&before, tables.now_ns.get(), verdict, packet.bytes())
}

/// The word for a verdict.
pub(crate) fn verdict(action: Action) -> &'static str {
    match action {
        Action::Pass => "pass",
        Action::Transmit => "transmit",
        Action::Redirect(_) => "redirect",
        Action::Drop(_) => "drop",
    }
}

/// A packet at egress whose checksums are complete, and the kernel's helpers for it (`bpf_l4_csum_replace`).
pub(crate) struct Outgoing<'a>(pub Buffer<'a>);

impl Outgoing<'_> {
    fn update(&mut self, at: usize, delta: u64) -> Option<u16> {
        let new = checksum::update(self.0.read::<u16>(at)?, delta);
        self.0.write(at, new)?;
        Some(new)
    }
}

impl Skb for Outgoing<'_> {
    fn read<T: Plain>(&self, at: usize) -> Option<T> {
        self.0.read(at)
    }
    fn write<T: Plain>(&mut self, at: usize, value: T) -> Option<()> {
        self.0.write(at, value)
    }
    fn update_header(&mut self, at: usize, delta: u64) -> Option<()> {
        self.update(at, delta).map(drop)
    }
    fn update_transport(&mut self, at: usize, delta: u64, covers: Covers) -> Option<()> {
        let may_be_none = matches!(covers, Covers::PseudoHeaderUdp | Covers::DataUdp);
        if may_be_none && self.0.read::<u16>(at)? == 0 {
            return Some(());
        }
        if self.update(at, delta)? == 0 && may_be_none {
            self.0.write(at, 0xffff_u16)?;
        }
        Some(())
    }
}
