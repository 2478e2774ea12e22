//! Ends a run when somebody wants no more of it, so that what it has made can be removed in order. Knows nothing of runs.

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

/// Somebody wants no more of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Interrupted {
    /// Ctrl-C.
    Interrupt,
    /// SIGTERM.
    Terminate,
}

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Interrupt => "interrupted",
            Self::Terminate => "asked to end",
        })
    }
}

impl std::error::Error for Interrupted {}

/// Waits for `run`, on a runtime of its own, or until somebody wants no more of it.
pub(super) fn block_on<T>(run: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = crate::agent::runtime()?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).context("listen for signals")?;
        let mut terminate = signal(SignalKind::terminate()).context("listen for signals")?;
        tokio::select! {
            ended = run => ended,
            _ = interrupt.recv() => Err(Interrupted::Interrupt.into()),
            _ = terminate.recv() => Err(Interrupted::Terminate.into()),
        }
    })
}
