//! `lbctl`: what operators type. One file per command; this one knows only which commands there are and how they end.
//!
//! Exit codes, for every command: see [`Outcome`].

#![forbid(unsafe_code)]

mod agent;
mod backends;
mod check;
mod cluster;
mod drain;
mod explain;
mod flows;
mod interrupt;
mod lab;
mod output;
mod overview;
mod services;
mod status;
mod units;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::agent::Agent;
use crate::cluster::Cluster;
use crate::output::{Format, Output};

/// See and try the Bowline load balancer.
#[derive(Debug, Parser)]
#[command(name = "lbctl", version, max_term_width = 100, after_help = EXIT_CODES)]
struct Args {
    /// How to print the answer.
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    output: Format,
    /// Ask the agent behind this admin socket; without it, and without an agent on this machine, a cluster is asked.
    #[arg(long, global = true, value_name = "PATH", conflicts_with_all = ["kubeconfig", "context", "node"])]
    socket: Option<PathBuf>,
    #[command(flatten)]
    cluster: Cluster,
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "Exit codes:
  0  done, and all is well
  1  done, but something is not well: the output says what
  2  the command line is wrong
  3  could not be done: the error says what was tried and what to do
  4  not waited for to its end, and it goes on";

#[derive(Debug, Subcommand)]
enum Command {
    /// A cluster at a glance: nodes, pools, problems. With --node or on a machine with an agent, that agent: readiness,
    /// interfaces, Services by state, problems, map sizes, counters.
    Status,
    /// Services, their VIPs, ports and tables.
    Services,
    /// Pods that tables name, and how they are reached.
    Backends(backends::Args),
    /// Flows whose pod is on this node.
    Flows(flows::Args),
    /// Where a packet would go, and why, by the same code that forwards.
    Explain(explain::Args),
    /// Make a node safe to reboot: its connections are handed off, and nothing is sent there any more. It stays drained until
    /// `undrain`; a drain goes on when this command is interrupted.
    #[command(after_help = drain::EXIT_CODES)]
    Drain(drain::Drain),
    /// Put a drained node to use again.
    #[command(after_help = drain::EXIT_CODES)]
    Undrain(drain::Undrain),
    /// Is this machine fit? Kernel, interfaces, settings.
    Check,
    /// Build a cluster of network namespaces on this machine, and show that connections survive changes.
    Lab(lab::Args),
    /// What runs inside the lab's pods.
    #[command(hide = true)]
    LabServer(lab::server::Args),
    /// What a client of a test on a real cluster does.
    #[command(hide = true)]
    LabClient(lab::client::Args),
}

/// How a command that could be carried out ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// All is well: exit code 0.
    Well,
    /// The answer is there, and something in it is wrong: exit code 1.
    Unwell,
    /// Somebody wanted to wait no longer for what goes on: exit code 4.
    GoesOn,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let output = Output::new(args.output);
    match run(args, output) {
        Ok(Outcome::Well) => ExitCode::SUCCESS,
        Ok(Outcome::Unwell) => ExitCode::from(1),
        Ok(Outcome::GoesOn) => ExitCode::from(4),
        Err(error) => {
            eprintln!("lbctl: {error:#}");
            ExitCode::from(3)
        }
    }
}

fn run(args: Args, output: Output) -> anyhow::Result<Outcome> {
    let Args {
        socket,
        cluster,
        command,
        output: _,
    } = args;
    let asked = || asked(socket.as_deref(), &cluster);
    match command {
        Command::Status if is_about_all(socket.as_deref(), &cluster) => {
            overview::run(&cluster, output)
        }
        Command::Status => status::run(&asked()?, output),
        Command::Services => services::run(&asked()?, output),
        Command::Backends(command) => backends::run(&command, &asked()?, output),
        Command::Flows(command) => flows::run(&command, &asked()?, output),
        Command::Explain(command) => explain::run(&command, &asked()?, output),
        Command::Drain(command) => drain::drain(&command, socket.as_deref(), &cluster, output),
        Command::Undrain(command) => drain::undrain(&command, socket.as_deref(), &cluster, output),
        Command::Check => check::run(&asked()?, output),
        Command::Lab(command) => lab::run(command, output),
        Command::LabServer(command) => lab::server::run(command),
        Command::LabClient(command) => lab::client::run(&command),
    }
}

/// Where to ask.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    /// An agent of this machine, by its socket.
    Machine(PathBuf),
    /// An agent of a cluster.
    Cluster,
}

/// What was named is asked; else the agent of this machine, if there is one; else a cluster.
fn place(socket: Option<&Path>, cluster: &Cluster) -> Place {
    let default = Path::new(lb_controller::admin::SOCKET_DEFAULT);
    match socket {
        Some(socket) => Place::Machine(socket.to_owned()),
        None if cluster.is_named() => Place::Cluster,
        None if default.exists() || !Cluster::may_be_inferred() => {
            Place::Machine(default.to_owned())
        }
        None => Place::Cluster,
    }
}

/// A cluster was asked for, and none of its nodes.
fn is_about_all(socket: Option<&Path>, cluster: &Cluster) -> bool {
    cluster.node().is_none() && place(socket, cluster) == Place::Cluster
}

/// The agent to ask.
fn asked(socket: Option<&Path>, cluster: &Cluster) -> anyhow::Result<Agent> {
    match place(socket, cluster) {
        Place::Machine(socket) => Ok(Agent::Socket(socket)),
        Place::Cluster => {
            let runtime = agent::runtime()?;
            let pod = runtime.block_on(agent::within(agent::ANSWER_LIMIT, cluster.agent()))?;
            Ok(Agent::Pod(Box::new(pod)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn command_line_is_consistent() {
        Args::command().debug_assert();
    }
}
