//! Answers that come bit by bit: server-sent events and long polls. Each piece arrives before the next is sent.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use ringway_tests::http2::*;
use ringway_tests::{Backend, Gateway, PATIENCE, Setup};

const EVENTS: usize = 20;

/// Sends an event only when the one before it has been seen by its client. `head`: of the answer.
fn events(head: &'static str, chunked: bool) -> (Backend, Sender<()>) {
    let (seen, sees): (_, Receiver<()>) = channel();
    let sees = Mutex::new(sees);
    let backend = Backend::start(move |conn| {
        conn.request();
        conn.send(head);
        for number in 0..EVENTS {
            let event = format!("data: {number}\n\n");
            match chunked {
                true => conn.send(format!("{:x}\r\n{event}\r\n", event.len())),
                false => conn.send(event),
            };
            sees.lock().expect("a channel").recv_timeout(PATIENCE).expect("the client sees each event before the next");
        }
        if chunked {
            conn.send("0\r\n\r\n");
        }
    });
    (backend, seen)
}

const CHUNKED: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
const CLOSED: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n";

#[test]
fn each_event_arrives_before_the_next_is_sent() {
    for (head, chunked) in [(CHUNKED, true), (CLOSED, false)] {
        let (backend, seen) = events(head, chunked);
        let gateway = Gateway::to(backend.endpoint());
        let mut client = gateway.connect();
        let answer = client.send("GET / HTTP/1.1\r\nHost: test\r\nAccept: text/event-stream\r\n\r\n").read_head();
        assert_eq!(answer.get("content-type"), Some("text/event-stream"));
        for number in 0..EVENTS {
            assert_eq!(client.read_chunk(), format!("data: {number}\n\n").as_bytes());
            seen.send(()).expect("the service waits");
        }
        assert!(client.read_chunk().is_empty());
    }
}

#[test]
fn each_event_arrives_before_the_next_is_sent_over_http_2() {
    for (head, chunked) in [(CHUNKED, true), (CLOSED, false)] {
        let (backend, seen) = events(head, chunked);
        let gateway = Gateway::to(backend.endpoint());
        let mut client = Http2::connect(gateway.address());
        client.get(1, "/");
        assert_eq!(client.status(1), 200);
        for number in 0..EVENTS {
            assert_eq!(client.next_of(DATA, 1).payload, format!("data: {number}\n\n").as_bytes());
            seen.send(()).expect("the service waits");
        }
        let last = client.next_of(DATA, 1);
        assert!(last.payload.is_empty() && last.flags & END_STREAM != 0, "{last:?}");
    }
}

#[test]
fn a_client_of_events_sees_them_as_they_come() {
    let (backend, seen) = events(CHUNKED, true);
    let gateway = Gateway::to(backend.endpoint());
    let mut curl = Command::new("curl")
        .args(["--no-buffer", "--silent", "--max-time", "20", &format!("http://{}/", gateway.address())])
        .stdout(Stdio::piped())
        .spawn()
        .expect("curl");
    let lines = BufReader::new(curl.stdout.take().expect("a pipe")).lines();
    let events = lines.map(|line| line.expect("a line")).filter(|line| !line.is_empty());
    for (number, event) in events.enumerate() {
        assert_eq!(event, format!("data: {number}"));
        seen.send(()).expect("the service waits");
    }
    assert!(curl.wait().expect("an end").success());
}

#[test]
fn a_long_poll_waits_as_long_as_its_service_may() {
    const PAUSE: Duration = Duration::from_millis(1200);
    let backend = Backend::start(|conn| {
        while let Some(request) = conn.next_request() {
            thread::sleep(PAUSE);
            conn.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n");
            if request.target() == "/events" {
                thread::sleep(PAUSE);
            }
            let _ = conn.try_send("2\r\nok\r\n0\r\n\r\n");
        }
    });
    // The same endpoint as two services: one for requests, one for polls.
    let gateway = Gateway::start(&format!(
        "services:\n\
         - {{ name: app, endpoints: [\"{0}\"], timeouts: {{ answer: 300ms, idle: 300ms }} }}\n\
         - {{ name: polls, endpoints: [\"{0}\"], timeouts: {{ answer: 10s, idle: 10s }} }}\n\
         routes:\n\
         - {{ name: all, service: app }}\n\
         - {{ name: polls, match: {{ prefix: /events }}, service: polls }}\n",
        backend.endpoint()
    ));
    assert_eq!(gateway.get("/").status(), 504);
    let begun = Instant::now();
    assert_eq!(gateway.get("/events").text(), "okok");
    assert!(begun.elapsed() >= 2 * PAUSE);

    // Between two events nothing but the service's `idle` counts.
    let backend = Backend::start(|conn| {
        conn.request();
        conn.send(CHUNKED).send("9\r\ndata: 0\n\n\r\n");
        conn.stall();
    });
    let gateway = Setup { service: "timeouts: { idle: 300ms }", ..Setup::default() }.start(backend.endpoint());
    let mut client = gateway.connect();
    client.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n").read_head();
    assert_eq!(client.read_chunk(), b"data: 0\n\n");
    client.expect_reset();
}
