//! Scales of charts: where a value stands, and which values get a mark.

/// How values are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scale {
    /// From zero.
    Linear,
    /// Whole decades; for values above zero that differ much.
    Log,
    /// Percentiles, each further nine as wide as the one before: 0, 90, 99, 99.9.
    Percentile,
}

/// A scale with its ends.
#[derive(Debug, Clone, Copy)]
pub(super) struct Axis {
    scale: Scale,
    /// Both in the scale's own measure, see `measure`.
    low: f64,
    high: f64,
}

impl Axis {
    /// Wide enough for all the values.
    pub(super) fn over(scale: Scale, values: impl Iterator<Item = f64> + Clone) -> Self {
        let values = values.filter(|value| value.is_finite());
        let most = values.clone().fold(0.0, f64::max);
        let (low, high) = match scale {
            Scale::Linear => {
                let step = step(most);
                (0.0, ((most / step).ceil() * step).max(step))
            }
            Scale::Log => {
                let least = values.filter(|value| *value > 0.0).fold(f64::INFINITY, f64::min);
                let low = if least.is_finite() { least.log10().floor() } else { 0.0 };
                (low, most.max(1e-9).log10().ceil().max(low + 1.0))
            }
            Scale::Percentile => {
                let below = values.filter(|value| *value < 100.0).map(|value| measure(scale, value));
                (0.0, below.fold(1.0, f64::max))
            }
        };
        Self { scale, low, high }
    }

    /// From 0 at the low end to 1 at the high end; what lies outside stands at the end.
    pub(super) fn place(&self, value: f64) -> f64 {
        ((measure(self.scale, value) - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
    }

    pub(super) fn ticks(&self) -> Vec<f64> {
        let whole = |from: f64, to: f64| (from.ceil() as i32)..=(to.floor() as i32);
        match self.scale {
            Scale::Linear => {
                let step = step(self.high);
                whole(0.0, self.high / step + 1e-9).map(|n| f64::from(n) * step).collect()
            }
            Scale::Log => {
                let steps: &[f64] = if self.high - self.low > 2.5 { &[1.0] } else { &[1.0, 2.0, 5.0] };
                let decades =
                    whole(self.low, self.high).flat_map(|n| steps.iter().map(move |step| step * 10_f64.powi(n)));
                decades.filter(|tick| tick.log10() <= self.high + 1e-9).collect()
            }
            Scale::Percentile => {
                let nines = whole(1.0, self.high).map(|nines| 100.0 - 10_f64.powi(2 - nines));
                [0.0, 50.0].into_iter().chain(nines).collect()
            }
        }
    }
}

fn measure(scale: Scale, value: f64) -> f64 {
    match scale {
        Scale::Linear => value,
        Scale::Log => value.max(f64::MIN_POSITIVE).log10(),
        Scale::Percentile => (100.0 / (100.0 - value).max(f64::MIN_POSITIVE)).log10(),
    }
}

/// 1, 2 or 5 times a power of ten, so that four to ten of it make the whole.
fn step(whole: f64) -> f64 {
    let whole = if whole > 0.0 { whole } else { 1.0 };
    let power = 10_f64.powf((whole / 4.0).log10().floor());
    let steps = [5.0, 2.0, 1.0].map(|times| times * power);
    steps.into_iter().find(|step| whole / step >= 4.0).unwrap_or(power)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axis(scale: Scale, values: &[f64]) -> Axis {
        Axis::over(scale, values.iter().copied())
    }

    #[test]
    fn linear_axes_start_at_zero_and_end_on_a_mark() {
        let linear = axis(Scale::Linear, &[4_870.0, 5_010.0]);
        assert_eq!(linear.ticks(), [0.0, 1_000.0, 2_000.0, 3_000.0, 4_000.0, 5_000.0, 6_000.0]);
        assert_eq!((linear.place(0.0), linear.place(3_000.0), linear.place(9e9)), (0.0, 0.5, 1.0));
        assert_eq!(axis(Scale::Linear, &[]).ticks().first(), Some(&0.0));
        for most in [0.003, 0.7, 1.0, 7.0, 13.0, 999.0, 1e12] {
            let ticks = axis(Scale::Linear, &[most]).ticks();
            assert!((5..=11).contains(&ticks.len()), "{most}: {ticks:?}");
            assert!(ticks.last().is_some_and(|last| *last >= most * 0.999_999), "{most}: {ticks:?}");
        }
    }

    #[test]
    fn log_axes_have_whole_decades() {
        let log = axis(Scale::Log, &[0.0, 120.0, 310_000.0]);
        assert_eq!(log.ticks(), [100.0, 1e3, 1e4, 1e5, 1e6]);
        assert_eq!((log.place(0.0), log.place(100.0), log.place(1e4), log.place(1e6)), (0.0, 0.0, 0.5, 1.0));
        assert_eq!(axis(Scale::Log, &[2.0, 3.0]).ticks(), [1.0, 2.0, 5.0, 10.0]);
        assert_eq!(axis(Scale::Log, &[0.0]).ticks().first(), Some(&1.0));
    }

    #[test]
    fn each_nine_is_as_wide_as_the_one_before() {
        let nines = axis(Scale::Percentile, &[0.0, 50.0, 99.0, 99.99, 100.0]);
        let ticks: Vec<String> = nines.ticks().iter().map(|tick| format!("{tick:.4}")).collect();
        assert_eq!(ticks, ["0.0000", "50.0000", "90.0000", "99.0000", "99.9000", "99.9900"]);
        let places = [0.0, 90.0, 99.0, 99.9, 99.99, 100.0].map(|tick| (nines.place(tick) * 100.0).round());
        assert_eq!(places, [0.0, 25.0, 50.0, 75.0, 100.0, 100.0]);
    }
}
