//! A set of byte ranges: what is to be read, what is present, what was asked for.

use std::collections::BTreeMap;
use std::ops::Range;

/// Disjoint, never touching ranges in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeSet {
    /// Start to end.
    ranges: BTreeMap<u64, u64>,
    bytes: u64,
}

impl RangeSet {
    /// An empty set.
    pub fn new() -> RangeSet {
        RangeSet::default()
    }

    /// Bytes covered.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many ranges it takes.
    pub fn count(&self) -> usize {
        self.ranges.len()
    }

    /// Whether nothing is covered.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.ranges.clear();
        self.bytes = 0;
    }

    /// The ranges, in order.
    pub fn iter(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.ranges.iter().map(|(start, end)| *start..*end)
    }

    /// The last range that begins at or before `at`.
    fn before(&self, at: u64) -> Option<Range<u64>> {
        self.ranges.range(..=at).next_back().map(|(start, end)| *start..*end)
    }

    /// Covers `range` (an empty one changes nothing).
    pub fn insert(&mut self, range: Range<u64>) {
        if range.start >= range.end {
            return;
        }
        let (mut start, mut end) = (range.start, range.end);
        if let Some(found) = self.before(start) {
            if found.end >= end {
                return;
            }
            if found.end >= start {
                start = found.start;
            }
        }
        while let Some((next, next_end)) = self.ranges.range(start..=end).next() {
            let (next, next_end) = (*next, *next_end);
            end = end.max(next_end);
            self.ranges.remove(&next);
            self.bytes -= next_end - next;
        }
        self.ranges.insert(start, end);
        self.bytes += end - start;
    }

    /// Uncovers `range`.
    pub fn remove(&mut self, range: Range<u64>) {
        if range.start >= range.end {
            return;
        }
        if let Some(found) = self.before(range.start) {
            if found.end > range.start {
                self.cut(&found, &range);
            }
        }
        while let Some((start, end)) = self.ranges.range(range.start..range.end).next() {
            let found = *start..*end;
            self.cut(&found, &range);
        }
    }

    /// Takes `away` out of `found`, which is a member that overlaps it.
    fn cut(&mut self, found: &Range<u64>, away: &Range<u64>) {
        self.ranges.remove(&found.start);
        self.bytes -= found.end - found.start;
        for rest in [found.start..away.start, away.end..found.end] {
            if rest.start < rest.end {
                self.bytes += rest.end - rest.start;
                self.ranges.insert(rest.start, rest.end);
            }
        }
    }

    /// Whether any byte of `range` is covered.
    pub fn overlaps(&self, range: &Range<u64>) -> bool {
        if range.start >= range.end {
            return false;
        }
        self.before(range.end - 1).is_some_and(|found| found.end > range.start)
    }

    /// Whether every byte of `range` is covered.
    pub fn contains(&self, range: &Range<u64>) -> bool {
        range.start >= range.end
            || self.before(range.start).is_some_and(|found| found.end >= range.end)
    }

    /// The first covered range that ends after `from`, cut to begin at or after it.
    pub fn next_covered(&self, from: u64) -> Option<Range<u64>> {
        if let Some(found) = self.before(from) {
            if found.end > from {
                return Some(from..found.end);
            }
        }
        self.ranges.range(from..).next().map(|(start, end)| *start..*end)
    }

    /// The parts of `range` that are not covered, in order.
    pub fn gaps(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        let mut gaps = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let Some(found) = self.next_covered(at) else { break };
            if found.start >= range.end {
                break;
            }
            if found.start > at {
                gaps.push(at..found.start);
            }
            at = found.end;
        }
        if at < range.end {
            gaps.push(at..range.end);
        }
        gaps
    }

    /// The first uncovered range at or after `from` and before `end`.
    pub fn next_gap(&self, from: u64, end: u64) -> Option<Range<u64>> {
        let mut at = from;
        if let Some(found) = self.before(from) {
            at = at.max(found.end);
        }
        if at >= end {
            return None;
        }
        let stop = self.ranges.range(at..).next().map_or(end, |(start, _)| (*start).min(end));
        Some(at..stop)
    }

    /// Widens every range to multiples of `grain` (within `size`) until at most `bound` are left.
    /// Returns the grain that it took.
    pub fn coarsen(&mut self, grain: u64, size: u64, bound: usize) -> u64 {
        let mut grain = grain;
        while self.count() > bound {
            grain *= 2;
            let mut wider = RangeSet::new();
            for range in self.iter() {
                wider.insert(align(&range, grain, size));
            }
            *self = wider;
        }
        grain
    }
}

/// `range` widened to multiples of `grain`, within `size` bytes.
pub fn align(range: &Range<u64>, grain: u64, size: u64) -> Range<u64> {
    let start = range.start - range.start % grain;
    let end = range.end.checked_next_multiple_of(grain).unwrap_or(size).min(size);
    start..end.max(range.end.min(size)).max(start)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    const SPACE: u64 = 200;

    fn check_against(set: &RangeSet, model: &[bool]) {
        let covered = model.iter().filter(|is| **is).count() as u64;
        assert_eq!(set.bytes(), covered);
        let mut last_end = None;
        for range in set.iter() {
            assert!(range.start < range.end);
            assert!(last_end.is_none_or(|end| end < range.start), "touching ranges");
            last_end = Some(range.end);
            assert!(model[range.start as usize..range.end as usize].iter().all(|is| *is));
        }
    }

    fn check_queries(set: &RangeSet, model: &[bool], range: &Range<u64>) {
        let slice = &model[range.start as usize..range.end as usize];
        assert_eq!(set.overlaps(range), slice.iter().any(|is| *is));
        assert_eq!(set.contains(range), slice.iter().all(|is| *is));
        let mut expected = vec![false; model.len()];
        for gap in set.gaps(range) {
            expected[gap.start as usize..gap.end as usize].fill(true);
        }
        for at in range.clone() {
            assert_eq!(expected[at as usize], !model[at as usize]);
        }
        let first = (range.start..SPACE).find(|at| model[*at as usize]);
        assert_eq!(set.next_covered(range.start).map(|found| found.start), first);
        let gap = (range.start..range.end).find(|at| !model[*at as usize]);
        assert_eq!(set.next_gap(range.start, range.end).map(|found| found.start), gap);
    }

    #[test]
    fn equals_a_bitmap_whatever_happens() {
        for seed in 0..60 {
            let mut random = Random::new(seed);
            let (mut set, mut model) = (RangeSet::new(), vec![false; SPACE as usize]);
            for _ in 0..300 {
                let start = random.below(SPACE);
                let end = start + random.below(SPACE - start + 1).min(1 + random.below(40));
                let is_insert = random.below(5) < 3;
                if is_insert {
                    set.insert(start..end);
                } else {
                    set.remove(start..end);
                }
                model[start as usize..end as usize].fill(is_insert);
                check_against(&set, &model);
                let from = random.below(SPACE);
                check_queries(&set, &model, &(from..from + random.below(SPACE - from + 1)));
            }
        }
    }

    #[test]
    fn coarsening_covers_at_least_what_was_covered() {
        let mut random = Random::new(7);
        let mut set = RangeSet::new();
        let size = 1 << 30;
        for _ in 0..2000 {
            let start = random.below(size / 4096) * 4096;
            set.insert(start..(start + 4096).min(size));
        }
        let before: Vec<_> = set.iter().collect();
        let grain = set.coarsen(4096, size, 100);
        assert!(set.count() <= 100 && grain > 4096);
        assert!(before.iter().all(|range| set.contains(range)));
        assert!(set.iter().all(|range| range.end <= size));
    }

    #[test]
    fn alignment_stays_within_the_disk() {
        assert_eq!(align(&(5000..5001), 4096, 5500), 4096..5500);
        assert_eq!(align(&(0..1), 4096, 1 << 20), 0..4096);
    }
}
