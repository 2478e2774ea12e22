//! `cargo xtask cluster demo` and `test`: Bowline on a real cluster, and its promises held up to it.
//!
//! ```text
//! mod (start and end) → steps → {world, client, objects, kernel, router} → rig
//!        │                 └──▶ summary
//!        └──▶ {diagnosis, owned}
//! ```

mod child;
mod client;
mod diagnosis;
mod kernel;
mod objects;
mod owned;
mod router;
mod steps;
mod summary;
mod world;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use rig::Cluster;

use self::kernel::Held;
use self::owned::Owned;
use self::summary::Summary;
use self::world::{NAMESPACE, World};
use crate::tally::Tally;
use crate::{image, lab, process, setup};

/// Arguments of both.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Nodes of the cluster, if none is up
    #[arg(long, default_value_t = 3)]
    nodes: u8,
    /// Every measurement in its long form: 20 first bytes, 20 power cuts, ten minutes without the API server, pairs of
    /// events five times, every node drained, drains without the API server
    #[arg(long)]
    long: bool,
    /// Steps to run; installing and removing are always done
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Step>,
    /// Checkout of the previous release, built with `cargo build --release` into its own target directory: it is installed
    /// first, and upgraded under load
    #[arg(long, value_name = "DIR")]
    previous: Option<PathBuf>,
    /// Leave the cluster up, with Bowline in it
    #[arg(long)]
    keep: bool,
    /// How to print the summary
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
    /// Use what a debug build has left, without building
    #[arg(long)]
    debug: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Table,
    Json,
}

/// A part of the story.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Step {
    FirstByte,
    Connections,
    Rollout,
    Local,
    PowerCut,
    AgentRestart,
    ApiAway,
    RolloutPowerCut,
    ScaleUpAgentRestart,
    RolloutCutOff,
    Drain,
    DrainApiAway,
    Routed,
}

/// What is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// What a visitor wants to see.
    Demo,
    /// Everything.
    Test,
}

impl Form {
    fn name(self) -> &'static str {
        match self {
            Self::Demo => "demo",
            Self::Test => "test",
        }
    }

    fn steps(self) -> &'static [Step] {
        use Step::{
            AgentRestart, ApiAway, Connections, Drain, FirstByte, Local, PowerCut, Rollout,
            RolloutCutOff, RolloutPowerCut, Routed, ScaleUpAgentRestart,
        };
        match self {
            Self::Demo => &[FirstByte, Connections, Rollout, PowerCut],
            Self::Test => &[
                FirstByte,
                Connections,
                Rollout,
                Local,
                PowerCut,
                AgentRestart,
                ApiAway,
                RolloutPowerCut,
                ScaleUpAgentRestart,
                RolloutCutOff,
                Drain,
                Routed,
            ],
        }
    }
}

/// How often, and how long.
#[derive(Clone, Copy, Debug)]
struct Amount {
    first_bytes: u32,
    power_cuts: u32,
    api_away: Duration,
    meetings: u32,
    routed_drains: u8,
}

/// Steps of the long form alone.
const LONG_ONLY: &[Step] = &[Step::DrainApiAway];

/// Every node.
const ALL: u8 = u8::MAX;

const SHORT: Amount = Amount {
    first_bytes: 5,
    power_cuts: 5,
    api_away: Duration::from_mins(1),
    meetings: 1,
    routed_drains: 1,
};

const LONG: Amount = Amount {
    first_bytes: 20,
    power_cuts: 20,
    api_away: Duration::from_mins(10),
    meetings: 5,
    routed_drains: ALL,
};

/// The task.
pub(crate) fn run(name: &str, form: Form, args: &Args) -> anyhow::Result<ExitCode> {
    if !args.debug {
        lab::build()?;
    }
    let summary = tell(name, form, args)?;
    match args.output {
        Format::Table => println!("{summary}"),
        Format::Json => println!(
            "{}",
            serde_json::to_string_pretty(&summary).context("write JSON")?
        ),
    }
    Ok(if summary.all_held() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Everything in its short form, on what a release build has left: a pass or a failure for every promise.
pub(crate) fn test() -> anyhow::Result<Tally> {
    let args = Args {
        nodes: 3,
        long: false,
        only: Vec::new(),
        previous: None,
        keep: false,
        output: Format::Table,
        debug: false,
    };
    let summary = tell(&owned::fresh_name()?, Form::Test, &args)?;
    println!("{summary}");
    Ok(summary.tally())
}

fn tell(name: &str, form: Form, args: &Args) -> anyhow::Result<Summary> {
    let start = Instant::now();
    // Said already; what needs a missing program fails with its name.
    setup::ensure_for_clusters();
    let profile = if args.debug { "debug" } else { "release" };
    let images = image::pack(profile)?;
    let cluster = Cluster::open(name)?;
    let was_up = cluster.is_up();
    let nodes = if was_up {
        cluster.nodes().len() as u8
    } else {
        args.nodes
    };
    let _owned = (!was_up && !args.keep).then(|| Owned::new(name));
    cluster.up(nodes)?;
    let world = World {
        cluster,
        built: process::target_dir()?.join(profile),
        nodes,
        held_before: Held::now()?,
    };
    let mut summary = Summary::new(form.name(), nodes);
    let told = steps(&world, form, args, &images, &mut summary);
    if let Err(error) = told {
        let text = diagnosis::of(&world);
        return Err(error.context(format!("the story ended early\n{text}")));
    }
    if args.keep {
        eprintln!("the cluster stays up: `cargo xtask cluster --name {name} down` ends it");
    }
    summary.seconds = start.elapsed().as_secs_f64();
    Ok(summary)
}

fn steps(
    world: &World,
    form: Form,
    args: &Args,
    images: &image::Images,
    summary: &mut Summary,
) -> anyhow::Result<()> {
    let amount = if args.long { LONG } else { SHORT };
    let was_installed = world.kubectl(&format!("get namespace {NAMESPACE}")).is_ok();
    let here = process::workspace();
    if let Some(previous) = &args.previous {
        let out = process::target_dir()?.join("images/previous");
        let former = image::pack_from(&previous.join("target/release"), &out)?;
        steps::install(world, &former, previous, summary)?;
        steps::upgrade(world, images, summary)?;
    } else {
        steps::install(world, images, &here, summary)?;
    }
    let wanted = if args.only.is_empty() {
        let long = (args.long && form == Form::Test).then_some(LONG_ONLY);
        form.steps()
            .iter()
            .chain(long.into_iter().flatten())
            .copied()
            .collect()
    } else {
        args.only.clone()
    };
    for step in wanted {
        let (failures, start) = (summary.not_held.len(), Instant::now());
        let done = match step {
            Step::FirstByte => steps::first_byte(world, amount.first_bytes, summary),
            Step::Connections => steps::connections(world, summary),
            Step::Rollout => steps::rollout(world, "Cluster", summary),
            Step::Local => steps::rollout(world, "Local", summary),
            Step::PowerCut => steps::power_cuts(world, amount.power_cuts, summary),
            Step::AgentRestart => steps::agent_restart(world, summary),
            Step::ApiAway => steps::api_away(world, amount.api_away, summary),
            Step::RolloutPowerCut => steps::rollout_power_cut(world, amount.meetings, summary),
            Step::ScaleUpAgentRestart => {
                steps::scale_up_agent_restart(world, amount.meetings, summary)
            }
            Step::RolloutCutOff => steps::rollout_cut_off(world, amount.meetings, summary),
            Step::Drain => steps::drain(world, amount.meetings, summary),
            Step::DrainApiAway => steps::without_api_server(world, summary),
            Step::Routed => steps::routed(world, amount.routed_drains.min(world.nodes), summary),
        };
        // The other steps have their own promises to hold.
        if let Err(error) = done {
            summary.note(
                &format!("{step:?} could be shown"),
                false,
                format!("{error:#}"),
            );
        }
        eprintln!("          {step:?}: {} s", start.elapsed().as_secs());
        if summary.not_held.len() > failures {
            eprintln!("{}", diagnosis::of(world));
            // Whatever the step was in, the next one finds a whole cluster.
            world.cluster.up(world.nodes)?;
        }
    }
    if args.keep {
        return Ok(());
    }
    steps::remove(world, summary)?;
    if was_installed {
        return Ok(());
    }
    steps::uninstall(world, summary)
}
