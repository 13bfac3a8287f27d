//! Clients that speak HTTP/2 by prior knowledge, through the whole gate, to services of HTTP/1. `curl` is the client.

use std::process::Command;

use ringway_tests::{Backend, Gateway, PATIENCE, Setup, eventually};

const HTTP2: &str = "http2: { enabled: true }";

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
    let gateway = Setup { listener: HTTP2, ..Setup::default() }.start(backend.endpoint());
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
    let gateway = Setup { route, listener: HTTP2, ..Setup::default() }.start(backend.endpoint());
    let answer = curl(&gateway, "/", &[]);
    assert!(answer.starts_with("HTTP/2 403"), "{answer}");
    assert!(answer.contains("\"requestId\""), "{answer}");
    assert_eq!(gateway.log_line(1)["statusCode"], 403);
    assert_eq!(backend.connections(), 0);
}

#[test]
fn bodies_go_both_ways_with_a_length_and_without_one() {
    let backend = Backend::echo();
    let gateway = Setup { listener: HTTP2, ..Setup::default() }.start(backend.endpoint());
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
    let gateway = Setup { listener: HTTP2, ..Setup::default() }.start(backend.endpoint());
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
    let gateway = Setup { listener: HTTP2, ..Setup::default() }.start(backend.endpoint());
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
    let gateway = Setup { listener: HTTP2, ..Setup::default() }.start(backend.endpoint());
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
    let gateway = Setup { listener: HTTP2, ..Setup::default() }.start(backend.endpoint());
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
    let gateway = Setup { listener: HTTP2, ..Setup::default() }.start(backend.endpoint());
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
fn it_is_off_by_default() {
    let backend = Backend::ok();
    let gateway = Setup::default().start(backend.endpoint());
    let answer = gateway.connect().ask("PRI * HTTP/2.0\r\n\r\n");
    assert_eq!(answer.status(), 505, "{}", answer.text());
}
