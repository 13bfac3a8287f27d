//! Clients that speak HTTP/2 by prior knowledge, through the whole gate, to services of HTTP/1. `curl` is the client.

use std::process::Command;
use std::time::Duration;

use ringway_tests::http2::*;
use ringway_tests::{Backend, Gateway, PATIENCE, Setup, eventually, settles_at};

/// The status, the head and the body that curl prints, with these arguments.
#[track_caller]
fn curl(gateway: &Gateway, path: &str, arguments: &[&str]) -> String {
    let output = Command::new("curl")
        .args(["--http2-prior-knowledge", "--silent", "--show-error", "--include", "--max-time", "10"])
        .args(arguments)
        .arg(format!("http://{}{path}", gateway.address()))
        .output()
        .expect("curl");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_get_goes_to_the_service_as_http_1_and_its_answer_comes_back() {
    let backend = Backend::ok();
    let gateway = Setup::default().start(backend.endpoint());
    let answer = curl(&gateway, "/a?b=c", &["-H", "cookie: a=1", "-H", "X-Own: 1"]);
    assert!(answer.starts_with("HTTP/2 200"), "{answer}");
    assert!(answer.contains("\r\nx-request-id: "), "{answer}");
    for name in ["connection:", "transfer-encoding:", "keep-alive:"] {
        assert!(!answer.to_lowercase().contains(name), "{name} in {answer}");
    }
    let seen = backend.request();
    assert_eq!(seen.target(), "/a?b=c");
    assert_eq!(seen.get("via"), Some("2.0 ringway"));
    assert_eq!(seen.get("cookie"), Some("a=1"));
    assert_eq!(seen.get("x-own"), Some("1"));
    assert_eq!(seen.get("host"), Some(gateway.address().to_string().as_str()));
}

#[test]
fn the_gate_refuses_and_counts_as_with_http_1() {
    let backend = Backend::ok();
    let route = "ip: { deny: [127.0.0.0/8] }";
    let gateway = Setup { route, ..Setup::default() }.start(backend.endpoint());
    let answer = curl(&gateway, "/", &[]);
    assert!(answer.starts_with("HTTP/2 403"), "{answer}");
    assert!(answer.contains("\"requestId\""), "{answer}");
    assert_eq!(gateway.log_line(1)["statusCode"], 403);
    assert_eq!(backend.connections(), 0);
}

#[test]
fn bodies_go_both_ways_with_a_length_and_without_one() {
    let backend = Backend::echo();
    let gateway = Setup::default().start(backend.endpoint());
    let body = "0123456789abcdef".repeat(30_000);
    let file = gateway.directory().join("body");
    std::fs::write(&file, &body).expect("a file");
    let from_file = format!("@{}", file.display());
    let sized = curl(&gateway, "/", &["--data-binary", &from_file]);
    assert!(sized.starts_with("HTTP/2 200") && sized.ends_with(&body), "{} bytes", sized.len());
    // curl sends an upload of unknown length from its standard input; a service of HTTP/1 gets it in chunks.
    let streamed = Command::new("curl")
        .args(["--http2-prior-knowledge", "--silent", "--show-error", "--max-time", "10", "--upload-file", "-"])
        .arg(format!("http://{}/", gateway.address()))
        .stdin(std::fs::File::open(&file).expect("a file"))
        .output()
        .expect("curl");
    assert!(streamed.stdout == body.as_bytes(), "{} bytes", streamed.stdout.len());
    assert_eq!(backend.requests()[1].get("transfer-encoding"), Some("chunked"));
    assert_eq!(backend.requests()[1].all("content-length").count(), 0);
}

#[test]
fn an_answer_to_head_has_no_body() {
    let backend = Backend::fixed("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n");
    let gateway = Setup::default().start(backend.endpoint());
    let answer = curl(&gateway, "/", &["--head"]);
    assert!(answer.starts_with("HTTP/2 200"), "{answer}");
    assert!(answer.contains("content-length: 5") && answer.ends_with("\r\n\r\n"), "{answer}");
}

#[test]
fn an_answer_that_breaks_off_resets_its_stream() {
    let backend = Backend::start(|conn| {
        conn.request();
        conn.send("HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhalf");
    });
    let gateway = Setup::default().start(backend.endpoint());
    let output = Command::new("curl")
        .args(["--http2-prior-knowledge", "--silent", "--show-error", "--max-time", "10"])
        .arg(format!("http://{}/", gateway.address()))
        .output()
        .expect("curl");
    assert_eq!(output.status.code(), Some(92), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stderr).contains("INTERNAL_ERROR"));
}

#[test]
fn a_host_that_is_not_the_authority_is_refused() {
    let backend = Backend::ok();
    let gateway = Setup::default().start(backend.endpoint());
    let output = Command::new("nghttp")
        .args(["--verbose", "--no-dep", "-H", "host: other.test"])
        .arg(format!("http://{}/", gateway.address()))
        .output()
        .expect("nghttp");
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(told.contains(":status: 400"), "{told}");
    assert_eq!(backend.connections(), 0);
}

#[test]
fn a_stream_that_the_client_gives_up_ends_at_the_service() {
    let backend = Backend::start(|conn| {
        conn.request();
        conn.stall();
    });
    let gateway = Setup::default().start(backend.endpoint());
    let output = Command::new("curl")
        .args(["--http2-prior-knowledge", "--silent", "--max-time", "1"])
        .arg(format!("http://{}/", gateway.address()))
        .output()
        .expect("curl");
    assert_eq!(output.status.code(), Some(28), "the client's own limit");
    eventually(PATIENCE, || backend.open() == 0);
}

#[test]
fn many_streams_share_a_connection() {
    let backend = Backend::ok();
    let gateway = Setup::default().start(backend.endpoint());
    let output = Command::new("h2load")
        .args(["-n", "2000", "-c", "4", "-m", "32"])
        .arg(format!("http://{}/", gateway.address()))
        .output()
        .expect("h2load");
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(told.contains("2000 succeeded, 0 failed, 0 errored"), "{told}");
    assert_eq!(gateway.log_line(2000)["statusCode"], 200);
    gateway.expect_idle();
}

#[test]
fn it_can_be_turned_off() {
    let backend = Backend::ok();
    let gateway = Setup { listener: "http2: { enabled: false }", ..Setup::default() }.start(backend.endpoint());
    let answer = gateway.connect().ask("PRI * HTTP/2.0\r\n\r\n");
    assert_eq!(answer.status(), 505, "{}", answer.text());
}

/// What `nghttp --verbose` tells of its exchange.
#[track_caller]
fn nghttp(gateway: &Gateway, arguments: &[&str]) -> String {
    let output = Command::new("nghttp")
        .args(["--verbose", "--no-dep", "--timeout=10"])
        .args(arguments)
        .arg(format!("http://{}/", gateway.address()))
        .output()
        .expect("nghttp");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn trailers_go_both_ways() {
    let backend = Backend::start(|conn| {
        let request = conn.request();
        assert_eq!(request.trailers, [("x-sum".to_owned(), "1".to_owned())]);
        conn.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Total\r\n\r\n");
        conn.send("2\r\nok\r\n0\r\nX-Total: 2\r\n\r\n");
    });
    let gateway = Setup::default().start(backend.endpoint());
    let body = gateway.directory().join("body");
    std::fs::write(&body, "some").expect("a file");
    let data = format!("--data={}", body.display());
    let told = nghttp(&gateway, &[&data, "--no-content-length", "--trailer=x-sum: 1"]);
    assert!(told.contains(":status: 200") && told.contains("x-total: 2"), "{told}");
    assert_eq!(backend.request().get("transfer-encoding"), Some("chunked"));
}

#[test]
fn interim_answers_come_before_the_answer() {
    let backend = Backend::start(|conn| {
        conn.request();
        conn.send("HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    });
    let gateway = Setup::default().start(backend.endpoint());
    let told = nghttp(&gateway, &[]);
    let at = |text: &str| told.find(text).unwrap_or_else(|| panic!("no {text} in {told}"));
    assert!(at(":status: 103") < at("link: </a.css>") && at("link: </a.css>") < at(":status: 200"), "{told}");
}

#[test]
fn crumbs_of_a_cookie_are_joined() {
    let backend = Backend::ok();
    let gateway = Setup::default().start(backend.endpoint());
    let mut client = Http2::connect(gateway.address());
    let head = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a.test")];
    let cookies = [("cookie", "a=1"), ("x-a", "1"), ("cookie", "b=2; c=3")];
    client.frame(HEADERS, END_STREAM | END_HEADERS, 1, &fields(&[&head[..], &cookies].concat()));
    assert_eq!(client.status(1), 200);
    assert_eq!(backend.request().all("cookie").collect::<Vec<_>>(), ["a=1; b=2; c=3"]);
}

#[test]
fn priorities_pass_both_ways_and_updates_of_them_do_no_harm() {
    let backend = Backend::fixed("HTTP/1.1 200 OK\r\nPriority: u=6\r\nContent-Length: 2\r\n\r\nok");
    let gateway = Setup::default().start(backend.endpoint());
    let answer = curl(&gateway, "/", &["-H", "Priority: u=1, i"]);
    assert!(answer.contains("\r\npriority: u=6\r\n"), "{answer}");
    assert_eq!(backend.request().get("priority"), Some("u=1, i"));
    // RFC 9218 section 7.1: of a stream that is to come, of one that is there, and of one that is over.
    let mut client = Http2::connect(gateway.address());
    let update = |stream: u32| Http2::bytes(PRIORITY_UPDATE, 0, 0, &[&stream.to_be_bytes()[..], b"u=0, i"].concat());
    for stream in [1, 3] {
        client.send([update(stream), Http2::get_bytes(stream, "/"), update(stream)].concat());
        assert_eq!(client.status(stream), 200);
        client.send(update(stream));
    }
}

#[test]
fn the_log_names_the_version() {
    let backend = Backend::ok();
    let gateway = Setup::default().start(backend.endpoint());
    curl(&gateway, "/", &[]);
    assert_eq!(gateway.log_line(1)["httpVersion"], "2.0");
    gateway.get("/");
    assert_eq!(gateway.log_line(2).get("httpVersion"), None);
}

#[test]
fn a_drain_ends_a_connection_behind_its_streams() {
    let backend = Backend::start(|conn| {
        conn.request();
        conn.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no");
        std::thread::sleep(Duration::from_millis(1_500));
        conn.send("k");
    });
    let mut gateway = Setup::default().start(backend.endpoint());
    let mut idle = Http2::connect(gateway.address());
    idle.frame(PING, 0, 0, &[1; 8]).next_of(PING, 0);
    let mut busy = Http2::connect(gateway.address());
    busy.get(1, "/");
    assert_eq!(busy.status(1), 200);
    assert_eq!(gateway.metric("gateway_http2_connections"), 2.0);
    gateway.terminate();
    for client in [&mut idle, &mut busy] {
        assert_eq!(client.next_of(GOAWAY, 0).error(), 0);
        // The gateway learns with a PING when everything that crossed its GOAWAY has come.
        let ping = client.next_of(PING, 0);
        client.frame(PING, ACK, 0, &ping.payload);
    }
    let end =
        std::iter::from_fn(|| busy.next_frame().ok()).find(|frame| frame.kind == DATA && frame.flags == END_STREAM);
    assert_eq!(end.map(|frame| frame.payload), Some(b"k".to_vec()));
    assert_eq!(busy.expect_go_away().unwrap_or_default(), 0);
    assert_eq!(idle.expect_go_away(), Some(0));
    assert!(gateway.wait_exit(PATIENCE).success());
}

#[test]
fn a_connection_ends_when_it_is_idle_old_or_has_asked_enough() {
    let backend = Backend::ok();
    for (listener, asks) in [
        ("timeouts: { idle: 1s }", false),
        ("timeouts: { connection_age: 1s }", true),
        ("limits: { requests_per_connection: 2 }", true),
    ] {
        let gateway = Setup { listener, ..Setup::default() }.start(backend.endpoint());
        let mut client = Http2::connect(gateway.address());
        for stream in [1, 3] {
            client.get(stream, "/");
            // The last one's answer comes behind the GOAWAY.
            if stream == 1 || !listener.contains("requests") {
                assert_eq!(client.status(stream), 200);
            }
        }
        let goodbye = client.next_of(GOAWAY, 0);
        assert_eq!(goodbye.error(), 0, "{listener}");
        if asks {
            let ping = client.next_of(PING, 0);
            client.frame(PING, ACK, 0, &ping.payload);
        }
        assert_eq!(client.expect_go_away().unwrap_or_default(), 0, "{listener}");
        gateway.expect_idle();
    }
    // With HTTP/1 an old connection's next answer is its last.
    let gateway = Setup { listener: "timeouts: { connection_age: 1s }", ..Setup::default() }.start(backend.endpoint());
    let mut client = gateway.connect();
    let started = std::time::Instant::now();
    while client.get("/").get("connection") != Some("close") {
        assert!(started.elapsed() < Duration::from_secs(5));
    }
    assert!(started.elapsed() >= Duration::from_millis(900), "{:?}", started.elapsed());
    client.expect_closed();
}

#[test]
fn a_service_that_takes_its_time_slows_its_client_down() {
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let backend = Backend::start(move |conn| {
        let head = conn.next_request_head().unwrap();
        let _ = wait.lock().unwrap().recv();
        let body = conn.body_of(head).body;
        conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-Length: {}\r\n\r\n", body.len()));
    });
    let gateway = Setup { route: "limits: { body: off }", ..Setup::default() }.start(backend.endpoint());
    let mut client = Http2::connect(gateway.address());
    let head = [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "a.test")];
    client.frame(HEADERS, END_HEADERS, 1, &fields(&head));
    // The windows of the connection and of the stream.
    let mut windows = [65_535usize; 2];
    let (mut sent, total, mut held_up) = (0, 32 << 20, false);
    while sent < total {
        if windows.iter().any(|window| *window < 16_384) {
            if !held_up && client.stays_silent(Duration::from_millis(500)) {
                // What has gone ahead is in the kernel's buffers towards the service, and in the stream's window.
                held_up = true;
                assert!(sent < 16 << 20, "{sent} bytes went ahead");
                go.send(()).unwrap();
            }
            match client.next_frame().unwrap() {
                Frame { kind: WINDOW_UPDATE, stream, payload, .. } => {
                    windows[stream as usize] += u32::from_be_bytes(payload[..4].try_into().unwrap()) as usize;
                }
                frame => assert_eq!(frame.kind, SETTINGS, "{frame:?} after {sent} bytes"),
            }
            continue;
        }
        let piece = 16_384.min(total - sent);
        client.frame(DATA, if sent + piece == total { END_STREAM } else { 0 }, 1, &vec![b'x'; piece]);
        sent += piece;
        windows = windows.map(|window| window - piece);
    }
    assert!(held_up, "the service did not slow the client down");
    assert_eq!(client.status(1), 200);
    assert!(gateway.rss_bytes() < 80 << 20, "{} bytes", gateway.rss_bytes());
    settles_at(0.0, || gateway.metric("gateway_active_requests"));
}
