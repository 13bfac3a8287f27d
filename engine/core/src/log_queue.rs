//! The way of access log lines from the cores to the one thread that writes them: whole buffers, lock-free, bounded.

use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::queue::ArrayQueue;

/// A core hands a buffer over when it holds this many bytes, or when the tick finds it not empty.
pub const BATCH_BYTES: usize = 32 * 1024;
/// What a buffer is made with: a batch and the longest line that may follow the last one that fits.
pub const BUFFER_BYTES: usize = BATCH_BYTES + 16 * 1024;

/// Buffers on their way to the writer and back. Memory: at most `2 * capacity` buffers of [`BUFFER_BYTES`].
#[derive(Debug)]
pub struct LogQueue {
    full: ArrayQueue<Vec<u8>>,
    empty: ArrayQueue<Vec<u8>>,
    dropped_lines: AtomicU64,
}

impl LogQueue {
    /// `capacity`: how many full buffers may wait for the writer.
    pub fn new(capacity: usize) -> Self {
        Self {
            full: ArrayQueue::new(capacity.max(1)),
            empty: ArrayQueue::new(capacity.max(1)),
            dropped_lines: AtomicU64::new(0),
        }
    }

    /// Hands a full buffer over and gives an empty one back. When the writer is behind, the lines are counted as
    /// dropped and the same buffer comes back empty: the path never waits for a disk.
    ///
    /// Hot; watched by the benchmark `log_queue`.
    pub fn swap(&self, buffer: &mut Vec<u8>) -> bool {
        let next = self.take_empty();
        match self.full.push(std::mem::replace(buffer, next)) {
            Ok(()) => true,
            Err(mut refused) => {
                let lines = memchr::memchr_iter(b'\n', &refused).count();
                self.dropped_lines.fetch_add(lines as u64, Ordering::Relaxed);
                refused.clear();
                let spare = std::mem::replace(buffer, refused);
                let _ = self.empty.push(spare);
                false
            }
        }
    }

    /// Hands a full buffer over; gives it back where the writer is behind.
    pub fn offer(&self, buffer: Vec<u8>) -> Result<(), Vec<u8>> {
        self.full.push(buffer)
    }

    /// An empty buffer.
    pub fn take_empty(&self) -> Vec<u8> {
        self.empty.pop().unwrap_or_else(|| Vec::with_capacity(BUFFER_BYTES))
    }

    /// Whether anything waits for the writer.
    pub fn has_full(&self) -> bool {
        !self.full.is_empty()
    }

    /// Whether so much waits that the writer is worth a wake: often enough for the buffers to stay in the cache, seldom
    /// enough for its turns on a busy core not to count.
    pub fn is_filling(&self) -> bool {
        self.full.len() >= 4
    }

    /// The writer's side: the oldest full buffer.
    pub fn pop(&self) -> Option<Vec<u8>> {
        self.full.pop()
    }

    /// The writer's side: gives a written buffer back for reuse.
    pub fn give_back(&self, mut buffer: Vec<u8>) {
        buffer.clear();
        let _ = self.empty.push(buffer);
    }

    /// Lines dropped since the start because the writer was behind.
    pub fn dropped_lines(&self) -> u64 {
        self.dropped_lines.load(Ordering::Relaxed)
    }

    /// Counts lines that the writer could not write (a full disk).
    pub fn count_dropped(&self, lines: u64) {
        self.dropped_lines.fetch_add(lines, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_drops_and_counts_lines_and_keeps_the_buffer() {
        let queue = LogQueue::new(1);
        let mut buffer = b"a\nb\n".to_vec();
        assert!(queue.swap(&mut buffer));
        assert!(buffer.is_empty());
        buffer.extend_from_slice(b"c\nd\ne\n");
        assert!(!queue.swap(&mut buffer));
        assert!(buffer.is_empty());
        assert_eq!(queue.dropped_lines(), 3);
        assert_eq!(queue.pop().unwrap(), b"a\nb\n");
        assert!(queue.pop().is_none());
    }

    #[test]
    fn written_buffers_are_used_again() {
        let queue = LogQueue::new(2);
        let mut buffer = Vec::with_capacity(BUFFER_BYTES);
        buffer.extend_from_slice(b"line\n");
        let address = buffer.as_ptr();
        assert!(queue.swap(&mut buffer));
        queue.give_back(queue.pop().unwrap());
        assert!(queue.swap(&mut buffer));
        assert_eq!(buffer.as_ptr(), address);
    }
}
