//! `lb-controller detach`: takes Bowline off this machine, or looks whether it is off.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, ensure};
use tokio_util::sync::CancellationToken;

use crate::agent::{PIN_DIR_DEFAULT, PREDECESSOR_POLL, PREDECESSOR_WAIT};
use crate::announce::bgp;
use crate::dataplane::attach;
use crate::dataplane::pin::PinError;
use crate::dataplane::routes;

/// What to do.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Where links and maps are pinned.
    #[arg(long, value_name = "PATH", default_value = PIN_DIR_DEFAULT)]
    pub pin_dir: PathBuf,
    /// Where the agent configures BIRD; what it has written there is removed, since it may have passwords in it.
    #[arg(long, value_name = "DIR", default_value = BIRD_DIRECTORY)]
    pub bird_directory: PathBuf,
    /// Stay until stopped, as a pod of a `DaemonSet` has to.
    #[arg(long)]
    pub stay: bool,
    /// Remove nothing, and fail while something is left.
    #[arg(long, conflicts_with = "stay")]
    pub check: bool,
}

/// Where `deploy/bgp` has it.
const BIRD_DIRECTORY: &str = "/run/bowline-bird";

/// Removes all programs and maps, or looks for them.
pub async fn run(options: Options, stop: CancellationToken) -> anyhow::Result<()> {
    let Options {
        pin_dir,
        bird_directory,
        stay,
        check,
    } = options;
    if check {
        return is_off(&pin_dir).await;
    }
    detach(&pin_dir).await?;
    routes::remove_all()
        .await
        .context("remove routes to VIPs")?;
    for file in bgp::FILES {
        match std::fs::remove_file(bird_directory.join(file)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).context(format!("remove {file}"));
            }
            _ => {}
        }
    }
    is_off(&pin_dir).await?;
    if stay {
        tracing::info!(pin_dir = %pin_dir.display(), "no program and no map is left");
        stop.cancelled().await;
    }
    Ok(())
}

/// An agent that is just ending still holds the directory for a moment.
async fn detach(pin_dir: &Path) -> Result<(), PinError> {
    let until = Instant::now() + PREDECESSOR_WAIT;
    loop {
        match attach::detach(pin_dir) {
            Err(PinError::InUse { .. }) if Instant::now() < until => {
                tokio::time::sleep(PREDECESSOR_POLL).await;
            }
            outcome => return outcome,
        }
    }
}

/// What is pinned is attached or holds memory, and what is not is gone with the agent.
async fn is_off(pin_dir: &Path) -> anyhow::Result<()> {
    let there = pin_dir.try_exists();
    let there = there.with_context(|| pin_dir.display().to_string())?;
    ensure!(
        !there,
        "{} is still there: stop the agent, then run `lb-controller detach`",
        pin_dir.display()
    );
    ensure!(
        !routes::is_left().await.context("look for routes to VIPs")?,
        "routes to VIPs are still there: stop the agent, then run `lb-controller detach`"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::testing::{in_namespace, is_root};

    fn uninstall(dir: &Path, stay: bool, check: bool) -> anyhow::Result<()> {
        let options = Options {
            pin_dir: dir.join("bowline"),
            bird_directory: dir.join("bird"),
            stay,
            check,
        };
        let stop = CancellationToken::new();
        stop.cancel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(run(options, stop))
    }

    #[test]
    fn a_check_removes_nothing_and_fails_until_all_is_removed() {
        // Filters are removed from all interfaces that it sees.
        if !is_root("a_check_removes_nothing_and_fails_until_all_is_removed") {
            return;
        }
        in_namespace(|| {
            let dir = tempfile::tempdir().unwrap();
            let pins = dir.path().join("bowline");
            std::fs::create_dir_all(pins.join("abi-1/links")).unwrap();
            let why = uninstall(dir.path(), false, true).unwrap_err().to_string();
            assert!(why.contains("is still there: stop the agent"), "{why}");
            assert!(pins.join("abi-1/links").exists());
            uninstall(dir.path(), true, false).unwrap();
            assert!(!pins.exists());
            uninstall(dir.path(), false, true).unwrap();
            let bird = dir.path().join("bird");
            bgp::prepare(&bird).unwrap();
            uninstall(dir.path(), false, false).unwrap();
            assert_eq!(std::fs::read_dir(bird).unwrap().count(), 0);
        });
    }
}
