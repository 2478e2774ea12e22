//! `lbctl lab pairs`: two or three events at the same instant, under flows that must outlive them; one meeting after the
//! other, each run in a lab of its own.
//!
//! ```text
//! mod (command line, turns) → play → {flows, run, presence, floor}
//! pure: event, meeting, breaks, report     state: the file of what is done
//! ```

mod breaks;
mod event;
mod flows;
mod meeting;
mod play;
mod report;
mod state;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;

use self::meeting::{Meeting, Selection};
use self::play::Played;
use self::report::Summary;
use self::state::{Finished, Found, State};
use super::cluster::{Cluster, Settings};
use super::run::Run;
use super::voice::Voice;
use super::{Lab, Relay};
use crate::Outcome;
use crate::interrupt::{Interrupted, block_on};
use crate::output::Output;

/// Arguments of `lbctl lab pairs`.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("which").required(true).multiple(true).args(["pairs", "all", "triples", "minutes"]))]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own")]
pub(super) struct Args {
    /// Events that meet, each time as two or three names with commas between them.
    #[arg(value_name = "A,B[,C]")]
    pairs: Vec<Meeting>,
    /// Play every pair.
    #[arg(long, conflicts_with = "pairs")]
    all: bool,
    /// Play the worst pairs with each of agent-restart, suspicion and partition as a third event: a change of the pool that
    /// moves flows, with rehash, balancer-kill or node-crash.
    #[arg(long, conflicts_with = "pairs")]
    triples: bool,
    /// How often to play each, with other moments each time.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000))]
    runs: u32,
    /// Play as many as fit into so many minutes, from one on that the seed names; pairs and triples if nothing is said.
    #[arg(long, value_name = "M", value_parser = clap::value_parser!(u64).range(1..=100_000))]
    minutes: Option<u64>,
    /// Note every one that is done in this file, and leave out those that are noted.
    #[arg(long, value_name = "FILE", conflicts_with = "no_relay")]
    state: Option<PathBuf>,
    /// Do not pass packets of unknown flows on: the control, in which connections must break each time.
    #[arg(long, requires = "pairs")]
    no_relay: bool,
    /// Stop at the first run in which a promise does not hold, and leave its lab up.
    #[arg(long)]
    keep: bool,
    #[command(flatten)]
    lab: Lab,
}

/// What a run takes on a slow machine, until one has been seen that took longer: its lab is made, and removed again.
const RUN_TIME: Duration = Duration::from_secs(40);

/// Plays pairs.
pub(super) fn run(args: &Args, output: Output) -> anyhow::Result<Outcome> {
    let voice = Voice::new();
    let began = Instant::now();
    let mut state = State::open(args.state.clone())?;
    let seed = args.lab.seed.or_else(|| state.seed());
    let seed = seed.unwrap_or_else(|| u64::from(rand::random::<u32>()));
    let meetings = if args.pairs.is_empty() {
        Meeting::rotation(selection(args), seed)
    } else {
        args.pairs.clone()
    };
    let limit = args.minutes.map(Duration::from_mins);
    let mut longest = RUN_TIME * args.runs;
    let todo: Vec<Meeting> = meetings
        .into_iter()
        .filter(|meeting| !state.has(*meeting, seed, args.runs))
        .collect();
    let mut left = todo.len();
    voice.say(&format!("{left} to play; --seed {seed} repeats this"));
    for meeting in todo {
        if limit.is_some_and(|limit| began.elapsed() + longest > limit) {
            voice.say(&format!("{left} are left for another time"));
            break;
        }
        let started = Instant::now();
        let finished = play(args, meeting, seed, voice)?;
        longest = longest.max(started.elapsed());
        left -= 1;
        let stop = args.keep && finished.has_failed();
        state.add(finished)?;
        if stop {
            voice.say(&format!(
                "the lab stays up; `lbctl lab down --name {}` ends it",
                args.lab.name
            ));
            break;
        }
    }
    let relay = if args.no_relay { Relay::Off } else { Relay::On };
    let summary = Summary::of(seed, relay, state.of_seed(seed), left, began.elapsed());
    output.emit(&summary, report::text)?;
    Ok(if summary.not_held.is_empty() {
        Outcome::Well
    } else {
        Outcome::Unwell
    })
}

/// What a selection takes from.
fn selection(args: &Args) -> Selection {
    match (args.all, args.triples) {
        (true, false) => Selection::Pairs,
        (false, true) => Selection::Triples,
        (true, true) | (false, false) => Selection::Both,
    }
}

/// All runs of a meeting. One that can not be played is a result, too: the others are played nevertheless.
fn play(args: &Args, meeting: Meeting, seed: u64, voice: Voice) -> anyhow::Result<Finished> {
    let started = Instant::now();
    let mut finished = Finished::none(meeting, seed);
    for run in 0..args.runs {
        voice.say(&format!("{meeting}, run {} of {}", run + 1, args.runs));
        match once(args, meeting, meeting.seed(seed, run), voice) {
            Ok(played) => finished.add(run, played),
            Err(error) if error.is::<Interrupted>() => return Err(error),
            Err(error) => {
                voice.say(&format!("{meeting} can not be played: {error:#}"));
                finished.error = Some(format!("{error:#}"));
                break;
            }
        }
        let new = finished.breaks.iter().filter(|found| found.run == run);
        for Found { run, found } in new.filter(|_| !args.no_relay) {
            voice.say(&report::sentence(meeting, seed, *run, found));
        }
        if args.keep && finished.has_failed() {
            break;
        }
    }
    finished.seconds = started.elapsed().as_secs_f64();
    Ok(finished)
}

/// One run, in a lab of its own.
fn once(args: &Args, meeting: Meeting, seed: u64, voice: Voice) -> anyhow::Result<Played> {
    let name = &args.lab.name;
    let ledger = super::swept(name, voice)?;
    let settings = Settings {
        controller: super::controller(args.lab.controller.clone())?,
        balancers: event::BALANCERS,
        bird: false,
        no_relay: args.no_relay,
        xdp_mode: args.lab.xdp_mode.clone(),
    };
    let played = block_on(async {
        let mut cluster = Cluster::build(name, settings, ledger)?;
        if meeting.events().any(|event| event == event::Event::Join) {
            cluster.leave_out(event::JOINING)?;
        }
        let start = event::start(meeting.events());
        let run = Run::start(cluster, meeting.to_string(), seed, &start, voice);
        run.await?.play_meeting(meeting).await
    });
    match played {
        Ok((mut cluster, played)) => {
            for what in &played.left {
                voice.say(&format!("{meeting}: {what}"));
            }
            if args.keep && played.has_failed() {
                cluster.ledger().keep()?;
            } else {
                cluster.ledger().sweep().context("remove the lab")?;
            }
            Ok(played)
        }
        Err(error) => {
            // Dropped with the run, and its lock with it.
            let mut ledger = super::ledger::Ledger::open(name)?;
            ledger.sweep().context("remove the lab")?;
            Err(error)
        }
    }
}
