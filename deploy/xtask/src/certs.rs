//! `cargo xtask certs`: an authority and certificates for labs, as a cluster would get them from its own. What is written
//! where is in the crate `authority`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

use authority::handoff;

/// What to write.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where to; nothing there is written over
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// A node that gets a certificate of its own
    #[arg(long, value_name = "NAME")]
    node: Vec<String>,
}

/// The task.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let Args { directory, node } = args;
    handoff::write(
        directory,
        node.iter().map(String::as_str),
        SystemTime::now(),
    )?;
    println!("{}", directory.display());
    Ok(ExitCode::SUCCESS)
}
