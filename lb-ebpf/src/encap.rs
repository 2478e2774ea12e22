//! Putting a backend's headers in front of a packet.
//!
//! ```text
//! | Ethernet 14 | IPv4 20 or IPv6 40 | UDP 8 | Geneve 8 | option header 4 | mark 1, 0, pod port 2 |
//! | pod address 4 or 16 | identity 4 | secret 8 | identities of candidates already asked, 4 each |
//! ```
//!
//! All but lengths, traffic class, outer checksum, source port, mark and the list of the asked are in the backend's
//! template; [`crate::abi::Backend`] says where it comes from.

use core::hint::black_box;

use crate::abi::{Backend, CANDIDATES_MAX, DropReason, backend_flag};
use crate::checksum;
use crate::family::Family;
use crate::frame::Frame;
use crate::hash;
use crate::verdict::Verdict;
use crate::wire::{Be16, Be32};

/// Candidates already asked, oldest first.
///
/// Places beyond the length hold 0, which is nobody's identity, so that no comparison with the length is needed to read
/// them: to the verifier each such comparison would double the number of ways through the program.
///
/// Places count from 1, so that 0 can stand for none where a place is named (see [`crate::abi::mark`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// Their identities, none at 0; a power of two, so that an index is bounded by a mask.
    list: [u32; 8],
    len: u32,
}

impl Asked {
    /// Nobody.
    pub const NOBODY: Self = Self {
        list: [0; 8],
        len: 0,
    };

    /// The first `len` of `words`, which are in wire order. `len` is at most [`CANDIDATES_MAX`].
    #[inline(always)]
    pub const fn from_wire(words: &[Be32; CANDIDATES_MAX], len: u32) -> Self {
        let mut list = [0; 8];
        let mut i = 0;
        while i < CANDIDATES_MAX {
            // All ones where i < len, without a branch.
            let mask = (i as i32 - len as i32) >> 31;
            list[i + 1] = words[i].get() & mask as u32;
            i += 1;
        }
        Self { list, len }
    }

    /// How many.
    #[inline(always)]
    pub const fn len(&self) -> u32 {
        self.len
    }

    /// Whether nobody was asked.
    #[inline(always)]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether nobody more can be asked.
    #[inline(always)]
    pub const fn is_full(&self) -> bool {
        self.len as usize >= CANDIDATES_MAX
    }

    /// Adds one; a full list stays as it is.
    #[inline(always)]
    pub const fn push(&mut self, identity: u32) {
        if !self.is_full() {
            let place = self.next_place();
            self.list[place as usize & 7] = identity;
            self.len = place;
        }
    }

    /// The place behind the last one.
    ///
    /// The length comes from memory even where the compiler knows it. If it saw that this value was compared before, it
    /// would leave the mask of the index out; but kernel 6.1 does not carry a comparison over to every copy of a value.
    #[inline(always)]
    const fn next_place(&self) -> u32 {
        *black_box(&self.len) + 1
    }

    /// The one at a place, or `None` at place 0.
    #[inline(always)]
    pub const fn get(&self, place: u32) -> Option<u32> {
        let identity = self.list[place as usize & 7];
        if identity == 0 { None } else { Some(identity) }
    }

    /// Whether one was asked.
    #[inline(always)]
    pub fn contains(&self, identity: u32) -> bool {
        self.times(identity) > 0
    }

    /// How often one is in the list.
    #[inline(always)]
    pub fn times(&self, identity: u32) -> u32 {
        let mut times = 0;
        let mut place = 1;
        while place <= CANDIDATES_MAX {
            times += u32::from(self.list[place] == identity);
            place += 1;
        }
        times
    }
}

/// What [`push`] must know of the packet that it puts headers in front of.
#[derive(Clone, Copy, Debug)]
pub struct Carried {
    /// Bytes of the IP packet, as its header says.
    pub len: usize,
    /// Its traffic class.
    pub class: u8,
    /// Its flow hash.
    pub hash: u64,
    /// The mark byte, see [`crate::abi::mark`].
    pub mark: u8,
}

/// Bytes of a template for a pod of family `F`, Ethernet header included.
pub const fn header_len<F: Family>(outer_v6: bool) -> usize {
    let outer = if outer_v6 { 40 } else { 20 };
    let address = size_of::<F::Addr>();
    14 + outer + 8 + 8 + 8 + address + 4 + 8
}

/// Bytes that [`push`] adds to an IP packet.
#[inline(always)]
pub fn added<F: Family>(backend: &Backend, asked: &Asked) -> usize {
    let outer_v6 = backend.flags & backend_flag::OUTER_V6 != 0;
    let header = if outer_v6 {
        header_len::<F>(true)
    } else {
        header_len::<F>(false)
    };
    header - 14 + 4 * asked.len() as usize
}

/// Puts the headers in front and says where to send the packet.
#[inline(always)]
pub fn push<F: Family, X: Frame>(
    frame: &mut X,
    backend: &Backend,
    carried: Carried,
    asked: &Asked,
) -> Result<Verdict, DropReason> {
    let by = added::<F>(backend, asked);
    frame
        .move_head(-(by as i32))
        .ok_or(DropReason::NoHeadroom)?;
    let written = if backend.flags & backend_flag::OUTER_V6 != 0 {
        write::<F, X, true>(frame, backend, carried, asked)
    } else {
        write::<F, X, false>(frame, backend, carried, asked)
    };
    written.ok_or(DropReason::Truncated)?;
    Ok(Verdict::send(backend.ifindex))
}

/// Word `at` of a template, as it lies in memory.
#[inline(always)]
fn word(backend: &Backend, at: usize) -> u64 {
    let h = &backend.header;
    u64::from_ne_bytes([
        h[at],
        h[at + 1],
        h[at + 2],
        h[at + 3],
        h[at + 4],
        h[at + 5],
        h[at + 6],
        h[at + 7],
    ])
}

#[inline(always)]
fn write<F: Family, X: Frame, const OUTER_V6: bool>(
    frame: &mut X,
    backend: &Backend,
    carried: Carried,
    asked: &Asked,
) -> Option<()> {
    let len = const { header_len::<F>(OUTER_V6) };
    // The end first: one check covers all that follows.
    if F::IS_V6 == OUTER_V6 {
        // 74 or 106: a tail of two bytes.
        let at = len - 2;
        frame.write(
            at,
            u16::from_ne_bytes([backend.header[at], backend.header[at + 1]]),
        )?;
    } else {
        // 86 or 94: a tail of six.
        let h = &backend.header;
        let at = len - 6;
        frame.write(at + 4, u16::from_ne_bytes([h[at + 4], h[at + 5]]))?;
        frame.write(
            at,
            u32::from_ne_bytes([h[at], h[at + 1], h[at + 2], h[at + 3]]),
        )?;
    }
    let words = len / 8;
    let mut i = 0;
    while i < words {
        frame.write(i * 8, word(backend, i * 8))?;
        i += 1;
    }
    let extra = 4 * asked.len() as usize;
    let udp_at = if OUTER_V6 { 14 + 40 } else { 14 + 20 };
    let udp_len = len - udp_at + extra + carried.len;
    if OUTER_V6 {
        let first = 0x6000_0000 | u32::from(carried.class) << 20;
        frame.write(14, Be32::new(first))?;
        frame.write(14 + 4, Be16::new(udp_len as u16))?;
    } else {
        let total = Be16::new((udp_len + 20) as u16);
        let class = Be16::new(u16::from(carried.class));
        frame.write(14 + 1, carried.class)?;
        frame.write(14 + 2, total)?;
        // The template's field holds the sum of everything else.
        let sum = u64::from(u16::from_ne_bytes([backend.header[24], backend.header[25]]))
            + u64::from(total.raw())
            + u64::from(class.raw());
        frame.write(14 + 10, !checksum::fold(sum))?;
    }
    frame.write(udp_at, Be16::new(hash::source_port(carried.hash)))?;
    frame.write(udp_at + 4, Be16::new(udp_len as u16))?;
    if carried.mark != 0 || !asked.is_empty() {
        let geneve_at = udp_at + 8;
        let words = asked.len() as u8;
        frame.write(geneve_at, backend.header[geneve_at] + words)?;
        frame.write(geneve_at + 8 + 3, backend.header[geneve_at + 8 + 3] + words)?;
        frame.write(geneve_at + 8 + 4, carried.mark)?;
        let mut i = 0;
        while i < CANDIDATES_MAX as u32 {
            if i < asked.len() {
                let identity = asked.list[i as usize + 1];
                frame.write(len + 4 * i as usize, Be32::new(identity))?;
            }
            i += 1;
        }
    }
    Some(())
}
