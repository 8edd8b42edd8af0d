//! Medians and percentiles.

use std::time::Duration;

/// What several rounds say about one figure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    /// The middle one.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
    /// How many there are.
    pub rounds: usize,
}

impl Summary {
    /// `None` without values.
    #[must_use]
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_unstable_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let half = sorted.len() / 2;
        // Of an even number, the mean of the two in the middle.
        let median = if sorted.len() % 2 == 1 { sorted[half] } else { f64::midpoint(sorted[half - 1], sorted[half]) };
        Some(Self { median, min, max, rounds: sorted.len() })
    }
}

/// Times, sorted, for their percentiles.
#[derive(Debug, Clone)]
pub struct Times(Vec<Duration>);

impl Times {
    /// In any order.
    #[must_use]
    pub fn new(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        Self(times)
    }

    /// The time that half of them do not exceed.
    #[must_use]
    pub fn p50(&self) -> Duration {
        self.percentile(50)
    }

    /// The time that 99 of 100 do not exceed.
    #[must_use]
    pub fn p99(&self) -> Duration {
        self.percentile(99)
    }

    /// The least time that so many percent of the times do not exceed; zero without times.
    fn percentile(&self, percent: usize) -> Duration {
        let rank = (self.0.len() * percent).div_ceil(100);
        self.0.get(rank.saturating_sub(1)).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_or_the_mean_of_the_two_middles() {
        let summary = Summary::of(&[5.0, 1.0, 3.0]).unwrap();
        assert_eq!(summary, Summary { median: 3.0, min: 1.0, max: 5.0, rounds: 3 });
        assert!((Summary::of(&[4.0, 1.0, 2.0, 9.0]).unwrap().median - 3.0).abs() < f64::EPSILON);
        assert_eq!(Summary::of(&[]), None);
    }

    #[test]
    fn percentiles_are_times_that_were_measured() {
        let times = |count: u64| Times::new((1..=count).rev().map(Duration::from_millis).collect());
        assert_eq!(times(100).p50(), Duration::from_millis(50));
        assert_eq!(times(100).p99(), Duration::from_millis(99));
        assert_eq!(times(1).p50(), Duration::from_millis(1));
        assert_eq!(times(3).p99(), Duration::from_millis(3));
        assert_eq!(times(0).p50(), Duration::ZERO);
    }
}
