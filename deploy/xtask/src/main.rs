//! Developer tasks behind `cargo xtask`: one file per task. This file owns the command line only.

#![expect(
    clippy::print_stdout,
    reason = "the reports of these tasks are what a person reads"
)]
#![forbid(unsafe_code)]

mod certs;
mod clean;
mod cluster;
mod crds;
mod deny;
mod image;
mod lab;
mod pairs;
mod process;
mod setup;
mod tally;
mod test;
mod verifier;
mod verifier_kernel;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Developer tasks of Bowline.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Run everything that can be checked on this machine, as root: format, lints, tests, verifier, lab, cluster, benchmarks
    Test(test::Args),
    /// Build in release mode and run `lbctl lab`, with its arguments
    Lab {
        /// Arguments of `lbctl lab`; `cargo lab --help` explains them
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Install the Debian packages and Rust components that the tests use, or say what is missing
    Setup,
    /// Load every program and print what the verifier counted, on this kernel or in a virtual machine
    Verifier {
        /// Boot Debian's kernel of this version under emulation and ask that one; only 6.1 is known
        #[arg(long, value_name = "VERSION")]
        kernel: Option<String>,
    },
    /// Write the definitions of our objects, made from the Rust types, below deploy/crds
    Crds,
    /// Write an authority and certificates for a lab: of all agents, of the manager, and of single nodes
    Certs(certs::Args),
    /// Pack what was built as container images, without a container engine
    Image(image::Args),
    /// A real Kubernetes on this machine, with nodes made of namespaces, as root
    Cluster(cluster::Args),
    /// Remove labs that were kept or that crashed
    Clean,
    /// Check licences and known vulnerabilities of all dependencies with cargo-deny, which is installed for it
    Deny,
}

fn main() -> ExitCode {
    let result = match Args::parse().task {
        Task::Test(args) => test::run(&args),
        Task::Lab { args } => lab::run(&args),
        Task::Setup => Ok(setup::run()),
        Task::Verifier { kernel: None } => verifier::run(),
        Task::Verifier {
            kernel: Some(version),
        } => verifier_kernel::run(&version),
        Task::Crds => crds::run(),
        Task::Certs(args) => certs::run(&args),
        Task::Image(args) => image::run(&args),
        Task::Cluster(args) => cluster::run(args),
        Task::Clean => clean::run(),
        Task::Deny => deny::run(),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
