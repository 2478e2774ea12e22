//! A connection that was taken: bytes, who is at the other end, and what ends it.
//!
//! HTTP/2 pings go both ways every second, so a peer from which nothing is read for longer than those may take is dead, or
//! never meant to speak HTTP/2.

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

use super::counts::{Cause, Gauge, ServerCounts, Tally};

/// Who is at the other end, as far as TLS and TCP know.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    /// Where the connection comes from.
    pub(super) address: IpAddr,
    /// DNS names of its certificate.
    pub(super) names: Arc<[String]>,
    /// Ends the connection.
    pub(super) close: CancellationToken,
    /// Some call was made.
    pub(super) has_called: Arc<AtomicBool>,
}

/// The connection.
pub(super) struct Link {
    tls: TlsStream<TcpStream>,
    caller: Caller,
    silence_max: Duration,
    silence: Pin<Box<Sleep>>,
    closed: Pin<Box<WaitForCancellationFutureOwned>>,
    tally: Tally<ServerCounts>,
    _gauge: Gauge,
    /// Its place among the connections that there may be.
    _place: OwnedSemaphorePermit,
}

impl Link {
    pub(super) fn new(
        tls: TlsStream<TcpStream>,
        caller: Caller,
        silence_max: Duration,
        place: OwnedSemaphorePermit,
        tally: &Tally<ServerCounts>,
    ) -> Self {
        tally.note(|counts| counts.accepted += 1);
        Self {
            tls,
            silence_max,
            silence: Box::pin(tokio::time::sleep(silence_max)),
            closed: Box::pin(caller.close.clone().cancelled_owned()),
            caller,
            tally: tally.clone(),
            _gauge: Gauge::up(tally, |counts| &mut counts.connections),
            _place: place,
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if !self.caller.has_called.load(Ordering::Relaxed) {
            self.tally.refuse(Cause::NoCall);
        }
    }
}

impl Connected for Link {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl AsyncRead for Link {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.closed.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        if let Poll::Ready(read) = Pin::new(&mut self.tls).poll_read(cx, buffer) {
            let until = Instant::now() + self.silence_max;
            self.silence.as_mut().reset(until);
            return Poll::Ready(read);
        }
        ready!(self.silence.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncWrite for Link {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}
