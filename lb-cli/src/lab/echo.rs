//! `ping`, with the kernel's own echo sockets. Must be called inside the namespace of the client.

use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::AsRawFd;

use anyhow::{Context, ensure};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, recv, sendto,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

/// An answer takes microseconds.
const LIMIT_S: i64 = 2;

/// Sends one echo request, and fails unless its answer comes.
pub(crate) fn ping(address: IpAddr) -> anyhow::Result<()> {
    let (family, protocol, request, reply) = match address {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp, 8, 0),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6, 128, 129),
    };
    let socket = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, protocol)
        .context("open an echo socket")?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(LIMIT_S))
        .context("limit the wait")?;
    let to = match SocketAddr::new(address, 0) {
        SocketAddr::V4(v4) => SockaddrStorage::from(SocketAddrV4::new(*v4.ip(), 0)),
        SocketAddr::V6(v6) => SockaddrStorage::from(SocketAddrV6::new(*v6.ip(), 0, 0, 0)),
    };
    // Type, code, checksum and identifier (both the kernel's), sequence number, data.
    let mut message = vec![request, 0, 0, 0, 0, 0, 0, 1];
    message.extend(b"bowline lab");
    sendto(socket.as_raw_fd(), &message, &to, MsgFlags::empty())
        .with_context(|| format!("ping {address}"))?;
    let mut buffer = [0; 256];
    let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())
        .with_context(|| format!("no answer to a ping of {address}"))?;
    ensure!(
        buffer.first() == Some(&reply) && buffer.get(8..length) == message.get(8..),
        "an odd answer to a ping of {address}"
    );
    Ok(())
}
