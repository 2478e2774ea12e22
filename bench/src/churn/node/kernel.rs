//! One node in the kernel: maps of its own, the XDP and TC programs run by `BPF_PROG_TEST_RUN`, and the clock that they
//! read. Loading takes long, so a node is emptied and used again from run to run.

use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use aya::maps::{Array, HashMap, MapData, PerCpuArray, PerCpuValues};
use aya::programs::{Program, TestRun as _, TestRunOptions, TestRunResult};
use aya::{Ebpf, Pod};
use lb_controller::dataplane::bpf::{self, BpfDataplane};
use lb_controller::dataplane::events::Ring;
use lb_controller::dataplane::load::{self, Sizes};
use lb_controller::dataplane::stamp::StampWriter;
use lb_controller::dataplane::{Capacity, Dataplane as _};
use lb_ebpf::abi::{
    Bucket, DropReason, Event, FirstPod, Flow, HalfOpen, Limited, Pin, Stat, Tuple, map,
};
use lb_ebpf::wire::Be32;

use crate::churn::queue::{MS, Nanos};

/// The programs by a clock that is set from here.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("SIMULATED_OBJECT"));

/// Kernel time at the start of a run: 0 means "never" in some maps.
const EPOCH: Nanos = 1_000_000 * MS;
/// The programs' clock moves in steps of this, as the kernel's coarse one does.
const STEP: Nanos = MS;
/// How often an agent says that it lives.
const STAMP_EVERY: Nanos = 100 * MS;

/// Enough for a Service of 100 pods whose table has changed a few times, and two small ones.
const CAPACITY: Capacity = Capacity {
    backends: 4_096,
    rows: 1 << 18,
    regions: 64,
    sets: 4_096,
    slots: 4_096,
    services: 64,
};

/// The longest packet that comes out: outer headers of a relay, and what goes in.
const OUT_MAX: usize = 256;

/// Why a packet is held back.
const HELD_BACK: [DropReason; 2] = [DropReason::HeldBack, DropReason::NotFresh];

/// What XDP says (`linux/bpf.h`), and whether it means to say something else later.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    HeldBack,
    Drop,
    Pass,
    Transmit,
}

/// Counters of a node.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Counts {
    /// Packets passed on to another node.
    pub(crate) relayed: u64,
    /// Packets held back, or dropped since the node was not fresh.
    pub(crate) held_back: u64,
}

/// One node's maps and programs.
pub(crate) struct Kernel {
    pub(crate) dataplane: BpfDataplane,
    object: Ebpf,
    clock: Array<MapData, u64>,
    stamp: StampWriter,
    ring: Ring,
    /// Reports that were taken from it and not read yet.
    unread: Vec<Event>,
    /// What the clock map holds.
    clock_ns: Nanos,
    out: [u8; OUT_MAX],
    /// Counters when this run began.
    before: Counts,
    /// Packets held back so far, in all runs.
    held_back: u64,
}

impl Kernel {
    /// Loads programs and makes maps, pinned below `dir`. `flows` is the size of the flow table.
    pub(crate) fn open(dir: &Path, flows: u32) -> anyhow::Result<Self> {
        let sizes = Sizes {
            capacity: CAPACITY,
            flows,
            ..Sizes::default()
        };
        let (dataplane, programs) = bpf::open_object(OBJECT, dir, &sizes)
            .context("load the simulated programs (this needs root)")?;
        let mut object = programs.into_object();
        let clock = object.take_map("clock").context("no map clock")?;
        Ok(Self {
            clock: Array::try_from(clock)?,
            stamp: dataplane.open_stamp()?,
            ring: dataplane.open_ring()?,
            unread: Vec::new(),
            clock_ns: 0,
            out: [0; OUT_MAX],
            before: Counts::default(),
            held_back: 0,
            dataplane,
            object,
        })
    }

    /// Empties what packets have written, for the next run. What tables have written is the agent's to remove.
    pub(crate) fn empty(&mut self) -> anyhow::Result<()> {
        self.empty_map::<Tuple<Be32>, Flow<Be32>>(map::FLOWS4)?;
        self.empty_map::<Tuple<Be32>, HalfOpen<Be32>>(map::HALF_OPEN4)?;
        self.empty_map::<Tuple<Be32>, FirstPod<Be32>>(map::FIRST4)?;
        self.empty_map::<Tuple<Be32>, u64>(map::HELD4)?;
        self.empty_map::<Tuple<Be32>, Pin>(map::PINS4)?;
        let buckets = self.object.map_mut(map::BUCKETS).context(map::BUCKETS)?;
        let mut buckets: PerCpuArray<_, Bucket> = PerCpuArray::try_from(buckets)?;
        for limited in 0..Limited::COUNT {
            let cpus = aya::util::nr_cpus().map_err(|(_, error)| error)?;
            let zeroes = PerCpuValues::try_from(vec![Bucket::default(); cpus])?;
            buckets.set(limited, zeroes, 0)?;
        }
        while !self.reports().is_empty() {}
        self.stamp.write(0, 0);
        self.before = self.totals()?;
        self.held_back = self.before.held_back;
        Ok(())
    }

    fn empty_map<K: Pod, V: Pod>(&mut self, name: &'static str) -> anyhow::Result<()> {
        let map = self.object.map_mut(name).context(name)?;
        let mut map: HashMap<_, K, V> = HashMap::try_from(map)?;
        let keys = map.keys().collect::<Result<Vec<K>, _>>()?;
        for key in keys {
            map.remove(&key)?;
        }
        Ok(())
    }

    /// Sets the clock.
    pub(crate) fn set_time(&mut self, now: Nanos) -> anyhow::Result<()> {
        let clock_ns = EPOCH + now / STEP * STEP;
        if clock_ns != self.clock_ns {
            self.clock.set(0, clock_ns, 0)?;
            self.clock_ns = clock_ns;
        }
        Ok(())
    }

    /// What an agent that lives has said last: since when the node is fresh, if it is.
    pub(crate) fn stamp(&self, now: Nanos, fresh_since: Option<Nanos>) {
        let stamped = EPOCH + now / STAMP_EVERY * STAMP_EVERY;
        self.stamp
            .write(stamped, fresh_since.map_or(0, |since| EPOCH + since));
    }

    /// The tick it is, as flows note it.
    pub(crate) fn tick(now: Nanos) -> u32 {
        ((EPOCH + now) >> lb_ebpf::abi::TICK_SHIFT) as u32
    }

    /// Whether the programs have reported something that nobody has read.
    pub(crate) fn has_reports(&mut self) -> bool {
        self.unread.append(&mut self.ring.take());
        !self.unread.is_empty()
    }

    /// What the programs have reported since the last time.
    pub(crate) fn reports(&mut self) -> Vec<Event> {
        let mut reports = std::mem::take(&mut self.unread);
        reports.append(&mut self.ring.take());
        reports
    }

    /// A packet from the wire; answers what it has become.
    pub(crate) fn arrive(&mut self, packet: &[u8]) -> anyhow::Result<(Verdict, &[u8])> {
        let (value, len) = self.run(load::XDP, packet)?;
        let verdict = match value {
            1 if self.has_held_back()? => Verdict::HeldBack,
            1 => Verdict::Drop,
            2 => Verdict::Pass,
            3 => Verdict::Transmit,
            other => bail!("the XDP program says {other}"),
        };
        Ok((verdict, &self.out[..len]))
    }

    /// A packet that leaves for the wire.
    pub(crate) fn leave(&mut self, packet: &[u8]) -> anyhow::Result<&[u8]> {
        let (_, len) = self.run(load::EGRESS, packet)?;
        Ok(&self.out[..len])
    }

    fn run(&mut self, name: &str, packet: &[u8]) -> anyhow::Result<(u32, usize)> {
        let options = TestRunOptions {
            data_in: Some(packet),
            data_out: Some(&mut self.out),
            repeat: 1,
            ..TestRunOptions::default()
        };
        let result = match self.object.program(name) {
            Some(Program::Xdp(program)) => program.test_run(options)?,
            Some(Program::SchedClassifier(program)) => program.test_run(options)?,
            Some(_) | None => bail!("no program {name}"),
        };
        let TestRunResult {
            return_value,
            data_size_out,
            ..
        } = result;
        let len = data_size_out as usize;
        ensure!(len <= OUT_MAX, "a packet of {len} bytes came out");
        Ok((return_value, len))
    }

    /// Entries of a hash map: pins at balancers.
    pub(crate) fn pins(&self) -> anyhow::Result<u64> {
        let map = self.object.map(map::PINS4).context(map::PINS4)?;
        let map: HashMap<_, Tuple<Be32>, Pin> = HashMap::try_from(map)?;
        Ok(map.keys().count() as u64)
    }

    /// Whether a packet was held back since the last time. Reads no more counters than it must: in some controls many
    /// packets are dropped.
    fn has_held_back(&mut self) -> anyhow::Result<bool> {
        let drops = self.object.map(map::DROPS).context(map::DROPS)?;
        let drops: PerCpuArray<_, u64> = PerCpuArray::try_from(drops)?;
        let mut held_back = 0;
        for reason in HELD_BACK {
            held_back += drops.get(&(reason as u32), 0)?.iter().sum::<u64>();
        }
        let has = held_back != self.held_back;
        self.held_back = held_back;
        Ok(has)
    }

    /// What was counted since the run began.
    pub(crate) fn counts(&mut self) -> anyhow::Result<Counts> {
        let now = self.totals()?;
        Ok(Counts {
            relayed: now.relayed - self.before.relayed,
            held_back: now.held_back - self.before.held_back,
        })
    }

    fn totals(&mut self) -> anyhow::Result<Counts> {
        let counters = self.dataplane.counters()?;
        let held_back = HELD_BACK.iter();
        Ok(Counts {
            relayed: counters.stats[Stat::Relayed as usize],
            held_back: held_back
                .map(|reason| counters.drops[*reason as usize])
                .sum(),
        })
    }
}
