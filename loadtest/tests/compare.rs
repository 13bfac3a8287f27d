//! `loadtest compare` through the real binary, with the real gateway.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};

use ringway_tests::{PATIENCE, binary, eventually};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Each of these tests uses both cores.
static ALONE: Mutex<()> = Mutex::new(());

fn command(temporary: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loadtest"));
    command.arg("compare").args(args).arg("--ringway").arg(binary());
    command.env("TMPDIR", temporary).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn text(output: &Output) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    format!("{err}\n{out}")
}

fn children(parent: u32) -> Vec<u32> {
    let all = std::fs::read_dir("/proc").expect("/proc").flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let fields = stat.rsplit_once(')').map(|(_, rest)| rest).unwrap_or("");
        fields.split_ascii_whitespace().nth(1) == Some(&parent.to_string())
    })
    .collect()
}

/// Neither running nor waiting to be reaped by this test.
fn is_gone(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    matches!(state, None | Some('Z' | 'X'))
}

/// A comparison that would take long, with its origin and its proxy up.
fn started(temporary: &Path) -> (Child, Vec<u32>) {
    let mut command = command(temporary, &["--only=ringway", "--cases=get-100@4", "--secs=60"]);
    let child = command.process_group(0).spawn().expect("the binary starts");
    let mut pids = Vec::new();
    eventually(PATIENCE, || {
        pids = children(child.id());
        pids.len() == 2
    });
    (child, pids)
}

#[test]
fn ringway_is_measured_and_nothing_is_left_behind() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let temporary = tempfile::tempdir().expect("a directory");
    let results = tempfile::tempdir().expect("a directory");
    let (file, page) = (results.path().join("compare.json"), results.path().join("compare.html"));
    let output = command(
        temporary.path(),
        &[
            "--only=ringway",
            "--cases=get-100@8,get-16k@8,post-2k@8,new-connection@8",
            "--secs=1",
            "--repeat=1",
            &format!("--json={}", file.display()),
            &format!("--html={}", page.display()),
        ],
    )
    .output()
    .expect("the binary runs");
    assert!(output.status.success(), "{}", text(&output));

    let results: Value = serde_json::from_str(&std::fs::read_to_string(&file).expect("a file")).expect("JSON");
    assert_eq!(results["proxies"][0]["name"], "ringway");
    let rows = results["rows"].as_array().expect("rows");
    let cases: Vec<_> = rows.iter().map(|row| row["case"].as_str().expect("a name")).collect();
    assert_eq!(cases, ["get-100@8", "get-16k@8", "post-2k@8", "new-connection@8"]);
    let cpu = |row: &Value| row["cpu_us_per_request"].as_f64().expect("a number");
    for row in rows {
        assert_eq!(row["bad"], 0, "{row}");
        assert!(cpu(row) > 1.0, "{row}");
        assert!(row["runs"][0]["requests"].as_u64().is_some_and(|requests| requests > 100), "{row}");
    }
    assert!(cpu(&rows[3]) > cpu(&rows[0]), "a new connection costs more than none: {}", text(&output));
    let page = std::fs::read_to_string(&page).expect("a page");
    assert!(page.contains("<svg") && page.contains("new-connection@8"));
    assert!(text(&output).contains("1/1 ringway  post-2k@8"), "{}", text(&output));
    let left: Vec<PathBuf> =
        std::fs::read_dir(temporary.path()).expect("a directory").flatten().map(|e| e.path()).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn ctrl_c_ends_the_children_and_removes_their_files() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let temporary = tempfile::tempdir().expect("a directory");
    let (child, pids) = started(temporary.path());
    kill_process(Pid::from_child(&child), Signal::INT).expect("a signal");
    let output = child.wait_with_output().expect("an end");
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("loadtest: interrupted"), "{}", text(&output));
    assert!(pids.iter().all(|pid| is_gone(*pid)), "{pids:?}");
    assert_eq!(std::fs::read_dir(temporary.path()).expect("a directory").count(), 0);
}

#[test]
fn children_do_not_outlive_a_killed_comparison() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let temporary = tempfile::tempdir().expect("a directory");
    let (mut child, pids) = started(temporary.path());
    child.kill().expect("a signal");
    child.wait().expect("an end");
    eventually(PATIENCE, || pids.iter().all(|pid| is_gone(*pid)));
}

#[test]
fn wrong_flags_and_programs_are_said_in_one_line() {
    for (args, code, expected) in [
        (&["--only=apache"][..], 2, "possible values: ringway, nginx, haproxy, envoy"),
        (&["--cases=get-1"], 2, "'get-1' is none of get-100"),
        (&["--secs=0"], 2, "1..=600"),
        (&["--json=/nonexistent/x.json"], 2, "/nonexistent"),
        (&["--only=ringway", "--ringway=/nonexistent/ringway"], 2, "/nonexistent/ringway does not run"),
        // Not a gateway: it ends at once, and its last words are shown.
        (&["--only=ringway", "--ringway=/bin/ls"], 1, "ringway ended at once"),
        (&["--exec-on=99999", "--", "/bin/true"], 1, "cannot prepare for core 99999: there is no such core"),
        // Started by someone who died before the child could ask to die with them.
        (&["--exec-on=0", "--child-of=1", "--", "/bin/true"], 1, "whoever started it is gone"),
    ] {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let output = Command::new(env!("CARGO_BIN_EXE_loadtest")).arg("compare").args(args).output();
        let output = output.expect("the binary runs");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
        assert!(stderr.contains(expected), "{args:?}: {stderr}");
    }
}
