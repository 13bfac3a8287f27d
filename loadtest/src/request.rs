//! Which request comes next, and its bytes.

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use crate::population::Population;
use crate::template::{Template, Values};
use crate::token::{Tokens, Wallet, unix_time_s};

/// A kind of request: one entry of a scenario's `requests`.
#[derive(Debug)]
pub(crate) struct Class {
    pub(crate) name: String,
    pub(crate) expects: Expects,
    pub(crate) weight: u64,
    pub(crate) method_is_head: bool,
    pub(crate) message: Message,
}

/// The bytes of a request.
#[derive(Debug)]
pub(crate) struct Message {
    /// The head, and a body that is always the same.
    pub(crate) head: Template,
    /// A body that differs from request to request.
    pub(crate) body: Option<Template>,
}

/// The statuses that count as good answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Expects(pub(crate) Vec<RangeInclusive<u16>>);

impl Expects {
    pub(crate) fn contains(&self, status: u16) -> bool {
        self.0.iter().any(|range| range.contains(&status))
    }
}

impl Default for Expects {
    /// Anything below 400.
    fn default() -> Self {
        Self(vec![100..=399])
    }
}

/// All that a scenario sends, shared by the threads.
#[derive(Debug)]
pub(crate) struct Requests {
    pub(crate) classes: Vec<Class>,
    pub(crate) population: Population,
    pub(crate) tokens: Option<Arc<Tokens>>,
    /// For each class the sum of the weights up to and with it.
    weights: Vec<u64>,
}

impl Requests {
    pub(crate) fn new(classes: Vec<Class>, population: Population, tokens: Option<Arc<Tokens>>) -> Self {
        let sums = classes.iter().scan(0, |sum, class| {
            *sum += class.weight;
            Some(*sum)
        });
        Self { weights: sums.collect(), classes, population, tokens }
    }

    fn pick(&self, random: &mut fastrand::Rng) -> usize {
        match self.weights[..] {
            [] | [_] => 0,
            [.., total] => {
                let drawn = random.u64(..total);
                self.weights.partition_point(|&sum| sum <= drawn)
            }
        }
    }
}

/// A thread's requests, one after the other.
#[derive(Debug)]
pub(crate) struct Mix {
    requests: Arc<Requests>,
    wallet: Option<Wallet>,
    random: fastrand::Rng,
    /// The number of the next request, and the distance to the one after: no two threads use the same numbers.
    number: u64,
    stride: u64,
    body: Vec<u8>,
}

/// A request that was chosen and not yet written: which client sends it, and so from which address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pick {
    /// Index into `Scenario::classes`.
    pub(crate) class: usize,
    /// From 0.
    pub(crate) client: usize,
}

/// A request that was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Issued {
    /// Index into `Scenario::classes`.
    pub(crate) class: usize,
    /// From 0.
    pub(crate) client: usize,
    /// Its answer has no body.
    pub(crate) method_is_head: bool,
}

impl Mix {
    /// The requests of thread `thread` of `threads`.
    pub(crate) fn new(requests: &Arc<Requests>, thread: usize, threads: usize, seed: u64) -> Self {
        let mut seeds = fastrand::Rng::with_seed(seed);
        let random = (0..=thread).map(|_| seeds.fork()).last().unwrap_or_default();
        Self {
            requests: requests.clone(),
            wallet: requests.tokens.clone().map(Wallet::new),
            random,
            number: thread as u64,
            stride: threads as u64,
            body: Vec::new(),
        }
    }

    /// Picks a request and appends its bytes to `out`.
    pub(crate) fn write(&mut self, out: &mut Vec<u8>) -> Issued {
        let pick = self.pick();
        self.write_picked(pick, out)
    }

    /// Chooses the next request and its client, for who needs to know the source address before writing.
    pub(crate) fn pick(&mut self) -> Pick {
        let class = self.requests.pick(&mut self.random);
        let client = self.requests.population.pick(&mut self.random) as usize;
        Pick { class, client }
    }

    /// Appends the request of a pick.
    pub(crate) fn write_picked(&mut self, pick: Pick, out: &mut Vec<u8>) -> Issued {
        let Pick { class, client } = pick;
        let Class { method_is_head, message, .. } = &self.requests.classes[class];
        let token = self.wallet.as_mut().map_or(&b""[..], |wallet| wallet.token(client as u64, unix_time_s()));
        let random = &mut self.random;
        let mut values = Values { client: client as u64, number: self.number, token, body_bytes: 0, random };
        match &message.body {
            None => message.head.write(&mut values, out),
            Some(body) => {
                self.body.clear();
                body.write(&mut values, &mut self.body);
                values.body_bytes = self.body.len();
                message.head.write(&mut values, out);
                out.extend_from_slice(&self.body);
            }
        }
        self.number += self.stride;
        Issued { class, client, method_is_head: *method_is_head }
    }

    /// The source address of a client's connections; `None` if the kernel may choose. Several clients may share one.
    pub(crate) fn client_address(&self, client: usize) -> Option<Ipv4Addr> {
        self.requests.population.address(client as u64)
    }

    /// JWTs that had to be signed during the run, in this thread's time.
    pub(crate) fn tokens_signed(&self) -> u64 {
        self.wallet.as_ref().map_or(0, Wallet::signed)
    }
}
