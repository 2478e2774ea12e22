//! What the benchmark tells the driver programs: the packet to put in place before every run, and how it varies.
//!
//! Compiled into the driver and, by path, into `bench`, so that both have one layout.

/// Longest packet head that is rewritten: the inner headers behind the longest encapsulation are within it.
pub(crate) const HEAD_MAX: usize = 192;
/// Bytes that are copied at once; a head is one to three of them.
pub(crate) const CHUNK: usize = 64;
/// Fields that differ between flows: client address, client port, VIP.
pub(crate) const FIELDS: usize = 3;

/// A 16-bit field in network byte order: `base + ((flow >> shift) & mask)`.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Field {
    /// Where it is, from the start of the Ethernet header; at most [`HEAD_MAX`].
    pub(crate) at: u32,
    /// Its value for flow 0.
    pub(crate) base: u32,
    /// Bits of the flow's number that are passed over.
    pub(crate) shift: u32,
    /// Bits of it that count.
    pub(crate) mask: u32,
}

/// The one entry of the map `script`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Script {
    /// Number of the next packet; the driver counts it up.
    pub(crate) counter: u32,
    /// Number of flows less one; flows are a power of two.
    pub(crate) flows_mask: u32,
    /// Length of the whole packet, which the program under test may change and the driver restores.
    pub(crate) length: u32,
    /// Length of the head in chunks, one to three.
    pub(crate) chunks: u32,
    /// What differs between flows.
    pub(crate) fields: [Field; FIELDS],
    /// The head that is written before every run.
    pub(crate) head: [u64; HEAD_MAX / 8],
}

impl Script {
    /// Bytes of a script in the map.
    pub(crate) const LEN: usize = size_of::<Self>();

    /// The script as it lies in the map.
    #[allow(dead_code, reason = "the driver reads it in place")]
    pub(crate) fn bytes(&self) -> [u8; Self::LEN] {
        let Self {
            counter,
            flows_mask,
            length,
            chunks,
            fields,
            head,
        } = self;
        let words = [*counter, *flows_mask, *length, *chunks].into_iter();
        let fields = fields.iter().flat_map(|f| [f.at, f.base, f.shift, f.mask]);
        let mut bytes = [0; Self::LEN];
        let (front, rest) = bytes.split_at_mut(Self::LEN - HEAD_MAX);
        for (to, word) in front
            .as_chunks_mut::<4>()
            .0
            .iter_mut()
            .zip(words.chain(fields))
        {
            *to = word.to_ne_bytes();
        }
        for (to, word) in rest.as_chunks_mut::<8>().0.iter_mut().zip(head) {
            *to = word.to_ne_bytes();
        }
        bytes
    }
}
