//! What goes out: parts that are sealed, and the records that they become.

use std::io::{IoSlice, Result};

use ringway_io::Sock;

use super::record::OVERHEAD_BYTES_MAX;
use crate::buffer::Buffer;
use crate::worker::Worker;

/// Blocks of records that leave in one send: 80 KiB.
const BLOCKS_MAX: usize = 4;
/// A shorter record in the end of a block is not worth its overhead.
const RECORD_BYTES_MIN: usize = 1024;

/// Blocks of sealed records that wait to leave.
#[derive(Default)]
pub(super) struct Outgoing {
    first: Option<Buffer>,
    /// Those behind it, which there are where much is sent at a time.
    more: Vec<Buffer>,
}

impl Outgoing {
    /// The block to write behind.
    pub(super) fn last(&mut self, worker: &Worker) -> &mut Buffer {
        match self.more.last_mut() {
            Some(last) => last,
            None => self.first.get_or_insert_with(|| worker.take_answer()),
        }
    }

    /// Where a record of so many bytes may be sealed, or the first part of it; `None` where no more may wait.
    pub(super) fn room(&mut self, wanted: usize, worker: &Worker) -> Option<&mut Buffer> {
        let fits = |block: &mut Buffer| block.room().len() >= wanted.min(RECORD_BYTES_MIN) + OVERHEAD_BYTES_MAX;
        if !fits(self.last(worker)) {
            if self.more.len() + 1 >= BLOCKS_MAX {
                return None;
            }
            self.more.push(worker.take_answer());
        }
        Some(self.last(worker))
    }

    /// Sends as much as there is room for; whether all has left.
    pub(super) fn flush(&mut self, sock: &Sock) -> Result<bool> {
        let Some(first) = &mut self.first else { return Ok(true) };
        while !first.is_empty() && self.more.is_empty() {
            match sock.send(first.data(), false)? {
                0 => return Ok(false),
                sent => first.consume(sent),
            }
        }
        while !first.is_empty() || !self.more.is_empty() {
            let mut parts = [IoSlice::new(first.data()); BLOCKS_MAX];
            for (part, block) in parts.iter_mut().skip(1).zip(&self.more) {
                *part = IoSlice::new(block.data());
            }
            let mut sent = sock.send_parts(parts.get(..=self.more.len()).unwrap_or_default())?;
            if sent == 0 {
                return Ok(false);
            }
            while sent >= first.len() {
                sent -= first.len();
                first.clear();
                if self.more.is_empty() {
                    break;
                }
                *first = self.more.remove(0);
            }
            first.consume(sent);
        }
        self.first = None;
        Ok(true)
    }
}

/// What is left of parts one behind the other.
pub(super) struct Parts<'a> {
    parts: &'a [IoSlice<'a>],
    /// Bytes of the first that are used up.
    used: usize,
    pub(super) length: usize,
}

impl<'a> Parts<'a> {
    pub(super) fn new(parts: &'a [IoSlice<'a>]) -> Self {
        Self { parts, used: 0, length: parts.iter().map(|part| part.len()).sum() }
    }

    /// The next bytes, `wanted` at most; none at the end.
    fn next(&mut self, wanted: usize) -> &'a [u8] {
        while let Some((first, rest)) = self.parts.split_first() {
            let left = first.get(self.used..).unwrap_or_default();
            if !left.is_empty() {
                let next = left.get(..wanted).unwrap_or(left);
                self.used += next.len();
                self.length -= next.len();
                return next;
            }
            (self.parts, self.used) = (rest, 0);
        }
        &[]
    }

    pub(super) fn skip(&mut self, mut bytes: usize) {
        while bytes > 0 && self.length > 0 {
            bytes -= self.next(bytes).len();
        }
    }

    /// The same number of bytes as `room` has, which must be there.
    pub(super) fn fill(&mut self, mut room: &mut [u8]) {
        while !room.is_empty() && self.length > 0 {
            let next = self.next(room.len());
            let (here, behind) = std::mem::take(&mut room).split_at_mut(next.len());
            here.copy_from_slice(next);
            room = behind;
        }
    }
}
