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
    #[cfg(test)]
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::template::Place;

    fn class(name: &str, weight: u64, head: &str, body: Option<&str>) -> Class {
        let template = |text| Template::compile(text, Place::Body).unwrap();
        let message = Message { head: template(head), body: body.map(template) };
        let method_is_head = head.starts_with("HEAD");
        Class { name: name.into(), expects: Expects::default(), weight, method_is_head, message }
    }

    fn requests(classes: Vec<Class>, clients: u64) -> Arc<Requests> {
        Arc::new(Requests::new(classes, Population::new(clients, None, None), None))
    }

    #[test]
    fn classes_are_drawn_by_weight() {
        let requests =
            requests(vec![class("a", 70, "a", None), class("b", 25, "HEAD", None), class("c", 5, "c", None)], 1);
        for seed in 0..10 {
            let mut mix = Mix::new(&requests, 0, 1, seed);
            let mut drawn = [0_u32; 3];
            let mut out = Vec::new();
            for _ in 0..20_000 {
                let issued = mix.write(&mut out);
                assert_eq!(issued.method_is_head, issued.class == 1);
                drawn[issued.class] += 1;
            }
            // Five standard deviations of the rarest are 154, of the others below 325.
            for (class, expected) in [(0, 14_000), (1, 5_000), (2, 1_000)] {
                assert!(drawn[class].abs_diff(expected) < 325, "seed {seed}: {drawn:?}");
            }
        }
    }

    #[test]
    fn threads_share_the_numbers_and_draw_differently() {
        let requests = requests(vec![class("a", 1, "{n} {random:0..1000000}\n", None)], 1);
        let written = |thread, seed| {
            let mut mix = Mix::new(&requests, thread, 3, seed);
            let mut out = Vec::new();
            (0..4).for_each(|_| {
                mix.write(&mut out);
            });
            String::from_utf8(out).unwrap()
        };
        let column =
            |text: &str, at| text.lines().map(|line| line.split(' ').nth(at).unwrap().to_owned()).collect::<Vec<_>>();
        assert_eq!(column(&written(0, 1), 0), ["0", "3", "6", "9"]);
        assert_eq!(column(&written(2, 1), 0), ["2", "5", "8", "11"]);
        assert_ne!(column(&written(0, 1), 1), column(&written(2, 1), 1));
        assert_ne!(written(0, 1), written(0, 2));
        assert_eq!(written(1, 7), written(1, 7));
    }

    #[test]
    fn a_body_that_differs_has_its_length_in_the_head() {
        let mut head = Template::default();
        head.push_body_bytes();
        head.push_literal(b"|");
        let mut class = class("a", 1, "", Some("{n}{client}"));
        class.message.head = head;
        let mut mix = Mix::new(&requests(vec![class], 1), 0, 1, 1);
        let mut out = Vec::new();
        (0..12).for_each(|_| {
            mix.write(&mut out);
        });
        assert_eq!(
            out,
            b"2|002|102|202|302|402|502|602|702|802|903|10 03|110"
                .iter()
                .copied()
                .filter(|byte| *byte != b' ')
                .collect::<Vec<_>>()
        );
    }
}
