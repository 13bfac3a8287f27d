//! What a connection has received and not used yet.

/// Longest head of a request, and what is received in one call.
const INBOX_BYTES: usize = 64 * 1024;

/// A buffer that is filled at its end and used up from its front.
#[derive(Default)]
pub(super) struct Inbox {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Inbox {
    pub(super) fn new() -> Self {
        Self { bytes: vec![0; INBOX_BYTES], start: 0, end: 0 }
    }

    #[inline]
    pub(super) fn data(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    #[inline]
    pub(super) fn data_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.end]
    }

    pub(super) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Where more may be received; empty where the buffer is full.
    #[inline]
    pub(super) fn room(&mut self) -> &mut [u8] {
        if self.end == self.bytes.len() && self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        &mut self.bytes[self.end..]
    }

    /// So many bytes of the room are filled.
    #[inline]
    pub(super) fn received(&mut self, count: usize) {
        self.end += count;
    }

    #[inline]
    pub(super) fn consume(&mut self, count: usize) {
        self.start += count;
        if self.start == self.end {
            self.clear();
        }
    }

    pub(super) fn clear(&mut self) {
        (self.start, self.end) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_moves_to_the_front_when_the_room_is_used_up() {
        let mut inbox = Inbox::new();
        let room = inbox.room();
        let length = room.len();
        room[length - 3..].copy_from_slice(b"abc");
        inbox.received(length);
        assert!(inbox.room().is_empty());
        inbox.consume(length - 3);
        assert_eq!(inbox.room().len(), length - 3);
        assert_eq!(inbox.data(), b"abc");
        inbox.consume(3);
        assert!(inbox.is_empty() && inbox.room().len() == length);
    }
}
