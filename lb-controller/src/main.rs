//! `lb-controller`: manager and agent of Bowline in one binary. Arguments, logs, signals; everything else is the library.

#![forbid(unsafe_code)]

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand, ValueEnum};
use lb_controller::announce::bgp;
use lb_controller::{agent, api, ask, manager, uninstall, watchdog};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// Manager and agent of Bowline, a layer-4 load balancer.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    /// How logs are written, to standard error.
    #[arg(long, value_enum, default_value_t = LogFormat::Text, global = true)]
    log_format: LogFormat,
    /// Which logs are written: `error`, `warn`, `info`, `debug`, or directives as in `lb_controller=debug`.
    #[arg(long, default_value = "info", env = "BOWLINE_LOG", global = true)]
    log: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

#[derive(Subcommand)]
enum Command {
    /// Assigns slots and writes tables and status.
    Manager(manager::Options),
    /// Programs this node.
    Agent(agent::Options),
    /// Removes all programs and maps of a pin directory: uninstall.
    Detach(uninstall::Options),
    /// Asks the agent on this machine, and prints its answer.
    Admin(lb_controller::ask::Options),
    /// Has routers prefer other nodes while this node's agent gives no sign of life.
    Watchdog(watchdog::Options),
    /// Makes a configuration without sessions for BIRD if there is none, so that it can start before the agent.
    BirdConfig {
        /// Directory of the configuration: the agent's `--bird-directory`.
        #[arg(long, value_name = "DIR")]
        directory: PathBuf,
    },
    /// Loads all programs without attaching them, and prints what the kernel's verifier says.
    Verify,
    /// Prints the definitions of our objects as YAML, as an API server takes them.
    Crds {
        /// Writes a file for each below this directory instead.
        #[arg(long, value_name = "DIR")]
        directory: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    let Arguments {
        log_format,
        log,
        command,
    } = Arguments::parse();
    let outcome = start_logs(log_format, &log).and_then(|()| run(command));
    match outcome {
        Ok(code) => code,
        Err(error) => {
            // One sentence with its causes; this is all that a person sees when we can not start.
            eprintln!("lb-controller: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start_logs(format: LogFormat, directives: &str) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(directives)?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Admin(options) => return block_on(|_| async { Ok(ask::run(options).await) }),
        Command::Manager(options) => block_on(|stop| manager::run(options, stop))?,
        Command::Agent(options) => block_on(|stop| agent::run(options, stop))?,
        Command::Detach(options) => block_on(|stop| uninstall::run(options, stop))?,
        Command::Watchdog(options) => block_on(|stop| watchdog::run(options, stop))?,
        Command::BirdConfig { directory } => bgp::prepare(&directory)
            .with_context(|| format!("{} can not be written", directory.display()))?,
        Command::Verify => agent::verify()?,
        Command::Crds { directory } => crds(directory.as_deref())?,
    }
    Ok(ExitCode::SUCCESS)
}

fn crds(directory: Option<&Path>) -> anyhow::Result<()> {
    for (name, text) in api::crds::files()? {
        match directory {
            Some(directory) => {
                let path = directory.join(name);
                std::fs::write(&path, text).with_context(|| path.display().to_string())?;
            }
            None => write!(std::io::stdout(), "---\n{text}")?,
        }
    }
    Ok(())
}

/// Runs until the future ends; SIGTERM and SIGINT only ask it to.
fn block_on<T, F: Future<Output = anyhow::Result<T>>>(
    future: impl FnOnce(CancellationToken) -> F,
) -> anyhow::Result<T> {
    // Two threads: one may wait for a file while the other answers.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let stop = CancellationToken::new();
    let outcome = runtime.block_on(async {
        let mut terminate =
            tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        let asked = stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => tracing::info!(signal = "SIGTERM", "stopping"),
                _ = tokio::signal::ctrl_c() => tracing::info!(signal = "SIGINT", "stopping"),
            }
            asked.cancel();
        });
        future(stop.clone()).await
    });
    // Whatever still blocks (a reader of a hung file system) does not keep us.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    outcome
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}
