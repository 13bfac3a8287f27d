//! No pure function of the request's path may become dearer unnoticed: counts the instructions of every case with
//! valgrind and compares them with `instructions.txt`. Counts repeat to the instruction, on a busy machine too.
//!
//! valgrind counts a whole process. Two runs that differ in the number of calls give the cost of one call.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::thread;

use ringway_bench::cases;

/// Growth over its figure that a case is allowed, in parts of it, where compiler and machine are those of the figures.
const GROWTH_MAX: f64 = 0.03;
/// The same where they are not: other compilers and libraries count otherwise, but a copy or a loop too many still shows.
const GROWTH_ELSEWHERE_MAX: f64 = 0.25;
/// Instructions that are no growth.
const SLACK: f64 = 2.0;
/// A case that became cheaper by more than this part should get its new figure, or the gain can be lost unnoticed.
const GAIN_MAX: f64 = 0.10;

/// Calls of the two runs. The first ones may set things up; numbers of the same length are read at the same cost.
const CALLS: [u32; 2] = [100, 300];

const REFRESH: &str = "UPDATE_INSTRUCTIONS=1 cargo test --profile ci -p ringway-bench --test instructions";

/// `instructions.txt`.
#[derive(Debug, PartialEq)]
struct Figures {
    /// What they depend on besides the code, as [`made_with`] says it.
    made_with: String,
    cases: BTreeMap<String, f64>,
}

#[derive(Debug, PartialEq)]
enum Verdict {
    Good,
    Dearer,
    /// By so much that the figure no longer guards it.
    Cheaper,
    /// A case without a figure.
    New,
}

#[test]
fn no_function_has_become_dearer() {
    let binary = build();
    let made_with = made_with();
    let counted = count_all(&binary);
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("instructions.txt");
    let known = std::fs::read_to_string(&file).map(|text| Figures::parse(&text)).unwrap_or_else(|error| {
        panic!("{}: {error}\nTo make it: {REFRESH}", file.display());
    });
    let same = known.made_with == made_with;
    let growth_max = if same { GROWTH_MAX } else { GROWTH_ELSEWHERE_MAX };
    let judged: Vec<_> = counted
        .iter()
        .map(|(id, now)| {
            let figure = known.cases.get(id).copied();
            (id.as_str(), figure, *now, judge(figure, *now, growth_max, same))
        })
        .collect();
    println!("{}", table(&judged));
    if !same {
        println!(
            "The figures are of: {}\nThis is:            {made_with}\n\
             They differ, so that growth of up to {} % passes; to make figures for this machine: {REFRESH}",
            known.made_with,
            GROWTH_ELSEWHERE_MAX * 100.0
        );
    }
    if std::env::var_os("UPDATE_INSTRUCTIONS").is_some() {
        std::fs::write(&file, Figures { made_with, cases: counted }.to_string()).expect("the file can be written");
        println!("written: {}", file.display());
        return;
    }

    let of = |wanted: &Verdict| -> Vec<&str> {
        judged.iter().filter(|(.., verdict)| verdict == wanted).map(|(id, ..)| *id).collect()
    };
    let dearer = of(&Verdict::Dearer);
    assert!(
        dearer.is_empty(),
        "dearer by more than {} %: {dearer:?}. A request pays for this. If it has to be, refresh the figures and say why in \
         the commit: {REFRESH}",
        growth_max * 100.0
    );
    let new = of(&Verdict::New);
    assert!(new.is_empty(), "without a figure: {new:?}. To add it: {REFRESH}");
    let gone: Vec<_> = known.cases.keys().filter(|id| !counted_has(&judged, id)).collect();
    assert!(gone.is_empty(), "figures of cases that are no more: {gone:?}. To drop them: {REFRESH}");
    let cheaper = of(&Verdict::Cheaper);
    assert!(
        cheaper.is_empty(),
        "good news: cheaper by more than {} %: {cheaper:?}. Please keep the gain by refreshing the figures: {REFRESH}",
        GAIN_MAX * 100.0
    );
}

fn counted_has(judged: &[(&str, Option<f64>, f64, Verdict)], id: &str) -> bool {
    judged.iter().any(|(have, ..)| *have == id)
}

fn judge(figure: Option<f64>, now: f64, growth_max: f64, same: bool) -> Verdict {
    match figure {
        None => Verdict::New,
        Some(figure) if now > figure + (figure * growth_max).max(SLACK) => Verdict::Dearer,
        Some(figure) if same && now < figure - (figure * GAIN_MAX).max(SLACK) => Verdict::Cheaper,
        Some(_) => Verdict::Good,
    }
}

fn table(judged: &[(&str, Option<f64>, f64, Verdict)]) -> String {
    let mut table = format!("{:<34}{:>12}{:>12}{:>11}\n", "instructions a call", "figure", "now", "change");
    for (id, figure, now, verdict) in judged {
        let figure_text = figure.map_or("-".to_owned(), |figure| format!("{figure:.1}"));
        let change = figure.map_or("-".to_owned(), |figure| format!("{:+.1} %", (now / figure - 1.0) * 100.0));
        let mark = match verdict {
            Verdict::Good => String::new(),
            other => format!("  {other:?}"),
        };
        let _ = writeln!(table, "{id:<34}{figure_text:>12}{now:>12.1}{change:>11}{mark}");
    }
    table
}

impl Figures {
    fn parse(text: &str) -> Self {
        let made_with = text.lines().find_map(|line| line.strip_prefix(MADE_WITH)).unwrap_or_default().to_owned();
        let cases = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).map(|line| {
            let parts = line.split_once(char::is_whitespace);
            let figure = parts.and_then(|(id, count)| Some((id.to_owned(), count.trim().parse().ok()?)));
            figure.unwrap_or_else(|| panic!("instructions.txt: not a case and its figure: {line:?}"))
        });
        Self { made_with, cases: cases.collect() }
    }
}

const MADE_WITH: &str = "# made with: ";

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "# Instructions a call, guarded by tests/instructions.rs. To refresh:\n# {REFRESH}")?;
        writeln!(f, "{MADE_WITH}{}", self.made_with)?;
        self.cases.iter().try_for_each(|(id, count)| writeln!(f, "{id:<34}{count:>12.1}"))
    }
}

/// Builds the cases as a release is built, but for link-time optimization: half a minute the first time. Linked statically,
/// a run costs valgrind a fifth: there are no libraries to load and to look through.
fn build() -> PathBuf {
    let test = std::env::current_exe().expect("the path of this test");
    // TARGET/PROFILE/deps/TEST
    let target = test.ancestors().nth(3).expect("a target directory");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["rustc", "--quiet", "--locked", "--offline", "--profile", "counts"]);
    command.args(["-p", "ringway-bench", "--bin", "instructions", "--target-dir"]).arg(target);
    command.args(["--", "-C", "target-feature=+crt-static"]);
    // Flags of this machine would count otherwise.
    command.current_dir(env!("CARGO_MANIFEST_DIR")).env_remove("CARGO_ENCODED_RUSTFLAGS").env("RUSTFLAGS", "");
    let output = command.output().expect("cargo runs");
    assert!(output.status.success(), "{command:?} failed:\n{}", String::from_utf8_lossy(&output.stderr));
    target.join("counts/instructions")
}

/// What a count depends on besides the code: the compiler, the C library whose `memcpy` is called, and the instruction
/// sets that functions choose from at run time.
fn made_with() -> String {
    let first_line = |program: &str, argument: &str| {
        let output = Command::new(program).arg(argument).output();
        let output = output.unwrap_or_else(|error| panic!("{program}: {error}; this test needs it"));
        String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().trim().to_owned()
    };
    #[cfg(target_arch = "x86_64")]
    let machine = if std::arch::is_x86_feature_detected!("avx2") { "x86_64 with AVX2" } else { "x86_64 without AVX2" };
    #[cfg(not(target_arch = "x86_64"))]
    let machine = std::env::consts::ARCH;
    let libc = first_line("getconf", "GNU_LIBC_VERSION");
    format!("{}, {libc}, {}, {machine}", first_line("rustc", "--version"), first_line("valgrind", "--version"))
}

/// Instructions a call of every case.
fn count_all(binary: &Path) -> BTreeMap<String, f64> {
    let left = Mutex::new(cases::all().iter().map(cases::Case::id).collect::<Vec<_>>());
    let counted = Mutex::new(BTreeMap::new());
    let work = || {
        while let Some(id) = { left.lock().expect("a list").pop() } {
            let [few, many] = CALLS.map(|calls| count(binary, &id, calls));
            let a_call = (many as f64 - few as f64) / f64::from(CALLS[1] - CALLS[0]);
            counted.lock().expect("a map").insert(id, a_call);
        }
    };
    let at_once = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| (0..at_once).for_each(|_| drop(scope.spawn(work))));
    counted.into_inner().expect("a map")
}

/// Instructions of a whole run.
fn count(binary: &Path, id: &str, calls: u32) -> u64 {
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]).arg(binary).arg(id).arg(calls.to_string());
    // A process that starts looks through its environment.
    let path = std::env::var_os("PATH").unwrap_or_default();
    command.env_clear().env("PATH", path);
    let output = command.output().unwrap_or_else(|error| panic!("valgrind: {error}; Debian's package is `valgrind`"));
    let text = String::from_utf8_lossy(&output.stderr);
    let collected = text.lines().find_map(|line| line.split_once("Collected :")?.1.trim().parse().ok());
    match collected {
        Some(count) if output.status.success() => count,
        _ => panic!("{command:?} failed:\n{text}"),
    }
}

#[test]
fn growth_is_told_from_noise() {
    assert_eq!(judge(Some(100.0), 103.0, GROWTH_MAX, true), Verdict::Good);
    assert_eq!(judge(Some(100.0), 104.0, GROWTH_MAX, true), Verdict::Dearer);
    assert_eq!(judge(Some(100.0), 104.0, GROWTH_ELSEWHERE_MAX, false), Verdict::Good);
    assert_eq!(judge(Some(100.0), 126.0, GROWTH_ELSEWHERE_MAX, false), Verdict::Dearer);
    assert_eq!(judge(Some(100.0), 89.0, GROWTH_MAX, true), Verdict::Cheaper);
    assert_eq!(judge(Some(100.0), 89.0, GROWTH_ELSEWHERE_MAX, false), Verdict::Good);
    assert_eq!(judge(Some(5.0), 7.0, GROWTH_MAX, true), Verdict::Good);
    assert_eq!(judge(Some(5.0), 8.0, GROWTH_MAX, true), Verdict::Dearer);
    assert_eq!(judge(None, 1.0, GROWTH_MAX, true), Verdict::New);
}

#[test]
fn the_file_is_read_as_it_is_written() {
    let cases = BTreeMap::from([("path/plain".to_owned(), 12.5), ("stats/counter".to_owned(), 5.0)]);
    let figures = Figures { made_with: "rustc 1.95.0, x86_64".to_owned(), cases };
    assert_eq!(Figures::parse(&figures.to_string()), figures);
}
