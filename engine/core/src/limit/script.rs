//! The script that Redis runs for a call, and the same arithmetic in Rust: what it decides can be tested, and simulated,
//! without a Redis.

/// The script, for `SCRIPT LOAD` and `EVALSHA`: one key, the arguments of [`Request::arguments`], the answer of
/// [`Reply::from_numbers`].
pub const SOURCE: &str = include_str!("limit.lua");

/// What one call tells and asks. Tokens, but for what is said to be otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Request {
    /// P: units that a token costs.
    pub token: u64,
    /// L: units in a microsecond.
    pub per_us: u64,
    /// B.
    pub burst: u64,
    /// What the level is divided by to get the most that this instance may hold; 0: no leases.
    pub divisor: u64,
    /// Admitted already, and unreported.
    pub debt: u64,
    /// Wanted by requests that are held.
    pub must: u64,
    /// Wanted as a lease, beyond what is in hand.
    pub extra: u64,
    /// The lease in hand.
    pub held: u64,
    /// Given back.
    pub back: u64,
    /// By how much the bucket is known to be short of full, in microseconds.
    pub hint_us: u64,
    /// How long a held request may still wait, in microseconds.
    pub wait_us_max: u64,
}

/// What a call brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reply {
    /// g: tokens for held requests, now.
    pub granted: u64,
    /// Tokens for held requests that come within the longest wait.
    pub late: u64,
    /// d0: when the first of those comes, in microseconds.
    pub late_after_us: u64,
    /// e: tokens leased.
    pub leased: u64,
    /// What the bucket holds now; negative: it is owed.
    pub level: i64,
    /// When the next token comes, in microseconds; 0 where there is one.
    pub retry_us: u64,
    /// When the bucket is full, in microseconds.
    pub full_after_us: u64,
}

impl Request {
    /// As the script takes them.
    pub fn arguments(&self) -> [u64; 11] {
        [
            self.token,
            self.per_us,
            self.burst,
            self.divisor,
            self.debt,
            self.must,
            self.extra,
            self.held,
            self.back,
            self.hint_us,
            self.wait_us_max,
        ]
    }
}

impl Reply {
    /// From the script's answer. `None`: this is not one.
    pub fn from_numbers(numbers: &[i64]) -> Option<Self> {
        let [granted, late, late_after_us, leased, level, retry_us, full_after_us] = *numbers else { return None };
        let count = |number: i64| u64::try_from(number).ok();
        Some(Self {
            granted: count(granted)?,
            late: count(late)?,
            late_after_us: count(late_after_us)?,
            leased: count(leased)?,
            level,
            retry_us: count(retry_us)?,
            full_after_us: count(full_after_us)?,
        })
    }
}

/// What Redis keeps of a key: the time at which its bucket is full, in whole microseconds and units.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    pub us: u64,
    pub units: u64,
}

/// Runs the script on `stored` at Redis' time `now_us`.
pub fn run(stored: Option<Stored>, request: &Request, now_us: u64) -> (Reply, Option<Stored>) {
    let wide = i128::from;
    let (token, per_us) = (wide(request.token).max(1), wide(request.per_us).max(1));
    let full = wide(request.burst) * token;
    let mut short = stored.map_or(0, |at| (wide(at.us) - wide(now_us)) * per_us + wide(at.units)).max(0);
    if short > 3 * full {
        // Redis' clock went back.
        short = full;
    }
    // Redis forgot, or its clock leapt ahead.
    short = short.max((wide(request.hint_us) * per_us).min(full));
    short = (short - wide(request.back) * token).max(0) + wide(request.debt) * token;
    let mut level = (full - short).div_euclid(token);

    let must = wide(request.must);
    let granted = must.min(level.max(0));
    short += granted * token;
    level -= granted;
    let soon = (full + wide(request.wait_us_max) * per_us - short).div_euclid(token);
    let late = soon.min(must - granted).max(0);
    let late_after_us = ceil(short + token - full, per_us).max(0);
    short += late * token;
    level -= late;
    let divisor = wide(request.divisor);
    let leased =
        if divisor > 0 { wide(request.extra).min(level.max(0) / divisor - wide(request.held)).max(0) } else { 0 };
    short += leased * token;
    level -= leased;
    let retry_us = if level < 1 { ceil(short + token - full, per_us).max(0) } else { 0 };

    let count = |number: i128| u64::try_from(number).unwrap_or(u64::MAX);
    let reply = Reply {
        granted: count(granted),
        late: count(late),
        late_after_us: count(late_after_us),
        leased: count(leased),
        level: i64::try_from(level).unwrap_or(i64::MIN),
        retry_us: count(retry_us),
        full_after_us: count(ceil(short, per_us)),
    };
    let stored = Stored { us: now_us.saturating_add(count(short / per_us)), units: count(short % per_us) };
    (reply, (short > 0).then_some(stored))
}

fn ceil(a: i128, b: i128) -> i128 {
    -(-a).div_euclid(b)
}
