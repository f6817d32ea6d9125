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
