//! Suite `handoff`: an owner's pins told to balancers over the real streams, TLS on both sides, into the maps of real agents.
//!
//! ```text
//! Outbox ─▶ Client ══ TLS over loopback ══▶ Server ─▶ agent's core ─▶ pins in the kernel
//!    ▲───────────────── acknowledgement ◀═══════════════════┘
//! ```
//!
//! A flow counts as handed off when all balancers have acknowledged it: that follows the write to their maps. All of them
//! share this machine's processors, so figures of many pins are those of a crowded node.

mod network;
mod stage;

use std::ops::Range;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::ensure;

use self::network::Network;
use self::stage::{Balancer, Owner};
use crate::pin_dir::PinDir;
use crate::report::{Aim, Row};
use crate::rounds::{Samples, percentile};
use crate::{Length, Outcome};

/// What was promised: changes are collected for 20 ms, and the rest is little.
pub(crate) const AIMS: &[Aim] = &[
    Aim {
        case: "handoff/lag-p99/balancers=3",
        limit: 40.0,
    },
    Aim {
        case: "handoff/drain/entries=1M",
        limit: 5_000.0,
    },
];

/// Balancers that an owner tells.
const BALANCERS: u8 = 3;
/// Flows that are handed off at once, as names of cases have them: those of a node that is drained.
const MANY: [(u32, &str); 3] = [(10_000, "10k"), (100_000, "100k"), (1_000_000, "1M")];
/// How many of these the quick form leaves out: it would spend its time on a million.
const QUICK_WITHOUT: usize = 1;
/// Flows that are handed off one by one come after all others.
const SINGLE: Range<u32> = 1_000_000..1_001_000;
/// Pause between two of them, and how much longer each is than the one before until it begins anew: a flush that collects for
/// 20 ms must not find them all at the same moment.
const PAUSE: Duration = Duration::from_millis(25);
const PAUSE_STEP: Duration = Duration::from_micros(1700);
const PAUSE_STEPS: u32 = 13;
/// How often it is looked whether all have acknowledged: far below what is measured.
const POLL: Duration = Duration::from_micros(100);
/// Longest wait for anything.
const LIMIT: Duration = Duration::from_mins(1);

/// Measures all cases whose name contains `only`.
pub(crate) fn run(length: Length, only: &str) -> anyhow::Result<Outcome> {
    let figures = Network::inside(|network| measure(length, network))?;
    let rows = figures
        .iter()
        .map(|(case, unit, samples)| Row::new(case, unit, samples));
    Ok(Outcome {
        rows: rows.filter(|row| row.case.contains(only)).collect(),
        errors: Vec::new(),
    })
}

/// Case, unit and a figure for each round.
type Figures = Vec<(String, &'static str, Samples)>;

fn measure(length: Length, network: &Network) -> anyhow::Result<Figures> {
    let (single, rounds, many) = match length {
        Length::Quick => (100, 2, &MANY[..MANY.len() - QUICK_WITHOUT]),
        Length::Full => (1000, 5, &MANY[..]),
    };
    let dir = PinDir::make()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let _inside = runtime.enter();
    let owner = Owner::new()?;
    let balancers = (0..BALANCERS).map(|number| Balancer::start(number, &dir, &owner));
    let balancers: Vec<Balancer> = balancers.collect::<anyhow::Result<_>>()?;
    let mut bench = Bench {
        network,
        owner,
        figures: Vec::new(),
    };
    bench.owner.tell(&balancers);
    bench.wait()?;
    bench.one_by_one(single)?;
    let rounds = many
        .iter()
        .flat_map(|entries| std::iter::repeat_n(*entries, rounds));
    for (round, entries) in (1..).zip(rounds) {
        bench.many(entries)?;
        bench.anew(&balancers, entries, round)?;
        bench.owner.unpin(0..entries.0)?;
        bench.wait()?;
    }
    let Bench { owner, figures, .. } = bench;
    owner.end();
    for balancer in balancers {
        balancer.end()?;
    }
    Ok(figures)
}

/// An owner whose balancers listen, and what was found so far.
struct Bench<'a> {
    network: &'a Network,
    owner: Owner,
    figures: Figures,
}

impl Bench<'_> {
    /// Adds the figure of a round.
    fn note(&mut self, what: &str, unit: &'static str, value: f64) {
        let case = format!("handoff/{what}");
        match self.figures.iter_mut().find(|(known, ..)| *known == case) {
            Some((.., samples)) => samples.push(value),
            None => self.figures.push((case, unit, Samples::from([value]))),
        }
    }

    /// How long it takes until all balancers have acknowledged all pins.
    fn wait(&self) -> anyhow::Result<Duration> {
        let start = Instant::now();
        while !self.owner.is_settled() {
            ensure!(
                start.elapsed() < LIMIT,
                "not all is acknowledged after {} s: {}",
                LIMIT.as_secs(),
                self.owner.faults()
            );
            thread::sleep(POLL);
        }
        Ok(start.elapsed())
    }

    /// Flows that are pinned now and then, as deviations are.
    fn one_by_one(&mut self, count: u32) -> anyhow::Result<()> {
        let before = self.network.bytes()?;
        let mut lags = Vec::new();
        let flows = SINGLE.take(count as usize);
        for (number, flow) in (0..).zip(flows.clone()) {
            thread::sleep(PAUSE + PAUSE_STEP * (number % PAUSE_STEPS));
            self.owner.pin(flow..flow + 1)?;
            lags.push(self.wait()?.as_secs_f64() * 1e3);
        }
        let sent = self.network.bytes()? - before;
        for percent in [50, 99] {
            let lag = percentile(lags.clone(), percent);
            self.note(&format!("lag-p{percent}/balancers={BALANCERS}"), "ms", lag);
        }
        self.note("bytes-per-pin/single", "bytes", per_pin(sent, count));
        for flow in flows {
            self.owner.unpin(flow..flow + 1)?;
        }
        self.wait()?;
        Ok(())
    }

    /// All flows of a node that is drained, at once.
    fn many(&mut self, (count, named): (u32, &str)) -> anyhow::Result<()> {
        let before = self.network.bytes()?;
        let start = Instant::now();
        self.owner.pin(0..count)?;
        self.wait()?;
        let took = start.elapsed().as_secs_f64();
        let sent = self.network.bytes()? - before;
        self.note(&format!("drain/entries={named}"), "ms", took * 1e3);
        let rate = f64::from(count) / took;
        self.note(&format!("pins-per-second/entries={named}"), "pins/s", rate);
        self.note(
            &format!("bytes-per-pin/entries={named}"),
            "bytes",
            per_pin(sent, count),
        );
        Ok(())
    }

    /// The owner's agent starts again: a snapshot of everything, and connections before it.
    fn anew(
        &mut self,
        balancers: &[Balancer],
        (_, named): (u32, &str),
        round: u64,
    ) -> anyhow::Result<()> {
        self.owner.restart(round);
        let start = Instant::now();
        self.owner.tell(balancers);
        self.wait()?;
        let took = start.elapsed().as_secs_f64() * 1e3;
        self.note(&format!("snapshot/entries={named}"), "ms", took);
        Ok(())
    }
}

/// Bytes for each pin and balancer.
fn per_pin(bytes: u64, pins: u32) -> f64 {
    let pins = f64::from(pins) * f64::from(BALANCERS);
    f64::from(u32::try_from(bytes).unwrap_or(u32::MAX)) / pins
}
