//! Services that speak HTTP/2: a server of `h2`, in the clear and over TLS, and scripts that send frames of their own.

mod frames;
mod hedging;
mod keepalive;
mod mirror;
mod service;

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::Reason;
use http::{HeaderMap, Response};
use ringway_tests::{Backend, End, Nobody, PATIENCE, Setup, eventually, settles_at};
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;

use frames::frame;
use service::*;

#[test]
fn a_request_of_http_1_goes_as_a_stream_and_its_answer_comes_back() {
    let service = Service::start(|mut call| async move {
        let head = Response::builder().header("content-length", "5").header("x-own", "1").header("x-own", "2");
        call.answer(head, "hello");
    });
    let gateway = service.gateway("");
    let answer = gateway.connect().ask(
        "GET /a%20b?c=d HTTP/1.1\r\nHost: shop.test\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\n\
         Proxy-Connection: x\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\nTE: trailers, deflate\r\nCookie: a=1; b=2\r\n\
         Priority: u=1, i\r\nX-Kept: yes\r\n\r\n",
    );
    assert_eq!((answer.status(), answer.text()), (200, "hello".into()));
    assert_eq!(answer.get("content-length"), Some("5"));
    assert_eq!(answer.all("x-own").collect::<Vec<_>>(), ["1", "2"]);
    assert!(answer.has("date") && answer.has("x-request-id") && !answer.has("transfer-encoding"));
    let seen = service.request(0);
    assert_eq!((seen.method.as_str(), seen.uri.to_string().as_str()), ("GET", "http://shop.test/a%20b?c=d"));
    let get = |name: &str| seen.headers.get(name).map(|value| value.to_str().expect("text").to_owned());
    for name in ["connection", "keep-alive", "proxy-connection", "upgrade", "x-hop", "host", "transfer-encoding"] {
        assert_eq!(get(name), None, "{name}");
    }
    assert_eq!(get("te").as_deref(), Some("trailers"));
    assert_eq!(get("cookie").as_deref(), Some("a=1; b=2"));
    assert_eq!(get("priority").as_deref(), Some("u=1, i"));
    assert_eq!(get("x-kept").as_deref(), Some("yes"));
    assert_eq!(get("via").as_deref(), Some("1.1 ringway"));
    let line = gateway.log_line(1);
    assert_eq!((&line["statusCode"], &line["backendService"]), (&200.into(), &"app".into()));
}

#[test]
fn bodies_and_trailers_go_both_ways() {
    let service = Service::start(|mut call| async move {
        let (body, trailers) = call.body().await;
        let told = format!("{}:{:?}", body.len(), trailers.get("x-sum"));
        let mut stream = call.begin(Response::builder(), false);
        let _ = stream.send_data(Bytes::from(body), false);
        let mut trailers = HeaderMap::new();
        trailers.insert("x-told", told.parse().expect("a value"));
        trailers.insert("content-length", "3".parse().expect("a value"));
        let _ = stream.send_trailers(trailers);
    });
    let gateway = service.gateway("");
    let mut client = gateway.connect();
    let body = "0123456789".repeat(20_000);
    let sized = client.ask(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
    assert!(sized.text() == body, "{} bytes", sized.body.len());
    assert_eq!(sized.trailers, [("x-told".to_owned(), "200000:None".to_owned())]);
    assert_eq!(service.request(0).headers["content-length"], "200000");
    let chunked = client.ask(
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n1\r\n \r\n5\r\nworld\r\n0\r\n\
         X-Sum: 11\r\nHost: b\r\n\r\n",
    );
    assert_eq!(chunked.text(), "hello world");
    assert_eq!(chunked.trailers, [("x-told".to_owned(), "11:Some(\"11\")".to_owned())]);
    assert!(service.request(1).headers.get("content-length").is_none());
    let empty = client.ask("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n");
    assert_eq!((empty.status(), empty.body.len()), (200, 0));
    assert_eq!(service.connections(), 1);
}

#[test]
fn heads_that_have_no_body_are_told_as_such() {
    let service = Service::start(|mut call| async move {
        let head = match call.request.uri().path() {
            "/head" => Response::builder().header("content-length", "5"),
            "/204" => Response::builder().status(204),
            "/304" => Response::builder().status(304).header("content-length", "7"),
            _ => Response::builder(),
        };
        call.answer(head, "");
    });
    let gateway = service.gateway("");
    let mut client = gateway.connect();
    let answer = client.send("HEAD /head HTTP/1.1\r\nHost: a\r\n\r\n").read_response_to_head();
    assert_eq!((answer.status(), answer.get("content-length")), (200, Some("5")));
    assert_eq!(client.get("/204").status(), 204);
    assert_eq!(client.get("/304").status(), 304);
    let empty = client.get("/");
    assert_eq!((empty.status(), empty.body.len()), (200, 0));
    assert_eq!(client.get("/").status(), 200, "the connection goes on");
}

#[test]
fn interim_answers_are_passed_on() {
    let service = Service::start(|mut call| async move {
        for _ in 0..2 {
            let hints = Response::builder().status(103).header("link", "</a.css>").body(()).expect("a head");
            call.respond.send_informational(hints).expect("a stream");
        }
        call.answer(Response::builder(), "ok");
    });
    let gateway = service.gateway("");
    let mut client = gateway.connect();
    let hints = client.get("/");
    assert_eq!((hints.status(), hints.get("link")), (103, Some("</a.css>")));
    assert_eq!(client.read_response().status(), 103);
    assert_eq!(client.read_response().text(), "ok");
}

#[test]
fn many_requests_share_a_connection() {
    const CLIENTS: usize = 40;
    let all = Arc::new(tokio::sync::Barrier::new(CLIENTS));
    let service = Service::start(move |mut call| {
        let all = Arc::clone(&all);
        async move {
            all.wait().await;
            call.answer(Response::builder(), "ok");
        }
    });
    let gateway = service.gateway("");
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| gateway.connect()).collect();
    for client in &mut clients {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    }
    for client in &mut clients {
        assert_eq!(client.read_response().text(), "ok");
    }
    assert_eq!((service.connections(), service.requests()), (1, CLIENTS));
    let endpoint = format!("{{service=\"app\",endpoint=\"{}\"}}", service.endpoint);
    assert_eq!(gateway.metric(&format!("gateway_endpoint_open_connections{endpoint}")), 1.0);
    settles_at(1.0, || gateway.metric(&format!("gateway_endpoint_idle_connections{endpoint}")));
    assert_eq!(gateway.metric(&format!("gateway_endpoint_connects_total{endpoint}")), 1.0);
}

/// A service whose requests wait until the test lets them go.
fn waiting(streams: u32) -> (Service, Arc<tokio::sync::Semaphore>) {
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let of_service = Arc::clone(&gate);
    let service = Service::with(
        move |builder| {
            builder.max_concurrent_streams(streams);
        },
        None,
        move |mut call| {
            let gate = Arc::clone(&of_service);
            async move {
                gate.acquire().await.expect("a gate").forget();
                let connection = call.connection.to_string();
                call.answer(Response::builder(), &connection);
            }
        },
    );
    (service, gate)
}

#[test]
fn a_full_connection_gets_company_up_to_the_cap() {
    let (service, gate) = waiting(100);
    let gateway = service.gateway("http2: { connections: 2, max_concurrent_streams: 2 }");
    let mut clients: Vec<_> = (0..4).map(|_| gateway.connect()).collect();
    for (index, client) in clients.iter_mut().enumerate() {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        settles_at(index + 1, || service.requests());
    }
    assert_eq!(service.connections(), 2);
    let refused = gateway.get("/");
    assert_eq!((refused.status(), refused.get("retry-after")), (503, Some("1")));
    assert_eq!(gateway.backend_errors("no_endpoint"), 1.0);
    gate.add_permits(4);
    let answers: Vec<_> = clients.iter_mut().map(|client| client.read_response().text()).collect();
    assert_eq!(answers, ["0", "0", "1", "1"]);
    gate.add_permits(1);
    assert_eq!(gateway.get("/").text(), "0", "there is room again");
}

#[test]
fn a_service_that_allows_fewer_streams_gets_fewer() {
    let (service, gate) = waiting(1);
    let gateway = service.gateway("");
    // The first tells the gateway the settings.
    gate.add_permits(1);
    assert_eq!(gateway.get("/").text(), "0");
    let mut clients: Vec<_> = (0..3).map(|_| gateway.connect()).collect();
    for (index, client) in clients.iter_mut().enumerate() {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        settles_at(index + 2, || service.requests());
    }
    assert_eq!(service.connections(), 3);
    gate.add_permits(3);
    for client in &mut clients {
        assert_eq!(client.read_response().status(), 200);
    }
}

#[test]
fn after_goaway_the_streams_end_and_new_ones_go_elsewhere() {
    let gate = Arc::new(Notify::new());
    let of_service = Arc::clone(&gate);
    let service = Service::start(move |mut call| {
        let gate = Arc::clone(&of_service);
        async move {
            if call.index == 0 {
                call.control.go_away.notify_one();
                gate.notified().await;
            }
            let connection = call.connection.to_string();
            call.answer(Response::builder(), &connection);
        }
    });
    let gateway = service.gateway("");
    let mut first = gateway.connect();
    first.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    eventually(PATIENCE, || gateway.get("/").text() == "1");
    gate.notify_one();
    assert_eq!(first.read_response().text(), "0");
    settles_at(1, || service.open());
    assert_eq!(gateway.get("/").text(), "1");
}

#[test]
fn a_refused_stream_is_sent_once_more_whatever_it_is() {
    let service = Service::start(|mut call| async move {
        let always = call.request.uri().path() == "/always";
        if always || call.index == 0 {
            call.respond.send_reset(Reason::REFUSED_STREAM);
        } else {
            let (body, _) = call.body().await;
            call.answer(Response::builder(), &String::from_utf8_lossy(&body));
        }
    });
    let gateway = service.gateway("");
    let answer = gateway.connect().ask("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody");
    assert_eq!((answer.status(), answer.text()), (200, "body".into()));
    assert_eq!(service.requests(), 2);
    assert_eq!(gateway.metric("gateway_backend_stale_retries_total{service=\"app\"}"), 1.0);
    let refused = gateway.connect().ask("POST /always HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody");
    assert_eq!(refused.status(), 502);
    assert_eq!(service.requests(), 4, "once more, and no more");
}

#[test]
fn a_stream_that_is_refused_again_is_for_the_retries() {
    let service = Service::start(|mut call| async move {
        match call.index {
            0 | 1 => call.respond.send_reset(Reason::REFUSED_STREAM),
            _ => call.answer(Response::builder(), "ok"),
        }
    });
    let gateway = service.gateway("retries: { attempts: 1, on: refused_stream }");
    let answer = gateway.connect().ask("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody");
    assert_eq!((answer.status(), service.requests()), (200, 3));
    settles_at(1.0, || gateway.metric("gateway_retries_total{service=\"app\",outcome=\"success\"}"));
}

#[test]
fn a_stream_that_the_service_resets_is_not_sent_again() {
    let service = Service::start(|mut call| async move { call.respond.send_reset(Reason::INTERNAL_ERROR) });
    let gateway = service.gateway("");
    for _ in 0..2 {
        assert_eq!(gateway.get("/").status(), 502);
    }
    assert_eq!((service.requests(), service.connections()), (2, 1));
    assert_eq!(gateway.backend_errors("reset"), 2.0);
}

#[test]
fn a_lost_connection_ends_its_streams_alone_and_idempotent_requests_go_on() {
    let service = Service::start(|mut call| async move {
        match (call.request.uri().path(), call.connection) {
            // The first connection dies with it.
            ("/dies", 0) => {
                call.control.drop.notify_one();
                // It has no time to reset the stream.
                std::future::pending().await
            }
            ("/begins", 0) => {
                let mut stream = call.begin(Response::builder().header("content-length", "10"), false);
                let _ = stream.send_data(Bytes::from_static(b"half"), false);
                let _ = std::future::poll_fn(|cx| stream.poll_reset(cx)).await;
            }
            _ => {
                let connection = call.connection.to_string();
                call.answer(Response::builder(), &connection);
            }
        }
    });
    let gateway = service.gateway("");
    assert_eq!(gateway.get("/").text(), "0");
    let mut begun = gateway.connect();
    begun.send("GET /begins HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(begun.read_head().status(), 200);
    assert_eq!(begun.read_exact(4), b"half");
    assert_eq!(gateway.get("/dies").text(), "1", "sent again on another connection");
    assert_eq!(begun.read_to_end(), (Vec::new(), End::Reset));
    assert_eq!(gateway.get("/").text(), "1");
    let post = gateway.connect().ask("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx");
    assert_eq!(post.text(), "1");
}

#[test]
fn a_client_that_goes_away_has_its_stream_cancelled_and_a_deadline_too() {
    let service = Service::start(|call| call.expect_reset());
    let gateway = service.gateway("timeouts: { answer: 500ms }");
    let output = Command::new("curl")
        .args(["--http2-prior-knowledge", "--silent", "--max-time", "0.2"])
        .arg(format!("http://{}/", gateway.address()))
        .output()
        .expect("curl");
    assert_eq!(output.status.code(), Some(28), "the client's own limit");
    settles_at(vec![Reason::CANCEL], || service.resets());
    assert_eq!(gateway.get("/").status(), 504);
    settles_at(vec![Reason::CANCEL; 2], || service.resets());
    assert_eq!(gateway.backend_errors("answer_timeout"), 1.0);
}

#[test]
fn a_connection_on_which_nothing_comes_any_more_is_given_up() {
    let stuck = Arc::new(AtomicUsize::new(0));
    let of_backend = Arc::clone(&stuck);
    // Takes the preface and says its settings, and nothing else.
    let backend = Backend::start(move |conn| {
        conn.read_exact(24);
        conn.send(frame(4, 0, 0, &[]));
        of_backend.fetch_add(1, Ordering::AcqRel);
        conn.stall();
    });
    let setup = Setup { service: "protocol: http2, timeouts: { answer: 300ms }", ..Setup::default() };
    let gateway = setup.start(backend.endpoint());
    // After the first request the settings have come, after the second nothing has.
    for connections in [1, 1, 2] {
        assert_eq!(gateway.get("/").status(), 504);
        settles_at(connections, || stuck.load(Ordering::Acquire));
    }
}

#[test]
fn a_slow_client_holds_its_own_stream_and_nothing_else() {
    const BYTES: usize = 32 * 1024 * 1024;
    let service = Service::start(|mut call| async move {
        if call.request.uri().path() != "/big" {
            return call.answer(Response::builder(), "ok");
        }
        let mut stream = call.begin(Response::builder(), false);
        let _ = send_all(&mut stream, Bytes::from(vec![b'x'; BYTES]), &call.shared).await;
        let _ = stream.send_data(Bytes::new(), true);
    });
    let gateway = service.gateway("");
    let mut slow: Vec<_> = (0..4).map(|_| gateway.connect()).collect();
    for client in &mut slow {
        client.send("GET /big HTTP/1.1\r\nHost: a\r\n\r\n");
    }
    let sent = || service.shared.sent.load(Ordering::Acquire);
    eventually(PATIENCE, || sent() > 4 * 64 * 1024);
    // They all stand still: what has been sent is in windows and in the kernel.
    let (mut before, mut since) = (sent(), Instant::now());
    eventually(PATIENCE, || {
        if std::mem::replace(&mut before, sent()) != before {
            since = Instant::now();
        }
        since.elapsed() > Duration::from_millis(500)
    });
    assert!(sent() < 4 * BYTES / 2, "{} bytes", sent());
    for _ in 0..20 {
        assert_eq!(gateway.get("/").text(), "ok");
    }
    assert_eq!(service.connections(), 1);
    let client = slow.first_mut().expect("a client");
    let answer = client.read_response();
    assert_eq!(answer.body.len(), BYTES);
}

#[test]
fn idle_and_old_connections_are_closed() {
    let service = Service::ok();
    let gateway = service.gateway("pool: { idle_timeout: 200ms }");
    assert_eq!(gateway.get("/").status(), 200);
    assert_eq!(service.open(), 1);
    settles_at(0, || service.open());
    assert_eq!(gateway.get("/").status(), 200);
    assert_eq!(service.connections(), 2);
}

#[test]
fn streams_outlive_a_reload_that_removes_their_service() {
    let (service, gate) = waiting(100);
    let gateway = service.gateway("");
    let mut client = gateway.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    settles_at(1, || service.requests());
    let other = Backend::ok();
    assert!(gateway.replace_config(&Setup::default().yaml(other.endpoint())));
    assert_eq!(gateway.get("/").text(), "ok");
    gate.add_permits(1);
    assert_eq!(client.read_response().text(), "0");
    settles_at(0, || service.open());
}

#[test]
fn http_2_on_both_sides() {
    let service = Service::start(|mut call| async move {
        let (body, _) = call.body().await;
        let head = Response::builder().header("priority", "u=3");
        call.answer(head, &String::from_utf8_lossy(&body));
    });
    let gateway = service.gateway("");
    // It sends PRIORITY frames before anything else.
    let output = Command::new("nghttp")
        .args(["--verbose", "-H", "priority: u=0, i", "-H", "cookie: a=1", "-H", "cookie: b=2", "-H", "te: trailers"])
        .arg(format!("http://{}/x", gateway.address()))
        .output()
        .expect("nghttp");
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(told.contains("PRIORITY frame") && told.contains(":status: 200"), "{told}");
    assert!(told.contains("priority: u=3"), "{told}");
    let seen = service.request(0);
    assert_eq!(seen.headers["priority"], "u=0, i");
    assert_eq!(seen.headers["te"], "trailers");
    let cookies: Vec<_> = seen.headers.get_all("cookie").iter().collect();
    assert_eq!(cookies, ["a=1; b=2"]);
    assert_eq!(seen.headers["via"], "2.0 ringway");
    let output = Command::new("h2load")
        .args(["-n", "2000", "-c", "4", "-m", "32", "-d"])
        .arg(gateway.directory().join("gateway.yaml"))
        .arg(format!("http://{}/", gateway.address()))
        .output()
        .expect("h2load");
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(told.contains("2000 succeeded, 0 failed, 0 errored"), "{told}");
    gateway.expect_idle();
    settles_at(0.0, || gateway.metric("gateway_buffers_in_use{worker=\"0\"}"));
}

#[test]
fn a_stream_whose_end_comes_late_is_not_reset() {
    let gate = Arc::new(Notify::new());
    let of_service = Arc::clone(&gate);
    let service = Service::start(move |mut call| {
        let gate = Arc::clone(&of_service);
        async move {
            let mut stream = call.begin(Response::builder().header("content-length", "2"), false);
            let _ = stream.send_data(Bytes::from_static(b"ok"), false);
            let reset = tokio::select! {
                reset = std::future::poll_fn(|cx| stream.poll_reset(cx)) => reset.ok(),
                () = gate.notified() => None,
            };
            call.shared.resets.lock().expect("a list").extend(reset);
            let _ = stream.send_data(Bytes::new(), true);
        }
    });
    let gateway = service.gateway("");
    for _ in 0..3 {
        assert_eq!(gateway.get("/").text(), "ok");
        gate.notify_one();
    }
    assert_eq!(service.resets(), []);
    assert_eq!(service.connections(), 1);
    // One that never comes is not waited for.
    assert_eq!(gateway.get("/").text(), "ok");
    settles_at(vec![Reason::CANCEL], || service.resets());
}

/// What a service of TLS answers with, and the file of its certificate.
fn secure(protocol: &[u8], directory: &std::path::Path) -> (TlsAcceptor, String) {
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let rcgen::CertifiedKey { cert, signing_key } = rcgen::generate_simple_self_signed(names).expect("a certificate");
    let file = directory.join("service.pem");
    std::fs::write(&file, cert.pem()).expect("a file");
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key.into())
        .expect("a certificate");
    config.alpn_protocols = vec![protocol.to_vec()];
    (TlsAcceptor::from(Arc::new(config)), file.display().to_string())
}

#[test]
fn over_tls_it_is_negotiated() {
    let directory = tempfile::tempdir().expect("a directory");
    let (tls, ca) = secure(b"h2", directory.path());
    let service = Service::with(
        |_| {},
        Some(tls),
        |mut call| async move {
            let (body, _) = call.body().await;
            call.answer(Response::builder(), &String::from_utf8_lossy(&body));
        },
    );
    let gateway = service.gateway(&format!("tls: {{ ca: \"{ca}\" }}"));
    let body = "0123456789abcdef".repeat(20_000);
    for _ in 0..3 {
        let mut client = gateway.connect();
        let request = format!("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let answer = client.ask(request);
        assert!(answer.text() == body, "{}: {} bytes", answer.status(), answer.body.len());
    }
    assert_eq!(service.request(0).uri.to_string(), "https://a/x");
    assert_eq!(service.connections(), 1);

    let (tls, ca) = secure(b"http/1.1", directory.path());
    let other = Service::with(|_| {}, Some(tls), |mut call| async move { call.answer(Response::builder(), "") });
    let gateway = other.gateway(&format!("tls: {{ ca: \"{ca}\" }}"));
    assert_eq!(gateway.get("/").status(), 502, "it does not speak it");
}

#[test]
fn a_service_that_does_not_speak_it_is_a_bad_gateway() {
    let backend = Backend::start(|conn| {
        conn.read_exact(24);
        conn.send("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        conn.stall();
    });
    let gateway = Setup { service: "protocol: http2", ..Setup::default() }.start(backend.endpoint());
    assert_eq!(gateway.get("/").status(), 502);
    assert_eq!(gateway.backend_errors("bad_answer"), 1.0);
    let nobody = Nobody::new();
    let gateway = Setup { service: "protocol: http2", ..Setup::default() }.start(nobody.endpoint());
    assert_eq!(gateway.get("/").status(), 502);
    assert_eq!(gateway.backend_errors("connect"), 1.0);
}
