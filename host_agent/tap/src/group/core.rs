//! What a group does with requests: at once where nothing can make it wait, else as operations
//! (see `ops`). Knows no sockets: answers go to a list that the loop hands to connections.

use std::ops::Range;
use std::path::PathBuf;

use crate::clock::Clock;
use crate::coarse::CoarseMap;
use crate::crash;
use crate::disk::{self, DiskFile, IoMode};
use crate::engine::Engine;
use crate::failpoint::Failpoints;
use crate::hot::Hot;
use crate::inflight::{InFlight, OpId};
use crate::nbd::request::{Command, Header, FLAG_FAST_ZERO, FLAG_FUA, FLAG_NO_HOLE, FLAG_REQ_ONE};
use crate::nbd::Errno;
use crate::pool::Pool;
use crate::record::{Op as RecordOp, FLAG_FUA as RECORD_FUA, PIECE_BYTES};
use crate::recovered::Recovered;
use crate::ring::INLINE;
use crate::slab::Slab;
use crate::stats::DiskStats;
use crate::stream::{Cause, State, Stream};
use crate::sys::files::{self, Space};
use crate::sys::AlignedBuf;

use super::extents::extents;
use super::fill::Needs;
use super::hold::Holds;
use super::marks::MarkIos;
use super::ops::{Delayed, Op};
use super::spin::Answered;
use super::sync::SyncRun;

/// Zeroes and trims of at most this are done in line on a memory file, bytes.
const INLINE_SPACE_MAX: u32 = 1 << 20;
/// Extents in one block status.
const EXTENTS_MAX: usize = 1024;

/// A disk while it is served.
pub struct Disk {
    /// Its name in the group.
    pub name: String,
    /// Its number in the stream.
    pub number: u16,
    /// The open file.
    pub io: DiskFile,
    /// Bytes, as clients were told at the newest connect.
    pub size: u64,
    /// What is being worked on.
    pub flight: InFlight,
    /// Faults below it, for tests.
    pub failpoints: Failpoints,
    /// Written since the last good flush began.
    pub unflushed: CoarseMap,
    /// Flushes: the one that runs covers those; the others wait.
    pub flush: FlushQueue,
    /// Counters.
    pub stats: DiskStats,
    /// Connections that use it.
    pub clients: u32,
    /// Only for recovered disks.
    pub recovered: Option<Recovered>,
    /// Its hot extents.
    pub hot: Hot,
    /// Where they are logged.
    pub log_path: PathBuf,
}

/// The flushes of one disk.
#[derive(Debug, Default)]
pub struct FlushQueue {
    /// A sync runs.
    pub is_running: bool,
    /// Covered by the sync that runs.
    pub running: Vec<Request>,
    /// What that sync makes good.
    pub covered: Option<CoarseMap>,
    /// Came later.
    pub waiting: Vec<Request>,
    /// One failed: the kernel may have dropped data, so no later one can be trusted.
    pub has_failed: bool,
}

impl Disk {
    /// A disk that is served from now on.
    pub fn new(name: &str, number: u16, io: DiskFile, size: u64) -> Disk {
        Disk {
            name: name.to_owned(),
            number,
            io,
            size,
            flight: InFlight::default(),
            failpoints: Failpoints::default(),
            unflushed: CoarseMap::new(size),
            flush: FlushQueue::default(),
            stats: DiskStats::default(),
            clients: 0,
            recovered: None,
            hot: Hot::without(),
            log_path: PathBuf::new(),
        }
    }

    /// Whether a request for `range` can be done at once by calls that do not wait.
    pub fn is_easy(&self, range: &Range<u64>, is_write: bool) -> bool {
        self.failpoints.is_empty()
            && (!is_write || self.hot.is_ready(range))
            && (self.flight.is_idle() || !self.flight.must_wait(range, is_write))
    }

    /// Whether all of `range` is on the disk (recovered disks are filled behind).
    pub fn is_present(&self, range: &Range<u64>) -> bool {
        self.recovered.as_ref().is_none_or(|map| map.present.contains(range))
    }
}

/// Which connection: a place, and who has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ConnRef {
    /// Its place in the group.
    pub slot: usize,
    /// Counts connections, so that a later one in the same place is another.
    pub number: u64,
}

/// A request of a client.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Who asks.
    pub conn: ConnRef,
    /// What.
    pub header: Header,
    /// Of which disk (a slot).
    pub disk: usize,
    /// When it came, ns of the tap's clock.
    pub came_ns: u64,
}

impl Request {
    /// The bytes of the disk that it is about.
    pub fn range(&self) -> Range<u64> {
        self.header.offset..self.header.offset + u64::from(self.header.length)
    }

    fn is_fua(&self) -> bool {
        self.header.flags & FLAG_FUA != 0
    }
}

/// The data of a write.
pub enum Data<'a> {
    /// No data.
    None,
    /// In somebody's buffer.
    Slice(&'a [u8]),
    /// In a buffer of its own.
    Owned(AlignedBuf),
}

/// What a request comes to.
#[derive(Debug)]
pub enum Answer {
    /// Done.
    Ok,
    /// Failed.
    Error(Errno),
    /// Read; the buffer holds at least the request's length.
    Data(AlignedBuf),
    /// Lengths and flags.
    Extents(Vec<(u32, u32)>),
}

/// An answer that came later.
#[derive(Debug)]
pub struct Reply {
    /// To what.
    pub request: Request,
    /// Which.
    pub answer: Answer,
}

/// All of a group but its sockets.
pub struct Core {
    /// The group's name.
    pub name: String,
    /// Its disks, by slot.
    pub disks: Slab<Disk>,
    /// Its stream; recovered groups have none.
    pub stream: Option<Stream>,
    /// I/O that would wait.
    pub engine: Engine,
    /// Buffers.
    pub pool: Pool,
    /// Requests that are not done.
    pub ops: Slab<Op>,
    /// Operations that a failpoint delays.
    pub delayed: Vec<Delayed>,
    /// Answers for the loop to hand out.
    pub replies: Vec<Reply>,
    /// Completions that are withheld.
    pub holds: Holds,
    /// The sync that runs.
    pub sync: SyncRun,
    /// Missing ranges that guests wait for.
    pub needs: Needs,
    /// Time of this batch.
    pub clock: Clock,
    /// Requests that were answered in this turn of the loop.
    pub answered: Answered,
    /// Data bytes of requests that are not done.
    pub queued_bytes: usize,
    /// Operations that may start.
    pub ready: Vec<OpId>,
    /// Requests without I/O of their own that something stands in the way of.
    pub retries: Vec<Request>,
    /// Counts operations.
    pub serial: u64,
    /// Operations that a panic dropped: their connections end.
    pub broken: Vec<Request>,
    /// Calls on hot-extent logs.
    pub marks: MarkIos,
    /// Logs that failed just now, with the error's number.
    pub broken_logs: Vec<(usize, i32)>,
    /// Mirrored disks (slots) of which a write was refused: their connections end.
    pub cut: Vec<usize>,
}

impl Core {
    /// A group without disks.
    pub fn new(name: &str, engine: Engine, stream: Option<Stream>) -> Core {
        Core {
            name: name.to_owned(),
            disks: Slab::default(),
            stream,
            engine,
            pool: Pool::new(),
            ops: Slab::default(),
            delayed: Vec::new(),
            replies: Vec::new(),
            holds: Holds::default(),
            sync: SyncRun::default(),
            needs: Needs::default(),
            clock: Clock::new(),
            answered: Answered::default(),
            queued_bytes: 0,
            ready: Vec::new(),
            retries: Vec::new(),
            serial: 0,
            broken: Vec::new(),
            marks: MarkIos::default(),
            broken_logs: Vec::new(),
            cut: Vec::new(),
        }
    }

    /// Does a request, or starts it: then its answer comes later. It was checked before.
    pub fn execute(&mut self, request: Request, data: Data) -> Option<Answer> {
        let range = request.range();
        let is_write = request.header.is_recorded();
        let Some(disk) = self.disks.get(request.disk) else {
            return Some(Answer::Error(Errno::Shutdown));
        };
        if disk.io.mode == IoMode::Mirror {
            let answer = self.mirror_request(&request, data)?;
            return self.withhold_if_held(request, answer);
        }
        if matches!(request.header.command, Command::Cache | Command::BlockStatus) {
            if disk.flight.must_wait(&range, false) {
                self.retries.push(request);
                return None;
            }
            return self.try_now(&request, &data);
        }
        if disk.is_easy(&range, is_write) {
            if let Some(answer) = self.try_now(&request, &data) {
                self.give_back(data);
                return self.withhold_if_held(request, answer);
            }
        }
        self.enqueue(request, data);
        None
    }

    fn give_back(&mut self, data: Data) {
        if let Data::Owned(buffer) = data {
            self.pool.give(buffer);
        }
    }

    /// Does what no device and no other request can make wait.
    fn try_now(&mut self, request: &Request, data: &Data) -> Option<Answer> {
        let disk = self.disks.get(request.disk)?;
        let is_memory = disk.io.mode == IoMode::Memory;
        let is_short = request.header.length <= INLINE_SPACE_MAX
            && !(request.is_fua() && disk.recovered.is_some());
        match request.header.command {
            Command::Write => {
                let bytes = match data {
                    Data::Slice(bytes) => bytes,
                    Data::Owned(buffer) => &buffer[..request.header.length as usize],
                    Data::None => &[],
                };
                let is_slow = request.is_fua() && (!is_memory || disk.recovered.is_some());
                let is_inline = disk.io.mode != IoMode::Direct && !is_slow;
                is_inline.then(|| self.write_now(request, bytes))
            }
            Command::Read if is_memory && disk.is_present(&request.range()) => {
                Some(self.read_now(request))
            }
            Command::Flush if is_memory && disk.recovered.is_none() => {
                Some(self.flush_now(request))
            }
            Command::Trim if is_memory && is_short => Some(self.trim_now(request)),
            Command::WriteZeroes if is_memory && is_short => self.zero_now(request),
            Command::Cache => Some(Answer::Ok),
            Command::BlockStatus => Some(self.block_status(request)),
            _ => None,
        }
    }

    fn write_now(&mut self, request: &Request, bytes: &[u8]) -> Answer {
        let Some(disk) = self.disks.get_mut(request.disk) else {
            return Answer::Error(Errno::Shutdown);
        };
        if let Some(stream) = &mut self.stream {
            stream.ring.flight_enter(INLINE, disk.number, &request.range());
        }
        let answer = match disk::write_all(&disk.io.file, bytes, request.header.offset) {
            Ok(()) => {
                self.wrote(request, bytes);
                Answer::Ok
            }
            Err(code) => self.refused(request, code),
        };
        self.flight_leave(INLINE);
        answer
    }

    /// A change of a disk is recorded, or its range is marked.
    pub fn flight_leave(&mut self, slot: usize) {
        if let Some(stream) = &mut self.stream {
            stream.ring.flight_leave(slot);
        }
    }

    /// Whether the data of a write to `disk` may be received into the ring.
    pub fn begin_draft(&mut self, slot: usize, length: usize, owner: u64) -> bool {
        let is_inline = |disk: &Disk| disk.io.mode == IoMode::Memory && disk.failpoints.is_empty();
        if length > PIECE_BYTES || !self.disks.get(slot).is_some_and(is_inline) {
            return false;
        }
        let stream = self.stream.as_mut().filter(|stream| stream.state() != State::Dirty);
        stream.is_some_and(|stream| stream.ring.begin_draft(owner, length))
    }

    /// Where the rest of a draft goes.
    pub fn draft_rest(&mut self, owner: u64) -> Option<&mut [u8]> {
        self.stream.as_mut()?.ring.draft_rest(owner)
    }

    /// More of a draft arrived.
    pub fn draft_got(&mut self, owner: u64, count: usize) {
        if let Some(stream) = &mut self.stream {
            stream.ring.draft_got(owner, count);
        }
    }

    /// Whoever sent a draft is gone.
    pub fn drop_draft(&mut self, owner: u64) {
        if let Some(stream) = &mut self.stream {
            stream.ring.take_draft(owner);
        }
    }

    /// Does a write whose data arrived in the ring.
    pub fn execute_draft(&mut self, request: Request, owner: u64) -> Option<Answer> {
        let range = request.range();
        let Some(stream) = self.stream.as_mut() else { return Some(Answer::Error(Errno::Io)) };
        let disk = self.disks.get_mut(request.disk).filter(|disk| disk.is_easy(&range, true));
        let is_whole = stream.state() != State::Dirty && stream.ring.draft_bytes(owner).is_some();
        let (Some(disk), true) = (disk, is_whole) else {
            let Some(buffer) = stream.ring.take_draft(owner) else {
                return Some(Answer::Error(Errno::Io));
            };
            return self.execute(request, Data::Owned(buffer));
        };
        stream.ring.flight_enter(INLINE, disk.number, &range);
        let bytes = stream.ring.draft_bytes(owner).unwrap_or(&[]);
        if let Err(code) = disk::write_all(&disk.io.file, bytes, range.start) {
            stream.ring.take_draft(owner);
            let answer = self.refused(&request, code);
            self.flight_leave(INLINE);
            return Some(answer);
        }
        crash::point("draft_after_disk_before_record");
        disk.unflushed.mark(&range);
        disk.stats.written(range.end - range.start);
        let flags = if request.is_fua() { RECORD_FUA } else { 0 };
        stream.write_draft(disk.number, range.clone(), flags, self.clock.wall_ns);
        disk.hot.touch(&range, stream.ring.head(), self.clock.mono_ns);
        crash::point("draft_after_record_before_answer");
        stream.ring.flight_leave(INLINE);
        self.withhold_if_held(request, Answer::Ok)
    }

    /// The disk accepted a write: it is recorded before anybody hears of it.
    pub fn wrote(&mut self, request: &Request, bytes: &[u8]) {
        crash::point("write_after_disk_before_record");
        let Some(disk) = self.disks.get_mut(request.disk) else { return };
        let range = request.range();
        disk.unflushed.mark(&range);
        disk.stats.written(bytes.len() as u64);
        if let Some(map) = &mut disk.recovered {
            map.wrote(range);
            self.needs.is_stale = self.needs.waiting() > 0;
        }
        if let Some(stream) = &mut self.stream {
            let flags = if request.is_fua() { RECORD_FUA } else { 0 };
            stream.write(disk.number, request.header.offset, bytes, flags, self.clock.wall_ns);
            disk.hot.touch(&request.range(), stream.ring.head(), self.clock.mono_ns);
            crash::point("write_after_record_before_answer");
        }
    }

    /// The disk accepted zeroes, a trim or a flush.
    pub fn noted(&mut self, request: &Request, op: RecordOp) {
        crash::point("note_after_disk_before_record");
        let Some(disk) = self.disks.get_mut(request.disk) else { return };
        let range = request.range();
        disk.unflushed.mark(&range);
        match op {
            RecordOp::Trim => disk.stats.trims += 1,
            RecordOp::Zero => disk.stats.zeroes += 1,
            _ => disk.stats.flushes += 1,
        }
        if let Some(map) = &mut disk.recovered {
            map.wrote(range);
            self.needs.is_stale = self.needs.waiting() > 0;
        }
        if let Some(stream) = &mut self.stream {
            let flags = if request.is_fua() { RECORD_FUA } else { 0 };
            let (offset, length) = (request.header.offset, request.header.length);
            stream.note(op, disk.number, offset, length, flags, self.clock.wall_ns);
            disk.hot.touch(&request.range(), stream.ring.head(), self.clock.mono_ns);
            crash::point("note_after_record_before_answer");
        }
    }

    /// The disk refused: the guest hears it, and the range may be anything now.
    pub fn refused(&mut self, request: &Request, code: i32) -> Answer {
        crash::point("error_after_refusal_before_mark");
        if let Some(disk) = self.disks.get_mut(request.disk) {
            disk.stats.errors += 1;
            let is_change = request.header.is_recorded();
            if let (true, Some(stream)) = (is_change, &mut self.stream) {
                stream.disk_differs(disk.number, request.range(), Cause::DiskError);
                crash::point("error_after_mark_before_answer");
            }
        }
        Answer::Error(Errno::from_system(code))
    }

    fn read_now(&mut self, request: &Request) -> Answer {
        let length = request.header.length as usize;
        let mut buffer = self.pool.take(length);
        match self.read_into(request, &mut buffer[..length]) {
            Ok(()) => Answer::Data(buffer),
            Err(code) => {
                self.pool.give(buffer);
                Answer::Error(Errno::from_system(code))
            }
        }
    }

    /// Whether a read can be done by [`Core::read_into`].
    pub fn can_read_now(&self, request: &Request) -> bool {
        let range = request.range();
        self.disks.get(request.disk).is_some_and(|disk| {
            disk.io.mode == IoMode::Memory && disk.is_easy(&range, false) && disk.is_present(&range)
        })
    }

    /// Reads in line.
    pub fn read_into(&mut self, request: &Request, bytes: &mut [u8]) -> Result<(), i32> {
        let disk = self.disks.get_mut(request.disk).ok_or(libc::ESHUTDOWN)?;
        let result = disk::read_all(&disk.io.file, bytes, request.header.offset);
        match result {
            Ok(()) => disk.stats.was_read(bytes.len() as u64),
            Err(_) => disk.stats.errors += 1,
        }
        result
    }

    /// Whether [`Core::read_cached`] is worth trying.
    pub fn may_be_cached(&self, request: &Request) -> bool {
        self.disks.get(request.disk).is_some_and(|disk| disk.io.mode == IoMode::Cached)
    }

    /// Reads through the page cache what is in it; `false`: a device must be asked.
    pub fn read_cached(&mut self, request: &Request, bytes: &mut [u8]) -> bool {
        let Some(disk) = self.disks.get_mut(request.disk) else { return false };
        let range = request.range();
        let is_tried = disk.io.mode == IoMode::Cached
            && disk.is_easy(&range, false)
            && disk.is_present(&range);
        if !is_tried {
            return false;
        }
        let got = files::read_cached(&disk.io.file, bytes, request.header.offset);
        let is_whole = got.is_ok_and(|got| got == bytes.len());
        if is_whole {
            disk.stats.was_read(bytes.len() as u64);
        }
        is_whole
    }

    /// A file in memory has nothing to make durable.
    fn flush_now(&mut self, request: &Request) -> Answer {
        let Some(disk) = self.disks.get_mut(request.disk) else {
            return Answer::Error(Errno::Shutdown);
        };
        if disk.flush.has_failed {
            disk.stats.errors += 1;
            return Answer::Error(Errno::Io);
        }
        self.noted(request, RecordOp::Flush);
        if let Some(disk) = self.disks.get_mut(request.disk) {
            disk.unflushed.clear();
        }
        Answer::Ok
    }

    fn trim_now(&mut self, request: &Request) -> Answer {
        let Some(disk) = self.disks.get_mut(request.disk) else {
            return Answer::Error(Errno::Shutdown);
        };
        let (offset, length) = (request.header.offset, u64::from(request.header.length));
        if let Some(stream) = &mut self.stream {
            stream.ring.flight_enter(INLINE, disk.number, &request.range());
        }
        let answer = match disk::space(&disk.io.file, Space::Punch, offset, length) {
            Ok(()) => {
                self.noted(request, RecordOp::Trim);
                Answer::Ok
            }
            // Nothing was promised, so nothing was done and nothing is recorded.
            Err(libc::EOPNOTSUPP) => Answer::Ok,
            Err(code) => self.refused(request, code),
        };
        self.flight_leave(INLINE);
        answer
    }

    /// Zeroes a range of a memory file without writing; `None`: it must be written.
    fn zero_now(&mut self, request: &Request) -> Option<Answer> {
        let disk = self.disks.get_mut(request.disk)?;
        let (offset, length) = (request.header.offset, u64::from(request.header.length));
        let space =
            if request.header.flags & FLAG_NO_HOLE != 0 { Space::Zero } else { Space::Punch };
        if let Some(stream) = &mut self.stream {
            stream.ring.flight_enter(INLINE, disk.number, &request.range());
        }
        let answer = match disk::space(&disk.io.file, space, offset, length) {
            Ok(()) => {
                self.noted(request, RecordOp::Zero);
                Some(Answer::Ok)
            }
            Err(libc::EOPNOTSUPP) if request.header.flags & FLAG_FAST_ZERO != 0 => {
                Some(Answer::Error(Errno::NotSupported))
            }
            Err(libc::EOPNOTSUPP) => None,
            Err(code) => Some(self.refused(request, code)),
        };
        self.flight_leave(INLINE);
        answer
    }

    fn block_status(&mut self, request: &Request) -> Answer {
        let Some(disk) = self.disks.get(request.disk) else {
            return Answer::Error(Errno::Shutdown);
        };
        let most = if request.header.flags & FLAG_REQ_ONE != 0 { 1 } else { EXTENTS_MAX };
        Answer::Extents(extents(disk, request.range(), most))
    }
}
