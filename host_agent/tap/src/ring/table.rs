//! The in-flight table: what changes of disks are under way, where a successor finds it. A change
//! is entered before the disk hears of it and removed when it is recorded or marked, so a tap that
//! is killed leaves exactly the ranges of which nobody knows what the disk holds. Two stores and
//! one store: no call, no lock.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::{compiler_fence, Ordering};

use super::TABLE_AT;
use crate::sys::Map;

/// Changes that can be in flight at once and be told apart.
pub const SLOTS: usize = 4096;
/// The slot of changes that are done by calls in line, one at a time.
pub const INLINE: usize = 0;
const SLOT_BYTES: usize = 16;
/// Slots, and a page for the count of those that found none.
pub const BYTES: u64 = (SLOTS * SLOT_BYTES) as u64 + 4096;
const OVER_AT: usize = TABLE_AT as usize + SLOTS * SLOT_BYTES;
const USED: u64 = 1 << 48;

/// The tap's side of the table.
#[derive(Debug, Default)]
pub struct Table {
    /// Numbers in flight that are beyond the slots.
    over: BTreeSet<usize>,
}

fn place(slot: usize) -> usize {
    TABLE_AT as usize + slot * SLOT_BYTES
}

impl Table {
    /// Enters a change; again with the same slot changes nothing.
    pub fn enter(&mut self, map: &mut Map, slot: usize, disk: u16, range: &Range<u64>) {
        let length = u32::try_from(range.end - range.start).ok();
        let Some(length) = length.filter(|_| slot < SLOTS) else {
            self.over.insert(slot);
            return map.store(OVER_AT, self.over.len() as u64);
        };
        let at = place(slot);
        map.store(at, range.start);
        map.store(at + 8, u64::from(length) | u64::from(disk) << 32 | USED);
        // A disk in memory is written by plain stores: they may not be moved before these.
        compiler_fence(Ordering::SeqCst);
    }

    /// Removes a change.
    pub fn leave(&mut self, map: &mut Map, slot: usize) {
        if slot < SLOTS {
            return map.store(place(slot) + 8, 0);
        }
        self.over.remove(&slot);
        map.store(OVER_AT, self.over.len() as u64);
    }
}

/// What was in flight when the tap before us ended; `None`: more than the table holds.
pub fn read(map: &Map) -> Option<Vec<(u16, Range<u64>)>> {
    if map.load(OVER_AT) > 0 {
        return None;
    }
    let ranges = (0..SLOTS).filter_map(|slot| {
        let (start, rest) = (map.load(place(slot)), map.load(place(slot) + 8));
        let length = rest & 0xffff_ffff;
        let range = start..start.saturating_add(length);
        (rest & USED != 0).then_some(((rest >> 32) as u16, range))
    });
    Some(ranges.collect())
}

/// Forgets what a tap before us had in flight.
pub fn clear(map: &mut Map) {
    for slot in 0..SLOTS {
        map.store(place(slot) + 8, 0);
    }
    map.store(OVER_AT, 0);
}
