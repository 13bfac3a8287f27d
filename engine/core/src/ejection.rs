//! Which endpoints of a service are ejected for how they answer: outlier detection in the way of Envoy. Failures in a row
//! are judged by the cores as they come ([`EjectionSettings::failed`]); an endpoint is compared with the others at
//! intervals ([`EjectionSettings::outliers`]).

use crate::health::{EndpointHealth, Reason};

/// When an endpoint is ejected, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EjectionSettings {
    /// Failed requests in a row: 5xx, no answer in time, a broken connection, no connection; 1 or more.
    pub consecutive_failures: Option<u32>,
    /// Failed connects in a row; 1 or more.
    pub consecutive_connect_failures: Option<u32>,
    pub success_rate: Option<SuccessRate>,
    pub latency: Option<Slowness>,
    /// Between two comparisons, in microseconds.
    pub interval_us: u64,
    /// The first ejection; the second in a row is twice as long, the third three times.
    pub base_us: u64,
    pub max_us: u64,
    /// Percent of the endpoints that may be ejected at a time.
    pub max_share: u8,
}

/// How much worse an endpoint's answers may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SuccessRate {
    /// Percentage points below the success rate of the others together.
    pub margin: u8,
    /// Requests in an interval below which an endpoint is neither judged nor compared with; 1 or more.
    pub min_requests: u64,
}

/// How much slower an endpoint may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slowness {
    /// Percent of the mean latency of the others together: 300 is three times as slow.
    pub factor: u32,
    /// How much slower it must be besides: three times as slow is nothing where answers take a millisecond.
    pub margin_us: u64,
    /// As in [`SuccessRate`].
    pub min_requests: u64,
}

/// What failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failed {
    /// There was no connection.
    Connect,
    /// There was no answer, or one of 5xx.
    Request,
}

/// An ejection that has just begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ejection {
    pub reason: Reason,
    pub time_us: u64,
}

/// What an endpoint has done in an interval.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sample {
    /// Answers of any status.
    pub answers: u64,
    /// Answers of 5xx, and requests without an answer.
    pub failures: u64,
    /// Of these, those without an answer.
    pub unanswered: u64,
    /// From the request sent to the answer's head, all answers together.
    pub latency_us: u64,
    /// It was ejected or unwell: it is neither judged nor compared with.
    pub is_out: bool,
}

impl Sample {
    fn requests(&self) -> u64 {
        self.answers.saturating_add(self.unanswered)
    }
}

impl EjectionSettings {
    /// How many of so many endpoints may be ejected at a time: one at least, where there is another one.
    pub fn cap(&self, endpoints: usize) -> u32 {
        let share = endpoints * usize::from(self.max_share) / 100;
        share.max(1).min(endpoints.saturating_sub(1)) as u32
    }

    fn time_us(&self, repeats: u32) -> u64 {
        self.base_us.saturating_mul(u64::from(repeats)).min(self.max_us)
    }

    /// A request has failed. `Some`: that was one too many.
    pub fn failed(&self, health: &EndpointHealth, failed: Failed, now_us: u64) -> Option<Ejection> {
        let is_connect = failed == Failed::Connect;
        let (failures, connects, on_probation) = health.failed(is_connect);
        let is_reached = |limit: Option<u32>, count: u32| limit.is_some_and(|limit| on_probation || count >= limit);
        let reason = if is_connect && is_reached(self.consecutive_connect_failures, connects) {
            Reason::Connect
        } else if is_reached(self.consecutive_failures, failures) {
            Reason::Failures
        } else {
            return None;
        };
        self.eject(health, reason, now_us)
    }

    /// Ejects an endpoint, unless as many as may be are ejected already.
    pub fn eject(&self, health: &EndpointHealth, reason: Reason, now_us: u64) -> Option<Ejection> {
        let time_us = health.eject(reason, now_us, |repeats| self.time_us(repeats))?;
        Some(Ejection { reason, time_us })
    }

    /// Which endpoints are worse than the others, the worst first.
    pub fn outliers(&self, samples: &[Sample]) -> Vec<(usize, Reason)> {
        let by_rate = self.success_rate.iter().flat_map(|rule| rule.outliers(samples));
        let mut outliers: Vec<_> = by_rate.map(|(index, _)| (index, Reason::SuccessRate)).collect();
        for (index, _) in self.latency.iter().flat_map(|rule| rule.outliers(samples)) {
            if outliers.iter().all(|(known, _)| *known != index) {
                outliers.push((index, Reason::Latency));
            }
        }
        outliers
    }
}

/// Those with a quotient of their own that is too much higher than that of the others together. `part`: numerator and
/// denominator of a sample; `excess`: how much too high it is, from 0 on, by its own quotient and that of the others.
fn compare(
    samples: &[Sample],
    min_requests: u64,
    part: impl Fn(&Sample) -> (u64, u64),
    excess: impl Fn(f64, f64) -> f64,
) -> Vec<(usize, f64)> {
    let has_enough = |sample: &&Sample| !sample.is_out && sample.requests() >= min_requests;
    let sum = |sums: (u64, u64), sample: &Sample| (sums.0 + part(sample).0, sums.1 + part(sample).1);
    let all = samples.iter().filter(has_enough).fold((0, 0), sum);
    let mut found: Vec<(usize, f64)> = Vec::new();
    for (index, sample) in samples.iter().enumerate().filter(|(_, sample)| has_enough(sample)) {
        let own = part(sample);
        let others = (all.0 - own.0, all.1 - own.1);
        if own.1 == 0 || others.1 == 0 {
            continue;
        }
        let over = excess(own.0 as f64 / own.1 as f64, others.0 as f64 / others.1 as f64);
        if over > 0.0 {
            found.push((index, over));
        }
    }
    found.sort_by(|one, other| other.1.total_cmp(&one.1));
    found
}

impl SuccessRate {
    fn outliers(&self, samples: &[Sample]) -> Vec<(usize, f64)> {
        let margin = f64::from(self.margin) / 100.0;
        compare(
            samples,
            self.min_requests,
            |sample| (sample.failures, sample.requests()),
            |own, others| own - others - margin,
        )
    }
}

impl Slowness {
    fn outliers(&self, samples: &[Sample]) -> Vec<(usize, f64)> {
        let factor = f64::from(self.factor) / 100.0;
        compare(
            samples,
            self.min_requests,
            |sample| (sample.latency_us, sample.answers),
            |own, others| {
                if own - others > self.margin_us as f64 { own / others.max(1.0) - factor } else { 0.0 }
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::health::Fleet;

    const SECOND: u64 = 1_000_000;

    fn settings() -> EjectionSettings {
        EjectionSettings {
            consecutive_failures: Some(5),
            consecutive_connect_failures: Some(2),
            success_rate: Some(SuccessRate { margin: 20, min_requests: 10 }),
            latency: Some(Slowness { factor: 300, margin_us: 1000, min_requests: 10 }),
            interval_us: 10 * SECOND,
            base_us: 30 * SECOND,
            max_us: 100 * SECOND,
            max_share: 50,
        }
    }

    fn fleet(endpoints: usize, settings: &EjectionSettings) -> (Arc<Fleet>, Vec<EndpointHealth>) {
        let fleet = Fleet::new("s".into());
        fleet.set_cap(settings.cap(endpoints));
        let endpoints = (0..endpoints).map(|index| EndpointHealth::new(&fleet, index.to_string().into())).collect();
        (fleet, endpoints)
    }

    #[test]
    fn the_cap_leaves_one_and_allows_one() {
        let caps = [0, 1, 2, 3, 4, 9, 10].map(|endpoints| settings().cap(endpoints));
        assert_eq!(caps, [0, 0, 1, 1, 2, 4, 5]);
        assert_eq!(EjectionSettings { max_share: 100, ..settings() }.cap(3), 2);
        assert_eq!(EjectionSettings { max_share: 1, ..settings() }.cap(3), 1);
    }

    #[test]
    fn failures_in_a_row_eject_and_a_success_breaks_the_row() {
        let settings = settings();
        let (fleet, endpoints) = fleet(3, &settings);
        let health = &endpoints[0];
        for round in 0..3 {
            for failure in 1..5 {
                assert_eq!(settings.failed(health, Failed::Request, 0), None, "{round} {failure}");
            }
            health.succeeded();
        }
        for _ in 1..5 {
            settings.failed(health, Failed::Request, 0);
        }
        let ejected = settings.failed(health, Failed::Request, 7).unwrap();
        assert_eq!(ejected, Ejection { reason: Reason::Failures, time_us: 30 * SECOND });
        assert_eq!(health.ejection(), Some((30 * SECOND + 7, Reason::Failures)));
        assert!(!health.is_usable());
        assert_eq!((fleet.ejected(), settings.failed(health, Failed::Request, 8)), (1, None));
    }

    #[test]
    fn connect_failures_eject_sooner_and_one_is_enough_after_the_return() {
        let settings = settings();
        let (_, endpoints) = fleet(2, &settings);
        let health = &endpoints[0];
        assert_eq!(settings.failed(health, Failed::Connect, 0), None);
        assert_eq!(settings.failed(health, Failed::Request, 0), None);
        assert_eq!(settings.failed(health, Failed::Connect, 0), None);
        let times = [30, 60, 90, 100, 100].map(|seconds| seconds * SECOND);
        for (index, time_us) in times.into_iter().enumerate() {
            let ejected = settings.failed(health, Failed::Connect, 0);
            assert_eq!(ejected, Some(Ejection { reason: Reason::Connect, time_us }), "{index}");
            assert!(health.reinstate());
        }
        assert!(!health.reinstate());
        health.succeeded();
        assert_eq!(settings.failed(health, Failed::Connect, 0), None);
        (0..9).for_each(|_| health.forgive());
        assert_eq!(settings.failed(health, Failed::Connect, 0).unwrap().time_us, 30 * SECOND);
        assert_eq!(health.ejections().collect::<Vec<_>>()[0], ("connect_failures", 6));
    }

    #[test]
    fn no_more_than_the_cap_and_the_removed_take_no_place() {
        let settings = settings();
        let (fleet, endpoints) = fleet(4, &settings);
        let eject = |index: usize| settings.eject(&endpoints[index], Reason::Failures, 0).is_some();
        assert!(eject(0) && eject(1) && !eject(2) && !eject(1));
        endpoints[0].remove();
        assert_eq!(fleet.ejected(), 1);
        assert!(!eject(0) && eject(2) && !eject(3));
        fleet.set_cap(1);
        assert_eq!(fleet.surplus(), 1);
        assert!(endpoints[1].reinstate() && !eject(1));
        assert_eq!((fleet.surplus(), fleet.ejected(), fleet.cap()), (0, 1, 1));
    }

    fn sample(answers: u64, failures: u64, latency_us: u64) -> Sample {
        Sample { answers, failures, latency_us: latency_us * answers, ..Sample::default() }
    }

    #[test]
    fn the_worst_of_those_that_differ_from_the_others() {
        let settings = settings();
        let good = sample(100, 1, 1_000);
        assert_eq!(settings.outliers(&[good; 3]), []);
        let worse = [good, sample(100, 30, 1_000), good, sample(100, 90, 1_000), sample(100, 1, 9_000)];
        // Beside the worst, the second is not much worse than the others together: its turn comes in the next interval.
        assert_eq!(settings.outliers(&worse), [(3, Reason::SuccessRate), (4, Reason::Latency)]);
        assert_eq!(
            settings.outliers(&[good, good, sample(100, 40, 1_000), sample(100, 1, 9_000)]),
            [(2, Reason::SuccessRate), (3, Reason::Latency)]
        );
        // Nine times as slow, but not by much.
        let patient = EjectionSettings {
            latency: Some(Slowness { factor: 300, margin_us: 8_000, min_requests: 10 }),
            ..settings
        };
        assert_eq!(patient.outliers(&[good, good, sample(100, 1, 9_000)]), []);
        assert_eq!(patient.outliers(&[good, good, sample(100, 1, 9_001)]), [(2, Reason::Latency)]);
    }

    #[test]
    fn nobody_is_judged_by_few_requests_or_without_others() {
        let settings = settings();
        let bad = sample(100, 100, 9_000);
        let out = Sample { is_out: true, ..sample(100, 0, 1_000) };
        assert_eq!(settings.outliers(&[bad]), []);
        assert_eq!(settings.outliers(&[bad, out, sample(9, 0, 1_000)]), []);
        assert_eq!(settings.outliers(&[sample(9, 9, 9_000), sample(100, 0, 1_000)]), []);
        assert_eq!(settings.outliers(&[Sample::default(); 2]), []);
        let silent = Sample { failures: 50, unanswered: 50, ..Sample::default() };
        assert_eq!(settings.outliers(&[silent, sample(100, 0, 1_000)]), [(0, Reason::SuccessRate)]);
        // All are down: nobody is worse than the others.
        assert_eq!(settings.outliers(&[bad, bad]), []);
    }
}
