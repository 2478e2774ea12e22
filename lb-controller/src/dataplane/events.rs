//! What the programs report: flows that balancers may not find by their tables alone.

use std::mem::size_of;
use std::path::PathBuf;

use aya::maps::{Map, MapData, MapError, RingBuf};
use lb_ebpf::abi::{Event, map};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::pin::PinDir;

/// Reports taken at once, so that those who wait behind them are not forgotten.
pub const EVENTS_AT_ONCE: usize = 1024;

/// Why the ring can not be read.
#[derive(Debug, thiserror::Error)]
pub enum EventsError {
    /// It can not be opened.
    #[error("map {} can not be opened: {source}", path.display())]
    Open {
        /// Where it is pinned.
        path: PathBuf,
        /// What the kernel said.
        source: MapError,
    },
    /// It can not be waited for.
    #[error("reports can not be waited for: {0}")]
    Wait(#[from] std::io::Error),
}

/// The ring of reports, for who asks now and then. Whoever reads it takes them away from others.
pub struct Ring(RingBuf<MapData>);

impl Ring {
    /// Opens the pinned ring.
    pub(super) fn open(pins: &PinDir) -> Result<Self, EventsError> {
        let path = pins.map(map::EVENTS);
        let opened =
            MapData::from_pin(&path).and_then(|data| RingBuf::try_from(Map::RingBuf(data)));
        let ring = opened.map_err(|source| EventsError::Open { path, source })?;
        Ok(Self(ring))
    }

    /// What was reported, at most [`EVENTS_AT_ONCE`]; nothing if there is nothing.
    pub fn take(&mut self) -> Vec<Event> {
        take(&mut self.0)
    }
}

/// The same for who waits for reports.
pub struct Events(AsyncFd<RingBuf<MapData>>);

impl Events {
    /// Opens the pinned ring. Needs a tokio runtime.
    pub(super) fn open(pins: &PinDir) -> Result<Self, EventsError> {
        let Ring(ring) = Ring::open(pins)?;
        // SAFETY: the ring owns its file descriptor, always the same one, for as long as it lives.
        let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) };
        Ok(Self(ring.map_err(std::io::Error::from)?))
    }

    /// What was reported, at most [`EVENTS_AT_ONCE`]; waits for it.
    pub async fn next(&mut self) -> Vec<Event> {
        loop {
            let taken = take(self.0.get_mut());
            if !taken.is_empty() {
                return taken;
            }
            match self.0.readable_mut().await {
                Ok(mut ready) => ready.clear_ready(),
                Err(error) => {
                    // The runtime is ending.
                    tracing::debug!(%error, "reports are not read any more");
                    std::future::pending::<()>().await;
                }
            }
        }
    }
}

fn take(ring: &mut RingBuf<MapData>) -> Vec<Event> {
    let mut events = Vec::new();
    while events.len() < EVENTS_AT_ONCE
        && let Some(item) = ring.next()
    {
        // Records of another size are of nobody that we know.
        if item.len() == size_of::<Event>() {
            events.push(super::sys::value_of(&item));
        }
    }
    events
}
