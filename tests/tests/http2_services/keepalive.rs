//! Services that are gone without a word.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use http::Response;
use ringway_tests::http2::{END_HEADERS, END_STREAM, HEADERS, PING, SETTINGS};
use ringway_tests::{Backend, Conn, Gateway, PATIENCE, Setup};

use super::frames::frame;
use super::service::Service;

const KEEPALIVE: &str = "http2: { keepalive: { interval: 300ms, timeout: 300ms } }, timeouts: { answer: 60s }";

fn given_up(gateway: &Gateway, endpoint: &str) -> f64 {
    let labels = format!("service=\"app\",endpoint=\"{endpoint}\"");
    gateway.metric(&format!("gateway_endpoint_keepalive_timeouts_total{{{labels}}}"))
}

/// The kind and the stream of the next frame; `None` at the end of the connection.
fn next(conn: &mut Conn) -> Option<(u8, u32)> {
    let head = conn.read_up_to(9).ok().filter(|head| head.len() == 9)?;
    conn.read_up_to(u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize).ok()?;
    Some((head[3], u32::from_be_bytes([head[5], head[6], head[7], head[8]])))
}

/// A service that answers the first `answers[index]` requests of a connection, and then reads on without a word. It counts the
/// PINGs that come then, each connection apart.
fn falls_silent(answers: [usize; 2]) -> (Backend, Arc<[AtomicUsize; 2]>) {
    let pings = Arc::<[AtomicUsize; 2]>::default();
    let counted = Arc::clone(&pings);
    let backend = Backend::start(move |conn| {
        conn.read_exact(24);
        conn.send(frame(SETTINGS, 0, 0, &[]));
        let mut left = answers[conn.index];
        while let Some((kind, stream)) = next(conn) {
            if kind == HEADERS && left > 0 {
                left -= 1;
                // `:status` 204.
                conn.send(frame(HEADERS, END_HEADERS | END_STREAM, stream, &[0x89]));
            } else if kind == PING {
                counted[conn.index].fetch_add(1, Ordering::AcqRel);
            }
        }
    });
    (backend, pings)
}

fn gateway(backend: &Backend) -> Gateway {
    let service = format!("protocol: http2, {KEEPALIVE}");
    Setup { service: &service, ..Setup::default() }.start(backend.endpoint())
}

#[test]
fn a_service_that_does_not_answer_a_ping_is_given_up() {
    let (backend, pings) = falls_silent([1, 2]);
    let gateway = gateway(&backend);
    let started = Instant::now();
    assert_eq!(gateway.get("/").status(), 204);
    // Sent again on another connection.
    assert_eq!(gateway.get("/").status(), 204);
    assert!(started.elapsed() < PATIENCE, "{:?}", started.elapsed());
    assert_eq!((given_up(&gateway, backend.endpoint()), backend.connections()), (1.0, 2));
    assert_eq!(gateway.metric("gateway_backend_stale_retries_total{service=\"app\"}"), 1.0);
    // What is not safe to send again is not.
    assert_eq!(gateway.get("/").status(), 204);
    let post = gateway.connect().ask("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx");
    assert_eq!(post.status(), 502);
    assert_eq!((given_up(&gateway, backend.endpoint()), gateway.backend_errors("reset")), (2.0, 1.0));
    assert_eq!(pings.each_ref().map(|pings| pings.load(Ordering::Acquire)), [1, 1]);
    gateway.expect_idle();
}

#[test]
fn a_service_that_takes_its_time_is_asked_and_kept() {
    let service = Service::start(|mut call| async move {
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        call.answer(Response::builder(), "at last");
    });
    let gateway = service.gateway(KEEPALIVE);
    assert_eq!(gateway.get("/").text(), "at last");
    assert_eq!((given_up(&gateway, &service.endpoint), service.connections()), (0.0, 1));
}

#[test]
fn a_connection_that_nobody_uses_is_left_alone() {
    let (backend, pings) = falls_silent([1, 0]);
    let gateway = gateway(&backend);
    let mut client = gateway.connect();
    assert_eq!(client.get("/").status(), 204);
    assert!(client.stays_silent(Duration::from_millis(1_500)));
    assert_eq!(pings[0].load(Ordering::Acquire), 0);
    assert_eq!((given_up(&gateway, backend.endpoint()), backend.open()), (0.0, 1));
}
