//! Bodies pass through as they come, in both directions at once, and take no memory.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ringway_tests::{Backend, End, Gateway, PATIENCE, Setup, eventually, settles_at};

/// How large a body is that must not take memory; `RINGWAY_TEST_BODY_MIB` sets another size.
const LARGE_BODY_MIB: usize = 1024;
/// How much the gateway's memory may grow meanwhile.
const GROWTH_BYTES_MAX: u64 = 8 << 20;
const BLOCK: usize = 64 << 10;

fn large_body_bytes() -> usize {
    let mib = std::env::var("RINGWAY_TEST_BODY_MIB").map(|text| text.parse().expect("a number of MiB"));
    mib.unwrap_or(LARGE_BODY_MIB) << 20
}

/// Runs `work` and checks that the gateway's memory stays as it was.
#[track_caller]
fn assert_takes_no_memory(gateway: &Gateway, work: impl FnOnce() + Send) {
    let before = gateway.rss_bytes();
    let mut peak = before;
    std::thread::scope(|scope| {
        let working = scope.spawn(work);
        while !working.is_finished() {
            peak = peak.max(gateway.rss_bytes());
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    assert!(peak - before <= GROWTH_BYTES_MAX, "from {before} to {peak} bytes");
}

#[test]
fn a_large_upload_takes_no_memory() {
    let size = large_body_bytes();
    let backend = Backend::start(move |conn| {
        while let Some(head) = conn.next_request_head() {
            let mut left: usize = head.get("content-length").map_or(0, |length| length.parse().expect("a length"));
            while left > 0 {
                left -= conn.read_some().expect("more").len();
            }
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        }
    });
    let setup = Setup { route: "limits: { body: off }", ..Setup::default() };
    let gateway = setup.start(backend.endpoint());
    let mut client = gateway.connect();
    client.get("/warm-up");
    assert_takes_no_memory(&gateway, || {
        client.send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n"));
        let block = [b'x'; BLOCK];
        for _ in 0..size / BLOCK {
            client.send(block);
        }
        assert_eq!(client.read_response().status(), 200);
    });
}

#[test]
fn a_large_chunked_upload_takes_no_memory() {
    let size = large_body_bytes() / 4;
    let backend = Backend::start(move |conn| {
        while let Some(head) = conn.next_request_head() {
            let mut received = 0;
            if head.has("transfer-encoding") {
                while let length @ 1.. = conn.read_chunk().len() {
                    received += length;
                }
                conn.read_trailers();
            }
            conn.send(format!("HTTP/1.1 200 OK\r\nX-Received: {received}\r\nContent-Length: 0\r\n\r\n"));
        }
    });
    let setup = Setup { route: "limits: { body: off }", ..Setup::default() };
    let gateway = setup.start(backend.endpoint());
    let mut client = gateway.connect();
    client.get("/warm-up");
    assert_takes_no_memory(&gateway, || {
        client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
        let block = format!("{BLOCK:x}\r\n{}\r\n", "x".repeat(BLOCK));
        for _ in 0..size / BLOCK {
            client.send(&block);
        }
        let answer = client.ask("0\r\n\r\n");
        assert_eq!(answer.get("x-received"), Some(size.to_string().as_str()));
    });
}

#[test]
fn a_large_download_takes_no_memory() {
    let size = large_body_bytes();
    let backend = Backend::start(move |conn| {
        while let Some(head) = conn.next_request_head() {
            let size = if head.target() == "/warm-up" { 0 } else { size };
            conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n"));
            let block = [b'x'; BLOCK];
            for _ in 0..size / BLOCK {
                conn.send(block);
            }
        }
    });
    let gateway = Gateway::to(backend.endpoint());
    let mut client = gateway.connect();
    client.get("/warm-up");
    assert_takes_no_memory(&gateway, || {
        client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").read_head();
        assert_eq!(client.drain(), (size, End::Closed));
    });
}

#[test]
fn a_client_that_reads_slowly_holds_its_service_back() {
    let sent = Arc::new(AtomicUsize::new(0));
    let in_script = Arc::clone(&sent);
    let total = 64 << 20;
    let backend = Backend::start(move |conn| {
        conn.request();
        conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {total}\r\n\r\n"));
        for _ in 0..total / BLOCK {
            conn.send([b'x'; BLOCK]);
            in_script.fetch_add(BLOCK, Ordering::AcqRel);
        }
        conn.stall();
    });
    let gateway = Gateway::to(backend.endpoint());
    let mut client = gateway.connect();
    let before = gateway.rss_bytes();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").read_head();
    // Until nothing moves any more.
    let mut last = usize::MAX;
    eventually(PATIENCE, || {
        std::thread::sleep(Duration::from_millis(200));
        let now = sent.load(Ordering::Acquire);
        now > 0 && std::mem::replace(&mut last, now) == now
    });
    assert!(last < total / 2, "the service got rid of {last} bytes");
    assert!(gateway.rss_bytes() - before <= GROWTH_BYTES_MAX);
    client.read_exact(total);
    assert_eq!(sent.load(Ordering::Acquire), total);
}

#[test]
fn both_directions_run_at_once() {
    let backend = Backend::start(|conn| {
        conn.next_request_head();
        conn.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        loop {
            let data = conn.read_chunk();
            conn.send(format!("{:x}\r\n", data.len()));
            if data.is_empty() {
                conn.read_trailers();
                conn.send("\r\n");
                break;
            }
            conn.send(data).send("\r\n");
        }
        conn.stall();
    });
    let gateway = Gateway::to(backend.endpoint());
    let mut client = gateway.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
    assert_eq!(client.read_head().status(), 200);
    for size in [1, 1000, 5, 40_000, 16_384] {
        client.send(format!("{size:x}\r\n{}\r\n", "x".repeat(size)));
        let mut received = 0;
        while received < size {
            received += client.read_chunk().len();
        }
        assert_eq!(received, size);
    }
    client.send("0\r\n\r\n");
    assert_eq!(client.read_chunk().len(), 0);
    client.read_trailers();
    gateway.expect_idle_or_open();
}

trait ExpectIdleOrOpen {
    fn expect_idle_or_open(&self);
}

impl ExpectIdleOrOpen for Gateway {
    /// No request is active; whether the client's connection lives is the gateway's choice.
    #[track_caller]
    fn expect_idle_or_open(&self) {
        eventually(PATIENCE, || self.metric("gateway_active_requests") == 0.0);
    }
}

#[test]
fn an_early_answer_is_whole_and_says_that_the_connection_ends() {
    let backend = Backend::start(|conn| {
        conn.next_request_head();
        conn.send("HTTP/1.1 409 Conflict\r\nContent-Length: 5\r\n\r\nearly");
        // Goes on reading, as it should.
        conn.drain();
    });
    let gateway = Gateway::to(backend.endpoint());
    let mut client = gateway.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nfirst");
    let answer = client.read_response();
    assert_eq!((answer.status(), answer.text().as_str()), (409, "early"));
    assert_eq!(answer.get("connection"), Some("close"));
    let _ = client.try_send([b'x'; 100_000]);
    client.expect_closed();
    backend.expect_all_closed();
    gateway.expect_idle();
}

#[test]
fn an_early_answer_of_a_service_that_closes_reaches_the_client() {
    let backend = Backend::start(|conn| {
        conn.next_request_head();
        conn.send("HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 5\r\n\r\nlarge");
        conn.half_close();
        conn.drain();
    });
    let gateway = Gateway::to(backend.endpoint());
    for _ in 0..10 {
        let mut client = gateway.connect();
        client.send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", 200_000));
        let _ = client.try_send([b'x'; 100_000]);
        let answer = client.read_response();
        assert_eq!((answer.status(), answer.text().as_str()), (413, "large"));
    }
}

#[test]
fn a_connection_with_half_a_request_on_it_is_not_used_again() {
    // The service answers before it reads the body. The size grows until a body gets stuck with its last piece.
    let (answered, read_on) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (may_answer, may_read_on) = (Arc::clone(&answered), Arc::clone(&read_on));
    let spoiled = Arc::new(Mutex::new(Vec::new()));
    let found = Arc::clone(&spoiled);
    let directory = tempfile::tempdir().expect("a directory");
    let backend = Backend::start_unix(&directory.path().join("app.sock"), move |conn| {
        while let Some(head) = conn.next_request_head() {
            if head.has("transfer-encoding") {
                let round: usize = head.get("x-round").expect("X-Round").parse().expect("a number");
                eventually(PATIENCE, || may_answer.load(Ordering::Acquire) >= round);
                conn.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
                eventually(PATIENCE, || may_read_on.load(Ordering::Acquire) >= round);
                let mut body = String::new();
                let probe = loop {
                    let Ok(more) = conn.read_some() else { return };
                    body.push_str(&String::from_utf8_lossy(&more));
                    match (body.find("\r\n0\r\n\r\n"), body.find("GET /probe")) {
                        (None, Some(_)) => return found.lock().expect("a list").push(round),
                        (Some(_), probe) => break probe,
                        (None, None) => {}
                    }
                };
                if probe.is_some() {
                    conn.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
                }
            } else {
                conn.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
            }
        }
    });
    let setup = Setup { route: "limits: { body: off }", ..Setup::default() };
    let gateway = setup.start(backend.endpoint());
    let received = || gateway.metric("gateway_received_bytes_total");
    let requests = format!("gateway_endpoint_requests_total{{service=\"app\",endpoint=\"{}\"}}", backend.endpoint());
    // Sends a body of so many chunks, as far as it is taken; gives back the client and the bytes that the gateway took.
    let send = |round: usize, chunks: usize| {
        let before = received();
        let mut client = gateway.connect();
        client.send(format!("POST / HTTP/1.1\r\nHost: a\r\nX-Round: {round}\r\nTransfer-Encoding: chunked\r\n\r\n"));
        let chunk = format!("1000\r\n{}\r\n", "x".repeat(0x1000));
        let _ = client.try_send_now([chunk.repeat(chunks).as_bytes(), b"0\r\n\r\n"].concat());
        let mut last = -1.0;
        eventually(PATIENCE, || {
            std::thread::sleep(Duration::from_millis(30));
            let now = received();
            std::mem::replace(&mut last, now) == now
        });
        (client, (last - before) as usize)
    };
    let (_, room) = send(1, 1024);
    let first = (room >> 12).saturating_sub(16);
    for round in 2..24 {
        let (mut client, _) = send(round, first + round);
        answered.store(round, Ordering::Release);
        assert_eq!(client.read_response().text(), "ok");
        let mut probe = gateway.connect();
        probe.send("GET /probe HTTP/1.1\r\nHost: a\r\n\r\n");
        settles_at((2 * round - 1) as f64, || gateway.metric(&requests));
        read_on.store(round, Ordering::Release);
        assert!(probe.next_head().is_ok(), "round {round}: {spoiled:?}");
    }
    assert_eq!(*spoiled.lock().expect("a list"), [0; 0]);
}

#[test]
fn events_arrive_unbuffered() {
    let (acknowledge, acknowledged) = channel();
    let acknowledged = Mutex::new(acknowledged);
    let backend = Backend::start(move |conn| {
        let head = conn.next_request_head().expect("a request");
        let chunked = head.target() == "/chunked";
        let framing = if chunked { "Transfer-Encoding: chunked\r\n" } else { "" };
        conn.send(format!("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n{framing}\r\n"));
        for i in 0..20 {
            let event = format!("data: {i}\n\n");
            match chunked {
                true => conn.send(format!("{:x}\r\n{event}\r\n", event.len())),
                false => conn.send(event),
            };
            acknowledged.lock().expect("a channel").recv_timeout(PATIENCE).expect("the event arrived");
        }
        if chunked {
            conn.send("0\r\n\r\n");
        }
    });
    let gateway = Gateway::to(backend.endpoint());
    for target in ["/chunked", "/close"] {
        let mut client = gateway.connect();
        client.send(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n")).read_head();
        for i in 0..20 {
            assert_eq!(client.read_chunk(), format!("data: {i}\n\n").into_bytes());
            acknowledge.send(()).expect("a backend");
        }
        assert_eq!(client.read_chunk(), b"");
    }
}

#[test]
fn the_head_of_an_answer_does_not_wait_for_its_body() {
    let go = Arc::new(AtomicBool::new(false));
    let may_go = Arc::clone(&go);
    let backend = Backend::start(move |conn| {
        conn.request();
        conn.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n");
        eventually(PATIENCE, || may_go.load(Ordering::Acquire));
        conn.send("ok");
        conn.stall();
    });
    let gateway = Gateway::to(backend.endpoint());
    let mut client = gateway.connect();
    assert_eq!(client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").read_head().status(), 200);
    go.store(true, Ordering::Release);
    assert_eq!(client.read_exact(2), b"ok");
}
