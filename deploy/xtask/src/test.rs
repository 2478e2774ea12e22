//! `cargo xtask test`: everything that can be checked on this machine, in steps, and the counts of what was found.

use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::process::{self, cargo};
use crate::tally::{CargoTest, Show, Tally};
use crate::{cluster, lab, pairs, setup, verifier};

/// Building everything on two slow cores takes about 15 minutes.
const BUILD_LIMIT: Duration = Duration::from_mins(40);
/// The longest lab scenario takes about two minutes.
const LAB_LIMIT: Duration = Duration::from_mins(5);
/// The short form of a benchmark takes about one minute.
const BENCH_LIMIT: Duration = Duration::from_mins(5);

/// Arguments of the task.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Leave out the lab, the cluster and the benchmarks; each is counted as skipped
    #[arg(long)]
    quick: bool,
}

/// A part of the run.
struct Step {
    title: &'static str,
    run: fn() -> anyhow::Result<Tally>,
    /// Done with `--quick` too.
    quick: bool,
}

const STEPS: &[Step] = &[
    Step {
        title: "format",
        run: format,
        quick: true,
    },
    Step {
        title: "lints",
        run: lints,
        quick: true,
    },
    Step {
        title: "tests",
        run: tests,
        quick: true,
    },
    Step {
        title: "release build",
        run: build,
        quick: true,
    },
    Step {
        title: "verifier",
        run: verify,
        quick: true,
    },
    Step {
        title: "lab",
        run: labs,
        quick: false,
    },
    Step {
        title: "pairs",
        run: pairs::test,
        quick: false,
    },
    Step {
        title: "cluster",
        run: cluster::test,
        quick: false,
    },
    Step {
        title: "benchmarks",
        run: benchmarks,
        quick: false,
    },
];

/// The task.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if !nix::unistd::geteuid().is_root() {
        anyhow::bail!("the tests make namespaces and load programs into the kernel: run as root");
    }
    let mut total = Tally::default();
    // Said already. What needs a missing program says so in its turn, as a skip or as a failure.
    setup::ensure_for_tests();
    for step in STEPS {
        let start = Instant::now();
        println!("\n== {}", step.title);
        let tally = if args.quick && !step.quick {
            Tally::skip(format!("{}: left out by --quick", step.title))
        } else {
            (step.run)().unwrap_or_else(|error| {
                println!("error: {error:#}");
                Tally::one(false)
            })
        };
        println!(
            "-- {}: {tally} in {} s",
            step.title,
            start.elapsed().as_secs()
        );
        total.add(tally);
    }
    if !total.skips.is_empty() {
        println!("\nskipped:");
        for skip in &total.skips {
            println!("  {skip}");
        }
    }
    println!("\n{total}");
    Ok(if total.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// One program that passes or fails as a whole.
fn whole(command: &mut Command, limit: Duration) -> anyhow::Result<Tally> {
    println!("$ {}", process::show(command));
    let ended = process::lines(command, limit, |line| println!("{line}"))?;
    if !ended.success() {
        println!("failed: {ended}");
    }
    Ok(Tally::one(ended.success()))
}

fn format() -> anyhow::Result<Tally> {
    whole(cargo().args(["fmt", "--all", "--check"]), BUILD_LIMIT)
}

fn lints() -> anyhow::Result<Tally> {
    whole(
        cargo().args([
            "clippy",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ]),
        BUILD_LIMIT,
    )
}

fn tests() -> anyhow::Result<Tally> {
    let mut command = cargo();
    command.args([
        "test",
        "--workspace",
        "--no-fail-fast",
        "--",
        "--show-output",
    ]);
    println!("$ {}", process::show(&command));
    let mut reader = CargoTest::default();
    let ended = process::lines(&mut command, BUILD_LIMIT, |line| {
        if reader.line(line) == Show::Yes {
            println!("{line}");
        }
    })?;
    if !ended.success() {
        println!("failed: {ended}");
    }
    Ok(reader.finish(ended.success()))
}

/// Builds what the steps after it start. Counted there.
fn build() -> anyhow::Result<Tally> {
    let built = whole(
        cargo().args([
            "build",
            "--release",
            "-p",
            "lb-controller",
            "-p",
            "lb-cli",
            "-p",
            "bench",
        ]),
        BUILD_LIMIT,
    )?;
    anyhow::ensure!(built.failed == 0, "the release build failed");
    Ok(Tally::default())
}

fn verify() -> anyhow::Result<Tally> {
    verifier::report()?;
    Ok(Tally::one(true))
}

/// Every scenario is a lab of its own; some are played side by side, since most of the time each waits for its clients.
fn labs() -> anyhow::Result<Tally> {
    let waiting = Mutex::new(LABS.iter());
    let next = || waiting.lock().ok().and_then(|mut waiting| waiting.next());
    let lane = |lane: usize| -> anyhow::Result<Tally> {
        let mut total = Tally::default();
        while let Some(args) = next() {
            let mut lbctl = lab::lbctl()?;
            lbctl.arg("lab").args(*args);
            lbctl.args(["--name", &format!("{LAB_NAME}-{lane}"), "--seed", LAB_SEED]);
            total.add(told_at_once(&mut lbctl, LAB_LIMIT)?);
        }
        Ok(total)
    };
    std::thread::scope(|scope| {
        let lanes: Vec<_> = (0..LANES)
            .map(|number| scope.spawn(move || lane(number)))
            .collect();
        let mut total = Tally::default();
        for lane in lanes {
            let ended = lane.join();
            total.add(ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        }
        Ok(total)
    })
}

/// Like [`whole`], for programs that run beside others: what each says is shown when it has ended.
fn told_at_once(command: &mut Command, limit: Duration) -> anyhow::Result<Tally> {
    let mut said = vec![format!("$ {}", process::show(command))];
    let ended = process::lines(command, limit, |line| said.push(line.to_owned()))?;
    if !ended.success() {
        said.push(format!("failed: {ended}"));
    }
    println!("{}", said.join("\n"));
    Ok(Tally::one(ended.success()))
}

/// Labs that are played side by side: each keeps a third of a processor busy.
const LANES: usize = 3;

/// What names of their labs begin with, so that they do not meet one that somebody keeps.
const LAB_NAME: &str = "test";

/// The same moments in every run, so that a failure is not a matter of luck; `cargo lab` takes others each time.
const LAB_SEED: &str = "1";

/// Arguments of `lbctl lab`, a run each: exit code 0 means that every promise held, or, with `--no-relay`, that the run
/// has seen connections break, as it must.
const LABS: &[&[&str]] = &[
    &[],
    &["run", "rollout"],
    &["run", "rollout-5"],
    &["run", "scale-2-5"],
    &["run", "scale-5-3"],
    &["run", "scale-10-11"],
    &["run", "selector"],
    &["run", "readiness"],
    &["run", "target-port"],
    &["run", "agent-kill"],
    &["run", "agent-restart"],
    &["run", "agent-upgrade"],
    &["run", "drain", "--balancers", "3"],
    &["run", "drain", "--balancers", "3", "--bird"],
    &["run", "drain-faults", "--balancers", "3"],
    &["run", "rollout", "--balancers", "5"],
    &["run", "rollout", "--xdp-mode", "generic"],
    &["run", "rollout", "--no-relay"],
    &["run", "scale-2-5", "--no-relay"],
    &["run", "selector", "--no-relay"],
    &["run", "drain", "--balancers", "3", "--no-relay"],
    &["pairs", "rollout,rehash", "--no-relay"],
];

/// The short form of every suite.
fn benchmarks() -> anyhow::Result<Tally> {
    let mut total = Tally::default();
    for suite in ["packet", "table", "control", "churn", "handoff"] {
        total.add(whole(
            Command::new(lab::built("bench")?).args([suite, "--quick"]),
            BENCH_LIMIT,
        )?);
    }
    Ok(total)
}
