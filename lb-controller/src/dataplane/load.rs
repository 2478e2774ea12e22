//! Loading the eBPF object: what must be there first, maps made or found again, programs checked by the kernel.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use aya::maps::MapError;
use aya::programs::{Program, ProgramError, ProgramFd, ProgramInfo, SchedClassifier};
use aya::{Ebpf, EbpfError, EbpfLoader, VerifierLogLevel};
use lb_ebpf::abi::{ROWS_PER_ELEMENT, capacity, map};

use super::pin::{PinDir, PinError};
use super::{Capacity, sys};

/// The object that this build carries.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("BOWLINE_OBJECT"));

/// Name of the XDP program.
pub const XDP: &str = "bowline_xdp";
/// Name of the TC program.
pub const EGRESS: &str = "bowline_egress";

/// The oldest kernel that Bowline runs on.
pub const KERNEL_MIN: (u32, u32) = (6, 1);

/// Capabilities that loading and attaching need, and their numbers (`linux/capability.h`).
const CAPABILITIES: [(&str, u32); 3] =
    [("CAP_BPF", 39), ("CAP_NET_ADMIN", 12), ("CAP_PERFMON", 38)];

/// Why the programs are not loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The agent may not do what it must do.
    #[error(
        "{capability} is missing: run the agent as root, or give it CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON"
    )]
    NotAllowed {
        /// The first of them that is missing.
        capability: &'static str,
    },
    /// The kernel carries no type information.
    #[error(
        "/sys/kernel/btf/vmlinux does not exist: Bowline needs a kernel built with CONFIG_DEBUG_INFO_BTF, as those of Debian \
         and Ubuntu are"
    )]
    NoBtf,
    /// The kernel is too old.
    #[error("kernel {release} is too old: Bowline needs {}.{} or newer", KERNEL_MIN.0, KERNEL_MIN.1)]
    KernelTooOld {
        /// What it calls itself.
        release: String,
    },
    /// The pins are no good.
    #[error(transparent)]
    Pins(#[from] PinError),
    /// A map could not be made.
    #[error("making map {map} (free memory, or ask for fewer flows with --flows)")]
    Map {
        /// Its name.
        map: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel refused a program.
    #[error("the kernel refused the program {name}")]
    Program {
        /// Its name.
        name: String,
        /// What the verifier said.
        source: ProgramError,
    },
    /// The object is not one of ours.
    #[error("the object has no program {name}")]
    NoProgram {
        /// The missing one.
        name: &'static str,
    },
    /// Something else about the object.
    #[error("the eBPF object")]
    Object(#[source] EbpfError),
    /// Something else that the kernel said.
    #[error("{what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// How large to make the maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Tables, backends and services.
    pub capacity: Capacity,
    /// Known flows of each family; half-open ones get a quarter of it.
    pub flows: u32,
    /// Pinned flows of each family.
    pub pins: u32,
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            capacity: Capacity::default(),
            flows: capacity::FLOWS,
            pins: capacity::PINS,
        }
    }
}

impl Sizes {
    /// Entries of each map whose size is a setting.
    pub(super) fn entries(&self) -> Vec<(&'static str, u32)> {
        let Self {
            capacity: sizes,
            flows,
            pins,
        } = *self;
        let Capacity {
            backends,
            rows,
            regions,
            sets,
            slots,
            services,
        } = sizes;
        // Below that an LRU map's per-processor free lists leave nothing to share.
        let half_open = (flows / 4).max(1024);
        let records = services + 1 + capacity::SPARE_RECORDS;
        vec![
            (map::SERVICES4, records),
            (map::SERVICES6, records),
            (map::SERVICES_COUNT, services),
            (map::ROWS, rows.div_ceil(ROWS_PER_ELEMENT)),
            (map::SLOTS, slots),
            (map::SETS, sets),
            (map::REGIONS, regions),
            (map::BACKENDS, backends),
            (map::BACKENDS_COUNT, backends),
            (map::FLOWS4, flows),
            (map::FLOWS6, flows),
            (map::PINS4, pins),
            (map::PINS6, pins),
            (map::HALF_OPEN4, half_open),
            (map::HALF_OPEN6, half_open),
            (map::FIRST4, half_open),
            (map::FIRST6, half_open),
        ]
    }
}

/// The programs, loaded and not yet attached.
#[derive(Debug)]
pub struct Programs {
    object: Ebpf,
}

impl Programs {
    /// The XDP program's descriptor.
    pub(super) fn xdp(&self) -> Result<&ProgramFd, ProgramError> {
        match self.object.program(XDP) {
            Some(Program::Xdp(program)) => program.fd(),
            _ => Err(ProgramError::NotLoaded),
        }
    }

    /// The TC program.
    pub(super) fn egress(&mut self) -> Result<&mut SchedClassifier, ProgramError> {
        match self.object.program_mut(EGRESS) {
            Some(Program::SchedClassifier(program)) => Ok(program),
            _ => Err(ProgramError::NotLoaded),
        }
    }

    /// The loaded object, for those who run its programs themselves: simulators and tests.
    pub fn into_object(self) -> Ebpf {
        self.object
    }
}

/// Checks what must be there before anything is loaded.
pub fn check_system() -> Result<(), LoadError> {
    let status =
        std::fs::read_to_string("/proc/self/status").map_err(|source| LoadError::System {
            what: "reading /proc/self/status",
            source,
        })?;
    let release = nix::sys::utsname::uname()
        .map(|name| name.release().to_string_lossy().into_owned())
        .unwrap_or_default();
    requirements(
        &status,
        &release,
        Path::new("/sys/kernel/btf/vmlinux").exists(),
    )
}

/// The pure part: `status` is `/proc/self/status`, `release` what `uname -r` prints.
fn requirements(status: &str, release: &str, btf: bool) -> Result<(), LoadError> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut number = || numbers.next()?.parse::<u32>().ok();
    let version = (number().unwrap_or(0), number().unwrap_or(0));
    if version < KERNEL_MIN {
        return Err(LoadError::KernelTooOld {
            release: release.to_string(),
        });
    }
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    for (capability, bit) in CAPABILITIES {
        if effective & (1 << bit) == 0 {
            return Err(LoadError::NotAllowed { capability });
        }
    }
    if btf { Ok(()) } else { Err(LoadError::NoBtf) }
}

/// Loads the programs of `object`; maps that are already pinned are used as they are, others are made and pinned.
pub fn load(object: &[u8], pins: &PinDir, sizes: &Sizes) -> Result<Programs, LoadError> {
    let entries = sizes.entries();
    for (map, wanted) in &entries {
        compare_size(pins, map, *wanted)?;
    }
    let mut loader = EbpfLoader::new();
    // Without vmlinux's type information: nothing in our programs is relocated against it, and parsing it takes longer
    // than everything else.
    loader.btf(None);
    for (map, wanted) in &entries {
        loader.map_max_entries(map, *wanted);
    }
    for map in MAPS {
        loader.map_pin_path(map, pins.map(map));
    }
    let mut object = loader.load(object).map_err(object_error)?;
    for name in [XDP, EGRESS] {
        let program = object
            .program_mut(name)
            .ok_or(LoadError::NoProgram { name })?;
        load_program(name, program)?;
    }
    Ok(Programs { object })
}

/// Gives the program to the kernel's verifier; answers what the kernel knows of it.
fn load_program(name: &str, program: &mut Program) -> Result<ProgramInfo, LoadError> {
    let loaded = match program {
        Program::Xdp(program) => program.load().and_then(|()| program.info()),
        Program::SchedClassifier(program) => program.load().and_then(|()| program.info()),
        _ => Err(ProgramError::UnexpectedProgramType),
    };
    loaded.map_err(|source| LoadError::Program {
        name: name.to_string(),
        source,
    })
}

fn compare_size(pins: &PinDir, map: &'static str, wanted: u32) -> Result<(), LoadError> {
    let path = pins.map(map);
    let pinned = match sys::open(&path) {
        Ok(fd) => sys::map_info(fd.as_fd()).map_err(|source| PinError::Pin { path, source })?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(PinError::Pin { path, source }.into()),
    };
    if pinned.max_entries == wanted {
        return Ok(());
    }
    Err(PinError::Size {
        map,
        pinned: pinned.max_entries,
        wanted,
        dir: pins.base().to_owned(),
    }
    .into())
}

pub(super) fn object_error(error: EbpfError) -> LoadError {
    match error {
        EbpfError::MapError(MapError::CreateError { name, io_error }) => LoadError::Map {
            map: name,
            source: io_error,
        },
        other => LoadError::Object(other),
    }
}

/// What the verifier made of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Its name.
    pub name: String,
    /// Instructions that the verifier looked at, on all paths; it refuses above one million.
    pub verified_instructions: u32,
    /// Bytes of BPF after verification; eight make one instruction.
    pub translated_bytes: u32,
    /// Bytes of machine code; 0 when the kernel interprets.
    pub machine_bytes: u32,
}

/// Loads all programs of an object, with small maps that are not pinned, and says what the verifier made of them.
pub fn verify(object: &[u8]) -> Result<Vec<Verified>, LoadError> {
    let small = Sizes {
        flows: 1024,
        ..Sizes::default()
    };
    let mut loader = EbpfLoader::new();
    loader.btf(None).verifier_log_level(VerifierLogLevel::STATS);
    for (map, entries) in small.entries() {
        loader.map_max_entries(map, entries);
    }
    let mut object = loader.load(object).map_err(object_error)?;
    let mut verified = object
        .programs_mut()
        .map(|(name, program)| {
            let info = load_program(name, program)?;
            Ok(Verified {
                name: name.to_string(),
                verified_instructions: info.verified_instruction_count().unwrap_or(0),
                translated_bytes: info.size_translated().unwrap_or(0),
                machine_bytes: info.size_jitted(),
            })
        })
        .collect::<Result<Vec<_>, LoadError>>()?;
    verified.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(verified)
}

/// Every map of the object.
const MAPS: &[&str] = &[
    map::SERVICES4,
    map::SERVICES6,
    map::DIRECTORY4,
    map::DIRECTORY6,
    map::ROWS,
    map::SLOTS,
    map::SETS,
    map::REGIONS,
    map::BACKENDS,
    map::PINS4,
    map::PINS6,
    map::FLOWS4,
    map::FLOWS6,
    map::HALF_OPEN4,
    map::HALF_OPEN6,
    map::FIRST4,
    map::FIRST6,
    map::HELD4,
    map::HELD6,
    map::FRAGMENTS4,
    map::FRAGMENTS6,
    map::LOCALS4,
    map::LOCALS6,
    map::SOURCE_RANGES,
    map::PEERS,
    map::ANNOUNCED,
    map::CLAIMS,
    map::INTERFACES,
    map::CONFIG,
    map::STAMP,
    map::BUCKETS,
    map::SERVICES_COUNT,
    map::BACKENDS_COUNT,
    map::DROPS,
    map::STATS,
    map::EVENTS,
];

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: &str = "Name:\tagent\nCapEff:\t000001ffffffffff\n";

    #[test]
    fn kernels_from_6_1_on_are_accepted() {
        for release in ["6.1.0-18-amd64", "6.18.44-fc", "7.0", "10.2.1"] {
            requirements(ROOT, release, true).unwrap();
        }
        for release in ["6.0.19", "5.15.0-91-generic", ""] {
            let error = requirements(ROOT, release, true).unwrap_err();
            assert!(
                matches!(error, LoadError::KernelTooOld { .. }),
                "{release}: {error}"
            );
        }
    }

    #[test]
    fn missing_capability_is_named() {
        let status = |bits: u64| format!("CapPrm:\tff\nCapEff:\t{bits:016x}\n");
        let error = |bits| {
            requirements(&status(bits), "6.1", true)
                .unwrap_err()
                .to_string()
        };
        assert!(error(0).starts_with("CAP_BPF is missing"));
        assert!(error(1 << 39).starts_with("CAP_NET_ADMIN is missing"));
        assert!(error(1 << 39 | 1 << 12).starts_with("CAP_PERFMON is missing"));
        requirements(&status(1 << 39 | 1 << 38 | 1 << 12), "6.1", true).unwrap();
    }

    #[test]
    fn kernel_without_type_information_is_refused() {
        assert!(matches!(
            requirements(ROOT, "6.1", false),
            Err(LoadError::NoBtf)
        ));
    }
}
