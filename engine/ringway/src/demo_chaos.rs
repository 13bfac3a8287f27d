//! A service that fails now and then, so that one can see what a gateway makes of it.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use hyper::StatusCode;

/// In words what [`Chaos::fate`] does.
pub(crate) const CHAOS: &str = "the product service answers each 8th request with 503 and each 15th late, and from each 40th on it \
                                is down for 10 s";

const UNAVAILABLE_EACH: u64 = 8;
const LATE_EACH: u64 = 15;
const DOWN_EACH: u64 = 40;
const LATE: Duration = Duration::from_millis(300);
/// Long enough for people to see a breaker open.
const DOWN: Duration = Duration::from_secs(10);

/// What has come, and until when the service is down.
#[derive(Debug, Default)]
pub(crate) struct Chaos(Mutex<(u64, Option<Instant>)>);

/// What a request meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Good,
    Late(Duration),
    Fails(StatusCode),
}

impl Chaos {
    /// By their number, not by chance: what is seen is the same each time.
    pub(crate) fn fate(&self, now: Instant) -> Fate {
        let Ok(mut state) = self.0.lock() else { return Fate::Good };
        let (seen, down_until) = &mut *state;
        if down_until.is_some_and(|until| now < until) {
            return Fate::Fails(StatusCode::INTERNAL_SERVER_ERROR);
        }
        *seen += 1;
        if seen.is_multiple_of(DOWN_EACH) {
            *down_until = Some(now + DOWN);
            Fate::Fails(StatusCode::INTERNAL_SERVER_ERROR)
        } else if seen.is_multiple_of(UNAVAILABLE_EACH) {
            Fate::Fails(StatusCode::SERVICE_UNAVAILABLE)
        } else if seen.is_multiple_of(LATE_EACH) {
            Fate::Late(LATE)
        } else {
            Fate::Good
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_of_them_comes_and_goes() {
        let (chaos, now) = (Chaos::default(), Instant::now());
        let fates: Vec<Fate> = (0..39).map(|_| chaos.fate(now)).collect();
        let count = |fate: Fate| fates.iter().filter(|seen| **seen == fate).count();
        assert_eq!((count(Fate::Fails(StatusCode::SERVICE_UNAVAILABLE)), count(Fate::Late(LATE))), (4, 2));
        assert_eq!(count(Fate::Good), 33);
        let down = Fate::Fails(StatusCode::INTERNAL_SERVER_ERROR);
        assert!((0..100).all(|_| chaos.fate(now) == down));
        assert_eq!(chaos.fate(now + DOWN - Duration::from_millis(1)), down);
        assert_eq!(chaos.fate(now + DOWN), Fate::Good);
    }
}
