//! `loadtest run` through the real binary, against a server in the test.

mod server;

use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use server::{Server, Then, ok, say};

fn loadtest(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_loadtest")).arg("run").args(args).output().expect("the binary runs")
}

/// Figures of time are disturbed by other tests: theirs are alone.
static ALONE: RwLock<()> = RwLock::new(());

fn results(args: &[&str]) -> Value {
    let _with_others = ALONE.read();
    results_of(args)
}

/// Runs to the end and gives back what `--json` holds.
fn results_of(args: &[&str]) -> Value {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let json = dir.path().join("results.json");
    let output = loadtest(&[args, &["--json", json.to_str().expect("plain characters")]].concat());
    assert!(output.status.success(), "{args:?}: {output:?}");
    read(&json)
}

fn read(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).expect("the results are there");
    serde_json::from_str(&text).expect("the results are JSON")
}

fn count(results: &Value, name: &str) -> u64 {
    results["counts"][name].as_u64().unwrap_or_else(|| panic!("no `{name}` in {results}"))
}

fn us(results: &Value, which: &str, percentile: &str) -> u64 {
    results[which][percentile].as_u64().unwrap_or_else(|| panic!("no `{which}.{percentile}` in {results}"))
}

fn error(results: &Value, kind: &str) -> u64 {
    let errors = results["errors"].as_array().expect("a list of errors");
    errors.iter().find(|error| error["kind"] == kind).map_or(0, |error| error["count"].as_u64().expect("a count"))
}

/// Nothing is lost: what was due was answered or has failed, for a reason that is told.
fn assert_adds_up(results: &Value) {
    assert_eq!(count(results, "due"), count(results, "answered") + count(results, "failed"), "{}", results["counts"]);
    let errors = results["errors"].as_array().expect("a list of errors");
    let told: u64 = errors.iter().map(|error| error["count"].as_u64().expect("a count")).sum();
    assert_eq!(told, count(results, "failed"), "{}", results["errors"]);
    let of_classes = |key: &str| -> u64 {
        let classes = results["classes"].as_array().expect("a list of classes");
        classes.iter().map(|class| class.pointer(key).and_then(Value::as_u64).expect("a count")).sum()
    };
    assert_eq!((of_classes("/failed"), of_classes("/latency/count")), (told, count(results, "answered")));
    let timeline = results["timeline"].as_array().expect("a timeline");
    let of_seconds = |key: &str| -> u64 { timeline.iter().map(|second| second[key].as_u64().expect("a count")).sum() };
    assert_eq!((of_seconds("due"), of_seconds("answered")), (count(results, "due"), count(results, "answered")));
}

fn assert_fails(args: &[&str], code: i32, says: &[&str]) {
    assert_tells(&loadtest(args), code, says);
}

/// Ends with this exit code and one clear line.
fn assert_tells(output: &Output, code: i32, says: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert!(says.iter().all(|part| stderr.contains(part)), "{stderr:?} does not say {says:?}");
    assert!(stderr.starts_with("loadtest: ") && !stderr.contains("panicked"), "{stderr:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
}

#[test]
fn every_request_of_the_schedule_is_sent_on_time() {
    let server = Server::start(ok);
    let _alone = ALONE.write().unwrap_or_else(PoisonError::into_inner);
    for run in 0..3 {
        let results = results_of(&["--rate", "2000", "-c", "8", "-d", "2s", "--warmup", "200ms", &server.url("/")]);
        assert_eq!((count(&results, "due"), count(&results, "sent"), count(&results, "answered")), (4000, 4000, 4000));
        assert_adds_up(&results);
        let due: Vec<_> = results["timeline"].as_array().expect("a timeline").iter().map(|at| &at["due"]).collect();
        assert_eq!(due, [2000, 2000]);
        let on_schedule = results["generator"]["on_schedule"].as_f64().expect("a share");
        if on_schedule >= 0.99 {
            break;
        }
        // Other programs on this machine may take the core away; the generator must say that it was so, each time.
        let warnings = results["generator"]["warnings"].to_string();
        assert!(warnings.contains("could not keep its schedule"), "run {run}: {warnings}");
        assert!(warnings.contains("something else ran there"), "run {run}: {warnings}");
    }
    assert_eq!(server.seen.peers.lock().expect("not poisoned").len(), 1);
}

#[test]
fn a_stop_of_the_target_shows_in_the_corrected_latency_and_hides_in_a_closed_loop() {
    const STOP: Duration = Duration::from_millis(300);
    let _alone = ALONE.write().unwrap_or_else(PoisonError::into_inner);
    let stalling = || {
        let gate = Arc::new(RwLock::new(()));
        Server::start(move |request, stream| {
            if request.number == 1000 {
                let _shut = gate.write().expect("not poisoned");
                thread::sleep(STOP);
            }
            drop(gate.read().expect("not poisoned"));
            ok(request, stream)
        })
    };
    // A tenth of the requests is due while the target stands still: their latencies are all from 0 to 300 ms.
    let open = results_of(&["--rate", "1000", "-c", "16", "-d", "3s", &stalling().url("/")]);
    assert_adds_up(&open);
    assert_eq!(count(&open, "answered"), 3000);
    assert!(us(&open, "latency", "max") >= 295_000, "{}", open["latency"]["max"]);
    assert!(us(&open, "latency", "p99") >= 200_000, "{}", open["latency"]["p99"]);
    assert!(us(&open, "latency", "p95") >= 100_000, "{}", open["latency"]["p95"]);

    // In the same time, two connections in a loop see it twice.
    let closed = results_of(&["--closed", "-c", "2", "-d", "3s", &stalling().url("/")]);
    assert_adds_up(&closed);
    assert!(us(&closed, "service_time", "max") >= 295_000, "{}", closed["service_time"]["max"]);
    assert!(us(&closed, "service_time", "p99") < 100_000, "{}", closed["service_time"]["p99"]);
    assert_eq!(closed["load"]["rate"], Value::Null);
}

#[test]
fn errors_are_told_apart() {
    let server = Server::start(|request, stream| match request.number % 10 {
        1 => Then::Reset,
        2 => Then::Close,
        3 => {
            say(stream, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf");
            Then::Close
        }
        4 => say(stream, "220 mail.example ESMTP\r\n\r\n"),
        5 => say(stream, "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"),
        // No answer.
        6 => Then::Keep,
        _ => ok(request, stream),
    });
    let results = results(&["--rate", "200", "-c", "32", "-d", "2s", "--timeout", "500ms", &server.url("/")]);
    assert_adds_up(&results);
    assert_eq!(count(&results, "due"), 400);
    // A request that waits for a connection too long fails as well, so that these need not be exact.
    let about = |count: u64, expected: u64| count > 0 && count.abs_diff(expected) <= expected / 2;
    for (kind, expected) in [("reset", 40), ("closed", 80), ("malformed", 40), ("timeout", 40)] {
        assert!(about(error(&results, kind), expected), "{kind}: {}", results["errors"]);
    }
    assert!(about(count(&results, "unexpected"), 40), "{}", results["counts"]);
    let statuses: Vec<_> = results["classes"][0]["statuses"].as_array().expect("a list").iter().collect();
    assert_eq!(statuses.iter().map(|one| one["status"].as_u64()).collect::<Vec<_>>(), [Some(200), Some(503)]);
    // The time-out, the sweep that acts on it, and what the generator itself was late by.
    let late_us = results["generator"]["late_max_us"].as_u64().expect("a number");
    assert!(us(&results, "latency", "max") < 600_000 + late_us, "beyond the time-out: {}", results["latency"]["max"]);
}

#[test]
fn a_request_that_finds_no_connection_in_time_has_failed() {
    let server = Server::start(|_, _| Then::Keep);
    let results = results(&["--rate", "100", "-c", "1", "-d", "1s", "--timeout", "300ms", &server.url("/")]);
    assert_adds_up(&results);
    assert_eq!((count(&results, "due"), count(&results, "answered")), (100, 0));
    // The connection is made again after each time-out, and carries a request that has about half of its time left.
    assert!((1..20).contains(&error(&results, "timeout")), "{}", results["errors"]);
    assert!(error(&results, "no_connection") > 80, "{}", results["errors"]);
}

#[test]
fn more_than_the_target_can_do_is_still_due_to_the_last_request() {
    let server = Server::start(|request, stream| {
        thread::sleep(Duration::from_millis(2));
        ok(request, stream)
    });
    let results = results(&["--rate", "50000", "-c", "4", "-d", "1s", "--timeout", "200ms", &server.url("/")]);
    assert_adds_up(&results);
    assert_eq!(count(&results, "due"), 50_000);
    assert!(error(&results, "no_connection") > 40_000, "{}", results["errors"]);
    // What the target can do, it does: nothing is sent that has no time left, which would cost its connection.
    assert!(count(&results, "answered") > 100, "{}", results["counts"]);
    assert!(count(&results, "connections_opened") < 50, "{}", results["counts"]);
}

#[test]
fn a_target_that_goes_away_is_refused_from_then_on() {
    // The first look at the target, and four connections of ten requests each.
    let server = Server::start_for(5, |request, stream| match request.on_connection {
        10 => Then::Close,
        _ => ok(request, stream),
    });
    let results = results(&["--rate", "100", "-c", "4", "-d", "2s", "--timeout", "1s", &server.url("/")]);
    assert_adds_up(&results);
    assert_eq!((count(&results, "due"), count(&results, "answered")), (200, 36));
    assert_eq!(error(&results, "closed"), 4, "{}", results["errors"]);
    assert!(error(&results, "refused") > 100, "{}", results["errors"]);
    assert!(results["generator"]["warnings"].to_string().contains("attempts to connect failed"));
}

#[test]
fn a_target_that_ends_every_connection_is_not_flooded_with_them() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}/", listener.local_addr().expect("bound"));
    let taken = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&taken);
    thread::spawn(move || {
        for stream in listener.incoming() {
            counted.fetch_add(1, Ordering::Relaxed);
            drop(stream);
        }
    });
    let results = results(&["--rate", "10", "-c", "4", "-d", "1s", "--timeout", "1s", &url]);
    assert_adds_up(&results);
    assert_eq!((count(&results, "due"), count(&results, "answered")), (10, 0));
    // Each of the four waits for 50 ms, 100 ms, 200 ms, ... between two attempts.
    assert!(taken.load(Ordering::Relaxed) < 100, "{taken:?} connections");
}

#[test]
fn answers_in_all_framings_are_read_to_their_end() {
    let server = Server::start(|request, stream| match request.number % 5 {
        0 => {
            say(stream, "HTTP/1.1 200 OK\r\n\r\nuntil the end");
            Then::Close
        }
        1 => say(stream, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
        2 => say(stream, "HTTP/1.1 204 No Content\r\n\r\n"),
        3 => {
            let large = "x".repeat(200_000);
            say(stream, &format!("HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n{large}"))
        }
        _ => say(stream, "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
    });
    let results = results(&["--rate", "200", "-c", "4", "-d", "1s", &server.url("/")]);
    assert_adds_up(&results);
    assert_eq!((count(&results, "answered"), count(&results, "unexpected")), (200, 0));
    assert!(count(&results, "bytes_received") > 40 * 200_000, "{}", results["counts"]);
    assert!((40..60).contains(&count(&results, "connections_opened")), "{}", results["counts"]);
}

#[test]
fn connections_end_when_the_target_says_so_and_when_the_scenario_does() {
    let server = Server::start(|_, stream| {
        say(stream, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok");
        Then::Close
    });
    let closing = results(&["--rate", "200", "-c", "4", "-d", "1s", &server.url("/")]);
    assert_adds_up(&closing);
    assert_eq!(count(&closing, "answered"), 200);
    assert!((200..=204).contains(&count(&closing, "connections_opened")), "{}", closing["counts"]);

    for load in [["--rate", "200"].as_slice(), &["--closed"]] {
        let server = Server::start(|request, stream| {
            let asked = request.head.to_ascii_lowercase().contains("connection: close");
            ok(request, stream);
            if asked { Then::Close } else { Then::Keep }
        });
        let each = results(&[load, &["--no-keep-alive", "-c", "4", "-d", "1s", &server.url("/")]].concat());
        assert_adds_up(&each);
        assert!(count(&each, "answered") >= 200 && count(&each, "failed") == 0, "{}", each["counts"]);
        assert_eq!(count(&each, "connections_opened"), server.requests() as u64);
    }
}

#[test]
fn large_requests_are_sent_whole_and_head_has_no_body() {
    const BODY_BYTES: usize = 8_000_000;
    let dir = tempfile::tempdir().expect("a temporary directory");
    let body = dir.path().join("body");
    std::fs::write(&body, vec![b'x'; BODY_BYTES]).expect("room for a file");
    let server = Server::start(|request, stream| match request.body_bytes {
        BODY_BYTES => ok(request, stream),
        _ => Then::Reset,
    });
    let body = format!("@{}", body.display());
    let posted = results(&["--closed", "-c", "2", "-d", "1s", "--body", &body, &server.url("/upload")]);
    assert_adds_up(&posted);
    assert!(count(&posted, "answered") >= 2 && count(&posted, "failed") == 0, "{posted}");
    assert!(count(&posted, "bytes_sent") > BODY_BYTES as u64 * count(&posted, "answered"), "{}", posted["counts"]);

    let server = Server::start(|_, stream| say(stream, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"));
    let head = results(&["--rate", "100", "-c", "1", "-d", "1s", "-X", "HEAD", &server.url("/")]);
    assert_eq!((count(&head, "answered"), count(&head, "connections_opened")), (100, 1));
}

#[test]
fn clients_come_from_their_own_addresses() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("clients.yaml");
    for load in ["open: { rate: 200/s }", "closed"] {
        let server = Server::start(|request, stream| {
            // The path names the client, the address must be its own.
            let client: u8 =
                request.head.split(['/', ' ']).nth(2).and_then(|text| text.parse().ok()).expect("a client");
            let own = request.peer.to_string() == format!("127.1.0.{}", client + 1);
            if own { ok(request, stream) } else { Then::Reset }
        });
        let scenario = format!(
            "target: {}\nload:\n  {load}\nduration: 1s\nconnections: 4\nrequests:\n  - path: /{{client}}\n\
             clients:\n  count: 8\n  addresses: 127.1.0.0/28\n",
            server.url("")
        );
        let scenario = scenario.replace("load:\n  closed", "load: closed");
        std::fs::write(&file, scenario).expect("room for a file");
        let results = results(&[file.to_str().expect("plain characters")]);
        assert_adds_up(&results);
        assert!(count(&results, "answered") >= 200 && count(&results, "failed") == 0, "{load}: {}", results["errors"]);
        let peers = server.seen.peers.lock().expect("not poisoned").len();
        assert!(peers >= if load == "closed" { 2 } else { 8 }, "{load}: {peers} addresses");
    }
}

#[test]
fn threads_share_the_schedule_and_the_connections() {
    let server = Server::start(ok);
    let results = results(&["--rate", "500", "-c", "5", "-t", "3", "-d", "1s", "--poisson", &server.url("/")]);
    assert_adds_up(&results);
    assert!((350..650).contains(&count(&results, "due")), "{}", results["counts"]);
    assert_eq!((count(&results, "failed"), count(&results, "connections_opened")), (0, 5));
}

#[test]
fn ctrl_c_ends_the_run_and_tells_what_was_measured() {
    let server = Server::start(ok);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let json = dir.path().join("results.json");
    let child = Command::new(env!("CARGO_BIN_EXE_loadtest"))
        .args(["run", "--rate", "200", "-c", "4", "-d", "10m", &server.url("/"), "--json"])
        .arg(&json)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let deadline = Instant::now() + Duration::from_secs(30);
    while server.requests() < 100 {
        assert!(Instant::now() < deadline, "the run does not begin");
        thread::yield_now();
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("it is still running");
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success() && output.stderr.is_empty() && !output.stdout.is_empty(), "{output:?}");
    let results = read(&json);
    assert_adds_up(&results);
    assert!(count(&results, "answered") >= 90, "{}", results["counts"]);
    assert!(results["seconds"].as_f64().expect("a number") < 60.0, "{}", results["seconds"]);
    assert!(results["generator"]["warnings"].to_string().contains("ended early"), "{}", results["generator"]);
}

#[test]
fn what_cannot_run_is_told_in_one_line() {
    // Bound, so that nobody else takes it, and not listening.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    let any: std::net::SocketAddr = "127.0.0.1:0".parse().expect("an address");
    socket.bind(&any.into()).expect("a free port");
    let port = socket.local_addr().expect("bound").as_socket().expect("IPv4").port();
    let nobody = format!("http://127.0.0.1:{port}/");
    assert_fails(&["--rate", "10", "-d", "1s", &nobody], 1, &[&format!("127.0.0.1:{port}"), "refused"]);

    let name = "http://nobody.invalid/";
    assert_fails(&["--rate", "10", name], 1, &["nobody.invalid"]);
    assert_fails(&["--rate", "10", "https://127.0.0.1/"], 2, &["does not speak TLS"]);
    assert_fails(&["--rate", "10", "ftp://127.0.0.1/"], 2, &["ftp"]);
    assert_fails(&["--rate", "fast", &nobody], 2, &["fast"]);
    assert_fails(&[&nobody], 2, &["--rate"]);
    assert_fails(&["missing.yaml"], 2, &["missing.yaml"]);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}/", listener.local_addr().expect("bound"));
    assert_fails(&["--rate", "10", "-d", "1s", "--json", "/missing/x.json", &url], 2, &["/missing/x.json"]);
    assert_fails(&["--rate", "10", "-d", "1s", "--cores", "4000", &url], 1, &["core 4000"]);
}

#[test]
fn too_few_descriptors_are_told_before_the_run() {
    let server = Server::start(ok);
    let script = "ulimit -n 100; exec \"$0\" run --rate 10 -c 500 \"$1\"";
    let output = Command::new("sh").args(["-c", script, env!("CARGO_BIN_EXE_loadtest"), &server.url("/")]).output();
    assert_tells(&output.expect("a shell"), 1, &["500 connections need", "the limit is 100", "ulimit -n"]);
    assert_eq!(server.requests(), 0);
}
