//! `lbctl lab`: a cluster of network namespaces on one machine, real servers and clients, and the promises held up to it.
//!
//! ```text
//! mod (command line, start and end) → run (+ story, away, flood, counted, pairs) → cluster (+ agents, presence, floor)
//!                                        │                                            └─▶ network → {netns, links, offloads}
//!                                        └─▶ {load, sessions, echo, segments}     inside the client's namespace
//! pure: plan, objects, scenario, ways, spread, summary, report, wire
//! ```
//!
//! Whatever is made on the machine is in the [`ledger`] before it is made, and is removed at the end, at Ctrl-C, by the next
//! `lbctl lab` after a crash, or by `lbctl lab down`.

mod agents;
mod away;
mod bird;
pub(crate) mod client;
mod cluster;
mod counted;
mod drains;
mod echo;
mod flood;
mod floor;
mod ledger;
mod links;
mod load;
mod manifests;
mod netns;
mod network;
mod objects;
mod offloads;
mod pairs;
mod plan;
mod presence;
mod report;
mod run;
mod scenario;
mod segments;
pub(crate) mod server;
mod sessions;
mod spread;
mod story;
mod summary;
mod voice;
mod ways;
mod wire;

use std::path::PathBuf;

use anyhow::{Context, bail, ensure};

use self::cluster::{Cluster, Settings};
use self::ledger::Ledger;
use self::run::{Amount, Run};
use self::scenario::Scenario;
use self::summary::Summary;
use self::voice::Voice;
use crate::Outcome;
use crate::interrupt::block_on;
use crate::output::Output;

/// Arguments of `lbctl lab`.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, after_help = EXIT_CODES)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    common: Common,
    /// Leave the lab up, and print how to poke at it.
    #[arg(long)]
    keep: bool,
    /// Short connections to open.
    #[arg(long, default_value_t = 12_000, value_name = "N")]
    connections: u32,
    /// Megabytes that every transfer moves, each way.
    #[arg(long, default_value_t = 20, value_name = "MB")]
    megabytes: u32,
}

const EXIT_CODES: &str = "Exit codes:
  0  every promise held (with --no-relay: connections broke, as they should)
  1  a promise does not hold: the summary says which
  2  the command line is wrong
  3  the lab could not be run, or was interrupted";

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Run one scenario in a lab of its own: 500 TCP connections and 100 UDP sessions must outlive it.
    Run(RunArgs),
    /// Two or three events at the same instant, under connections that must outlive them.
    Pairs(pairs::Args),
    /// Remove a lab that was kept, or left by a crash.
    Down {
        /// Name of the lab.
        #[arg(long, default_value = "lab", value_parser = lab_name)]
        name: String,
    },
}

#[derive(Debug, clap::Args)]
struct RunArgs {
    /// What happens.
    #[arg(value_enum)]
    scenario: Scenario,
    #[command(flatten)]
    common: Common,
    /// Do not pass packets of unknown flows on: the control, in which connections must break.
    #[arg(long)]
    no_relay: bool,
    /// Leave the lab up, and print how to poke at it.
    #[arg(long)]
    keep: bool,
}

#[derive(Clone, Debug, clap::Args)]
struct Common {
    /// The router learns by BGP where to send packets: BIRD 2 runs on it and beside the agents of balancers.
    #[arg(long)]
    bird: bool,
    #[command(flatten)]
    lab: Lab,
    /// Machines that the router sends packets for VIPs to: two without pods, then nodes.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(2..=5))]
    balancers: u8,
}

/// Which lab, and of what.
#[derive(Clone, Debug, clap::Args)]
struct Lab {
    /// Name of the lab: labs of different names do not meet.
    #[arg(long, default_value = "lab", value_parser = lab_name)]
    name: String,
    /// Repeats a run: moments and moves of the router's ECMP follow from it. Random if not given.
    #[arg(long)]
    seed: Option<u64>,
    /// How the agents attach XDP.
    #[arg(long, default_value = "auto", value_parser = ["auto", "native", "generic"])]
    xdp_mode: String,
    /// The program with manager and agent; beside lbctl if not given.
    #[arg(long, value_name = "PATH")]
    controller: Option<PathBuf>,
}

/// Namespaces are `bowline-<name>-<machine>`, so the name must be short and plain.
fn lab_name(text: &str) -> Result<String, String> {
    let plain = text
        .chars()
        .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    if plain && (1..=20).contains(&text.len()) {
        Ok(text.to_owned())
    } else {
        Err("a name is 1 to 20 small letters, digits and dashes".to_owned())
    }
}

/// Runs the lab.
pub(crate) fn run(args: Args, output: Output) -> anyhow::Result<Outcome> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the lab makes network namespaces: run it as root"
    );
    server::raise_file_limit();
    let Args {
        command,
        common,
        keep,
        connections,
        megabytes,
    } = args;
    match command {
        None => {
            let amount = Amount {
                connections,
                transfer_bytes: u64::from(megabytes) * 1_000_000,
            };
            execute(
                &common,
                What::Demonstration(amount),
                Relay::On,
                keep,
                output,
            )
        }
        Some(Command::Run(RunArgs {
            scenario,
            common,
            no_relay,
            keep,
        })) => {
            ensure!(
                !(no_relay && scenario.is_about_agents()),
                "--no-relay is the control of scenarios about pods; {} needs no relay",
                scenario.name()
            );
            let relay = if no_relay { Relay::Off } else { Relay::On };
            execute(&common, What::Scenario(scenario), relay, keep, output)
        }
        Some(Command::Pairs(args)) => pairs::run(&args, output),
        Some(Command::Down { name }) => down(&name),
    }
}

/// What a run shows.
#[derive(Clone, Copy, Debug)]
enum What {
    Demonstration(Amount),
    Scenario(Scenario),
}

/// Whether packets of unknown flows are passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Relay {
    On,
    Off,
}

fn down(name: &str) -> anyhow::Result<Outcome> {
    let mut ledger = Ledger::open(name)?;
    if ledger.is_empty() {
        eprintln!("there is no lab `{name}`");
    } else {
        ledger.sweep().context("remove the lab")?;
        eprintln!("the lab `{name}` is gone");
    }
    Ok(Outcome::Well)
}

fn execute(
    common: &Common,
    what: What,
    relay: Relay,
    keep: bool,
    output: Output,
) -> anyhow::Result<Outcome> {
    let voice = Voice::new();
    let ledger = swept(&common.lab.name, voice)?;
    let settings = Settings {
        controller: controller(common.lab.controller.clone())?,
        balancers: common.balancers,
        bird: common.bird,
        no_relay: relay == Relay::Off,
        xdp_mode: common.lab.xdp_mode.clone(),
    };
    let result = block_on(go(&common.lab, settings, what, voice, ledger));
    end(result, &common.lab.name, keep, voice, output)
}

/// The ledger of a lab in which nothing is left of an earlier run.
fn swept(name: &str, voice: Voice) -> anyhow::Result<Ledger> {
    let mut ledger = Ledger::open(name)?;
    if !ledger.is_empty() {
        if ledger.is_kept() {
            bail!("the lab `{name}` is up: `lbctl lab down --name {name}` ends it");
        }
        voice.say("removing what an earlier run left behind");
        ledger
            .sweep()
            .context("remove what an earlier run left behind")?;
    }
    Ok(ledger)
}

async fn go(
    lab: &Lab,
    settings: Settings,
    what: What,
    voice: Voice,
    ledger: Ledger,
) -> anyhow::Result<(Cluster, Summary)> {
    let seed = lab.seed.unwrap_or_else(rand::random);
    voice.say("building the network: client, router, two balancers, three nodes");
    let cluster = Cluster::build(&lab.name, settings, ledger)?;
    match what {
        What::Demonstration(amount) => {
            let start = scenario::Start {
                first: vec![6],
                next: 0,
            };
            let run = Run::start(cluster, "demonstration".to_owned(), seed, &start, voice);
            run.await?.demonstrate(amount).await
        }
        What::Scenario(scenario) => {
            let start = scenario.start();
            let run = Run::start(cluster, scenario.name(), seed, &start, voice);
            run.await?.play(scenario).await
        }
    }
}

/// Removes the lab or keeps it, and prints the summary.
fn end(
    result: anyhow::Result<(Cluster, Summary)>,
    name: &str,
    keep: bool,
    voice: Voice,
    output: Output,
) -> anyhow::Result<Outcome> {
    match result {
        Ok((mut cluster, summary)) => {
            if keep {
                cluster.ledger().keep()?;
                eprintln!("{}", how_to_poke(&cluster, name));
            } else {
                voice.say("removing the lab");
                cluster.ledger().sweep().context("remove the lab")?;
            }
            output.emit(&summary, report::text)?;
            let held = summary.not_held.is_empty();
            Ok(if held { Outcome::Well } else { Outcome::Unwell })
        }
        Err(error) => {
            // The ledger was dropped with the run, and its lock with it.
            let mut ledger = Ledger::open(name)?;
            if keep {
                ledger.keep()?;
                voice.say(&format!(
                    "the lab stays up; `lbctl lab down --name {name}` ends it"
                ));
            } else {
                voice.say("removing the lab");
                ledger.sweep().context("remove the lab")?;
            }
            Err(error)
        }
    }
}

fn controller(given: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    let path = match given {
        Some(path) => path,
        None => std::env::current_exe()
            .context("find the path of lbctl")?
            .with_file_name("lb-controller"),
    };
    ensure!(
        path.is_file(),
        "there is no {}: build it (`cargo build --release`), or name it with --controller",
        path.display()
    );
    path.canonicalize()
        .with_context(|| format!("find {}", path.display()))
}

fn how_to_poke(cluster: &Cluster, name: &str) -> String {
    let lbctl = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("lbctl"));
    let lbctl = lbctl.display();
    let inside = |machine: &str| format!("nsenter --net=/run/netns/bowline-{name}-{machine}");
    let (client, router) = (inside("client"), inside("router"));
    let vips = cluster.vips("web");
    let mut lines = vec!["The lab stays up. Some things to try:".to_owned()];
    for vip in &vips {
        lines.push(format!("  {client} ping -c 3 {vip}"));
        let host = if vip.is_ipv6() {
            format!("[{vip}]")
        } else {
            vip.to_string()
        };
        lines.push(format!("  {client} curl -g http://{host}/"));
    }
    lines.push(format!(
        "  {router} tcpdump -ni lb-1      # what lb-1 gets, and what it sends on in Geneve"
    ));
    lines.push(format!(
        "  {} tcpdump -ni pod-1     # what a pod gets: the client's own address",
        inside("node-1")
    ));
    for machine in ["lb-1", "node-1"] {
        lines.push(format!(
            "  {lbctl} --socket {} status",
            cluster.socket(machine).display()
        ));
    }
    lines.push(format!(
        "  {lbctl} --socket {} flows",
        cluster.socket("node-1").display()
    ));
    lines.push(format!(
        "  edit the objects in {}; logs are in {}",
        cluster.manifests().display(),
        cluster.logs().display()
    ));
    lines.push(format!("  {lbctl} lab down --name {name}      # ends it"));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_labs_are_plain() {
        assert!(lab_name("lab-2").is_ok());
        assert!(lab_name("Lab").is_err());
        assert!(lab_name("../etc").is_err());
        assert!(lab_name("").is_err());
    }
}
