//! The way in: attaches the XDP program, native where the driver has it, by a pinned link that outlives the agent; and
//! takes links over, from an agent that has ended or from another version of the layout.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use super::attach::{AttachError, ModeChoice, program_error, system};
use super::links::{IfIndex, Link, XdpMode, XdpProgram};
use super::load::{Programs, XDP};
use super::pin::PinDir;
use super::sys;

/// Our program on an interface.
pub(super) struct XdpLink {
    pub(super) fd: OwnedFd,
    /// How it runs.
    pub(super) mode: XdpMode,
}

/// Attaches the program, or replaces the one in the pinned link.
pub(super) fn attach(
    programs: &Programs,
    pins: &PinDir,
    choice: ModeChoice,
    link: &Link,
) -> Result<XdpLink, AttachError> {
    let program = programs.xdp().map_err(program_error(link))?.as_fd();
    let name = format!("xdp-{}", link.ifindex);
    if let Some(fd) = take_over(pins, &name, link, program)? {
        let mode = link.xdp.map_or(XdpMode::Native, |xdp| xdp.mode);
        return Ok(XdpLink { fd, mode });
    }
    if let Some(XdpProgram { id, mode }) = link.xdp {
        return Err(foreign(link, id, mode));
    }
    let modes: &[XdpMode] = match &choice {
        ModeChoice::Auto => &[XdpMode::Native, XdpMode::Generic],
        ModeChoice::Only(mode) => std::slice::from_ref(mode),
    };
    let mut refused = None;
    for mode in modes {
        let flag = match mode {
            XdpMode::Native => sys::XDP_NATIVE,
            XdpMode::Generic => sys::XDP_GENERIC,
        };
        match sys::link_create(program, link.ifindex, sys::ATTACH_XDP, flag) {
            Ok(fd) => {
                pin(pins, &name, link, &fd)?;
                return Ok(XdpLink { fd, mode: *mode });
            }
            // Somebody was faster than the list of interfaces that we were given.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EEXIST)) => {
                return Err(foreign(link, 0, *mode));
            }
            Err(source) => refused = Some((*mode, source)),
        }
    }
    let (mode, source) = refused.expect("at least one mode was tried");
    Err(AttachError::Mode {
        interface: link.name.clone(),
        mode,
        source,
    })
}

fn foreign(link: &Link, id: u32, mode: XdpMode) -> AttachError {
    let program = match sys::program_name(id) {
        // Under the same name, but not among our pins.
        Ok(name) if name == XDP => format!("{XDP} of another agent"),
        Ok(name) if !name.is_empty() => name,
        _ => "of somebody else".to_string(),
    };
    AttachError::Foreign {
        interface: link.name.clone(),
        program,
        id,
        mode,
    }
}

pub(super) fn is_live(fd: &OwnedFd, ifindex: IfIndex) -> bool {
    sys::link_info(fd.as_fd()).is_ok_and(|info| info.ifindex == ifindex)
}

/// Finds the pinned link of this name, ours or that of another version of the layout, and gives it the new program.
/// None if there is no link, or only one whose interface is gone.
pub(super) fn take_over(
    pins: &PinDir,
    name: &str,
    link: &Link,
    program: BorrowedFd<'_>,
) -> Result<Option<OwnedFd>, AttachError> {
    let own = pins.link(name);
    let others = pins.links_of_other_versions(name);
    for path in std::iter::once(&own).chain(&others) {
        let fd = match sys::open(path) {
            Ok(fd) => fd,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(pin_error(link, path)(error)),
        };
        if is_live(&fd, link.ifindex) {
            sys::link_update(fd.as_fd(), program)
                .map_err(system(link, "replacing the attached program"))?;
            if *path != own {
                pin(pins, name, link, &fd)?;
                fs::remove_file(path).map_err(pin_error(link, path))?;
            }
            return Ok(Some(fd));
        }
        fs::remove_file(path).map_err(pin_error(link, path))?;
    }
    Ok(None)
}

pub(super) fn pin(pins: &PinDir, name: &str, link: &Link, fd: &OwnedFd) -> Result<(), AttachError> {
    let path = pins.link(name);
    sys::pin(fd.as_fd(), &path).map_err(pin_error(link, &path))
}

fn pin_error(link: &Link, path: &Path) -> impl Fn(io::Error) -> AttachError {
    let (interface, path) = (link.name.clone(), path.to_owned());
    move |source| AttachError::Pin {
        interface: interface.clone(),
        path: path.clone(),
        source,
    }
}

/// Pinned links with this prefix, and the interfaces in their names.
pub(super) fn pinned(pins: &PinDir, prefix: &str) -> Vec<(IfIndex, PathBuf)> {
    fs::read_dir(pins.links())
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let ifindex = entry
                .file_name()
                .to_str()?
                .strip_prefix(prefix)?
                .parse()
                .ok()?;
            Some((ifindex, entry.path()))
        })
        .collect()
}
