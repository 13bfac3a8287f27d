//! The choice of an endpoint. Each core balances by itself; what the cores share is the number of requests in flight.

use crate::maglev::Maglev;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    RoundRobin,
    LeastLoaded,
    /// As `LeastLoaded`, by what a request would cost: how slow the endpoint is of late for each request in flight.
    PeakEwma,
    /// By weight.
    Random,
}

/// Chooses among the endpoints of one service, by their indices in `weights`.
#[derive(Debug)]
pub enum Balancer {
    RoundRobin(SmoothRoundRobin),
    LeastLoaded(LeastLoaded),
    PeakEwma(LeastLoaded),
    Random(LeastLoaded),
    ConsistentHash(Maglev),
}

impl Balancer {
    /// `weights`: one for each endpoint; 0 counts as 1.
    pub fn new(kind: Kind, weights: &[u32]) -> Self {
        match kind {
            Kind::RoundRobin => Self::RoundRobin(SmoothRoundRobin::new(weights)),
            Kind::LeastLoaded => Self::LeastLoaded(LeastLoaded::new(weights)),
            Kind::PeakEwma => Self::PeakEwma(LeastLoaded::new(weights)),
            Kind::Random => Self::Random(LeastLoaded::new(weights)),
        }
    }

    /// The endpoint for the next request; `None` if there is none at all. `exclude`, an endpoint that has just failed,
    /// is chosen only where there is no other. `load` tells how many requests an endpoint has now, or what one more would
    /// cost there for [`Balancer::PeakEwma`]. For [`Balancer::ConsistentHash`], `random` is the request's key, and nothing
    /// is excluded.
    ///
    /// Hot; watched by the benchmark `balance`.
    #[inline]
    pub fn pick(&mut self, random: u64, exclude: Option<usize>, load: impl Fn(usize) -> u64) -> Option<usize> {
        match self {
            Self::RoundRobin(balancer) => balancer.pick(random, exclude),
            Self::LeastLoaded(balancer) => balancer.pick(random, exclude, load),
            Self::PeakEwma(balancer) => balancer.pick_cheapest(random, exclude, load),
            Self::Random(balancer) => balancer.pick_any(random, exclude),
            Self::ConsistentHash(table) => table.pick(random),
        }
    }
}

/// nginx's smooth weighted round robin: in as many picks as the weights' sum each endpoint gets its weight, spread
/// evenly (`a a b a a c a` rather than `a a a a a b c`). Equal weights cost no more than a rotation.
#[derive(Debug)]
pub struct SmoothRoundRobin {
    order: Order,
    /// The first pick starts at a random place: else all cores would meet a new set at its first endpoint.
    started: bool,
}

#[derive(Debug)]
enum Order {
    Rotation { len: usize, next: usize },
    Smooth(Box<[Peer]>),
}

#[derive(Debug)]
struct Peer {
    weight: i64,
    /// What the endpoint is owed, in shares of a pick; all together are 0 between picks.
    credit: i64,
}

impl SmoothRoundRobin {
    pub fn new(weights: &[u32]) -> Self {
        let weights = reduce(weights);
        let order = if weights.iter().all(|weight| *weight == 1) {
            Order::Rotation { len: weights.len(), next: 0 }
        } else {
            Order::Smooth(weights.iter().map(|weight| Peer { weight: i64::from(*weight), credit: 0 }).collect())
        };
        Self { order, started: false }
    }

    /// See [`Balancer::pick`]; only the first pick looks at `random`.
    #[inline]
    pub fn pick(&mut self, random: u64, exclude: Option<usize>) -> Option<usize> {
        if !self.started {
            self.start(random);
        }
        match &mut self.order {
            Order::Rotation { len: 0, .. } => None,
            Order::Rotation { len, next } => {
                let after = |index: usize| if index + 1 < *len { index + 1 } else { 0 };
                let index = if exclude == Some(*next) { after(*next) } else { *next };
                *next = after(index);
                Some(index)
            }
            Order::Smooth(peers) => pick_smooth(peers, exclude),
        }
    }

    #[cold]
    fn start(&mut self, random: u64) {
        /// Enough to tell cores apart, few enough for a request to wait for.
        const STEPS_MAX: u64 = 64;
        self.started = true;
        match &mut self.order {
            Order::Rotation { len, next } => *next = (random % (*len).max(1) as u64) as usize,
            Order::Smooth(peers) => {
                for _ in 0..random % STEPS_MAX {
                    pick_smooth(peers, None);
                }
            }
        }
    }
}

/// Every endpoint earns its weight, the richest is picked and pays what all earned.
fn pick_smooth(peers: &mut [Peer], exclude: Option<usize>) -> Option<usize> {
    let exclude = exclude.filter(|_| peers.len() > 1);
    let (mut earned, mut best) = (0, None);
    for (index, peer) in peers.iter_mut().enumerate().filter(|(index, _)| Some(*index) != exclude) {
        peer.credit += peer.weight;
        earned += peer.weight;
        if best.is_none_or(|(_, credit)| peer.credit > credit) {
            best = Some((index, peer.credit));
        }
    }
    let (index, _) = best?;
    peers.get_mut(index)?.credit -= earned;
    Some(index)
}

/// The power of two choices: of two different endpoints, drawn by weight, the one with the smaller
/// `(requests in flight + 1) / weight`. Where both are idle, or equally loaded, the one drawn first, so that the weights
/// hold for a trickle of requests too.
#[derive(Debug)]
pub struct LeastLoaded {
    /// For each endpoint the sum of the weights before it, and at the end the sum of all.
    starts: Box<[u64]>,
}

impl LeastLoaded {
    pub fn new(weights: &[u32]) -> Self {
        let sums = reduce(weights).into_iter().scan(0, |sum, weight| {
            *sum += u64::from(weight);
            Some(*sum)
        });
        Self { starts: std::iter::once(0).chain(sums).collect() }
    }

    /// See [`Balancer::pick`]. `in_flight` is asked for two endpoints at most.
    #[inline]
    pub fn pick(&self, random: u64, exclude: Option<usize>, in_flight: impl Fn(usize) -> u64) -> Option<usize> {
        self.pick_better(random, exclude, |first, second| {
            let (load_first, load_second) = (in_flight(first.index), in_flight(second.index));
            let idle = load_first == 0 && load_second == 0;
            !idle && is_less(load_second.saturating_add(1), second, load_first.saturating_add(1), first)
        })
    }

    /// The one with the smaller cost by weight; `cost` is asked for two endpoints at most.
    #[inline]
    pub fn pick_cheapest(&self, random: u64, exclude: Option<usize>, cost: impl Fn(usize) -> u64) -> Option<usize> {
        self.pick_better(random, exclude, |first, second| is_less(cost(second.index), second, cost(first.index), first))
    }

    /// One by weight, whatever it has to do.
    #[inline]
    pub fn pick_any(&self, mut random: u64, exclude: Option<usize>) -> Option<usize> {
        let exclude = exclude.and_then(|index| self.span(index));
        self.draw(&mut random, exclude, None).or(exclude).map(|span| span.index)
    }

    #[inline]
    fn pick_better(
        &self,
        mut random: u64,
        exclude: Option<usize>,
        is_second_better: impl Fn(Span, Span) -> bool,
    ) -> Option<usize> {
        let exclude = exclude.and_then(|index| self.span(index));
        let Some(first) = self.draw(&mut random, exclude, None) else {
            // Nothing besides the excluded one, if even that.
            return exclude.map(|span| span.index);
        };
        let Some(second) = self.draw(&mut random, exclude, Some(first)) else { return Some(first.index) };
        Some(if is_second_better(first, second) { second.index } else { first.index })
    }

    /// Draws an endpoint by weight among those that are neither `a` nor `b`, which are different. What is left of the
    /// random number serves for the next draw.
    #[inline]
    fn draw(&self, random: &mut u64, a: Option<Span>, b: Option<Span>) -> Option<Span> {
        let total = self.starts.last().copied().unwrap_or(0);
        let len = |span: Option<Span>| span.map_or(0, |span| span.len);
        let rest = total - len(a) - len(b);
        if rest == 0 {
            return None;
        }
        let product = u128::from(*random) * u128::from(rest);
        *random = product as u64;
        let mut point = (product >> 64) as u64;
        // The spans that are not to be hit are jumped over, from the left.
        let (left, right) = match (a, b) {
            (Some(a), Some(b)) if b.start < a.start => (Some(b), Some(a)),
            _ => (a, b),
        };
        for span in [left, right].into_iter().flatten() {
            if point >= span.start {
                point += span.len;
            }
        }
        self.span(self.index_of(point))
    }

    #[inline]
    fn index_of(&self, point: u64) -> usize {
        let equal = self.starts.last().is_some_and(|total| *total == self.starts.len() as u64 - 1);
        if equal { point as usize } else { self.starts.partition_point(|start| *start <= point) - 1 }
    }

    #[inline]
    fn span(&self, index: usize) -> Option<Span> {
        let (start, end) = (*self.starts.get(index)?, *self.starts.get(index + 1)?);
        Some(Span { index, start, len: end - start })
    }
}

/// An endpoint's part of the line that random points fall on: as long as its weight.
#[derive(Debug, Clone, Copy)]
struct Span {
    index: usize,
    start: u64,
    len: u64,
}

/// Whether one cost is less than another, each by the weight of its endpoint.
#[inline]
fn is_less(cost: u64, of: Span, other: u64, of_other: Span) -> bool {
    u128::from(cost) * u128::from(of_other.len) < u128::from(other) * u128::from(of.len)
}

/// The weights divided by what they have in common: equal ones become 1.
fn reduce(weights: &[u32]) -> Vec<u32> {
    let gcd = |mut a: u32, mut b: u32| {
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    let common = weights.iter().fold(0, |common, weight| gcd(common, (*weight).max(1))).max(1);
    weights.iter().map(|weight| (*weight).max(1) / common).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;
    use proptest::prelude::*;

    const KINDS: [Kind; 4] = [Kind::RoundRobin, Kind::LeastLoaded, Kind::PeakEwma, Kind::Random];

    fn near(count: u64, expected: f64, tolerance: f64) -> bool {
        (count as f64 - expected).abs() <= tolerance * expected
    }

    #[test]
    fn none_among_none_and_always_the_only_one() {
        for kind in KINDS {
            assert_eq!(Balancer::new(kind, &[]).pick(7, None, |_| 0), None);
            assert_eq!(Balancer::new(kind, &[]).pick(7, Some(0), |_| 0), None);
            for weight in [0, 1, u32::MAX] {
                let mut balancer = Balancer::new(kind, &[weight]);
                for exclude in [None, Some(0), Some(1)] {
                    assert_eq!(balancer.pick(u64::MAX, exclude, |_| u64::MAX), Some(0));
                }
            }
        }
    }

    #[test]
    fn the_weighted_order_is_smooth() {
        let mut balancer = SmoothRoundRobin::new(&[5, 1, 1]);
        let picks: Vec<_> = (0..7).map(|_| balancer.pick(0, None).unwrap()).collect();
        assert_eq!(picks, [0, 0, 1, 0, 2, 0, 0]);
    }

    #[test]
    fn cores_start_at_different_places() {
        for weights in [[2, 2, 2], [3, 2, 1]] {
            let first = |random| SmoothRoundRobin::new(&weights).pick(random, None).unwrap();
            let firsts: std::collections::HashSet<_> = (0..20).map(first).collect();
            assert_eq!(firsts.len(), 3, "{weights:?}");
        }
    }

    #[test]
    fn an_idle_service_is_used_by_weight() {
        let (weights, picks) = ([1, 2, 3, 10], 160_000);
        let balancer = LeastLoaded::new(&weights);
        let (mut random, mut counts) = (Random(1), [0; 4]);
        for _ in 0..picks {
            counts[balancer.pick(random.next(), None, |_| 0).unwrap()] += 1;
        }
        for (count, weight) in counts.into_iter().zip(weights) {
            assert!(near(count, f64::from(picks * weight) / 16.0, 0.03), "{counts:?}");
        }
    }

    #[test]
    fn random_follows_the_weights_whatever_the_load() {
        let (weights, picks) = ([1, 2, 3, 10], 160_000);
        let mut balancer = Balancer::new(Kind::Random, &weights);
        let (mut random, mut counts) = (Random(4), [0; 4]);
        for _ in 0..picks {
            counts[balancer.pick(random.next(), None, |index| index as u64 * 1_000).unwrap()] += 1;
        }
        for (count, weight) in counts.into_iter().zip(weights) {
            assert!(near(count, f64::from(picks * weight) / 16.0, 0.05), "{counts:?}");
        }
    }

    /// Four endpoints of which one is ten times as slow: it gets few requests, the others their fair share within 5 %, and
    /// the latency of all is that of the fast ones.
    #[test]
    fn the_slow_one_of_four_gets_few_requests() {
        use crate::ewma::PeakEwma;
        for seed in 0..20 {
            let mut balancer = Balancer::new(Kind::PeakEwma, &[1; 4]);
            let latencies: [PeakEwma; 4] = Default::default();
            let (mut random, mut counts) = (Random(seed), [0u64; 4]);
            // (when it ends, endpoint, latency)
            let mut under_way: Vec<(u64, usize, u64)> = Vec::new();
            let requests = 40_000;
            for step in 0..requests {
                let now = 1_000_000 + step * 500;
                under_way.retain(|(ends, endpoint, latency)| {
                    let over = *ends <= now;
                    if over {
                        latencies[*endpoint].observe(*latency, *ends);
                    }
                    !over
                });
                let in_flight = |index: usize| under_way.iter().filter(|(_, endpoint, _)| *endpoint == index).count();
                let cost = |index: usize| latencies[index].cost(in_flight(index) as u64, now);
                let picked = balancer.pick(random.next(), None, cost).unwrap();
                let latency = if picked == 3 { 20_000 } else { 2_000 } + random.next() % 500;
                under_way.push((now + latency, picked, latency));
                counts[picked] += 1;
            }
            assert!(counts[3] < requests / 50, "seed {seed}: {counts:?}");
            let mean = (requests - counts[3]) as f64 / 3.0;
            assert!(counts[..3].iter().all(|count| near(*count, mean, 0.05)), "seed {seed}: {counts:?}");
        }
    }

    #[test]
    fn the_second_choice_is_drawn_by_weight_too() {
        // Endpoint 3 is never worth it, so it shows who was drawn with it.
        let balancer = LeastLoaded::new(&[1, 2, 3, 6]);
        let (mut random, mut counts) = (Random(2), [0; 4]);
        for _ in 0..120_000 {
            let load = |index| if index == 3 { 1 << 40 } else { 0 };
            counts[balancer.pick(random.next(), None, load).unwrap()] += 1;
        }
        for (count, share) in counts.into_iter().zip([1.0, 2.0, 3.0]) {
            assert!(near(count, 120_000.0 * share / 6.0, 0.03), "{counts:?}");
        }
        assert_eq!(counts[3], 0);
    }

    #[test]
    fn a_busy_service_is_loaded_by_weight() {
        for weights in [vec![1; 6], vec![1, 2, 3, 4], vec![1, 10]] {
            let balancer = LeastLoaded::new(&weights);
            let total: u32 = weights.iter().sum();
            let concurrency = 100 * u64::from(total);
            let (mut random, mut load, mut queue) = (Random(3), vec![0u64; weights.len()], Vec::new());
            for step in 0..concurrency * 20 {
                if step >= concurrency {
                    let done = queue.swap_remove((random.next() % queue.len() as u64) as usize);
                    load[done] -= 1;
                }
                let picked = balancer.pick(random.next(), None, |index| load[index]).unwrap();
                load[picked] += 1;
                queue.push(picked);
            }
            for (load, weight) in load.iter().zip(&weights) {
                assert!(near(*load, 100.0 * f64::from(*weight), 0.1), "{weights:?} {load:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn round_robin_follows_the_weights_exactly_over_a_cycle(
            weights in prop::collection::vec(1..20u32, 1..9), random: u64, cycles in 1..4u32
        ) {
            let mut balancer = SmoothRoundRobin::new(&weights);
            let mut counts = vec![0; weights.len()];
            for _ in 0..weights.iter().sum::<u32>() * cycles {
                counts[balancer.pick(random, None).unwrap()] += 1;
            }
            let expected: Vec<_> = weights.iter().map(|weight| weight * cycles).collect();
            prop_assert_eq!(counts, expected);
        }

        #[test]
        fn the_excluded_endpoint_is_not_picked(
            weights in prop::collection::vec(0..=u32::MAX, 2..9), exclude: prop::sample::Index, seed: u64, load: u64
        ) {
            let exclude = exclude.index(weights.len());
            let mut random = Random(seed);
            for kind in KINDS {
                let mut balancer = Balancer::new(kind, &weights);
                for _ in 0..50 {
                    let picked = balancer.pick(random.next(), Some(exclude), |_| load).unwrap();
                    prop_assert!(picked < weights.len() && picked != exclude);
                }
            }
        }

        #[test]
        fn round_robin_settles_again_after_exclusions(weights in prop::collection::vec(1..6u32, 2..6), seed: u64) {
            let mut balancer = SmoothRoundRobin::new(&weights);
            let mut random = Random(seed);
            for _ in 0..20 {
                balancer.pick(0, Some((random.next() % weights.len() as u64) as usize));
            }
            let (cycles, total) = (50, weights.iter().sum::<u32>());
            let mut counts = vec![0u32; weights.len()];
            for _ in 0..total * cycles {
                counts[balancer.pick(0, None).unwrap()] += 1;
            }
            for (count, weight) in counts.iter().zip(&weights) {
                prop_assert!(count.abs_diff(weight * cycles) <= 20, "{:?} {:?}", counts, weights);
            }
        }

        #[test]
        fn the_less_loaded_of_two_equals_is_picked(random: u64, loads: [u32; 2]) {
            let balancer = LeastLoaded::new(&[7, 7]);
            let picked = balancer.pick(random, None, |index| u64::from(loads[index])).unwrap();
            prop_assert!(loads[picked] <= loads[1 - picked]);
        }

        #[test]
        fn two_draws_differ(weights in prop::collection::vec(0..=u32::MAX, 3..9), mut random: u64, a: prop::sample::Index) {
            let balancer = LeastLoaded::new(&weights);
            let excluded = balancer.span(a.index(weights.len()));
            let first = balancer.draw(&mut random, excluded, None).unwrap();
            let second = balancer.draw(&mut random, excluded, Some(first)).unwrap();
            prop_assert!(first.index != second.index);
            prop_assert!(![first.index, second.index].contains(&excluded.unwrap().index));
        }
    }
}
