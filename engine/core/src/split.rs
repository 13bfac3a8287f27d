//! The sides of a split: which of several services a request goes to, by weight and by its key. The same key goes to the
//! same side on all cores and all gateways, and a weight that is raised moves keys to its side only (weighted rendezvous
//! hashing).

use crate::maglev::hash;
use crate::random::mix;

/// The sides, by their place in the list.
#[derive(Debug)]
pub struct Shares(Box<[Side]>);

#[derive(Debug)]
struct Side {
    seed: u64,
    weight: f64,
}

impl Shares {
    /// Of services by name, in whatever order; one with weight 0 gets no key.
    pub fn new<'n>(sides: impl Iterator<Item = (&'n str, u32)>) -> Self {
        Self(sides.map(|(name, weight)| Side { seed: hash(name.as_bytes()), weight: weight.into() }).collect())
    }

    /// The side of a key, each of which is drawn as if by lot: from the keys of all, each side gets its share. `None` where
    /// no side has a weight.
    pub fn pick(&self, key: u64) -> Option<usize> {
        // Each side draws a time until it rings, the shorter on average the heavier it is. Its own weight moves no time but
        // its own.
        let time = |side: &Side| -unit(mix(key ^ side.seed)).ln() / side.weight;
        let drawn = self.0.iter().enumerate().filter(|(_, side)| side.weight > 0.0);
        drawn.map(|(at, side)| (at, time(side))).min_by(|one, other| one.1.total_cmp(&other.1)).map(|(at, _)| at)
    }
}

/// Evenly between 0, which is excluded, and 1.
fn unit(random: u64) -> f64 {
    ((random >> 11) + 1) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: u64 = 4_000;
    const NAMES: [&str; 5] = ["v1", "v2", "canary", "blue", "green"];

    fn shares(weights: &[(&str, u32)]) -> Shares {
        Shares::new(weights.iter().copied())
    }

    /// The side of each key, by name.
    fn sides<'n>(weights: &[(&'n str, u32)], seed: u64) -> Vec<Option<&'n str>> {
        let shares = shares(weights);
        let side = |key: u64| shares.pick(mix(seed ^ key)).map(|at| weights[at].0);
        (0..KEYS).map(side).collect()
    }

    #[test]
    fn each_side_gets_its_share_and_none_without_a_weight() {
        for seed in 0..200 {
            let weights: Vec<(&str, u32)> =
                NAMES.iter().enumerate().map(|(at, name)| (*name, (mix(seed * 31 + at as u64) % 20) as u32)).collect();
            let whole: u32 = weights.iter().map(|(_, weight)| weight).sum();
            let sides = sides(&weights, seed);
            for (name, weight) in &weights {
                let found = sides.iter().filter(|side| **side == Some(*name)).count() as f64;
                let wanted = KEYS as f64 * f64::from(*weight) / f64::from(whole);
                // Five deviations of a binomial distribution.
                let slack = 5.0 * (wanted * (1.0 - wanted / KEYS as f64)).sqrt();
                assert!((found - wanted).abs() <= slack, "seed {seed}: {name} of {weights:?} has {found}");
            }
        }
        assert_eq!(shares(&[("v1", 0), ("v2", 0)]).pick(7), None);
        assert_eq!(shares(&[]).pick(7), None);
    }

    #[test]
    fn a_raised_weight_moves_keys_to_its_side_only() {
        for seed in 0..300 {
            let mut weights: Vec<(&str, u32)> =
                NAMES.iter().enumerate().map(|(at, name)| (*name, (mix(seed * 17 + at as u64) % 100) as u32)).collect();
            let before = sides(&weights, seed);
            let raised = (mix(seed) % 5) as usize;
            weights[raised].1 += 1 + (mix(seed + 1) % 100) as u32;
            let after = sides(&weights, seed);
            for (key, (before, after)) in before.iter().zip(&after).enumerate() {
                let is_lawful = before == after || *after == Some(NAMES[raised]);
                assert!(is_lawful, "seed {seed}: key {key} has gone from {before:?} to {after:?}");
            }
        }
    }

    #[test]
    fn the_order_of_the_list_does_not_matter() {
        let (one, other) = ([("v1", 95), ("v2", 5)], [("v2", 5), ("v1", 95)]);
        assert_eq!(sides(&one, 3), sides(&other, 3));
    }
}
