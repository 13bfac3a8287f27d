//! Finding the end of a head, whatever pieces it arrives in.

/// What a look at the bytes so far says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadScan {
    /// No end yet.
    Partial,
    /// The head is this long, its empty line included.
    Complete(usize),
    /// A line that does not end with CR LF (RFC 9112 section 2.2): never accepted, never waited for.
    BareLineFeed,
    /// The first byte cannot start a message: TLS on a plain port, or garbage.
    NotHttp,
}

/// Looks for the empty line that ends a head. Each byte is looked at once, so that a client that sends one byte at a
/// time costs no more than one that sends them all.
#[derive(Debug, Clone, Copy, Default)]
pub struct HeadScanner {
    /// Bytes looked at.
    seen: usize,
    /// Where the current line starts.
    line: usize,
    /// Length of the first line, once it is whole.
    first_line: Option<usize>,
}

impl HeadScanner {
    /// `bytes` is the message from its first byte on, more of it with each call.
    ///
    /// Hot; watched by the benchmark `head_scan`.
    #[inline]
    pub fn scan(&mut self, bytes: &[u8]) -> HeadScan {
        if self.seen == 0 && bytes.first().is_some_and(|first| !first.is_ascii_graphic() && *first != b'\n') {
            return HeadScan::NotHttp;
        }
        while let Some(found) = bytes.get(self.seen..).and_then(|rest| memchr::memchr(b'\n', rest)) {
            let end = self.seen + found;
            if end == self.line || bytes.get(end - 1) != Some(&b'\r') {
                return HeadScan::BareLineFeed;
            }
            if end == self.line + 1 {
                return HeadScan::Complete(end + 1);
            }
            self.seen = end + 1;
            self.line = end + 1;
            self.first_line.get_or_insert(end + 1);
        }
        self.seen = bytes.len();
        HeadScan::Partial
    }

    /// Whether the first line has been seen whole and has no more than this many bytes.
    pub fn has_first_line_within(&self, bytes: usize) -> bool {
        self.first_line.is_some_and(|length| length <= bytes)
    }
}

/// How many bytes of empty lines stand before a request (RFC 9112 section 2.2 asks to skip at least one CR LF).
pub fn leading_empty_lines(bytes: &[u8]) -> usize {
    let mut skipped = 0;
    while bytes.get(skipped..skipped + 2) == Some(b"\r\n") {
        skipped += 2;
    }
    skipped
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\nbody";

    #[test]
    fn finds_the_end_in_any_pieces() {
        for step in 1..=HEAD.len() {
            let mut scanner = HeadScanner::default();
            let mut end = 0;
            let found = loop {
                end = (end + step).min(HEAD.len());
                match scanner.scan(&HEAD[..end]) {
                    HeadScan::Partial => assert!(end < HEAD.len()),
                    other => break other,
                }
            };
            assert_eq!(found, HeadScan::Complete(HEAD.len() - 4), "step {step}");
        }
    }

    #[test]
    fn refuses_bare_line_feeds_and_garbage_at_once() {
        for bad in [
            &b"GET / HTTP/1.1\n"[..],
            b"\nGET / HTTP/1.1\r\n",
            b"GET / HTTP/1.1\r\n\n",
            b"GET / HTTP/1.1\r\nA: b\nC: d\r\n\r\n",
        ] {
            assert_eq!(HeadScanner::default().scan(bad), HeadScan::BareLineFeed);
        }
        assert_eq!(HeadScanner::default().scan(b"\x16\x03\x01\x02"), HeadScan::NotHttp);
    }

    #[test]
    fn counts_leading_empty_lines() {
        assert_eq!(leading_empty_lines(b"\r\n\r\nGET"), 4);
        assert_eq!(leading_empty_lines(b"\rGET"), 0);
    }
}
