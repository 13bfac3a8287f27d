//! What of a request's body has gone to its service beyond the block that came with the head, kept for another try as long as it is
//! not more than the retries allow.

use std::cell::{Cell, RefCell};

use ringway_core::http::Framing;

use crate::worker::Worker;

/// Memory: as many bytes as the policy's `body` for each request whose body is still kept; none before the first piece.
pub(crate) struct Replay<'a> {
    worker: &'a Worker,
    /// Pieces as they were sent, behind what stands behind the head.
    kept: RefCell<Vec<u8>>,
    /// Bytes that may still be kept.
    room: Cell<usize>,
    /// Some of the body has gone and was not kept.
    is_lost: Cell<bool>,
}

impl<'a> Replay<'a> {
    /// `bytes_max`: of the whole body as it is sent, of which `with_head` stand behind the head.
    pub(crate) fn new(worker: &'a Worker, framing: Framing, bytes_max: usize, with_head: usize) -> Self {
        let fits = !matches!(framing, Framing::Length(length) if length > bytes_max as u64);
        let room = if fits { bytes_max.saturating_sub(with_head) } else { 0 };
        Self { worker, kept: RefCell::default(), room: Cell::new(room), is_lost: Cell::new(false) }
    }

    /// A piece is about to be sent.
    pub(crate) fn keep(&self, piece: &[u8]) {
        if self.is_lost.get() || piece.is_empty() {
            return;
        }
        let mut kept = self.kept.borrow_mut();
        match self.room.get().checked_sub(piece.len()) {
            Some(left) => {
                if kept.capacity() == 0 {
                    *kept = self.worker.take_head();
                }
                kept.extend_from_slice(piece);
                self.room.set(left);
            }
            None => {
                self.is_lost.set(true);
                self.worker.give_head(std::mem::take(&mut kept));
            }
        }
    }

    /// Whether all of the body that has gone is at hand.
    pub(crate) fn is_whole(&self) -> bool {
        !self.is_lost.get()
    }

    /// Puts what was kept behind the head and the part of the body that stands there.
    pub(crate) fn join(&self, head: &mut Vec<u8>) {
        head.append(&mut self.kept.borrow_mut());
    }
}

impl Drop for Replay<'_> {
    fn drop(&mut self) {
        let kept = self.kept.take();
        if kept.capacity() > 0 {
            self.worker.give_head(kept);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connection::Connection;
    use crate::testing::{Service, on_core};

    #[test]
    fn what_is_kept_comes_once_and_is_no_more_than_may_be() {
        on_core(&Service::nobody(), async |conn: &Connection, _| {
            let replay = |framing, bytes_max, with_head| Replay::new(&conn.worker, framing, bytes_max, with_head);
            let kept = replay(Framing::Chunked, 10, 2);
            let mut head = b"head ab".to_vec();
            kept.keep(b"cde");
            kept.join(&mut head);
            kept.join(&mut head);
            kept.keep(b"fgh");
            kept.keep(b"");
            kept.join(&mut head);
            assert_eq!((head.as_slice(), kept.is_whole()), (&b"head abcdefgh"[..], true));
            kept.keep(b"ijk");
            assert!(!kept.is_whole(), "eleven");
            kept.keep(b"");
            assert!(!kept.is_whole() && kept.kept.borrow().capacity() == 0);

            // Nothing has gone yet, and nothing will be kept.
            for lost in [replay(Framing::Chunked, 0, 0), replay(Framing::Length(11), 10, 0)] {
                assert!(lost.is_whole());
                lost.keep(b"a");
                assert!(!lost.is_whole() && lost.kept.borrow().capacity() == 0);
            }
            let all = replay(Framing::Length(10), 10, 4);
            all.keep(b"456789");
            assert!(all.is_whole());
        });
    }
}
