//! Answers, rendered once for all requests that want the same.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use ringway_core::answer::status_line;
use ringway_core::http::{CHUNK_HEAD_MAX, write_chunk_head};

use super::worker::Settings;

/// Rendered answers that a thread keeps. Past it all are forgotten: a test that wants so many sizes pays for them.
const KEPT_BYTES_MAX: usize = 256 << 20;
const KEPT_MAX: usize = 4096;
const CHUNK_BYTES: usize = 16 * 1024;

/// Everything in which answers differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    pub(super) status: u16,
    pub(super) body_bytes: usize,
    /// To a HEAD request: no body.
    pub(super) is_head: bool,
    /// To a client that knows no chunks.
    pub(super) is_http10: bool,
    pub(super) keep_alive: bool,
}

/// What answers have in common.
#[derive(Debug)]
pub(super) struct Look {
    /// Whole lines.
    fields: Vec<u8>,
    is_json: bool,
    is_chunked: bool,
}

/// A whole answer, as it is sent.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) bytes: Vec<u8>,
    head_length: usize,
}

/// One thread's rendered answers.
pub(super) struct Answers {
    settings: Arc<Settings>,
    kept: HashMap<Shape, Rc<Answer>>,
    kept_bytes: usize,
}

impl Look {
    pub(super) fn new(content_type: &str, fields: &[String], is_chunked: bool) -> Self {
        let content_type = format!("Content-Type: {content_type}");
        let lines = [&content_type].into_iter().chain(fields).flat_map(|field| [field.as_bytes(), b"\r\n"]);
        Self { fields: lines.flatten().copied().collect(), is_json: content_type.contains("json"), is_chunked }
    }

    fn render(&self, shape: Shape) -> Answer {
        let mut bytes = Vec::with_capacity(shape.body_bytes + shape.body_bytes / 1024 + self.fields.len() + 256);
        status_line(shape.status, &mut bytes);
        bytes.extend_from_slice(&self.fields);
        // RFC 9110 sections 15.3.5, 15.3.6 and 15.4.5.
        let has_body = !matches!(shape.status, 204 | 205 | 304);
        let is_chunked = has_body && self.is_chunked && !shape.is_http10;
        if is_chunked {
            bytes.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
        } else if !matches!(shape.status, 204 | 304) {
            let length = if has_body { shape.body_bytes } else { 0 };
            bytes.extend_from_slice(format!("Content-Length: {length}\r\n").as_bytes());
        }
        match (shape.keep_alive, shape.is_http10) {
            (true, false) => {}
            (true, true) => bytes.extend_from_slice(b"Connection: keep-alive\r\n"),
            (false, _) => bytes.extend_from_slice(b"Connection: close\r\n"),
        }
        bytes.extend_from_slice(b"\r\n");
        let head_length = bytes.len();
        if has_body && !shape.is_head {
            let body = self.body(shape.body_bytes);
            if is_chunked { write_chunks(&body, &mut bytes) } else { bytes.extend_from_slice(&body) }
        }
        Answer { bytes, head_length }
    }

    /// Of exactly this size, and valid JSON where it is called that (nothing is not, but then nothing was asked for).
    fn body(&self, size: usize) -> Vec<u8> {
        const WRAP: (&[u8], &[u8]) = (b"{\"data\":\"", b"\"}");
        match size.checked_sub(WRAP.0.len() + WRAP.1.len()) {
            _ if !self.is_json => vec![b'x'; size],
            Some(rest) => [WRAP.0, &vec![b'x'; rest], WRAP.1].concat(),
            // A number.
            None => vec![b'1'; size],
        }
    }
}

impl Answer {
    /// The head and half of the body; half of the head, where there is no body.
    pub(super) fn half(&self) -> &[u8] {
        let body = self.bytes.len() - self.head_length;
        let half = if body > 0 { self.head_length + body / 2 } else { self.head_length / 2 };
        &self.bytes[..half]
    }
}

impl Answers {
    pub(super) fn new(settings: Arc<Settings>) -> Self {
        Self { settings, kept: HashMap::new(), kept_bytes: 0 }
    }

    pub(super) fn get(&mut self, shape: Shape) -> Rc<Answer> {
        if let Some(answer) = self.kept.get(&shape) {
            return Rc::clone(answer);
        }
        let answer = Rc::new(self.settings.look.render(shape));
        if self.kept.len() >= KEPT_MAX || self.kept_bytes + answer.bytes.len() > KEPT_BYTES_MAX {
            self.kept.clear();
            self.kept_bytes = 0;
        }
        self.kept_bytes += answer.bytes.len();
        self.kept.insert(shape, Rc::clone(&answer));
        answer
    }
}

fn write_chunks(body: &[u8], out: &mut Vec<u8>) {
    for chunk in body.chunks(CHUNK_BYTES) {
        let mut head = [0; CHUNK_HEAD_MAX];
        let length = write_chunk_head(chunk.len(), &mut head);
        out.extend_from_slice(&head[CHUNK_HEAD_MAX - length..]);
        out.extend_from_slice(chunk);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"0\r\n\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape { status: 200, body_bytes: 20, is_head: false, is_http10: false, keep_alive: true };

    fn render(look: &Look, shape: Shape) -> String {
        String::from_utf8(look.render(shape).bytes).unwrap()
    }

    #[test]
    fn answers_as_they_are_sent() {
        let look = Look::new("application/json", &["X-A: b".into()], false);
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-A: b\r\nContent-Length: 20\r\n";
        let body = "{\"data\":\"xxxxxxxxx\"}";
        assert_eq!(render(&look, SHAPE), format!("{head}\r\n{body}"));
        assert_eq!(render(&look, Shape { is_head: true, ..SHAPE }), format!("{head}\r\n"));
        let old = Shape { is_http10: true, ..SHAPE };
        assert_eq!(render(&look, old), format!("{head}Connection: keep-alive\r\n\r\n{body}"));
        let last = Shape { keep_alive: false, ..SHAPE };
        assert_eq!(render(&look, last), format!("{head}Connection: close\r\n\r\n{body}"));
    }

    #[test]
    fn statuses_without_a_body() {
        let look = Look::new("text/plain", &[], true);
        for (status, framing) in [(204, ""), (205, "Content-Length: 0\r\n"), (304, "")] {
            let answer = render(&look, Shape { status, ..SHAPE });
            let (_, rest) = answer.split_once("Content-Type: text/plain\r\n").unwrap();
            assert_eq!(rest, format!("{framing}\r\n"));
        }
    }

    #[test]
    fn chunks_are_for_who_knows_them() {
        let look = Look::new("text/plain", &[], true);
        let chunked = render(&look, SHAPE);
        assert!(chunked.ends_with("Transfer-Encoding: chunked\r\n\r\n14\r\nxxxxxxxxxxxxxxxxxxxx\r\n0\r\n\r\n"));
        assert!(render(&look, Shape { is_http10: true, ..SHAPE }).contains("Content-Length: 20\r\n"));
        let empty = render(&look, Shape { body_bytes: 0, ..SHAPE });
        assert!(empty.ends_with("\r\n\r\n0\r\n\r\n"));
    }

    #[test]
    fn bodies_have_their_size_and_are_json_where_they_say_so() {
        let look = Look::new("application/json", &[], false);
        for size in 1..40 {
            let body = look.body(size);
            assert_eq!(body.len(), size);
            assert!(serde_json::from_slice::<serde_json::Value>(&body).is_ok(), "{size}");
        }
    }

    #[test]
    fn half_an_answer_is_never_a_whole_one() {
        let look = Look::new("text/plain", &[], false);
        for body_bytes in [0, 1, 2, 1000] {
            let answer = look.render(Shape { body_bytes, ..SHAPE });
            assert!(answer.half().len() < answer.bytes.len());
        }
    }
}
