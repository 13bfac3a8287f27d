//! What one thread has seen: counters and histograms that only it writes, merged when the run is over.

use hdrhistogram::Histogram;

use crate::results::{self, Class, Counts, ErrorCount, Latency, Second, Status};
use crate::run::fault::Fault;
use crate::run::timeline::Timeline;

/// A delay of the generator's own beyond which a request was not on schedule.
const ON_SCHEDULE_NS: u64 = 1_000_000;

/// Statuses of a class that have a histogram of their own, which takes 190 KB. A target may send any of 900: those that
/// come later are told together, as status 0.
const STATUSES_MAX: usize = 32;
const OTHERS: u16 = 0;

/// The figures of one thread, or of several once they are merged. Times are in nanoseconds.
pub(crate) struct Record {
    pub(crate) counts: Counts,
    faults: [u64; Fault::ALL.len()],
    classes: Vec<ClassRecord>,
    service_time: Histogram<u64>,
    pub(crate) timeline: Timeline,
    /// Requests that the generator got to too late.
    late: u64,
    late_max_ns: u64,
    /// Connections that were not made, whether or not a request waited for them.
    pub(crate) connects_failed: u64,
    /// Requests that were due and abandoned since the run was ended early.
    pub(crate) abandoned: u64,
}

#[derive(Default)]
struct ClassRecord {
    failed: u64,
    statuses: Vec<(u16, Histogram<u64>)>,
}

/// An answer that came whole.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Answer {
    pub(crate) class: usize,
    pub(crate) status: u16,
    pub(crate) expected: bool,
    pub(crate) due: u64,
    pub(crate) sent: u64,
    pub(crate) done: u64,
}

impl Record {
    pub(crate) fn new(classes: usize) -> Self {
        Self {
            counts: Counts::default(),
            faults: [0; Fault::ALL.len()],
            classes: (0..classes).map(|_| ClassRecord::default()).collect(),
            service_time: results::histogram(),
            timeline: Timeline::default(),
            late: 0,
            late_max_ns: 0,
            connects_failed: 0,
            abandoned: 0,
        }
    }

    /// A request has become due; `noticed` is when the generator got to it.
    pub(crate) fn due(&mut self, due: u64, noticed: u64) {
        let late = noticed.saturating_sub(due);
        self.counts.due += 1;
        self.late += u64::from(late > ON_SCHEDULE_NS);
        self.late_max_ns = self.late_max_ns.max(late);
        self.timeline.at(due).due += 1;
    }

    pub(crate) fn answered(&mut self, answer: Answer) {
        let latency_us = answer.done.saturating_sub(answer.due) / 1000;
        self.counts.answered += 1;
        self.counts.unexpected += u64::from(!answer.expected);
        if let Some(class) = self.classes.get_mut(answer.class) {
            class.status(answer.status).saturating_record(latency_us);
        }
        self.service_time.saturating_record(answer.done.saturating_sub(answer.sent) / 1000);
        self.timeline.at(answer.due).answered(latency_us);
    }

    /// `class`: of a request that had been chosen.
    pub(crate) fn failed(&mut self, class: usize, due: u64, fault: Fault) {
        self.counts.failed += 1;
        self.faults[fault as usize] += 1;
        if let Some(class) = self.classes.get_mut(class) {
            class.failed += 1;
        }
        self.timeline.at(due).failed += 1;
    }

    /// The run was ended before the request was: it counts as never having been due.
    pub(crate) fn abandoned(&mut self, due: u64, sent: bool) {
        self.abandoned += 1;
        self.counts.due -= 1;
        self.counts.sent -= u64::from(sent);
        self.timeline.at(due).due -= 1;
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        let (to, from) = (&mut self.counts, &other.counts);
        to.due += from.due;
        to.sent += from.sent;
        to.answered += from.answered;
        to.failed += from.failed;
        to.unexpected += from.unexpected;
        to.connections_opened += from.connections_opened;
        to.bytes_sent += from.bytes_sent;
        to.bytes_received += from.bytes_received;
        self.faults.iter_mut().zip(other.faults).for_each(|(to, from)| *to += from);
        for (to, from) in self.classes.iter_mut().zip(&other.classes) {
            to.failed += from.failed;
            from.statuses.iter().for_each(|(status, histogram)| add(to.status(*status), histogram));
        }
        add(&mut self.service_time, &other.service_time);
        self.timeline.merge(&other.timeline);
        self.late += other.late;
        self.late_max_ns = self.late_max_ns.max(other.late_max_ns);
        self.connects_failed += other.connects_failed;
        self.abandoned += other.abandoned;
    }

    pub(crate) fn latency(&self) -> Latency {
        let mut all = results::histogram();
        self.classes.iter().for_each(|class| class.statuses.iter().for_each(|(_, one)| add(&mut all, one)));
        Latency::of(&all)
    }

    pub(crate) fn service_time(&self) -> Latency {
        Latency::of(&self.service_time)
    }

    /// By the names of the scenario's classes.
    pub(crate) fn classes<'a>(&self, names: impl Iterator<Item = &'a str>) -> Vec<Class> {
        let class = |(name, record): (&str, &ClassRecord)| {
            let mut all = results::histogram();
            record.statuses.iter().for_each(|(_, one)| add(&mut all, one));
            let status = |(status, one): &(u16, Histogram<u64>)| Status { status: *status, latency: Latency::of(one) };
            let mut statuses: Vec<Status> = record.statuses.iter().map(status).collect();
            statuses.sort_by_key(|status| status.status);
            Class { name: name.to_owned(), failed: record.failed, latency: Latency::of(&all), statuses }
        };
        names.zip(&self.classes).map(class).collect()
    }

    /// Most frequent first.
    pub(crate) fn errors(&self) -> Vec<ErrorCount> {
        let kinds = Fault::ALL.iter().zip(self.faults).filter(|(_, count)| *count > 0);
        let mut errors: Vec<ErrorCount> =
            kinds.map(|(kind, count)| ErrorCount { kind: kind.name().to_owned(), count }).collect();
        errors.sort_by_key(|error| std::cmp::Reverse(error.count));
        errors
    }

    pub(crate) fn timeline(&self, seconds: f64) -> Vec<Second> {
        self.timeline.seconds(seconds)
    }

    /// Share of the requests that left on time, 1 where none were due.
    pub(crate) fn on_schedule(&self) -> f64 {
        1.0 - self.late as f64 / (self.counts.due + self.abandoned).max(1) as f64
    }

    pub(crate) fn late_max_us(&self) -> u64 {
        self.late_max_ns / 1000
    }
}

impl ClassRecord {
    /// The histogram of a status; the first answer with it makes it.
    fn status(&mut self, status: u16) -> &mut Histogram<u64> {
        let find = |status| self.statuses.iter().position(|(have, _)| *have == status);
        let status = if find(status).is_none() && self.statuses.len() >= STATUSES_MAX { OTHERS } else { status };
        let at = find(status).unwrap_or_else(|| {
            self.statuses.push((status, results::histogram()));
            self.statuses.len() - 1
        });
        &mut self.statuses[at].1
    }
}

fn add(to: &mut Histogram<u64>, from: &Histogram<u64>) {
    to.add(from).expect("all have the same bounds");
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn answer(class: usize, status: u16, due: u64, latency: u64) -> Answer {
        Answer { class, status, expected: status < 400, due, sent: due + latency / 2, done: due + latency }
    }

    #[test]
    fn threads_merge_into_what_one_thread_would_have_seen() {
        let (mut whole, mut parts) = (Record::new(2), [Record::new(2), Record::new(2)]);
        for n in 0..10_000u64 {
            let (due, class) = (n * MS / 2, (n % 3 == 0) as usize);
            let part = &mut parts[(n % 7 == 0) as usize];
            for record in [part, &mut whole] {
                record.due(due, due + n * 200);
                match n % 100 {
                    0 => record.failed(class, due, Fault::Timeout),
                    1 => record.failed(class, due, Fault::Reset),
                    2 => record.answered(answer(class, 503, due, 40 * MS)),
                    _ => record.answered(answer(class, 200, due, (n % 50 + 1) * MS)),
                }
            }
        }
        let [mut merged, other] = parts;
        merged.merge(&other);
        let text = |record: &Record| {
            let classes = record.classes(["a", "b"].into_iter());
            let all = (record.latency(), record.service_time(), classes, record.errors(), record.timeline(5.0));
            serde_json::to_string(&(&record.counts, all)).expect("plain data")
        };
        assert_eq!(text(&merged), text(&whole));
        assert_eq!((merged.on_schedule(), merged.late_max_us()), (whole.on_schedule(), whole.late_max_us()));
    }

    #[test]
    fn latency_counts_from_the_due_time_and_service_time_from_the_sending() {
        let mut record = Record::new(1);
        record.answered(answer(0, 200, 5 * MS, 300 * MS));
        assert!(record.latency().p50.abs_diff(300_000) < 300);
        assert!(record.service_time().p50.abs_diff(150_000) < 150);
    }

    #[test]
    fn classes_and_statuses_are_told_apart() {
        let mut record = Record::new(2);
        record.answered(answer(0, 404, 0, MS));
        record.answered(answer(0, 200, 0, 2 * MS));
        record.answered(answer(1, 200, 0, 3 * MS));
        record.failed(1, 0, Fault::Closed);
        let classes = record.classes(["read", "write"].into_iter());
        let statuses: Vec<_> = classes[0].statuses.iter().map(|one| (one.status, one.latency.count)).collect();
        assert_eq!(statuses, [(200, 1), (404, 1)]);
        assert_eq!((classes[0].latency.count, classes[0].failed), (2, 0));
        assert_eq!((classes[1].latency.count, classes[1].failed), (1, 1));
        assert_eq!(record.counts.unexpected, 1);
        assert_eq!(record.errors().iter().map(|one| one.kind.as_str()).collect::<Vec<_>>(), ["closed"]);
    }

    #[test]
    fn a_target_that_sends_every_status_takes_no_more_room_than_one_that_sends_some() {
        let (mut record, mut other) = (Record::new(1), Record::new(1));
        (100..=999).for_each(|status| record.answered(answer(0, status, 0, MS)));
        (100..=999).rev().for_each(|status| other.answered(answer(0, status, 0, MS)));
        record.merge(&other);
        let class = record.classes(["all"].into_iter()).remove(0);
        assert_eq!(class.statuses.len(), STATUSES_MAX + 1);
        assert_eq!((class.statuses[0].status, class.statuses[1].status), (OTHERS, 100));
        assert_eq!(class.statuses.iter().map(|status| status.latency.count).sum::<u64>(), 1800);
    }

    #[test]
    fn a_millisecond_is_still_on_schedule() {
        let mut record = Record::new(1);
        record.due(0, MS);
        record.due(0, MS + 1);
        assert_eq!((record.on_schedule(), record.late_max_us()), (0.5, 1_000));
    }
}
