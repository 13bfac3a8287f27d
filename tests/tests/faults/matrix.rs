//! One of three fails: failed requests, and the time until nobody notices any more.

use std::time::Duration;

use ringway_tests::steady::{Sample, Steady, percentile};
use ringway_tests::{PATIENCE, eventually};
use rustix::process::Signal;

use crate::{Fleet, rate, recommended};

struct Fault {
    name: &'static str,
    /// Of the origin that fails.
    flags: &'static [&'static str],
    begins: Signal,
    /// Failed requests of clients.
    failures_max: usize,
    /// What `/services` says why the endpoint is out, one of these; none where it stays.
    out: &'static [&'static str],
}

const GONE: &[&str] = &["connections to it fail", "cannot connect", IN_A_ROW];
const IN_A_ROW: &str = "requests fail, one after the other";

const FAULTS: [Fault; 8] = [
    Fault { name: "killed", flags: &[], begins: Signal::KILL, failures_max: 5, out: GONE },
    Fault {
        name: "frozen",
        flags: &[],
        begins: Signal::STOP,
        failures_max: 0,
        out: &["no answer within", IN_A_ROW, "connections to it fail"],
    },
    Fault {
        name: "slow (200 ms)",
        flags: &["--latency=200ms", "--on-signal"],
        begins: Signal::USR1,
        failures_max: 0,
        out: &[],
    },
    Fault {
        name: "answers 500",
        flags: &["--fail=100%", "--fail-status=500", "--on-signal"],
        begins: Signal::USR1,
        failures_max: 0,
        out: &["GET /health was answered with 500", IN_A_ROW],
    },
    Fault {
        name: "resets",
        flags: &["--reset=100%", "--on-signal"],
        begins: Signal::USR1,
        failures_max: 0,
        out: &["connection error", "connection closed", IN_A_ROW],
    },
    Fault {
        name: "closes after every answer",
        flags: &["--close=100%", "--on-signal"],
        begins: Signal::USR1,
        failures_max: 0,
        out: &[],
    },
    Fault {
        name: "the same, unannounced",
        flags: &["--hang-up=100%", "--on-signal"],
        begins: Signal::USR1,
        failures_max: 0,
        out: &[],
    },
    Fault { name: "ends gracefully", flags: &["--grace=5s"], begins: Signal::TERM, failures_max: 0, out: GONE },
];

/// Of requests in a tenth of a second: how many have failed, and the 99th percentile.
fn tenths(load: &Steady, from: Duration, to: Duration) -> Vec<(usize, Duration)> {
    let tenth = Duration::from_millis(100);
    let begins = (0..).map(|nth| from + tenth * nth).take_while(|begin| *begin + tenth <= to);
    let of = |samples: Vec<Sample>| (samples.iter().filter(|s| !s.is_good()).count(), percentile(&samples, 990));
    begins.map(|begin| of(load.between(begin, begin + tenth))).collect()
}

/// `peak_ewma` keeps away from what does not go well before anybody is told; `round_robin` sends there what it should.
#[track_caller]
fn run_both(fault: &Fault) {
    run(fault, "peak_ewma");
    run(fault, "round_robin");
}

#[track_caller]
fn run(fault: &Fault, balance: &str) {
    let (rate, is_free) = rate();
    let settings = recommended().replace("peak_ewma", balance);
    let fleet = Fleet::start([fault.flags, &[], &[]], &settings, "");
    let (bad, origin) = (&fleet.endpoints[0], &fleet.origins[0]);
    let load = fleet.load(rate);
    let begun = load.now();
    let usual = percentile(&load.between(begun.saturating_sub(Duration::from_secs(1)), begun), 990);
    origin.signal(fault.begins);

    let left = (!fault.out.is_empty()).then(|| {
        let mut word = fleet.seen(bad);
        eventually(PATIENCE, || {
            word = fleet.seen(bad);
            word["inUse"] == false
        });
        let at = load.now();
        let [state, why] = ["state", "why"].map(|key| word[key].as_str().unwrap_or_default().to_owned());
        assert!(["unhealthy", "ejected"].contains(&&*state), "{word}");
        assert!(fault.out.iter().any(|reason| why.contains(reason)), "{word}");
        let (log, line) = (fleet.gateway.stderr(), format!("endpoint `{bad}`: {state}"));
        let line = log.lines().find(|said| said.contains(&line)).unwrap_or_else(|| panic!("no {line} in {log}"));
        assert!(fault.out.iter().any(|reason| line.contains(reason)), "{line}");
        (at, why)
    });
    for endpoint in &fleet.endpoints {
        let word = fleet.seen(endpoint);
        assert!(["inFlight", "connections", "weight"].iter().all(|key| word[key].is_u64()), "{word}");
        assert!(word["latencyMs"].is_f64() && word["inUse"].is_boolean(), "{word}");
        assert!(word["state"] != "ejected" || word["ejectedForMs"].is_u64(), "{word}");
    }
    let after = Duration::from_secs(2);
    load.go_on(after);
    let end = load.now();
    let failed = load.failures();
    let tries = fleet.retries();

    // As usual, but for the pauses of a machine with other things to do.
    let normal = usual * 2 + Duration::from_millis(25);
    let all = tenths(&load, begun, end.saturating_sub(Duration::from_millis(300)));
    let worst = all.iter().map(|(_, p99)| *p99).max().unwrap_or_default();
    let recovered = all.iter().rposition(|(failed, p99)| *failed > 0 || *p99 > normal).map_or(0, |last| last + 1);
    let recovered = Duration::from_millis(100) * recovered as u32;
    let sent = load.between(begun, end).len();
    let left = left.map(|(at, why)| (at - begun, why));
    println!(
        "| {} | `{balance}` | {failed} of {sent} | {tries} | {} | {} ms | {} ms | {} ms |",
        fault.name,
        left.as_ref().map_or("stays".into(), |(at, why)| format!("{} ms: {why}", at.as_millis())),
        usual.as_millis(),
        worst.as_millis(),
        recovered.as_millis(),
    );
    assert!(failed <= fault.failures_max, "{}: {:?}", fault.name, load.statuses());
    if is_free {
        let limit = left.map_or(Duration::ZERO, |(at, _)| at) + Duration::from_secs(1);
        assert!(recovered <= limit, "{}: recovered after {recovered:?}, not {limit:?}: {all:?}", fault.name);
    }
    if fault.out.is_empty() {
        assert_eq!(fleet.seen(bad)["inUse"], true, "{}", fleet.seen(bad));
    } else {
        // Left out is left alone.
        let before = fleet.of(bad, "gateway_endpoint_requests_total");
        load.go_on(Duration::from_millis(500));
        assert_eq!(fleet.of(bad, "gateway_endpoint_requests_total"), before);
    }
    let breaker = &fleet.page()["circuitBreaker"];
    assert_eq!((&breaker["state"], &breaker["opened"]), (&"closed".into(), &0.into()), "{breaker}");
    assert!(breaker["requests"].as_u64() > Some(0), "{breaker}");
    assert!(
        !is_free || fleet.endpoints[1..].iter().all(|endpoint| fleet.seen(endpoint)["state"] == "healthy"),
        "{}",
        fleet.page()
    );
    if fault.begins == Signal::STOP {
        origin.signal(Signal::CONT);
    }
}

#[test]
fn slow() {
    // Nobody leaves it out: there is no error. The balance sends it next to nothing.
    run(&FAULTS[2], "peak_ewma");
}

macro_rules! faults {
    ($($test:ident: $index:expr,)*) => { $(#[test] fn $test() { run_both(&FAULTS[$index]); })* };
}

faults! {
    killed: 0,
    frozen: 1,
    answering_500: 3,
    resetting: 4,
    closing: 5,
    hanging_up: 6,
    ending_gracefully: 7,
}
