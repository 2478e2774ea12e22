//! The way back: attaches the egress program by tcx (kernel 6.6 and newer) or as a filter of the clsact qdisc.
//!
//! A tcx link is pinned and comes after the programs of the CNI. A filter needs no pin: it is found again by its fixed
//! priority and handle, and replacing it is one step for packets.

use std::os::fd::{AsFd, OwnedFd};

use aya::programs::tc::{
    NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle, qdisc_add_clsact,
    qdisc_detach_program,
};
use aya::programs::{SchedClassifier, TcAttachType};

use super::attach::{AttachError, program_error, system};
use super::links::{IfIndex, Link};
use super::load::{EGRESS, Programs};
use super::pin::PinDir;
use super::sys;
use super::xdp::{is_live, pin, take_over};

/// After the filters of others: the kernel's own choice for filters without a priority is 49152 and counts down.
const PRIORITY: u16 = 49_153;
/// Ours at that priority.
const HANDLE: TcHandle = TcHandle::new(0, 0xb0);

/// Which kind to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Egress {
    /// tcx if the kernel has it.
    #[default]
    Auto,
    /// The clsact filter, whatever the kernel has.
    Filter,
}

/// How the egress program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EgressKind {
    /// By a pinned tcx link.
    Tcx,
    /// As a filter of the clsact qdisc.
    Clsact,
}

impl EgressKind {
    /// As in status and metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }
}

/// The egress program on an interface.
pub(super) enum EgressLink {
    /// By a pinned link.
    Tcx(OwnedFd),
    /// As a filter. Anybody may remove it together with its qdisc, so it has to be put there again and again.
    Clsact,
}

impl EgressLink {
    pub(super) fn kind(&self) -> EgressKind {
        match self {
            Self::Tcx(_) => EgressKind::Tcx,
            Self::Clsact => EgressKind::Clsact,
        }
    }

    /// Whether nothing has to be done about it.
    pub(super) fn holds(&self, ifindex: IfIndex) -> bool {
        match self {
            Self::Tcx(fd) => is_live(fd, ifindex),
            Self::Clsact => false,
        }
    }
}

/// Attaches the program, or replaces the one that is there. `choice` becomes [`Egress::Filter`] once the kernel has
/// turned out to know nothing of tcx.
pub(super) fn attach(
    programs: &mut Programs,
    pins: &PinDir,
    choice: &mut Egress,
    link: &Link,
) -> Result<EgressLink, AttachError> {
    let program = programs.egress().map_err(program_error(link))?;
    if *choice == Egress::Auto {
        if let Some(fd) = attach_tcx(program, pins, link)? {
            return Ok(EgressLink::Tcx(fd));
        }
        *choice = Egress::Filter;
    }
    attach_filter(program, link)?;
    Ok(EgressLink::Clsact)
}

/// None if the kernel has no tcx.
fn attach_tcx(
    program: &SchedClassifier,
    pins: &PinDir,
    link: &Link,
) -> Result<Option<OwnedFd>, AttachError> {
    let program = program.fd().map_err(program_error(link))?.as_fd();
    let name = format!("tcx-{}", link.ifindex);
    if let Some(fd) = take_over(pins, &name, link, program)? {
        return Ok(Some(fd));
    }
    match sys::link_create(program, link.ifindex, sys::ATTACH_TCX_EGRESS, 0) {
        Ok(fd) => pin(pins, &name, link, &fd).map(|()| Some(fd)),
        // The kernel does not know this kind of attachment.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(None),
        Err(error) => Err(system(link, "attaching the egress program")(error)),
    }
}

fn attach_filter(program: &mut SchedClassifier, link: &Link) -> Result<(), AttachError> {
    // That the qdisc is there already is no error, and any other shows below.
    let _ = qdisc_add_clsact(&link.name);
    let ours =
        SchedClassifierLink::attached(&link.name, TcAttachType::Egress, PRIORITY, HANDLE, None)
            .map_err(system(link, "finding the interface"))?;
    let attached = match program.attach_to_link(ours) {
        Ok(replaced) => replaced,
        // There was none to replace.
        Err(_) => program
            .attach_with_options(
                &link.name,
                TcAttachType::Egress,
                TcAttachOptions::Netlink(NlOptions {
                    priority: PRIORITY,
                    handle: HANDLE,
                    classid: None,
                }),
            )
            .map_err(program_error(link))?,
    };
    let filter = program.take_link(attached).map_err(program_error(link))?;
    // Dropping it would take the filter away; it holds no memory.
    std::mem::forget(filter);
    Ok(())
}

/// Removes our filters from all interfaces of this network namespace. Links need no such thing: they go with their
/// pins.
pub(super) fn remove_filters() {
    for interface in nix::net::if_::if_nameindex()
        .iter()
        .flat_map(|names| names.iter())
    {
        // An error says that there is none.
        let _ = qdisc_detach_program(
            &interface.name().to_string_lossy(),
            TcAttachType::Egress,
            EGRESS,
        );
    }
}
