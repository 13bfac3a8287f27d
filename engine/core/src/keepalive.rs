//! Whether the other end of a connection is still there (RFC 9113 section 6.7): when nothing has come for a while it is asked,
//! and has some time to answer.

use std::time::Duration;

/// How a connection is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeepaliveSettings {
    /// Nothing has come for so long: it is asked.
    pub interval: Duration,
    /// Nothing has come for so long since it was asked: it is gone. At most `interval`.
    pub timeout: Duration,
}

/// The watch over one connection. Whatever comes is a sign of life.
#[derive(Debug)]
pub struct Keepalive {
    interval: u64,
    timeout: u64,
    asked_at: Option<u64>,
}

/// What a look at a connection says; times in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watch {
    /// Look again then.
    Until(u64),
    /// Ask now, and look again then.
    Ask(u64),
    Gone,
}

impl Keepalive {
    pub fn new(settings: KeepaliveSettings) -> Self {
        let [interval, timeout] = [settings.interval, settings.timeout].map(|time| time.as_micros() as u64);
        Self { interval: interval.max(1), timeout: timeout.max(1), asked_at: None }
    }

    /// `heard`: when something last came; `is_used`: somebody waits for something. A connection that nobody uses is left
    /// alone.
    pub fn look(&mut self, now: u64, heard: u64, is_used: bool) -> Watch {
        match self.asked_at {
            Some(asked) if heard >= asked => self.asked_at = None,
            Some(asked) if now >= asked.saturating_add(self.timeout) => return Watch::Gone,
            Some(asked) => return Watch::Until(asked.saturating_add(self.timeout)),
            None => {}
        }
        let due = heard.saturating_add(self.interval);
        if !is_used {
            return Watch::Until(now.saturating_add(self.interval));
        }
        if due > now {
            return Watch::Until(due);
        }
        self.asked_at = Some(now);
        Watch::Ask(now.saturating_add(self.timeout))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn keepalive(interval: u64, timeout: u64) -> Keepalive {
        Keepalive::new(KeepaliveSettings {
            interval: Duration::from_micros(interval),
            timeout: Duration::from_micros(timeout),
        })
    }

    #[test]
    fn silence_is_asked_about_and_then_believed() {
        let mut watch = keepalive(100, 30);
        assert_eq!(watch.look(0, 0, true), Watch::Until(100));
        assert_eq!(watch.look(100, 60, true), Watch::Until(160));
        assert_eq!(watch.look(160, 60, true), Watch::Ask(190));
        assert_eq!(watch.look(170, 60, true), Watch::Until(190));
        // An answer, or anything else.
        assert_eq!(watch.look(190, 171, true), Watch::Until(271));
        assert_eq!(watch.look(271, 171, true), Watch::Ask(301));
        assert_eq!(watch.look(301, 171, false), Watch::Gone);
    }

    #[test]
    fn who_is_not_used_is_not_asked() {
        let mut watch = keepalive(100, 30);
        assert_eq!(watch.look(500, 0, false), Watch::Until(600));
        assert_eq!(watch.look(600, 0, true), Watch::Ask(630));
    }

    proptest! {
        /// Looked at when it wants to be, a connection that answers in time is never given up, and one that has died is within
        /// an interval and a timeout.
        #[test]
        fn the_dead_are_noticed_in_time_and_the_living_are_kept(
            interval in 1..1_000_u64, timeout in 1..1_000_u64, dies_at in 0..20_000_u64,
            mut signs in prop::collection::vec(0..20_000_u64, 0..50), delay in 0..1_000_u64,
        ) {
            let timeout = timeout.min(interval);
            let mut watch = keepalive(interval, timeout);
            signs.retain(|at| *at < dies_at);
            let (mut now, mut asked) = (0, 0);
            let (at, heard) = loop {
                let heard = signs.iter().copied().filter(|at| *at <= now).max().unwrap_or(0);
                let next = match watch.look(now, heard, true) {
                    Watch::Until(next) => next,
                    Watch::Ask(next) => {
                        prop_assert_eq!(now, heard + interval);
                        asked = now;
                        let answer = now + delay % timeout;
                        signs.extend((answer < dies_at).then_some(answer));
                        next
                    }
                    Watch::Gone => break (now, heard),
                };
                prop_assert!(next > now && next <= now + interval);
                now = next;
            };
            prop_assert_eq!(at, heard + interval + timeout);
            prop_assert!(asked + delay % timeout >= dies_at, "it would have answered");
        }
    }
}
