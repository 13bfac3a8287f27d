//! The page, opened in Chromium: it needs nothing else, runs without errors, and shows the figures.

use std::fs;
use std::process::Command;

use crate::support::{ended, loadtest, results};
use serde_json::{Value, json};

/// What the browser made of a page.
struct Opened {
    dom: String,
    /// What scripts and the page's policy complained about.
    console: Vec<String>,
}

fn page(results: &Value) -> String {
    let directory = tempfile::tempdir().unwrap();
    let [run, html] = ["run.json", "run.html"].map(|name| directory.path().join(name).display().to_string());
    fs::write(&run, results.to_string()).unwrap();
    loadtest(&["report", &run, "--html", &html, "--json", "/dev/null"]);
    fs::read_to_string(html).unwrap()
}

fn open(page: &str) -> Opened {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("page.html");
    fs::write(&path, page).unwrap();
    let ended = ended(
        Command::new("chromium")
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"])
            .args(["--enable-logging=stderr", "--v=0", "--dump-dom"])
            .arg(format!("--user-data-dir={}", directory.path().join("profile").display()))
            .arg(format!("file://{}", path.display())),
    );
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let console = ended.stderr.lines().filter(|line| line.contains("CONSOLE")).map(str::to_owned).collect();
    Opened { dom: ended.stdout, console }
}

#[test]
fn the_page_runs_without_errors_and_shows_the_figures() {
    let opened = open(&page(&results()));
    assert_eq!(opened.console, [""; 0]);
    let dom = &opened.dom;
    assert!(dom.contains("<title>Load test of http://127.0.0.1:8080/</title>"));
    for heading in
        ["Summary", "Latency", "Over time", "By class and status", "Errors", "The generator itself", "Environment"]
    {
        assert!(dom.contains(&format!("<h2>{heading}</h2>")), "{heading}");
    }
    for figure in [
        "1,000/s",
        "480 MB, 128 Mbit/s",
        "GET /products",
        "Example CPU 3.0 GHz, 2 cores",
        "Linux 6.18.0 x86_64",
        "timeout",
    ] {
        assert!(dom.contains(figure), "{figure}");
    }
    // Each of the four charts has a name for readers of screens, its figures as a table, and its script running.
    let charts = dom.matches("<figure").count();
    assert_eq!(charts, 4);
    assert_eq!(dom.matches("<svg class=\"lines\"").count(), charts);
    assert_eq!(dom.matches("role=\"img\" aria-label=\"").count(), charts);
    assert_eq!(dom.matches("<details>").count(), charts);
    assert_eq!(dom.matches("data-ready=\"true\"").count(), charts);
    assert!(!dom.contains("class=\"warnings\""));
}

#[test]
fn the_page_needs_nothing_else() {
    let page = page(&results());
    for word in ["src=", "href=", "url(", "@import", "fetch(", "XMLHttpRequest"] {
        assert!(!page.contains(word), "{word}");
    }
    assert!(page.contains("default-src 'none'"));
    assert!(page.contains("prefers-color-scheme: dark"));
    assert!(!page.contains("NaN") && !page.contains(">inf"));
}

#[test]
fn a_pointer_over_a_chart_reads_its_figures_out() {
    let script = "<script>
        const chart = document.querySelector('svg.lines');
        const box = chart.getBoundingClientRect();
        const event = new PointerEvent('pointermove', { clientX: box.left + box.width / 2, clientY: box.top + 10 });
        chart.dispatchEvent(event);
    </script></body>";
    let opened = open(&page(&results()).replace("</body>", script));
    assert_eq!(opened.console, [""; 0]);
    let output = opened.dom.split("<output>").nth(1).unwrap().split('<').next().unwrap();
    assert!(output.starts_with("Percentile 9"), "{output}");
    assert!(output.contains(", corrected ") && output.contains(", service time "), "{output}");
    assert!(opened.dom.contains("visibility=\"visible\""));
}

#[test]
fn names_do_not_become_markup() {
    let bad = "</script><script>document.title = 'taken'</script><img src=x onerror=\"document.title='taken'\">";
    let mut results = results();
    results["target"] = json!(bad);
    results["started"] = json!(bad);
    results["load"]["description"] = json!(bad);
    results["classes"][0]["name"] = json!(bad);
    results["errors"][0]["kind"] = json!(bad);
    results["generator"]["warnings"] = json!([bad]);
    for (_, text) in results["environment"].as_object_mut().unwrap().iter_mut().filter(|(_, value)| value.is_string()) {
        *text = json!(bad);
    }
    results["environment"]["command_line"] = json!(["loadtest", bad]);
    let opened = open(&page(&results));
    assert_eq!(opened.console, [""; 0]);
    assert!(opened.dom.contains("<title>Load test of &lt;/script&gt;"), "not taken");
    assert_eq!((opened.dom.matches("<script>").count(), opened.dom.matches("<img").count()), (1, 0));
    assert!(opened.dom.contains("class=\"warnings\""));
}

#[test]
fn a_long_run_has_no_more_points_than_a_chart_can_show() {
    let mut results = results();
    let second = results["timeline"][10].clone();
    let seconds = (0..3_600).map(|at| {
        let mut second = second.clone();
        second["at"] = json!(f64::from(at));
        second["max"] = json!(if at == 1_801 { 5_000_000 } else { 1_000 });
        second
    });
    results["timeline"] = json!(seconds.collect::<Vec<_>>());
    let page = page(&results);
    assert!(page.contains("Each point stands for 12 seconds"));
    assert!(page.matches("<tr data-x=").count() < 3 * 300 + 200);
    assert!(page.contains("<td>5 s</td>"), "the worst second is not lost");
}

#[test]
fn an_error_of_a_script_would_be_seen() {
    let opened = open("<!doctype html><title>broken</title><script>nothing.there()</script>");
    assert_eq!(opened.console.len(), 1);
    assert!(opened.console[0].contains("nothing is not defined"), "{}", opened.console[0]);
}
