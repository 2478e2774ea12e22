//! Sends a flood at a steady rate from a thread of its own. Knows packets and a clock, and nothing of what they do.

use std::io::IoSlice;
use std::net::SocketAddrV4;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::socket::{
    AddressFamily, MsgFlags, MultiHeaders, SockFlag, SockProtocol, SockType, SockaddrIn, sendmmsg,
    socket,
};

use super::syn;
use crate::lab::netns::Namespace;

/// Packets of one call: few enough that other threads of the same processor have their turn between two.
const BATCH: usize = 64;
/// Between two looks at the clock when nothing is due.
const PAUSE: Duration = Duration::from_millis(1);
/// What is overdue by more is not made up for: a flood shall not become a burst after a pause of the machine.
const OVERDUE_MAX: Duration = Duration::from_millis(50);

/// A flood under way; ends when it is stopped or dropped.
#[derive(Debug)]
pub(super) struct Flood {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<anyhow::Result<Sent>>>,
}

/// What was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sent {
    /// Packets.
    pub(super) packets: u64,
    /// In so much time.
    took: Duration,
}

impl Sent {
    /// Packets a second.
    pub(super) fn per_second(self) -> u64 {
        self.packets * 1_000 / (self.took.as_millis() as u64).max(1)
    }
}

impl Flood {
    /// Begins in a namespace; `first` is the number of the first packet, so that floods do not repeat each other.
    pub(super) fn begin(
        from: &Namespace,
        to: SocketAddrV4,
        per_second: u64,
        first: u32,
    ) -> anyhow::Result<Self> {
        // A socket stays in the namespace that it was opened in.
        let socket = from.inside(|| {
            let (kind, flags) = (SockType::Raw, SockFlag::SOCK_CLOEXEC);
            socket(AddressFamily::Inet, kind, flags, SockProtocol::Raw).context("open a raw socket")
        })?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("flood".to_owned())
            .spawn(move || send(&socket, to, per_second, first, &stopped));
        Ok(Self {
            stop,
            thread: Some(thread.context("start a thread")?),
        })
    }

    /// Ends it.
    pub(super) fn end(mut self) -> anyhow::Result<Sent> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("a flood ended twice")?;
        let sent = thread.join();
        sent.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Another error is on its way up already.
            let _ = thread.join();
        }
    }
}

fn send(
    socket: &OwnedFd,
    to: SocketAddrV4,
    per_second: u64,
    first: u32,
    stop: &AtomicBool,
) -> anyhow::Result<Sent> {
    let address = SockaddrIn::from(SocketAddrV4::new(*to.ip(), 0));
    let addresses = [Some(address); BATCH];
    let mut headers = MultiHeaders::preallocate(BATCH, None);
    let mut number = first;
    let mut packets = 0;
    let started = Instant::now();
    // When the next packet is due.
    let mut due = started;
    let each = Duration::from_secs(1) / u32::try_from(per_second.max(1)).unwrap_or(u32::MAX);
    while !stop.load(Ordering::Relaxed) {
        let now = Instant::now();
        if due > now {
            std::thread::sleep(PAUSE);
            continue;
        }
        due = due.max(now.checked_sub(OVERDUE_MAX).unwrap_or(due));
        let overdue = (now - due).as_nanos() / each.as_nanos().max(1) + 1;
        let count = (overdue as usize).min(BATCH);
        let batch: Vec<[u8; syn::LENGTH]> = (0..count)
            .map(|at| syn::packet(number.wrapping_add(at as u32), to))
            .collect();
        let slices: Vec<[IoSlice<'_>; 1]> =
            batch.iter().map(|packet| [IoSlice::new(packet)]).collect();
        let (fd, flags) = (socket.as_raw_fd(), MsgFlags::empty());
        let sent = sendmmsg(fd, &mut headers, &slices, &addresses[..count], [], flags);
        let sent = sent.context("send a flood")?.count();
        packets += sent as u64;
        number = number.wrapping_add(count as u32);
        due += each * count as u32;
    }
    Ok(Sent {
        packets,
        took: started.elapsed(),
    })
}
