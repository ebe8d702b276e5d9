//! Medians and ratios of a cell's rounds. Pure; a summary of no rounds does not exist.

use serde::Serialize;

/// What the rounds of one cell gave.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Summary {
    /// The tenth part of the rounds lies at or below it (nearest rank): what the thing costs while no other guest
    /// of the machine takes part of the caches and the core, which only ever adds.
    pub(crate) quiet: f64,
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
    pub(crate) rounds: usize,
}

impl Summary {
    /// `None` without a single value.
    pub(crate) fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let tenth = sorted.len().div_ceil(10) - 1;
        Some(Self {
            quiet: sorted[tenth],
            median: middle(&sorted),
            min,
            max,
            rounds: sorted.len(),
        })
    }

    /// `median (min–max)` with as many decimals as the size of the value deserves.
    pub(crate) fn text(&self) -> String {
        format!(
            "{} ({}–{})",
            number(self.median),
            number(self.min),
            number(self.max)
        )
    }
}

/// Mean of the two middle values of an even number of them.
fn middle(sorted: &[f64]) -> f64 {
    let half = sorted.len() / 2;
    if sorted.len() % 2 == 1 {
        sorted[half]
    } else {
        f64::midpoint(sorted[half - 1], sorted[half])
    }
}

/// The value below or at which `percent` of `sorted` lie (nearest rank); 0 for an empty list.
pub(crate) fn percentile(sorted: &[u32], percent: f64) -> u32 {
    let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0)
}

/// Three significant digits or so.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_is_the_median_with_its_range() {
        let odd = Summary::of(&[3.0, 1.0, 20.0]).unwrap();
        assert_eq!(
            (odd.quiet, odd.median, odd.min, odd.max, odd.rounds),
            (1.0, 3.0, 1.0, 20.0, 3)
        );
        assert_eq!(Summary::of(&[4.0, 1.0, 2.0, 8.0]).unwrap().median, 3.0);
        assert_eq!(Summary::of(&[]), None);
        assert_eq!(odd.text(), "3.00 (1.00–20.0)");
    }

    #[test]
    fn a_tenth_of_the_rounds_is_no_dearer_than_the_quiet_figure() {
        let rounds: Vec<f64> = (1..=41).rev().map(f64::from).collect();
        assert_eq!(Summary::of(&rounds).unwrap().quiet, 5.0);
        assert_eq!(Summary::of(&rounds[..20]).unwrap().quiet, 23.0);
    }

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let values: Vec<u32> = (1..=200).collect();
        assert_eq!(
            (percentile(&values, 50.0), percentile(&values, 99.0)),
            (100, 198)
        );
        assert_eq!(
            (percentile(&values, 100.0), percentile(&[], 50.0)),
            (200, 0)
        );
    }
}
