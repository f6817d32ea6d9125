//! Operations: requests that wait for a device or for each other. Data is recorded when the disk
//! accepted it, before its range is free for the next and before the guest hears of it.

use crate::disk::IoMode;
use crate::engine::{Completion, Io, IoKind};
use crate::failpoint::{Effect, Target};
use crate::inflight::OpId;
use crate::nbd::request::{Command, FLAG_FAST_ZERO, FLAG_FUA, FLAG_NO_HOLE};
use crate::nbd::Errno;
use crate::record::Op as RecordOp;
use crate::sys::files::Space;
use crate::sys::AlignedBuf;

use super::core::{Answer, Core, Data, Reply, Request};

/// Zeroes are written in pieces of this, bytes.
const ZERO_PIECE: u64 = 1 << 20;

/// The place of an operation in the in-flight table: behind that of what is done in line.
fn flight_slot(id: OpId) -> usize {
    id + 1
}

/// What an operation does next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Reads for a guest.
    Read,
    /// Writes a guest's data.
    Write,
    /// Punches a hole for a trim.
    Trim,
    /// Zeroes by `fallocate`.
    Zero(Space),
    /// Zeroes by writing them.
    ZeroFill,
    /// Makes a trim or zeroes durable.
    Settle(RecordOp),
    /// Syncs a disk for its flushes.
    Flush,
    /// Syncs the presence log of a recovered disk for its flushes.
    FlushLog,
    /// Reads for a sync; `epoch` of the interval, and the position before the read.
    SyncRead {
        /// The interval that it belongs to.
        epoch: u64,
        /// The stream's head when it was submitted.
        before: u64,
    },
}

/// An operation.
#[derive(Debug)]
pub struct Op {
    /// What it does.
    pub kind: Kind,
    /// For whom; flushes and syncs are for many or for nobody.
    pub request: Option<Request>,
    /// Of which disk (a slot).
    pub disk: usize,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// Bytes done.
    pub done: u64,
    /// Data, while the engine does not have it.
    pub buffer: Option<AlignedBuf>,
    /// At most so many bytes at once (a failpoint).
    pub short: Option<usize>,
    /// Counts operations.
    pub serial: u64,
}

/// An operation that a failpoint delays.
#[derive(Debug)]
pub struct Delayed {
    /// When it goes on, ns of the tap's clock.
    pub until_ns: u64,
    /// Which.
    pub id: OpId,
    /// What it ends with then.
    pub error: Option<i32>,
}

impl Op {
    fn target(&self) -> Option<Target> {
        match self.kind {
            Kind::Read | Kind::SyncRead { .. } => Some(Target::Read),
            Kind::Write => Some(Target::Write),
            Kind::Trim => Some(Target::Trim),
            Kind::Zero(_) => Some(Target::Zero),
            Kind::Flush => Some(Target::Flush),
            Kind::ZeroFill | Kind::Settle(_) | Kind::FlushLog => None,
        }
    }

    /// Whether it is a guest's change of the disk.
    pub fn is_change(&self) -> bool {
        self.request.is_some() && self.kind != Kind::Read
    }

    fn is_fua(&self) -> bool {
        self.request.is_some_and(|request| request.header.flags & FLAG_FUA != 0)
    }
}

impl Core {
    /// Makes an operation of a request; its answer comes later.
    pub fn enqueue(&mut self, request: Request, data: Data) {
        let length = request.header.length;
        let kind = match request.header.command {
            Command::Read if !self.is_present(&request) => return self.need(request),
            Command::Read => Kind::Read,
            Command::Write => Kind::Write,
            Command::Flush => return self.enqueue_flush(request),
            Command::Trim => Kind::Trim,
            Command::WriteZeroes if request.header.flags & FLAG_NO_HOLE != 0 => {
                Kind::Zero(Space::Zero)
            }
            Command::WriteZeroes => Kind::Zero(Space::Punch),
            // Nothing else has I/O of its own.
            _ => return self.retries.push(request),
        };
        let buffer = match data {
            Data::Owned(buffer) => Some(buffer),
            Data::Slice(bytes) => {
                let mut buffer = self.pool.take(bytes.len());
                buffer[..bytes.len()].copy_from_slice(bytes);
                Some(buffer)
            }
            Data::None => None,
        };
        if matches!(kind, Kind::Read | Kind::Write) {
            self.queued_bytes += length as usize;
        }
        self.serial += 1;
        let op = Op {
            kind,
            request: Some(request),
            disk: request.disk,
            offset: request.header.offset,
            length: u64::from(length),
            done: 0,
            buffer,
            short: None,
            serial: self.serial,
        };
        let id = self.ops.insert(op);
        let is_write = request.header.is_recorded();
        if let Some(disk) = self.disks.get_mut(request.disk) {
            if disk.flight.enter(id, request.range(), is_write) {
                self.ready.push(id);
            }
        }
    }

    fn is_present(&self, request: &Request) -> bool {
        self.disks.get(request.disk).is_none_or(|disk| disk.is_present(&request.range()))
    }

    /// Starts what may start now, until nothing is left.
    pub fn run_ready(&mut self) {
        while let Some(id) = self.ready.pop() {
            self.start(id);
        }
        if self.needs.is_stale {
            self.wake_present();
        }
        for request in std::mem::take(&mut self.retries) {
            self.again(request);
        }
        while let Some(id) = self.ready.pop() {
            self.start(id);
        }
        self.commit_marks();
        self.engine.submit();
    }

    /// Starts an operation that may start, through the disk's failpoints.
    pub fn start(&mut self, id: OpId) {
        if !self.is_marked(id) {
            return;
        }
        self.enter_flight(id);
        let Some(op) = self.ops.get_mut(id) else { return };
        let mut effect = Effect::default();
        if let (Some(target), Some(disk)) = (op.target(), self.disks.get_mut(op.disk)) {
            if !disk.failpoints.is_empty() {
                effect = disk.failpoints.next(target);
            }
        }
        op.short = effect.short;
        if effect.is_panic {
            self.break_op(id);
            panic!("a failpoint");
        }
        if effect.delay_ms > 0 {
            let until_ns = self.clock.elapsed_ns() + effect.delay_ms * 1_000_000;
            self.delayed.push(Delayed { until_ns, id, error: effect.error });
        } else if let Some(code) = effect.error {
            self.finish(id, Err(code));
        } else {
            self.submit(id);
        }
    }

    /// A change is in the table before the disk hears of it.
    fn enter_flight(&mut self, id: OpId) {
        let Some(op) = self.ops.get(id).filter(|op| op.is_change()) else { return };
        let Some(stream) = &mut self.stream else { return };
        let number = self.disks.get(op.disk).map_or(0, |disk| disk.number);
        stream.ring.flight_enter(flight_slot(id), number, &(op.offset..op.offset + op.length));
    }

    /// Drops an operation without an answer: its connection ends.
    fn break_op(&mut self, id: OpId) {
        if let Some(op) = self.ops.remove(id) {
            self.broken.extend(op.request);
            self.release_op(id, &op);
        }
    }

    /// Goes on with what failpoints delayed long enough.
    pub fn run_delayed(&mut self) {
        if self.delayed.is_empty() {
            return;
        }
        let now = self.clock.elapsed_ns();
        let mut at = 0;
        while at < self.delayed.len() {
            if self.delayed[at].until_ns > now {
                at += 1;
                continue;
            }
            let delayed = self.delayed.swap_remove(at);
            match delayed.error {
                Some(code) => self.finish(delayed.id, Err(code)),
                None => self.submit(delayed.id),
            }
        }
    }

    /// Hands the rest of an operation to the engine.
    pub fn submit(&mut self, id: OpId) {
        if let Some(io) = self.next_io(id) {
            self.engine.push(io);
        }
    }

    /// Starts a change that waits for `mark` together with it: the disk hears of it when the mark
    /// is durable. If that fails, the change comes back and is started again.
    pub fn start_behind(&mut self, mark: Io, id: OpId) {
        self.enter_flight(id);
        match self.next_io(id) {
            Some(io) => {
                self.marks.followers.push(id);
                self.engine.push_linked(mark, io);
            }
            None => self.engine.push(mark),
        }
    }

    fn next_io(&mut self, id: OpId) -> Option<Io> {
        let op = self.ops.get_mut(id)?;
        let disk = self.disks.get_mut(op.disk)?;
        let rest = op.length - op.done;
        let mut file = &disk.io.file;
        let (kind, mut length) = match op.kind {
            Kind::Read | Kind::SyncRead { .. } => (IoKind::Read, rest),
            Kind::Write => {
                let is_durable = op.is_fua() && disk.io.mode != IoMode::Memory;
                (IoKind::Write { is_durable }, rest)
            }
            Kind::ZeroFill => {
                let is_durable = op.is_fua() && disk.io.mode != IoMode::Memory;
                (IoKind::Write { is_durable }, rest.min(ZERO_PIECE))
            }
            Kind::Trim => (IoKind::Space(Space::Punch), rest),
            Kind::Zero(space) => (IoKind::Space(space), rest),
            Kind::Settle(_) | Kind::Flush => (IoKind::Sync, 0),
            Kind::FlushLog => {
                if let Some(map) = &disk.recovered {
                    file = map.log_file();
                }
                (IoKind::Sync, 0)
            }
        };
        if let Some(short) = op.short {
            length = length.min(short as u64);
        }
        let buffer = match op.kind {
            Kind::Read | Kind::SyncRead { .. } if op.buffer.is_none() => {
                Some(self.pool.take(op.length as usize))
            }
            _ => op.buffer.take(),
        };
        let buffer_at = if op.kind == Kind::ZeroFill { 0 } else { op.done as usize };
        Some(Io {
            token: id as u64,
            file: file.clone(),
            kind,
            buffer,
            buffer_at,
            length: length as usize,
            offset: op.offset + op.done,
        })
    }

    /// Takes completions from the engine.
    pub fn complete(&mut self, completion: Completion) {
        let Some(completion) = self.complete_mark(completion) else { return };
        let id = completion.io.token as usize;
        let Some(op) = self.ops.get_mut(id) else { return };
        op.buffer = completion.io.buffer;
        if self.marks.has_followed(id) && completion.result == Err(libc::ECANCELED) {
            return self.ready.push(id);
        }
        let is_again = matches!(completion.result, Err(libc::EINTR | libc::EAGAIN));
        match op.kind {
            _ if is_again => self.submit(id),
            Kind::Read | Kind::Write | Kind::ZeroFill | Kind::SyncRead { .. } => {
                match completion.result {
                    Ok(0) => self.finish(id, Err(libc::EIO)),
                    Ok(count) => {
                        op.done += count as u64;
                        if op.done < op.length {
                            self.submit(id);
                        } else {
                            self.finish(id, Ok(()));
                        }
                    }
                    Err(code) => self.finish(id, Err(code)),
                }
            }
            Kind::Zero(_) if completion.result == Err(libc::EOPNOTSUPP) => self.zero_otherwise(id),
            _ => self.finish(id, completion.result.map(|_| ())),
        }
    }

    /// Zeroes could not be had in this way: the next one.
    fn zero_otherwise(&mut self, id: OpId) {
        let Some(op) = self.ops.get_mut(id) else { return };
        let flags = op.request.map_or(0, |request| request.header.flags);
        match op.kind {
            Kind::Zero(Space::Punch) => op.kind = Kind::Zero(Space::Zero),
            _ if flags & FLAG_FAST_ZERO != 0 => return self.finish(id, Err(libc::EOPNOTSUPP)),
            _ => {
                let length = ZERO_PIECE.min(op.length) as usize;
                op.kind = Kind::ZeroFill;
                let mut buffer = self.pool.take(length);
                buffer[..length].fill(0);
                op.buffer = Some(buffer);
            }
        }
        self.submit(id);
    }

    /// An operation is done, or its next part begins.
    fn finish(&mut self, id: OpId, result: Result<(), i32>) {
        let Some(op) = self.ops.get_mut(id) else { return };
        if op.kind == Kind::Trim && result == Err(libc::EOPNOTSUPP) {
            // Nothing was promised, so nothing was done and nothing is recorded.
            return self.conclude(id, |_, _, _| Answer::Ok);
        }
        let code = result.err();
        match (op.kind, code) {
            (Kind::Flush | Kind::FlushLog, _) => self.finish_flush(id, code),
            (Kind::SyncRead { .. }, _) => self.finish_sync_read(id, code),
            (Kind::Zero(_), Some(libc::EOPNOTSUPP)) => {
                self.conclude(id, |_, _, _| Answer::Error(Errno::NotSupported));
            }
            (_, Some(code)) => self.conclude(id, |core, request, _| core.refused(request, code)),
            (Kind::Trim | Kind::Zero(_), None) => self.settle(id),
            (Kind::Settle(noted), None) => self.conclude(id, |core, request, _| {
                core.noted(request, noted);
                Answer::Ok
            }),
            (Kind::ZeroFill, None) => self.conclude(id, |core, request, _| {
                core.noted(request, RecordOp::Zero);
                Answer::Ok
            }),
            (Kind::Read, None) => self.conclude(id, |core, request, buffer| {
                if let Some(disk) = core.disks.get_mut(request.disk) {
                    disk.stats.was_read(u64::from(request.header.length));
                }
                buffer.take().map_or(Answer::Error(Errno::Io), Answer::Data)
            }),
            (Kind::Write, None) => self.conclude(id, |core, request, buffer| {
                if let Some(bytes) = buffer.as_deref() {
                    core.wrote(request, &bytes[..request.header.length as usize]);
                }
                Answer::Ok
            }),
        }
    }

    /// A hole was punched: durable first where the guest asked for it, then noted.
    fn settle(&mut self, id: OpId) {
        let Some(op) = self.ops.get_mut(id) else { return };
        let noted = if op.kind == Kind::Trim { RecordOp::Trim } else { RecordOp::Zero };
        let is_memory = self.disks.get(op.disk).is_some_and(|disk| disk.io.mode == IoMode::Memory);
        let is_fua = op.is_fua();
        op.kind = Kind::Settle(noted);
        if is_fua && !is_memory {
            self.submit(id);
        } else {
            self.finish(id, Ok(()));
        }
    }

    /// Ends a guest's operation: `decide` records it and gives the answer, then the range is free.
    fn conclude(
        &mut self,
        id: OpId,
        decide: impl FnOnce(&mut Core, &Request, &mut Option<AlignedBuf>) -> Answer,
    ) {
        let Some(mut op) = self.ops.remove(id) else { return };
        if let Some(request) = op.request {
            let answer = decide(self, &request, &mut op.buffer);
            self.deliver(request, answer);
        }
        if let Some(buffer) = op.buffer.take() {
            self.pool.give(buffer);
        }
        self.release_op(id, &op);
    }

    fn release_op(&mut self, id: OpId, op: &Op) {
        let is_data =
            op.request.is_some_and(|r| matches!(r.header.command, Command::Read | Command::Write));
        if is_data {
            self.queued_bytes -= op.length as usize;
        }
        if op.is_change() {
            self.flight_leave(flight_slot(id));
        }
        if let Some(disk) = self.disks.get_mut(op.disk) {
            disk.flight.leave(id, &mut self.ready);
            self.needs.is_stale |= disk.recovered.is_some() && self.needs.waiting() > 0;
        }
    }

    /// Gives a late answer, unless a hold withholds it.
    pub fn deliver(&mut self, request: Request, answer: Answer) {
        let is_recovered = || self.disks.get(request.disk).is_some_and(|d| d.recovered.is_some());
        if matches!(answer, Answer::Ok)
            && request.header.command != Command::Flush
            && request.header.flags & FLAG_FUA != 0
            && request.header.is_recorded()
            && is_recovered()
        {
            // The data is on the disk; what says so must be durable with it.
            return self.enqueue_flush(request);
        }
        self.answer_later(request, answer);
    }

    /// Gives a late answer now or with the end of a hold.
    pub fn answer_later(&mut self, request: Request, answer: Answer) {
        if let Some(answer) = self.withhold_if_held(request, answer) {
            self.replies.push(Reply { request, answer });
        }
    }
}
