//! `loadtest plan` as people type it.

use std::fs;

use crate::support::loadtest;
use serde_json::{Value, json};

const EXAMPLE: &[&str] = &[
    "plan",
    "--peak",
    "10000/s",
    "--request",
    "2KB",
    "--response",
    "16KB",
    "--per-instance",
    "2000/s",
    "--safety",
    "2",
];

fn with(more: &[&'static str]) -> Vec<&'static str> {
    [EXAMPLE, more].concat()
}

/// The example with another value for one of its flags.
fn changed(flag: &str, value: &'static str) -> Vec<&'static str> {
    let mut args = EXAMPLE.to_vec();
    let at = args.iter().position(|arg| *arg == flag).expect("a flag of the example");
    args[at + 1] = value;
    args
}

/// The result of each step, by part and name.
#[track_caller]
fn steps(args: &[&str]) -> impl Fn(&str, &str) -> String + use<> {
    let planned = loadtest(&[args, &["--json", "-"]].concat());
    planned.assert_done();
    let plan: Value = serde_json::from_str(&planned.stdout).unwrap();
    move |part, name| {
        let steps = plan["steps"].as_array().unwrap().iter();
        let found = steps.filter(|step| step["part"] == part && step["name"] == name).collect::<Vec<_>>();
        assert_eq!(found.len(), 1, "{part}, {name}: {plan:#}");
        found[0]["result"].as_str().unwrap().to_owned()
    }
}

#[test]
fn the_worked_example() {
    let planned = loadtest(EXAMPLE);
    planned.assert_done();
    let words = planned.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
    for part in [
        "for the load 10 10,000/s x 2 safety / 2,000/s per instance, rounded up",
        "in all 10 the larger of 10 and 2 for availability",
        "from clients 160 Mbit/s 10,000/s x 2 KB x 8 bit",
        "to clients 1.28 Gbit/s 10,000/s x 16 KB x 8 bit",
        "each way, in all 1.44 Gbit/s",
        "Latency is not part of the count of instances.",
        "With 50 ms, say, 10,000/s x 50 ms x 2 = 1,000 are requests in flight; divided by 2,000/s they give 0.5 seconds, not 0.5 instances.",
        "Taken for a count, and rounded up to 2, each instance would get 2.5 times what it carries at the peak.",
    ] {
        assert!(words.contains(part), "`{part}` is not in\n{}", planned.stdout);
    }
}

#[test]
fn everything_fits_on_a_screen() {
    let planned = loadtest(&with(&[
        "--latency",
        "50ms",
        "--zones",
        "3",
        "--n-plus",
        "1",
        "--headroom",
        "30%",
        "--connections",
        "200000",
        "--connection-memory",
        "886",
        "--base-memory",
        "20MB",
        "--cpu-per-request",
        "12.7us",
        "--rate-limit-keys",
        "5000",
    ]));
    planned.assert_done();
    for part in ["Instances", "Bandwidth", "CPU", "In flight", "Memory", "Redis"] {
        assert!(planned.stdout.lines().any(|line| line == part), "{part}");
    }
    let wide: Vec<_> = planned.stdout.lines().filter(|line| line.chars().count() > 100).collect();
    assert!(wide.is_empty(), "{wide:#?}");
}

#[test]
fn options_change_the_count() {
    for (more, total) in [
        (&["--n-plus", "1"][..], "11"),
        (&["--headroom", "30%"], "15"),
        (&["--zones", "3"], "15"),
        (&["--zones", "2"], "20"),
        (&["--zones", "3", "--n-plus", "6"], "18"),
        (&["--instances-min", "12"], "12"),
    ] {
        assert_eq!(steps(&with(more))("Instances", "in all"), total, "{more:?}");
    }
    let small = ["plan", "--peak", "10/s", "--request", "2KB", "--response", "16KB", "--per-instance", "2000/s"];
    assert_eq!(steps(&small)("Instances", "in all"), "2", "availability");
}

#[test]
fn memory_and_requests_in_flight() {
    let step = steps(&with(&[
        "--n-plus",
        "1",
        "--latency",
        "50ms",
        "--connections",
        "100001",
        "--connection-memory",
        "1KB",
        "--base-memory",
        "20MB",
    ]));
    assert_eq!(step("In flight", "at the peak"), "500");
    assert_eq!(step("Memory", "connections"), "10,001");
    assert_eq!(step("Memory", "of an instance"), "30 MB");
}

#[test]
fn units_are_what_they_say() {
    let inputs = |size: &str| {
        let planned = loadtest(&[
            "plan",
            "--peak",
            "1",
            "--per-instance",
            "1",
            "--request",
            size,
            "--response",
            "1",
            "--json",
            "-",
        ]);
        serde_json::from_str::<Value>(&planned.stdout).unwrap()["inputs"]["request_bytes"].as_f64().unwrap()
    };
    assert_eq!((inputs("2KB"), inputs("2KiB"), inputs("2000")), (2_000.0, 2_048.0, 2_000.0));
}

#[test]
fn redis_calls_follow_from_the_policy() {
    // 100/min and 10 instances: slow, a call for each admitted request.
    let step = steps(&with(&["--rate-limit-keys", "3000"]));
    assert_eq!((step("Redis", "calls"), step("Redis", "CPU of Redis")), ("5,000/s".to_owned(), "5 %".to_owned()));
    // 1,000/s: fast, ten calls per key, instance and second.
    let step = steps(&with(&["--rate-limit-keys", "20", "--rate-limit", "1000/s"]));
    assert_eq!(step("Redis", "calls"), "2,000/s");
}

#[test]
fn measured_figures_are_read_and_flags_come_first() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("capacity.json").display().to_string();
    let measured = json!({ "measured": { "qps_per_instance": 21000.0, "cpu_us_per_request": 12.5, "memory_bytes_base": 20_000_000,
        "memory_bytes_per_connection": 886.0, "request_bytes": 2100.0, "response_bytes": 16500.0,
        "slo": "p99 < 20 ms, errors < 0.1 %" } });
    fs::write(&path, measured.to_string()).unwrap();
    let from = ["plan", "--peak", "100k/s", "--from", &path, "--connections", "100000"];
    let step = steps(&from);
    assert_eq!(step("Instances", "in all"), "10", "100,000 x 2 / 21,000 = 9.5");
    assert_eq!(step("CPU", "at the peak"), "1.25 cores");
    assert_eq!(step("Bandwidth", "from clients"), "1.68 Gbit/s");
    assert_eq!(step("Memory", "of an instance"), "28.9 MB");
    assert_eq!(steps(&[&from[..], &["--per-instance", "2000/s"]].concat())("Instances", "in all"), "100");
    assert!(loadtest(&from).stdout.contains("One instance carried 21,000/s with p99 < 20 ms, errors < 0.1 %."));
}

#[test]
fn wrong_files_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    for (path, part) in [
        (directory.path().join("missing.json").display().to_string(), "missing.json: cannot be read: No such file"),
        (directory.path().display().to_string(), "cannot be read: Is a directory"),
        (file("text.json", "qps: 3"), "text.json: not JSON: "),
        (file("foreign.json", "{\"latencies\": []}"), "foreign.json: no key 'measured'"),
        (file("empty.json", "{\"measured\": {}}"), "empty.json: measured: missing field"),
    ] {
        loadtest(&["plan", "--peak", "10/s", "--from", &path]).assert_failed_in_a_line(2, part);
    }
}

#[test]
fn wrong_flags_are_refused() {
    for (args, part) in [
        (&["plan"][..], "--peak <RATE>"),
        (&["plan", "--peak", "10/s"], "--per-instance is missing: give it, or --from"),
        (&["plan", "--peak", "10/s", "--per-instance", "5"], "--request is missing"),
        (&["plan", "--peak", "0"], "a number above 0 was expected"),
        (&["plan", "--peak", "-5/s"], "a number above 0 was expected"),
        (&["plan", "--peak", "9999999999999999/s"], "larger than 1e15"),
        (&["plan", "--peak", "10/week"], "'week' is not a period"),
        (&changed("--request", "0KB"), "a number above 0 was expected"),
        (&changed("--response", "-16KB"), "a number above 0 was expected"),
        (&changed("--per-instance", "0"), "a number above 0 was expected"),
        (&changed("--safety", "0.5"), "a factor of at least 1 was expected"),
        (&with(&["--headroom", "100%"]), "0 % to less than 100 % was expected"),
        (&changed("--safety", "1000000000000"), "more than 1,000,000,000 instances"),
        (&changed("--per-instance", "0.000001/h"), "more than 1,000,000,000 instances"),
        (&with(&["--zones", "1"]), "1 is not in 2..=100"),
        (&with(&["--connections", "5"]), "--connections needs --connection-memory"),
        (&with(&["--connection-memory", "1KB"]), "--connections <COUNT>"),
        (&with(&["--rate-limit-burst", "5"]), "--rate-limit-keys <COUNT>"),
        (&with(&["--rate-limit", "fast"]), "such as 100/min"),
    ] {
        loadtest(args).assert_failed(2, part);
    }
}

#[test]
fn a_plan_that_cannot_be_written_is_said() {
    let planned = loadtest(&with(&["--json", "/dev/full"]));
    assert_eq!(planned.code, Some(1));
    assert!(planned.stderr.starts_with("loadtest: cannot write /dev/full: No space left"), "{}", planned.stderr);
    assert!(planned.stdout.starts_with("Plan for 10,000/s at the peak"), "{}", planned.stdout);
    loadtest(&with(&["--json", "/nowhere/plan.json"])).assert_failed_in_a_line(2, "there is no directory /nowhere");
}
