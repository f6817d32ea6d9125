//! Which ranges of a disk are being worked on: overlapping requests are done one after another,
//! and a read waits for the writes whose completions a hold withholds.

use std::collections::VecDeque;
use std::ops::Range;

use crate::rangeset::RangeSet;

/// A request's number while it is not done.
pub type OpId = usize;

#[derive(Clone, Debug)]
struct Item {
    id: OpId,
    range: Range<u64>,
    is_write: bool,
}

impl Item {
    fn conflicts(&self, range: &Range<u64>, is_write: bool) -> bool {
        (self.is_write || is_write) && self.range.start < range.end && range.start < self.range.end
    }
}

/// The ranges of one disk.
#[derive(Debug, Default)]
pub struct InFlight {
    active: Vec<Item>,
    waiting: VecDeque<Item>,
    withheld: RangeSet,
}

impl InFlight {
    /// Whether nothing stands in the way of any request.
    pub fn is_idle(&self) -> bool {
        self.active.is_empty() && self.waiting.is_empty() && self.withheld.is_empty()
    }

    /// Whether a request for `range` must wait. What already waits goes first.
    pub fn must_wait(&self, range: &Range<u64>, is_write: bool) -> bool {
        self.active.iter().chain(&self.waiting).any(|item| item.conflicts(range, is_write))
            || (!is_write && self.withheld.overlaps(range))
    }

    /// The ranges that requests in flight will change.
    pub fn changing(&self) -> RangeSet {
        let mut changing = RangeSet::new();
        for item in self.active.iter().chain(&self.waiting).filter(|item| item.is_write) {
            changing.insert(item.range.clone());
        }
        changing
    }

    /// Enters a request: `true` if it may start now, else it waits.
    pub fn enter(&mut self, id: OpId, range: Range<u64>, is_write: bool) -> bool {
        let must_wait = self.must_wait(&range, is_write);
        let item = Item { id, range, is_write };
        if must_wait {
            self.waiting.push_back(item);
        } else {
            self.active.push(item);
        }
        !must_wait
    }

    /// A request is done; those that may start now are added to `ready`.
    pub fn leave(&mut self, id: OpId, ready: &mut Vec<OpId>) {
        if let Some(at) = self.active.iter().position(|item| item.id == id) {
            self.active.swap_remove(at);
        }
        self.advance(ready);
    }

    fn advance(&mut self, ready: &mut Vec<OpId>) {
        let mut at = 0;
        while at < self.waiting.len() {
            let item = &self.waiting[at];
            let earlier = self.waiting.iter().take(at);
            let is_blocked =
                self.active.iter().chain(earlier).any(|o| o.conflicts(&item.range, item.is_write))
                    || (!item.is_write && self.withheld.overlaps(&item.range));
            if is_blocked {
                at += 1;
            } else if let Some(item) = self.waiting.remove(at) {
                ready.push(item.id);
                self.active.push(item);
            }
        }
    }

    /// A write is recorded, but its guest does not know yet.
    pub fn withhold(&mut self, range: Range<u64>) {
        self.withheld.insert(range);
    }

    /// The guests know; reads that waited for it are added to `ready`.
    pub fn let_go(&mut self, ready: &mut Vec<OpId>) {
        self.withheld.clear();
        self.advance(ready);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    #[test]
    fn overlapping_writes_go_in_order_and_reads_together() {
        let mut flight = InFlight::default();
        assert!(flight.enter(1, 0..10, true));
        assert!(!flight.enter(2, 5..15, true));
        assert!(!flight.enter(3, 8..9, false));
        assert!(!flight.enter(4, 12..13, false), "it must not overtake the write that waits");
        assert!(flight.enter(5, 20..30, false));
        assert!(flight.enter(6, 25..35, false));
        let mut ready = Vec::new();
        flight.leave(1, &mut ready);
        assert_eq!(ready, [2]);
        ready.clear();
        flight.leave(2, &mut ready);
        assert_eq!(ready, [3, 4]);
    }

    #[test]
    fn a_read_waits_for_what_a_hold_withholds() {
        let mut flight = InFlight::default();
        flight.withhold(0..10);
        assert!(flight.enter(1, 5..6, true));
        assert!(!flight.enter(2, 9..11, false));
        let mut ready = Vec::new();
        flight.leave(1, &mut ready);
        assert!(ready.is_empty());
        flight.let_go(&mut ready);
        assert_eq!(ready, [2]);
        flight.leave(2, &mut ready);
        assert!(flight.is_idle());
    }

    #[test]
    fn all_start_once_and_never_two_that_conflict() {
        for seed in 0..40 {
            let mut random = Random::new(seed);
            let mut flight = InFlight::default();
            let mut running: Vec<(OpId, Range<u64>, bool)> = Vec::new();
            let mut all = Vec::new();
            let mut ready = Vec::new();
            for id in 0..400 {
                let start = random.below(60);
                let range = start..start + 1 + random.below(12);
                let is_write = random.below(2) == 0;
                all.push((id, range.clone(), is_write));
                if flight.enter(id, range, is_write) {
                    ready.push(id);
                }
                for id in ready.drain(..) {
                    let (_, range, is_write) = all[id].clone();
                    for other in &running {
                        let overlap = other.1.start < range.end && range.start < other.1.end;
                        assert!(!overlap || !(other.2 || is_write));
                    }
                    running.push((id, range, is_write));
                }
                while running.len() > 12 {
                    let at = random.below(running.len() as u64) as usize;
                    flight.leave(running.swap_remove(at).0, &mut ready);
                    for id in ready.drain(..) {
                        running.push(all[id].clone());
                    }
                }
            }
            while let Some((id, _, _)) = running.pop() {
                flight.leave(id, &mut ready);
                running.extend(ready.drain(..).map(|id| all[id].clone()));
            }
            assert!(flight.is_idle(), "something waits for ever");
        }
    }
}
