//! Whole messages, made rather than found: what is written is read as what it was, in whatever pieces it arrives.

use proptest::collection::vec;
use proptest::prelude::*;
use ringway_core::http::{
    BodyDecoder, CHUNK_HEAD_MAX, Framing, HeadScan, HeadScanner, HeadStorage, Name, RequestHead, ResponseHead, Target,
    write_chunk_head, write_trailers,
};

type Fields = Vec<(String, Vec<u8>)>;

/// Names that mean nothing to the gateway.
fn fields() -> impl Strategy<Value = Fields> {
    let name = "[A-Za-z0-9!#$%&'*+.^_`|~-]{1,20}".prop_filter("means something", |name| Name::of(name) == Name::Other);
    let text = prop_oneof![Just(b'\t'), b' '..=b'~', 0x80..=0xffu8];
    let value = vec(text, 0..40).prop_map(|value| value.trim_ascii().to_vec());
    vec((name, value), 0..20)
}

#[derive(Debug, Clone)]
enum Body {
    None,
    Length(Vec<u8>),
    Chunked(Vec<Vec<u8>>, Fields),
}

fn body() -> impl Strategy<Value = Body> {
    let bytes = || vec(any::<u8>(), 1..300);
    let chunked = (vec(bytes(), 0..6), fields()).prop_map(|(chunks, trailers)| Body::Chunked(chunks, trailers));
    prop_oneof![Just(Body::None), bytes().prop_map(Body::Length), chunked]
}

fn write_fields(fields: &Fields, out: &mut Vec<u8>) {
    for (name, value) in fields {
        out.extend([name.as_bytes(), b": ", value, b"\r\n"].concat());
    }
}

/// Writes the fields that frame the body, the end of the head, and the body.
fn write_body(body: &Body, out: &mut Vec<u8>) {
    match body {
        Body::None => out.extend_from_slice(b"\r\n"),
        Body::Length(bytes) => {
            out.extend_from_slice(format!("content-length: {}\r\n\r\n", bytes.len()).as_bytes());
            out.extend_from_slice(bytes);
        }
        Body::Chunked(chunks, trailers) => {
            out.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
            for chunk in chunks {
                let mut room = [0; CHUNK_HEAD_MAX];
                let length = write_chunk_head(chunk.len(), &mut room);
                out.extend([&room[CHUNK_HEAD_MAX - length..], chunk, b"\r\n"].concat());
            }
            let mut section = Vec::new();
            write_fields(trailers, &mut section);
            out.extend_from_slice(b"0\r\n");
            write_trailers(&section, |_| true, out).expect("good trailers");
        }
    }
}

/// What arrives when, again and again in these sizes.
fn arrivals<'a>(bytes: &'a [u8], pieces: &'a [usize]) -> impl Iterator<Item = &'a [u8]> {
    let (mut sizes, mut rest) = (pieces.iter().cycle(), bytes);
    std::iter::from_fn(move || {
        let (piece, after) = rest.split_at((*sizes.next()?).min(rest.len()));
        rest = after;
        (!piece.is_empty()).then_some(piece)
    })
}

/// The length of the head.
fn head_length(bytes: &[u8], pieces: &[usize]) -> usize {
    let (mut scanner, mut end) = (HeadScanner::default(), 0);
    for piece in arrivals(bytes, pieces) {
        end += piece.len();
        match scanner.scan(&bytes[..end]) {
            HeadScan::Partial => {}
            HeadScan::Complete(length) => return length,
            other => panic!("{other:?}"),
        }
    }
    panic!("no end")
}

/// The body, the trailer section and how much of the bytes they took.
fn read_body(framing: Framing, bytes: &[u8], pieces: &[usize]) -> (Vec<u8>, Vec<u8>, usize) {
    let mut decoder = BodyDecoder::new(framing);
    let (mut body, mut used) = (Vec::new(), 0);
    for piece in arrivals(bytes, pieces) {
        if decoder.is_done() {
            break;
        }
        let mut piece = piece.to_vec();
        let decoded = decoder.decode(&mut piece).expect("a good body");
        body.extend_from_slice(&piece[decoded.data]);
        used += decoded.consumed;
    }
    assert!(decoder.is_done());
    (body, decoder.trailers().to_vec(), used)
}

fn check_body(body: &Body, framing: Framing, bytes: &[u8], behind: &[u8], pieces: &[usize]) {
    let (read, trailers, used) = read_body(framing, bytes, pieces);
    assert_eq!(&bytes[used..], behind, "what follows is the next message's");
    match body {
        Body::None => assert_eq!((framing, read.len()), (Framing::None, 0)),
        Body::Length(bytes) => assert_eq!((framing, &read), (Framing::Length(bytes.len() as u64), bytes)),
        Body::Chunked(chunks, written) => {
            assert_eq!((framing, read), (Framing::Chunked, chunks.concat()));
            // Some of the names must not stand there, and were left out.
            let lines = written.iter().map(|(name, value)| [name.as_bytes(), b": ", value, b"\r\n"].concat());
            let mut rest = trailers.as_slice();
            lines.for_each(|line| rest = rest.strip_prefix(line.as_slice()).unwrap_or(rest));
            assert!(rest.is_empty(), "{}", rest.escape_ascii());
        }
    }
}

fn pieces() -> impl Strategy<Value = Vec<usize>> {
    vec(1..200usize, 1..6)
}

proptest! {
    #[test]
    fn a_request_is_read_as_it_was_written(
        method in "[A-Z]{3,7}".prop_filter("no tunnels", |method| method != "CONNECT"),
        path in "/[!-\"$-&(->@-~]{0,40}",
        query in prop::option::of("[!-\"$-~]{0,40}"),
        fields in fields(), body in body(), behind in vec(any::<u8>(), 0..30), pieces in pieces(),
    ) {
        let target = query.as_ref().map_or(path.clone(), |query| format!("{path}?{query}"));
        let mut bytes = format!("{method} {target} HTTP/1.1\r\nHost: example.com:8080\r\n").into_bytes();
        write_fields(&fields, &mut bytes);
        write_body(&body, &mut bytes);
        bytes.extend_from_slice(&behind);

        let length = head_length(&bytes, &pieces);
        let mut storage = HeadStorage::new();
        let request = RequestHead::parse(&bytes[..length], 100, &mut storage).expect("a good head");
        prop_assert_eq!(request.method, method);
        let expected = Target::Path { path: path.as_bytes(), query: query.as_ref().map(String::as_bytes) };
        prop_assert_eq!(request.target, expected);
        prop_assert_eq!((request.authority, request.host()), (&b"example.com:8080"[..], &b"example.com"[..]));
        let read = request.headers.iter().filter(|header| Name::of(header.name) == Name::Other);
        prop_assert!(read.map(|header| (header.name.to_owned(), header.value.to_vec())).eq(fields));
        check_body(&body, request.framing, &bytes[length..], &behind, &pieces);
    }

    #[test]
    fn an_answer_is_read_as_it_was_written(
        status in 200..600u16, fields in fields(), body in body(), behind in vec(any::<u8>(), 0..30), pieces in pieces(),
    ) {
        let mut bytes = format!("HTTP/1.1 {status} Some Reason\r\n").into_bytes();
        write_fields(&fields, &mut bytes);
        write_body(&body, &mut bytes);
        bytes.extend_from_slice(&behind);

        let length = head_length(&bytes, &pieces);
        let mut storage = HeadStorage::new();
        let answer = ResponseHead::parse(&bytes[..length], false, &mut storage).expect("a good head");
        prop_assert_eq!((answer.status, answer.reason), (status, "Some Reason"));
        let read = answer.headers.iter().filter(|header| Name::of(header.name) == Name::Other);
        prop_assert!(read.map(|header| (header.name.to_owned(), header.value.to_vec())).eq(fields));
        match (status, &body) {
            (204 | 304, _) => prop_assert_eq!(answer.framing, Framing::None),
            (_, Body::None) => prop_assert_eq!(answer.framing, Framing::Close),
            _ => check_body(&body, answer.framing, &bytes[length..], &behind, &pieces),
        }
    }
}
