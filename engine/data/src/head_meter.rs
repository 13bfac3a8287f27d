//! Counts the heads that a service of HTTP/2 sends for each stream. `h2` keeps interim answers, which no window limits, until
//! somebody asks for them, and a slow client can keep the serve path from asking.

use ringway_core::http2_meter::Frames;

use crate::answer::INTERIM_MAX;

/// HEADERS frames of one stream: interim answers, of which the serve path takes no more than that, the answer, the trailers.
const HEADS_MAX: u32 = INTERIM_MAX as u32 + 8;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const ACK: u8 = 1;

/// Looks at a connection's bytes on their way to `h2`.
pub(crate) struct HeadMeter {
    frames: Frames,
    /// The last stream of each place, and its heads. There are as many places as streams at a time, so that two streams
    /// seldom share one.
    streams: Vec<(u32, u32)>,
    settings: Settings,
}

/// How far the service's first SETTINGS are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Settings {
    Awaited,
    Begun,
    Whole,
}

/// A stream has more heads than an answer can have.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many heads for one stream")]
pub(crate) struct Flood;

impl HeadMeter {
    pub(crate) fn new(streams_max: usize) -> Self {
        let streams = vec![(0, 0); streams_max.next_power_of_two()];
        Self { frames: Frames::default(), streams, settings: Settings::Awaited }
    }

    /// Whether the service has said what it takes (RFC 9113 section 3.4).
    pub(crate) fn has_settings(&self) -> bool {
        self.settings == Settings::Whole
    }

    pub(crate) fn look(&mut self, mut bytes: &[u8]) -> Result<(), Flood> {
        while let Some(frame) = self.frames.next(&mut bytes) {
            match self.settings {
                Settings::Awaited if frame.kind == SETTINGS && frame.flags & ACK == 0 => {
                    self.settings = Settings::Begun;
                }
                Settings::Begun => self.settings = Settings::Whole,
                Settings::Awaited | Settings::Whole => {}
            }
            let place = frame.stream as usize / 2 % self.streams.len();
            let Some(stream) = self.streams.get_mut(place).filter(|_| frame.kind == HEADERS) else { continue };
            *stream = if stream.0 == frame.stream { (frame.stream, stream.1 + 1) } else { (frame.stream, 1) };
            if stream.1 > HEADS_MAX {
                return Err(Flood);
            }
        }
        if self.settings == Settings::Begun && self.frames.is_between() {
            self.settings = Settings::Whole;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, stream: u32, payload: usize) -> Vec<u8> {
        let mut frame = (payload as u32).to_be_bytes()[1..].to_vec();
        frame.extend_from_slice(&[kind, 4]);
        frame.extend_from_slice(&stream.to_be_bytes());
        frame.resize(frame.len() + payload, 1);
        frame
    }

    #[test]
    fn settings_count_when_they_have_come_whole() {
        let acknowledged = [0, 0, 0, SETTINGS, ACK, 0, 0, 0, 0];
        for bytes in [[&acknowledged[..], &frame(8, 0, 4), &frame(SETTINGS, 0, 12)].concat(), frame(SETTINGS, 0, 0)] {
            for size in [1, 5, 9, 100] {
                let mut meter = HeadMeter::new(100);
                for piece in bytes.chunks(size) {
                    assert!(!meter.has_settings());
                    meter.look(piece).unwrap();
                }
                assert!(meter.has_settings());
            }
        }
    }

    #[test]
    fn heads_are_counted_in_any_pieces() {
        for size in [1, 2, 7, 9, 10, 64, 100_000] {
            let mut meter = HeadMeter::new(100);
            let mut bytes = Vec::new();
            for index in 0..500 {
                let stream = 2 * index + 1;
                for (kind, payload) in [(1, 30), (0, 100), (0, 0), (8, 4), (1, 0)] {
                    bytes.extend_from_slice(&frame(kind, stream, payload));
                }
            }
            assert!(bytes.chunks(size).all(|piece| meter.look(piece).is_ok()), "pieces of {size}");
            let flood: Vec<u8> = (0..HEADS_MAX + 1).flat_map(|_| frame(1, 7, 5)).collect();
            assert!(bytes.chunks(size).all(|piece| meter.look(piece).is_ok()));
            assert_eq!(flood.chunks(size).find_map(|piece| meter.look(piece).err()), Some(Flood), "pieces of {size}");
        }
    }
}
