//! `loadtest capacity` through the real binary, against `loadtest origin`.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

fn loadtest(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_loadtest")).args(args).stdin(Stdio::null()).output().expect("the binary runs")
}

/// A backend that is up; killed when dropped.
struct Origin {
    url: String,
    child: Child,
}

impl Origin {
    fn start(args: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_loadtest"));
        command.args(["origin", "--listen=127.0.0.1:0"]).args(args).stdout(Stdio::piped());
        let mut child = command.spawn().expect("the binary starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
        let url = line.split(' ').find(|word| word.starts_with("http://"));
        let url = url.unwrap_or_else(|| panic!("no address in {line:?}")).to_owned();
        Self { url, child }
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).expect("a file")).expect("JSON")
}

/// Whether the corrected p99 is below 60 ms. A run that holds this does so however late the generator was; one that does
/// not is taken again where the generator says that it was kept from its schedule.
fn holds_at(url: &str, rate: f64) -> bool {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("run.json");
    let (rate, file_name) = (format!("--rate={rate:.1}/s"), format!("--json={}", file.display()));
    let mut runs = (0..5).map(|_| {
        let output = loadtest(&["run", url, &rate, "--poisson", "--connections=4", "--duration=3s", &file_name]);
        assert!(output.status.success(), "{output:?}");
        let run = json(&file);
        let holds = run["latency"]["p99"].as_u64().expect("a number") < 60_000;
        (holds, run["generator"]["warnings"] == Value::Array(Vec::new()))
    });
    runs.find(|(holds, undisturbed)| *holds || *undisturbed).is_some_and(|(holds, _)| holds)
}

/// Four connections and 10 ms for an answer carry 400 requests per second on any machine.
#[test]
fn the_capacity_of_a_slow_service_is_found_and_feeds_a_plan() {
    let origin = Origin::start(&["--latency=10ms", "--body=100B"]);
    let directory = tempfile::tempdir().expect("a directory");
    let (file, page) = (directory.path().join("capacity.json"), directory.path().join("capacity.html"));
    let args = [
        "capacity",
        &origin.url,
        "--slo=p99<60ms,errors<1%",
        "--connections=4",
        "--step-duration=1s",
        "--repeats=1",
        &format!("--pid={}", origin.child.id()),
        &format!("--json={}", file.display()),
        &format!("--html={}", page.display()),
    ];
    // Where other work keeps the generator from its schedule, the search says so, and there is no capacity to check.
    let mut tries = (0..3).map(|_| {
        let output = loadtest(&args);
        let progress = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{progress}");
        let found = json(&file);
        let by_generator = found["limit"].as_str().is_some_and(|limit| limit.starts_with("the generator: "));
        assert_eq!(found["is_lower_bound"], by_generator, "{progress}");
        (output, progress, found)
    });
    let of_target = tries.find(|(_, _, found)| found["is_lower_bound"] == false);
    let (output, progress, found) = of_target.expect("a machine with time for the generator, in one of three tries");
    let measured = &found["measured"];
    let qps = measured["qps_per_instance"].as_f64().expect("a rate");
    assert!((250.0..440.0).contains(&qps), "{progress}");
    assert!(found["limit"].as_str().is_some_and(|limit| limit.contains("p99 is ")), "{}", found["limit"]);
    assert!(measured["cpu_us_per_request"].as_f64().is_some_and(|us| us > 0.5), "{measured}");
    assert!(measured["memory_bytes_base"].as_u64().is_some_and(|bytes| bytes > 1 << 20), "{measured}");
    assert!(measured["response_bytes"].as_f64().is_some_and(|bytes| bytes > 100.0), "{measured}");
    let points = found["points"].as_array().expect("points");
    let verdicts = |verdict: &str| points.iter().filter(|point| point["verdict"] == verdict).count();
    assert!(verdicts("holds") >= 2 && verdicts("breaks") >= 2, "{progress}");
    assert_eq!(progress.lines().count(), points.len() + 1, "a line for the warm-up and each run: {progress}");

    let table = String::from_utf8_lossy(&output.stdout);
    assert!(table.contains("p99 < 60 ms, errors < 1 %") && table.contains(" us/request, "), "{table}");
    assert!(std::fs::read_to_string(&page).expect("a page").contains("Latency against rate"));

    assert!(holds_at(&origin.url, qps * 0.8), "80 % of {qps} does not hold");
    assert!(!holds_at(&origin.url, qps * 1.2), "120 % of {qps} holds");

    let plan = loadtest(&["plan", "--peak=1000/s", &format!("--from={}", file.display())]);
    assert!(plan.status.success(), "{plan:?}");
    assert!(String::from_utf8_lossy(&plan.stdout).contains("p99 < 60 ms, errors < 1 %"), "{plan:?}");
}

#[test]
fn what_cannot_be_searched_is_said_in_one_line() {
    let origin = Origin::start(&["--status=404", "--body=10B"]);
    let dead = ["http://127.0.0.1:1/", "--slo=p99<1s"];
    for (args, code, expected) in [
        (&["http://127.0.0.1:1/", "--slo=p99<20"][..], 2, "column 7: a unit was expected"),
        (&["nowhere.yaml", "--slo=p99<1s"], 2, "nowhere.yaml"),
        (&[&origin.url, "--slo=p99<1s", "--process=no-such-process"], 2, "no process has this name"),
        (&[&origin.url, "--slo=p99<1s", "--json=/nonexistent/x.json"], 2, "/nonexistent"),
        (&[&origin.url, "--slo=p99<1s", "--step-duration=1s"], 1, "is answered well: status 404"),
        (&dead, 1, "cannot connect to 127.0.0.1:1: connection refused"),
    ] {
        let output = loadtest(&[&["capacity"], args].concat());
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
        assert!(stderr.contains(expected), "{args:?}: {stderr}");
    }
}

#[test]
fn a_target_that_never_holds_is_a_failure() {
    let origin = Origin::start(&["--latency=30ms", "--body=10B"]);
    let steps = ["--step-duration=1s", "--connections=1", "--arrivals=constant"];
    let output = loadtest(&[&["capacity", &origin.url, "--slo=p50<20ms"], &steps[..]].concat());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("does not hold p50 < 20 ms even at 1/s: at 1/s: p50 is "), "{stderr}");
}
