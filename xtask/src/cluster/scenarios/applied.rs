//! How long changes took from their reading until they were live, by the daemons' own histogram.

use anyhow::{Context, Result};

use super::stage::Stage;

const NAME: &str = "forebay_config_apply_seconds_bucket";

/// Cumulative counts of all nodes by their limit in seconds, in order; the last has no limit.
#[derive(Debug)]
pub(super) struct Applied(Vec<(f64, u64)>);

impl Applied {
    /// As it is now.
    pub(super) fn of(stage: &Stage<'_>) -> Result<Self> {
        let mut sum = Self(Vec::new());
        for node in stage.nodes() {
            let text = stage.metrics(node).context("a node tells no metrics")?;
            sum.add(&text);
        }
        Ok(sum)
    }

    /// What has come since.
    pub(super) fn since(&self, stage: &Stage<'_>) -> Result<Self> {
        let mut now = Self::of(stage)?;
        for ((_, count), (_, before)) in now.0.iter_mut().zip(&self.0) {
            *count = count.saturating_sub(*before);
        }
        Ok(now)
    }

    fn add(&mut self, metrics: &str) {
        for line in metrics.lines() {
            let parts = line.strip_prefix(NAME).and_then(|rest| {
                let (limit, count) = rest.strip_prefix("{le=\"")?.split_once("\"}")?;
                let limit = match limit {
                    "+Inf" => f64::INFINITY,
                    number => number.parse().ok()?,
                };
                Some((limit, count.trim().parse::<u64>().ok()?))
            });
            let Some((limit, count)) = parts else {
                continue;
            };
            match self
                .0
                .iter_mut()
                .find(|(known, _)| known.total_cmp(&limit).is_eq())
            {
                Some((_, sum)) => *sum += count,
                None => self.0.push((limit, count)),
            }
        }
    }

    /// The lowest limit under which that share of all came; `None` if nothing came.
    fn within(&self, share: f64) -> Option<f64> {
        let all = self.0.last().filter(|(_, all)| *all > 0)?.1;
        let enough = |count: u64| count as f64 >= all as f64 * share;
        self.0
            .iter()
            .find(|(_, count)| enough(*count))
            .map(|(limit, _)| *limit)
    }
}

impl std::fmt::Display for Applied {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ms = |share: f64| match self.within(share) {
            Some(limit) if limit.is_finite() => format!("{} ms", limit * 1000.0),
            Some(_) => "no limit".to_owned(),
            None => "nothing".to_owned(),
        };
        let all = self.0.last().map_or(0, |(_, all)| *all);
        write!(
            f,
            "half within {}, 99 % within {}, all within {} ({all} times on all nodes)",
            ms(0.5),
            ms(0.99),
            ms(1.0)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_from_the_buckets() {
        let text = "# TYPE forebay_config_apply_seconds histogram\n\
                    forebay_config_apply_seconds_count 100\n\
                    forebay_config_apply_seconds_bucket{le=\"0.001\"} 60\n\
                    forebay_config_apply_seconds_bucket{le=\"0.005\"} 99\n\
                    forebay_config_apply_seconds_bucket{le=\"+Inf\"} 100\n";
        let mut applied = Applied(Vec::new());
        applied.add(text);
        applied.add(text);
        assert_eq!(
            applied.to_string(),
            "half within 1 ms, 99 % within 5 ms, all within no limit (200 times on all nodes)"
        );
        assert_eq!(Applied(Vec::new()).within(0.5), None);
    }
}
