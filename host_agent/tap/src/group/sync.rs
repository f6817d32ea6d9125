//! Reading what is to be read into the ring, a piece at a time between guests' requests.

use serde_json::{json, Value};

use crate::crash;
use crate::disk::{self, IoMode};
use crate::inflight::OpId;
use crate::stream::{Cause, State};
use crate::sys::files;

use super::core::Core;
use super::ops::{Kind, Op};

/// Read at once; a guest waits for at most one of these on a disk that is read in line, bytes.
const PIECE: u64 = 256 << 10;
/// Zeroes are looked for in units of this, bytes.
const ZERO_UNIT: usize = 4096;
/// What cannot be read is narrowed down to this, bytes.
const DAMAGE_UNIT: u64 = 4096;
/// The longest SYNC_ZERO, bytes.
const ZERO_MAX: u64 = (1 << 32) - 512;
/// A request with nothing to read waits so long for QEMU to bring a mirrored disk, ns.
const MIRROR_WAIT_NS: u64 = 1_000_000_000;
/// Reads of a sync with the engine at once.
const READS_MAX: usize = 4;
/// Records that one `sync` request may write, so that its answer comes even over endless holes.
const RECORDS_MAX: u64 = 16_384;

/// The `sync` request that is being served, and the reads in flight.
#[derive(Debug, Default)]
pub struct SyncRun {
    wanted: Option<Wanted>,
    reads: usize,
    /// Operations up to this one were in flight during the last read.
    barrier: u64,
    /// Damage was met: read in small units until this many bytes are done.
    careful: u64,
}

#[derive(Debug)]
struct Wanted {
    bytes: u64,
    /// Only what lies before this place of this disk is read.
    before: Option<(u16, u64)>,
    read: u64,
    records: u64,
    /// It waits for mirrors until then, ns of the tap's clock.
    until_ns: u64,
}

/// What there is to say about a sync request.
pub enum SyncStep {
    /// Take another soon.
    More,
    /// Take another after the next completion.
    Wait,
    /// This answers it.
    Done(Value),
}

impl SyncRun {
    /// Whether a request is being served.
    pub fn is_wanted(&self) -> bool {
        self.wanted.is_some()
    }

    /// Whether a step can be taken now rather than after a completion.
    pub fn is_runnable(&self) -> bool {
        self.wanted.is_some() && self.reads < READS_MAX
    }

    /// What was found without a read of ours: writes that are in flight now come before END too.
    pub fn note_look(&mut self, serial: u64) {
        self.barrier = self.barrier.max(serial);
    }

    /// When the request is answered although a mirror is not confirmed, ns of the tap's clock.
    pub fn deadline_ns(&self) -> Option<u64> {
        self.wanted.as_ref().map(|wanted| wanted.until_ns)
    }

    /// Nobody waits for it any more.
    pub fn cancel(&mut self) {
        self.wanted = None;
    }
}

impl Core {
    /// Begins to serve a `sync` of up to `bytes`, of what lies before the disk and byte `before`.
    /// `cause`: everything is read again, of one disk or of all.
    pub fn begin_sync(
        &mut self,
        bytes: u64,
        before: Option<(u16, u64)>,
        cause: Option<(Cause, Option<u16>)>,
    ) {
        let now = self.clock.wall_ns;
        let until_ns = self.clock.mono_ns + MIRROR_WAIT_NS;
        self.sync.wanted = Some(Wanted { bytes, before, read: 0, records: 0, until_ns });
        if let Some((_, only)) = cause {
            self.distrust_marks(only);
        }
        if let (Some(stream), Some((cause, only))) = (&mut self.stream, cause) {
            stream.mark_everything(only);
            if stream.state() == State::Dirty {
                stream.set_cause(cause);
            } else {
                stream.begin(Some(cause), now);
            }
        }
    }

    /// One step of the sync that is wanted.
    pub fn step_sync(&mut self) -> SyncStep {
        let now = self.clock.wall_ns;
        let Some(stream) = &mut self.stream else { return self.sync_answer(false) };
        if stream.state() == State::Dirty && (self.sync.reads > 0 || !stream.begin(None, now)) {
            // Reads of the interval before must be gone, or there is no room for BEGIN.
            return if self.sync.reads > 0 { SyncStep::Wait } else { self.sync_answer(true) };
        }
        if stream.state() == State::Recording {
            return self.sync_answer(false);
        }
        let is_enough = self
            .sync
            .wanted
            .as_ref()
            .is_none_or(|wanted| wanted.read >= wanted.bytes || wanted.records >= RECORDS_MAX);
        let length_max = if self.sync.careful > 0 { DAMAGE_UNIT } else { PIECE };
        let before = self.sync.wanted.as_ref().and_then(|wanted| wanted.before);
        let next = stream.next_to_read(length_max);
        let is_beyond = next
            .as_ref()
            .zip(before)
            .is_some_and(|((number, range), (disk, at))| (*number, range.start) >= (disk, at));
        match next {
            None => self.try_end(),
            Some(_) if is_enough || is_beyond => {
                if self.sync.reads > 0 {
                    return SyncStep::Wait;
                }
                self.sync_answer(false)
            }
            Some(_) if !self.has_sync_room() => {
                if self.sync.reads > 0 {
                    return SyncStep::Wait;
                }
                self.sync_answer(true)
            }
            Some((number, range)) => {
                let stop = before.filter(|(disk, _)| *disk == number).map(|(_, at)| at);
                self.read_piece(
                    number,
                    range.start,
                    stop.map_or(range.end, |at| range.end.min(at)),
                );
                SyncStep::More
            }
        }
    }

    /// A sync leaves half of the ring to the guests: else it would make the stream dirty again.
    fn has_sync_room(&self) -> bool {
        let Some(stream) = &self.stream else { return false };
        let (ring, geometry) = (&stream.ring, stream.ring.geometry());
        let ahead = (self.sync.reads as u64 + 1) * PIECE;
        let pieces = (self.sync.reads as u64 + 1) * (PIECE / ZERO_UNIT as u64);
        ring.payload_used() + ahead <= geometry.payload_capacity / 2
            && ring.index_used() + pieces <= geometry.index_capacity / 2
    }

    fn sync_answer(&mut self, is_busy: bool) -> SyncStep {
        let read = self.sync.wanted.take().map_or(0, |wanted| wanted.read);
        let Some(stream) = &self.stream else { return SyncStep::Done(json!({})) };
        let (total, _) = stream.progress();
        SyncStep::Done(json!({
            "state": stream.state().name(),
            "cause": stream.cause().name(),
            "remaining": stream.remaining(),
            "total": total,
            "read": read,
            "busy": is_busy,
            "head": stream.ring.head(),
            "begin": stream.begin_seq(),
        }))
    }

    fn slot_of(&self, number: u16) -> Option<usize> {
        self.disks.iter().find(|(_, disk)| disk.number == number).map(|(slot, _)| slot)
    }

    /// Reads the next piece: a hole is not read at all.
    fn read_piece(&mut self, number: u16, start: u64, end: u64) {
        let now = self.clock.wall_ns;
        let (slot, stream) = match (self.slot_of(number), &mut self.stream) {
            (Some(slot), Some(stream)) => (slot, stream),
            (None, Some(stream)) => return stream.take_to_read(number, start..end),
            _ => return,
        };
        let Some(disk) = self.disks.get_mut(slot) else { return };
        let before = stream.ring.head();
        let data = if disk.io.is_device { Some(start) } else { seek_data(disk, start) };
        let data = data.map(|at| at - at % ZERO_UNIT as u64).unwrap_or(u64::MAX);
        if data > start {
            // The mark may reach further than this piece: the whole hole is one record.
            let whole = stream.members().get(&number).and_then(|m| m.to_read.next_covered(start));
            let stop = whole.map_or(end, |range| range.end).min(data).min(start + ZERO_MAX);
            stream.take_to_read(number, start..stop);
            if !stream.sync_zero(number, start, (stop - start) as u32, before, now) {
                stream.mark_to_read(number, start..stop);
                stream.fall(Cause::RingFull);
            }
            disk.hot.touch(&(start..stop), stream.ring.head(), self.clock.mono_ns);
            if let Some(wanted) = &mut self.sync.wanted {
                wanted.records += 1;
            }
            return;
        }
        stream.take_to_read(number, start..end);
        let epoch = stream.epoch();
        self.submit_sync_read(slot, start, end - start, Kind::SyncRead { epoch, before });
    }

    fn submit_sync_read(&mut self, slot: usize, offset: u64, length: u64, kind: Kind) {
        self.serial += 1;
        self.sync.reads += 1;
        let op = Op {
            kind,
            request: None,
            disk: slot,
            offset,
            length,
            done: 0,
            buffer: None,
            short: None,
            serial: self.serial,
        };
        let id = self.ops.insert(op);
        let is_inline = self
            .disks
            .get(slot)
            .is_some_and(|disk| disk.io.mode == IoMode::Memory && disk.failpoints.is_empty());
        if !is_inline {
            return self.start(id);
        }
        let mut buffer = self.pool.take(length as usize);
        let result = match self.disks.get(slot) {
            Some(disk) => disk::read_all(&disk.io.file, &mut buffer[..length as usize], offset),
            None => Err(libc::ESHUTDOWN),
        };
        if let Some(op) = self.ops.get_mut(id) {
            op.buffer = Some(buffer);
        }
        self.finish_sync_read(id, result.err());
    }

    /// A read of a sync is complete.
    pub fn finish_sync_read(&mut self, id: OpId, code: Option<i32>) {
        let Some(op) = self.ops.remove(id) else { return };
        self.sync.reads -= 1;
        // Every write that is in flight now was so during this read, or after it.
        self.sync.barrier = self.serial;
        if let Kind::SyncRead { epoch, before } = op.kind {
            self.take_sync_read(&op, epoch, before, code);
        }
        if let Some(buffer) = op.buffer {
            self.pool.give(buffer);
        }
    }

    fn take_sync_read(&mut self, op: &Op, epoch: u64, before: u64, code: Option<i32>) {
        let (Some(disk), Some(stream)) = (self.disks.get_mut(op.disk), &mut self.stream) else {
            return;
        };
        let (number, end) = (disk.number, op.offset + op.length);
        if stream.epoch() != epoch {
            // The interval is over: what was read may not be used in the next.
            return stream.mark_to_read(number, op.offset..end);
        }
        if code.is_some() && op.length > DAMAGE_UNIT {
            self.sync.careful = self.sync.careful.max(op.length);
            return stream.mark_to_read(number, op.offset..end);
        }
        self.sync.careful = self.sync.careful.saturating_sub(op.length);
        if code.is_some() {
            return stream.note_unreadable(number, op.offset..end);
        }
        crash::point("sync_after_read_before_record");
        let Some(buffer) = &op.buffer else { return };
        let now = self.clock.wall_ns;
        let mut records = 0;
        for (at, length, is_zero) in runs(&buffer[..op.length as usize]) {
            let offset = op.offset + at as u64;
            let is_in = if is_zero {
                stream.sync_zero(number, offset, length as u32, before, now)
            } else {
                stream.sync_data(number, offset, &buffer[at..at + length], before, now)
            };
            records += 1;
            if !is_in {
                stream.mark_to_read(number, offset..end);
                stream.fall(Cause::RingFull);
                break;
            }
        }
        disk.hot.touch(&(op.offset..end), stream.ring.head(), self.clock.mono_ns);
        if let Some(wanted) = &mut self.sync.wanted {
            wanted.read += op.length;
            wanted.records += records;
        }
    }

    /// Nothing is left to read: the interval ends when every write that was in flight during the
    /// last read is recorded.
    fn try_end(&mut self) -> SyncStep {
        let barrier = self.sync.barrier;
        let is_waiting = self.sync.reads > 0
            || self.ops.iter().any(|(_, op)| op.is_change() && op.serial <= barrier);
        if is_waiting {
            return SyncStep::Wait;
        }
        let is_mirror_open = self.stream.as_ref().is_some_and(|s| s.mirrors.is_any_open());
        if is_mirror_open && self.sync.deadline_ns().is_some_and(|at| at > self.clock.mono_ns) {
            return SyncStep::Wait;
        }
        let now = self.clock.wall_ns;
        let is_ended = self.stream.as_mut().is_some_and(|stream| stream.end(now));
        self.sync_answer(!is_ended)
    }
}

/// The first byte of data at or after `start`; `None`: only a hole follows.
fn seek_data(disk: &super::core::Disk, start: u64) -> Option<u64> {
    files::seek_data(&disk.io.file, start).unwrap_or(Some(start))
}

/// Zeroes and data by turns: (at, length, is zero).
fn runs(bytes: &[u8]) -> Vec<(usize, usize, bool)> {
    let mut runs: Vec<(usize, usize, bool)> = Vec::new();
    for (number, unit) in bytes.chunks(ZERO_UNIT).enumerate() {
        let is_zero = is_zero(unit);
        match runs.last_mut() {
            Some(last) if last.2 == is_zero => last.1 += unit.len(),
            _ => runs.push((number * ZERO_UNIT, unit.len(), is_zero)),
        }
    }
    runs
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.first().is_none_or(|first| *first == 0) && bytes[..bytes.len() - 1] == bytes[1..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeroes_are_found_in_units() {
        let mut bytes = vec![0u8; 5 * ZERO_UNIT + 512];
        bytes[ZERO_UNIT + 17] = 1;
        bytes[2 * ZERO_UNIT] = 1;
        let found = runs(&bytes);
        let expected = [
            (0, ZERO_UNIT, true),
            (ZERO_UNIT, 2 * ZERO_UNIT, false),
            (3 * ZERO_UNIT, 2 * ZERO_UNIT + 512, true),
        ];
        assert_eq!(found, expected);
        assert!(!is_zero(&[0, 0, 1]) && is_zero(&[0]));
    }
}
