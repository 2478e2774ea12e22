//! `lb-controller watchdog`: has routers prefer other nodes when this node's agent gives no sign of life for a long time. Its programs
//! go on forwarding by tables that nobody keeps up to date, so new connections should enter elsewhere; where every node is like that,
//! routers go on using all of them, which withdrawing would not have them do. An agent that comes back undoes it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::agent::PIN_DIR_DEFAULT;
use crate::agent::stamp::monotonic_ns;
use crate::announce::routes::TABLE_DEFAULT;
use crate::dataplane::pin::PinDir;
use crate::dataplane::routes;
use crate::dataplane::stamp::{self, StampError};

/// How often it looks.
const PERIOD: Duration = Duration::from_secs(1);

/// What to watch.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Where the agent's maps are pinned.
    #[arg(long, value_name = "PATH", default_value = PIN_DIR_DEFAULT)]
    pub pin_dir: PathBuf,
    /// The table of routes to VIPs, as the agent keeps it.
    #[arg(long, value_name = "N", default_value_t = TABLE_DEFAULT)]
    pub route_table: u32,
    /// So many seconds without a sign of life are too long.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(4..))]
    pub after: u32,
}

/// Watches until stopped.
pub async fn run(options: Options, stop: CancellationToken) -> anyhow::Result<()> {
    let Options {
        pin_dir,
        route_table,
        after,
    } = options;
    let after = Duration::from_secs(after.into());
    let mut told = String::new();
    loop {
        let fault = match look(&pin_dir, route_table, after).await {
            Ok(None) => String::new(),
            Ok(Some(age)) => {
                tracing::warn!(
                    seconds = age.as_secs(),
                    "the agent gives no sign of life; routers are told to prefer other nodes"
                );
                String::new()
            }
            Err(error) => format!("{:#}", anyhow::Error::from(error)),
        };
        if fault != told && !fault.is_empty() {
            tracing::warn!("the watchdog can not do its work: {fault}");
        }
        told = fault;
        if stop
            .run_until_cancelled(tokio::time::sleep(PERIOD))
            .await
            .is_none()
        {
            return Ok(());
        }
    }
}

/// Why it can not be seen, or not be changed, what there is.
#[derive(Debug, thiserror::Error)]
enum WatchdogError {
    /// The sign of life.
    #[error(transparent)]
    Stamp(#[from] StampError),
    /// The routes.
    #[error("routes can not be changed")]
    Routes(#[from] rtnetlink::Error),
}

/// Looks once, and tells how old the sign of life is if routes were changed. Where no agent has ever been nothing is changed.
async fn look(
    pin_dir: &Path,
    table: u32,
    after: Duration,
) -> Result<Option<Duration>, WatchdogError> {
    let Some(stamp) = stamp::read(&PinDir::new(pin_dir))? else {
        return Ok(None);
    };
    let age = Duration::from_nanos(monotonic_ns().saturating_sub(stamp.stamped_ns));
    if age <= after {
        return Ok(None);
    }
    let is_changed = routes::prefer_others(table).await?;
    Ok(is_changed.then_some(age))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::bpf;
    use crate::dataplane::testing::{BpfDir, SIZES, in_namespace, ip, is_root, output};

    #[test]
    fn routers_prefer_others_when_the_agent_was_silent_for_too_long() {
        if !is_root("routers_prefer_others_when_the_agent_was_silent_for_too_long") {
            return;
        }
        let dir = BpfDir::new();
        let (maps, _programs) = bpf::open(dir.path(), &SIZES).unwrap();
        let stamp = maps.open_stamp().unwrap();
        in_namespace(|| {
            let shown = || output("ip", "route show table 6081");
            let builder = &mut tokio::runtime::Builder::new_current_thread();
            let runtime = builder.enable_all().build().unwrap();
            let look = |pin_dir: &Path| {
                let looked = runtime.block_on(look(pin_dir, 6081, Duration::from_mins(1)));
                looked.unwrap().map(|age| age.as_secs())
            };
            ip("route add blackhole 198.51.100.1/32 table 6081 proto 181 metric 100");
            let before = shown();
            let second = 1_000_000_000;
            stamp.write(monotonic_ns() - 59 * second, 0);
            assert_eq!(look(dir.path()), None);
            assert_eq!(look(&dir.path().join("nobody")), None);
            assert_eq!(shown(), before);
            stamp.write(monotonic_ns() - 61 * second, 0);
            assert_eq!(look(dir.path()), Some(61));
            assert_eq!(
                shown().trim(),
                "blackhole 198.51.100.1 proto 181 metric 1000"
            );
            assert_eq!(look(dir.path()), None, "once");
        });
    }
}
