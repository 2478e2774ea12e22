//! `lbctl`: what operators type. One file per command; this one knows only which commands there are and how they end.
//!
//! Exit codes, for every command: see [`Outcome`].

#![forbid(unsafe_code)]

mod lab;
#[allow(dead_code, reason = "the commands that use it land one by one")]
mod output;

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
    /// Admin socket of the agent or manager to ask.
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        default_value = "/run/bowline/agent.sock"
    )]
    #[allow(dead_code, reason = "the commands that use it land one by one")]
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
    /// Build a cluster of network namespaces on this machine, and show that connections survive changes.
    Lab(lab::Args),
    /// What runs inside the lab's pods.
    #[command(hide = true)]
    LabServer(lab::server::Args),
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
    let outcome = match args.command {
        Command::Lab(command) => lab::run(command, output),
        Command::LabServer(command) => lab::server::run(&command),
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
