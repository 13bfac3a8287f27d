//! Requests that two readers could read differently: refused, closed, and nothing of them reaches a service.

use ringway_tests::{Backend, Gateway, PATIENCE, eventually};

/// What must never be taken for a request.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";

/// Sends the request with another one behind it; the answer's status must be one of `statuses`, and it is the only one.
#[track_caller]
fn assert_refused(gateway: &Gateway, backend: &Backend, request: &str, statuses: &[u16]) {
    let mut client = gateway.connect();
    let _ = client.try_send([request, SMUGGLED].concat());
    let answer = client.read_response();
    assert!(statuses.contains(&answer.status()), "{request:?}: {answer:?}");
    assert_eq!(answer.get("connection"), Some("close"), "{request:?}");
    client.expect_closed();
    assert_eq!(backend.connections(), 0, "{request:?} reached the service");
}

#[track_caller]
fn assert_all_refused(requests: &[&str], statuses: &[u16]) {
    let backend = Backend::ok();
    let gateway = Gateway::to(backend.endpoint());
    for request in requests {
        assert_refused(&gateway, &backend, request, statuses);
    }
    gateway.expect_idle();
    assert_eq!(gateway.log_lines().iter().filter(|line| line["path"] == "/smuggled").count(), 0);
}

#[test]
fn length_beside_coding() {
    assert_all_refused(
        &[
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ],
        &[400],
    );
}

#[test]
fn codings_that_are_not_one_chunked() {
    let codings = [
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: chunked, chunked",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: identity, chunked",
        "Transfer-Encoding: identity",
        "Transfer-Encoding: \"chunked\"",
        "Transfer-Encoding: chunked;q=1",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding:\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding:",
        "Transfer-Encoding: ,chunked",
        "Transfer-Encoding: \x0bchunked",
        "Transfer-Encoding : chunked",
        "Transfer-Encoding\t: chunked",
        " Transfer-Encoding: chunked",
        "X: y\r\n Transfer-Encoding: chunked",
        "Transfer-Encoding:\r\n chunked",
        "Transfer-Encoding: chunked\0",
        "Transfer\0-Encoding: chunked",
    ];
    let requests = codings.map(|coding| format!("POST / HTTP/1.1\r\nHost: a\r\n{coding}\r\n\r\n0\r\n\r\n"));
    assert_all_refused(&requests.each_ref().map(String::as_str), &[400, 501]);
    assert_all_refused(&["POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"], &[400]);
}

#[test]
fn lengths_that_are_not_one_number() {
    let lengths = [
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: 5\r\nContent-Length: 5",
        "Content-Length: 5, 5",
        "Content-Length: 5,6",
        "Content-Length: +5",
        "Content-Length: -5",
        "Content-Length: 0x5",
        "Content-Length: 5 5",
        "Content-Length: 5;",
        "Content-Length: 5.0",
        "Content-Length: ",
        "Content-Length: \u{0665}",
        "Content-Length: 18446744073709551617",
        "Content-Length: 99999999999999999999999",
        "Content-Length : 5",
        "Content-Length: 5\r\n 0",
    ];
    let requests = lengths.map(|length| format!("POST / HTTP/1.1\r\nHost: a\r\n{length}\r\n\r\nhello"));
    assert_all_refused(&requests.each_ref().map(String::as_str), &[400]);
}

#[test]
fn lines_that_do_not_end_as_they_should() {
    assert_all_refused(
        &[
            "GET / HTTP/1.1\nHost: a\n\n",
            "GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n\n",
            "GET / HTTP/1.1\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\rHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\rX: y\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX: y\r\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX: a\rTransfer-Encoding: chunked\r\n\r\n",
        ],
        &[400],
    );
}

#[test]
fn fields_that_are_not_fields() {
    assert_all_refused(
        &[
            "GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n\tb\r\n\r\n",
            "GET / HTTP/1.1\r\n X: a\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost\t: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n: y\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX\0: b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX: a\x01b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX: a\x7fb\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n(x): y\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX\u{e4}: y\r\n\r\n",
        ],
        &[400],
    );
}

#[test]
fn hosts_that_are_not_one_host() {
    assert_all_refused(
        &[
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a, b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: user@a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a:b\r\n\r\n",
            "GET http://user@a/ HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET http:///x HTTP/1.1\r\nHost: a\r\n\r\n",
        ],
        &[400],
    );
}

#[test]
fn request_lines_that_are_not() {
    assert_all_refused(
        &[
            "GET /\r\n\r\n",
            "GET / \r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
            "GET / /b HTTP/1.1\r\nHost: a\r\n\r\n",
            " GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n",
            "G(T / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / http/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1x\r\nHost: a\r\n\r\n",
            "GET * HTTP/1.1\r\nHost: a\r\n\r\n",
            "\0GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        ],
        &[400, 505],
    );
}

const CHUNK_TRICKS: [&str; 18] = [
    "\r\n0\r\n\r\n",
    ";\r\n0\r\n\r\n",
    "0x0\r\n\r\n",
    "+0\r\n\r\n",
    "-1\r\n\r\n",
    " 0\r\n\r\n",
    "0\n\r\n",
    "0\r\r\n\r\n",
    "0 \r\n\r\n",
    "5\nhello\r\n0\r\n\r\n",
    "5\r\nhello0\r\n\r\n",
    "5\r\nhello\n0\r\n\r\n",
    "4\r\nhello\r\n0\r\n\r\n",
    "5;a\nb\r\nhello\r\n0\r\n\r\n",
    "10000000000000000\r\nhello\r\n0\r\n\r\n",
    "5\r\nhello\r\n0\r\nX: y\n\r\n",
    "5\r\nhello\r\n0\r\n X: y\r\n\r\n",
    "5\r\nhello\r\n0\r\nX : y\r\n\r\n",
];

const CHUNKED: &str = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";

#[test]
fn chunk_tricks() {
    let requests = CHUNK_TRICKS.map(|body| [CHUNKED, body].concat());
    assert_all_refused(&requests.each_ref().map(String::as_str), &[400]);
}

#[test]
fn chunk_tricks_that_come_late_never_make_a_whole_request() {
    let backend = Backend::start(|conn| {
        while conn.next_request_head().is_some() {
            let (body, _) = conn.read_to_end();
            let body = String::from_utf8_lossy(&body);
            assert!(!body.contains("0\r\n\r\n") && !body.contains("/smuggled"), "{body:?}");
        }
    });
    let gateway = Gateway::to(backend.endpoint());
    for (count, body) in CHUNK_TRICKS.iter().enumerate() {
        let mut client = gateway.connect();
        client.send(CHUNKED);
        eventually(PATIENCE, || backend.requests().len() == count + 1);
        let _ = client.try_send([body, SMUGGLED].concat());
        let answer = client.read_response();
        assert_eq!((answer.status(), answer.get("connection")), (400, Some("close")), "{body:?}");
        client.expect_closed();
    }
    backend.expect_all_closed();
    assert_eq!(backend.requests().len(), CHUNK_TRICKS.len());
}

#[test]
fn oversized_chunk_extensions_and_trailers() {
    let extension = format!("5;{}\r\nhello\r\n0\r\n\r\n", "x".repeat(2000));
    let trailers = format!("0\r\n{}\r\n", "X: y\r\n".repeat(2000));
    let requests = [extension, trailers].map(|body| [CHUNKED, &body].concat());
    assert_all_refused(&requests.each_ref().map(String::as_str), &[400]);
}
