//! `ringway demo`: what it prints works as printed.

use std::process::Command;
use std::time::{Duration, Instant};

use ringway_tests::{PATIENCE, Process, eventually, free_port};
use rustix::process::Signal;

struct Demo {
    process: Process,
    /// `USER=eyJ...`
    tokens: Vec<String>,
    curls: Vec<String>,
}

impl Demo {
    /// On free ports, up and welcoming.
    fn start() -> Self {
        Self::start_with(&[])
    }

    fn start_with(flags: &[&str]) -> Self {
        let [listen, admin] = [(); 2].map(|()| format!("127.0.0.1:{}", free_port()));
        let process = Process::start(&[&["demo", "--listen", &listen, "--admin", &admin], flags].concat());
        eventually(PATIENCE, || process.stdout().contains("Ctrl-C"));
        let text = process.stdout();
        let lines = |starts: &[&str]| -> Vec<String> {
            let is_one = |line: &&str| starts.iter().any(|start| line.starts_with(start));
            text.lines().map(str::trim).filter(is_one).map(str::to_owned).collect()
        };
        Self { process, tokens: lines(&["USER=", "ADMIN=", "GUEST="]), curls: lines(&["curl ", "for "]) }
    }

    /// Types the tokens, then the line with this number.
    #[track_caller]
    fn type_line(&self, number: usize) -> String {
        bash(&format!("{}\n{}", self.tokens.join("\n"), self.curls[number]))
    }
}

#[track_caller]
fn bash(line: &str) -> String {
    let output = Command::new("bash").args(["-c", line]).output().expect("bash");
    assert!(output.status.success(), "{line}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_lines_work_as_printed() {
    let demo = Demo::start();
    assert_eq!((demo.tokens.len(), demo.curls.len()), (3, 6), "{}", demo.process.stdout());
    let product = demo.type_line(0);
    assert!(product.starts_with("HTTP/1.1 200 OK\r\n"), "{product}");
    assert!(product.contains("X-Request-ID: ") && product.contains("\"name\":\"Product 42\""), "{product}");
    assert!(product.contains("RateLimit-Remaining: 99\r\n"), "{product}");
    let order = demo.type_line(1);
    assert!(order.starts_with("HTTP/1.1 201 Created\r\n"), "{order}");
    assert!(order.contains("\"productId\":42"), "{order}");
    assert!(demo.type_line(2).starts_with("HTTP/1.1 401 Unauthorized\r\n"));
    assert!(demo.type_line(3).starts_with("HTTP/1.1 403 Forbidden\r\n"));
    let statuses = demo.type_line(4);
    let count = |status: &str| -> u32 {
        let line = statuses.lines().find(|line| line.trim().ends_with(status)).unwrap_or("0");
        line.split_ascii_whitespace().next().unwrap().parse().unwrap()
    };
    assert_eq!(count(" 200") + count(" 429"), 120, "{statuses}");
    // Two were admitted before; one comes back each 0.6 s.
    assert!((98..118).contains(&count(" 200")), "{statuses}");
    let metrics = demo.type_line(5);
    assert!(metrics.contains("gateway_requests_total{route=\"create-order\",status=\"201\"} 1\n"), "{metrics}");
    assert!(metrics.contains("gateway_requests_total{route=\"create-order\",status=\"403\"} 1\n"), "{metrics}");
}

#[test]
fn chaos_shows_retries_the_breaker_and_the_metrics() {
    let demo = Demo::start_with(&["--chaos"]);
    assert_eq!(demo.curls.len(), 9, "{}", demo.process.stdout());
    let statuses = demo.type_line(6);
    let count = |status: &str| -> u32 {
        let line = statuses.lines().find(|line| line.trim().ends_with(status)).unwrap_or("0");
        line.split_ascii_whitespace().next().unwrap().parse().unwrap()
    };
    // 39 of the service's answers before it is down, some of them tried again; then ten failures in a row.
    assert!((34..=36).contains(&count(" 200")) && count(" 500") == 10, "{statuses}");
    assert_eq!(count(" 200") + count(" 500") + count(" 503"), 70, "{statuses}");
    let services = demo.type_line(7);
    let services: serde_json::Value = serde_json::from_str(&services).unwrap();
    assert_eq!(
        (&services[0]["name"], &services[0]["circuitBreaker"]["state"]),
        (&"product-service".into(), &"open".into())
    );
    let metrics = demo.type_line(8);
    for line in [
        "gateway_retries_total{service=\"product-service\",outcome=\"success\"} 4\n",
        "gateway_circuit_breaker_state{service=\"product-service\"} 2\n",
    ] {
        assert!(metrics.contains(line), "{metrics}");
    }
    eventually(PATIENCE, || {
        let log = demo.process.stdout();
        log.contains("\"attempts\":2") && log.contains("\"circuitBreaker\":\"open\"")
    });
    assert!(demo.process.stderr().contains("service `product-service`: circuit breaker open for"));
}

#[test]
fn what_is_printed_names_where_everything_is_and_answers() {
    let demo = Demo::start();
    let text = demo.process.stdout();
    for name in ["gateway", "admin", "product service", "order service", "auth service"] {
        let line = text.lines().find(|line| line.trim_start().starts_with(name));
        let line = line.unwrap_or_else(|| panic!("no {name} in {text}"));
        let url = line.split_ascii_whitespace().find(|word| word.starts_with("http://")).unwrap();
        let status = bash(&format!("curl -s -o /dev/null -w '%{{http_code}}' {url}/health"));
        assert!(["200", "404"].contains(&status.as_str()), "{url}: {status}");
    }
}

#[test]
fn ctrl_c_drains_and_ends_well() {
    let demo = Demo::start();
    demo.type_line(0);
    let begun = Instant::now();
    demo.process.signal(Signal::INT);
    let output = demo.process.finish(PATIENCE);
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert!(output.stderr.contains("SIGINT: draining") && output.stderr.contains("ended"), "{}", output.stderr);
    assert!(!output.stderr.contains("panic"), "{}", output.stderr);
    // The one request's line.
    assert_eq!(output.stdout.lines().filter(|line| line.starts_with("{\"timestamp\":")).count(), 1);
}

#[test]
fn a_port_in_use_is_one_line() {
    let demo = Demo::start();
    let taken = demo.curls[0].split("http://").nth(1).and_then(|rest| rest.split('/').next()).unwrap().to_owned();
    let admin = format!("127.0.0.1:{}", free_port());
    let output = Process::run(&["demo", "--listen", &taken, "--admin", &admin]);
    assert_eq!((output.code, output.stdout.as_str()), (Some(1), ""));
    let errors: Vec<&str> =
        output.stderr.lines().filter(|line| !line.contains("WARN the limit on open files")).collect();
    assert_eq!(errors.len(), 1, "{}", output.stderr);
    assert!(errors[0].contains(&format!("cannot listen on {taken}: Address already in use")), "{}", errors[0]);
}
