//! The script's arithmetic: exact at every rate, and the same in Lua, run by a real Redis where there is one.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use ringway_core::limit::script::{self, Reply, Request, Stored};
use ringway_core::limit::{Decision, Fallback, Limiter, Policy, Spec};

/// L and P of so many per second, without their common divisor.
fn reduced(rate: u64) -> (u64, u64) {
    let divisor = (1..=rate).rev().find(|n| rate.is_multiple_of(*n) && 1_000_000_u64.is_multiple_of(*n)).unwrap_or(1);
    (rate / divisor, 1_000_000 / divisor)
}

fn rates() -> impl Strategy<Value = u64> {
    prop::sample::select(vec![333, 7_777, 700_000, 3_000_000])
}

/// Irregular steps, in microseconds: from none at all to a tenth of a second.
fn steps() -> impl Strategy<Value = Vec<u64>> {
    prop::collection::vec(prop_oneof![0..3u64, 0..200u64, 0..100_000u64], 1..200)
}

/// Within [B + floor(rate * dt) - 1 - rate * gap, B + floor(rate * dt)], the gap being the longest time between two
/// calls, or whatever a bucket of that size could not hold of it.
fn assert_exact(granted: u64, rate: u64, burst: u64, steps: &[u64], gap_lost: u64) -> Result<(), TestCaseError> {
    let passed_us: u64 = steps.iter().sum();
    let most = burst + u64::try_from(u128::from(rate) * u128::from(passed_us) / 1_000_000).unwrap();
    prop_assert!(granted <= most, "{granted} granted, at most {most}");
    prop_assert!(granted + 1 + gap_lost >= most, "{granted} granted of {most}, {gap_lost} lost in gaps");
    Ok(())
}

/// Tokens for which a full bucket had no room, rounded up.
fn lost_in_gaps(rate: u64, burst: u64, steps: &[u64]) -> u64 {
    let lost =
        |us: &u64| (u128::from(rate) * u128::from(*us)).div_ceil(1_000_000).saturating_sub(u128::from(burst) - 1);
    u64::try_from(steps.iter().map(lost).sum::<u128>()).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn the_script_grants_the_rate_and_not_a_token_more(rate in rates(), burst in 1..100_000u64, steps in steps()) {
        let (per_us, token) = reduced(rate);
        let request = Request { token, per_us, burst, must: u64::from(u32::MAX), ..Request::default() };
        let (mut now_us, mut stored, mut granted) = (1_700_000_000_000_000, None, 0);
        for step in std::iter::once(&0).chain(&steps) {
            now_us += step;
            let (reply, after) = script::run(stored, &request, now_us);
            (granted, stored) = (granted + reply.granted, after);
            prop_assert_eq!(reply.late, 0);
        }
        assert_exact(granted, rate, burst, &steps, lost_in_gaps(rate, burst, &steps))?;
    }

    #[test]
    fn a_cell_by_itself_does_too(rate in rates(), burst in 1..2_000u64, steps in steps()) {
        let spec = Spec {
            name: "exact".into(),
            limit: rate,
            period: Duration::from_secs(1),
            burst,
            strict: false,
            without_redis: Fallback::FairShare,
            keys_max: 10,
        };
        let limiter = Limiter::new(Policy::new(&spec).unwrap());
        let (mut now_us, mut granted) = (12_345, 0);
        for step in std::iter::once(&0).chain(&steps) {
            now_us += step;
            while matches!(limiter.check(b"key", 1, now_us), Decision::Admitted(_)) {
                granted += 1;
            }
        }
        assert_exact(granted, rate, burst, &steps, lost_in_gaps(rate, burst, &steps))?;
    }
}

/// Two hours at a token's own pace: the sum of many steps is as exact as one.
#[test]
fn nothing_drifts() {
    for rate in [333, 7_777, 700_000, 3_000_000] {
        let (per_us, token) = reduced(rate);
        let request = Request { token, per_us, burst: rate, must: 1 << 40, ..Request::default() };
        let (mut now_us, mut stored, mut granted) = (1_700_000_000_000_000, None, 0);
        let started_us = now_us;
        for step in 0..1_000_000_u64 {
            let (reply, after) = script::run(stored, &request, now_us);
            (granted, stored) = (granted + reply.granted, after);
            now_us += 1 + (step * 7_919) % 14_401;
        }
        let passed_us = now_us - started_us;
        let most = rate + u64::try_from(u128::from(rate) * u128::from(passed_us) / 1_000_000).unwrap();
        assert!(
            granted <= most && granted + 1 + rate * 14_401 / 1_000_000 + 1 >= most,
            "{granted} of {most} at {rate}/s"
        );
    }
}

/// A Redis of the test's own, on a socket in a directory of its own.
struct Redis {
    process: Child,
    stream: BufReader<UnixStream>,
    _directory: Directory,
}

struct Directory(std::path::PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Value {
    Nothing,
    Number(i64),
    Text(String),
    List(Vec<Value>),
}

impl Redis {
    /// `None`: there is no `redis-server` on this machine.
    fn start() -> Option<Self> {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let directory = std::env::temp_dir().join(format!("ringway-limit-{}-{port}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let directory = Directory(directory);
        let socket = directory.0.join("redis.sock");
        let process = Command::new("redis-server")
            .args(["--port", "0", "--save", "", "--unixsocket"])
            .arg(&socket)
            .stdout(Stdio::null())
            .spawn()
            .ok()?;
        let stream = BufReader::new(connect(&socket));
        Some(Self { process, stream, _directory: directory })
    }

    fn command(&mut self, words: &[String]) -> Value {
        let mut out = format!("*{}\r\n", words.len());
        for word in words {
            out.push_str(&format!("${}\r\n{word}\r\n", word.len()));
        }
        self.stream.get_mut().write_all(out.as_bytes()).unwrap();
        self.value()
    }

    fn value(&mut self) -> Value {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        let (kind, rest) = line.trim_end().split_at(1);
        match kind {
            ":" => Value::Number(rest.parse().unwrap()),
            "+" => Value::Text(rest.into()),
            "$" if rest == "-1" => Value::Nothing,
            "$" => {
                let mut text = vec![0; rest.parse::<usize>().unwrap() + 2];
                self.stream.read_exact(&mut text).unwrap();
                text.truncate(text.len() - 2);
                Value::Text(String::from_utf8(text).unwrap())
            }
            "*" => Value::List((0..rest.parse::<usize>().unwrap()).map(|_| self.value()).collect()),
            _ => panic!("{line}"),
        }
    }

    /// The script on a key that holds `stored`, at the time `now_us`: what it answers and leaves.
    fn run(&mut self, source: &str, stored: Option<Stored>, request: &Request, now_us: u64) -> (Reply, Option<Stored>) {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        match stored {
            Some(at) => self.command(&words(&["SET", "k", &format!("{}:{}", at.us, at.units)])),
            None => self.command(&words(&["DEL", "k"])),
        };
        let mut call = words(&["EVAL", source, "1", "k"]);
        call.extend(request.arguments().iter().map(u64::to_string));
        call.extend([(now_us / 1_000_000).to_string(), (now_us % 1_000_000).to_string()]);
        let Value::List(answer) = self.command(&call) else { panic!("no answer") };
        let number = |value: &Value| match value {
            Value::Number(number) => *number,
            other => panic!("{other:?}"),
        };
        let reply = Reply::from_numbers(&answer.iter().map(number).collect::<Vec<_>>()).unwrap();
        let stored = match self.command(&words(&["GET", "k"])) {
            Value::Text(text) => {
                let (us, units) = text.split_once(':').unwrap();
                Some(Stored { us: us.parse().unwrap(), units: units.parse().unwrap() })
            }
            _ => None,
        };
        if let (Some(_), Value::Number(left_ms)) = (stored, self.command(&words(&["PTTL", "k"]))) {
            let expected_ms = i64::try_from(reply.full_after_us.div_ceil(1_000)).unwrap() + 1;
            assert!(left_ms <= expected_ms + 1 && left_ms > expected_ms - 5_000, "{left_ms} of {expected_ms} ms");
        }
        (reply, stored)
    }
}

fn connect(socket: &Path) -> UnixStream {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return stream,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        std::thread::yield_now();
    }
}

/// Requests and states of all kinds, the impossible among them.
fn some_call() -> impl Strategy<Value = (Option<Stored>, Request, u64)> {
    let policy = prop_oneof![
        Just((600_000, 1, 100)),
        Just((20_000, 1, 50)),
        Just((200, 1, 5_000)),
        Just((1_000_000, 333, 333)),
        Just((1_000_000, 7_777, 100_000)),
        Just((10, 7, 700_000)),
        Just((1, 3, 1)),
        // Three of its buckets and the time stay below 2^53.
        Just((1 << 30, 1, 1 << 19)),
    ];
    let now_us = 1_600_000_000_000_000..2_000_000_000_000_000_u64;
    (policy, now_us, any::<[u64; 9]>(), prop::bool::weighted(0.8)).prop_map(
        |((token, per_us, burst), now_us, chance, is_stored)| {
            let full_us: u64 = burst * token / per_us;
            let part = |of: u64, chance: u64| if chance.is_multiple_of(4) { 0 } else { chance % (of + 1) };
            let stored = is_stored.then(|| Stored {
                us: now_us.saturating_add_signed((part(full_us * 4, chance[0]) as i64) - (full_us / 2) as i64),
                units: chance[1] % per_us,
            });
            let request = Request {
                token,
                per_us,
                burst,
                divisor: [0, 12, 48, 192][(chance[2] % 4) as usize],
                debt: part(burst, chance[3]),
                must: part(burst * 2, chance[4]),
                extra: part(burst, chance[5]),
                held: part(burst / 12, chance[6]),
                back: part(burst / 12, chance[7]),
                hint_us: part(full_us * 2, chance[8]),
                wait_us_max: 2_000,
            };
            (stored, request, now_us)
        },
    )
}

#[test]
fn lua_and_rust_agree() {
    let Some(mut redis) = Redis::start() else {
        eprintln!("no redis-server here: nothing is compared");
        return;
    };
    // The script with a time that the test chooses.
    let source = script::SOURCE.replace("redis.call('TIME')", "{ARGV[12], ARGV[13]}");
    assert_ne!(source, script::SOURCE);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(3_000));
    let redis = std::cell::RefCell::new(&mut redis);
    let result = runner.run(&some_call(), |(stored, request, now_us)| {
        let (reply, after) = redis.borrow_mut().run(&source, stored, &request, now_us);
        let (expected, kept) = script::run(stored, &request, now_us);
        prop_assert_eq!(reply, expected);
        // What is kept for moments only may have ended before it was read.
        let may_have_ended = expected.full_after_us < 500_000 && after.is_none();
        prop_assert!(may_have_ended || after == kept, "{:?} instead of {:?}", after, kept);
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    let time = redis.borrow_mut().run(
        script::SOURCE,
        None,
        &Request { token: 200, per_us: 1, burst: 10, must: 3, ..Request::default() },
        0,
    );
    assert_eq!(time.0.granted, 3);
}
