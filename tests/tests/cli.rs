//! The command line: what people type, what they read, and how a failure looks.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ringway_tests::{Gateway, Output, Process, confine, free_port};
use serde_json::Value;
use tempfile::TempDir;

/// A directory with one configuration.
fn file(text: &str) -> (TempDir, String) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("gateway.yaml");
    fs::write(&path, text).unwrap();
    let path = path.display().to_string();
    (directory, path)
}

/// One listener, one fixed answer, few connections, so that no limit on open files is worth a warning.
fn small(listen: impl std::fmt::Display, admin: impl std::fmt::Display) -> String {
    format!(
        "runtime: {{ workers: 1, pin: false }}\n\
         admin: {{ address: \"{admin}\" }}\n\
         access_log: off\n\
         limits: {{ connections: 64 }}\n\
         listeners: [{{ name: front, address: \"{listen}\" }}]\n\
         routes: [{{ respond: {{ text: hello }} }}]\n"
    )
}

fn local(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

fn configs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs")
}

/// Ended with this code, nothing on stdout, and one line on stderr, which has all of `parts`.
#[track_caller]
fn assert_one_line(output: &Output, code: i32, parts: &[&str]) {
    let Output { stdout, stderr, .. } = output;
    assert_eq!((output.code, stdout.as_str()), (Some(code), ""), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert_no_panic(output);
    for part in parts {
        assert!(stderr.contains(part), "`{part}` is not in {stderr}");
    }
}

#[track_caller]
fn assert_no_panic(Output { stderr, .. }: &Output) {
    for word in ["panic", "RUST_BACKTRACE", "stack backtrace"] {
        assert!(!stderr.contains(word), "{stderr}");
    }
}

#[test]
fn check_says_ok_for_every_example() {
    let mut checked = 0;
    // Beside the files lie the scenarios of load tests.
    let paths = fs::read_dir(configs()).unwrap().map(|entry| entry.unwrap().path());
    for path in paths.filter(|path| path.is_file()) {
        let output = Process::run_with(&["check", path.to_str().unwrap()], |command| {
            command.env("LISTEN", "127.0.0.1:3000").env("UPSTREAM", "127.0.0.1:8080");
            command.env("JWT_SECRET", "a secret of thirty-two bytes or more");
        });
        assert_eq!((output.code, output.stderr.as_str()), (Some(0), ""), "{}", output.stdout);
        assert!(output.stdout.contains(": ok ("), "{}", output.stdout);
        assert_eq!(output.stdout.lines().count(), 1);
        checked += 1;
    }
    assert!(checked >= 4, "{checked} examples");
}

#[test]
fn check_shows_all_errors_at_once_with_places_and_hints() {
    let (_directory, path) = file(
        "listeners:\n\
         \x20 - name: front\n\
         \x20   address: 127.0.0.1:3000\n\
         \x20   timeouts: { head: 10 }\n\
         services:\n\
         \x20 - name: products\n\
         \x20   endpoints: 127.0.0.1:8081\n\
         \x20   balanse: round_robin\n\
         routes:\n\
         \x20 - match: { path: /a }\n\
         \x20   service: product\n\
         \x20 - match: { path: /b }\n\
         \x20   service: products\n\
         \x20   limits: { body: 1 gigabyte }\n",
    );
    let output = Process::run(&["check", &path]);
    assert_eq!((output.code, output.stdout.as_str()), (Some(2), ""));
    assert_no_panic(&output);
    // Line and column of the first character of what is wrong.
    for (place, word) in [("4:23", "10"), ("8:5", "balanse"), ("11:14", "product"), ("14:21", "1 gigabyte")] {
        let line = output.stderr.lines().find(|line| line.starts_with(&format!("{path}:{place}: ")));
        let line = line.unwrap_or_else(|| panic!("nothing at {place}:\n{}", output.stderr));
        assert!(line.contains(word), "{line}");
    }
    let hints = output.stderr.lines().filter(|line| line.starts_with("    hint: ")).count();
    assert_eq!(hints, 4, "{}", output.stderr);
    assert!(output.stderr.ends_with("4 errors\n"), "{}", output.stderr);

    // `run` refuses the same file with the same text.
    let run = Process::run(&["run", "--config", &path]);
    assert_eq!((run.code, run.stderr), (Some(2), output.stderr));
}

#[test]
fn api_key_makes_a_key_that_a_gateway_knows() {
    let name = "o'hara: \"& sons\"";
    let made = Process::run(&["api-key", "--client", name, "--id", "1", "--role", "a", "--expires", "2100-01-31"]);
    assert_eq!((made.code, made.stderr.as_str()), (Some(0), ""));
    let key = made.stdout.lines().find_map(|line| line.trim().strip_prefix("rwk_")).unwrap();
    assert_eq!((key.len(), made.stdout.matches(key).count()), (43, 1), "256 bits, shown once");
    let (_, rest) = made.stdout.split_once("\n\nclients:\n").unwrap();
    let (clients, rest) = rest.split_once("\n\n").unwrap();
    // The file that is printed, in a gateway.
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keys.yaml");
    fs::write(&path, format!("clients:\n{clients}\n")).unwrap();
    let gateway = Gateway::start(&format!(
        "authenticators: [{{ name: a, api_keys: {{ file: \"{}\" }} }}]\n\
         routes: [{{ respond: {{ text: hello }}, authenticate: a, authorize: {{ roles: [a] }} }}]\n",
        path.display()
    ));
    let request = format!("GET / HTTP/1.1\r\nHost: test\r\nX-API-Key: rwk_{key}\r\n\r\n");
    assert_eq!(gateway.connect().ask(request).status(), 200);
    assert_eq!(gateway.log_line(1)["userId"], name);
    // The line for Redis, as a shell reads it.
    let line = rest.lines().last().unwrap().strip_prefix("redis-cli ").unwrap();
    let words = Command::new("sh").args(["-c", &format!("printf '%s\\n' {line}")]).output().unwrap();
    let words = String::from_utf8(words.stdout).unwrap();
    let words: Vec<_> = words.lines().collect();
    let hash = ringway_core::auth::api_key::stored(format!("rwk_{key}").as_bytes());
    assert_eq!(words[..3], ["HSET", "ringway:api-keys", &hash]);
    let entry: Value = serde_json::from_str(words[3]).unwrap();
    assert_eq!(entry, serde_json::json!({ "client": name, "id": "1", "expires": "2100-01-31", "roles": ["a"] }));

    let json =
        |_| -> Value { serde_json::from_str(&Process::run(&["api-key", "--client", "a", "--json"]).stdout).unwrap() };
    let [one, two] = [0, 1].map(json);
    assert_eq!((one["entry"].clone(), one["key"] == two["key"]), (serde_json::json!({ "client": "a" }), false));

    assert_one_line(&Process::run(&["api-key", "--client", ""]), 2, &["a client needs a name"]);
    for (option, time, why) in [
        ("--expires", "tomorrow", "a time is `2027-01-31`"),
        ("--expires", "2020-01-01", "--expires is in the past"),
        ("--not-before", "2027-13-01", "a time is `2027-01-31`"),
    ] {
        assert_one_line(&Process::run(&["api-key", "--client", "a", option, time]), 2, &[why]);
    }
}

#[test]
fn check_reads_a_directory() {
    let (directory, path) = file(&small("127.0.0.1:3000", "127.0.0.1:9901"));
    fs::write(directory.path().join("more.yaml"), "routes: [{ match: { path: /x }, respond: { txt: x } }]\n").unwrap();
    let whole = directory.path().to_str().unwrap();
    let output = Process::run(&["check", whole]);
    assert_eq!(output.code, Some(2));
    assert!(output.stderr.starts_with(&format!("{whole}/more.yaml:1:44: ")), "{}", output.stderr);
    assert_eq!(Process::run(&["check", &path]).code, Some(0));
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let (directory, path) = file("");
    for command in [&["check"][..], &["run", "-c"]] {
        let with = |path: &str| Process::run(&[command, &[path]].concat());
        for (path, what) in [
            ("/nowhere/gateway.yaml", "/nowhere/gateway.yaml: cannot be read: No such file or directory"),
            (path.as_str(), "the file is empty"),
        ] {
            let output = with(path);
            assert_eq!(output.code, Some(2));
            assert!(output.stderr.contains(what) && output.stderr.ends_with("1 error\n"), "{}", output.stderr);
            assert_no_panic(&output);
        }
    }
    fs::remove_file(&path).unwrap();
    let output = Process::run(&["check", directory.path().to_str().unwrap()]);
    assert!(output.stderr.contains("the directory has no `*.yaml` or `*.yml` file"), "{}", output.stderr);
}

#[test]
fn schema_is_json_schema_of_the_configuration() {
    let output = Process::run(&["schema"]);
    assert_eq!((output.code, output.stderr.as_str()), (Some(0), ""));
    let schema: Value = serde_json::from_str(&output.stdout).unwrap();
    assert!(schema["$schema"].as_str().unwrap().starts_with("https://json-schema.org/"), "{}", schema["$schema"]);
    for section in ["runtime", "admin", "access_log", "drain", "limits", "listeners", "services", "routes"] {
        assert!(schema["properties"][section].is_object(), "{section}");
    }
    // A reader that has seen enough is no failure, a full disk is.
    let into_nothing = Process::run_with(&["schema"], |command| {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        command.stdout(writer);
    });
    let full = Process::run_with(&["schema"], |command| {
        command.stdout(fs::OpenOptions::new().write(true).open("/dev/full").unwrap());
    });
    assert_one_line(&full, 1, &["stdout: No space left on device"]);
    assert_eq!((into_nothing.code, into_nothing.stderr.as_str()), (Some(0), ""));
}

#[test]
fn help_and_version_teach() {
    let version = Process::run(&["--version"]);
    assert_eq!(version.code, Some(0));
    assert!(version.stdout.starts_with(concat!("ringway ", env!("CARGO_PKG_VERSION"))), "{}", version.stdout);

    let help = Process::run(&["--help"]);
    assert_eq!(help.code, Some(0));
    for word in ["demo", "check", "run --config", "schema", "HUP", "USR1", "TERM", "RINGWAY_LOG", "Exit codes"] {
        assert!(help.stdout.contains(word), "{word}");
    }
    assert!(help.stdout.lines().all(|line| line.chars().count() <= 120), "{}", help.stdout);
    for command in ["run", "check", "schema", "demo"] {
        let help = Process::run(&[command, "--help"]);
        assert!(help.code == Some(0) && help.stdout.contains(&format!("Usage: ringway {command}")), "{}", help.stdout);
    }
    for (wrong, part) in [(&[][..], "Usage:"), (&["rum"], "run"), (&["run"], "ringway run --config FILE")] {
        let output = Process::run(wrong);
        assert_eq!(output.code, Some(2), "{wrong:?}");
        assert!(output.stderr.contains(part), "{}", output.stderr);
    }
}

#[test]
fn a_log_level_that_is_none_is_refused() {
    let output = Process::run_with(&["schema"], |command| {
        command.env("RINGWAY_LOG", "loud");
    });
    assert_one_line(&output, 2, &["RINGWAY_LOG", "`loud`", "debug"]);
}

#[test]
fn a_port_of_another_program_is_one_line() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let port = address.port().to_string();
    let parts = ["Address already in use", &address.to_string(), "ss -ltnp sport = :", &port];
    let (_directory, path) = file(&small(address, local(free_port())));
    assert_one_line(&Process::run(&["run", "-c", &path]), 1, &[&parts[..], &["listener `front`"]].concat());
    let (_directory, path) = file(&small(local(free_port()), address));
    assert_one_line(&Process::run(&["run", "-c", &path]), 1, &[&parts[..], &["admin"]].concat());
}

#[test]
fn a_port_of_another_ringway_is_one_line_and_the_other_goes_on() {
    let gateway = Gateway::start("routes: [{ respond: { text: first } }]\n");
    let (_directory, path) = file(&small(gateway.address(), local(free_port())));
    let output = Process::run(&["run", "-c", &path]);
    assert_one_line(&output, 1, &["listener `front`", "Address already in use"]);
    for _ in 0..20 {
        assert_eq!(gateway.get("/").text(), "first");
    }
}

#[test]
fn other_reasons_not_to_start_are_one_line_each() {
    for (from, to, parts) in [
        ("127.0.0.1:1111", "203.0.113.7:1111", ["203.0.113.7:1111", "no interface of this machine"]),
        ("access_log: off", "access_log: { file: /nowhere/access.log }", ["/nowhere/access.log", "No such file"]),
    ] {
        let text = small("127.0.0.1:1111", local(free_port())).replace(from, to);
        let text = text.replace("127.0.0.1:1111", &local(free_port()));
        let (_directory, path) = file(&text);
        assert_one_line(&Process::run(&["run", "-c", &path]), 1, &parts);
    }
}

#[test]
fn too_few_descriptors_are_an_error_and_few_are_a_warning() {
    let (_directory, path) = file(&small(local(free_port()), local(free_port())));
    for limit in [12, 100] {
        let output = Process::run_with(&["run", "-c", &path], |command| confine::limit_descriptors(command, limit));
        assert_one_line(&output, 1, &[&format!("limit on open files is {limit}"), "ulimit -n "]);
    }

    let gateway =
        Gateway::start_with("limits: { connections: 5000 }\nroutes: [{ respond: { text: ok } }]\n", |command| {
            confine::limit_descriptors(command, 300);
        });
    let warnings: Vec<String> =
        gateway.stderr().lines().filter(|line| line.contains("open files")).map(str::to_owned).collect();
    assert_eq!(warnings.len(), 1, "{}", gateway.stderr());
    for part in ["WARN", "is 300", "`limits.connections` is 5000", "ulimit -n "] {
        assert!(warnings[0].contains(part), "{}", warnings[0]);
    }
    assert_eq!(gateway.get("/").status(), 200);
}

#[test]
fn where_io_uring_is_forbidden_epoll_serves_and_everyone_is_told() {
    let yaml = "runtime: { workers: 2 }\nroutes: [{ respond: { text: ok } }]\n";
    let gateway = Gateway::start_with(yaml, confine::forbid_io_uring);
    assert_eq!(gateway.get("/").text(), "ok");
    let warning = gateway.stderr().lines().find(|line| line.contains("2 of 2 workers use epoll")).map(str::to_owned);
    assert!(warning.is_some_and(|line| line.contains("WARN")), "{}", gateway.stderr());
    assert!(!gateway.stderr().contains("panic"), "{}", gateway.stderr());
    let health: Value = serde_json::from_str(&gateway.admin("/health").1).unwrap();
    assert!(health["degraded"].as_str().is_some_and(|text| text.contains("2 of 2")), "{health}");
    assert_eq!((&health["workers"][0]["driver"], &health["workers"][1]["driver"]), (&"epoll".into(), &"epoll".into()));
    assert_eq!(gateway.metric("gateway_worker_driver_info{worker=\"0\",driver=\"epoll\"}"), 1.0);
}

#[test]
fn where_io_uring_is_forbidden_who_insists_gets_one_line() {
    let text = small(local(free_port()), local(free_port())).replace("workers: 1", "workers: 1, driver: io_uring");
    let (_directory, path) = file(&text);
    let output = Process::run_with(&["run", "-c", &path], confine::forbid_io_uring);
    assert_one_line(&output, 1, &["io_uring is not available", "Operation not permitted", "driver: auto"]);
}

#[test]
fn epoll_that_was_asked_for_is_not_degraded() {
    let gateway = Gateway::start("runtime: { workers: 1, driver: epoll }\nroutes: [{ respond: { text: ok } }]\n");
    let health: Value = serde_json::from_str(&gateway.admin("/health").1).unwrap();
    assert!(health.get("degraded").is_none() && health["status"] == "healthy", "{health}");
    assert!(!gateway.stderr().contains("WARN") || !gateway.stderr().contains("epoll"), "{}", gateway.stderr());
    assert_eq!(gateway.metric("gateway_worker_driver_info{worker=\"0\",driver=\"epoll\"}"), 1.0);
}

#[test]
fn closed_standard_streams_do_no_harm() {
    let (_directory, path) = file("colour: red\n");
    let shell = format!("'{}' check '{path}' >&- 2>&- <&-", ringway_tests::binary().display());
    let status = Command::new("sh").args(["-c", &shell]).stdin(Stdio::null()).status().unwrap();
    assert_eq!(status.code(), Some(2));
}
