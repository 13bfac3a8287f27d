//! What is counted of tries that are sent while another one is awaited.

use super::Counter;

/// What became of one that was due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Hedged {
    /// Its answer was the client's.
    Won,
    /// It was given up: another try was quicker, or nobody waited any more.
    Lost,
    /// It broke, or its answer was one to try again.
    Failed,
    /// It was not sent: the budget was used up.
    NoBudget,
    /// It was not sent: a breaker is open.
    NoPassage,
    /// It was not sent: there is no endpoint besides those that have the request already.
    NoEndpoint,
}

/// Of one service, by one worker.
#[derive(Debug, Default)]
pub struct Hedges([Counter; 6]);

impl Hedged {
    /// As logs and metrics call it.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Won => "won",
            Self::Lost => "lost",
            Self::Failed => "failed",
            Self::NoBudget => "budget",
            Self::NoPassage => "breaker",
            Self::NoEndpoint => "endpoint",
        }
    }
}

impl Hedges {
    pub fn record(&self, hedged: Hedged) {
        if let Some(counter) = self.0.get(hedged as usize) {
            counter.add(1);
        }
    }

    pub fn get(&self, hedged: Hedged) -> u64 {
        self.0.get(hedged as usize).map_or(0, Counter::get)
    }
}
