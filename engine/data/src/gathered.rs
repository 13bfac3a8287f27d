//! What is written in a turn, on its way out in one send: small parts are copied, blocks are held.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::rc::Rc;

use crate::buffer::{BLOCK_BYTES, Buffer};
use crate::stream::Shown;
use crate::worker::Worker;

/// What the streams of a connection may write before it has to leave.
const GATHERED_BYTES_MAX: usize = 256 * 1024;
/// A shorter piece is copied: it is not worth a block.
const HELD_BYTES_MIN: usize = 4 * 1024;
/// Parts of one send.
const PARTS_MAX: usize = 32;

/// What the crate `h2` has written of a connection and has not left.
pub(crate) struct Outbox {
    worker: Rc<Worker>,
    /// The core's while there is something in it; else it holds nothing.
    gathered: Gathered,
    /// The block that `h2` reads from.
    shown: Rc<Shown>,
}

impl Outbox {
    /// `shown`: where the pieces of the connection say which block they are of.
    pub(crate) fn new(worker: &Rc<Worker>, shown: Rc<Shown>) -> Self {
        Self { worker: Rc::clone(worker), gathered: Gathered::default(), shown }
    }

    pub(crate) fn shown(&self) -> Rc<Shown> {
        Rc::clone(&self.shown)
    }

    /// Whether it has to leave before more is put in.
    pub(crate) fn is_full(&self) -> bool {
        self.gathered.held_bytes() > GATHERED_BYTES_MAX
    }

    pub(crate) fn put(&mut self, part: &[u8]) {
        if self.gathered.is_empty() {
            self.gathered = self.worker.take_gathered();
        }
        if part.len() >= HELD_BYTES_MIN
            && let Some(block) = self.shown.take()
            && let Some(range) = block.range_of(part)
        {
            return self.gathered.hold(block, range);
        }
        self.gathered.copy(part);
    }

    /// Sends it as far as there is room; whether all of it has left.
    pub(crate) fn flush(&mut self, send: impl FnMut(&[IoSlice<'_>]) -> io::Result<usize>) -> io::Result<bool> {
        self.shown.take();
        if self.gathered.is_empty() {
            return Ok(true);
        }
        if !self.gathered.send(send)? {
            return Ok(false);
        }
        self.worker.give_gathered(std::mem::take(&mut self.gathered));
        Ok(true)
    }
}

/// Parts in the order of their writing. Empty it holds no memory but its room, which belongs to the core.
#[derive(Default)]
pub(crate) struct Gathered {
    copied: Vec<u8>,
    parts: VecDeque<Part>,
    /// Bytes of the first part that have left.
    sent: usize,
    blocks: usize,
}

enum Part {
    /// Where it stands among what was copied.
    Copied(Range<usize>),
    /// A part of a block's data.
    Held(Rc<Buffer>, Range<usize>),
}

impl Gathered {
    pub(crate) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Memory that it takes, in bytes.
    pub(crate) fn held_bytes(&self) -> usize {
        self.copied.len() + self.blocks * BLOCK_BYTES
    }

    pub(crate) fn copy(&mut self, bytes: &[u8]) {
        let start = self.copied.len();
        self.copied.extend_from_slice(bytes);
        let end = self.copied.len();
        match self.parts.back_mut() {
            Some(Part::Copied(range)) if range.end == start => range.end = end,
            _ => self.parts.push_back(Part::Copied(start..end)),
        }
    }

    /// `part`: of the block's data.
    pub(crate) fn hold(&mut self, block: Rc<Buffer>, part: Range<usize>) {
        self.blocks += 1;
        self.parts.push_back(Part::Held(block, part));
    }

    /// Gives `send` the parts, as far as it takes them; whether all have left. What it does not take it is given again, first
    /// of all.
    pub(crate) fn send(&mut self, mut send: impl FnMut(&[IoSlice<'_>]) -> io::Result<usize>) -> io::Result<bool> {
        while !self.parts.is_empty() {
            let mut slices = [IoSlice::new(&[]); PARTS_MAX];
            let mut length = 0;
            let mut skipped = self.sent;
            for (slice, part) in slices.iter_mut().zip(&self.parts) {
                let bytes = match part {
                    Part::Copied(range) => self.copied.get(range.clone()),
                    Part::Held(block, range) => block.data().get(range.clone()),
                };
                let left = bytes.unwrap_or_default().get(std::mem::take(&mut skipped)..).unwrap_or_default();
                length += left.len();
                *slice = IoSlice::new(left);
            }
            let sent = send(slices.get(..self.parts.len()).unwrap_or(&slices))?;
            self.advance(sent);
            if sent < length {
                return Ok(false);
            }
        }
        self.copied.clear();
        Ok(true)
    }

    fn advance(&mut self, sent: usize) {
        self.sent += sent;
        while let Some(part) = self.parts.front() {
            let (length, blocks) = match part {
                Part::Copied(range) => (range.len(), 0),
                Part::Held(_, range) => (range.len(), 1),
            };
            if self.sent < length {
                return;
            }
            self.sent -= length;
            self.blocks -= blocks;
            self.parts.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::Buffers;
    use proptest::prelude::*;
    use ringway_core::stats::WorkerCell;

    proptest! {
        #[test]
        fn what_is_sent_piece_by_piece_is_what_was_written(
            parts in prop::collection::vec((prop::bool::ANY, prop::collection::vec(any::<u8>(), 1..50), 0..20_usize), 0..100),
            takes in prop::collection::vec(0..200_usize, 1..50),
        ) {
            let (blocks, cell) = (Buffers::new(), WorkerCell::default());
            let (mut gathered, mut written, mut sent) = (Gathered::default(), Vec::new(), Vec::new());
            let mut takes = takes.into_iter().cycle();
            for (held, bytes, skipped) in parts {
                let part = skipped.min(bytes.len() - 1)..bytes.len();
                written.extend_from_slice(&bytes[part.clone()]);
                if held {
                    let mut block = blocks.take(&cell);
                    prop_assert!(block.append(&bytes));
                    gathered.hold(Rc::new(block), part);
                } else {
                    gathered.copy(&bytes[part]);
                }
                gathered.send(|parts| {
                    let all: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
                    let taken = all.len().min(takes.next().unwrap());
                    sent.extend_from_slice(&all[..taken]);
                    Ok(taken)
                }).unwrap();
                prop_assert!(blocks.in_use() as usize * BLOCK_BYTES <= gathered.held_bytes());
            }
            let all_sent = gathered.send(|parts| {
                parts.iter().for_each(|part| sent.extend_from_slice(part));
                Ok(parts.iter().map(|part| part.len()).sum())
            }).unwrap();
            prop_assert!(all_sent);
            prop_assert_eq!(sent, written);
            prop_assert_eq!((gathered.held_bytes(), blocks.in_use()), (0, 0));
        }
    }
}
