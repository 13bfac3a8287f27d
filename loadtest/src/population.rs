//! Who sends the requests: how many clients, how often each, and from which addresses.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

/// Clients, by number from 0.
#[derive(Debug, Clone)]
pub(crate) struct Population {
    count: u64,
    /// `None`: all are equally busy.
    zipf: Option<Zipf>,
    addresses: Option<Ipv4Net>,
}

/// Most clients of a population. Nothing is kept for each but a token, and of those a bounded number.
pub(crate) const CLIENTS_MAX: u64 = 10_000_000;

impl Population {
    /// `addresses` is a part of 127.0.0.0/8.
    pub(crate) fn new(count: u64, zipf: Option<Zipf>, addresses: Option<Ipv4Net>) -> Self {
        debug_assert!((1..=CLIENTS_MAX).contains(&count));
        Self { count, zipf, addresses }
    }

    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// The client of the next request. With zipf, client 0 is the busiest.
    pub(crate) fn pick(&self, random: &mut fastrand::Rng) -> u64 {
        match &self.zipf {
            _ if self.count == 1 => 0,
            None => random.u64(..self.count),
            Some(zipf) => zipf.sample(random),
        }
    }

    /// Number of different source addresses; 0 if the kernel chooses.
    pub(crate) fn addresses(&self) -> u64 {
        self.addresses.map_or(0, |range| usable(range).1.min(self.count))
    }

    /// The source address of a client; clients share them in turn where there are more clients.
    pub(crate) fn address(&self, client: u64) -> Option<Ipv4Addr> {
        let (first, count) = usable(self.addresses?);
        Some(Ipv4Addr::from_bits(first + (client % count) as u32))
    }
}

/// The first address that a client may have, and how many there are: the first and the last of a network are not for
/// hosts.
fn usable(range: Ipv4Net) -> (u32, u64) {
    let all = 1_u64 << (32 - range.prefix_len());
    let edges = if all > 2 { 1 } else { 0 };
    (range.network().to_bits() + edges, all - 2 * u64::from(edges))
}

/// Whole numbers from 0 below a count, number `k` with a probability proportional to `1 / (k + 1)^exponent`.
///
/// Rejection-inversion (W. Hörmann, G. Derflinger: Rejection-inversion to generate variates from monotone discrete
/// distributions, 1996): a few floating-point operations and no table, however large the count.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Zipf {
    count: f64,
    exponent: f64,
    /// The integral of the density's hat at the left end of the first number and the right end of the last.
    left: f64,
    right: f64,
    /// Numbers that are at least so near to the hat's draw are accepted without another look.
    near: f64,
}

impl Zipf {
    pub(crate) const EXPONENT_MAX: f64 = 10.0;

    /// `None` if there is no number, or the exponent is not above 0 and at most [`Zipf::EXPONENT_MAX`].
    pub(crate) fn new(count: u64, exponent: f64) -> Option<Self> {
        if count == 0 || !(exponent > 0.0 && exponent <= Self::EXPONENT_MAX) {
            return None;
        }
        let mut zipf = Self { count: count as f64, exponent, left: 0.0, right: 0.0, near: 0.0 };
        zipf.left = zipf.integral(1.5) - 1.0;
        zipf.right = zipf.integral(zipf.count + 0.5);
        zipf.near = 2.0 - zipf.integral_inverse(zipf.integral(2.5) - zipf.density(2.0));
        Some(zipf)
    }

    pub(crate) fn sample(&self, random: &mut fastrand::Rng) -> u64 {
        loop {
            let drawn = self.right + random.f64() * (self.left - self.right);
            let x = self.integral_inverse(drawn);
            let number = x.round().clamp(1.0, self.count);
            if number - x <= self.near || drawn >= self.integral(number + 0.5) - self.density(number) {
                return number as u64 - 1;
            }
        }
    }

    fn density(&self, x: f64) -> f64 {
        x.powf(-self.exponent)
    }

    /// From 1 to `x`.
    fn integral(&self, x: f64) -> f64 {
        let power = 1.0 - self.exponent;
        if power.abs() < 1e-9 { x.ln() } else { (power * x.ln()).exp_m1() / power }
    }

    fn integral_inverse(&self, y: f64) -> f64 {
        let power = 1.0 - self.exponent;
        // Rounding may bring the logarithm's argument to its pole.
        if power.abs() < 1e-9 { y.exp() } else { ((power * y).max(-1.0).ln_1p() / power).exp() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zipf_draws_each_number_as_often_as_it_should() {
        const DRAWS: u32 = 200_000;
        for (seed, (count, exponent)) in
            [(10, 1.0), (1000, 1.0), (50, 0.5), (50, 2.5), (3, 1.2), (2, 8.0)].into_iter().enumerate()
        {
            let zipf = Zipf::new(count, exponent).unwrap();
            let mut random = fastrand::Rng::with_seed(seed as u64);
            let mut drawn = vec![0_u32; count as usize];
            for _ in 0..DRAWS {
                drawn[zipf.sample(&mut random) as usize] += 1;
            }
            let sum: f64 = (1..=count).map(|k| (k as f64).powf(-exponent)).sum();
            for (k, &times) in drawn.iter().enumerate() {
                let expected = f64::from(DRAWS) * (k as f64 + 1.0).powf(-exponent) / sum;
                // Five standard deviations: a false alarm in two million numbers.
                let allowed = 5.0 * expected.sqrt() + 1.0;
                assert!(
                    (f64::from(times) - expected).abs() <= allowed,
                    "seed {seed}, {count} numbers, exponent {exponent}: number {k} came {times} times, not {expected:.0}"
                );
            }
        }
    }

    #[test]
    fn zipf_takes_large_counts_and_refuses_nonsense() {
        let zipf = Zipf::new(CLIENTS_MAX, 1.0).unwrap();
        let mut random = fastrand::Rng::with_seed(5);
        assert!((0..10_000).all(|_| zipf.sample(&mut random) < CLIENTS_MAX));
        assert!(Zipf::new(1, 1.0).is_some_and(|zipf| zipf.sample(&mut random) == 0));
        for (count, exponent) in [(0, 1.0), (5, 0.0), (5, -1.0), (5, f64::NAN), (5, 11.0)] {
            assert!(Zipf::new(count, exponent).is_none(), "{count} {exponent}");
        }
    }

    #[test]
    fn uniform_clients_are_all_drawn_equally() {
        let population = Population::new(20, None, None);
        let mut random = fastrand::Rng::with_seed(3);
        let mut drawn = [0_u32; 20];
        (0..100_000).for_each(|_| drawn[population.pick(&mut random) as usize] += 1);
        assert!(drawn.iter().all(|times| (4_650..5_350).contains(times)), "seed 3: {drawn:?}");
    }

    #[test]
    fn addresses_are_handed_out_in_turn() {
        let population = |count, range: &str| Population::new(count, None, Some(range.parse().unwrap()));
        let wide = population(1_000, "127.1.0.0/16");
        assert_eq!(wide.address(0), Some(Ipv4Addr::new(127, 1, 0, 1)));
        assert_eq!(wide.address(999), Some(Ipv4Addr::new(127, 1, 3, 232)));
        assert_eq!(wide.addresses(), 1_000);
        let narrow = population(1_000, "127.1.2.0/30");
        assert_eq!((narrow.address(0), narrow.address(2)), (narrow.address(4), narrow.address(0)));
        assert_eq!(narrow.addresses(), 2);
        let one = population(10, "127.0.0.9/32");
        assert_eq!((one.address(7), one.addresses()), (Some(Ipv4Addr::new(127, 0, 0, 9)), 1));
        assert_eq!(Population::new(5, None, None).address(1), None);
    }
}
