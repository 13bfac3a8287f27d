//! Rate limits against a real Redis: the script's arithmetic.

use std::time::Instant;

use redis::{Connection, RedisResult};
use ringway_control::redis::LIMIT_SCRIPT;
use ringway_tests::redis::Redis;

/// What a call says, in the order of the script's arguments.
#[derive(Debug, Clone, Copy)]
struct Call {
    /// P, L, B
    policy: [i64; 3],
    divisor: i64,
    debt: i64,
    must: i64,
    extra: i64,
    held: i64,
    back: i64,
    hint_us: i64,
    max_wait_us: i64,
}

impl Call {
    fn greedy(policy: [i64; 3], must: i64) -> Self {
        Self { policy, divisor: 0, debt: 0, must, extra: 0, held: 0, back: 0, hint_us: 0, max_wait_us: 0 }
    }

    fn args(&self) -> [i64; 11] {
        let Self { policy: [p, l, b], divisor, debt, must, extra, held, back, hint_us, max_wait_us } = *self;
        [p, l, b, divisor, debt, must, extra, held, back, hint_us, max_wait_us]
    }
}

/// What is stored (microseconds and units) and what is answered, in whole numbers that cannot overflow.
fn expected(stored: Option<(i128, i128)>, now: i128, call: &Call) -> (Option<(i128, i128)>, [i128; 7]) {
    let [p, l, b, divisor, debt, must, extra, held, back, hint, max_wait] = call.args().map(i128::from);
    let ceil = |a: i128, b: i128| -(-a).div_euclid(b);
    let full = b * p;
    let mut d = stored.map_or(0, |(s, f)| ((s - now) * l + f).max(0));
    if d > 3 * full {
        d = full;
    }
    d = d.max((hint * l).min(full));
    d = (d - back * p).max(0) + debt * p;
    let mut level = (full - d).div_euclid(p);
    let granted = must.min(level.max(0));
    d += granted * p;
    level -= granted;
    let late = (full + max_wait * l - d).div_euclid(p).min(must - granted).max(0);
    let first = ceil(d + p - full, l).max(0);
    d += late * p;
    level -= late;
    let lease = if divisor > 0 { extra.min(level.max(0) / divisor - held).max(0) } else { 0 };
    d += lease * p;
    level -= lease;
    let retry = if level < 1 { ceil(d + p - full, l).max(0) } else { 0 };
    ((d > 0).then(|| (now + d / l, d % l)), [granted, late, first, lease, level, retry, ceil(d, l)])
}

struct Script {
    hash: String,
    connection: Connection,
}

impl Script {
    fn new(server: &Redis, text: &str) -> Self {
        let mut connection = redis::Client::open(server.url()).unwrap().get_connection().unwrap();
        let hash = redis::cmd("SCRIPT").arg("LOAD").arg(text).query(&mut connection).unwrap();
        Self { hash, connection }
    }

    fn call(&mut self, key: &str, call: &Call, more: &[i128]) -> [i128; 7] {
        let mut command = redis::cmd("EVALSHA");
        command.arg(&self.hash).arg(1).arg(key).arg(&call.args());
        for more in more {
            command.arg(more.to_string());
        }
        let answer: RedisResult<[i64; 7]> = command.query(&mut self.connection);
        answer.unwrap_or_else(|error| panic!("{error}: {call:?}")).map(i128::from)
    }

    fn time_us(&mut self) -> i64 {
        let [seconds, us]: [i64; 2] = redis::cmd("TIME").query(&mut self.connection).unwrap();
        seconds * 1_000_000 + us
    }
}

#[test]
fn the_script_computes_exactly() {
    let server = Redis::start();
    // On a clock of the test; the server's own must not end a key's life in between.
    let mut text = LIMIT_SCRIPT.to_owned();
    for (theirs, ours) in [
        ("redis.call('TIME')", "{ ARGV[12], ARGV[13] }"),
        ("'PX', string.format('%.0f', ceil(d / L / 1000) + 1)", "'KEEPTTL'"),
    ] {
        assert_eq!(text.matches(theirs).count(), 1, "{theirs}");
        text = text.replace(theirs, ours);
    }
    let mut script = Script::new(&server, &text);
    let seed =
        std::env::var("RINGWAY_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    println!("RINGWAY_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    // P, L: 100/min, 50/s, 333/s, 5,000/s, 7,777/s, 700,000/s, 3,000,000/s, 1/day.
    let rates = [
        (600_000, 1),
        (20_000, 1),
        (1_000_000, 333),
        (200, 1),
        (1_000_000, 7_777),
        (10, 7),
        (1, 3),
        (86_400_000_000, 1),
    ];
    for round in 0..400 {
        let (p, l) = random.choice(rates).unwrap();
        let most = ((1_i64 << 51) / p).min(1 << 30);
        // Bursts of all orders of magnitude.
        let b = random.i64(1..=most).min(1 << random.u32(0..=30)).max(1);
        let (key, mut now, mut stored) = (format!("{{key{round}}}"), 1_790_000_000_000_000_i128, None);
        let empty_us = b * p / l;
        for _ in 0..25 {
            let few = |random: &mut fastrand::Rng| if random.bool() { 0 } else { random.i64(0..=b / 4 + 2) };
            let call = Call {
                policy: [p, l, b],
                divisor: if random.bool() { 0 } else { 12 * random.i64(1..=16) },
                debt: few(&mut random),
                must: few(&mut random),
                extra: few(&mut random),
                held: few(&mut random),
                back: few(&mut random),
                hint_us: if random.bool() { 0 } else { random.i64(0..=empty_us * 2 + 1) },
                max_wait_us: random.choice([0, 2_000]).unwrap(),
            };
            let (next, answer) = expected(stored, now, &call);
            let time = [now / 1_000_000, now % 1_000_000];
            assert_eq!(script.call(&key, &call, &time), answer, "seed {seed}, stored {stored:?}, {call:?}");
            let kept: Option<String> = redis::cmd("GET").arg(&key).query(&mut script.connection).unwrap();
            assert_eq!(kept, next.map(|(s, f)| format!("{s}:{f}")), "seed {seed}, stored {stored:?}, {call:?}");
            stored = next;
            // Forward mostly; sometimes the clock leaps.
            now += match random.u32(0..10) {
                0 => -10_000_000,
                1 => 10_000_000,
                _ => i128::from(random.i64(0..=empty_us / 10 + 1)),
            };
        }
    }
}

#[test]
fn the_script_alone_grants_burst_and_rate_and_no_more() {
    let server = Redis::start();
    let mut script = Script::new(&server, LIMIT_SCRIPT);
    for (rate, p, l, b) in
        [(333, 1_000_000, 333, 10), (7_777, 1_000_000, 7_777, 777), (700_000, 10, 7, 7_000), (3_000_000, 1, 3, 30_000)]
    {
        let key = format!("ringway:{{greedy:{rate}}}");
        let call = Call::greedy([p, l, b], 1_000_000);
        let (mut granted, mut calls, mut gap_us) = (0, 0, 0);
        let first = script.time_us();
        let (mut last, start) = (first, Instant::now());
        let mut full_in_us = 0;
        while start.elapsed().as_millis() < 700 {
            let answer = script.call(&key, &call, &[]);
            (granted, full_in_us) = (granted + answer[0], answer[6]);
            calls += 1;
            let now = script.time_us();
            gap_us = gap_us.max(now - last);
            last = now;
        }
        let life_ms: i128 = redis::cmd("PTTL").arg(&key).query::<i64>(&mut script.connection).unwrap().into();
        assert!(life_ms <= full_in_us / 1000 + 2, "{life_ms} ms, full in {full_in_us} us");
        let tokens = |us: i64| i128::from(rate * us / 1_000_000);
        let most = i128::from(b) + tokens(last - first);
        // The bucket was asked for the last time, and for the first, within a gap of these times.
        let least = most - 2 - 3 * tokens(gap_us) - 1;
        println!("{rate}/s: {granted} of {most} in {calls} calls, at most {gap_us} us apart");
        assert!((least..=most).contains(&granted), "{rate}/s: {granted} is not within {least} and {most}");
    }
}
