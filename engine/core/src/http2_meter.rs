//! What an HTTP/2 connection makes its receiver do besides requests (RFC 9113 section 10.5): frames are counted by their
//! heads as they pass. A head says enough; payloads are skipped.

/// Bytes before a client's first frame: the connection preface (RFC 9113 section 3.4).
const PREFACE_BYTES: usize = 24;
/// Frames besides requests that a client may send at once, and how many come back a second. The same number comes back
/// [`CREDIT_OF_AN_ANSWER`] at a time with each frame of an answer: a client tells as often that its windows are open again.
const CONTROL_FRAMES_MAX: u32 = 2_000;
const CONTROL_FRAMES_PER_SECOND: u32 = 200;
const CREDIT_OF_AN_ANSWER: u32 = 4;
/// Resets come back in this many seconds, all of them.
const RESETS_REFILL_SECONDS: u32 = 3;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const END_STREAM: u8 = 1;

/// More than a client has reason for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Excess {
    /// Streams that it opened and gave up again.
    Resets,
    /// SETTINGS, PING, PRIORITY, WINDOW_UPDATE, CONTINUATION, empty DATA and unknown frames.
    ControlFrames,
}

/// The meter of one connection.
#[derive(Debug)]
pub struct Meter {
    received: Frames,
    sent: Frames,
    resets: Allowance,
    control: Allowance,
}

impl Meter {
    /// `resets`: streams that the client may give up at once; `now`: microseconds.
    pub fn new(resets: u32, now: u64) -> Self {
        Self {
            received: Frames { skip: PREFACE_BYTES, ..Frames::default() },
            sent: Frames::default(),
            resets: Allowance::new(resets, resets.div_ceil(RESETS_REFILL_SECONDS), now),
            control: Allowance::new(CONTROL_FRAMES_MAX, CONTROL_FRAMES_PER_SECOND, now),
        }
    }

    /// Bytes of the client, in the order in which they came.
    ///
    /// # Errors
    /// What there was too much of: the connection is to be ended.
    pub fn receive(&mut self, mut bytes: &[u8], now: u64) -> Result<(), Excess> {
        while let Some(frame) = self.received.next(&mut bytes) {
            match frame.kind {
                HEADERS => {}
                DATA if frame.length > 0 || frame.flags & END_STREAM != 0 => {}
                RST_STREAM => self.resets.take(now).ok_or(Excess::Resets)?,
                _ => self.control.take(now).ok_or(Excess::ControlFrames)?,
            }
        }
        Ok(())
    }

    /// Bytes for the client. Resets are refusals: streams beyond those that it may have, or that break the protocol.
    ///
    /// # Errors
    /// As [`Meter::receive`].
    pub fn send(&mut self, mut bytes: &[u8], now: u64) -> Result<(), Excess> {
        while let Some(frame) = self.sent.next(&mut bytes) {
            match frame.kind {
                DATA | HEADERS => self.control.give(CREDIT_OF_AN_ANSWER),
                RST_STREAM => self.control.take(now).ok_or(Excess::ControlFrames)?,
                _ => {}
            }
        }
        Ok(())
    }
}

/// A frame's head (RFC 9113 section 4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub length: usize,
    pub stream: u32,
}

const HEAD_BYTES: usize = 9;

/// Finds the heads in a stream of frames.
#[derive(Debug, Default)]
pub struct Frames {
    head: [u8; HEAD_BYTES],
    filled: usize,
    /// Bytes before the next head.
    skip: usize,
}

impl Frames {
    /// Whether the last frame has come whole.
    pub fn is_between(&self) -> bool {
        self.filled == 0 && self.skip == 0
    }

    /// The head of the next frame, if it has come whole; `bytes` is then what follows it.
    pub fn next(&mut self, bytes: &mut &[u8]) -> Option<Frame> {
        let skipped = self.skip.min(bytes.len());
        self.skip -= skipped;
        let rest = bytes.get(skipped..).unwrap_or_default();
        let taken = (HEAD_BYTES - self.filled).min(rest.len());
        let (head, rest) = rest.split_at_checked(taken).unwrap_or_default();
        if let Some(room) = self.head.get_mut(self.filled..self.filled + taken) {
            room.copy_from_slice(head);
        }
        *bytes = rest;
        self.filled += taken;
        if self.filled < HEAD_BYTES {
            return None;
        }
        self.filled = 0;
        let [high, middle, low, kind, flags, stream @ ..] = self.head;
        let length = u32::from_be_bytes([0, high, middle, low]) as usize;
        self.skip = length;
        Some(Frame { kind, flags, length, stream: u32::from_be_bytes(stream) & 0x7fff_ffff })
    }
}

/// So many at once, and so many a second; the clock is looked at when there are none left.
#[derive(Debug)]
struct Allowance {
    left: u32,
    max: u32,
    per_second: u32,
    filled_at: u64,
}

impl Allowance {
    fn new(max: u32, per_second: u32, now: u64) -> Self {
        Self { left: max, max, per_second, filled_at: now }
    }

    fn take(&mut self, now: u64) -> Option<()> {
        if self.left == 0 {
            let gained = now.saturating_sub(self.filled_at).saturating_mul(self.per_second.into()) / 1_000_000;
            if gained > 0 {
                self.filled_at = now;
                self.give(u32::try_from(gained).unwrap_or(u32::MAX));
            }
        }
        self.left = self.left.checked_sub(1)?;
        Some(())
    }

    fn give(&mut self, count: u32) {
        self.left = self.left.saturating_add(count).min(self.max);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, flags: u8, payload: usize) -> Vec<u8> {
        let mut frame = (payload as u32).to_be_bytes()[1..].to_vec();
        frame.extend_from_slice(&[kind, flags, 0, 0, 0, 1]);
        frame.resize(HEAD_BYTES + payload, 0xff);
        frame
    }

    fn meter() -> Meter {
        let mut meter = Meter::new(100, 0);
        meter.receive(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 0).unwrap();
        meter
    }

    /// How many of a frame pass at one moment.
    fn passing(meter: &mut Meter, frame: &[u8], now: u64) -> (u32, Excess) {
        (0..).find_map(|count| Some((count, meter.receive(frame, now).err()?))).unwrap()
    }

    #[test]
    fn resets_have_an_allowance_that_comes_back() {
        let mut meter = meter();
        let reset = frame(RST_STREAM, 0, 4);
        assert_eq!(passing(&mut meter, &reset, 0), (100, Excess::Resets));
        let mut allowance = Allowance::new(100, 34, 0);
        let taken = |now| std::iter::from_fn(|| allowance.take(now)).count();
        assert_eq!([0, 1_000_000, 1_500_000, 60_000_000].map(taken), [100, 34, 17, 100]);
    }

    #[test]
    fn every_other_frame_without_a_request_is_counted_too() {
        // PRIORITY, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION, PRIORITY_UPDATE, unknown, empty DATA.
        for kind in [2, 4, 6, 7, 8, 9, 16, 200] {
            assert_eq!(passing(&mut meter(), &frame(kind, 0, 6), 0), (2_000, Excess::ControlFrames), "{kind}");
        }
        assert_eq!(passing(&mut meter(), &frame(DATA, 0, 0), 0), (2_000, Excess::ControlFrames));
    }

    #[test]
    fn requests_and_their_bodies_are_free() {
        let mut meter = meter();
        for _ in 0..100_000 {
            meter.receive(&frame(HEADERS, 4, 30), 0).unwrap();
            meter.receive(&frame(DATA, 0, 1), 0).unwrap();
            meter.receive(&frame(DATA, END_STREAM, 0), 0).unwrap();
        }
    }

    #[test]
    fn who_takes_an_answer_may_open_its_windows() {
        let mut meter = meter();
        for _ in 0..100_000 {
            meter.send(&frame(DATA, 0, 1_000), 0).unwrap();
            for kind in [8, 8, 6, 6] {
                meter.receive(&frame(kind, 0, 4), 0).unwrap();
            }
        }
    }

    proptest! {
        #[test]
        fn pieces_count_as_the_whole(
            frames in prop::collection::vec((any::<u8>(), any::<u8>(), 0usize..40), 0..80),
            cuts in prop::collection::vec(1usize..30, 1..40),
        ) {
            let bytes: Vec<u8> = frames.iter().flat_map(|(kind, flags, size)| frame(*kind, *flags, *size)).collect();
            let (mut whole, mut pieces) = (meter(), meter());
            whole.receive(&bytes, 0).unwrap_or_default();
            let mut rest = &bytes[..];
            for cut in cuts.into_iter().cycle() {
                let (piece, after) = rest.split_at(cut.min(rest.len()));
                if piece.is_empty() || pieces.receive(piece, 0).is_err() {
                    break;
                }
                rest = after;
            }
            prop_assert_eq!(whole.resets.left, pieces.resets.left);
            prop_assert_eq!(whole.control.left, pieces.control.left);
        }
    }
}
