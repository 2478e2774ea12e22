//! `lbctl`: what operators type. One file per command; this one knows only which commands there are and how they end.
//!
//! Exit codes, for every command: see [`Outcome`].

#![forbid(unsafe_code)]

mod agent;
mod backends;
mod check;
mod explain;
mod flows;
mod lab;
mod output;
mod services;
mod status;
mod units;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::output::{Format, Output};

/// See and try the Bowline load balancer.
#[derive(Debug, Parser)]
#[command(name = "lbctl", version, max_term_width = 100, after_help = EXIT_CODES)]
struct Args {
    /// How to print the answer.
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    output: Format,
    /// Admin socket of the agent to ask.
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        default_value = lb_controller::admin::SOCKET_DEFAULT
    )]
    socket: PathBuf,
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "Exit codes:
  0  done, and all is well
  1  done, but something is not well: the output says what
  2  the command line is wrong
  3  could not be done: the error says what was tried and what to do";

#[derive(Debug, Subcommand)]
enum Command {
    /// The agent at a glance: readiness, interfaces, Services by state, problems, map sizes, counters.
    Status,
    /// Services, their VIPs, ports and tables.
    Services,
    /// Pods that tables name, and how they are reached.
    Backends(backends::Args),
    /// Flows whose pod is on this node.
    Flows(flows::Args),
    /// Where a packet would go, and why, by the same code that forwards.
    Explain(explain::Args),
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
}

fn main() -> ExitCode {
    let args = Args::parse();
    let output = Output::new(args.output);
    let socket = &args.socket;
    let outcome = match args.command {
        Command::Status => status::run(socket, output),
        Command::Services => services::run(socket, output),
        Command::Backends(command) => backends::run(&command, socket, output),
        Command::Flows(command) => flows::run(&command, socket, output),
        Command::Explain(command) => explain::run(&command, socket, output),
        Command::Check => check::run(socket, output),
        Command::Lab(command) => lab::run(command, output),
        Command::LabServer(command) => lab::server::run(command),
        Command::LabClient(command) => lab::client::run(&command),
    };
    match outcome {
        Ok(Outcome::Well) => ExitCode::SUCCESS,
        Ok(Outcome::Unwell) => ExitCode::from(1),
        Err(error) => {
            eprintln!("lbctl: {error:#}");
            ExitCode::from(3)
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
