//! Looking after marks: when they are enough, and which are no longer needed.

use std::ops::Range;

use super::{bytes_of, Hot, Phase, Settle};
use crate::hotlog::{Scope, MARKS_MAX, PAGES, PER_PAGE};

/// With fewer free slots than this, what is no longer needed is given up.
const ROOM: usize = 1024;

/// What the rest of a disk is at the moment of a look.
pub struct Look<'a> {
    /// Now, ns.
    pub now_ns: u64,
    /// Newest position, and newest that is stored.
    pub head: u64,
    /// See `head`.
    pub stored: u64,
    /// Whether a whole image is in the journal up to the head.
    pub is_good: bool,
    /// The number of the newest operation, and of the oldest change in flight.
    pub serial: u64,
    /// See `serial`.
    pub oldest: Option<u64>,
    /// Unused for so long an extent is given up even if there is room, ns.
    pub quiet_ns: u64,
    /// Whether something of a range is to be read, or being changed.
    pub is_needed: &'a dyn Fn(&Range<u64>) -> bool,
}

impl Hot {
    /// At an orderly stop, when all is durable on the disk: only what is not stored stays marked.
    pub fn leave(
        &mut self,
        stored: u64,
        is_needed: &dyn Fn(&Range<u64>) -> bool,
    ) -> Result<(), String> {
        if self.wanted_scope == Some(Scope::Whole) {
            self.go_whole_now()?;
            return Ok(());
        }
        if self.phase != Phase::Marked || self.batch.is_some() {
            return Ok(());
        }
        for at in 0..MARKS_MAX {
            let extent = self.extents[at];
            let is_done = extent > 0
                && self.slots[at].seq <= stored
                && !is_needed(&bytes_of(extent - 1, self.size));
            if is_done {
                self.extents[at] = 0;
                self.stale[at / PER_PAGE] = true;
            }
        }
        let Some(log) = &mut self.log else { return Ok(()) };
        for which in (0..PAGES).filter(|which| self.stale[*which]) {
            let page = log.page(which, &self.extents);
            // Marks that stay although they could go cost some reading, no more.
            if log.write_now(&page).is_err() {
                self.counts.errors += 1;
                return Ok(());
            }
        }
        Ok(())
    }

    /// Looks after the marks; `true`: a flush of the disk would help.
    pub fn tend(&mut self, look: &Look) -> bool {
        match self.phase {
            Phase::Whole if look.is_good && look.now_ns >= self.again_ns => {
                self.phase = Phase::Settling;
                self.is_marking = true;
                self.settle = Some(Settle { barrier: look.serial, recorded: None });
                false
            }
            Phase::Settling => self.tend_settling(look),
            Phase::Marked => self.give_up(look),
            _ => false,
        }
    }

    fn tend_settling(&mut self, look: &Look) -> bool {
        let Some(mut settle) = self.settle else { return false };
        if self.batch.is_some() || self.wanted_scope.is_some() {
            return false;
        }
        let is_clear = look.oldest.is_none_or(|oldest| oldest > settle.barrier);
        if settle.recorded.is_none() && is_clear {
            settle.recorded = Some((look.head, look.now_ns));
        }
        self.settle = Some(settle);
        let Some((seq, since_ns)) = settle.recorded else { return false };
        if look.stored >= seq && self.flushed_ns > since_ns && look.is_good {
            self.settle = None;
            self.wanted_scope = Some(Scope::Marked);
        }
        self.flushed_ns <= since_ns
    }

    /// Gives up what is stored, durable and not used; the longest unused first.
    fn give_up(&mut self, look: &Look) -> bool {
        if self.wanted_scope.is_some() {
            return false;
        }
        let room = ROOM.saturating_sub(self.free.len());
        let (mut able, mut needs_flush) = (Vec::new(), false);
        for (at, slot) in self.slots.iter().enumerate() {
            let extent = self.extents[at];
            let is_hot =
                extent > 0 && self.slot_of.get(extent as usize - 1) == Some(&(at as u16 + 1));
            if !is_hot || slot.seq > look.stored {
                continue;
            }
            let is_quiet = look.now_ns.saturating_sub(slot.used_ns) >= look.quiet_ns;
            if !is_quiet && room == 0 {
                continue;
            }
            if (look.is_needed)(&bytes_of(extent - 1, self.size)) {
                continue;
            }
            if slot.used_ns >= self.flushed_ns {
                needs_flush = true;
                continue;
            }
            able.push((slot.used_ns, is_quiet, at));
        }
        able.sort_unstable();
        for (number, (_, is_quiet, at)) in able.into_iter().enumerate() {
            if !is_quiet && number >= room {
                break;
            }
            self.slot_of[self.extents[at] as usize - 1] = 0;
            self.extents[at] = 0;
            self.free.push(at as u16);
            self.stale[at / PER_PAGE] = true;
            self.counts.given_up += 1;
        }
        needs_flush
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::hotlog::Log;
    use crate::testing::{Random, Scratch};

    const EXTENTS: u64 = 12_000;
    const EXTENT: u64 = 4 << 20;

    /// A disk's marks, and what the world knows: which extents differ from the journal.
    struct World {
        hot: Hot,
        now: u64,
        head: u64,
        stored: u64,
        /// Extent to the position of its newest change, and when that was.
        changed: BTreeMap<u64, (u64, u64)>,
        flushed: u64,
        batch: Vec<crate::hot::Write>,
    }

    impl World {
        fn change(&mut self, extent: u64) -> bool {
            let range = extent * EXTENT..extent * EXTENT + 512;
            if !self.hot.is_ready(&range) {
                self.hot.wait(0, &range, self.now);
                return false;
            }
            self.head += 1;
            self.changed.insert(extent, (self.head, self.now));
            self.hot.touch(&range, self.head, self.now);
            true
        }

        fn commit(&mut self, file: &std::fs::File) {
            if self.batch.is_empty() {
                self.batch = self.hot.next_batch(self.now);
                return;
            }
            for write in std::mem::take(&mut self.batch) {
                file.write_all_at(&write.page.1, write.page.0).unwrap();
                self.hot.wrote();
            }
            self.hot.committed(self.now);
        }

        fn tend(&mut self, quiet_ns: u64) {
            let look = Look {
                now_ns: self.now,
                head: self.head,
                stored: self.stored,
                is_good: true,
                serial: self.head,
                oldest: None,
                quiet_ns,
                is_needed: &|_| false,
            };
            if self.hot.tend(&look) {
                self.hot.flush_began(self.now);
                self.flushed = self.now;
                self.now += 1;
                self.hot.flush_ended();
            }
        }

        /// What is marked twice would never be given up whole.
        fn check_slots(&self) {
            let mut used: Vec<u32> = self.hot.extents.iter().copied().filter(|e| *e > 0).collect();
            used.sort_unstable();
            assert!(used.windows(2).all(|pair| pair[0] != pair[1]), "an extent has two slots");
        }

        /// What a power cut may have made different must be found again.
        fn check(&self, path: &std::path::Path) {
            let found = Log::open(path).unwrap();
            if found.scope == Scope::Whole {
                return;
            }
            let slots: BTreeSet<u32> = found.slots.into_iter().collect();
            for (extent, (seq, at)) in &self.changed {
                let is_safe = *seq <= self.stored && *at < self.flushed;
                let is_marked = slots.contains(&(*extent as u32 + 1));
                assert!(is_safe || is_marked, "extent {extent} of {seq} at {at}");
            }
        }
    }

    #[test]
    fn whenever_the_power_goes_all_that_may_differ_is_marked() {
        for seed in 0..4 {
            let (scratch, mut random) = (Scratch::new(), Random::new(seed));
            let path = scratch.path("g.0.hot");
            let log = Log::create(&path, EXTENTS * EXTENT).unwrap();
            let file = log.file.clone();
            let hot = Hot::new(log, EXTENTS * EXTENT);
            let (changed, batch) = (BTreeMap::new(), Vec::new());
            let mut world = World { hot, now: 1, head: 0, stored: 0, changed, flushed: 0, batch };
            let (mut has_marked, mut given_up) = (false, 0);
            for round in 0..1200u64 {
                world.now += random.below(3);
                // Now and then more at once than there is room for.
                if seed % 2 == 0 && round % 500 == 499 {
                    for extent in 0..EXTENTS {
                        world.change(extent);
                    }
                }
                match random.below(8) {
                    0..=2 => {
                        for _ in 0..=random.below(40) {
                            world.change(random.below(EXTENTS));
                        }
                    }
                    3 | 4 => world.commit(&file),
                    5 => world.tend([5, 1 << 40][random.below(2) as usize]),
                    6 => world.stored += random.below(world.head - world.stored + 1),
                    _ if random.below(200) == 0 => world.hot.go_whole(),
                    _ => {}
                }
                world.check_slots();
                has_marked |= world.hot.phase == Phase::Marked;
                given_up = given_up.max(world.hot.counts.given_up);
                if round % 3 == 0 {
                    world.check(&path);
                }
            }
            assert!(has_marked && given_up > 0, "seed {seed}");
            assert_eq!(world.hot.counts.overflows > 0, seed % 2 == 0, "seed {seed}");
        }
    }
}
