//! An XDP program that passes every packet, as an ELF object of our own making: two instructions are not worth a compiler.
//!
//! The kernel wakes the receiver of `XDP_TX` out of a veth only if the receiver has a program, too (`veth_xdp_flush` asks
//! for its `xdp_prog`; joining received segments is not enough): without one, frames wait in its ring until it is full.

/// Section of the program.
pub(super) const SECTION: &str = "xdp";

/// `r0 = XDP_PASS; exit`.
const CODE: [u8; 16] = [
    0xb7, 0, 0, 0, 2, 0, 0, 0, // mov64 r0, 2
    0x95, 0, 0, 0, 0, 0, 0, 0, // exit
];
const LICENSE: &[u8] = b"GPL\0";
/// Names of sections and of the program, at the offsets below.
const NAMES: &[u8] = b"\0xdp\0license\0pass\0.symtab\0.strtab\0";
const XDP_NAME: u32 = 1;
const LICENSE_NAME: u32 = 5;
const PASS_NAME: u32 = 13;
const SYMTAB_NAME: u32 = 18;
const STRTAB_NAME: u32 = 26;

const HEADER: usize = 64;
const SYMBOL: usize = 24;
const SECTION_HEADER: usize = 64;
const SECTIONS: u16 = 5;

const PROGBITS: u32 = 1;
const SYMTAB: u32 = 2;
const STRTAB: u32 = 3;
const ALLOC: u64 = 2;
const EXECINSTR: u64 = 4;
/// A global function.
const GLOBAL_FUNC: u8 = 1 << 4 | 2;
/// Relocatable, for BPF, little-endian 64-bit.
const REL: u16 = 1;
const BPF: u16 = 247;

/// A section's header, but for its place.
struct Section<'a> {
    name: u32,
    kind: u32,
    flags: u64,
    link: u32,
    info: u32,
    entry: usize,
    bytes: &'a [u8],
}

/// The object, for `ip link set … xdp object`.
pub(super) fn object() -> Vec<u8> {
    let mut symbols = vec![0; SYMBOL];
    symbols.extend(PASS_NAME.to_le_bytes());
    symbols.extend([GLOBAL_FUNC, 0]);
    // In the first section, from its beginning, all of it.
    symbols.extend(1_u16.to_le_bytes());
    symbols.extend(0_u64.to_le_bytes());
    symbols.extend((CODE.len() as u64).to_le_bytes());

    let plain = |name, kind, flags, bytes| Section {
        name,
        kind,
        flags,
        link: 0,
        info: 0,
        entry: 0,
        bytes,
    };
    let sections = [
        plain(XDP_NAME, PROGBITS, ALLOC | EXECINSTR, &CODE[..]),
        plain(LICENSE_NAME, PROGBITS, ALLOC, LICENSE),
        Section {
            // Names are in the fourth section; the first symbol that is not local is number 1.
            link: 4,
            info: 1,
            entry: SYMBOL,
            ..plain(SYMTAB_NAME, SYMTAB, 0, &symbols[..])
        },
        plain(STRTAB_NAME, STRTAB, 0, NAMES),
    ];
    assemble(&sections)
}

/// Header, contents, headers of sections.
fn assemble(sections: &[Section<'_>]) -> Vec<u8> {
    let mut contents = Vec::new();
    let mut headers = vec![0; SECTION_HEADER];
    for section in sections {
        contents.resize(contents.len().next_multiple_of(8), 0);
        let at = HEADER + contents.len();
        contents.extend(section.bytes);
        headers.extend(section.name.to_le_bytes());
        headers.extend(section.kind.to_le_bytes());
        for word in [section.flags, 0, at as u64, section.bytes.len() as u64] {
            headers.extend(word.to_le_bytes());
        }
        headers.extend(section.link.to_le_bytes());
        headers.extend(section.info.to_le_bytes());
        for word in [8, section.entry as u64] {
            headers.extend(word.to_le_bytes());
        }
    }
    contents.resize(contents.len().next_multiple_of(8), 0);
    let mut object = b"\x7fELF\x02\x01\x01".to_vec();
    object.resize(16, 0);
    object.extend(REL.to_le_bytes());
    object.extend(BPF.to_le_bytes());
    object.extend(1_u32.to_le_bytes());
    for word in [0, 0, (HEADER + contents.len()) as u64] {
        object.extend(word.to_le_bytes());
    }
    object.extend(0_u32.to_le_bytes());
    // Sizes of headers, and where the names of sections are.
    for half in [
        HEADER as u16,
        0,
        0,
        SECTION_HEADER as u16,
        SECTIONS,
        SECTIONS - 1,
    ] {
        object.extend(half.to_le_bytes());
    }
    object.extend(contents);
    object.extend(headers);
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(at: u32) -> &'static [u8] {
        let rest = &NAMES[at as usize..];
        rest.split(|byte| *byte == 0).next().unwrap()
    }

    #[test]
    fn names_are_where_they_are_said_to_be() {
        assert_eq!(name(XDP_NAME), SECTION.as_bytes());
        assert_eq!(name(LICENSE_NAME), b"license");
        assert_eq!(name(PASS_NAME), b"pass");
        assert_eq!(name(SYMTAB_NAME), b".symtab");
        assert_eq!(name(STRTAB_NAME), b".strtab");
    }

    #[test]
    fn the_header_is_as_long_as_it_says() {
        let object = object();
        let headers = u64::from_le_bytes(object[40..48].try_into().unwrap()) as usize;
        assert_eq!(
            object.len(),
            headers + usize::from(SECTIONS) * SECTION_HEADER
        );
        assert_eq!(&object[HEADER..HEADER + CODE.len()], CODE);
    }
}
