//! Runs scripts under every scheme, on the same kernels one after the other.

use std::fmt::Write as _;
use std::thread;
use std::time::Instant;

use anyhow::ensure;

use super::found::Found;
use super::node::agent::Without;
use super::node::kernel::Kernel;
use super::queue::SECOND;
use super::reduce;
use super::router::Ecmp;
use super::schemes::SchemeName;
use super::schemes::bowline::Bowline;
use super::schemes::plain::{Memory, Plain};
use super::script::{Scale, Script};
use super::segment::FlowId;
use super::world::{Case, Ran, World};
use crate::pin_dir::PinDir;
use crate::rounds;
use crate::{Length, Outcome};

/// Flows of a single or a pair, and of the long script.
const FLOWS: (u32, u32) = (5_000, 1_200_000);
/// The same when quick.
const FLOWS_QUICK: (u32, u32) = (300, 2_000);
/// Threads that load programs: runs themselves need one processor.
const LOADERS: usize = 2;
/// Nodes that join in the course of a script.
const JOINERS: u8 = 2;
/// Nodes have numbers of one byte, and pods of a node too.
const NODES: std::ops::RangeInclusive<u8> = 4..=200;
/// Size of a flow table: the flows that a node may own, and closed ones that are still noted.
const TABLE: std::ops::RangeInclusive<u32> = 8_192..=262_144;

/// What `churn` is asked for.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Options {
    /// Churn: chance begins here; the same seed gives the same run.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Churn: this many seeds, from `--seed` on; rows are over all of them.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
    /// Churn: only the script with this name, such as `rollout+rehash` or `design`.
    #[arg(long, value_name = "NAME")]
    script: Option<String>,
    /// Churn: only this scheme; may be said more than once.
    #[arg(long, value_name = "NAME", value_enum)]
    scheme: Vec<SchemeName>,
    /// Churn: so many times the flows.
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0)]
    scale: f64,
    /// Churn: nodes at the start.
    #[arg(long, value_name = "N", default_value_t = 8)]
    nodes: u8,
    /// Churn: how the router spreads flows.
    #[arg(long, value_enum, default_value_t = Ecmp::Modulo)]
    ecmp: Ecmp,
    /// Churn: only the flow with this number; may be said more than once.
    #[arg(long, value_name = "N")]
    flow: Vec<u32>,
    /// Churn: leave out the change at this place of the script, counted from 0; may be said more than once.
    #[arg(long, value_name = "N")]
    without: Vec<usize>,
    /// Churn: look for fewer flows and changes with which the same scheme still breaks a flow.
    #[arg(long, conflicts_with_all = ["flow", "without"])]
    reduce: bool,
    /// Churn: a flow that Bowline breaks does not fail the run.
    #[arg(long)]
    lenient: bool,
}

impl Options {
    /// Those that are asked for; if none is, all that tell something about a script.
    fn schemes(&self, script: &Script) -> Vec<SchemeName> {
        if !self.scheme.is_empty() {
            return self.scheme.clone();
        }
        let tells =
            |scheme: &SchemeName| *scheme != SchemeName::NoPins || script.must_break_without_pins();
        SchemeName::ALL.into_iter().filter(tells).collect()
    }

    /// The arguments that run a script again as it was.
    fn replay(&self, length: Length, case: Case<'_>) -> String {
        let Case { script, seed, .. } = case;
        let Self {
            seed: _,
            seeds: _,
            script: _,
            scheme: _,
            scale,
            nodes,
            ecmp,
            flow,
            without,
            reduce: _,
            lenient: _,
        } = self;
        let mut words = format!("churn --script {} --seed {seed}", script.name);
        if length == Length::Quick {
            words += " --quick";
        }
        if (*scale - 1.0).abs() > f64::EPSILON {
            let _ = write!(words, " --scale {scale}");
        }
        let _ = write!(words, " --nodes {nodes} --ecmp {}", ecmp.as_str());
        for flow in flow {
            let _ = write!(words, " --flow {flow}");
        }
        for place in without {
            let _ = write!(words, " --without {place}");
        }
        words
    }
}

/// Kernels for all nodes of a run, used again for the next.
pub(super) struct Rig {
    pub(super) kernels: Vec<Kernel>,
    _dir: PinDir,
}

impl Rig {
    /// So many nodes, each with a flow table for its part of `flows`.
    pub(super) fn make(nodes: u8, flows: u32) -> anyhow::Result<Self> {
        let dir = PinDir::make()?;
        let table = (flows / u32::from(nodes)).next_power_of_two();
        let table = table.clamp(*TABLE.start(), *TABLE.end());
        let open = |node: u8| Kernel::open(&dir.path().join(format!("node-{node}")), table);
        let nodes: Vec<u8> = (0..nodes + JOINERS).collect();
        // The kernel checks programs for about a second per node.
        let kernels = thread::scope(|scope| {
            let loaders = nodes.chunks(nodes.len().div_ceil(LOADERS)).map(|nodes| {
                let open = &open;
                scope.spawn(move || nodes.iter().map(|node| open(*node)).collect())
            });
            let loaders: Vec<_> = loaders.collect();
            let kernels = loaders.into_iter().map(|loader| match loader.join() {
                Ok(kernels) => kernels,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            kernels.collect::<anyhow::Result<Vec<Vec<Kernel>>>>()
        })?;
        Ok(Self {
            kernels: kernels.into_iter().flatten().collect(),
            _dir: dir,
        })
    }

    /// Runs a case under a scheme.
    pub(super) fn run(&mut self, scheme: SchemeName, case: Case<'_>) -> anyhow::Result<Ran> {
        let without = match scheme {
            SchemeName::Bowline => Without::Nothing,
            SchemeName::NoRelay => Without::Relays,
            SchemeName::NoPins => Without::Pins,
            SchemeName::Stateless => {
                return World::new(case, &mut Plain::new(Memory::None))?.run();
            }
            SchemeName::PerNode => {
                return World::new(case, &mut Plain::new(Memory::PerNode))?.run();
            }
        };
        let mut bowline = Bowline::new(&mut self.kernels, without, case.seed);
        let ran = World::new(case, &mut bowline)?.run();
        bowline.end()?;
        ran
    }
}

/// Rows of all scripts that are asked for.
pub(crate) fn run(length: Length, only: &str, options: &Options) -> anyhow::Result<Outcome> {
    ensure!(
        NODES.contains(&options.nodes),
        "--nodes {} is not from {} to {}",
        options.nodes,
        NODES.start(),
        NODES.end()
    );
    let scripts = scripts(length, only, options)?;
    let flows = scripts.iter().map(|script| script.flows).max();
    let mut rig = Rig::make(options.nodes, flows.unwrap_or_default())?;
    // Rate limits are counted on each processor by itself.
    rounds::pin_to_a_processor()?;
    let mut found = Found::default();
    let flows: Vec<FlowId> = options.flow.iter().copied().map(FlowId).collect();
    for script in &scripts {
        let schemes = options.schemes(script);
        for seed in (options.seed..).take(options.seeds as usize) {
            let case = Case {
                script,
                seed,
                only: &flows,
            };
            for scheme in schemes.iter().copied() {
                let started = Instant::now();
                let ran = rig.run(scheme, case)?;
                found.note(script, scheme, &ran);
                tell(case, scheme, &ran, started);
                if scheme == SchemeName::Bowline && ran.tally.broken() > 0 {
                    let replay = options.replay(length, case);
                    if options.reduce {
                        let smaller = reduce::reduce(&mut rig, case, &ran)?;
                        eprintln!("{}: {replay}{smaller}", script.name);
                    }
                    if !options.lenient {
                        found.fail(script, &replay);
                    }
                }
            }
        }
    }
    if flows.is_empty() && options.without.is_empty() && options.scheme.is_empty() {
        found.look_for_blindness(&scripts);
    }
    Ok(found.outcome())
}

/// The scripts that are asked for.
fn scripts(length: Length, only: &str, options: &Options) -> anyhow::Result<Vec<Script>> {
    let (flows, design) = match length {
        Length::Quick => FLOWS_QUICK,
        Length::Full => FLOWS,
    };
    let scaled = |flows: u32| times(flows, options.scale);
    let scale = Scale {
        nodes: options.nodes,
        flows: scaled(flows),
        design: scaled(design),
        ecmp: options.ecmp,
    };
    let mut scripts = Script::all(&scale);
    scripts.retain(|script| {
        let asked = options.script.as_ref();
        asked.is_none_or(|name| *name == script.name)
            && (only.is_empty() || format!("churn/{}/", script.name).contains(only))
    });
    ensure!(
        !scripts.is_empty(),
        "no script has this name; `rollout`, `rollout+rehash`, `rollouts` and `design` are some"
    );
    for script in &mut scripts {
        let mut at = 0;
        script.changes.retain(|_| {
            at += 1;
            !options.without.contains(&(at - 1))
        });
    }
    Ok(scripts)
}

/// So many times the flows, at least one.
#[expect(
    clippy::cast_sign_loss,
    reason = "a factor below zero gives no flows, which become one"
)]
fn times(flows: u32, factor: f64) -> u32 {
    ((f64::from(flows) * factor).ceil() as u32).max(1)
}

/// Says what came of a run, for people who wait.
fn tell(case: Case<'_>, scheme: SchemeName, ran: &Ran, started: Instant) {
    let Case { script, seed, .. } = case;
    let seconds = started.elapsed().as_secs_f64();
    let broken = ran.tally.broken() as f64 * 1e6 / (ran.tally.flows().max(1) as f64);
    eprintln!(
        "{:<24} {seed:>3} {:<10} {broken:>8.0} broken per million ({:.1} s): {}",
        script.name,
        scheme.as_str(),
        seconds,
        ran.tally,
    );
    if scheme == SchemeName::Bowline {
        for broken in &ran.tally.told {
            eprintln!(
                "    flow {} at {:.3} s: {:?}, pod {:?}",
                broken.flow.0,
                broken.at as f64 / SECOND as f64,
                broken.how,
                broken.owner,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::unistd::Uid;

    use super::super::world::Leaks;
    use super::*;

    const SCALE: Scale = Scale {
        nodes: 6,
        flows: 120,
        design: 1,
        ecmp: Ecmp::Modulo,
    };

    #[test]
    fn runs_repeat_and_leave_nothing_and_the_controls_break_what_ours_keeps() {
        if !Uid::effective().is_root() {
            eprintln!("skipped: a simulated cluster needs root, to load programs");
            return;
        }
        let scripts = Script::all(&SCALE);
        let mut rig = Rig::make(SCALE.nodes, SCALE.flows).unwrap();
        runs_repeat(&mut rig, case_of(&scripts, "rollouts"));
        // Pins are there while nodes disagree about who is alive, and gone when their flows are.
        let case = case_of(&scripts, "crash+rehash");
        let ran = rig.run(SchemeName::Bowline, case).unwrap();
        assert_eq!(ran.tally.told, []);
        assert!(ran.entries.spread().2 > 0.0);
        assert_eq!(ran.left, Leaks::default());
    }

    fn case_of<'a>(scripts: &'a [Script], name: &str) -> Case<'a> {
        Case {
            script: scripts.iter().find(|script| script.name == name).unwrap(),
            seed: 5,
            only: &[],
        }
    }

    fn runs_repeat(rig: &mut Rig, case: Case<'_>) {
        for scheme in SchemeName::ALL {
            let [first, second] = [0, 1].map(|_| rig.run(scheme, case).unwrap());
            assert_eq!(first.tally, second.tally, "{}", scheme.as_str());
            assert_eq!(first.counts, second.counts, "{}", scheme.as_str());
            assert!(first.tally.flows() >= u64::from(SCALE.flows));
            let broken = first.tally.broken();
            match scheme {
                SchemeName::Bowline => {
                    assert_eq!(first.tally.told, []);
                    assert_eq!(first.left, Leaks::default());
                }
                SchemeName::Stateless
                | SchemeName::PerNode
                | SchemeName::NoRelay
                | SchemeName::NoPins => {
                    assert!(broken > 0, "{}", scheme.as_str());
                }
            }
        }
    }
}
