//! The calls about programs and links.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::{bpf, bpf_fd, cmd, info, number};

/// `BPF_XDP` of `enum bpf_attach_type`.
pub(in crate::dataplane) const ATTACH_XDP: u32 = 37;
/// `BPF_TCX_EGRESS` of the same.
pub(in crate::dataplane) const ATTACH_TCX_EGRESS: u32 = 47;
/// `XDP_FLAGS_SKB_MODE`: generic.
pub(in crate::dataplane) const XDP_GENERIC: u32 = 1 << 1;
/// `XDP_FLAGS_DRV_MODE`: native.
pub(in crate::dataplane) const XDP_NATIVE: u32 = 1 << 2;

/// The beginning of `struct bpf_link_info`, up to what XDP and TCX links have in common.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub(in crate::dataplane) struct LinkInfo {
    kind: u32,
    /// The kernel's id of the link itself.
    pub(in crate::dataplane) id: u32,
    pub(in crate::dataplane) program_id: u32,
    pad: u32,
    /// 0 when the interface is gone.
    pub(in crate::dataplane) ifindex: u32,
    attach_type: u32,
}

/// What the kernel knows of an XDP or TCX link.
pub(in crate::dataplane) fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    let mut into = LinkInfo::default();
    info(link, &mut into)?;
    Ok(into)
}

/// Where `name` and what is around it are in `struct bpf_prog_info`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct ProgramInfo {
    before: [u64; 8],
    name: [u8; 16],
}

/// Name of the program with this id, as its loader gave it (at most 15 bytes).
pub(in crate::dataplane) fn program_name(id: u32) -> io::Result<String> {
    let program = bpf_fd(cmd::PROG_GET_FD_BY_ID, &mut [id, 0, 0])?;
    let mut into = ProgramInfo::default();
    info(program.as_fd(), &mut into)?;
    let end = into.name.iter().position(|byte| *byte == 0).unwrap_or(16);
    Ok(String::from_utf8_lossy(&into.name[..end]).into_owned())
}

#[repr(C)]
#[derive(Clone, Copy)]
struct LinkCreateAttr {
    program_fd: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    /// `tcx.relative_fd`, padding and `tcx.expected_revision`: no preference.
    order: [u64; 2],
}

/// Attaches a program to an interface of the caller's network namespace.
pub(in crate::dataplane) fn link_create(
    program: BorrowedFd<'_>,
    ifindex: u32,
    attach_type: u32,
    flags: u32,
) -> io::Result<OwnedFd> {
    bpf_fd(
        cmd::LINK_CREATE,
        &mut LinkCreateAttr {
            program_fd: number(program),
            target: ifindex,
            attach_type,
            flags,
            order: [0; 2],
        },
    )
}

/// Replaces the program of a link; each packet meets the old one or the new one.
pub(in crate::dataplane) fn link_update(
    link: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
) -> io::Result<()> {
    bpf(cmd::LINK_UPDATE, &mut [number(link), number(program), 0, 0])?;
    Ok(())
}
