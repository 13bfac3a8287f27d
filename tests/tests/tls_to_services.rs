//! TLS towards services, through the real binary, against rustls.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ringway_tests::tls::{Authority, Peer, TlsBackend, VERSIONS};
use ringway_tests::{Backend, Client, End, Gateway, Message, PATIENCE, Process, Setup, eventually, settles_at};
use rustls::{ProtocolVersion, ServerConfig, version};

/// A gateway whose service is spoken to in TLS, with these keys.
fn gateway(endpoint: &str, tls: &str) -> Gateway {
    gateway_with(endpoint, tls, "")
}

fn gateway_with(endpoint: &str, tls: &str, service: &str) -> Gateway {
    let service = format!("tls: {{ {tls} }}, {service}");
    Setup { service: &service, route: "limits: { body: 8MiB }", ..Default::default() }.start(endpoint)
}

fn ca(authority: &Authority) -> String {
    format!("ca: \"{}\"", authority.ca())
}

fn handshakes(gateway: &Gateway, result: &str) -> f64 {
    gateway.metric(&format!("gateway_backend_tls_handshakes_total{{service=\"app\",result=\"{result}\"}}"))
}

fn stale_retries(gateway: &Gateway) -> f64 {
    gateway.metric("gateway_backend_stale_retries_total{service=\"app\"}")
}

/// Something that shows where it was mixed up.
fn noise(bytes: u32) -> Vec<u8> {
    (0..bytes).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

fn post(body: &[u8]) -> Vec<u8> {
    let mut request = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
    request.extend_from_slice(body);
    request
}

#[test]
fn a_service_is_verified_by_name_and_by_address() {
    let authority = Authority::new();
    for version in VERSIONS {
        for (host, keys, told) in [
            ("localhost", "", Some("localhost")),
            ("127.0.0.1", "server_name: localhost", Some("localhost")),
            ("127.0.0.1", "", None),
        ] {
            let service = TlsBackend::echo(authority.server(version));
            let gateway = gateway(&service.at(host), &format!("{}, {keys}", ca(&authority)));
            assert_eq!(gateway.connect().ask(post(b"hello")).text(), "hello", "{host} {keys}");
            let [seen] = service.seen().try_into().unwrap();
            assert_eq!(seen.server_name.as_deref(), told, "{host} {keys}");
            assert_eq!((seen.version, seen.has_certificate), (Some(version.version), false));
            assert_eq!(seen.protocol.as_deref(), Some(b"http/1.1".as_slice()));
            assert_eq!(handshakes(&gateway, "full"), 1.0);
        }
    }
}

#[test]
fn the_system_vouches_where_nothing_else_is_said() {
    let authority = Authority::new();
    let service = TlsBackend::echo(authority.server(&version::TLS13));
    let yaml = Setup { service: "tls: {}", ..Default::default() }.yaml(&service.at("localhost"));
    for (file, status) in [(authority.ca(), 200), (Authority::new().ca(), 502)] {
        let gateway = Gateway::start_with(&yaml, |command| {
            command.env("SSL_CERT_FILE", &file).env_remove("SSL_CERT_DIR");
        });
        assert_eq!(gateway.get("/").status(), status);
    }
}

/// Asks a service that is not to be trusted.
#[track_caller]
fn assert_refused(config: ServerConfig, tls: &str, result: &str, reason: &str) {
    let service = TlsBackend::echo(config);
    let gateway = gateway(&service.at("127.0.0.1"), tls);
    assert_eq!(gateway.get("/").status(), 502);
    assert_eq!((gateway.backend_errors("tls"), handshakes(&gateway, result)), (1.0, 1.0));
    let line = format!("service `app`, endpoint `{}`: no TLS: ", service.at("127.0.0.1"));
    eventually(PATIENCE, || gateway.stderr().contains(&line));
    assert!(gateway.stderr().contains(reason), "{}", gateway.stderr());
    // The log tells once, the metric each time.
    assert_eq!(gateway.get("/").status(), 502);
    assert_eq!((gateway.stderr().matches(&line).count(), gateway.backend_errors("tls")), (1, 2.0));
    assert_eq!(service.requests(), 0);
    eventually(PATIENCE, || service.failed() == 2);
}

#[test]
fn a_certificate_for_another_name_is_refused() {
    let authority = Authority::new();
    for version in VERSIONS {
        let tls = format!("{}, server_name: other.example", ca(&authority));
        assert_refused(authority.server(version), &tls, "untrusted", "not valid for name \"other.example\"");
    }
    let by_name = Authority::server_with(authority.issue(&["localhost"]), &version::TLS13);
    assert_refused(by_name, &ca(&authority), "untrusted", "not valid for name");
}

#[test]
fn an_unknown_authority_and_an_expired_certificate_are_refused() {
    let (authority, other) = (Authority::new(), Authority::new());
    assert_refused(authority.server(&version::TLS13), &ca(&other), "untrusted", "UnknownIssuer");
    let expired = authority.issue_as(&["127.0.0.1"], |own| own.not_after = rcgen::date_time_ymd(2020, 1, 1));
    let expired = Authority::server_with(expired, &version::TLS13);
    assert_refused(expired, &ca(&authority), "untrusted", "certificate expired");
}

#[test]
fn a_service_without_a_version_in_common_is_refused() {
    let authority = Authority::new();
    let tls = format!("{}, policy: modern", ca(&authority));
    assert_refused(authority.server(&version::TLS12), &tls, "failed", "ProtocolVersion");
}

#[test]
fn a_service_that_does_not_speak_tls_is_refused() {
    let authority = Authority::new();
    let service = Backend::start(|conn| {
        let _ = conn.read_some();
        conn.send("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
    });
    let gateway = gateway(service.endpoint(), &ca(&authority));
    assert_eq!(gateway.get("/").status(), 502);
    assert_eq!((gateway.backend_errors("tls"), handshakes(&gateway, "failed")), (1.0, 1.0));
}

#[test]
fn nothing_is_verified_where_that_is_asked_for() {
    let (authority, own) = (Authority::new(), "insecure_skip_verify: true");
    for version in VERSIONS {
        let service = TlsBackend::echo(authority.server(version));
        let gateway = gateway(&service.at("127.0.0.1"), own);
        assert_eq!(gateway.get("/").status(), 200);
        assert!(gateway.stderr().contains("service `app`: `insecure_skip_verify`"), "{}", gateway.stderr());
    }
}

#[test]
fn the_gateway_proves_who_it_is() {
    let (authority, other) = (Authority::new(), Authority::new());
    for version in VERSIONS {
        let service = TlsBackend::echo(authority.strict_server(version));
        let endpoint = service.at("127.0.0.1");
        let tls = format!("{}, {}", ca(&authority), authority.issue_files("gateway.test"));
        let known = gateway(&endpoint, &tls);
        assert_eq!(known.get("/").status(), 200);
        assert!(service.seen()[0].has_certificate);
        let left = known.metric("gateway_certificate_expiry_seconds{name=\"gateway.test\"}");
        assert!(left > 0.0, "{left}");
        for own in ["".into(), other.issue_files("stranger.test")] {
            let unknown = gateway(&endpoint, &format!("{}, {own}", ca(&authority)));
            assert_eq!(unknown.get("/").status(), 502);
            assert_eq!(unknown.backend_errors("tls"), 1.0, "{}", unknown.stderr());
            eventually(PATIENCE, || unknown.stderr().contains("no TLS: "));
        }
        assert_eq!(service.requests(), 1);
    }
}

#[track_caller]
fn assert_same(answer: &Message, body: &[u8]) {
    assert_eq!((answer.status(), answer.body.len()), (200, body.len()));
    let differs = answer.body.iter().zip(body).position(|(got, sent)| got != sent);
    assert_eq!(differs, None, "the body has changed on its way");
}

#[test]
fn large_bodies_in_both_directions() {
    let (authority, body) = (Authority::new(), noise(3 * 1024 * 1024));
    for version in VERSIONS {
        let service = TlsBackend::echo(authority.server(version));
        let gateway = gateway(&service.at("127.0.0.1"), &ca(&authority));
        let mut client = gateway.connect();
        for _ in 0..2 {
            let answer = client.ask(post(&body));
            assert_same(&answer, &body);
        }
        assert_eq!(service.seen().len(), 1);
        drop(client);
        gateway.expect_idle();
    }
}

#[test]
fn both_directions_at_once() {
    let (authority, body) = (Authority::new(), noise(2 * 1024 * 1024));
    for version in VERSIONS {
        let service = TlsBackend::start(authority.server(version), |peer| {
            let Some(head) = peer.next_head() else { return };
            let mut left: usize = head.get("content-length").unwrap().parse().unwrap();
            peer.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {left}\r\n\r\n").as_bytes());
            let mut piece = vec![0; 50_000];
            while left > 0 {
                let read = peer.stream.read(&mut piece).unwrap();
                peer.send(&piece[..read]);
                left -= read;
            }
        });
        let gateway = gateway(&service.at("127.0.0.1"), &ca(&authority));
        let mut client = gateway.connect();
        let mut writing = client.stream().try_clone().unwrap();
        let request = post(&body);
        let writer = thread::spawn(move || writing.write_all(&request).unwrap());
        let answer = client.read_response();
        writer.join().unwrap();
        assert_same(&answer, &body);
    }
}

#[test]
fn connections_are_kept_and_sessions_go_on() {
    let authority = Authority::new();
    for version in VERSIONS {
        let service = TlsBackend::echo(authority.server(version));
        let kept = gateway(&service.at("127.0.0.1"), &ca(&authority));
        let mut client = kept.connect();
        (0..20).for_each(|_| assert_eq!(client.get("/").status(), 200));
        assert_eq!(service.seen().len(), 1);
        assert_eq!((handshakes(&kept, "full"), handshakes(&kept, "resumed")), (1.0, 0.0));

        let mut config = authority.server(version);
        // Tickets then come in several records.
        config.max_fragment_size = Some(64);
        config.send_tls13_tickets = 2;
        let service = TlsBackend::echo(config);
        let fresh = gateway_with(&service.at("127.0.0.1"), &ca(&authority), "pool: { idle: 0 }");
        let mut client = fresh.connect();
        (0..6).for_each(|_| assert_eq!(client.get("/").status(), 200));
        let resumed: Vec<bool> = service.seen().iter().map(|seen| seen.is_resumed).collect();
        assert_eq!(resumed, [false, true, true, true, true, true], "{version:?}");
        assert_eq!((handshakes(&fresh, "full"), handshakes(&fresh, "resumed")), (1.0, 5.0));
        // Sessions outlive a reload that leaves the service alone.
        let yaml = Setup {
            service: &format!("tls: {{ {} }}, pool: {{ idle: 0 }}", ca(&authority)),
            sections: "# changed\n",
            ..Default::default()
        };
        assert!(fresh.replace_config(&yaml.yaml(&service.at("127.0.0.1"))));
        assert_eq!(fresh.get("/").status(), 200);
        assert_eq!(handshakes(&fresh, "full"), 1.0);
    }
}

#[test]
fn a_connection_that_was_ended_is_not_used_again() {
    let authority = Authority::new();
    for version in VERSIONS {
        let service = TlsBackend::start(authority.server(version), |peer| {
            if peer.next_request().is_some() {
                peer.answer(b"once");
                peer.end();
                // Until the gateway has closed it too.
                while peer.stream.read(&mut [0]).is_ok_and(|read| read > 0) {}
            }
        });
        let gateway = gateway(&service.at("127.0.0.1"), &ca(&authority));
        for round in 1..4 {
            assert_eq!(gateway.get("/").text(), "once");
            settles_at(0.0, || {
                let labels = format!("service=\"app\",endpoint=\"{}\"", service.at("127.0.0.1"));
                gateway.metric(&format!("gateway_endpoint_open_connections{{{labels}}}"))
            });
            assert_eq!(service.seen().len(), round);
        }
        assert_eq!(stale_retries(&gateway), 0.0);
    }
}

#[test]
fn a_connection_that_ends_as_it_is_used_is_made_up_for_where_that_is_safe() {
    let authority = Authority::new();
    for orderly in [true, false] {
        let service = TlsBackend::start(authority.server(&version::TLS13), move |peer| {
            if peer.next_request().is_some() {
                peer.answer(b"first");
            }
            // The next one is read and not answered.
            if peer.next_head().is_some() && orderly {
                peer.end();
            }
        });
        let gateway = gateway(&service.at("127.0.0.1"), &ca(&authority));
        let mut client = gateway.connect();
        assert_eq!(client.get("/").text(), "first");
        assert_eq!(client.get("/").text(), "first");
        assert_eq!((service.seen().len(), stale_retries(&gateway)), (2, 1.0));
        assert_eq!(client.ask(post(b"pay")).status(), 502);
        assert_eq!((service.seen().len(), stale_retries(&gateway)), (2, 1.0));
        assert_eq!(gateway.backend_errors("reset"), 1.0);
    }
}

#[test]
fn an_answer_that_was_cut_off_is_not_whole() {
    let authority = Authority::new();
    for version in VERSIONS {
        for is_whole in [true, false] {
            let service = TlsBackend::start(authority.server(version), move |peer| {
                while peer.next_request().is_some() {
                    peer.send(b"HTTP/1.1 200 OK\r\n\r\nup to the end");
                    if is_whole {
                        peer.end();
                    }
                    let _ = peer.stream.sock.shutdown(Shutdown::Write);
                }
            });
            let gateway = gateway(&service.at("127.0.0.1"), &ca(&authority));
            let mut client = gateway.connect();
            client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
            let (bytes, end) = client.read_to_end();
            let text = String::from_utf8(bytes).unwrap();
            assert_eq!((end == End::Closed, text.ends_with("\r\n0\r\n\r\n")), (is_whole, is_whole), "{text}");
            assert_eq!(gateway.backend_errors("body"), if is_whole { 0.0 } else { 1.0 });
        }
    }
}

#[test]
fn keys_change_at_any_time() {
    let (authority, body) = (Authority::new(), noise(300_000));
    let of_service = body.clone();
    let service = TlsBackend::start(authority.server(&version::TLS13), move |peer| {
        while let Some((_, received)) = peer.next_request() {
            assert!(received == of_service);
            peer.renew_keys();
            peer.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", received.len()).as_bytes());
            let (first, second) = received.split_at(100_000);
            peer.send(first);
            peer.renew_keys();
            peer.send(second);
            // This one comes when the connection is idle.
            peer.renew_keys();
        }
    });
    let gateway = gateway(&service.at("127.0.0.1"), &ca(&authority));
    let mut client = gateway.connect();
    for _ in 0..5 {
        assert_same(&client.ask(post(&body)), &body);
    }
    assert_eq!((service.seen().len(), stale_retries(&gateway)), (1, 0.0));
}

#[test]
fn an_auth_service_is_asked_in_tls() {
    let (authority, app) = (Authority::new(), Backend::ok());
    let guard = TlsBackend::start(authority.server(&version::TLS13), |peer: &mut Peer| {
        while let Some((head, _)) = peer.next_request() {
            match head.get("authorization") {
                Some("Bearer good") => peer.send(b"HTTP/1.1 200 OK\r\nX-User-Id: u1\r\nContent-Length: 0\r\n\r\n"),
                _ => peer.send(b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n"),
            }
        }
    });
    let yaml = |tls: &str| {
        format!(
            "services: [{{ name: app, endpoints: \"{}\" }}, {{ name: guard, endpoints: \"{}\", tls: {{ {tls} }} }}]\n\
             authenticators: [{{ name: own, auth_service: {{ service: guard, path: /validate }} }}]\n\
             routes: [{{ name: all, service: app, authenticate: own }}]\n",
            app.endpoint(),
            guard.at("localhost"),
        )
    };
    let ask = |gateway: &Gateway, token: &str| {
        let head = format!("GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n\r\n");
        gateway.connect().ask(head).status()
    };
    let good = Gateway::start(&yaml(&ca(&authority)));
    assert_eq!((ask(&good, "good"), ask(&good, "bad"), app.connections()), (200, 401, 1));
    assert_eq!(guard.seen().len(), 1);
    let bad = Gateway::start(&yaml(&ca(&Authority::new())));
    assert_eq!(ask(&bad, "good"), 503);
    let errors = "gateway_backend_errors_total{service=\"guard\",kind=\"tls\"}";
    assert_eq!((bad.metric(errors), app.connections()), (1.0, 1));
}

#[test]
fn a_handshake_has_its_time_and_keeps_nobody_waiting() {
    let authority = Authority::new();
    // Accepts connections, by the kernel alone.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let other = Backend::ok();
    let yaml = format!(
        "services:\n\
         \x20 - {{ name: app, endpoints: \"{}\", tls: {{ {} }}, timeouts: {{ connect: 1s }} }}\n\
         \x20 - {{ name: other, endpoints: \"{}\" }}\n\
         routes: [{{ match: {{ path: /slow }}, service: app }}, {{ match: {{ path: /quick }}, service: other }}]\n",
        silent.local_addr().unwrap(),
        ca(&authority),
        other.endpoint(),
    );
    let gateway = Gateway::start(&yaml);
    let is_over = Arc::new(AtomicBool::new(false));
    let begun = Instant::now();
    let mut slow = gateway.connect();
    slow.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n");
    let waiting = Arc::clone(&is_over);
    let waiter = thread::spawn(move || {
        let answer = slow.read_response();
        waiting.store(true, Ordering::Release);
        answer.status()
    });
    let mut quick = gateway.connect();
    let mut answered = 0;
    while !is_over.load(Ordering::Acquire) {
        assert_eq!(quick.get("/quick").status(), 200);
        answered += 1;
    }
    assert_eq!(waiter.join().unwrap(), 504);
    assert!(begun.elapsed() >= Duration::from_secs(1) && begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
    assert!(answered > 50, "{answered} answers meanwhile");
    assert_eq!((gateway.backend_errors("connect_timeout"), handshakes(&gateway, "timeout")), (1.0, 1.0));
}

#[test]
fn a_revoked_certificate_is_refused_from_then_on() {
    let (authority, other) = (Authority::new(), Authority::new());
    let issue = |serial: u64| authority.issue_as(&["127.0.0.1"], |own| own.serial_number = Some(serial.into()));
    let keys = format!("{}, crl: \"{}\"", ca(&authority), authority.revoke(&[8]));
    for version in VERSIONS {
        assert_refused(Authority::server_with(issue(8), version), &keys, "untrusted", "Revoked");
    }
    let service = TlsBackend::echo(Authority::server_with(issue(7), &version::TLS13));
    let gateway = gateway(&service.at("127.0.0.1"), &keys);
    assert_eq!(gateway.get("/").status(), 200);
    // Neither a connection of before nor a session goes on.
    authority.revoke(&[7, 8]);
    eventually(PATIENCE, || gateway.get("/").status() == 502);
    assert_eq!(gateway.get("/").status(), 502);
    assert!(gateway.stderr().contains("Revoked"), "{}", gateway.stderr());
    authority.revoke(&[]);
    eventually(PATIENCE, || gateway.get("/").status() == 200);
    // A list of somebody else says nothing of it.
    let keys = format!("{}, crl: \"{}\"", ca(&authority), other.revoke(&[]));
    let unknown = Authority::server_with(issue(9), &version::TLS13);
    assert_refused(unknown, &keys, "untrusted", "UnknownRevocationStatus");
}

#[test]
fn files_are_read_again_when_they_change() {
    let (authority, other) = (Authority::new(), Authority::new());
    let service = TlsBackend::echo(authority.server(&version::TLS13));
    let gateway = gateway(&service.at("127.0.0.1"), &ca(&other));
    let mut client: Client = gateway.connect();
    assert_eq!(client.get("/").status(), 502);
    fs::copy(authority.ca(), other.ca()).unwrap();
    eventually(PATIENCE, || client.get("/").status() == 200);
    assert_eq!(service.seen()[0].version, Some(ProtocolVersion::TLSv1_3));
}

#[test]
fn what_is_wrong_is_said_before_the_start() {
    let (authority, files) = (Authority::new(), tempfile::tempdir().unwrap());
    let (one, two) = (authority.issue_files("one"), authority.issue_files("two"));
    let key_of_two = two.split_once(", ").unwrap().1;
    let certificate_of_one = one.split_once(", ").unwrap().0;
    let config = files.path().join("gateway.yaml");
    for (endpoint, tls, said) in [
        ("127.0.0.1:1", "ca: none.pem".to_owned(), "none.pem` cannot be used: No such file"),
        ("127.0.0.1:1", format!("{certificate_of_one}, {key_of_two}"), "the key does not fit the certificate"),
        ("127.0.0.1:1", certificate_of_one.to_owned(), "the key `key` is missing: the private key of `certificate`"),
        ("127.0.0.1:1", key_of_two.to_owned(), "the key `certificate` is missing: the certificate of `key`"),
        ("127.0.0.1:1", format!("ca: \"{}\", insecure_skip_verify: true", authority.ca()), "`ca` has no effect"),
        (
            "127.0.0.1:1",
            format!("crl: \"{}\", insecure_skip_verify: true", authority.revoke(&[])),
            "`crl` has no effect",
        ),
        ("127.0.0.1:1", format!("crl: \"{}\"", authority.ca()), "`crl`: there is no list in it"),
        ("127.0.0.1:1", "crl: none.pem".to_owned(), "none.pem` cannot be used: No such file"),
        ("unix:/run/a.sock", ca(&authority), "say `server_name` in the service's `tls`"),
        ("127.0.0.1:1", "server_name: \"https://a\"".to_owned(), "expected a host name or an IP address"),
        ("https://a.localhost:1", ca(&authority), "`a.localhost:1`, and `tls: {}` in the service"),
    ] {
        let listener = "listeners: [{ name: a, address: \"127.0.0.1:1\" }]\n";
        let service = format!("services: [{{ name: app, endpoints: \"{endpoint}\", tls: {{ {tls} }} }}]\n");
        fs::write(&config, format!("{listener}{service}")).unwrap();
        let output = Process::run(&["check", &config.display().to_string()]);
        let told = format!("{}{}", output.stdout, output.stderr);
        assert!(told.contains(said) && told.contains("gateway.yaml:2:"), "{endpoint} {tls}: {told}");
    }
}
