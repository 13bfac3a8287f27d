//! `loadtest origin` as people run it: the real binary, asked over real connections.

#[path = "origin/client.rs"]
mod client;
#[path = "origin/process.rs"]
mod process;

use std::collections::BTreeMap;
use std::io::{ErrorKind, Write};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use client::{Client, ask};
use process::{Origin, fails};
use ringway_tests::confine::{forbid_io_uring, limit_descriptors};
use ringway_tests::{PATIENCE, eventually};
use rustix::process::Signal;

#[test]
fn bodies_have_the_size_that_was_asked_for() {
    for (size, bytes) in [("0B", 0), ("1B", 1), ("100B", 100), ("16KiB", 16_384), ("8MiB", 8 << 20)] {
        for more in [&[][..], &["--chunked"]] {
            let origin = Origin::start(&[&["--body", size], more].concat());
            let mut client = Client::connect(origin.address);
            for _ in 0..3 {
                let answer = client.get("/");
                assert_eq!((answer.status, answer.body.len()), (200, bytes), "{size} {more:?}");
                assert_eq!(answer.header("transfer-encoding").is_some(), !more.is_empty());
            }
        }
    }
}

#[test]
fn answers_look_as_they_were_asked_to() {
    let origin = Origin::start(&[
        "--status=201",
        "--content-type=text/plain",
        "--body=3B",
        "--header=X-A: b",
        "--header",
        "cache-control:no-store",
    ]);
    let answer = ask(origin.address, "GET /");
    assert_eq!((answer.status, answer.body.as_slice()), (201, &b"xxx"[..]));
    for (name, value) in [("content-type", "text/plain"), ("x-a", "b"), ("cache-control", "no-store")] {
        assert_eq!(answer.header(name), Some(value));
    }
    let json = Origin::start(&["--body=1KiB"]);
    let body = ask(json.address, "GET /").body;
    assert!(serde_json::from_slice::<serde_json::Value>(&body).is_ok_and(|value| value["data"].is_string()));
}

#[test]
fn a_request_may_ask_for_its_own_answer() {
    // Nothing of this reaches a request that asks for its own status and delay.
    let origin = Origin::start(&["--fail=100%", "--latency=5m"]);
    let mut client = Client::connect(origin.address);
    let asked = Instant::now();
    let answer = client.get("/a/b?x=1&size=100&delay=30ms&status=504");
    assert_eq!((answer.status, answer.body.len()), (504, 100));
    assert!((Duration::from_millis(30)..Duration::from_secs(60)).contains(&asked.elapsed()));
    assert_eq!(client.get("/?status=200&delay=0s").body.len(), 16_384);
    assert_eq!(client.get("/?delay=0s").status, 503);
    assert_eq!(client.get("/?size=2KiB&status=204&delay=0s").body.len(), 0);
    assert_eq!(client.get("/?size=2KiB&status=200&delay=0s").body.len(), 2048);
    let answer = client.get("/?size=100MiB");
    assert_eq!((answer.status, answer.text()), (400, "size: a body has 64MiB at most\n"));
    client.assert_closed();
}

#[test]
fn head_requests_have_the_head_only() {
    let origin = Origin::start(&["--body=100B"]);
    let mut client = Client::connect(origin.address);
    client.send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
    let answer = client.read_answer(true);
    assert_eq!((answer.header("content-length"), answer.body.len()), (Some("100"), 0));
    assert_eq!(client.get("/").body.len(), 100);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let origin = Origin::start(&["--body=100B"]);
    let mut client = Client::connect(origin.address);
    let sizes: Vec<usize> = (0..300).map(|n| [n, 5000 + n, 200_000][n % 3]).collect();
    let requests: String = sizes.iter().map(|size| format!("GET /?size={size} HTTP/1.1\r\nHost: a\r\n\r\n")).collect();
    client.send(&requests);
    for size in sizes {
        assert_eq!(client.read_answer(false).body.len(), size);
    }
    assert_eq!(origin.end().requests(), 300);
}

#[test]
fn heads_may_arrive_in_any_pieces() {
    let origin = Origin::start(&["--body=100B"]);
    let mut client = Client::connect(origin.address);
    for byte in b"\r\nPOST /?size=7 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc" {
        client.send_bytes(&[*byte]);
    }
    assert_eq!(client.read_answer(false).body.len(), 7);
}

#[test]
fn bodies_of_requests_are_read_and_dropped() {
    let origin = Origin::start(&["--body=10B"]);
    let mut client = Client::connect(origin.address);
    let body = "x".repeat(1 << 20);
    client.send(&format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
    assert_eq!(client.read_answer(false).status, 200);
    let chunk = "x".repeat(100_000);
    let chunks = format!("186a0\r\n{chunk}\r\n").repeat(5);
    client.send(&format!(
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}0\r\nA: b\r\n\r\n\
         GET /?size=3 HTTP/1.1\r\nHost: a\r\n\r\n"
    ));
    assert_eq!(client.read_answer(false).body.len(), 10);
    assert_eq!(client.read_answer(false).body.len(), 3);
}

#[test]
fn who_asks_whether_to_go_on_is_told() {
    let origin = Origin::start(&["--body=10B"]);
    let mut client = Client::connect(origin.address);
    client.send("PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n");
    assert_eq!(client.read_head().status, 100);
    client.send("abc");
    assert_eq!(client.read_answer(false).status, 200);
    // Who does not wait for it is not told.
    client.send("PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc");
    assert_eq!(client.read_answer(false).status, 200);
}

#[test]
fn connections_live_as_long_as_the_client_says() {
    let origin = Origin::start(&["--body=10B", "--chunked"]);
    for (head, lives, connection) in [
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", true, None),
        ("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", false, Some("close")),
        ("GET / HTTP/1.0\r\n\r\n", false, Some("close")),
        ("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", true, Some("keep-alive")),
    ] {
        let mut client = Client::connect(origin.address);
        client.send(head);
        let answer = client.read_answer(false);
        assert_eq!((answer.body.len(), answer.header("connection")), (10, connection), "{head}");
        assert_eq!(answer.header("transfer-encoding").is_some(), head.contains("1.1"));
        if lives {
            assert_eq!(client.get("/").status, 200);
        } else {
            client.assert_closed();
        }
    }
}

#[test]
fn malformed_requests_are_refused() {
    let origin = Origin::start(&["--body=10B"]);
    for (request, status) in [
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), 400),
        ("GET / HTTP/1.1\nHost: a\n\n".to_owned(), 400),
        ("\u{16}\u{3}\u{1}".to_owned(), 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n".to_owned(), 400),
        (format!("GET / HTTP/1.1\r\nHost: a\r\nA: {}", "b".repeat(70_000)), 431),
    ] {
        let mut client = Client::connect(origin.address);
        client.send(&request);
        assert_eq!(client.read_answer(false).status, status);
        client.assert_closed();
    }
    let ended = origin.end();
    assert!(ended.summary.contains(", 5 refused as malformed"), "{}", ended.summary);
}

#[test]
fn failures() {
    let origin = Origin::start(&["--fail=100%", "--fail-status=500"]);
    let mut client = Client::connect(origin.address);
    for _ in 0..3 {
        let answer = client.get("/");
        assert_eq!((answer.status, answer.body.len()), (500, 64));
    }
    assert!(origin.end().summary.contains(", 3 failed"));
}

#[test]
fn stalls_stop_half_way_and_end_when_the_client_leaves() {
    let origin = Origin::start(&["--stall=100%", "--body=10kB"]);
    let mut client = Client::connect(origin.address);
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.read_head().header("content-length"), Some("10000"));
    client.read_exact(5_000);
    client.set_patience(Duration::from_millis(300));
    let error = client.read_some().unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
    assert_eq!(origin.connections(), 1);
    drop(client);
    eventually(PATIENCE, || origin.connections() == 0);
    assert!(origin.end().summary.contains(", 1 stalled"));
}

#[test]
fn resets() {
    let origin = Origin::start(&["--reset=100%"]);
    for _ in 0..3 {
        let mut client = Client::connect(origin.address);
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(client.read_some().unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
    assert!(origin.end().summary.contains(", 3 reset"));
}

#[test]
fn closes() {
    let origin = Origin::start(&["--close=100%"]);
    let mut client = Client::connect(origin.address);
    client.send(&"GET / HTTP/1.1\r\nHost: a\r\n\r\n".repeat(3));
    let answer = client.read_answer(false);
    assert_eq!((answer.header("connection"), answer.body.len()), (Some("close"), 16_384));
    client.assert_closed();
}

#[test]
fn chance_repeats_itself_with_a_seed() {
    let statuses = |seed: &str| {
        let origin = Origin::start(&["--fail=20%", "--body=1B", "--seed", seed]);
        let mut client = Client::connect(origin.address);
        (0..2_000).map(|_| client.get("/").status).collect::<Vec<_>>()
    };
    let first = statuses("7");
    let failed = first.iter().filter(|status| **status == 503).count();
    assert!((320..480).contains(&failed), "{failed} of 2000 failed");
    assert_eq!(first, statuses("7"));
    assert_ne!(first, statuses("8"));
}

#[test]
fn latencies_are_distributed_as_they_should_be() {
    for (latency, p10, p50, p90) in [("exp:20ms", 2.1, 13.9, 46.1), ("lognormal:20ms,0.5", 10.5, 20.0, 38.0)] {
        let origin = Origin::start(&["--body=100B", "--seed=5", "--latency", latency]);
        let address = origin.address;
        let measure = || -> Vec<f64> {
            let threads: Vec<_> = (0..40)
                .map(|_| {
                    std::thread::spawn(move || {
                        let mut client = Client::connect(address);
                        (0..50).map(|_| client.time("/")).collect::<Vec<f64>>()
                    })
                })
                .collect();
            threads.into_iter().flat_map(|thread| thread.join().expect("a client")).collect()
        };
        // Whatever else the machine does makes latencies longer only, so that they are measured again.
        eventually(PATIENCE, || {
            let mut ms = measure();
            ms.sort_by(f64::total_cmp);
            [(200, p10), (1000, p50), (1800, p90)].into_iter().all(|(index, expected)| {
                assert!(ms[index] > expected * 0.85, "{latency}: {index}: {} ms", ms[index]);
                ms[index] < expected * 1.15 + 5.0
            })
        });
    }
}

#[test]
fn a_fixed_latency_is_exact_to_a_part_of_a_millisecond() {
    let origin = Origin::start(&["--body=100B", "--latency=5ms"]);
    let mut client = Client::connect(origin.address);
    // Not the median, and again where it is not so: the machine may be busy with other things.
    eventually(PATIENCE, || {
        let mut ms: Vec<f64> = (0..100).map(|_| client.time("/")).collect();
        ms.sort_by(f64::total_cmp);
        assert!(ms[0] >= 5.0, "{} ms", ms[0]);
        ms[10] < 5.5
    });
}

#[test]
fn latencies_from_a_file() {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(b"# two values\n1ms\n120000\n").expect("written");
    let origin = Origin::start(&["--body=1B", &format!("--latency=file:{}", file.path().display())]);
    let mut client = Client::connect(origin.address);
    let mut counts = BTreeMap::new();
    for _ in 0..30 {
        *counts.entry(client.time("/") >= 120.0).or_insert(0) += 1;
    }
    assert!(counts.len() == 2 && counts.values().all(|count| *count > 4), "{counts:?}");
}

#[test]
fn a_slow_start_begins_slow_and_ends() {
    let origin = Origin::start(&["--body=1B", "--latency=5ms", "--slow-start=1h"]);
    let mut client = Client::connect(origin.address);
    let first = client.time("/");
    assert!(first > 49.0, "{first} ms");
    let origin = Origin::start(&["--body=1B", "--latency=5ms", "--slow-start=200ms"]);
    let mut client = Client::connect(origin.address);
    eventually(PATIENCE, || client.time("/") < 8.0);
}

#[test]
fn faults_begin_and_end_with_a_signal() {
    let origin = Origin::start(&["--fail=100%", "--latency=20ms", "--close=100%", "--on-signal"]);
    let mut client = Client::connect(origin.address);
    assert!((0..5).all(|_| client.get("/").status == 200));
    origin.signal(Signal::USR1);
    eventually(PATIENCE, || ask(origin.address, "GET /").status == 503);
    origin.signal(Signal::USR1);
    eventually(PATIENCE, || ask(origin.address, "GET /").status == 200);
    // Without the flag they are always there, and the signal does nothing.
    let origin = Origin::start(&["--fail=100%"]);
    origin.signal(Signal::USR1);
    assert!((0..20).all(|_| ask(origin.address, "GET /").status == 503));
    assert_eq!(origin.end().code, Some(0));
}

#[test]
fn a_connection_may_end_without_a_word() {
    let origin = Origin::start(&["--hang-up=100%", "--body=100B"]);
    for _ in 0..3 {
        let mut client = Client::connect(origin.address);
        let answer = client.get("/");
        assert_eq!((answer.status, answer.body.len(), answer.header("connection")), (200, 100, None));
        client.assert_closed();
    }
}

#[test]
fn with_grace_it_answers_what_is_under_way_and_lets_the_idle_go() {
    let origin = Origin::start(&["--grace=20s", "--threads=2", "--body=100B"]);
    let mut idle: Vec<Client> = (0..8).map(|_| Client::connect(origin.address)).collect();
    assert!(idle.iter_mut().all(|client| client.get("/").status == 200));
    let mut busy: Vec<Client> = (0..8).map(|_| Client::connect(origin.address)).collect();
    busy.iter_mut().for_each(|client| client.send("GET /?delay=2s HTTP/1.1\r\nHost: a\r\n\r\n"));
    eventually(PATIENCE, || origin.connections() == 16);
    origin.signal(Signal::TERM);
    idle.iter_mut().for_each(Client::assert_closed);
    eventually(PATIENCE, || std::net::TcpStream::connect(origin.address).is_err());
    for client in &mut busy {
        let answer = client.read_answer(false);
        assert_eq!((answer.status, answer.body.len(), answer.header("connection")), (200, 100, Some("close")));
        client.assert_closed();
    }
    let begun = Instant::now();
    assert_eq!(origin.ended().code, Some(0));
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
}

#[test]
fn several_threads_share_a_free_port() {
    let origin = Origin::start(&["--threads=3", "--body=1B"]);
    assert!(origin.line.ends_with("3 threads)"), "{}", origin.line);
    let mut clients: Vec<_> = (0..60).map(|_| Client::connect(origin.address)).collect();
    for client in &mut clients {
        assert_eq!(client.get("/").status, 200);
    }
    let ended = origin.end();
    assert_eq!(ended.code, Some(0));
    assert!(ended.summary.starts_with("60 requests, 60 connections, "), "{}", ended.summary);
    assert!(ended.summary.contains(" us CPU/request"), "{}", ended.summary);
}

#[test]
fn the_port_is_free_as_soon_as_it_has_ended() {
    for _ in 0..5 {
        let origin = Origin::start(&["--close=100%", "--body=1B"]);
        let address = origin.address;
        let _held = Client::connect(address);
        assert_eq!(ask(address, "GET /").status, 200);
        assert_eq!(origin.end().code, Some(0));
        let again = TcpListener::bind(address);
        assert!(again.is_ok(), "{again:?}");
    }
}

#[test]
fn without_io_uring_it_serves_over_epoll() {
    let origin = Origin::start_with(&["--body=100B", "--latency=2ms"], forbid_io_uring);
    assert!(origin.line.contains("epoll, since io_uring is not available"), "{}", origin.line);
    let mut client = Client::connect(origin.address);
    for _ in 0..10 {
        assert_eq!(client.get("/").body.len(), 100);
    }
}

#[test]
fn without_descriptors_connections_wait_for_others_to_leave() {
    let origin = Origin::start_with(&["--body=100B"], |command| limit_descriptors(command, 32));
    let mut clients: Vec<_> = (0..40).map(|_| Client::connect(origin.address)).collect();
    assert_eq!(clients[0].get("/").status, 200);
    let mut last = clients.pop().expect("a client");
    last.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    drop(clients);
    assert_eq!(last.read_answer(false).status, 200);
}

#[test]
fn a_port_in_use_is_said() {
    let taken = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let ended = fails(&["--listen", &address]);
    assert_eq!(ended.code, Some(1));
    assert_eq!(ended.stderr, format!("loadtest: cannot listen on {address}: Address already in use (os error 98)\n"));
}

#[test]
fn what_is_wrong_on_the_command_line_is_said() {
    for (args, message) in [
        (&["--latency=5"][..], "`5` has no unit: `5ms`, `5s`"),
        (&["--latency=exp:fast"], "`fast` is not a duration like"),
        (&["--latency=file:/no/such/file"], "/no/such/file: No such file or directory"),
        (&["--latency=pareto:5ms"], "`pareto` is not one of exp, lognormal, file"),
        (&["--slow-start=10s"], "--latency <LATENCY>"),
        (&["--body=16K"], "`16K` is not a size like"),
        (&["--body=1GiB"], "a body has 64MiB at most"),
        (&["--fail=101%"], "`101%` is more than 100%"),
        (&["--reset=0.5"], "`0.5` is not a share in per cent: `0.5%`"),
        (&["--fail=50%", "--stall=51%"], "--fail, --stall and --reset together are more than 100% of the requests"),
        (&["--status=99"], "`99` is not a status from 200 to 599"),
        (&["--header=X"], "`X` is not `name: value`"),
        (&["--cores=9999"], "--cores: core 9999 is not among those that this process may use"),
        (&["--threads=0"], "`0` is not a number from 1 to 256"),
    ] {
        let ended = fails(args);
        assert_eq!(ended.code, Some(2), "{args:?}");
        let first = ended.stderr.split("\n\n").next().unwrap_or_default();
        assert!(first.contains(message), "{args:?}: {}", ended.stderr);
    }
}
