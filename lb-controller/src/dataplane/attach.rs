//! Puts the programs on the interfaces and keeps them there: pinned links that outlive the agent and whose program an
//! upgrade replaces in place, so that every packet meets the old program or the new one.
//!
//! Which interfaces get what is decided in [`super::links`]; this file carries it out and says what is in the way.
//! Nothing is detached on its own account: an interface that loses its default route keeps its program, which passes
//! what is not ours; only interfaces that `--interface` no longer names are let go.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use aya::programs::ProgramError;
use lb_ebpf::abi::map;

use super::egress::{self, Egress, EgressKind, EgressLink};
use super::links::{IfIndex, Link, Links, Wanted, XdpMode, XdpProgram, wanted};
use super::load::Programs;
use super::pin::{PinDir, PinError};
use super::table::HashTable;
use super::xdp::{self, XdpLink, is_live, pinned};
use super::{ApplyError, sys};

/// Which mode of XDP to ask for. A program that is already attached keeps its mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ModeChoice {
    /// Native where the driver has it, else generic.
    #[default]
    Auto,
    /// This one or none.
    Only(XdpMode),
}

/// What the operator asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Interfaces for XDP; empty: those with a default route.
    pub interfaces: Vec<String>,
    /// The mode of XDP.
    pub mode: ModeChoice,
    /// The kind of egress attachment.
    pub egress: Egress,
}

/// Why a program is not on an interface.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// There is no such interface.
    #[error("interface {name} does not exist: create it, or name another one with --interface")]
    Missing {
        /// Its name.
        name: String,
    },
    /// Somebody else's XDP program is there.
    #[error(
        "interface {interface} already runs the XDP program {program} ({mode} mode, id {id}): stop what attached it or run \
         `ip link set dev {interface} xdp off`, or name other interfaces with --interface",
        mode = .mode.label()
    )]
    Foreign {
        /// The interface.
        interface: String,
        /// The program's name.
        program: String,
        /// The kernel's id of it.
        id: u32,
        /// How it runs.
        mode: XdpMode,
    },
    /// The driver does not have the mode that was asked for.
    #[error(
        "interface {interface} does not take XDP in {mode} mode: use --xdp-mode auto, or name another interface with --interface",
        mode = .mode.label()
    )]
    Mode {
        /// The interface.
        interface: String,
        /// The mode.
        mode: XdpMode,
        /// What the kernel said.
        source: io::Error,
    },
    /// The interface cannot be a target of redirects.
    #[error("interface {interface}")]
    Redirect {
        /// The interface.
        interface: String,
        /// What is wrong with the map.
        source: ApplyError,
    },
    /// Something about the pins.
    #[error("interface {interface}: {path}")]
    Pin {
        /// The interface.
        interface: String,
        /// The pin.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Anything else that the kernel said.
    #[error("interface {interface}: {what}")]
    System {
        /// The interface.
        interface: String,
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Anything else that aya said.
    #[error("interface {interface}")]
    Program {
        /// The interface.
        interface: String,
        /// What aya said.
        source: ProgramError,
    },
}

/// The state of one interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its index; 0 while it does not exist.
    pub ifindex: IfIndex,
    /// Our XDP program on it.
    pub xdp: Option<XdpProgram>,
    /// How the egress program is attached.
    pub egress: Option<EgressKind>,
    /// What is wrong, and what to change.
    pub problem: Option<String>,
}

/// Keeps the programs on the interfaces.
pub struct Attacher {
    programs: Programs,
    pins: PinDir,
    settings: Settings,
    redirects: HashTable<u32, [u32; 2]>,
    xdp: BTreeMap<IfIndex, XdpLink>,
    egress: BTreeMap<IfIndex, EgressLink>,
    report: Vec<Interface>,
}

impl Attacher {
    /// Attaches `programs`; links are pinned beside the maps of `pins`. Nothing is touched yet.
    pub fn new(programs: Programs, pins: &PinDir, settings: Settings) -> Result<Self, PinError> {
        Ok(Self {
            programs,
            redirects: HashTable::open(pins, map::INTERFACES)?,
            pins: pins.paths(),
            settings,
            xdp: BTreeMap::new(),
            egress: BTreeMap::new(),
            report: Vec::new(),
        })
    }

    /// Brings the programs to where they belong. To be called again whenever `links` change, and now and then: what
    /// failed is tried again, what is there stays untouched.
    pub fn reconcile(&mut self, links: &Links) -> &[Interface] {
        let wanted = wanted(links, &self.settings.interfaces);
        self.forget_missing(links);
        let kept = self.release_strays(links, &wanted);
        let mut report: Vec<_> = wanted
            .missing
            .iter()
            .map(|name| Interface {
                name: name.clone(),
                ifindex: 0,
                xdp: None,
                egress: None,
                problem: Some(AttachError::Missing { name: name.clone() }.to_string()),
            })
            .collect();
        for link in links.iter() {
            let uplink = wanted.uplinks.contains(&link.ifindex) || kept.contains(&link.ifindex);
            let carrier = uplink || wanted.egress.contains(&link.ifindex);
            if carrier {
                report.push(self.interface(link, uplink));
            }
        }
        self.publish(report);
        &self.report
    }

    /// Interfaces that XDP runs on, by index.
    pub fn xdp_interfaces(&self) -> Vec<IfIndex> {
        self.xdp.keys().copied().collect()
    }

    fn interface(&mut self, link: &Link, uplink: bool) -> Interface {
        let mut problems = Vec::new();
        let xdp = if uplink {
            self.xdp(link)
                .map_err(|error| problems.push(describe(&error)))
                .ok()
        } else {
            None
        };
        let egress = self
            .egress(link)
            .map_err(|error| problems.push(describe(&error)))
            .ok();
        if let Err(error) = self.redirect(link) {
            problems.push(describe(&error));
        }
        Interface {
            name: link.name.clone(),
            ifindex: link.ifindex,
            xdp,
            egress,
            problem: (!problems.is_empty()).then(|| problems.join("; ")),
        }
    }

    /// Links whose interface is gone hold nothing any more; the index may come back as another interface.
    fn forget_missing(&mut self, links: &Links) {
        self.xdp
            .retain(|ifindex, link| links.get(*ifindex).is_some() && is_live(&link.fd, *ifindex));
        self.egress
            .retain(|ifindex, link| links.get(*ifindex).is_some() && link.holds(*ifindex));
    }

    /// Deals with pinned XDP links that nothing asks for: without an interface they are removed; on an interface that
    /// is not among the named ones they are detached; on one that has merely lost its default route they are kept.
    fn release_strays(&mut self, links: &Links, wanted: &Wanted) -> Vec<IfIndex> {
        let mut kept = Vec::new();
        for (ifindex, path) in pinned(&self.pins, "xdp-") {
            if wanted.uplinks.contains(&ifindex) {
                continue;
            }
            let live = sys::open(&path).is_ok_and(|fd| is_live(&fd, ifindex));
            if live && links.get(ifindex).is_some() && self.settings.interfaces.is_empty() {
                kept.push(ifindex);
            } else {
                self.xdp.remove(&ifindex);
                if fs::remove_file(&path).is_ok() && live {
                    tracing::info!(
                        ifindex,
                        "XDP program detached: the interface is no longer named"
                    );
                }
            }
        }
        for (ifindex, path) in pinned(&self.pins, "tcx-") {
            if links.get(ifindex).is_none() {
                let _ = fs::remove_file(path);
            }
        }
        kept
    }

    fn xdp(&mut self, link: &Link) -> Result<XdpProgram, AttachError> {
        if !self.xdp.contains_key(&link.ifindex) {
            let attached = xdp::attach(&self.programs, &self.pins, self.settings.mode, link)?;
            self.xdp.insert(link.ifindex, attached);
        }
        let XdpLink { fd, mode } = &self.xdp[&link.ifindex];
        let info = sys::link_info(fd.as_fd()).map_err(system(link, "reading the XDP link"))?;
        Ok(XdpProgram {
            id: info.program_id,
            mode: *mode,
        })
    }

    fn egress(&mut self, link: &Link) -> Result<EgressKind, AttachError> {
        if let Some(attached) = self.egress.get(&link.ifindex) {
            return Ok(attached.kind());
        }
        let attached = egress::attach(
            &mut self.programs,
            &self.pins,
            &mut self.settings.egress,
            link,
        )?;
        let kind = attached.kind();
        self.egress.insert(link.ifindex, attached);
        Ok(kind)
    }

    /// Makes the interface a target of redirects; the kernel removes it when the interface goes.
    fn redirect(&self, link: &Link) -> Result<(), AttachError> {
        let failed = |source| AttachError::Redirect {
            interface: link.name.clone(),
            source,
        };
        if self.redirects.get(&link.ifindex).map_err(failed)?.is_none() {
            self.redirects
                .put(&link.ifindex, &[link.ifindex, 0])
                .map_err(failed)?;
        }
        Ok(())
    }

    /// Logs what is new, and keeps it.
    fn publish(&mut self, report: Vec<Interface>) {
        for interface in &report {
            if self.report.contains(interface) {
                continue;
            }
            let Interface {
                name,
                ifindex,
                xdp,
                egress,
                problem,
            } = interface;
            let xdp = xdp.map(|xdp| xdp.mode.label());
            let egress = egress.map(EgressKind::label);
            match problem {
                None => tracing::info!(interface = name, ifindex, xdp, egress, "programs attached"),
                Some(problem) => {
                    tracing::warn!(
                        interface = name,
                        ifindex,
                        xdp,
                        egress,
                        problem,
                        "programs not attached"
                    );
                }
            }
        }
        self.report = report;
    }
}

/// An error with its causes, in one sentence.
fn describe(error: &AttachError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

pub(super) fn system(link: &Link, what: &'static str) -> impl Fn(io::Error) -> AttachError {
    let interface = link.name.clone();
    move |source| AttachError::System {
        interface: interface.clone(),
        what,
        source,
    }
}

pub(super) fn program_error(link: &Link) -> impl Fn(ProgramError) -> AttachError {
    let interface = link.name.clone();
    move |source| AttachError::Program {
        interface: interface.clone(),
        source,
    }
}

/// Detaches everything and forgets all maps below `pin_dir`: for uninstalling, and for the lab. Refused while an agent
/// uses the directory.
pub fn detach(pin_dir: &Path) -> Result<(), PinError> {
    let mut pins = PinDir::new(pin_dir);
    pins.lock()?;
    egress::remove_filters();
    pins.remove()
}
