//! Whatever a file holds, the answer is a snapshot or errors, never a panic.

mod common;

use common::{env, repository};
use ringway_config::{Errors, Snapshot, Source, compile};
use ringway_core::random::Random;

const TOKENS: [&str; 36] = [
    "{",
    "}",
    "[",
    "]",
    ":",
    ": ",
    "- ",
    "\n",
    "\n  ",
    "\t",
    "#",
    "&a ",
    "*a",
    "!x ",
    "|\n",
    ">\n",
    "\"",
    "'",
    "? ",
    ",",
    "---\n",
    "...\n",
    "%YAML 1.2\n",
    "${",
    "${env:SECRET}",
    "${file:/etc/hostname}",
    "$$",
    "~",
    "off",
    "0",
    "-1",
    "99999999999999999999",
    "\u{feff}",
    "\u{0}",
    "ü",
    "<<: ",
];

/// Changes `text` in one place.
fn mutate(text: &mut String, random: &mut Random) {
    let lines: Vec<&str> = text.lines().collect();
    match random.index(6) {
        0 => {
            let line = random.index(lines.len());
            *text = lines
                .iter()
                .enumerate()
                .filter(|(index, _)| *index != line)
                .map(|(_, line)| format!("{line}\n"))
                .collect();
        }
        1 => {
            let (from, to) = (random.index(lines.len()), random.index(lines.len()));
            let mut lines: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
            if let Some(line) = lines.get(from).cloned() {
                lines.insert(to, line);
            }
            *text = lines.join("\n");
        }
        2 => {
            let at = boundary(text, random.index(text.len() + 1));
            let end = boundary(text, at + random.index(20));
            text.replace_range(at..end.max(at), "");
        }
        3 => text.truncate(boundary(text, random.index(text.len() + 1))),
        _ => {
            let at = boundary(text, random.index(text.len() + 1));
            text.insert_str(at, TOKENS[random.index(TOKENS.len())]);
        }
    }
}

fn boundary(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

/// As a file beside the examples, so that the files that it names are found.
fn compiled(text: &str) -> Result<Snapshot, Errors> {
    let name = repository().join("configs/mutated.yaml").to_str().unwrap().into();
    compile(&[Source { name, text: text.into() }], &env)
}

/// 1,500 mutated files; `RINGWAY_FUZZ_SEED` replays one of them, `RINGWAY_FUZZ_RUNS` changes their number.
#[test]
fn mutations_of_the_reference_never_panic() {
    let original = std::fs::read_to_string(repository().join("configs/reference.yaml")).unwrap();
    // Without comments, so that more mutations hit what is read.
    let original: String = original
        .lines()
        .map(|line| line.split("  #").next().unwrap_or("").trim_end())
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| format!("{line}\n"))
        .collect();
    assert!(compiled(&original).is_ok());
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let seeds = match number("RINGWAY_FUZZ_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("RINGWAY_FUZZ_RUNS").unwrap_or(1_500),
    };
    let (mut good, mut bad) = (0, 0);
    for seed in seeds {
        let mut random = Random(seed);
        let mut text = original.clone();
        for _ in 0..=random.index(4) {
            mutate(&mut text, &mut random);
        }
        let result = std::panic::catch_unwind(|| compiled(&text).map(|_| ()).map_err(|errors| errors.to_string()));
        match result.unwrap_or_else(|_| panic!("panicked with RINGWAY_FUZZ_SEED={seed}")) {
            Ok(()) => good += 1,
            Err(said) => {
                assert!(said.lines().count() >= 2, "seed {seed}: {said}");
                bad += 1;
            }
        }
    }
    println!("{good} still compiled, {bad} were refused");
}
