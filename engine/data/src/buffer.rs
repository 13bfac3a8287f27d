//! Receive buffers: one block holds the head and the body of a usual message, with room in front for a new head.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;

use ringway_core::stats::WorkerCell;

/// A new head is written into this room, right before the body that was received behind the old one.
pub(crate) const FRONT_BYTES: usize = 1024;
/// Kept free behind the data for the end of a chunk and of a chunked body.
pub(crate) const TAIL_BYTES: usize = 64;
/// A usual answer, head and 16 KiB of body, fits behind the front.
pub(crate) const BLOCK_BYTES: usize = 20 * 1024;
/// Alignment of the first received byte: a cache line, which the kernel's copy likes.
const ALIGN: usize = 64;
/// Free blocks that a core keeps, of each kind: 1.25 MiB.
const FREE_BYTES_MAX: usize = 64 * BLOCK_BYTES;
/// Holds a usual head of a request, behind the front.
const SMALL_BLOCK_BYTES: usize = 4 * 1024;

/// A core's blocks.
pub(crate) struct Buffers {
    block_bytes: usize,
    free_max: usize,
    free: RefCell<Vec<Box<[u8]>>>,
    in_use: Cell<u64>,
}

/// Bytes between two cursors, with room in front and behind. Goes back to its core's free list when dropped.
pub(crate) struct Buffer {
    bytes: Box<[u8]>,
    base: usize,
    start: usize,
    end: usize,
    home: Rc<Buffers>,
}

impl Buffers {
    pub(crate) fn new() -> Rc<Self> {
        Self::of(BLOCK_BYTES)
    }

    /// For heads without bodies.
    pub(crate) fn small() -> Rc<Self> {
        Self::of(SMALL_BLOCK_BYTES)
    }

    fn of(block_bytes: usize) -> Rc<Self> {
        let free_max = FREE_BYTES_MAX / block_bytes;
        let free = RefCell::new(Vec::with_capacity(free_max));
        Rc::new(Self { block_bytes, free_max, free, in_use: Cell::new(0) })
    }

    /// An empty buffer. `cell` counts those that were not in the free list.
    #[inline]
    pub(crate) fn take(self: &Rc<Self>, cell: &WorkerCell) -> Buffer {
        let block = self.free.borrow_mut().pop().unwrap_or_else(|| {
            cell.buffers_made.add(1);
            vec![0; self.block_bytes].into_boxed_slice()
        });
        self.in_use.set(self.in_use.get() + 1);
        Buffer::around(block, Rc::clone(self))
    }

    pub(crate) fn in_use(&self) -> u64 {
        self.in_use.get()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.home.in_use.set(self.home.in_use.get() - 1);
        let mut free = self.home.free.borrow_mut();
        if self.bytes.len() == self.home.block_bytes && free.len() < self.home.free_max {
            free.push(std::mem::take(&mut self.bytes));
        }
    }
}

impl Buffer {
    fn around(bytes: Box<[u8]>, home: Rc<Buffers>) -> Self {
        let base = FRONT_BYTES + (bytes.as_ptr() as usize + FRONT_BYTES).wrapping_neg() % ALIGN;
        Self { bytes, base, start: base, end: base, home }
    }

    /// The data.
    #[inline]
    pub(crate) fn data(&self) -> &[u8] {
        self.bytes.get(self.start..self.end).unwrap_or_default()
    }

    #[inline]
    pub(crate) fn data_mut(&mut self) -> &mut [u8] {
        self.bytes.get_mut(self.start..self.end).unwrap_or_default()
    }

    /// Where a part of the data stands in it; `None` for what is not a part of it.
    pub(crate) fn range_of(&self, part: &[u8]) -> Option<Range<usize>> {
        let start = (part.as_ptr() as usize).checked_sub(self.data().as_ptr() as usize)?;
        let range = start..start + part.len();
        (range.end <= self.len()).then_some(range)
    }

    pub(crate) fn len(&self) -> usize {
        self.end - self.start
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Room for what is received next.
    #[inline]
    pub(crate) fn room(&mut self) -> &mut [u8] {
        let limit = self.bytes.len() - TAIL_BYTES;
        self.bytes.get_mut(self.end..limit).unwrap_or_default()
    }

    /// Counts `received` bytes of the room as data.
    #[inline]
    pub(crate) fn received(&mut self, received: usize) {
        self.end = (self.end + received).min(self.bytes.len());
    }

    /// Drops bytes from the front of the data.
    #[inline]
    pub(crate) fn consume(&mut self, bytes: usize) {
        self.start = (self.start + bytes).min(self.end);
        if self.start == self.end {
            self.clear();
        }
    }

    /// Keeps this part of the data only.
    #[inline]
    pub(crate) fn narrow(&mut self, part: Range<usize>) {
        self.end = self.end.min(self.start + part.end);
        self.start = self.end.min(self.start + part.start);
    }

    pub(crate) fn clear(&mut self) {
        self.start = self.base;
        self.end = self.base;
    }

    /// Writes `bytes` right before the data; false where the front has no room for them.
    #[inline]
    pub(crate) fn prepend(&mut self, bytes: &[u8]) -> bool {
        let Some(start) = self.start.checked_sub(bytes.len()) else { return false };
        let Some(room) = self.bytes.get_mut(start..self.start) else { return false };
        room.copy_from_slice(bytes);
        self.start = start;
        true
    }

    /// Writes `bytes` right behind the data, into the tail too; false where there is no room.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> bool {
        let Some(room) = self.bytes.get_mut(self.end..self.end + bytes.len()) else { return false };
        room.copy_from_slice(bytes);
        self.end += bytes.len();
        true
    }

    /// Makes room behind the data, for `wanted` bytes in all: moves the data to the base, or into a larger block (which
    /// is not kept) where even that does not do.
    pub(crate) fn make_room(&mut self, wanted: usize) {
        if self.start > self.base {
            self.bytes.copy_within(self.start..self.end, self.base);
            self.end -= self.start - self.base;
            self.start = self.base;
        }
        let needed = self.base + wanted + TAIL_BYTES;
        if needed > self.bytes.len() {
            let larger = vec![0; needed.max(self.bytes.len() * 2) + ALIGN].into_boxed_slice();
            self.home.in_use.set(self.home.in_use.get() + 1);
            let old = std::mem::replace(self, Self::around(larger, Rc::clone(&self.home)));
            self.append(old.data());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_aligned_and_used_again() {
        let (buffers, made) = (Buffers::new(), WorkerCell::default());
        let mut buffer = buffers.take(&made);
        let address = buffer.room().as_ptr() as usize;
        assert_eq!(address % ALIGN, 0);
        assert!(buffer.room().len() >= 18 * 1024);
        assert_eq!(buffers.in_use(), 1);
        drop(buffer);
        assert_eq!(buffers.in_use(), 0);
        assert_eq!(buffers.take(&made).room().as_ptr() as usize, address);
        assert_eq!(made.buffers_made.get(), 1);
    }

    #[test]
    fn data_moves_between_front_and_tail() {
        let (buffers, made) = (Buffers::new(), WorkerCell::default());
        let mut buffer = buffers.take(&made);
        assert!(buffer.append(b"old head|body"));
        buffer.consume(9);
        assert!(buffer.prepend(b"a new and longer head|") && buffer.append(b"!"));
        assert_eq!(buffer.data(), b"a new and longer head|body!");
        assert!(!buffer.prepend(&[0; 2 * FRONT_BYTES]));
        buffer.make_room(100_000);
        assert!(buffer.room().len() + buffer.len() >= 100_000);
        assert_eq!(buffer.data(), b"a new and longer head|body!");
        drop(buffer);
        assert_eq!(buffers.in_use(), 0);
    }
}
