//! The marks of hot extents: what waits for them, how they become durable, and what becomes of a
//! disk whose log cannot be written.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use super::core::{Core, Disk};
use super::ops::Kind;
use crate::crash;
use crate::engine::{Completion, Io, IoKind};
use crate::failpoint::Target;
use crate::hot::{Hot, Look, Phase, Write};
use crate::hotlog::{Log, PAGE};
use crate::inflight::OpId;
use crate::recovered::sync_folder_of;
use crate::stream::{State, Stream};

/// Completions with this bit are the logs'; the others are operations'.
const LOG_BIT: u64 = 1 << 63;
/// What is no longer needed is looked for so often, ns.
const LOOK_NS: u64 = 1_000_000_000;
/// Unused for so long an extent is given up, ns.
const QUIET_NS: u64 = 60_000_000_000;

/// The calls on logs that are under way.
#[derive(Debug)]
pub struct MarkIos {
    all: BTreeMap<u64, (usize, u16)>,
    /// Operations that were started behind a mark.
    pub followers: Vec<OpId>,
    next: u64,
    /// When the next look is due, ns.
    look_ns: u64,
    /// Unused for so long an extent is given up, ns.
    pub quiet_ns: u64,
}

impl Default for MarkIos {
    fn default() -> MarkIos {
        let (all, followers) = (BTreeMap::new(), Vec::new());
        MarkIos { all, followers, next: 0, look_ns: 0, quiet_ns: QUIET_NS }
    }
}

impl MarkIos {
    /// Something happened that a look may be worth.
    pub fn look_soon(&mut self) {
        self.look_ns = 0;
    }

    /// Whether an operation that comes back was started behind a mark.
    pub fn has_followed(&mut self, id: OpId) -> bool {
        let at = self.followers.iter().position(|follower| *follower == id);
        at.map(|at| self.followers.swap_remove(at)).is_some()
    }

    /// Whether nothing is under way.
    pub fn is_idle(&self) -> bool {
        self.all.is_empty()
    }
}

/// Opens the log of a disk as an earlier tap left it, or makes one.
pub fn open(path: &Path, size: u64, is_believed: bool, head: u64) -> Hot {
    if is_believed {
        if let Ok(found) = Log::open(path) {
            return Hot::found(found, head);
        }
    }
    match Log::create(path, size) {
        Ok(log) => Hot::new(log, size),
        Err(e) => {
            let _ = remove(path);
            Hot::untrusted(format!("{}: {e}", path.display()))
        }
    }
}

/// Removes a log that nobody may believe again.
pub fn remove(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
        _ => sync_folder_of(path),
    }
}

impl Core {
    /// Whether a change may go to the disk now; else it is started again when it may.
    pub fn is_marked(&mut self, id: OpId) -> bool {
        let Some(op) = self.ops.get(id).filter(|op| op.is_change()) else { return true };
        let range = op.offset..op.offset + op.length;
        let Some(disk) = self.disks.get_mut(op.disk) else { return true };
        let is_ready = disk.hot.is_ready(&range);
        if !is_ready {
            disk.hot.wait(id, &range, self.clock.elapsed_ns());
        }
        is_ready
    }

    /// Begins to make durable what is to be marked. All that wait share it.
    pub fn commit_marks(&mut self) {
        let is_busy = |(slot, disk): (usize, &Disk)| disk.hot.is_busy().then_some(slot);
        let busy: Vec<usize> = self.disks.iter().filter_map(is_busy).collect();
        for slot in busy {
            self.commit_marks_of(slot);
        }
        for (slot, code) in std::mem::take(&mut self.broken_logs) {
            self.distrust(slot, code);
        }
    }

    fn commit_marks_of(&mut self, slot: usize) {
        let Some(disk) = self.disks.get_mut(slot) else { return };
        let number = disk.number;
        let writes = disk.hot.next_batch(self.clock.mono_ns);
        let Some(file) = disk.hot.file().filter(|_| !writes.is_empty()) else { return };
        if let Some(code) = disk.failpoints.next_of(Target::Log) {
            return self.broken_logs.push((slot, code));
        }
        let may_follow = disk.failpoints.is_empty();
        let follower = if may_follow { disk.hot.take_follower() } else { None };
        for Write { page: (offset, bytes), is_durable } in writes {
            let mut buffer = self.pool.take(PAGE);
            buffer[..PAGE].copy_from_slice(&bytes);
            self.marks.next += 1;
            let token = LOG_BIT | self.marks.next;
            self.marks.all.insert(token, (slot, number));
            let mark = Io {
                token,
                file: file.clone(),
                kind: IoKind::Write { is_durable },
                buffer: Some(buffer),
                buffer_at: 0,
                length: PAGE,
                offset,
            };
            match follower {
                Some(id) => self.start_behind(mark, id),
                None => self.engine.push(mark),
            }
        }
    }

    /// Takes a completion if it is a log's.
    pub fn complete_mark(&mut self, completion: Completion) -> Option<Completion> {
        let mut io = completion.io;
        if io.token & LOG_BIT == 0 {
            return Some(Completion { io, result: completion.result });
        }
        let (slot, number) = self.marks.all.get(&io.token).copied()?;
        match completion.result {
            Err(libc::EINTR | libc::EAGAIN) => {
                self.engine.push(io);
                return None;
            }
            // The rest of a write that the system cut short.
            Ok(count) if count > 0 && count < io.length => {
                (io.buffer_at, io.length) = (io.buffer_at + count, io.length - count);
                io.offset += count as u64;
                self.engine.push(io);
                return None;
            }
            _ => {}
        }
        self.marks.all.remove(&io.token);
        let is_write = io.buffer.is_some();
        if let Some(buffer) = io.buffer.take() {
            self.pool.give(buffer);
        }
        let is_same = |disk: &&mut Disk| disk.number == number;
        let disk = self.disks.get_mut(slot).filter(is_same)?;
        match completion.result {
            Ok(0) if is_write => self.distrust(slot, libc::EIO),
            Err(code) => self.distrust(slot, code),
            Ok(_) if is_write && disk.hot.wrote() => {
                self.marks.next += 1;
                let token = LOG_BIT | self.marks.next;
                self.marks.all.insert(token, (slot, number));
                self.engine.push(Io { token, kind: IoKind::Sync, length: 0, offset: 0, ..io });
            }
            Ok(_) => self.marks_are_durable(slot),
        }
        None
    }

    fn marks_are_durable(&mut self, slot: usize) {
        let now = self.clock.elapsed_ns();
        let Some(disk) = self.disks.get_mut(slot) else { return };
        if disk.hot.is_durable() {
            crash::point("mark_after_durable_before_record");
            let again = disk.hot.committed(now);
            self.ready.extend(again);
            self.marks.look_soon();
        }
    }

    /// The log of a disk failed: the guest goes on, and everybody is told.
    pub fn distrust(&mut self, slot: usize, code: i32) {
        let now = self.clock.elapsed_ns();
        let Some(disk) = self.disks.get_mut(slot) else { return };
        if disk.hot.phase == Phase::Untrusted {
            return;
        }
        let reason = std::io::Error::from_raw_os_error(code).to_string();
        eprintln!("holdfast-tap: disk {}/{} is untrusted: its log: {reason}", self.name, disk.name);
        let (log, again) = disk.hot.distrust(reason, now);
        let (number, path) = (disk.number, disk.log_path.clone());
        self.ready.extend(again);
        if let Some(stream) = &mut self.stream {
            stream.distrust(number, self.clock.wall_ns);
        }
        // What can be done so that no successor believes the log may take as long as the device
        // that failed likes; no guest waits for it.
        let undo = move || {
            if let Some(mut log) = log {
                let page = log.superblock(crate::hotlog::Scope::Whole, 0);
                let _ = log.write_now(&page);
            }
            let _ = remove(&path);
        };
        let _ = std::thread::Builder::new().name("distrust".to_owned()).spawn(undo);
    }

    /// Nothing that would have to be known again can be written: no log is believed any more.
    pub fn distrust_all(&mut self, code: i32) {
        let is_kept = |disk: &Disk| disk.hot.phase != Phase::Without;
        let kept = self.disks.iter().filter(|(_, disk)| is_kept(disk));
        let slots: Vec<usize> = kept.map(|(slot, _)| slot).collect();
        for slot in slots {
            self.distrust(slot, code);
        }
    }

    /// All of a disk, or of each, is to be read: the logs say so before anything else happens.
    pub fn distrust_marks(&mut self, only: Option<u16>) {
        let is_meant = |disk: &Disk| only.is_none_or(|number| number == disk.number);
        for (slot, disk) in self.disks.iter_mut().filter(|(_, disk)| is_meant(disk)) {
            if disk.hot.go_whole_now().is_err() {
                self.broken_logs.push((slot, libc::EIO));
            }
        }
        for (slot, code) in std::mem::take(&mut self.broken_logs) {
            self.distrust(slot, code);
        }
    }

    /// Gives up marks that are no longer needed, and begins to rely on marks when that is safe.
    pub fn tend_marks(&mut self) {
        let now = self.clock.mono_ns;
        if now < self.marks.look_ns || self.stream.is_none() {
            return;
        }
        self.marks.look_ns = now + LOOK_NS;
        let slots: Vec<usize> = self
            .disks
            .iter()
            .filter(|(_, disk)| !matches!(disk.hot.phase, Phase::Without | Phase::Untrusted))
            .map(|(slot, _)| slot)
            .collect();
        for slot in slots {
            if self.tend(slot, now) {
                self.start_flush(slot);
            }
        }
    }

    fn tend(&mut self, slot: usize, now_ns: u64) -> bool {
        let (serial, quiet_ns) = (self.serial, self.marks.quiet_ns);
        let oldest =
            self.ops.iter().filter(|(_, op)| op.is_change()).map(|(_, op)| op.serial).min();
        let reads: Vec<Range<u64>> = self
            .ops
            .iter()
            .filter(|(_, op)| op.disk == slot && matches!(op.kind, Kind::SyncRead { .. }))
            .map(|(_, op)| op.offset..op.offset + op.length)
            .collect();
        let (Some(disk), Some(stream)) = (self.disks.get_mut(slot), &self.stream) else {
            return false;
        };
        let mut changing = disk.flight.changing();
        for read in reads {
            changing.insert(read);
        }
        let number = disk.number;
        let is_needed =
            |range: &Range<u64>| changing.overlaps(range) || stream.is_to_be_read(number, range);
        let look = Look {
            now_ns,
            head: stream.ring.head(),
            stored: stream.ring.positions().stored,
            is_good: is_good(stream, number),
            serial,
            oldest,
            quiet_ns,
            is_needed: &is_needed,
        };
        disk.hot.tend(&look) && !disk.flush.is_running && !disk.flush.has_failed
    }

    /// At an orderly stop: what was written is made durable, marks stay for what is not stored.
    pub fn leave_marks(&mut self) -> Result<(), (String, i32)> {
        let Some(stream) = &self.stream else { return Ok(()) };
        for (_, disk) in self.disks.iter_mut() {
            if disk.hot.phase == Phase::Without {
                continue;
            }
            let failed = |e: std::io::Error| e.raw_os_error().unwrap_or(libc::EIO);
            disk.io.file.sync_data().map_err(|e| (disk.name.clone(), failed(e)))?;
            let number = disk.number;
            let stored = stream.ring.positions().stored;
            let left = disk.hot.leave(stored, &|range| stream.is_to_be_read(number, range));
            left.map_err(|_| (disk.name.clone(), libc::EIO))?;
        }
        Ok(())
    }
}

/// Whether the journal is on its way to have all of a disk. Nothing waits for marks before that.
fn is_good(stream: &Stream, number: u16) -> bool {
    stream.state() == State::Recording
        && stream.ring.positions().stored >= stream.begin_seq()
        && !stream.is_to_be_read(number, &(0..u64::MAX))
        && !stream.has_unreadable()
}
