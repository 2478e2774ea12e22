//! Suite `packet`: nanoseconds per packet, in the kernel, by `BPF_PROG_TEST_RUN`.
//!
//! A driver program puts each packet in place and tail-calls the program under test (`lb-ebpf/src/bin/driver.rs`); the
//! same driver with a bare program behind it is measured in the same rounds, and its minimum is subtracted from every
//! figure. What remains is the net cost of the program under test. Ratios are to a bare program that is test-run without
//! a driver: kernel's entry, program, loop.
//!
//! Before it is timed, every case is run once for proof: verdict, length, counters.

mod cases;
mod frames;
mod kernel;
mod made;
#[path = "../../../lb-ebpf/src/bin/driver/script.rs"]
mod script;
mod tables;

use std::collections::BTreeMap;

use anyhow::ensure;
use lb_ebpf::abi::Stat;

use self::cases::{Case, Counted, Target, XDP_DROP, XDP_PASS, XDP_TX};
use self::frames::Kind;
use self::kernel::{Done, Driver, Hook, Instance, Run};
use self::script::Script;
use self::tables::{OWNED_FLOWS, Services, Tables};
use crate::report::{Aim, Row};
use crate::rounds::{self, Samples};
use crate::{Length, Outcome};

/// What was promised, on the machine that `README.md` describes.
pub(crate) const AIMS: &[Aim] = &[
    Aim {
        case: "packet/tcp4/flows=1",
        limit: 35.0,
    },
    Aim {
        case: "packet/tcp4/flows=1Mi",
        limit: 40.0,
    },
    Aim {
        case: "packet/syn4",
        limit: 35.0,
    },
    Aim {
        case: "packet/tcp6/flows=1",
        limit: 45.0,
    },
    Aim {
        case: "packet/tcp4-pinned/flows=64Ki",
        limit: 100.0,
    },
    Aim {
        case: "packet/own4/flows=1",
        limit: 100.0,
    },
];

const MANY: Services = Services { count: 10_000 };
const ONE: Services = Services { count: 1 };
/// Packets of a run for proof.
const PROOF: u32 = 1000;
/// Packets that warm caches up before each timed run, at most.
const WARM_UP_MAX: u32 = 1 << 16;

/// How long a round is, and how many there are.
struct Effort {
    rounds: usize,
    repeat: u32,
}

impl Effort {
    fn of(length: Length) -> Self {
        match length {
            Length::Quick => Self {
                rounds: 5,
                repeat: 200_000,
            },
            Length::Full => Self {
                rounds: 15,
                repeat: 1 << 20,
            },
        }
    }
}

/// The kernel's side: the driver and one instance of Bowline for each role.
struct Bench {
    driver: Driver,
    one: Instance,
    many: Instance,
    owner: Instance,
}

/// Measures all cases whose name contains `only`.
pub(crate) fn run(length: Length, only: &str) -> anyhow::Result<Outcome> {
    rounds::pin_to_a_processor()?;
    let mut outcome = Outcome::default();
    let mut bench = Bench::set_up()?;
    let mut all = cases::steps(MANY);
    all.extend(cases::at_the_balancer(MANY));
    match bench.at_the_owner() {
        Ok(cases) => all.extend(cases),
        Err(error) => outcome
            .errors
            .push(format!("packet/own*, relay*, return*: {error:#}")),
    }
    let compared: Vec<&str> = all
        .iter()
        .filter(|case| case.name.contains(only))
        .map(|case| case.beside)
        .collect();
    all.retain(|case| case.name.contains(only) || compared.contains(&case.name.as_str()));
    let mut sound = Vec::new();
    for case in all {
        match bench.prove(&case) {
            Ok(()) => sound.push(case),
            Err(error) => outcome.errors.push(format!("{}: {error:#}", case.name)),
        }
    }
    let timed = bench.measure(&sound, &Effort::of(length))?;
    outcome.rows = timed.rows(&sound);
    Ok(outcome)
}

/// What is measured once for all cases that need it: the driver with a bare program behind it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Harness {
    hook: Hook,
    chunks: u32,
}

impl Harness {
    fn of(case: &Case) -> Self {
        Self {
            hook: case.hook,
            chunks: case.script.chunks,
        }
    }
    fn name(self) -> String {
        let hook = match self.hook {
            Hook::Xdp => "xdp",
            Hook::Tc => "tc",
        };
        format!("packet/floor/driver-{hook}-{}", 64 * self.chunks)
    }
}

const BARE: [(&str, &str, Hook, u32); 4] = [
    ("packet/floor/xdp_pass", "bare_pass", Hook::Xdp, XDP_PASS),
    ("packet/floor/xdp_tx", "bare_tx", Hook::Xdp, XDP_TX),
    ("packet/floor/xdp_drop", "bare_drop", Hook::Xdp, XDP_DROP),
    ("packet/floor/tc", "bare_tc", Hook::Tc, 0),
];

/// All samples, raw.
#[derive(Default)]
struct Timed {
    bare: BTreeMap<&'static str, Samples>,
    harness: BTreeMap<Harness, Samples>,
    cases: BTreeMap<String, Samples>,
}

impl Timed {
    /// Floors first, then the cases with their harness subtracted.
    fn rows(&self, cases: &[Case]) -> Vec<Row> {
        let mut rows: Vec<Row> = BARE
            .iter()
            .filter_map(|(case, ..)| Some(Row::new(case, "ns", self.bare.get(case)?)))
            .collect();
        let harness = self.harness.iter();
        rows.extend(harness.map(|(harness, samples)| Row::new(&harness.name(), "ns", samples)));
        for case in cases {
            let (Some(raw), Some(harness)) = (
                self.cases.get(&case.name),
                self.harness.get(&Harness::of(case)),
            ) else {
                continue;
            };
            let row = Row::new(&case.name, "ns", &raw.less(harness.spread().0));
            rows.push(match rows.iter().find(|row| row.case == case.beside) {
                Some(other) => row.beside(other),
                None => row,
            });
        }
        rows
    }
}

impl Bench {
    /// Loads everything and fills the balancers' tables.
    fn set_up() -> anyhow::Result<Self> {
        let mut bench = Self {
            driver: Driver::load()?,
            one: Instance::load(1)?,
            many: Instance::load(1)?,
            owner: Instance::load(OWNED_FLOWS)?,
        };
        bench.driver.fill_steps(MANY)?;
        Tables::new(&mut bench.one).fill_balancer(ONE)?;
        Tables::new(&mut bench.many).fill_balancer(MANY)?;
        Ok(bench)
    }

    /// Fills the owner's tables, and makes its cases.
    fn at_the_owner(&mut self) -> anyhow::Result<Vec<Case>> {
        let (v4, v6) = (
            self.encapsulated(Kind::Tcp4)?,
            self.encapsulated(Kind::Tcp6)?,
        );
        Tables::new(&mut self.owner).fill_owner(MANY, [v4.pod, v6.pod])?;
        let mut cases = cases::at_the_owner(&v4);
        cases.extend(cases::at_the_owner(&v6));
        Ok(cases)
    }

    /// Puts a target behind the driver.
    fn aim(&mut self, target: Target, hook: Hook) -> anyhow::Result<()> {
        let program = match (target, self.instance(target)) {
            (Target::Step(name), _) => self.driver.program(name)?,
            (_, instance) => instance.program(hook)?,
        };
        match target {
            Target::Tracked => {
                let lru = self.driver.program("lru")?;
                self.driver.set_targets(hook, &[&lru, &program])
            }
            Target::BalancerOne | Target::BalancerMany | Target::Owner | Target::Step(_) => {
                self.driver.set_targets(hook, &[&program])
            }
        }
    }

    fn instance(&self, target: Target) -> &Instance {
        match target {
            Target::BalancerOne => &self.one,
            // Steps touch none of its counters.
            Target::BalancerMany | Target::Tracked | Target::Step(_) => &self.many,
            Target::Owner => &self.owner,
        }
    }

    /// Shows that the case is what its name says: nothing is timed that was not seen to work.
    fn prove(&mut self, case: &Case) -> anyhow::Result<()> {
        let Case {
            hook,
            target,
            packet,
            script,
            expected,
            ..
        } = case;
        self.aim(*target, *hook)?;
        self.driver.set_script(script)?;
        let counted = self.counted(*target)?;
        let run = Run {
            hook: *hook,
            packet,
            repeat: PROOF,
        };
        let Done {
            verdict,
            packet: out,
            ..
        } = self.driver.run(&run)?;
        let now = self.counted(*target)?;
        let moved: Vec<(String, u64)> = now
            .into_iter()
            .zip(counted)
            .map(|((what, now), (_, before))| (what, now - before))
            .filter(|(_, moved)| *moved != 0)
            .collect();
        ensure!(
            verdict == expected.verdict,
            "the verdict is {verdict}, not {}; counted: {moved:?}",
            expected.verdict
        );
        let counted = expected.counted.iter();
        let want: Vec<(String, u64)> = counted
            .map(|counted| (name_of(*counted), u64::from(PROOF)))
            .collect();
        ensure!(moved == want, "counted {moved:?}, not {want:?}");
        let grown = out.len().cast_signed() - packet.len().cast_signed();
        ensure!(
            grown == expected.grows,
            "the packet grew by {grown}, not by {}",
            expected.grows
        );
        Ok(())
    }

    /// Everything that an instance counts, by name.
    fn counted(&self, target: Target) -> anyhow::Result<Vec<(String, u64)>> {
        let instance = self.instance(target);
        let mut counted = vec![(name_of(Counted::Forwarded), instance.forwarded()?)];
        for &stat in Stat::ALL {
            counted.push((name_of(Counted::As(stat)), instance.stat(stat)?));
        }
        let drops = instance.drops()?.into_iter();
        counted.extend(drops.map(|(reason, n)| (format!("dropped: {}", reason.label()), n)));
        Ok(counted)
    }

    /// All cases once, then all of them again.
    fn measure(&mut self, cases: &[Case], effort: &Effort) -> anyhow::Result<Timed> {
        let mut timed = Timed::default();
        // One case stands for all with the same harness.
        let harness: BTreeMap<Harness, &Case> =
            cases.iter().map(|case| (Harness::of(case), case)).collect();
        // Flows that a case has not yet got to stay for its next round.
        let mut counters: BTreeMap<&str, u32> = BTreeMap::new();
        for _ in 0..effort.rounds {
            for (case, program, hook, verdict) in BARE {
                let run = Run {
                    hook,
                    packet: &[0; 64],
                    repeat: effort.repeat,
                };
                let done = self.driver.test_run(program, &run)?;
                ensure!(
                    done.verdict == verdict,
                    "{program} answered {}",
                    done.verdict
                );
                timed.bare.entry(case).or_default().push(done.ns);
            }
            for (harness, case) in &harness {
                let bare = match harness.hook {
                    Hook::Xdp => self.driver.program("bare_pass")?,
                    Hook::Tc => self.driver.program("bare_tc")?,
                };
                self.driver.set_targets(harness.hook, &[&bare])?;
                let ns = self.time(case, effort, 0)?;
                timed.harness.entry(*harness).or_default().push(ns);
            }
            for case in cases {
                self.aim(case.target, case.hook)?;
                let counter = counters.entry(&case.name).or_default();
                let ns = self.time(case, effort, *counter)?;
                *counter = counter.wrapping_add(effort.repeat);
                timed.cases.entry(case.name.clone()).or_default().push(ns);
            }
        }
        Ok(timed)
    }

    /// Nanoseconds per packet of one run, after a shorter one for the caches.
    fn time(&mut self, case: &Case, effort: &Effort, counter: u32) -> anyhow::Result<f64> {
        let Case {
            hook,
            packet,
            script,
            ..
        } = case;
        self.driver.set_script(&Script { counter, ..*script })?;
        let warm_up = (script.flows_mask + 1).clamp(PROOF, WARM_UP_MAX);
        self.driver.run(&Run {
            hook: *hook,
            packet,
            repeat: warm_up,
        })?;
        let done = self.driver.run(&Run {
            hook: *hook,
            packet,
            repeat: effort.repeat,
        })?;
        Ok(done.ns)
    }
}

fn name_of(counted: Counted) -> String {
    match counted {
        Counted::Forwarded => "forwarded".to_owned(),
        Counted::As(stat) => stat.label().to_owned(),
    }
}
