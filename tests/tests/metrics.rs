//! `/metrics` of a gateway that has seen good and bad times, read by the tools that people read it with.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use ringway_tests::{Backend, Client, Gateway, settles_at};

/// A gateway that has answered, failed, refused and reloaded, under names that need care.
fn experienced() -> (Gateway, Backend, Backend) {
    let good = Backend::ok();
    let bad = Backend::fixed("garbage\r\n\r\n");
    let yaml = format!(
        "runtime: {{ workers: 2, pin: false }}\n\
         services:\n\
         \x20 - {{ name: app, endpoints: \"{}\" }}\n\
         \x20 - {{ name: bad, endpoints: \"{}\" }}\n\
         \x20 - {{ name: down, endpoints: \"127.0.0.1:1\" }}\n\
         routes:\n\
         \x20 - {{ name: 'the {{good}} one = 1, #2', match: {{ path: /good }}, service: app }}\n\
         \x20 - {{ name: bad, match: {{ path: /bad }}, service: bad }}\n\
         \x20 - {{ name: down, match: {{ path: /down, methods: GET }}, service: down }}\n",
        good.endpoint(),
        bad.endpoint()
    );
    let gateway = Gateway::start(&yaml);
    for (target, status) in [("/good", 200), ("/bad", 502), ("/down", 502), ("/nothing", 404)] {
        assert_eq!(gateway.get(target).status(), status, "{target}");
    }
    assert_eq!(gateway.connect().send("GET / HTTP/1.1\r\n\r\n").read_response().status(), 400, "without a Host");
    gateway.connect().send("GET / HTTP/1.1\r\nHost: x\r\n\r\n").reset_on_close();
    assert!(!gateway.replace_config("colour: red\n"));
    assert!(gateway.replace_config(&yaml));
    assert_eq!(gateway.get("/good").status(), 200);
    (gateway, good, bad)
}

fn families(page: &str) -> BTreeSet<&str> {
    page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect()
}

#[test]
fn promtool_finds_nothing_to_say() {
    let (gateway, ..) = experienced();
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is needed: apt-get install prometheus");
    let page = gateway.admin("/metrics").1;
    promtool.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success() && said.is_empty(), "{}", String::from_utf8_lossy(&said));
}

#[test]
fn errors_are_counted_where_they_happened() {
    let (gateway, ..) = experienced();
    for (sample, count) in [
        (r#"gateway_requests_total{route="the {good} one = 1, #2",status="200"}"#, 2.0),
        (r#"gateway_requests_total{route="bad",status="502"}"#, 1.0),
        (r#"gateway_requests_total{route="down",status="502"}"#, 1.0),
        (r#"gateway_requests_total{route="unmatched",status="400"}"#, 1.0),
        (r#"gateway_backend_errors_total{service="bad",kind="bad_answer"}"#, 1.0),
        (r#"gateway_backend_errors_total{service="down",kind="connect"}"#, 1.0),
        (r#"gateway_backend_errors_total{service="app",kind="connect"}"#, 0.0),
        (r#"gateway_backend_duration_seconds_count{service="app"}"#, 2.0),
        ("gateway_worker_panics_total", 0.0),
        ("gateway_active_connections", 0.0),
    ] {
        settles_at((sample, count), || (sample, gateway.metric(sample)));
    }
    assert!(gateway.metric("gateway_received_bytes_total") > 100.0);
    assert!(gateway.metric("gateway_sent_bytes_total") > 100.0);
}

#[test]
fn open_metrics_for_who_asks_for_it() {
    let (gateway, ..) = experienced();
    let mut client = Client::connect(gateway.admin_address());
    let accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5";
    let answer = client.ask(format!("GET /metrics HTTP/1.1\r\nHost: admin\r\nAccept: {accept}\r\n\r\n"));
    assert_eq!(answer.get("content-type"), Some("application/openmetrics-text; version=1.0.0; charset=utf-8"));
    let page = answer.text();
    assert!(page.ends_with("\n# EOF\n") && page.matches("# EOF").count() == 1);
    assert!(page.contains("# TYPE gateway_requests counter\n") && page.contains("\ngateway_requests_total{"));
    assert!(page.contains("# UNIT gateway_request_duration_seconds seconds\n"));

    let plain = client.get("/metrics");
    assert_eq!(plain.get("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let plain = plain.text();
    assert!(!plain.contains("# EOF") && plain.contains("# TYPE gateway_requests_total counter\n"));
    assert_eq!(families(&plain).len(), families(&page).len());
}

#[test]
fn the_manual_lists_what_is_exported_and_nothing_else() {
    let (gateway, ..) = experienced();
    let manual = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/METRICS.md");
    let manual = fs::read_to_string(manual).unwrap();
    let listed: BTreeSet<&str> =
        manual.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`')).map(|(name, _)| name).collect();
    let page = gateway.admin("/metrics").1;
    // The other tables of the page list kinds of errors.
    let listed: BTreeSet<&str> =
        listed.into_iter().filter(|name| name.starts_with("gateway_") || name.starts_with("process_")).collect();
    assert_eq!(families(&page), listed);
    // And what the text asks questions with exists.
    let words = manual.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    for word in words.filter(|word| word.starts_with("gateway_")) {
        let family = ["_bucket", "_sum", "_count"].iter().find_map(|part| word.strip_suffix(part)).unwrap_or(word);
        assert!(listed.contains(family), "{word}");
    }
}

#[test]
fn the_names_that_are_promised_are_there() {
    let (gateway, ..) = experienced();
    let page = gateway.admin("/metrics").1;
    for (name, kind) in [
        ("gateway_requests_total", "counter"),
        ("gateway_request_duration_seconds", "histogram"),
        ("gateway_active_connections", "gauge"),
        ("gateway_backend_errors_total", "counter"),
    ] {
        assert!(page.contains(&format!("# TYPE {name} {kind}\n")), "{name}");
    }
}

#[test]
fn a_histogram_adds_up() {
    let backend = Backend::ok();
    let gateway = Gateway::to(backend.endpoint());
    let mut client = gateway.connect();
    for _ in 0..20 {
        client.get("/");
    }
    settles_at(20.0, || gateway.metric("gateway_request_duration_seconds_count{route=\"all\"}"));
    let page = gateway.admin("/metrics").1;
    let buckets: Vec<f64> = page
        .lines()
        .filter(|line| line.starts_with("gateway_request_duration_seconds_bucket{route=\"all\""))
        .map(|line| line.rsplit(' ').next().unwrap().parse().unwrap())
        .collect();
    assert!(buckets.is_sorted() && buckets.last() == Some(&20.0), "{buckets:?}");
    let sum = gateway.metric("gateway_request_duration_seconds_sum{route=\"all\"}");
    assert!(sum > 0.0 && sum < 20.0, "{sum}");
}
