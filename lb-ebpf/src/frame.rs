//! The bytes of a packet: bounds-checked reads and writes at offsets, room made or taken at the front and the back.
//!
//! The programs implement [`Frame`] over the kernel's buffers; [`Buffer`] implements it over plain memory, with the same
//! refusals, so that the same code runs in both.

use crate::abi::Plain;

/// A packet, from its Ethernet header on.
#[expect(clippy::len_without_is_empty, reason = "a frame is never empty")]
pub trait Frame: Sized {
    /// What a frame can be opened from again, so that rarely taken paths take one word instead of a live frame.
    type Handle: Copy;

    /// Looks at the packet as it is now.
    fn open(handle: Self::Handle) -> Self;
    /// The inverse of [`Frame::open`].
    fn handle(&self) -> Self::Handle;
    /// The interface that the packet came in on.
    fn ifindex(&self) -> u32;
    /// Bytes in the frame.
    fn len(&self) -> usize;
    /// Copies a header out. `None`: the frame ends before it does.
    fn read<T: Plain>(&self, at: usize) -> Option<T>;
    /// Copies a value in. `None`: the frame ends before it does, nothing was written.
    fn write<T: Plain>(&mut self, at: usize, value: T) -> Option<()>;
    /// Moves the front by `by` bytes: negative makes room, positive takes bytes away. `None`: there is no room.
    fn move_head(&mut self, by: i32) -> Option<()>;
    /// Moves the end by `by` bytes: negative takes bytes away.
    fn move_tail(&mut self, by: i32) -> Option<()>;
    /// The one's complement sum (RFC 1071) of the `N` bytes at `at`; `N` is a multiple of four, at most 512.
    fn sum<const N: usize>(&self, at: usize) -> Option<u64>;
}

#[cfg(any(test, feature = "host"))]
pub use host::{Buffer, Packet};

#[cfg(any(test, feature = "host"))]
mod host {
    use core::cell::RefCell;
    use core::mem::{MaybeUninit, size_of};
    use std::vec::Vec;

    use super::Frame;
    use crate::abi::Plain;
    use crate::checksum;

    /// Room in front of a packet, as XDP gives it (`XDP_PACKET_HEADROOM`).
    const HEADROOM: usize = 256;

    /// A packet in plain memory.
    #[derive(Clone, Debug)]
    pub struct Packet {
        memory: RefCell<Memory>,
        ifindex: u32,
    }

    #[derive(Clone, Debug)]
    struct Memory {
        bytes: Vec<u8>,
        head: usize,
    }

    impl Packet {
        /// From the bytes on the wire, on interface 1: the one that the kernel's test runs have.
        pub fn new(wire: &[u8]) -> Self {
            let mut bytes = std::vec![0; HEADROOM];
            bytes.extend_from_slice(wire);
            Self {
                memory: RefCell::new(Memory {
                    bytes,
                    head: HEADROOM,
                }),
                ifindex: 1,
            }
        }

        /// The same on another interface.
        #[must_use]
        pub fn on(self, ifindex: u32) -> Self {
            Self { ifindex, ..self }
        }

        /// The bytes as they are now.
        pub fn bytes(&self) -> Vec<u8> {
            let memory = self.memory.borrow();
            memory.bytes[memory.head..].to_vec()
        }
    }

    /// A [`Frame`] over a [`Packet`].
    #[derive(Clone, Copy, Debug)]
    pub struct Buffer<'a>(pub &'a Packet);

    impl<'a> Frame for Buffer<'a> {
        type Handle = &'a Packet;

        fn open(handle: Self::Handle) -> Self {
            Self(handle)
        }

        fn handle(&self) -> Self::Handle {
            self.0
        }

        fn ifindex(&self) -> u32 {
            self.0.ifindex
        }

        fn len(&self) -> usize {
            let memory = self.0.memory.borrow();
            memory.bytes.len() - memory.head
        }

        fn read<T: Plain>(&self, at: usize) -> Option<T> {
            let memory = self.0.memory.borrow();
            let start = memory.head.checked_add(at)?;
            let source = memory
                .bytes
                .get(start..start.checked_add(size_of::<T>())?)?;
            let mut value = MaybeUninit::<T>::uninit();
            // SAFETY: `source` has exactly the size of `T`, the ranges do not overlap, and any bytes are a valid `T`,
            // since it is `Plain`.
            unsafe {
                core::ptr::copy_nonoverlapping(
                    source.as_ptr(),
                    value.as_mut_ptr().cast(),
                    size_of::<T>(),
                );
                Some(value.assume_init())
            }
        }

        fn write<T: Plain>(&mut self, at: usize, value: T) -> Option<()> {
            let mut memory = self.0.memory.borrow_mut();
            let start = memory.head.checked_add(at)?;
            let target = memory
                .bytes
                .get_mut(start..start.checked_add(size_of::<T>())?)?;
            // SAFETY: `target` has exactly the size of `T`, and `T` has no padding, since it is `Plain`.
            unsafe {
                core::ptr::copy_nonoverlapping(
                    (&raw const value).cast(),
                    target.as_mut_ptr(),
                    size_of::<T>(),
                );
            }
            Some(())
        }

        fn move_head(&mut self, by: i32) -> Option<()> {
            let mut memory = self.0.memory.borrow_mut();
            let head = memory.head.checked_add_signed(by as isize)?;
            // As the kernel: an Ethernet header must be left.
            if head + 14 > memory.bytes.len() {
                return None;
            }
            memory.head = head;
            Some(())
        }

        fn move_tail(&mut self, by: i32) -> Option<()> {
            let mut memory = self.0.memory.borrow_mut();
            let end = memory.bytes.len().checked_add_signed(by as isize)?;
            if end < memory.head + 14 {
                return None;
            }
            memory.bytes.resize(end, 0);
            Some(())
        }

        fn sum<const N: usize>(&self, at: usize) -> Option<u64> {
            let memory = self.0.memory.borrow();
            let start = memory.head + at;
            memory.bytes.get(start..start + N).map(checksum::sum)
        }
    }
}
