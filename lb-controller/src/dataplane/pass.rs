//! A program that passes every packet, for the far ends of virtual Ethernet pairs.
//!
//! The kernel wakes the receiver of `XDP_TX` out of a veth only if the receiver has a program, too (`veth_xdp_flush` asks
//! for its `xdp_prog`; joining received segments is not enough): without one, frames wait in its ring until it is full.

use std::io;
use std::path::Path;

use aya::EbpfLoader;
use aya::programs::links::FdLink;
use aya::programs::{Xdp, XdpMode};

use super::load::{LoadError, OBJECT, Sizes, object_error};

/// Name of the program.
pub const PASS: &str = "bowline_pass";

/// Puts the program on interfaces of the calling thread's network namespace, with links pinned below `pins`, which must
/// be in a bpf file system. They end when that is unmounted, or with the interface.
pub fn attach(interfaces: &[&str], pins: &Path) -> Result<(), LoadError> {
    let refused = |source| LoadError::Program {
        name: PASS.to_owned(),
        source,
    };
    // The object comes with its maps; the program uses none of them.
    let small = Sizes {
        flows: 1,
        ..Sizes::default()
    };
    let mut loader = EbpfLoader::new();
    for (map, _) in small.entries() {
        loader.map_max_entries(map, 1);
    }
    let mut object = loader.btf(None).load(OBJECT).map_err(object_error)?;
    let program: &mut Xdp = object
        .program_mut(PASS)
        .ok_or(LoadError::NoProgram { name: PASS })?
        .try_into()
        .map_err(refused)?;
    program.load().map_err(refused)?;
    for interface in interfaces {
        let link = program
            .attach(interface, XdpMode::Driver)
            .and_then(|id| program.take_link(id))
            .map_err(refused)?;
        let system = |error| LoadError::System {
            what: "pinning a link",
            source: io::Error::other(error),
        };
        let link = FdLink::try_from(link).map_err(|error| system(error.to_string()))?;
        link.pin(pins.join(interface))
            .map_err(|error| system(error.to_string()))?;
    }
    Ok(())
}
