//! Reads answers from a connection's bytes, in whatever pieces they come. Bodies are counted off, not kept.

use ringway_core::http::{BodyDecoder, Framing, HeadScan, HeadScanner, HeadStorage, ResponseHead};

/// Longest head of an answer.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// Where a connection is in its current answer.
#[derive(Default)]
pub(crate) struct Reader {
    scanner: HeadScanner,
    /// A head whose end has not come yet; most come whole, and are never copied.
    partial: Vec<u8>,
    head: Option<Head>,
}

struct Head {
    status: u16,
    keep_alive: bool,
    body: BodyDecoder,
}

/// What some bytes have brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    More,
    /// The answer is whole. `reusable`: the connection may carry another request.
    Done {
        status: u16,
        reusable: bool,
    },
    /// This is not HTTP/1.1, or could be read in two ways.
    Malformed,
}

impl Reader {
    /// Ready for the next answer.
    #[inline]
    pub(crate) fn reset(&mut self) {
        self.scanner = HeadScanner::default();
        self.partial.clear();
        self.head = None;
    }

    /// Takes the next bytes of the answer to a request, `to_head` if that was HEAD.
    ///
    /// The body's bytes may be moved within `bytes`.
    pub(crate) fn feed(&mut self, bytes: &mut [u8], to_head: bool) -> Step {
        let mut at = 0;
        loop {
            let rest = &mut bytes[at..];
            if let Some(head) = &mut self.head {
                let Ok(decoded) = head.body.decode(rest) else { return Step::Malformed };
                if !decoded.done {
                    return Step::More;
                }
                let reusable = head.keep_alive && decoded.consumed == rest.len();
                return Step::Done { status: head.status, reusable };
            }
            match self.head(rest, to_head) {
                Ok(Some(used)) => at += used,
                Ok(None) => return Step::More,
                Err(Malformed) => return Step::Malformed,
            }
        }
    }

    /// The target has closed its side: the status if that ends the answer as announced.
    pub(crate) fn end(&self) -> Option<u16> {
        self.head.as_ref().filter(|head| matches!(head.body, BodyDecoder::Close)).map(|head| head.status)
    }

    /// Looks for the end of the head; how many of the bytes belong to it, once it is there.
    fn head(&mut self, bytes: &[u8], to_head: bool) -> Result<Option<usize>, Malformed> {
        let before = self.partial.len();
        let scanned = if before == 0 {
            self.scanner.scan(bytes)
        } else {
            self.partial.extend_from_slice(bytes);
            self.scanner.scan(&self.partial)
        };
        match scanned {
            HeadScan::Complete(length) => {
                let head = if before == 0 { &bytes[..length] } else { &self.partial[..length] };
                self.head = parse(head, to_head)?;
                self.scanner = HeadScanner::default();
                self.partial.clear();
                Ok(Some(length - before))
            }
            HeadScan::Partial if before + bytes.len() > HEAD_BYTES_MAX => Err(Malformed),
            HeadScan::Partial => {
                if before == 0 {
                    self.partial.extend_from_slice(bytes);
                }
                Ok(None)
            }
            HeadScan::BareLineFeed | HeadScan::NotHttp => Err(Malformed),
        }
    }
}

struct Malformed;

/// A final head; none for an interim one, which another follows.
fn parse(head: &[u8], to_head: bool) -> Result<Option<Head>, Malformed> {
    let mut storage = HeadStorage::new();
    let parsed = ResponseHead::parse(head, to_head, &mut storage).map_err(|_| Malformed)?;
    match parsed.status {
        // Nobody asked for another protocol.
        101 => Err(Malformed),
        100..=199 => Ok(None),
        status => {
            debug_assert!(parsed.framing != Framing::Close || !parsed.keep_alive);
            Ok(Some(Head { status, keep_alive: parsed.keep_alive, body: BodyDecoder::new(parsed.framing) }))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes of an answer in pieces of `step` bytes, at the end of the input if not before.
    fn read(answer: &str, step: usize, to_head: bool) -> Step {
        let mut reader = Reader::default();
        let mut bytes = answer.as_bytes().to_vec();
        let mut last = Step::More;
        for piece in bytes.chunks_mut(step) {
            assert_eq!(last, Step::More, "{answer:?} goes on after its end");
            last = reader.feed(piece, to_head);
            if last == Step::Malformed {
                break;
            }
        }
        last
    }

    fn read_any(answer: &str, to_head: bool) -> Step {
        let whole = read(answer, answer.len(), to_head);
        (1..answer.len()).for_each(|step| assert_eq!(read(answer, step, to_head), whole, "{answer:?} by {step}"));
        whole
    }

    const OK: Step = Step::Done { status: 200, reusable: true };

    #[test]
    fn answers_end_where_their_framing_says_in_any_pieces() {
        assert_eq!(read_any("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", false), OK);
        assert_eq!(read_any("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", false), OK);
        let chunked =
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n3;x=y\r\nyou\r\n0\r\nT: v\r\n\r\n";
        assert_eq!(read_any(chunked, false), OK);
        assert_eq!(read_any("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", true), OK);
        assert_eq!(read_any("HTTP/1.1 204 No Content\r\n\r\n", false), Step::Done { status: 204, reusable: true });
    }

    #[test]
    fn interim_answers_are_passed_over() {
        let early = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: a\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1";
        assert_eq!(read_any(early, false), OK);
    }

    #[test]
    fn connections_that_must_not_be_used_again() {
        let close = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok";
        assert_eq!(read_any(close, false), Step::Done { status: 200, reusable: false });
        let more = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok!";
        assert_eq!(read(more, more.len(), false), Step::Done { status: 200, reusable: false });
    }

    #[test]
    fn an_answer_may_end_with_its_connection() {
        let mut reader = Reader::default();
        assert_eq!(reader.end(), None);
        assert_eq!(reader.feed(&mut b"HTTP/1.1 200 OK\r\n\r\nsome".to_vec(), false), Step::More);
        assert_eq!(reader.end(), Some(200));
        reader.reset();
        assert_eq!(reader.feed(&mut b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nsome".to_vec(), false), Step::More);
        assert_eq!(reader.end(), None);
    }

    #[test]
    fn what_is_not_an_answer_is_refused() {
        for bad in [
            "SSH-2.0-OpenSSH_9.2\r\n\r\n",
            "HTTP/1.1 200 OK\nContent-Length: 1\n\n1",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n1",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
            "HTTP/1.1 101 Switching Protocols\r\n\r\n",
        ] {
            assert_eq!(read_any(bad, false), Step::Malformed, "{bad:?}");
        }
        let endless = format!("HTTP/1.1 200 OK\r\nA: {}", "x".repeat(2 * HEAD_BYTES_MAX));
        assert_eq!(read(&endless, 4096, false), Step::Malformed);
    }
}
