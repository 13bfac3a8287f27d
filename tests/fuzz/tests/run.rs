//! Runs every fuzz target on stable Rust: first over its corpus, then over mutations of it, for a bounded time.
//!
//! A run is reproducible: `RINGWAY_FUZZ_SEED` sets the seed, `RINGWAY_FUZZ_SECONDS` the time for each target (default 3).
//! A failure prints the seed and the input; saved as a file of the corpus it is tried first from then on.

mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Instant;

use ringway_core::random::Random;
use ringway_fuzz::{TARGETS, Target};
use support::{duration, mutate, seed};

/// The files of a target's corpus, in the order of their names.
fn corpus(target: &Target) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name);
    let files = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

fn run(target: &Target, input: &[u8], origin: impl FnOnce() -> String) {
    if catch_unwind(AssertUnwindSafe(|| (target.run)(input))).is_err() {
        let hex: String = input.iter().map(|byte| format!("{byte:02x}")).collect();
        panic!(
            "{} failed on {}\nescaped: b\"{}\"\nhex: {hex}\nTo keep it: echo {hex} | xxd -r -p > tests/fuzz/corpus/{}/NAME",
            target.name,
            origin(),
            input.escape_ascii(),
            target.name,
        );
    }
}

fn fuzz(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).unwrap();
    let corpus = corpus(target);
    assert!(corpus.len() >= 20, "a corpus of {} files", corpus.len());
    for (path, input) in &corpus {
        run(target, input, || path.display().to_string());
    }
    let (seed, started, duration) = (seed(), Instant::now(), duration());
    let mut random = Random(seed);
    let mut runs = 0u64;
    while started.elapsed() < duration {
        let mut input = corpus[random.index(corpus.len())].1.clone();
        mutate(&mut input, &corpus[random.index(corpus.len())].1, target.dictionary, &mut random);
        run(target, &input, || format!("input {runs} of seed {seed}"));
        runs += 1;
    }
    println!("{name}: {} files of the corpus, {runs} mutations of seed {seed}", corpus.len());
}

#[test]
fn request_head() {
    fuzz("request_head");
}

#[test]
fn response_head() {
    fuzz("response_head");
}

#[test]
fn chunked() {
    fuzz("chunked");
}

#[test]
fn path() {
    fuzz("path");
}

#[test]
fn config() {
    fuzz("config");
}

#[test]
fn template() {
    fuzz("template");
}

#[test]
fn trace() {
    fuzz("trace");
}

#[test]
fn cors() {
    fuzz("cors");
}

#[test]
fn json_body() {
    fuzz("json_body");
}

#[test]
fn token() {
    fuzz("token");
}

#[test]
fn jwks() {
    fuzz("jwks");
}

#[test]
fn api_keys() {
    fuzz("api_keys");
}

#[test]
fn proxy_protocol() {
    fuzz("proxy_protocol");
}

#[test]
fn tls_record() {
    fuzz("tls_record");
}

#[test]
fn http2_client() {
    fuzz("http2_client");
}

#[test]
fn http2_service() {
    fuzz("http2_service");
}

#[test]
fn every_target_has_a_test_and_a_corpus() {
    let names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
    let tested = "request_head response_head chunked path config template trace cors json_body token jwks api_keys proxy_protocol tls_record http2_client http2_service";
    assert_eq!(names.join(" "), tested);
    let folders = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")).unwrap();
    assert_eq!(folders.count(), TARGETS.len());
}
