//! `cargo xtask cluster`: a real Kubernetes on this machine, made of namespaces. This file owns the commands; what they
//! do is in the crate `rig`.

mod story;

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use rig::Cluster;

use crate::setup;

/// Arguments of the task.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Name of the cluster; clusters of different names run side by side
    #[arg(long, global = true, default_value = "kube")]
    name: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Boot the control plane, a client and so many nodes, or what of them does not run
    Up {
        /// Number of nodes
        #[arg(default_value_t = 3)]
        nodes: u8,
    },
    /// Remove everything that `up` made
    Down,
    /// Run kubectl as administrator
    Kubectl {
        /// Arguments of kubectl
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Import image archives into every node that runs
    Load {
        /// Archives, as `cargo xtask image` makes them
        #[arg(required = true)]
        archives: Vec<PathBuf>,
    },
    /// Run a command of yours on the network of a machine: fabric, client, node1, …
    Net(On),
    /// Run a command inside a machine: its /var, /run, /sys and processes, too
    Enter(On),
    /// Cut the power of a machine: all its processes die at once, and its network goes
    Kill {
        /// The machine
        machine: String,
    },
    /// Machine, daemon, process id and resident memory of what runs
    Ps,
    /// Install Bowline, apply a Service, and show what becomes of it under load; on a cluster of its own if none is up
    Demo(story::Args),
    /// The same with every promise that needs a real cluster
    Test(story::Args),
}

#[derive(clap::Args)]
struct On {
    /// The machine
    machine: String,
    /// The command
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

pub(crate) use story::test;

/// The task.
pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let Args { name, command } = args;
    match &command {
        Command::Demo(args) => return story::run(&name, story::Form::Demo, args),
        Command::Test(args) => return story::run(&name, story::Form::Test, args),
        _ => {}
    }
    if matches!(command, Command::Up { .. }) {
        // Said already; what needs a missing program fails with its name.
        setup::ensure_for_clusters();
    }
    let cluster = Cluster::open(&name)?;
    match command {
        // Above.
        Command::Demo(_) | Command::Test(_) => {}
        Command::Up { nodes } => {
            let start = Instant::now();
            cluster.up(nodes)?;
            println!(
                "up with {nodes} nodes in {:.1} s; on the network of the fabric: KUBECONFIG={}",
                start.elapsed().as_secs_f64(),
                cluster.kubeconfig()?.display()
            );
        }
        Command::Down => cluster.down()?,
        Command::Kubectl { args } => return become_it(cluster.kubectl()?.args(args)),
        Command::Load { archives } => {
            for archive in archives {
                cluster.load(&archive)?;
            }
        }
        Command::Net(On { machine, command }) => {
            let (program, args) = command.split_first().context("which command?")?;
            let machine = cluster.machine(&machine)?;
            return become_it(machine.on_network(&program.to_string_lossy()).args(args));
        }
        Command::Enter(On { machine, command }) => {
            let (program, args) = command.split_first().context("which command?")?;
            let machine = cluster.machine(&machine)?;
            return become_it(machine.inside(&program.to_string_lossy()).args(args));
        }
        Command::Kill { machine } => cluster.cut_power(&cluster.machine(&machine)?)?,
        Command::Ps => {
            for running in cluster.running() {
                println!(
                    "{:8} {:24} {:>7} {:>5} MiB",
                    running.machine,
                    running.daemon,
                    running.pid,
                    running.memory_kib / 1024
                );
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Becoming the program, instead of starting it, leaves signals and the exit code alone.
fn become_it(command: &mut std::process::Command) -> anyhow::Result<ExitCode> {
    Err(command.exec()).context("starting a program")
}
