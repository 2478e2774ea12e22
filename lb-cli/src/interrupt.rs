//! Ends a run when somebody wants no more of it, so that what is left can be put in order, or said. Knows nothing of runs.

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

/// Somebody wants no more of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interrupted {
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
pub(crate) fn block_on<T>(run: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    crate::agent::runtime()?.block_on(unless_interrupted(run))
}

/// Waits for `run`, or until somebody wants no more of it.
pub(crate) async fn unless_interrupted<T>(
    run: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for signals")?;
    let mut terminate = signal(SignalKind::terminate()).context("listen for signals")?;
    tokio::select! {
        ended = run => ended,
        _ = interrupt.recv() => Err(Interrupted::Interrupt.into()),
        _ = terminate.recv() => Err(Interrupted::Terminate.into()),
    }
}
