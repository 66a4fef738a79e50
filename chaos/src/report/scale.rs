//! From values to pixels: linear and logarithmic axes, and the round numbers at which they are marked.

/// An axis from a range of values to a range of pixels; values outside are clamped to its ends.
#[derive(Clone, Copy, Debug)]
pub struct Axis {
    /// In values, or in their decimal logarithms.
    values: (f64, f64),
    pixels: (f64, f64),
    logarithmic: bool,
}

impl Axis {
    pub fn linear(values: (f64, f64), pixels: (f64, f64)) -> Axis {
        Axis { values, pixels, logarithmic: false }
    }

    /// `values.0` must be above zero.
    pub fn logarithmic(values: (f64, f64), pixels: (f64, f64)) -> Axis {
        Axis { values: (values.0.log10(), values.1.log10()), pixels, logarithmic: true }
    }

    pub fn at(&self, value: f64) -> f64 {
        let (low, high) = self.values;
        let value = if self.logarithmic { value.max(f64::MIN_POSITIVE).log10() } else { value };
        let share = if high > low { ((value - low) / (high - low)).clamp(0.0, 1.0) } else { 0.0 };
        self.pixels.0 + share * (self.pixels.1 - self.pixels.0)
    }
}

/// The round number at or above `value`: two digits at most, so that an axis ends close above what it shows.
pub fn round_up(value: f64) -> f64 {
    if value <= 0.0 {
        return 1.0;
    }
    let power = 10f64.powf(value.log10().floor());
    // The tolerance keeps 0.2 / 0.1 = 2.0000000000000004 at two.
    [1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0]
        .iter()
        .map(|m| m * power)
        .find(|&round| value <= round * 1.000_001)
        .unwrap_or(10.0 * power)
}

/// Seconds between marks of a time axis, so that there are at most `marks_max`.
pub fn time_step(span_s: u64, marks_max: u64) -> u64 {
    const STEPS_S: [u64; 14] = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1_800, 3_600, 7_200, 21_600];
    STEPS_S.into_iter().find(|step| span_s / step <= marks_max).unwrap_or(86_400)
}

/// 1 and 3 times powers of ten from `low` to `high`.
pub fn logarithmic_marks(low: f64, high: f64) -> Vec<f64> {
    let mut marks = Vec::new();
    let mut power = 10f64.powf(low.max(f64::MIN_POSITIVE).log10().floor());
    while power <= high {
        marks.extend([power, 3.0 * power].into_iter().filter(|m| (low..=high).contains(m)));
        power *= 10.0;
    }
    marks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_clamp_and_interpolate() {
        let linear = Axis::linear((0.0, 10.0), (100.0, 200.0));
        assert_eq!([-5.0, 0.0, 5.0, 99.0].map(|v| linear.at(v)), [100.0, 100.0, 150.0, 200.0]);
        let log = Axis::logarithmic((1.0, 100.0), (0.0, 100.0));
        assert_eq!([0.0, 1.0, 10.0, 100.0].map(|v| log.at(v)), [0.0, 0.0, 50.0, 100.0]);
        assert_eq!(Axis::linear((0.0, 0.0), (7.0, 9.0)).at(3.0), 7.0);
    }

    #[test]
    fn marks_are_round() {
        assert_eq!([0.0, 0.9, 1.0, 130.0, 420.0, 730.0].map(round_up), [1.0, 1.0, 1.0, 150.0, 500.0, 800.0]);
        assert_eq!([30, 600, 7_200].map(|span| time_step(span, 12)), [5, 60, 600]);
        assert_eq!(logarithmic_marks(100.0, 3_000.0), [100.0, 300.0, 1_000.0, 3_000.0]);
    }
}
