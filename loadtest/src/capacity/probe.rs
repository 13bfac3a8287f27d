//! A run at one rate: what it shows of the target, and whether the generator is to be believed.

use std::time::Duration;

use serde::Serialize;

use crate::capacity::observe::{Observed, Usage};
use crate::capacity::search::{Stage, Verdict};
use crate::capacity::slo::Slo;
use crate::failure::Failure;
use crate::report::units::{rate as shown_rate, share, time_us};
use crate::results::{Results, Second};
use crate::run::{self, Live};
use crate::scenario::Scenario;
use crate::schedule::Process;

/// A point of the curve.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Point {
    pub(crate) stage: Stage,
    pub(crate) rate: f64,
    pub(crate) answered_per_s: f64,
    pub(crate) p50_us: u64,
    pub(crate) p99_us: u64,
    pub(crate) p999_us: u64,
    pub(crate) max_us: u64,
    pub(crate) error_share: f64,
    pub(crate) cpu_us_per_request: Option<f64>,
    pub(crate) rss_bytes: Option<u64>,
    /// Of the generator: see [`crate::results::Generator`].
    pub(crate) on_schedule: f64,
    pub(crate) generator_busy: f64,
    /// Means on the wire, head and body.
    pub(crate) request_bytes: f64,
    pub(crate) response_bytes: f64,
    #[serde(flatten)]
    pub(crate) verdict: Verdict,
}

/// Runs that differ in their rate only.
pub(crate) struct Prober<'a> {
    pub(crate) scenario: &'a Scenario,
    pub(crate) process: Process,
    pub(crate) slo: &'a Slo,
    pub(crate) step: Duration,
    pub(crate) target: Option<Observed>,
    /// That there were.
    pub(crate) runs: u64,
}

/// With less than this on schedule, the generator's delays are among the latencies that decide.
const ON_SCHEDULE_MIN: f64 = 0.99;
/// A generator busier than this may be what makes latencies long.
const BUSY_MAX: f64 = 0.95;
/// Growth of the median latency, as a share of the time that passes, from which on a target falls behind: it answers
/// less than it is asked for by this share.
const FALLING_BEHIND: f64 = 0.01;

impl Prober<'_> {
    pub(crate) fn probe(&mut self, stage: Stage, rate: f64) -> Result<Point, Failure> {
        let warm_up = (self.step / 10).clamp(Duration::from_millis(500), Duration::from_secs(2));
        // Other requests at other times in each run, or the repeats would repeat one accident.
        self.runs += 1;
        let mut scenario = self.scenario.clone();
        scenario.seed = scenario.seed.wrapping_add(self.runs);
        let scenario = scenario.at_rate(rate, self.process, warm_up, self.step);
        let (results, cost) = watched(&scenario, &mut self.target)?;
        let counts = &results.counts;
        let point = Point {
            stage,
            rate,
            answered_per_s: counts.answered as f64 / results.seconds.max(f64::MIN_POSITIVE),
            p50_us: results.latency.p50,
            p99_us: results.latency.p99,
            p999_us: results.latency.p999,
            max_us: results.latency.max,
            error_share: counts.error_share(),
            cpu_us_per_request: cost.cpu_us_per_request,
            rss_bytes: cost.rss_bytes,
            on_schedule: results.generator.on_schedule,
            generator_busy: results.generator.busy,
            request_bytes: counts.bytes_sent as f64 / counts.sent.max(1) as f64,
            response_bytes: counts.bytes_received as f64 / counts.answered.max(1) as f64,
            verdict: judge(&results, self.slo, rate),
        };
        Ok(point)
    }
}

/// What a run has cost its target, where that is known.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cost {
    pub(crate) cpu_us_per_request: Option<f64>,
    /// The most that was seen.
    pub(crate) rss_bytes: Option<u64>,
}

/// Runs a scenario and looks at its target meanwhile. CPU time counts between two looks after the warm-up, over the
/// answers between them, so that neither the connecting at the start nor the end is in it.
pub(crate) fn watched(scenario: &Scenario, target: &mut Option<Observed>) -> Result<(Results, Cost), Failure> {
    let mut looks: Vec<(u64, Usage)> = Vec::new();
    let mut lost = None;
    if let Some(observed) = target {
        observed.refresh();
    }
    let results = run::execute(scenario, &mut |live: &Live| {
        let Some(observed) = target.as_ref().filter(|_| !live.is_warming_up) else { return };
        match observed.usage() {
            Ok(usage) => looks.push((live.answered, usage)),
            Err(failure) => lost = Some(failure),
        }
    })?;
    if run::is_interrupted() {
        return Err(Failure::runtime("interrupted"));
    }
    if let Some(failure) = lost {
        return Err(failure);
    }
    let mut cost = Cost { rss_bytes: looks.iter().map(|(_, usage)| usage.rss_bytes).max(), ..Default::default() };
    if let (Some((from, before)), Some((to, after))) = (looks.first(), looks.last())
        && to > from
    {
        let used_ns = after.cpu_ns.saturating_sub(before.cpu_ns);
        cost.cpu_us_per_request = Some(used_ns as f64 / 1e3 / (to - from) as f64);
    }
    Ok((results, cost))
}

/// A target that holds the SLO holds it, however late the generator was: its delay counts as the target's, and what is
/// late comes in a burst. Where the SLO breaks, the generator must not be what broke it.
fn judge(results: &Results, slo: &Slo, rate: f64) -> Verdict {
    let (latency, counts, generator) = (&results.latency, &results.counts, &results.generator);
    if counts.due == 0 {
        return Verdict::Breaks(format!("at {}: no request was due; take longer steps", shown_rate(rate)));
    }
    let mut broken = slo.broken(latency, counts, 0);
    let growth = growth(&results.timeline);
    if broken.is_empty() && growth > FALLING_BEHIND {
        broken.push(format!("the target falls behind: its latency grows by {} each second", time_us(growth * 1e6)));
    }
    if broken.is_empty() {
        return Verdict::Holds;
    }
    let broken = format!("at {}: {}", shown_rate(rate), broken.join(", "));
    if generator.busy > BUSY_MAX {
        return Verdict::Generator(format!(
            "{broken}, but the generator was busy {} of the time",
            share(generator.busy)
        ));
    }
    // Late with a request, and as late again with its answer: without both, would it have held?
    let own_delay_us = generator.late_max_us * 2;
    if generator.on_schedule < ON_SCHEDULE_MIN && slo.broken(latency, counts, own_delay_us).is_empty() {
        let (on_time, latest) = (share(generator.on_schedule), time_us(generator.late_max_us as f64));
        return Verdict::Generator(format!("{broken}, but only {on_time} were sent on time, the latest {latest} late"));
    }
    Verdict::Breaks(broken)
}

/// How fast the median latency grows, in seconds per second: the median of the slopes between all pairs of seconds,
/// which single bad seconds do not move. A target that answers less than it is asked for has a queue that grows,
/// and a short run may end before that queue breaks a lenient SLO.
fn growth(timeline: &[Second]) -> f64 {
    let seconds: Vec<&Second> = timeline.iter().filter(|second| second.answered > 0).collect();
    let mut slopes = Vec::new();
    for (at, first) in seconds.iter().enumerate() {
        for second in &seconds[at + 1..] {
            slopes.push((second.p50 as f64 - first.p50 as f64) / 1e6 / (second.at - first.at));
        }
    }
    slopes.sort_by(f64::total_cmp);
    if seconds.len() < 3 { 0.0 } else { slopes.get(slopes.len() / 2).copied().unwrap_or(0.0) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::environment::Environment;
    use crate::results::{Counts, FORMAT, Generator, Latency, Load};

    fn timeline(p50_ms: &[u64]) -> Vec<Second> {
        let second = |(at, ms): (usize, &u64)| Second {
            at: at as f64,
            due: 10,
            answered: 10,
            failed: 0,
            p50: ms * 1000,
            p99: ms * 2000,
            max: ms * 3000,
        };
        p50_ms.iter().enumerate().map(second).collect()
    }

    fn results(p99_ms: u64, generator: Generator, p50_ms: &[u64]) -> Results {
        Results {
            format: FORMAT,
            started: String::new(),
            environment: Environment::here(),
            target: String::new(),
            load: Load { model: "open".into(), description: String::new(), rate: None, connections: 1, threads: 1 },
            seconds: 5.0,
            counts: Counts { due: 100, sent: 100, answered: 100, ..Default::default() },
            latency: Latency { count: 100, p99: p99_ms * 1000, ..Default::default() },
            service_time: Latency::default(),
            classes: Vec::new(),
            errors: Vec::new(),
            timeline: timeline(p50_ms),
            generator,
        }
    }

    fn verdict(p99_ms: u64, on_schedule: f64, busy: f64, p50_ms: &[u64]) -> Verdict {
        let generator = Generator { on_schedule, busy, late_max_us: 7_000, ..Default::default() };
        judge(&results(p99_ms, generator, p50_ms), &"p99<20ms".parse().unwrap(), 1_000.0)
    }

    #[test]
    fn the_slo_decides_while_the_generator_keeps_up() {
        assert_eq!(verdict(10, 1.0, 0.5, &[5, 5, 5]), Verdict::Holds);
        let broken = Verdict::Breaks("at 1,000/s: p99 is 30 ms, not < 20 ms".into());
        assert_eq!(verdict(30, 1.0, 0.5, &[5, 5, 5]), broken);
    }

    #[test]
    fn a_late_or_overworked_generator_is_not_the_targets_fault() {
        let Verdict::Generator(why) = verdict(30, 0.7, 0.5, &[5, 5, 5]) else { panic!("late") };
        let expected = "at 1,000/s: p99 is 30 ms, not < 20 ms, but only 70 % were sent on time, the latest 7 ms late";
        assert_eq!(why, expected);
        assert!(matches!(verdict(30, 1.0, 0.99, &[5, 5, 5]), Verdict::Generator(_)), "overworked");
        assert!(matches!(verdict(35, 0.7, 0.5, &[5, 5, 5]), Verdict::Breaks(_)), "not by 7 ms twice");
    }

    #[test]
    fn a_target_that_holds_does_so_whatever_the_generator_did() {
        assert_eq!(verdict(10, 0.7, 0.5, &[5, 5, 5]), Verdict::Holds);
        assert_eq!(verdict(10, 1.0, 0.99, &[5, 5, 5]), Verdict::Holds);
    }

    #[test]
    fn a_run_without_requests_shows_nothing() {
        let mut nothing = results(0, Generator::default(), &[]);
        nothing.counts = Counts::default();
        let verdict = judge(&nothing, &"p99<20ms".parse().unwrap(), 1.0);
        assert_eq!(verdict, Verdict::Breaks("at 1/s: no request was due; take longer steps".into()));
    }

    #[test]
    fn a_queue_that_grows_breaks_a_lenient_slo() {
        let Verdict::Breaks(why) = verdict(10, 1.0, 0.5, &[20, 40, 60, 80, 100]) else { panic!("grows") };
        assert!(why.contains("its latency grows by 20 ms each second"), "{why}");
        assert_eq!(verdict(10, 1.0, 0.5, &[5, 5, 300, 5, 6]), Verdict::Holds, "one bad second is not growth");
        assert_eq!(verdict(10, 1.0, 0.5, &[1, 500]), Verdict::Holds, "two seconds show nothing");
    }
}
