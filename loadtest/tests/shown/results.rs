//! Results as a table, JSON and percentile text, and what happens where they cannot be written.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{ended, loadtest, results};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A directory with saved results.
struct Saved {
    directory: TempDir,
    run: String,
}

impl Saved {
    fn new(results: &Value) -> Self {
        Self::text(&results.to_string())
    }

    fn text(text: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let run = directory.path().join("run.json");
        fs::write(&run, text).unwrap();
        Self { run: run.display().to_string(), directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    #[track_caller]
    fn table(&self) -> String {
        let shown = loadtest(&["report", &self.run]);
        shown.assert_done();
        shown.stdout
    }
}

#[track_caller]
fn assert_has(text: &str, lines: &[&str]) {
    // Columns may stand further apart.
    let words: Vec<String> = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    for line in lines {
        assert!(words.iter().any(|have| have.contains(line)), "`{line}` is not in\n{text}");
    }
}

#[test]
fn the_table_says_what_was_asked_and_what_came() {
    let table = Saved::new(&results()).table();
    assert_has(
        &table,
        &[
            "Target http://127.0.0.1:8080/",
            "Load open loop, 1000/s constant for 30 s",
            "64 connections, 1 thread, 30.0 s measured, started 2026-11-24T08:00:00Z",
            "due 30,000 1,000/s 100 %",
            "answered 29,997 1,000/s 99.99 %",
            "failed 3 0.1/s 0.01 %",
            "unexpected status 120 4/s 0.4 %",
            "sent 60 MB (16 Mbit/s), received 480 MB (128 Mbit/s), 67 connections opened",
            "Latency mean p50 p90 p95 p99 p99.9 p99.99 max",
            "timeout 2",
            "reset 1",
            "Generator: 99.98 % on schedule (latest by 412 us), 11 % busy, 9.4 us CPU per request",
        ],
    );
    assert!(table.lines().all(|line| line.chars().count() <= 100), "{table}");
    assert!(!table.contains("WARNING"), "{table}");
}

#[test]
fn a_stall_is_in_the_corrected_latency_and_hardly_in_the_service_time() {
    let table = Saved::new(&results()).table();
    let p999 = |name: &str| {
        let line = table.lines().find(|line| line.trim_start().starts_with(name)).unwrap();
        line.split("  ").filter(|cell| !cell.trim().is_empty()).nth(6).unwrap().trim().to_owned()
    };
    assert!(p999("corrected").starts_with("27"), "{table}");
    assert!(p999("service time").starts_with("2."), "{table}");
}

#[test]
fn classes_and_statuses_have_their_own_lines() {
    let table = Saved::new(&results()).table();
    let block: Vec<&str> = table.lines().skip_while(|line| !line.starts_with("Class and status")).collect();
    let names: Vec<&str> = block.iter().map_while(|line| line.get(..18)).map(str::trim_end).take(8).collect();
    assert_eq!(
        names[..7],
        ["Class and status", "  GET /products", "    200", "    503", "    no answer", "  POST /orders", "    201",]
    );
}

#[test]
fn warnings_are_said_plainly_and_broken_between_words() {
    let mut results = results();
    let warning = "The generator could not keep its schedule: only 93.1 % of the requests were sent within 1 ms; use more threads.";
    results["generator"]["warnings"] = json!([warning]);
    let table = Saved::new(&results).table();
    let said: Vec<&str> = table.lines().skip_while(|line| !line.starts_with("WARNING: ")).collect();
    assert_eq!(said.join(" ").split_whitespace().collect::<Vec<_>>().join(" "), format!("WARNING: {warning}"));
    assert!(said.len() == 2 && said.iter().all(|line| line.len() <= 80), "{said:?}");
}

#[test]
fn a_closed_loop_says_what_its_latency_hides() {
    let mut results = results();
    results["load"] = json!({ "model": "closed", "description": "as fast as answers come", "rate": null, "connections": 8, "threads": 2 });
    let table = Saved::new(&results).table();
    assert_has(&table, &["A closed loop sends nothing while it waits", "8 connections, 2 threads", "latency"]);
    assert!(!table.contains("corrected") && !table.contains("on schedule"), "{table}");
}

#[test]
fn a_run_without_answers_shows_dashes() {
    let mut results = results();
    let nothing = json!({ "count": 0, "mean": 0.0, "stdev": 0.0, "min": 0, "p50": 0, "p75": 0, "p90": 0, "p95": 0,
        "p99": 0, "p999": 0, "p9999": 0, "max": 0, "curve": [], "histogram": "" });
    for part in ["latency", "service_time"] {
        results[part] = nothing.clone();
    }
    results["classes"] = json!([]);
    results["timeline"] = json!([]);
    let saved = Saved::new(&results);
    assert_has(&saved.table(), &["corrected - - - - - - - -"]);
    loadtest(&["report", &saved.run, "--html", "/dev/null"]).assert_done();
}

#[test]
fn names_cannot_move_the_cursor() {
    let mut results = results();
    results["classes"][0]["name"] = json!("GET \u{1b}[2J/very/long/path/that/does/not/fit/into/any/column");
    let table = Saved::new(&results).table();
    assert!(!table.contains('\u{1b}'));
    assert_has(&table, &["GET ?[2J/very/long/path/tha..."]);
    assert!(table.lines().all(|line| line.chars().count() <= 100), "{table}");
}

#[test]
fn json_is_what_was_saved() {
    let saved = Saved::new(&results());
    let shown = loadtest(&["report", &saved.run, "--json", "-"]);
    shown.assert_done();
    assert_eq!(serde_json::from_str::<Value>(&shown.stdout).unwrap(), results());
}

#[test]
fn percentile_text_covers_every_request() {
    let saved = Saved::new(&results());
    let path = saved.path("run.hgrm");
    loadtest(&["report", &saved.run, "--hgrm", path.to_str().unwrap()]);
    let text = fs::read_to_string(path).unwrap();
    assert!(text.starts_with("       Value     Percentile TotalCount 1/(1-Percentile)\n\n"), "{text}");
    let rows: Vec<Vec<f64>> = text
        .lines()
        .skip(2)
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split_whitespace().map(|cell| cell.parse().unwrap()).collect())
        .collect();
    assert!(rows.windows(2).all(|pair| pair[0][0] <= pair[1][0] && pair[0][2] <= pair[1][2]), "{text}");
    let last = rows.last().unwrap();
    // Milliseconds, percentile, count: 300 ms, all of 30,000.
    assert!((last[0] - 300.2).abs() < 0.5 && last[1] == 1.0 && last[2] == 30_000.0, "{last:?}");
}

#[test]
fn a_full_disk_leaves_the_old_file_and_no_half_one() {
    let saved = Saved::new(&results());
    let full = saved.path("full");
    fs::create_dir(&full).unwrap();
    // A file system of its own, seen by this command only; 16 KiB, less than the results.
    let script = "mount -t tmpfs -o size=16k tmpfs \"$1\" && echo old > \"$1/run.json\" \
                  && { \"$0\" report \"$2\" --json \"$1/run.json\" > /dev/null; code=$?; cat \"$1/run.json\"; ls \"$1\"; exit $code; }";
    let in_namespace = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", "--mount", "sh", "-c", script, env!("CARGO_BIN_EXE_loadtest")]);
        ended(command.arg(&full).arg(&saved.run))
    };
    if in_namespace("mount -t tmpfs -o size=16k tmpfs \"$1\"").code != Some(0) {
        eprintln!("not tried: a file system cannot be mounted here");
        return;
    }
    let ended = in_namespace(script);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(1), "old\nrun.json\n"), "{}", ended.stderr);
    let expected = format!("loadtest: cannot write {}/run.json: No space left on device", full.display());
    assert!(ended.stderr.starts_with(&expected) && ended.stderr.lines().count() == 1, "{}", ended.stderr);
}

#[test]
fn a_full_device_is_said_and_the_table_is_there_all_the_same() {
    let saved = Saved::new(&results());
    for flag in ["--json", "--html", "--hgrm"] {
        let shown = loadtest(&["report", &saved.run, flag, "/dev/full"]);
        assert_eq!(shown.code, Some(1), "{shown:?}");
        assert!(shown.stderr.starts_with("loadtest: cannot write /dev/full: No space left on device"), "{shown:?}");
        assert_has(&shown.stdout, &["Target http://127.0.0.1:8080/"]);
    }
}

#[test]
fn places_that_cannot_be_written_are_found_first() {
    let saved = Saved::new(&results());
    let (missing, here) = (saved.path("missing/run.html"), saved.path(""));
    let there = |path: &Path| path.to_str().unwrap().to_owned();
    loadtest(&["report", &saved.run, "--html", &there(&missing)]).assert_failed_in_a_line(2, "there is no directory");
    loadtest(&["report", &saved.run, "--json", &there(&here)]).assert_failed_in_a_line(2, "it is a directory");
    loadtest(&["report", &saved.run, "--json", "-", "--html", "-"]).assert_failed_in_a_line(2, "only one of");
    loadtest(&["report", &saved.run, "--json", ""]).assert_failed(2, "standard output");
}

#[test]
fn foreign_files_are_refused() {
    let other_format = {
        let mut results = results();
        results["format"] = json!(2);
        results.to_string()
    };
    let no_counts = {
        let mut results = results();
        results["counts"] = json!(3);
        results.to_string()
    };
    for (text, part) in [
        ("", "not JSON: "),
        ("{}", "no key 'format': not a file that a run wrote with --json"),
        ("[1, 2]", "no key 'format'"),
        (&other_format, "results of format 2; this version reads 1"),
        (&no_counts, "not the results of a run: invalid type"),
    ] {
        loadtest(&["report", &Saved::text(text).run]).assert_failed_in_a_line(2, part);
    }
    loadtest(&["report", "/nowhere/run.json"])
        .assert_failed_in_a_line(2, "/nowhere/run.json: cannot be read: No such file");
    let mut results = results();
    results["latency"]["histogram"] = json!("AAAA");
    let shown = loadtest(&["report", &Saved::new(&results).run, "--hgrm", "-"]);
    shown.assert_failed_in_a_line(2, "latency.histogram is not an HdrHistogram");
}
