//! Which extents of a disk are marked as hot, which wait for it, and which may be given up. Pure:
//! it says what is to be written; time, positions and what was done come from outside.

mod tend;

use std::collections::BTreeSet;
use std::ops::Range;

use crate::hotlog::{Found, Log, Page, Scope, EXTENT_SHIFT, MARKS_MAX, PAGES, PER_PAGE};
use crate::inflight::OpId;
pub use tend::Look;

/// A log that had no room is not tried again for so long, ns.
const PAUSE_NS: u64 = 60_000_000_000;

/// How the marks of a disk stand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// No marks are kept: its content does not outlive the host, or it has no writes of its own.
    Without,
    /// The log says that all of the disk is to be read after an unclean stop.
    Whole,
    /// Marks are kept, but the log still says so.
    Settling,
    /// Only marked extents are to be read after an unclean stop.
    Marked,
    /// The log could not be written: nothing that it says is to be believed.
    Untrusted,
}

impl Phase {
    /// Its word in `status`.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Without => "none",
            Phase::Whole => "whole",
            Phase::Settling => "settling",
            Phase::Marked => "marked",
            Phase::Untrusted => "untrusted",
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    /// The newest position that is about it.
    seq: u64,
    /// When it was last written, ns.
    used_ns: u64,
}

/// What is being written to the log.
#[derive(Debug, Default)]
struct Batch {
    /// Slots and extents that are marked by it.
    marks: Vec<(u16, u32)>,
    /// The scope that it states.
    scope: Option<Scope>,
    /// Writes that are not complete.
    left: usize,
    /// They are not durable by themselves.
    needs_sync: bool,
    /// Since when the change has waited that follows it, ns.
    follower_ns: Option<u64>,
}

/// A change that waits for marks.
#[derive(Debug)]
struct Waiter {
    id: OpId,
    range: Range<u64>,
    since_ns: u64,
}

/// What is to be done for a batch: writes, each durable by itself if it is alone.
pub struct Write {
    /// Place and bytes.
    pub page: Page,
    /// Whether it must be durable when it is complete.
    pub is_durable: bool,
}

/// Counts since the tap started.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Changes that waited for a mark.
    pub waits: u64,
    /// How long together, microseconds.
    pub wait_us: u64,
    /// The longest, microseconds.
    pub wait_us_max: u64,
    /// Extents that were marked, and given up.
    pub marked: u64,
    /// See `marked`.
    pub given_up: u64,
    /// Batches that were made durable.
    pub commits: u64,
    /// Times that there was no room.
    pub overflows: u64,
    /// Calls on the log that failed.
    pub errors: u64,
}

/// What must be true of a moment before the log may say that marks are enough.
#[derive(Clone, Copy, Debug)]
struct Settle {
    /// Changes up to this number were not preceded by marks.
    barrier: u64,
    /// All of them were recorded up to here, from this time on; not known while some are in flight.
    recorded: Option<(u64, u64)>,
}

/// The marks of one disk.
#[derive(Debug)]
pub struct Hot {
    /// How they stand.
    pub phase: Phase,
    /// Counts.
    pub counts: Counts,
    /// Why it is untrusted.
    pub reason: String,
    log: Option<Log>,
    size: u64,
    is_marking: bool,
    /// Of each extent: 0 while it is cold, else one more than its slot.
    slot_of: Vec<u16>,
    /// Of each slot: as in the log.
    extents: Vec<u32>,
    slots: Vec<Slot>,
    free: Vec<u16>,
    wanted: BTreeSet<u32>,
    stale: [bool; PAGES],
    wanted_scope: Option<Scope>,
    batch: Option<Batch>,
    waiting: Vec<Waiter>,
    settle: Option<Settle>,
    /// Not before, ns.
    again_ns: u64,
    /// All written before was made durable on the disk, ns.
    flushed_ns: u64,
    flush_began_ns: u64,
}

fn extents_of(range: &Range<u64>) -> Range<usize> {
    if range.start >= range.end {
        return 0..0;
    }
    (range.start >> EXTENT_SHIFT) as usize..((range.end - 1) >> EXTENT_SHIFT) as usize + 1
}

fn bytes_of(extent: u32, size: u64) -> Range<u64> {
    let start = u64::from(extent) << EXTENT_SHIFT;
    start.min(size)..(start + (1 << EXTENT_SHIFT)).min(size)
}

impl Hot {
    /// No marks.
    pub fn without() -> Hot {
        Hot {
            phase: Phase::Without,
            counts: Counts::default(),
            reason: String::new(),
            log: None,
            size: 0,
            is_marking: false,
            slot_of: Vec::new(),
            extents: Vec::new(),
            slots: Vec::new(),
            free: Vec::new(),
            wanted: BTreeSet::new(),
            stale: [false; PAGES],
            wanted_scope: None,
            batch: None,
            waiting: Vec::new(),
            settle: None,
            again_ns: 0,
            flushed_ns: 0,
            flush_began_ns: 0,
        }
    }

    /// Nothing can be kept, because of `reason`.
    pub fn untrusted(reason: String) -> Hot {
        let mut hot = Hot { phase: Phase::Untrusted, reason, ..Hot::without() };
        hot.counts.errors = 1;
        hot
    }

    /// A new log: all is to be read after an unclean stop.
    pub fn new(log: Log, size: u64) -> Hot {
        let count = (size >> EXTENT_SHIFT) as usize + 1;
        Hot {
            phase: Phase::Whole,
            log: Some(log),
            size,
            slot_of: vec![0; count],
            extents: vec![0; MARKS_MAX],
            slots: vec![Slot::default(); MARKS_MAX],
            free: (0..MARKS_MAX as u16).rev().collect(),
            ..Hot::without()
        }
    }

    /// A log that says which extents an earlier tap had marked. `seq`: nothing that may be missing
    /// in the journal is newer.
    pub fn found(found: Found, seq: u64) -> Hot {
        let mut hot = Hot::new(found.log, found.size);
        if found.scope == Scope::Whole {
            hot.stale = [true; PAGES];
            return hot;
        }
        (hot.phase, hot.is_marking) = (Phase::Marked, true);
        for (slot, extent) in found.slots.iter().enumerate().filter(|(_, extent)| **extent > 0) {
            hot.extents[slot] = *extent;
            hot.slots[slot].seq = seq;
            if let Some(place) = hot.slot_of.get_mut(*extent as usize - 1) {
                *place = slot as u16 + 1;
            }
        }
        let is_used = |slot: &u16| hot.extents[usize::from(*slot)] == 0;
        hot.free = (0..MARKS_MAX as u16).rev().filter(is_used).collect();
        hot
    }

    /// What is to be read after an unclean stop; `None`: all of it.
    pub fn marked(&self) -> Option<Vec<Range<u64>>> {
        let is_kept = matches!(self.phase, Phase::Marked);
        let used = self.extents.iter().filter(|extent| **extent > 0);
        is_kept.then(|| used.map(|extent| bytes_of(extent - 1, self.size)).collect())
    }

    /// Bytes of the disk, as the log knows it.
    pub fn size(&self) -> Option<u64> {
        self.log.as_ref().map(|_| self.size)
    }

    /// Extents that are marked.
    pub fn count(&self) -> usize {
        self.extents.iter().filter(|extent| **extent > 0).count()
    }

    /// Whether a change of `range` may be submitted to the disk now.
    #[inline]
    pub fn is_ready(&self, range: &Range<u64>) -> bool {
        !self.is_marking || extents_of(range).all(|at| self.slot_of.get(at).is_some_and(|s| *s > 0))
    }

    /// A change waits for the marks of its extents.
    pub fn wait(&mut self, id: OpId, range: &Range<u64>, now_ns: u64) {
        for extent in extents_of(range).filter(|at| self.slot_of.get(*at).is_none_or(|s| *s == 0)) {
            self.wanted.insert(extent as u32);
        }
        self.waiting.push(Waiter { id, range: range.clone(), since_ns: now_ns });
    }

    /// A change of `range` was recorded at `seq`, or something was read from it.
    #[inline]
    pub fn touch(&mut self, range: &Range<u64>, seq: u64, now_ns: u64) {
        if !self.is_marking {
            return;
        }
        for at in extents_of(range) {
            let slot = self.slot_of.get(at).copied().unwrap_or(0);
            if slot > 0 {
                self.slots[usize::from(slot) - 1] = Slot { seq, used_ns: now_ns };
            }
        }
    }

    /// A flush of the disk began.
    pub fn flush_began(&mut self, now_ns: u64) {
        self.flush_began_ns = now_ns;
    }

    /// It made all durable that was written before it began.
    pub fn flush_ended(&mut self) {
        self.flushed_ns = self.flush_began_ns;
    }

    /// The log is to say that all of the disk must be read. Changes no longer wait once it does.
    pub fn go_whole(&mut self) {
        self.settle = None;
        match self.phase {
            Phase::Without | Phase::Untrusted | Phase::Whole => {}
            Phase::Settling if !self.is_stating() => self.be_whole(),
            Phase::Settling | Phase::Marked => self.wanted_scope = Some(Scope::Whole),
        }
    }

    /// Whether a batch that says that marks are enough may have reached the disk.
    fn is_stating(&self) -> bool {
        let states = |batch: &Batch| batch.scope == Some(Scope::Marked);
        self.batch.as_ref().is_some_and(states) || self.wanted_scope == Some(Scope::Marked)
    }

    fn be_whole(&mut self) {
        if let Some(batch) = &mut self.batch {
            batch.marks.clear();
        }
        self.phase = Phase::Whole;
        self.is_marking = false;
        self.slot_of.fill(0);
        self.extents.fill(0);
        self.wanted.clear();
        self.free = (0..MARKS_MAX as u16).rev().collect();
        self.stale = [true; PAGES];
    }

    /// The same at once, for what happens next would be lost otherwise.
    pub fn go_whole_now(&mut self) -> Result<(), String> {
        self.go_whole();
        if self.wanted_scope == Some(Scope::Whole) {
            let size = self.size;
            let Some(log) = &mut self.log else { return Ok(()) };
            let page = log.superblock(Scope::Whole, size);
            log.write_now(&page).map_err(|e| e.to_string())?;
        }
        Ok(())
    }

    /// The disk has another size: the log is to know it.
    pub fn resize(&mut self, size: u64) {
        if self.log.is_none() {
            return;
        }
        self.size = size;
        self.slot_of.resize((size >> EXTENT_SHIFT) as usize + 1, 0);
        self.go_whole();
        if self.wanted_scope.is_none() {
            self.wanted_scope = Some(Scope::Whole);
        }
    }

    /// Whether [`Hot::next_batch`] may have something.
    #[inline]
    pub fn is_busy(&self) -> bool {
        !self.wanted.is_empty() || self.wanted_scope.is_some() || self.stale.contains(&true)
    }

    /// The next batch, if one is due and none is under way. Empty: nothing to do.
    pub fn next_batch(&mut self, now_ns: u64) -> Vec<Write> {
        if self.batch.is_some() || self.log.is_none() {
            return Vec::new();
        }
        let mut batch = Batch { scope: self.wanted_scope.take(), ..Batch::default() };
        if self.wanted.len() > self.free.len() && batch.scope.is_none() {
            self.counts.overflows += 1;
            self.again_ns = now_ns + PAUSE_NS;
            self.go_whole();
            batch.scope = self.wanted_scope.take();
        }
        if batch.scope.is_none() {
            self.place_wanted(&mut batch);
        }
        let writes = self.writes(&mut batch);
        if !writes.is_empty() {
            self.batch = Some(batch);
        }
        writes
    }

    /// The one change that waits, if nothing but the batch that was just begun keeps it: it need
    /// not be woken for, but may follow the batch's only page, and does not wait here any more.
    pub fn take_follower(&mut self) -> Option<OpId> {
        let batch = self.batch.as_mut()?;
        let [waiter] = &self.waiting[..] else { return None };
        let is_hot = |at: usize| {
            self.slot_of.get(at).is_some_and(|slot| *slot > 0)
                || batch.marks.iter().any(|(_, extent)| *extent as usize == at)
        };
        if batch.left != 1 || !extents_of(&waiter.range).all(is_hot) {
            return None;
        }
        let waiter = self.waiting.pop()?;
        batch.follower_ns = Some(waiter.since_ns);
        Some(waiter.id)
    }

    fn place_wanted(&mut self, batch: &mut Batch) {
        for extent in std::mem::take(&mut self.wanted) {
            // Wanted again while the batch was under way that marked it.
            if self.slot_of.get(extent as usize).is_some_and(|slot| *slot > 0) {
                continue;
            }
            let Some(slot) = self.free.pop() else { break };
            self.extents[usize::from(slot)] = extent + 1;
            self.stale[usize::from(slot) / PER_PAGE] = true;
            batch.marks.push((slot, extent));
        }
    }

    fn writes(&mut self, batch: &mut Batch) -> Vec<Write> {
        let (size, mut pages) = (self.size, Vec::new());
        let Some(log) = &mut self.log else { return Vec::new() };
        match batch.scope {
            Some(scope) => pages.push(log.superblock(scope, size)),
            None => {
                for which in (0..PAGES).filter(|which| self.stale[*which]) {
                    pages.push(log.page(which, &self.extents));
                }
                self.stale = [false; PAGES];
            }
        }
        batch.left = pages.len();
        batch.needs_sync = pages.len() > 1;
        let is_durable = !batch.needs_sync;
        pages.into_iter().map(|page| Write { page, is_durable }).collect()
    }

    /// The log's file.
    pub fn file(&self) -> Option<std::sync::Arc<std::fs::File>> {
        self.log.as_ref().map(|log| log.file.clone())
    }

    /// One write of the batch is complete. `true`: all are, and the file must be synced now.
    pub fn wrote(&mut self) -> bool {
        let Some(batch) = &mut self.batch else { return false };
        batch.left = batch.left.saturating_sub(1);
        batch.left == 0 && batch.needs_sync
    }

    /// Whether the batch is durable now.
    pub fn is_durable(&self) -> bool {
        self.batch.as_ref().is_some_and(|batch| batch.left == 0)
    }

    /// The batch is durable: those that waited for it may go on; they are tried again.
    pub fn committed(&mut self, now_ns: u64) -> Vec<OpId> {
        let Some(batch) = self.batch.take() else { return Vec::new() };
        self.counts.commits += 1;
        for (slot, extent) in &batch.marks {
            self.counts.marked += 1;
            // Who waits for it keeps it in use until it was recorded.
            self.slots[usize::from(*slot)] = Slot { seq: 0, used_ns: now_ns };
            if let Some(place) = self.slot_of.get_mut(*extent as usize) {
                *place = slot + 1;
            }
        }
        match batch.scope {
            Some(Scope::Whole) if self.phase != Phase::Untrusted => self.be_whole(),
            Some(Scope::Marked) if self.wanted_scope.is_none() => self.phase = Phase::Marked,
            _ => {}
        }
        self.let_go(batch.follower_ns, now_ns)
    }

    /// Those that waited are tried again; who still finds a cold extent waits on. The follower is
    /// counted with them.
    fn let_go(&mut self, follower_ns: Option<u64>, now_ns: u64) -> Vec<OpId> {
        let waited = std::mem::take(&mut self.waiting);
        for since_ns in waited.iter().map(|waiter| waiter.since_ns).chain(follower_ns) {
            let us = now_ns.saturating_sub(since_ns) / 1000;
            self.counts.waits += 1;
            self.counts.wait_us += us;
            self.counts.wait_us_max = self.counts.wait_us_max.max(us);
        }
        waited.into_iter().map(|waiter| waiter.id).collect()
    }

    /// A call on the log failed: for this run nothing more is written, and nobody waits for it.
    pub fn distrust(&mut self, reason: String, now_ns: u64) -> (Option<Log>, Vec<OpId>) {
        self.counts.errors += 1;
        self.phase = Phase::Untrusted;
        self.reason = reason;
        let follower_ns = self.batch.take().and_then(|batch| batch.follower_ns);
        (self.is_marking, self.settle, self.wanted_scope) = (false, None, None);
        self.wanted.clear();
        let waited = self.let_go(follower_ns, now_ns);
        (self.log.take(), waited)
    }
}
