//! The audit log: what is recorded, where it goes, and that no record is lost whatever happens to its sink.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use ringway_tests::{Backend, Client, Gateway, PATIENCE, eventually, settles_at};
use rustix::process::Signal;
use serde_json::Value;

const FIELDS: [&str; 11] =
    ["timestamp", "requestId", "clientIp", "method", "path", "route", "user", "kind", "policy", "reason", "status"];

/// What a worker and the queue before the writer hold, with room to spare, in records of more than 2 KiB.
const MORE_THAN_FITS: usize = 3000;

/// A route that needs a token, one that lets nobody in, and one that lets everybody pass.
fn yaml(endpoint: &str, audit_log: &str) -> String {
    format!(
        "audit_log: {audit_log}\n\
         authenticators: [{{ name: main, jwt: {{ algorithms: HS256, keys: {{ secret: 0123456789abcdef0123456789abcdef }} }} }}]\n\
         services: [{{ name: app, endpoints: [\"{endpoint}\"] }}]\n\
         routes:\n\
         - {{ name: closed, match: {{ prefix: /closed }}, service: app, authenticate: main }}\n\
         - {{ name: inside, match: {{ path: /inside }}, service: app, ip: {{ deny: 127.0.0.0/8 }} }}\n\
         - {{ name: open, match: {{ path: /open }}, service: app }}\n"
    )
}

fn lines(path: &Path) -> Vec<String> {
    fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

fn parsed(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
}

/// A refused request whose record is long.
fn refused(number: usize) -> String {
    format!("GET /closed/{number}/{} HTTP/1.1\r\nHost: test\r\n\r\n", "x".repeat(2030))
}

/// Sends refused requests, one after the other, until one is not answered; gives back how many were sent.
#[track_caller]
fn fill(client: &mut Client) -> usize {
    for number in 0..MORE_THAN_FITS {
        client.send(refused(number));
        if client.stays_silent(Duration::from_millis(400)) {
            return number + 1;
        }
        assert_eq!(client.read_response().status(), 401);
    }
    panic!("{MORE_THAN_FITS} records were taken over by a sink that takes none");
}

/// The numbers of the requests that are recorded, in order.
fn numbers(text: &str) -> Vec<usize> {
    let of = |line: &str| -> usize {
        let path = parsed(line)["path"].as_str().unwrap().to_owned();
        path.split('/').nth(2).unwrap().parse().unwrap()
    };
    text.lines().map(of).collect()
}

#[test]
fn refusals_leave_a_record_and_nothing_else_does() {
    let backend = Backend::ok();
    let gateway = Gateway::start(&yaml(backend.endpoint(), "{ file: DIR/audit.log }"));
    let path = gateway.directory().join("audit.log");
    let mut client = gateway.connect();
    assert_eq!(client.get("/open").status(), 200);
    assert_eq!(client.get("/nothing").status(), 404);
    let missing = client.get("/closed/a?token=secret");
    assert_eq!(missing.status(), 401);
    let bad = "GET /closed/a HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer top.secret.token\r\n\r\n";
    assert_eq!(client.ask(bad).status(), 401);
    assert_eq!(client.get("/inside").status(), 403);

    settles_at(3, || lines(&path).len());
    let text = fs::read_to_string(&path).unwrap();
    assert!(!text.contains("secret"), "{text}");
    let records: Vec<Value> = text.lines().map(parsed).collect();
    for (record, line) in records.iter().zip(text.lines()) {
        let mut at = 0;
        for field in FIELDS {
            at += line[at..].find(&format!("\"{field}\":")).unwrap_or_else(|| panic!("{field}: {line}"));
        }
        assert_eq!(record.as_object().unwrap().len(), FIELDS.len());
    }
    let of = |record: &Value| ["kind", "policy", "reason", "status"].map(|field| record[field].to_string());
    assert_eq!(of(&records[0]), ["\"authentication\"", "\"main\"", "\"missing\"", "401"]);
    assert_eq!(records[0]["requestId"], missing.get("x-request-id").unwrap());
    assert_eq!((records[0]["path"].as_str(), records[0]["route"].as_str()), (Some("/closed/a"), Some("closed")));
    assert_eq!(of(&records[1]), ["\"authentication\"", "\"main\"", "\"malformed\"", "401"]);
    assert_eq!(of(&records[2]), ["\"ip\"", "null", "\"address_denied\"", "403"]);
}

#[test]
fn a_rotation_loses_nothing() {
    let backend = Backend::ok();
    let gateway = Gateway::start(&yaml(backend.endpoint(), "{ file: DIR/audit.log }"));
    let (path, old) = (gateway.directory().join("audit.log"), gateway.directory().join("audit.log.1"));
    let mut client = gateway.connect();
    client.ask(refused(0));
    settles_at(1, || lines(&path).len());
    fs::rename(&path, &old).unwrap();
    gateway.signal(Signal::USR1);
    eventually(PATIENCE, || path.exists());
    client.ask(refused(1));
    settles_at(1, || lines(&path).len());
    let read = |path| numbers(&fs::read_to_string(path).unwrap());
    assert_eq!((read(&old), read(&path)), (vec![0], vec![1]));
}

#[test]
fn off_is_off() {
    let backend = Backend::ok();
    let gateway = Gateway::start(&yaml(backend.endpoint(), "off"));
    assert_eq!(gateway.get("/closed/a").status(), 401);
    gateway.log_line(1);
    assert!(!gateway.stderr().contains("\"kind\""), "{}", gateway.stderr());
}

#[test]
fn it_goes_to_stderr_where_nothing_is_said() {
    let backend = Backend::ok();
    let text = yaml(backend.endpoint(), "off");
    let gateway = Gateway::start(text.strip_prefix("audit_log: off\n").unwrap());
    assert_eq!(gateway.get("/closed/a").status(), 401);
    eventually(PATIENCE, || gateway.stderr().lines().any(|line| line.contains("\"kind\":\"authentication\"")));
}

#[test]
fn with_a_full_disk_refusals_wait_and_others_pass_and_a_reload_brings_all_records() {
    let backend = Backend::ok();
    let gateway = Gateway::start(&yaml(backend.endpoint(), "{ file: /dev/full }"));
    let mut client = gateway.connect();
    let sent = fill(&mut client);
    assert!(sent > 100, "{sent}");
    assert!(gateway.metric("gateway_audit_write_errors_total") > 0.0);
    assert!(gateway.stderr().contains("audit log: records cannot be written"), "{}", gateway.stderr());
    assert_eq!(gateway.get("/open").status(), 200, "the worker goes on");
    assert!(client.stays_silent(Duration::from_millis(200)), "and the refusal still waits");

    assert!(gateway.replace_config(&yaml(backend.endpoint(), "{ file: DIR/audit.log }")));
    assert_eq!(client.read_response().status(), 401);
    let path = gateway.directory().join("audit.log");
    settles_at(sent, || lines(&path).len());
    assert_eq!(numbers(&fs::read_to_string(&path).unwrap()), (0..sent).collect::<Vec<_>>());
}

#[test]
fn a_pipe_that_nobody_reads_holds_refusals_up_and_loses_none() {
    let backend = Backend::ok();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let gateway = Gateway::start_with(&yaml(backend.endpoint(), "stdout"), |command| {
        command.stdout(writer.try_clone().unwrap());
    });
    drop(writer);
    let mut client = gateway.connect();
    let sent = fill(&mut client);
    assert_eq!(gateway.get("/open").status(), 200);
    let reading = std::thread::spawn(move || {
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        text
    });
    assert_eq!(client.read_response().status(), 401);
    drop(client);
    let mut gateway = gateway;
    gateway.terminate();
    assert!(gateway.wait_exit(PATIENCE).success());
    assert_eq!(numbers(&reading.join().unwrap()), (0..sent).collect::<Vec<_>>());
}
