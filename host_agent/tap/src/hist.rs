//! Latency histograms: buckets that are at most an eighth wide, in nanoseconds.

use serde_json::{json, Value};

/// Sub-buckets of each power of two.
const PARTS: u32 = 8;
const PARTS_BITS: u32 = PARTS.trailing_zeros();
/// Up to 2^40 ns, 18 minutes.
const BUCKETS: usize = ((40 - PARTS_BITS + 1) * PARTS) as usize;

/// Counts of durations.
#[derive(Clone)]
pub struct Histogram {
    counts: Box<[u32; BUCKETS]>,
    total: u64,
    longest: u64,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram { counts: Box::new([0; BUCKETS]), total: 0, longest: 0 }
    }
}

fn bucket(ns: u64) -> usize {
    if ns < u64::from(PARTS) {
        return ns as usize;
    }
    let top = 63 - ns.leading_zeros();
    let part = (ns >> (top - PARTS_BITS)) as u32 & (PARTS - 1);
    (((top - PARTS_BITS + 1) * PARTS + part) as usize).min(BUCKETS - 1)
}

/// The upper edge of a bucket, ns.
fn edge(bucket: usize) -> u64 {
    let (group, part) = (bucket as u32 / PARTS, u64::from(bucket as u32 % PARTS));
    if group == 0 {
        return part;
    }
    ((u64::from(PARTS) + part + 1) << (group - 1)) - 1
}

impl Histogram {
    /// Counts `times` durations of `ns`.
    pub fn add(&mut self, ns: u64, times: u32) {
        let count = &mut self.counts[bucket(ns)];
        *count = count.saturating_add(times);
        self.total += u64::from(times);
        self.longest = self.longest.max(ns);
    }

    /// The duration that `per_mille` of all stay within, ns.
    pub fn quantile(&self, per_mille: u64) -> u64 {
        let rank = (self.total * per_mille).div_ceil(1000).max(1);
        let mut seen = 0;
        for (at, count) in self.counts.iter().enumerate() {
            seen += u64::from(*count);
            if seen >= rank {
                return edge(at).min(self.longest);
            }
        }
        self.longest
    }

    /// Count, quantiles and maximum, microseconds.
    pub fn summary(&self) -> Value {
        let us = |ns: u64| (ns as f64 / 100.0).round() / 10.0;
        json!({
            "count": self.total,
            "p50_us": us(self.quantile(500)),
            "p99_us": us(self.quantile(990)),
            "p999_us": us(self.quantile(999)),
            "max_us": us(self.longest),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    #[test]
    fn quantiles_are_within_an_eighth() {
        let mut random = Random::new(2);
        let (mut histogram, mut all) = (Histogram::default(), Vec::new());
        for _ in 0..20_000 {
            let ns = random.next() >> (24 + random.below(38));
            histogram.add(ns, 1);
            all.push(ns);
        }
        all.sort_unstable();
        for per_mille in [1, 500, 990, 999, 1000] {
            let exact = all[(all.len() * per_mille as usize).div_ceil(1000).max(1) - 1];
            let found = histogram.quantile(per_mille);
            assert!(found >= exact && found <= exact + exact / 8 + 1, "{exact} {found}");
        }
    }

    #[test]
    fn every_duration_lies_below_its_edge() {
        let mut random = Random::new(4);
        for _ in 0..100_000 {
            let ns = random.next() >> (25 + random.below(39));
            let at = bucket(ns);
            assert!(ns <= edge(at));
            assert!(at == 0 || ns > edge(at - 1));
        }
    }
}
