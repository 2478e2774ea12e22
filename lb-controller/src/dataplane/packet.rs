//! A packet socket: sends whole frames through an interface, past the stack, and joins multicast groups of links.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Sends frames. It receives nothing, since it is bound to no protocol.
#[derive(Debug)]
pub struct PacketSocket(OwnedFd);

impl PacketSocket {
    /// Needs `CAP_NET_RAW`.
    pub fn open() -> io::Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: no memory is passed.
        let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just given us this descriptor, and nobody else knows it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Sends a frame, Ethernet header included.
    pub fn send(&self, ifindex: u32, frame: &[u8]) -> io::Result<()> {
        // SAFETY: all zeroes is a value of this struct of integers.
        let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        to.sll_family = libc::AF_PACKET as u16;
        to.sll_ifindex = ifindex.cast_signed();
        // SAFETY: `frame` and `to` are live for the call, and their sizes are passed along.
        let sent = unsafe {
            libc::sendto(
                self.0.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                std::ptr::from_ref(&to).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Has an interface take frames for a multicast address, while this socket is open.
    pub fn join(&self, ifindex: u32, group: [u8; 6]) -> io::Result<()> {
        self.membership(libc::PACKET_ADD_MEMBERSHIP, ifindex, group)
    }

    /// The opposite of [`PacketSocket::join`].
    pub fn leave(&self, ifindex: u32, group: [u8; 6]) -> io::Result<()> {
        self.membership(libc::PACKET_DROP_MEMBERSHIP, ifindex, group)
    }

    fn membership(&self, option: i32, ifindex: u32, group: [u8; 6]) -> io::Result<()> {
        let mut mr_address = [0; 8];
        mr_address[..6].copy_from_slice(&group);
        let request = libc::packet_mreq {
            mr_ifindex: ifindex.cast_signed(),
            mr_type: libc::PACKET_MR_MULTICAST as u16,
            mr_alen: 6,
            mr_address,
        };
        // SAFETY: `request` is live for the call, and its size is passed along.
        let outcome = unsafe {
            libc::setsockopt(
                self.0.as_raw_fd(),
                libc::SOL_PACKET,
                option,
                std::ptr::from_ref(&request).cast(),
                size_of::<libc::packet_mreq>() as libc::socklen_t,
            )
        };
        if outcome < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}
