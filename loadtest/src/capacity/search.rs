//! The search for the highest rate that holds: growth, bisection, confirmation. Pure: a probe is a function.

use serde::Serialize;

/// How to search.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// First rate that is tried, requests per second.
    pub(crate) start: f64,
    /// No rate above this one is tried.
    pub(crate) rate_max: Option<f64>,
    /// Runs at the rate that was found; more than half of them must hold.
    pub(crate) repeats: usize,
}

/// Part of the search that a probe belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Stage {
    Grow,
    Bisect,
    Confirm,
}

/// What a run at one rate has shown.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "verdict", content = "why")]
pub(crate) enum Verdict {
    Holds,
    /// The target does not hold the SLO; why, in words.
    Breaks(String),
    /// The generator could not keep its schedule: nothing is known about the target.
    Generator(String),
}

/// What ended the search upwards.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Limit {
    Slo(String),
    Generator(String),
    RateMax,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Outcome {
    Found {
        rate: f64,
        limit: Limit,
    },
    /// Not even `rate` holds.
    Never {
        rate: f64,
        why: String,
    },
}

/// The search ends when the lowest rate that breaks is at most this far above the highest that holds.
const PRECISION: f64 = 1.05;
const GROWTH: f64 = 2.0;
/// What a rate that is not confirmed is multiplied with.
const STEP_DOWN: f64 = 0.97;
/// Below this rate a target counts as one that never holds.
const RATE_MIN: f64 = 1.0;

/// Finds the highest rate that holds.
///
/// A run that breaks is taken once more and counts only if it breaks again: other work on the machine can spoil a
/// run, but hardly makes one look good. The rate found is confirmed by repeats, and lowered until they hold; where it need not
/// be lowered, it is raised for as long as repeats hold.
pub(crate) fn search<E>(plan: &Plan, probe: &mut impl FnMut(Stage, f64) -> Result<Verdict, E>) -> Result<Outcome, E> {
    let mut twice = |stage, rate| match probe(stage, rate)? {
        Verdict::Holds => Ok(Verdict::Holds),
        _ => probe(stage, rate),
    };
    let ceiling = plan.rate_max.unwrap_or(f64::INFINITY);
    let mut rate = plan.start.clamp(RATE_MIN, ceiling);
    // Both ends of the interval; the upper one with what happens there.
    let mut low = None;
    let mut high: Option<(f64, Limit)> = None;
    loop {
        match limit_of(twice(Stage::Grow, rate)?) {
            None => low = Some(rate),
            Some(limit) => high = Some((rate, limit)),
        }
        rate = match (low, &high) {
            (Some(_), Some(_)) => break,
            (Some(low), None) if low >= ceiling => break,
            (Some(low), None) => (low * GROWTH).min(ceiling),
            (None, _) if rate <= RATE_MIN => return Ok(never(rate, high)),
            (None, _) => (rate / GROWTH).max(RATE_MIN),
        };
    }
    let mut low = low.unwrap_or(RATE_MIN);
    while let Some((above, _)) = &high
        && above / low > PRECISION
    {
        // Halving the ratio, not the difference: the precision is a ratio too.
        let middle = (above * low).sqrt();
        match limit_of(twice(Stage::Bisect, middle)?) {
            None => low = middle,
            Some(limit) => high = Some((middle, limit)),
        }
    }
    let mut limit = high.map_or(Limit::RateMax, |(_, limit)| limit);
    let found = low;
    loop {
        match limit_of(most(plan.repeats, || probe(Stage::Confirm, low))?) {
            None => break,
            Some(_) if low <= RATE_MIN => return Ok(never(low, Some((low, limit)))),
            Some(worse) => limit = worse,
        }
        low = (low * STEP_DOWN).max(RATE_MIN);
    }
    // Two runs that broke by chance would have ended the search too low: the next rates are tried, too.
    while low >= found && low < ceiling {
        let next = (low * PRECISION).min(ceiling);
        match limit_of(most(plan.repeats, || probe(Stage::Confirm, next))?) {
            None => low = next,
            Some(above) => {
                limit = above;
                break;
            }
        }
    }
    if low >= ceiling {
        limit = Limit::RateMax;
    }
    Ok(Outcome::Found { rate: low, limit })
}

/// The verdict of more than half of the runs; all of them take place, since their figures are shown.
fn most<E>(repeats: usize, mut probe: impl FnMut() -> Result<Verdict, E>) -> Result<Verdict, E> {
    let mut holding = 0;
    let mut bad = None;
    for _ in 0..repeats {
        match probe()? {
            Verdict::Holds => holding += 1,
            other => bad = Some(other),
        }
    }
    Ok(bad.filter(|_| holding * 2 <= repeats).unwrap_or(Verdict::Holds))
}

fn limit_of(verdict: Verdict) -> Option<Limit> {
    match verdict {
        Verdict::Holds => None,
        Verdict::Breaks(why) => Some(Limit::Slo(why)),
        Verdict::Generator(why) => Some(Limit::Generator(why)),
    }
}

fn never(rate: f64, high: Option<(f64, Limit)>) -> Outcome {
    let why = match high {
        Some((_, Limit::Slo(why) | Limit::Generator(why))) => why,
        Some((_, Limit::RateMax)) | None => String::new(),
    };
    Outcome::Never { rate, why }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    use ringway_core::random::Random;

    /// A target with one server, Poisson arrivals and exponential service times (M/M/1), simulated request by
    /// request. The 99th percentile of its latency is ln(100) / (service rate - arrival rate), so that the right
    /// answer is known.
    struct Queue {
        service_rate: f64,
        bound: f64,
        seconds: f64,
        /// Every n-th run is spoilt by a stop of 0.2 s; 0 for none.
        disturbed_every: usize,
        runs: usize,
        random: Random,
    }

    impl Queue {
        fn new(seed: u64) -> Self {
            let random = Random(seed);
            Self { service_rate: 2_000.0, bound: 0.020, seconds: 20.0, disturbed_every: 0, runs: 0, random }
        }

        fn capacity(&self) -> f64 {
            self.service_rate - 100f64.ln() / self.bound
        }

        fn run(&mut self, rate: f64) -> Verdict {
            self.runs += 1;
            let spoilt = self.disturbed_every > 0 && self.runs.is_multiple_of(self.disturbed_every);
            let (mut now, mut free) = (0.0, if spoilt { 0.2 } else { 0.0 });
            let mut latencies = Vec::new();
            while now < self.seconds {
                now += self.random.exponential(1.0 / rate);
                free = f64::max(now, free) + self.random.exponential(1.0 / self.service_rate);
                latencies.push(free - now);
            }
            latencies.sort_by(f64::total_cmp);
            let p99 = latencies[latencies.len() * 99 / 100];
            if p99 < self.bound { Verdict::Holds } else { Verdict::Breaks(format!("p99 {p99:.4}")) }
        }

        fn search(&mut self, start: f64) -> (f64, Limit) {
            let plan = Plan { start, rate_max: None, repeats: 3 };
            match search(&plan, &mut |_, rate| Ok::<_, Infallible>(self.run(rate))) {
                Ok(Outcome::Found { rate, limit }) => (rate, limit),
                Ok(other) => panic!("{other:?}"),
            }
        }
    }

    /// Some that are always the same, one that once led astray, some that are new each time.
    fn seeds() -> impl Iterator<Item = u64> {
        let base = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
        (0..6).chain([55_661_521_891]).chain((6..12).map(move |i| base.wrapping_mul(31).wrapping_add(i)))
    }

    fn holds(limit: f64) -> impl FnMut(Stage, f64) -> Result<Verdict, Infallible> {
        move |_, rate| Ok(if rate <= limit { Verdict::Holds } else { Verdict::Breaks("slow".into()) })
    }

    #[test]
    fn the_capacity_of_a_known_queue_is_found_twice_alike() {
        for seed in seeds() {
            println!("seed {seed}");
            let mut queue = Queue::new(seed);
            let (first, limit) = queue.search(300.0);
            let (second, _) = queue.search(900.0);
            assert!(matches!(limit, Limit::Slo(_)));
            let right = queue.capacity();
            for found in [first, second] {
                assert!((found / right - 1.0).abs() < 0.08, "found {found:.0}, right is {right:.0}");
            }
            assert!((first / second - 1.0).abs() < 0.10, "{first:.0} and {second:.0}");
            for _ in 0..3 {
                assert_eq!(queue.run(first * 0.8), Verdict::Holds);
                assert_ne!(queue.run(first * 1.2), Verdict::Holds);
            }
        }
    }

    #[test]
    fn runs_that_other_work_spoils_do_not_lower_the_capacity() {
        for seed in seeds() {
            println!("seed {seed}");
            let mut queue = Queue { disturbed_every: 5, ..Queue::new(seed) };
            let (found, _) = queue.search(300.0);
            let right = queue.capacity();
            assert!((found / right - 1.0).abs() < 0.10, "found {found:.0}, right is {right:.0}");
        }
    }

    #[test]
    fn within_five_percent_of_a_sharp_limit_from_below_and_from_above() {
        for (limit, start) in [(12_345.0, 100.0), (12_345.0, 9_000_000.0), (3.3, 1.0), (64.0, 64.0)] {
            let plan = Plan { start, rate_max: None, repeats: 1 };
            let Ok(Outcome::Found { rate, .. }) = search(&plan, &mut holds(limit)) else { panic!("{limit}") };
            assert!(rate <= limit && rate * 1.05 >= limit, "{rate} for {limit}");
        }
    }

    #[test]
    fn the_highest_allowed_rate_is_a_lower_bound() {
        let plan = Plan { start: 100.0, rate_max: Some(750.0), repeats: 3 };
        let found = search(&plan, &mut holds(1e9));
        assert_eq!(found, Ok(Outcome::Found { rate: 750.0, limit: Limit::RateMax }));
        let below = Plan { start: 5_000.0, ..plan };
        assert_eq!(search(&below, &mut holds(1e9)), Ok(Outcome::Found { rate: 750.0, limit: Limit::RateMax }));
    }

    #[test]
    fn a_generator_that_falls_behind_is_named_as_the_limit() {
        let plan = Plan { start: 1_000.0, rate_max: None, repeats: 1 };
        let mut probe = |_, rate: f64| {
            let late = || Verdict::Generator("60 % on schedule".into());
            Ok::<_, Infallible>(if rate > 20_000.0 { late() } else { Verdict::Holds })
        };
        let Ok(Outcome::Found { rate, limit }) = search(&plan, &mut probe) else { panic!("nothing found") };
        assert_eq!(limit, Limit::Generator("60 % on schedule".into()));
        assert!(rate <= 20_000.0 && rate > 19_000.0);
    }

    #[test]
    fn a_target_that_never_holds_ends_the_search() {
        let plan = Plan { start: 1_000.0, rate_max: None, repeats: 3 };
        assert_eq!(search(&plan, &mut holds(0.5)), Ok(Outcome::Never { rate: 1.0, why: "slow".into() }));
    }

    #[test]
    fn a_rate_that_its_repeats_do_not_confirm_is_lowered() {
        let plan = Plan { start: 1_000.0, rate_max: None, repeats: 3 };
        let mut confirmations = Vec::new();
        let mut probe = |stage, rate: f64| {
            if stage == Stage::Confirm {
                confirmations.push(rate);
            }
            let limit = if stage == Stage::Confirm { 900.0 } else { 1_000.0 };
            Ok::<_, Infallible>(if rate <= limit { Verdict::Holds } else { Verdict::Breaks("slow".into()) })
        };
        let Ok(Outcome::Found { rate, .. }) = search(&plan, &mut probe) else { panic!("nothing found") };
        assert!((900.0 * 0.97..=900.0).contains(&rate));
        assert_eq!(confirmations.len() % 3, 0, "every rate has all its repeats: {confirmations:?}");
    }

    #[test]
    fn the_median_of_the_repeats_decides() {
        let verdicts = |good: [bool; 3]| {
            let mut left = good.into_iter();
            most(3, || {
                let bad = Verdict::Breaks("slow".into());
                Ok::<_, Infallible>(if left.next().unwrap() { Verdict::Holds } else { bad })
            })
        };
        assert_eq!(verdicts([true, false, true]), Ok(Verdict::Holds));
        assert_ne!(verdicts([false, true, false]), Ok(Verdict::Holds));
    }

    #[test]
    fn an_error_of_a_probe_ends_the_search() {
        let plan = Plan { start: 1.0, rate_max: None, repeats: 1 };
        assert_eq!(search(&plan, &mut |_, _| Err::<Verdict, _>("gone")), Err("gone"));
    }
}
