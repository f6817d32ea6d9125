//! Filling recovered disks: what guests wait for goes to the provider, what it brings is written
//! where it is still missing.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use serde_json::{json, Value};

use crate::disk::{self, SECTOR};
use crate::error::TapError;
use crate::nbd::Errno;
use crate::rangeset::RangeSet;
use crate::sys::files::Space;

use super::core::{Answer, Core, Data, Disk, Reply, Request};

/// A guest's read of a missing range fails after so long, ns.
const WAIT_NS_MAX: u64 = 120_000_000_000;
/// Data of one fill, bytes.
const FILL_BYTES_MAX: u64 = 32 << 20;
const PIECE: u64 = 1 << 20;

#[derive(Debug)]
struct Waiting {
    request: Request,
    since_ns: u64,
}

#[derive(Debug)]
struct Ticket {
    disk: usize,
    range: Range<u64>,
}

/// Reads that wait for data, and what was asked of the provider.
#[derive(Debug, Default)]
pub struct Needs {
    /// Where the provider puts data.
    window: Option<(File, u64)>,
    waiting: Vec<Waiting>,
    tickets: BTreeMap<u64, Ticket>,
    next_ticket: u64,
    /// Messages for the provider.
    pub events: VecDeque<Value>,
    /// Needs that were told.
    pub asked: u64,
    /// Bytes that fills wrote.
    pub filled_bytes: u64,
    /// Needs that the provider refused or served without data.
    pub failed: u64,
    /// Something became present otherwise: look at who waits.
    pub is_stale: bool,
}

/// A range that the provider brings.
#[derive(Clone, Copy, Debug)]
pub struct Fill {
    /// First byte on the disk.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// Where in the window; `None`: zeroes.
    pub at: Option<u64>,
}

impl Needs {
    /// Reads that wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    fn asked_of(&self, slot: usize) -> RangeSet {
        let mut asked = RangeSet::new();
        for ticket in self.tickets.values().filter(|ticket| ticket.disk == slot) {
            asked.insert(ticket.range.clone());
        }
        asked
    }

    /// When the oldest wait is over, ns.
    pub fn deadline_ns(&self) -> Option<u64> {
        self.waiting.first().map(|oldest| oldest.since_ns + WAIT_NS_MAX)
    }
}

impl Core {
    /// A guest reads what is not there yet.
    pub fn need(&mut self, request: Request) {
        let Some(disk) = self.disks.get(request.disk) else { return };
        let known = self.needs.asked_of(request.disk);
        let missing = missing(disk, &request.range());
        let news: Vec<_> = missing.iter().flat_map(|gap| known.gaps(gap)).collect();
        for range in news {
            self.needs.next_ticket += 1;
            let ticket = self.needs.next_ticket;
            self.needs.asked += 1;
            if self.needs.window.is_some() {
                let event = need_event(ticket, &disk.name, &range);
                self.needs.events.push_back(event);
            }
            self.needs.tickets.insert(ticket, Ticket { disk: request.disk, range });
        }
        let since_ns = self.clock.mono_ns;
        self.needs.waiting.push(Waiting { request, since_ns });
    }

    /// A provider comes: it is told again what is needed.
    pub fn set_provider(&mut self, window: File, bytes: u64) {
        self.needs.window = Some((window, bytes));
        self.needs.events.clear();
        for (number, ticket) in &self.needs.tickets {
            if let Some(disk) = self.disks.get(ticket.disk) {
                self.needs.events.push_back(need_event(*number, &disk.name, &ticket.range));
            }
        }
    }

    /// The provider went; needs wait for the next.
    pub fn clear_provider(&mut self) {
        self.needs.window = None;
        self.needs.events.clear();
    }

    /// Writes what the provider brought, where it is still missing.
    pub fn fill(&mut self, slot: usize, fill: Fill) -> Result<u64, TapError> {
        let bad = TapError::bad_request;
        let Some(disk) = self.disks.get_mut(slot) else { return Err(bad("no such disk")) };
        let end = fill.offset.checked_add(fill.length).filter(|end| *end <= disk.size);
        let end = end.ok_or_else(|| bad("the range ends behind the disk"))?;
        if fill.offset % SECTOR != 0 || fill.length % SECTOR != 0 || fill.length == 0 {
            return Err(bad("offset and length must be multiples of 512"));
        }
        if let Some(at) = fill.at {
            let (_, window) = self.needs.window.as_ref().ok_or_else(|| bad("no window"))?;
            let is_inside = at.checked_add(fill.length).is_some_and(|end| end <= *window);
            if !is_inside || fill.length > FILL_BYTES_MAX {
                return Err(bad("the data is not within the window, or longer than 32 MiB"));
            }
        }
        // What a guest's request in flight covers becomes present with it, with newer data.
        let gaps = missing(disk, &(fill.offset..end));
        let mut written = 0;
        for gap in gaps {
            written += gap.end - gap.start;
            self.fill_gap(slot, &gap, fill)?;
        }
        self.needs.filled_bytes += written;
        self.wake_present();
        Ok(written)
    }

    fn fill_gap(&mut self, slot: usize, gap: &Range<u64>, fill: Fill) -> Result<(), TapError> {
        let mut at = gap.start;
        while at < gap.end {
            let length = if fill.at.is_some() { PIECE.min(gap.end - at) } else { gap.end - at };
            let source = fill.at.map(|window| window + (at - fill.offset));
            let result = self.fill_piece(slot, at, length, source);
            let Some(disk) = self.disks.get_mut(slot) else { return Ok(()) };
            if let Err(code) = result {
                disk.stats.errors += 1;
                let e = std::io::Error::from_raw_os_error(code);
                return Err(TapError::system(&format!("{}: fill", disk.name), &e));
            }
            disk.unflushed.mark(&(at..at + length));
            if let Some(map) = &mut disk.recovered {
                map.wrote(at..at + length);
            }
            at += length;
        }
        Ok(())
    }

    fn fill_piece(
        &mut self,
        slot: usize,
        at: u64,
        length: u64,
        from: Option<u64>,
    ) -> Result<(), i32> {
        let disk = self.disks.get(slot).ok_or(libc::ESHUTDOWN)?;
        let Some(from) = from else {
            // The file may hold what a tap wrote whose marks were lost: zeroes must be made.
            match disk::space(&disk.io.file, Space::Punch, at, length) {
                Err(libc::EOPNOTSUPP) => {}
                other => return other,
            }
            let zeroes = vec![0; PIECE.min(length) as usize];
            for start in (at..at + length).step_by(zeroes.len()) {
                let piece = (at + length - start).min(zeroes.len() as u64) as usize;
                disk::write_all(&disk.io.file, &zeroes[..piece], start)?;
            }
            return Ok(());
        };
        let (window, _) = self.needs.window.as_ref().ok_or(libc::EINVAL)?;
        let mut buffer = self.pool.take(length as usize);
        // Read rather than mapped: a window that its owner shortens must not kill the tap.
        let result = window
            .read_exact_at(&mut buffer[..length as usize], from)
            .map_err(|e| e.raw_os_error().unwrap_or(libc::EINVAL))
            .and_then(|()| disk::write_all(&disk.io.file, &buffer[..length as usize], at));
        self.pool.give(buffer);
        result
    }

    /// Reads whose range is complete now go on; what nobody will bring is asked for again.
    pub fn wake_present(&mut self) {
        self.needs.is_stale = false;
        let mut still = Vec::new();
        let mut again = Vec::new();
        for waiting in std::mem::take(&mut self.needs.waiting) {
            let (slot, range) = (waiting.request.disk, waiting.request.range());
            let Some(disk) = self.disks.get(slot) else {
                self.retries.push(waiting.request);
                continue;
            };
            let asked = self.needs.asked_of(slot);
            if disk.is_present(&range) {
                self.retries.push(waiting.request);
            } else if missing(disk, &range).iter().all(|gap| asked.contains(gap)) {
                still.push(waiting);
            } else {
                again.push(waiting.request);
            }
        }
        self.needs.waiting = still;
        for request in again {
            self.need(request);
        }
    }

    /// The provider says that a range is complete. What is still missing fails.
    pub fn served(&mut self, number: u64) -> Result<(), TapError> {
        let Some(ticket) = self.needs.tickets.remove(&number) else {
            return Err(TapError::new(
                "no_such_ticket",
                format!("ticket {number} is not open"),
                "It was served, or belongs to an earlier run.",
            ));
        };
        let missing =
            self.disks.get(ticket.disk).map_or(Vec::new(), |disk| missing(disk, &ticket.range));
        if !missing.is_empty() {
            self.needs.failed += 1;
            self.fail_waiting(ticket.disk, &missing);
        }
        self.wake_present();
        Ok(())
    }

    /// The provider cannot bring a range: the guests' reads of it fail.
    pub fn refuse(&mut self, number: u64) -> Result<(), TapError> {
        self.served(number)
    }

    fn fail_waiting(&mut self, slot: usize, missing: &[Range<u64>]) {
        let mut still = Vec::new();
        for waiting in std::mem::take(&mut self.needs.waiting) {
            let (request, range) = (waiting.request, waiting.request.range());
            let overlaps = |gap: &Range<u64>| range.start < gap.end && gap.start < range.end;
            if request.disk == slot && missing.iter().any(overlaps) {
                self.fail_read(request);
            } else {
                still.push(waiting);
            }
        }
        self.needs.waiting = still;
    }

    fn fail_read(&mut self, request: Request) {
        if let Some(disk) = self.disks.get_mut(request.disk) {
            disk.stats.errors += 1;
        }
        self.replies.push(Reply { request, answer: Answer::Error(Errno::Io) });
    }

    /// Reads that waited too long fail: a guest must not hang for ever.
    pub fn check_needs(&mut self) {
        let now = self.clock.mono_ns;
        while self.needs.deadline_ns().is_some_and(|deadline| deadline <= now) {
            let waiting = self.needs.waiting.remove(0);
            self.needs.failed += 1;
            self.fail_read(waiting.request);
        }
    }

    /// Marks of recovered disks become durable although no guest flushes.
    pub fn mark_filled(&mut self) {
        let now = self.clock.mono_ns;
        let is_due = |disk: &Disk| {
            !disk.flush.is_running
                && !disk.flush.has_failed
                && disk.recovered.as_ref().is_some_and(|map| map.is_due(now))
        };
        let due: Vec<_> =
            self.disks.iter().filter(|(_, disk)| is_due(disk)).map(|(slot, _)| slot).collect();
        for slot in due {
            self.start_flush(slot);
        }
    }

    /// Whether some recovered disk has marks that are not durable.
    pub fn has_unmarked(&self) -> bool {
        let has = |disk: &Disk| disk.recovered.as_ref().is_some_and(|m| m.has_unmarked());
        self.disks.iter().any(|(_, disk)| has(disk))
    }

    /// A read that waited is tried again with nothing in hand.
    pub fn again(&mut self, request: Request) {
        if let Some(answer) = self.execute(request, Data::None) {
            self.replies.push(Reply { request, answer });
        }
    }
}

/// The parts of `range` that are neither present nor about to be written by a guest.
fn missing(disk: &Disk, range: &Range<u64>) -> Vec<Range<u64>> {
    let Some(map) = &disk.recovered else { return Vec::new() };
    let changing = disk.flight.changing();
    map.present.gaps(range).iter().flat_map(|gap| changing.gaps(gap)).collect()
}

fn need_event(ticket: u64, disk: &str, range: &Range<u64>) -> Value {
    json!({
        "event": "need",
        "ticket": ticket,
        "disk": disk,
        "offset": range.start,
        "length": range.end - range.start,
    })
}
