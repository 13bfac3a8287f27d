//! Requests in flight to a service, and those that wait for a place among them: so many and no more, over all cores, so that
//! a service that is slow does not take all that the gateway has. All cores share one, through atomics.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crossbeam::utils::CachePadded;

use crate::adaptive::{Adaptive, AdaptiveSettings};

/// What a service allows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BulkheadSettings {
    /// In flight at a time; `None`: no limit but the adaptive one.
    pub requests: Option<u32>,
    /// Waiting at a time; 0: nobody waits.
    pub pending: u32,
    /// How long one waits at most, in microseconds.
    pub wait_us: u64,
    pub adaptive: Option<AdaptiveSettings>,
}

/// Why a request did not get a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Full {
    /// As many were in flight as the configuration allows, and nobody may wait.
    Requests,
    /// The same where the adaptive limit was lower.
    Adaptive,
    /// As many waited as may.
    Pending,
    /// It waited, and no place came in time.
    Timeout,
}

/// A service's requests, as they are counted. Outlives reloads.
#[derive(Debug, Default)]
pub struct Bulkhead {
    in_flight: CachePadded<AtomicU32>,
    pending: AtomicU32,
    pub adaptive: Adaptive,
}

/// A request's place among those in flight. Dropped: given back.
#[derive(Debug)]
#[must_use = "a place is given back when it is dropped"]
pub struct Place(Arc<Bulkhead>);

/// A request's place among those that wait. Dropped: given back.
#[derive(Debug)]
#[must_use = "a place is given back when it is dropped"]
pub struct Pending(Arc<Bulkhead>);

impl Full {
    pub const ALL: [Self; 4] = [Self::Requests, Self::Adaptive, Self::Pending, Self::Timeout];

    pub const fn label(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Adaptive => "adaptive",
            Self::Pending => "pending",
            Self::Timeout => "timeout",
        }
    }
}

impl Bulkhead {
    /// How many may be in flight now, and what says so.
    #[inline]
    fn limit(&self, settings: &BulkheadSettings) -> (u32, Full) {
        let fixed = settings.requests.unwrap_or(u32::MAX);
        match settings.adaptive.as_ref().map(|adaptive| self.adaptive.limit(adaptive)) {
            Some(limit) if limit < fixed => (limit, Full::Adaptive),
            _ => (fixed, Full::Requests),
        }
    }

    /// A place for one more request.
    ///
    /// # Errors
    /// There is none; with the limit that it has met.
    #[inline]
    pub fn enter(self: &Arc<Self>, settings: &BulkheadSettings) -> Result<Place, Full> {
        let (limit, full) = self.limit(settings);
        let more = |count| (count < limit).then(|| count + 1);
        let before = self.in_flight.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).map_err(|_| full)?;
        if settings.adaptive.is_some() {
            self.adaptive.saw(before + 1);
        }
        Ok(Place(Arc::clone(self)))
    }

    /// A place among those that wait, where there is one.
    pub fn queue(self: &Arc<Self>, settings: &BulkheadSettings) -> Option<Pending> {
        let more = |count| (count < settings.pending).then(|| count + 1);
        self.pending.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).ok()?;
        Some(Pending(Arc::clone(self)))
    }

    /// Whether requests wait, which are not to be overtaken.
    #[inline]
    pub fn has_pending(&self) -> bool {
        self.pending.load(Ordering::Relaxed) > 0
    }

    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    pub fn pending(&self) -> u32 {
        self.pending.load(Ordering::Relaxed)
    }
}

impl Place {
    /// Whether it is one of these.
    pub fn is_of(&self, bulkhead: &Arc<Bulkhead>) -> bool {
        Arc::ptr_eq(&self.0, bulkhead)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.0.pending.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADAPTIVE: AdaptiveSettings = AdaptiveSettings { min: 2, max: 3, tolerance: 25, probe_interval_us: 1 };

    #[test]
    fn places_are_counted_and_given_back() {
        let bulkhead = Arc::new(Bulkhead::default());
        let settings = BulkheadSettings { requests: Some(2), pending: 1, ..BulkheadSettings::default() };
        let places = [bulkhead.enter(&settings).unwrap(), bulkhead.enter(&settings).unwrap()];
        assert_eq!(bulkhead.enter(&settings).unwrap_err(), Full::Requests);
        let waiting = bulkhead.queue(&settings).unwrap();
        assert!(bulkhead.queue(&settings).is_none() && bulkhead.has_pending());
        assert_eq!((bulkhead.in_flight(), bulkhead.pending()), (2, 1));
        drop((places, waiting));
        assert_eq!((bulkhead.in_flight(), bulkhead.pending()), (0, 0));
        assert!(bulkhead.enter(&settings).unwrap().is_of(&bulkhead));
    }

    #[test]
    fn the_lower_limit_counts() {
        let bulkhead = Arc::new(Bulkhead::default());
        let settings = BulkheadSettings { adaptive: Some(ADAPTIVE), ..BulkheadSettings::default() };
        let places: Vec<_> = (0..3).map(|_| bulkhead.enter(&settings).unwrap()).collect();
        assert_eq!(bulkhead.enter(&settings).unwrap_err(), Full::Adaptive);
        let lower = BulkheadSettings { requests: Some(1), ..settings };
        assert_eq!(bulkhead.enter(&lower).unwrap_err(), Full::Requests);
        drop(places);
    }

    #[test]
    fn threads_never_have_more_places_than_there_are() {
        let bulkhead = Arc::new(Bulkhead::default());
        let settings = BulkheadSettings { requests: Some(3), ..BulkheadSettings::default() };
        let inside = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        let Ok(place) = bulkhead.enter(&settings) else { continue };
                        assert!(inside.fetch_add(1, Ordering::AcqRel) < 3);
                        std::hint::spin_loop();
                        inside.fetch_sub(1, Ordering::AcqRel);
                        drop(place);
                    }
                });
            }
        });
        assert_eq!(bulkhead.in_flight(), 0);
    }
}
