//! An XDP program that passes every packet, as an ELF object: two instructions are not worth a compiler.
//!
//! The kernel wakes the receiver of `XDP_TX` out of a veth only if the receiver has a program, too (`veth_xdp_flush` asks
//! for its `xdp_prog`; joining received segments is not enough): without one, frames wait in its ring until it is full.

use object::write::{Object, Symbol, SymbolSection};
use object::{Architecture, BinaryFormat, Endianness, SectionKind};
use object::{SymbolFlags, SymbolKind, SymbolScope};

/// Section of the program.
pub(super) const SECTION: &str = "xdp";

/// `r0 = XDP_PASS; exit`.
const CODE: [u8; 16] = [
    0xb7, 0, 0, 0, 2, 0, 0, 0, // mov64 r0, 2
    0x95, 0, 0, 0, 0, 0, 0, 0, // exit
];
const LICENSE: &[u8] = b"GPL\0";
/// An instruction is eight bytes.
const CODE_ALIGN: u64 = 8;

/// The object, for `ip link set … xdp object`.
pub(super) fn object() -> Result<Vec<u8>, object::write::Error> {
    let mut object = Object::new(BinaryFormat::Elf, Architecture::Bpf, Endianness::Little);
    let code = object.add_section(Vec::new(), SECTION.into(), SectionKind::Text);
    object.append_section_data(code, &CODE, CODE_ALIGN);
    let license = object.add_section(Vec::new(), b"license".to_vec(), SectionKind::Data);
    object.append_section_data(license, LICENSE, 1);
    object.add_symbol(Symbol {
        name: b"pass".to_vec(),
        value: 0,
        size: CODE.len() as u64,
        kind: SymbolKind::Text,
        scope: SymbolScope::Dynamic,
        weak: false,
        section: SymbolSection::Section(code),
        flags: SymbolFlags::None,
    });
    object.write()
}
