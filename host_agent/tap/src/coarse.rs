//! A bounded map of where a disk was written: cheap to mark, exact to a grain.

use std::ops::Range;

use crate::rangeset::RangeSet;

/// Bits at most; 8 KiB of memory.
const BITS: u64 = 64 << 10;
const GRAIN_MIN: u64 = 4096;

/// One bit for each grain of a disk.
#[derive(Clone, Debug)]
pub struct CoarseMap {
    bits: Vec<u64>,
    shift: u32,
    is_empty: bool,
}

impl CoarseMap {
    /// An empty map for a disk of `size` bytes.
    pub fn new(size: u64) -> CoarseMap {
        let grain = size.div_ceil(BITS).next_power_of_two().max(GRAIN_MIN);
        let shift = grain.trailing_zeros();
        let words = size.div_ceil(grain).div_ceil(64) as usize;
        CoarseMap { bits: vec![0; words.max(1)], shift, is_empty: true }
    }

    /// Marks a range.
    pub fn mark(&mut self, range: &Range<u64>) {
        if range.start >= range.end {
            return;
        }
        self.is_empty = false;
        let last = ((range.end - 1) >> self.shift).min(self.bits.len() as u64 * 64 - 1);
        for bit in range.start >> self.shift..=last {
            self.bits[(bit / 64) as usize] |= 1 << (bit % 64);
        }
    }

    /// Takes all marks away.
    pub fn clear(&mut self) {
        if !self.is_empty {
            self.bits.fill(0);
            self.is_empty = true;
        }
    }

    /// Takes all marks away, into a map of the same shape.
    pub fn take(&mut self) -> CoarseMap {
        let empty = CoarseMap { bits: vec![0; self.bits.len()], shift: self.shift, is_empty: true };
        std::mem::replace(self, empty)
    }

    /// Adds what is marked to a set, within `size` bytes.
    pub fn add_to(&self, set: &mut RangeSet, size: u64) {
        let grain = 1u64 << self.shift;
        for (word, bits) in self.bits.iter().enumerate().filter(|(_, bits)| **bits != 0) {
            for bit in (0..64).filter(|bit| bits >> bit & 1 == 1) {
                let start = (word as u64 * 64 + bit) << self.shift;
                set.insert(start.min(size)..(start + grain).min(size));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    #[test]
    fn covers_what_was_marked_on_disks_of_any_size() {
        for size in [512, 1 << 20, (1 << 30) + 512, 64 << 40] {
            let (mut map, mut random) = (CoarseMap::new(size), Random::new(size));
            let mut marked = Vec::new();
            for _ in 0..50 {
                let start = random.below(size / 512) * 512;
                let range = start..(start + (random.below(64) + 1) * 512).min(size);
                map.mark(&range);
                marked.push(range);
            }
            let (mut set, taken) = (RangeSet::new(), map.take());
            assert!(map.is_empty && !taken.is_empty);
            taken.add_to(&mut set, size);
            assert!(marked.iter().all(|range| set.contains(range)));
            assert!(set.iter().all(|range| range.end <= size));
        }
    }
}
