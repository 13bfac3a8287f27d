//! The access log: what a line says, where it goes, and that none is lost.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::thread;
use std::time::Duration;

use ringway_tests::{Backend, Gateway, Load, PATIENCE, eventually, settles_at};
use rustix::process::Signal;
use serde_json::Value;

const FIELDS: [&str; 12] = [
    "timestamp",
    "requestId",
    "method",
    "path",
    "statusCode",
    "latencyMs",
    "clientIp",
    "userAgent",
    "userId",
    "rateLimitRemaining",
    "backendService",
    "backendLatencyMs",
];

/// The keys of one line in the order in which they stand there.
fn keys(line: &str) -> Vec<&str> {
    // No value of these tests has a quote within.
    let strings: Vec<&str> = line.split('"').collect();
    let keys = strings.windows(2).enumerate().filter(|(index, pair)| index % 2 == 1 && pair[1].starts_with(':'));
    keys.map(|(_, pair)| pair[0]).collect()
}

fn raw_lines(path: &Path) -> Vec<String> {
    fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

fn count(path: &Path) -> usize {
    fs::read(path).map_or(0, |bytes| bytes.iter().filter(|byte| **byte == b'\n').count())
}

#[test]
fn a_line_has_the_twelve_fields_in_order() {
    let backend = Backend::ok();
    let gateway = Gateway::to(backend.endpoint());
    let mut client = gateway.connect();
    client.ask("GET /api/products/123?token=secret HTTP/1.1\r\nHost: test\r\nUser-Agent: MobileApp/2.1\r\n\r\n");
    client.ask("GET /bad^path HTTP/1.1\r\nHost: test\r\n\r\n");
    let mut broken = gateway.connect();
    broken.send("NOT HTTP\r\n\r\n").read_response();
    settles_at(3, || gateway.log_lines().len());
    for line in raw_lines(&gateway.directory().join("access.log")) {
        assert_eq!(keys(&line), FIELDS, "{line}");
        assert!(line.starts_with("{\"timestamp\":\"20") && line.ends_with('}'), "{line}");
    }
    assert!(!fs::read_to_string(gateway.directory().join("access.log")).unwrap().contains("secret"));
}

#[test]
fn values_say_what_happened() {
    let pause = Duration::from_millis(120);
    let backend = Backend::start(move |conn| {
        while conn.next_request().is_some() {
            thread::sleep(pause);
            conn.send("HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\n");
            thread::sleep(pause);
            conn.send("ok");
        }
    });
    let gateway = Gateway::to(backend.endpoint());
    let mut client = gateway.connect();
    let answer = client.ask("POST /orders HTTP/1.1\r\nHost: test\r\nUser-Agent: a/1\r\nContent-Length: 1\r\n\r\nx");
    let line = gateway.log_line(1);
    assert_eq!(line["requestId"].as_str(), answer.get("x-request-id"));
    for (field, value) in [
        ("method", "POST".into()),
        ("path", "/orders".into()),
        ("statusCode", 201.into()),
        ("clientIp", "127.0.0.1".into()),
        ("userAgent", "a/1".into()),
        ("userId", Value::Null),
        ("rateLimitRemaining", Value::Null),
        ("backendService", "app".into()),
    ] {
        assert_eq!(line[field], value, "{field}");
    }
    let timestamp = line["timestamp"].as_str().unwrap();
    assert!(timestamp.len() == "2026-03-23T10:15:30.123Z".len() && timestamp.ends_with('Z'), "{timestamp}");
    // The service took one pause to its head, the whole request two.
    let (backend_ms, whole_ms) = (line["backendLatencyMs"].as_f64().unwrap(), line["latencyMs"].as_f64().unwrap());
    assert!((119.0..2_000.0).contains(&backend_ms), "{backend_ms}");
    assert!(whole_ms >= backend_ms + 119.0 && whole_ms < 4_000.0, "{whole_ms} {backend_ms}");
}

#[test]
fn where_no_service_was_asked_its_fields_are_null() {
    let gateway = Gateway::start(
        "services: [{ name: app, endpoints: [\"127.0.0.1:1\"] }]\n\
         routes: [{ match: { path: /fixed }, respond: { text: hi } }, { match: { path: /down }, service: app }]\n",
    );
    for (target, status) in [("/fixed", 200), ("/none", 404), ("/down", 502)] {
        assert_eq!(gateway.get(target).status(), status);
    }
    settles_at(3, || gateway.log_lines().len());
    let lines = gateway.log_lines();
    for (line, status, service) in
        [(&lines[0], 200, Value::Null), (&lines[1], 404, Value::Null), (&lines[2], 502, "app".into())]
    {
        assert_eq!((&line["statusCode"], &line["backendService"]), (&status.into(), &service));
        assert_eq!((&line["backendLatencyMs"], &line["userAgent"]), (&Value::Null, &Value::Null));
        assert!(line["latencyMs"].as_f64().is_some_and(|ms| (0.0..1000.0).contains(&ms)), "{line}");
    }
}

#[test]
fn a_trusted_proxy_says_whose_address_it_is() {
    let gateway = Gateway::start(
        "listeners: [{ name: public, address: LISTEN, trusted_proxies: [127.0.0.0/8] }]\n\
         routes: [{ respond: { text: hi } }]\n",
    );
    let mut client = gateway.connect();
    client.ask("GET / HTTP/1.1\r\nHost: test\r\nX-Forwarded-For: 203.0.113.42\r\nX-Request-ID: abc-123\r\n\r\n");
    let line = gateway.log_line(1);
    assert_eq!((line["clientIp"].as_str(), line["requestId"].as_str()), (Some("203.0.113.42"), Some("abc-123")));
}

#[test]
fn what_clients_send_cannot_break_a_line() {
    let gateway = Gateway::start("routes: [{ respond: { text: hi } }]\n");
    let mut client = gateway.connect();
    let agent = "\"}\\\t{\u{e9}\u{7f}<script>";
    client.ask(format!("GET /a%22%0ab\"c HTTP/1.1\r\nHost: test\r\nUser-Agent: {agent}\r\n\r\n"));
    let mut other = gateway.connect();
    let long = "y".repeat(20_000);
    other.ask(format!("GET /{long} HTTP/1.1\r\nHost: test\r\nUser-Agent: {}\r\n\r\n", &long[..9_000]));
    settles_at(2, || gateway.log_lines().len());
    let lines = raw_lines(&gateway.directory().join("access.log"));
    assert_eq!(lines.len(), 2);
    assert!(lines.iter().all(|line| line.len() < 8 * 1024), "lines are bounded");
    let cut: Value = serde_json::from_str(&lines[1]).unwrap();
    assert!(cut["path"].as_str().unwrap().starts_with("/yyyy") && cut["userAgent"].as_str().unwrap().len() > 1000);
}

#[test]
fn it_can_be_off_for_all_or_for_a_route() {
    let off = Gateway::start("access_log: off\nroutes: [{ respond: { text: hi } }]\n");
    off.get("/");
    off.get("/");
    let gateway = Gateway::start(
        "routes: [{ match: { path: /quiet }, respond: { text: hi }, log: false }, { respond: { text: hi } }]\n",
    );
    for target in ["/quiet", "/a", "/quiet", "/b", "/quiet"] {
        gateway.get(target);
    }
    settles_at(2, || gateway.log_lines().len());
    let paths: Vec<_> = gateway.log_lines().iter().map(|line| line["path"].as_str().unwrap().to_owned()).collect();
    assert_eq!(paths, ["/a", "/b"]);
    assert!(!off.directory().join("access.log").exists());
}

#[test]
fn no_line_is_lost_in_a_rotation() {
    let backend = Backend::ok();
    let mut gateway =
        Gateway::start(&format!("runtime: {{ workers: 2, pin: false }}\n{}", Gateway::route_to(backend.endpoint())));
    let log = gateway.directory().join("access.log");
    let load = Load::start(gateway.address(), 4, &["/"]);
    let mut old = Vec::new();
    for round in 0..10 {
        eventually(PATIENCE, || count(&log) > 0);
        let name = gateway.directory().join(format!("access.log.{round}"));
        fs::rename(&log, &name).unwrap();
        old.push(name);
        gateway.signal(Signal::USR1);
        eventually(PATIENCE, || log.exists());
    }
    let answered = load.finish();
    gateway.terminate();
    assert!(gateway.wait_exit(PATIENCE).success());
    let counts: Vec<usize> = old.iter().chain([&log]).map(|path| count(path)).collect();
    assert_eq!(counts.iter().sum::<usize>() as u64, answered, "{counts:?}");
    assert!(counts[..10].iter().all(|lines| *lines > 0), "{counts:?}");
    let lines = old.iter().chain([&log]).flat_map(|path| raw_lines(path));
    assert!(lines.into_iter().all(|line| serde_json::from_str::<Value>(&line).is_ok()), "no line is torn");
}

#[test]
fn a_full_disk_costs_lines_and_nothing_else() {
    let backend = Backend::ok();
    let yaml = format!("access_log: {{ file: /dev/full }}\n{}", Gateway::route_to(backend.endpoint()));
    let gateway = Gateway::start(&yaml);
    let mut client = gateway.connect();
    for _ in 0..100 {
        assert_eq!(client.get("/").status(), 200);
    }
    settles_at(100.0, || gateway.metric("gateway_access_log_dropped_lines_total"));
    let warnings = gateway.stderr().lines().filter(|line| line.contains("No space left on device")).count();
    assert_eq!(warnings, 1, "{}", gateway.stderr());
    // It goes on where there is room.
    assert!(gateway.replace_config(&Gateway::route_to(backend.endpoint())));
    client.get("/");
    gateway.log_line(1);
}

#[test]
fn a_reader_of_stdout_that_is_stuck_costs_lines_and_nothing_else() {
    // Nobody reads the pipe: it takes 64 KiB, then the writer waits.
    let backend = Backend::ok();
    let yaml = format!("access_log: stdout\n{}", Gateway::route_to(backend.endpoint()));
    let mut gateway = Gateway::start_with(&yaml, |command| {
        let (reader, writer) = std::io::pipe().unwrap();
        // Kept open, by this process and its child, and never read.
        std::mem::forget(reader);
        command.stdout(writer);
    });
    let load = Load::start(gateway.address(), 4, &["/"]);
    eventually(PATIENCE, || load.answered() > 2_000);
    load.finish();
    gateway.terminate();
    assert!(gateway.wait_exit(PATIENCE).success());
    assert!(gateway.stderr().contains("nobody takes the last lines"), "{}", gateway.stderr());
}

#[test]
fn lines_go_to_stdout_and_the_last_one_too() {
    let backend = Backend::ok();
    let yaml = format!("access_log: stdout\n{}", Gateway::route_to(backend.endpoint()));
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out");
    let mut gateway = Gateway::start_with(&yaml, |command| {
        command.stdout(fs::File::create(&out).unwrap());
    });
    let mut client = gateway.connect();
    for round in 0..250 {
        assert_eq!(client.get(&format!("/{round}")).status(), 200);
    }
    gateway.terminate();
    assert!(gateway.wait_exit(PATIENCE).success());
    let lines = raw_lines(&out);
    let paths: Vec<_> = lines
        .iter()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["path"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(paths, (0..250).map(|round| format!("/{round}")).collect::<Vec<_>>());
}

#[test]
fn the_reader_of_stdout_may_go_away() {
    let backend = Backend::ok();
    let yaml = format!("access_log: stdout\n{}", Gateway::route_to(backend.endpoint()));
    let gateway = Gateway::start_with(&yaml, |command| {
        let (mut reader, writer) = std::io::pipe().unwrap();
        thread::spawn(move || reader.read_exact(&mut [0; 1]));
        command.stdout(writer);
    });
    let mut client = gateway.connect();
    for _ in 0..20 {
        assert_eq!(client.get("/").status(), 200);
        thread::sleep(Duration::from_millis(10));
    }
    eventually(PATIENCE, || gateway.metric("gateway_access_log_dropped_lines_total") > 0.0);
}

#[test]
fn the_file_is_not_for_everyone() {
    use std::os::unix::fs::PermissionsExt;
    let gateway = Gateway::start("routes: [{ respond: { text: hi } }]\n");
    let mode = fs::metadata(gateway.directory().join("access.log")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777 & !0o640, 0, "{mode:o}");
}
