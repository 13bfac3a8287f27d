use super::*;

#[test]
fn statuses_are_counted_under_their_code_or_class() {
    let cell = RouteCell::default();
    for status in [200, 200, 404, 299, 599, 100, 600, 999, 99, 0] {
        cell.record(status, 10);
    }
    let seen: Vec<_> = cell.statuses().collect();
    let seen: Vec<_> = seen.iter().map(|(label, n)| (label.as_str(), *n)).collect();
    assert_eq!(seen, [("100", 1), ("200", 2), ("404", 1), ("2xx", 1), ("5xx", 1), ("other", 4)]);
}

#[test]
fn histogram_bounds_are_inclusive() {
    let histogram = Histogram::default();
    for us in [250, 251, 30_000_001] {
        histogram.record_us(us);
    }
    let buckets = histogram.buckets();
    assert_eq!((buckets[0], buckets[1], buckets[16]), (1, 1, 1));
    assert_eq!(histogram.sum_us(), 30_000_502);
}
