//! `ringway demo`: what it prints works as printed.

use std::process::Command;
use std::time::{Duration, Instant};

use ringway_tests::{PATIENCE, Process, eventually, free_port};
use rustix::process::Signal;

struct Demo {
    process: Process,
    curls: Vec<String>,
}

impl Demo {
    /// On free ports, up and welcoming.
    fn start() -> Self {
        let [listen, admin] = [(); 2].map(|()| format!("127.0.0.1:{}", free_port()));
        let process = Process::start(&["demo", "--listen", &listen, "--admin", &admin]);
        eventually(PATIENCE, || process.stdout().contains("Ctrl-C"));
        let text = process.stdout();
        let curls = text.lines().map(str::trim).filter(|line| line.starts_with("curl ")).map(str::to_owned).collect();
        Self { process, curls }
    }
}

#[track_caller]
fn bash(line: &str) -> String {
    let output = Command::new("bash").args(["-c", line]).output().expect("bash");
    assert!(output.status.success(), "{line}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_three_curl_lines_work_as_printed() {
    let demo = Demo::start();
    assert_eq!(demo.curls.len(), 3, "{}", demo.process.stdout());
    let product = bash(&demo.curls[0]);
    assert!(product.starts_with("HTTP/1.1 200 OK\r\n"), "{product}");
    assert!(product.contains("X-Request-ID: ") && product.contains("\"name\":\"Product 42\""), "{product}");
    let order = bash(&demo.curls[1]);
    assert!(order.starts_with("HTTP/1.1 201 Created\r\n"), "{order}");
    assert!(order.contains("\"productId\":42"), "{order}");
    let metrics = bash(&demo.curls[2]);
    assert!(metrics.contains("gateway_requests_total{route=\"product\",status=\"200\"} 1\n"), "{metrics}");
    assert!(metrics.contains("gateway_requests_total{route=\"create-order\",status=\"201\"} 1\n"), "{metrics}");
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
    bash(&demo.curls[0]);
    let begun = Instant::now();
    demo.process.signal(Signal::INT);
    let output = demo.process.finish(PATIENCE);
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
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
