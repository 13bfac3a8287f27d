//! The codec beside `httparse` and `hyper`: what we accept, both accept, and they read the same messages from the same
//! bytes, one after the other on a connection, so that none of them ends where another goes on. Where hyper accepts
//! and we refuse, it must be on the list of what we refuse on purpose.
//!
//! `RINGWAY_FUZZ_SEED` and `RINGWAY_FUZZ_SECONDS` work as in `run.rs`.

mod support;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::path::Path;
use std::rc::Rc;
use std::time::Instant;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use ringway_core::http::{
    BodyDecoder, ChunkError, HeadScan, HeadScanner, HeadStorage, RequestError, RequestHead, Target, Version,
    leading_empty_lines, write_trailers,
};
use ringway_core::path::{DoubleSlash, EncodedSlash, PathPolicy, normalize};
use ringway_core::random::Random;
use support::{duration, mutate, seed};
use tokio::io::AsyncWriteExt;

/// hyper's own limit.
const HEADERS_MAX: usize = 100;

/// A request as somebody read it.
#[derive(Debug, PartialEq, Eq)]
struct Message {
    method: String,
    /// Path and query, or `*`.
    target: String,
    is_http11: bool,
    /// By name, lower case; the values of one name in their order.
    fields: Vec<(String, Vec<u8>)>,
    body: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    BareLineFeed,
    NotHttp,
    Head(RequestError),
    Path,
    Chunk(ChunkError),
    Trailers,
}

/// What we refuse though hyper does not, and why: two recipients might disagree on it, or it is not for a gateway.
const STRICTER: &[(Refusal, &str)] = &[
    (Refusal::BareLineFeed, "RFC 9112 section 2.2 lets a recipient take a bare LF for a line's end; others do not"),
    (Refusal::Head(RequestError::MissingHost), "RFC 9112 section 3.2: 400 without Host"),
    (Refusal::Head(RequestError::RepeatedHost), "RFC 9112 section 3.2: 400 with more than one Host"),
    (Refusal::Head(RequestError::BadHost), "RFC 9112 section 3.2: 400 with a Host that is not valid"),
    (Refusal::Head(RequestError::Connect), "RFC 9110 section 9.3.6: no tunnels here"),
    (
        Refusal::Head(RequestError::Target),
        "RFC 9112 section 3.2: only http and https, no user information, no fragment",
    ),
    (Refusal::Head(RequestError::RepeatedLength), "RFC 9110 section 8.6 lets a recipient reject equal lengths"),
    (Refusal::Head(RequestError::LengthAndCoding), "RFC 9112 section 6.1: may be rejected, ought to be an error"),
    (
        Refusal::Head(RequestError::ContentLength),
        "RFC 9110 section 8.6: a length of 19 digits or more, zeros before it",
    ),
    (Refusal::Head(RequestError::UnknownCoding), "RFC 9112 section 6.1: 501 for a coding that is not understood"),
    (Refusal::Head(RequestError::BadCoding), "RFC 9112 section 7: chunked is applied once"),
    (Refusal::Head(RequestError::Expectation), "RFC 9110 section 10.1.1: 417"),
    (Refusal::Path, "RFC 3986 section 3.3: characters that a URI must encode; paths above the root"),
    (Refusal::Chunk(ChunkError::Size), "RFC 9112 section 7.1: blanks behind a size without an extension; 16 digits"),
    (Refusal::Chunk(ChunkError::Extension), "RFC 9112 section 7.1.1: extensions are limited, and text"),
    (Refusal::Chunk(ChunkError::Trailers), "RFC 9112 section 7.1.2: trailers are limited, their lines end with CR LF"),
    (Refusal::Trailers, "RFC 9112 section 7.1.2: no more than 64 trailers"),
];

/// Why no further message was read.
#[derive(Debug, PartialEq, Eq)]
enum Stop {
    /// There is no further one, or not the whole of it.
    End,
    /// The client asked for it.
    Close,
    Refused(Refusal),
}

/// What the data plane would make of these bytes.
fn ours(bytes: &[u8]) -> (Vec<Message>, Stop) {
    let mut messages = Vec::new();
    let mut rest = bytes;
    loop {
        rest = &rest[leading_empty_lines(rest)..];
        let length = match HeadScanner::default().scan(rest) {
            HeadScan::Complete(length) => length,
            HeadScan::Partial => return (messages, Stop::End),
            // A carriage return whose line feed has not come.
            HeadScan::NotHttp if rest == b"\r" => return (messages, Stop::End),
            HeadScan::NotHttp => return (messages, Stop::Refused(Refusal::NotHttp)),
            HeadScan::BareLineFeed => return (messages, Stop::Refused(Refusal::BareLineFeed)),
        };
        let (head, behind) = rest.split_at(length);
        match message(head, behind) {
            Err(stop) => return (messages, stop),
            Ok((message, used, keep_alive)) => {
                messages.push(message);
                rest = &behind[used..];
                if !keep_alive {
                    return (messages, Stop::Close);
                }
            }
        }
    }
}

/// The message with this head, how much of what is behind it is its body, and whether another may follow.
fn message(head: &[u8], behind: &[u8]) -> Result<(Message, usize, bool), Stop> {
    let refused = |refusal| Stop::Refused(refusal);
    let mut storage = HeadStorage::new();
    let request = RequestHead::parse(head, HEADERS_MAX, &mut storage).map_err(|e| refused(Refusal::Head(e)))?;
    check_httparse(head, &request);
    let target = match request.target {
        Target::Asterisk => "*".to_owned(),
        Target::Path { path, query } => {
            let policy =
                PathPolicy { encoded_slash: EncodedSlash::Keep, double_slash: DoubleSlash::Keep, ..Default::default() };
            normalize(path, policy, &mut Vec::new()).map_err(|_| refused(Refusal::Path))?;
            let query = query.map(|query| format!("?{}", query.escape_ascii()));
            format!("{}{}", path.escape_ascii(), query.unwrap_or_default())
        }
    };
    let mut body = behind.to_vec();
    let mut decoder = BodyDecoder::new(request.framing);
    let decoded = decoder.decode(&mut body).map_err(|error| refused(Refusal::Chunk(error)))?;
    if !decoded.done {
        return Err(Stop::End);
    }
    write_trailers(decoder.trailers(), |_| true, &mut Vec::new()).ok_or(refused(Refusal::Trailers))?;
    let body = body[decoded.data].to_vec();
    let fields = request.headers.iter().map(|header| (header.name.to_ascii_lowercase(), header.value.to_vec()));
    let mut fields: Vec<_> = fields.collect();
    fields.sort_by(|(a, _), (b, _)| a.cmp(b));
    let is_http11 = request.version == Version::Http11;
    let message = Message { method: request.method.to_owned(), target, is_http11, fields, body };
    Ok((message, decoded.consumed, request.keep_alive))
}

/// httparse alone reads the same method, version and fields in the same bytes.
fn check_httparse(head: &[u8], request: &RequestHead<'_, '_>) {
    let mut room = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut parsed = httparse::Request::new(&mut room);
    assert_eq!(parsed.parse(head), Ok(httparse::Status::Complete(head.len())));
    assert_eq!(parsed.method, Some(request.method));
    assert_eq!(parsed.version, Some(u8::from(request.version == Version::Http11)));
    assert_eq!(parsed.headers, request.headers);
    if let Target::Path { path, .. } = request.target {
        let target = parsed.path.unwrap_or_default().as_bytes();
        assert!(path == b"/" || target.windows(path.len()).any(|part| part == path));
    }
}

/// What a server of hyper makes of them, all in one go and then the end.
fn hypers(bytes: &[u8]) -> Vec<Message> {
    let messages = Rc::new(RefCell::new(Vec::new()));
    let seen = Rc::clone(&messages);
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let seen = Rc::clone(&seen);
        async move {
            let (head, body) = request.into_parts();
            if let Ok(body) = body.collect().await {
                let fields = head.headers.iter().map(|(name, value)| (name.to_string(), value.as_bytes().to_vec()));
                let mut fields: Vec<_> = fields.collect();
                fields.sort_by(|(a, _), (b, _)| a.cmp(b));
                seen.borrow_mut().push(Message {
                    method: head.method.to_string(),
                    target: target_of(&head.uri),
                    is_http11: head.version == hyper::Version::HTTP_11,
                    fields,
                    body: body.to_bytes().to_vec(),
                });
            }
            Ok::<_, Infallible>(hyper::Response::new(Empty::<Bytes>::new()))
        }
    });
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        // Room for all answers: nobody reads them.
        let (mut client, server) = tokio::io::duplex(1 << 20);
        client.write_all(bytes).await.unwrap();
        client.shutdown().await.unwrap();
        let mut http1 = hyper::server::conn::http1::Builder::new();
        // It ends with an error where it refuses.
        let _ = http1.half_close(true).serve_connection(TokioIo::new(server), service).await;
    });
    Rc::try_unwrap(messages).expect("hyper is done").into_inner()
}

/// An empty path means the root (RFC 9110 section 4.2.3).
fn target_of(uri: &hyper::Uri) -> String {
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    let root = if target.starts_with('?') { "/" } else { "" };
    format!("{root}{}", target.as_bytes().escape_ascii())
}

/// What we accept though hyper does not: characters in queries that RFC 3986 section 3.4 forbids and that clients send
/// all the same. They mean nothing to us, and are the service's to judge.
fn is_laxer(message: &Message) -> bool {
    message.target.split_once('?').is_some_and(|(_, query)| query.contains(['<', '>', '"']))
}

/// Panics where they disagree. Gives back why we refused what hyper accepted.
fn compare(bytes: &[u8]) -> Option<Refusal> {
    let ((mut ours, stop), theirs) = (ours(bytes), hypers(bytes));
    if let Some(laxer) = ours.iter().position(is_laxer) {
        assert_eq!(theirs.len(), laxer, "hyper accepts it: b\"{}\"", bytes.escape_ascii());
        ours.truncate(laxer);
    }
    let shown = || format!("b\"{}\"\nours: {ours:#?} {stop:?}\nhyper's: {theirs:#?}", bytes.escape_ascii());
    assert!(ours.len() <= theirs.len(), "accepted, but not by hyper: {}", shown());
    for (our, their) in ours.iter().zip(&theirs) {
        let is_same = our == their || is_server_as_a_whole(our, their);
        assert!(is_same, "read in two ways: {}", shown());
    }
    if ours.len() == theirs.len() {
        return None;
    }
    match stop {
        Stop::Refused(refusal) if STRICTER.iter().any(|(known, _)| *known == refusal) => Some(refusal),
        _ => panic!("hyper reads more, and not because of what we refuse on purpose: {}", shown()),
    }
}

/// `OPTIONS http://host` asks for the server as a whole (RFC 9112 section 3.2.4); hyper has no word for it but `/`.
fn is_server_as_a_whole(our: &Message, their: &Message) -> bool {
    our.target == "*"
        && their.target == "/"
        && (&our.method, &our.fields, &our.body) == (&their.method, &their.fields, &their.body)
}

/// One for each of [`STRICTER`] at least.
const CASES: &[&str] = &[
    "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET / HTTP/1.0\r\n\r\n",
    "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET /b HTTP/1.0\r\n\r\n",
    "\r\n\r\nGET /a?b=c HTTP/1.1\r\nhost:a:80\r\nX:  1 \r\nx: 2\r\n\r\nHEAD /b HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET http://b/c?d HTTP/1.1\r\nHost: a\r\n\r\nOPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    "OPTIONS http://b HTTP/1.1\r\nHost: a\r\n\r\nGET http://b?c HTTP/1.1\r\nHost: a\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhelloGET /b HTTP/1.1\r\nHost: a\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nX: y\r\n\r\nGET /b HTTP/1.1\r\nHost: a\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\nx",
    "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\nGET /b HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET / HTTP/1.1\nHost: a\n\n",
    "\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET / HTTP/1.1\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
    "CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET /a?b#c HTTP/1.1\r\nHost: a\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 00000000000000000001\r\n\r\nx",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nExpect: magic\r\nContent-Length: 1\r\n\r\nx",
    "GET /../a HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET /a|b HTTP/1.1\r\nHost: a\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1 \r\nx\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;\u{7f}\r\nx\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA: b\n\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA: b\r\n c\r\n\r\n",
];

#[test]
fn known_cases_agree_and_every_reason_has_one() {
    let many_trailers = "X: y\r\n".repeat(65);
    let many_trailers =
        format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n{many_trailers}\r\n");
    let cases = CASES.iter().copied().chain([many_trailers.as_str()]);
    let refused: Vec<_> = cases.filter_map(|case| compare(case.as_bytes())).collect();
    for (refusal, reason) in STRICTER {
        assert!(refused.contains(refusal), "no case for {refusal:?}: {reason}");
    }
}

#[test]
fn the_corpora_agree() {
    let corpus = |name| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
        std::fs::read_dir(folder).unwrap().map(|file| std::fs::read(file.unwrap().path()).unwrap())
    };
    for head in corpus("request_head") {
        compare(&head);
    }
    for body in corpus("chunked") {
        let head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        compare(&[head, body.as_slice()].concat());
    }
}

const METHODS: &[&str] =
    &["GET", "GET", "POST", "POST", "HEAD", "OPTIONS", "PUT", "get", "M-SEARCH", "CONNECT", "G\"T"];
const TARGETS: &[&str] = &[
    "/",
    "/a/b?c=d",
    "/a//b",
    "/a/../b",
    "/..",
    "/%2e%2e",
    "/a%2Fb",
    "/a%zz",
    "/?",
    "/a?b?c",
    "/a?[]|\"",
    "/a#b",
    "*",
    "http://b/c",
    "http://b",
    "HTTPS://b:1?c",
    "http://[::1]/",
    "http://u@b/",
    "ftp://b/",
    "//b/c",
    "a",
    "",
    "/a b",
    "/\u{e9}",
    "/a?\u{e9}",
    "/a;b",
    "/{}",
    "/a\\b",
    "http://b\\c/",
    "http:///a",
    "/http://b/",
    "/<>",
    "/a?<>`^",
];
const FIELDS: &[&str] = &[
    "Accept: */*",
    "X-A: 1",
    "x-a:2",
    "X-A:\t3 ",
    "X-B:",
    "Cookie: a=b; c=d",
    "Connection: close",
    "Connection: keep-alive",
    "Connection: x-a, TE",
    "TE: trailers",
    "Upgrade: websocket",
    "Expect: 100-continue",
    "Expect: x",
    "Content-Length: 0",
    "Content-Length: 3",
    "Content-Length: +3",
    "Content-Length: 3, 3",
    "Content-Length: 0003",
    "content-length : 3",
    "Content-Length: 99999999999999999999",
    "Transfer-Encoding: chunked",
    "Transfer-Encoding: identity",
    "Transfer-Encoding: gzip, chunked",
    "Transfer-Encoding: chunked, chunked",
    "Transfer-Encoding: chunked;a=b",
    "transfer-encoding:\u{b}chunked",
    "Transfer-Encoding: \"chunked\"",
    "Transfer-Encoding: ,chunked",
    "Host: b",
    "Host: ",
    "Host: a/b",
    "Host: a:b",
    "Host: [::1]:2",
    " X-Fold: 1",
    "X C: 1",
    ": x",
    "X-Obs: \u{e9}",
    "X-Nul: \0",
    "X-Cr: a\rb",
    "Trailer: X",
    "Via: 1.1 a",
    "Max-Forwards: 1",
    "Proxy-Connection: close",
    "Keep-Alive: timeout=5",
];
const CHUNKS: &[&str] = &[
    "1\r\nx\r\n",
    "5\r\nhello\r\n",
    "A\r\n0123456789\r\n",
    "0003\r\nabc\r\n",
    "1;a=b\r\nx\r\n",
    "1 ;a\r\nx\r\n",
    "1 \r\nx\r\n",
    "1\nx\n",
    "1\r\nxy\r\n",
    "g\r\n",
    "+1\r\nx\r\n",
    ";a\r\n",
    "\r\n",
    "2\r\n\r\n\r\n",
    "1;\u{7f}\r\nx\r\n",
];
const ENDS: &[&str] = &[
    "0\r\n\r\n",
    "0\r\n\r\n",
    "0\r\n\r\n",
    "000;a\r\n\r\n",
    "0\r\nX: y\r\n\r\n",
    "0\r\nContent-Length: 9\r\n\r\n",
    "0\r\nX: y\n\r\n",
    "0\r\nX\r\n\r\n",
    "0\r\n X: y\r\n\r\n",
    "0\n\n",
    "0\r\n\n",
    "0\r\n",
    "",
];

/// A few requests behind each other, most of them good but for one thing.
fn connection(random: &mut Random) -> Vec<u8> {
    let mut out = String::new();
    for _ in 0..1 + random.below(3) {
        let end = if random.one_in(40) { "\n" } else { "\r\n" };
        let version =
            if random.one_in(8) { random.choose(&["HTTP/1.0", "HTTP/2.0", "http/1.1", ""]) } else { "HTTP/1.1" };
        out += &format!("{} {} {version}{end}", random.choose(METHODS), random.choose(TARGETS));
        if !random.one_in(20) {
            out += "Host: a\r\n";
        }
        for _ in 0..random.below(4) {
            out += &format!("{}{end}", random.choose(FIELDS));
        }
        match random.below(4) {
            0 => out += "\r\n",
            1 => {
                out += "Transfer-Encoding: chunked\r\n\r\n";
                for _ in 0..random.below(3) {
                    out += random.choose(CHUNKS);
                }
                out += random.choose(ENDS);
            }
            2 => out += "Content-Length: 5\r\n\r\nhello",
            _ => out += "\r\nabc",
        }
    }
    out.into_bytes()
}

#[test]
fn generated_connections_agree() {
    let (seed, started, duration) = (seed(), Instant::now(), duration());
    let mut random = Random(seed);
    let dictionary: Vec<_> = [METHODS, TARGETS, FIELDS, CHUNKS, ENDS, &["\r\n", "\n", "\r", " "]].concat();
    let (mut cases, mut refused) = (0u64, BTreeSet::new());
    while started.elapsed() < duration {
        let mut bytes = connection(&mut random);
        if random.one_in(3) {
            mutate(&mut bytes, &connection(&mut random), &dictionary, &mut random);
        }
        if let Some(refusal) = compare(&bytes) {
            refused.insert(format!("{refusal:?}"));
        }
        cases += 1;
    }
    println!("{cases} connections of seed {seed}; stricter than hyper: {refused:?}");
}
