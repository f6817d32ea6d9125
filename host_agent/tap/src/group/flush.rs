//! Flushes: one at a time for each disk, for all who asked before it began.

use super::core::{Answer, Core, Reply, Request};
use super::ops::{Kind, Op};
use crate::crash;
use crate::inflight::OpId;
use crate::nbd::request::Command;
use crate::nbd::Errno;
use crate::record::Op as RecordOp;
use crate::stream::Cause;

impl Core {
    /// Makes an operation of a flush, or lets it wait for the next.
    pub fn enqueue_flush(&mut self, request: Request) {
        let Some(disk) = self.disks.get_mut(request.disk) else { return };
        if disk.flush.has_failed {
            disk.stats.errors += 1;
            let answer = Answer::Error(Errno::Io);
            return self.replies.push(Reply { request, answer });
        }
        if disk.flush.is_running {
            return disk.flush.waiting.push(request);
        }
        disk.flush.running.push(request);
        self.start_flush(request.disk);
    }

    /// Syncs a disk for the flushes that are to be covered, or for the marks of what was filled.
    pub fn start_flush(&mut self, disk: usize) {
        let Some(target) = self.disks.get_mut(disk) else { return };
        target.flush.is_running = true;
        target.hot.flush_began(self.clock.mono_ns);
        // What is written from now on is for the next flush.
        target.flush.covered = Some(target.unflushed.take());
        if let Some(map) = &mut target.recovered {
            map.begin_flush(self.clock.mono_ns);
        }
        self.serial += 1;
        let op = Op {
            kind: Kind::Flush,
            request: None,
            disk,
            offset: 0,
            length: 0,
            done: 0,
            buffer: None,
            short: None,
            serial: self.serial,
        };
        let id = self.ops.insert(op);
        self.ready.push(id);
    }

    /// A flush, or the one of the presence log behind it, is over.
    pub fn finish_flush(&mut self, id: OpId, code: Option<i32>) {
        let Some(op) = self.ops.get_mut(id) else { return };
        let (slot, is_log) = (op.disk, op.kind == Kind::FlushLog);
        let Some(disk) = self.disks.get_mut(slot) else { return };
        let mut code = code;
        if let (None, false, Some(map)) = (code, is_log, &mut disk.recovered) {
            match map.write_marks() {
                // The data is durable, and now its marks become so.
                Ok(()) => {
                    op.kind = Kind::FlushLog;
                    return self.submit(id);
                }
                Err(failed) => code = Some(failed),
            }
        }
        if let Some(map) = &mut disk.recovered {
            map.end_flush(code.is_none());
        }
        self.ops.remove(id);
        disk.flush.is_running = false;
        if code.is_none() {
            disk.hot.flush_ended();
        }
        crash::point("flush_after_sync_before_record");
        let requests = std::mem::take(&mut disk.flush.running);
        let covered = disk.flush.covered.take();
        match code {
            None => {
                for request in requests {
                    if request.header.command == Command::Flush {
                        self.noted(&request, RecordOp::Flush);
                    }
                    self.answer_later(request, Answer::Ok);
                }
            }
            Some(code) => {
                self.flush_failed(slot, covered.as_ref());
                for request in requests {
                    let answer = Answer::Error(Errno::from_system(code));
                    self.replies.push(Reply { request, answer });
                }
            }
        }
        self.next_flush(slot);
    }

    fn next_flush(&mut self, slot: usize) {
        let Some(disk) = self.disks.get_mut(slot) else { return };
        let waiting = std::mem::take(&mut disk.flush.waiting);
        if disk.flush.has_failed {
            let refuse = |request| Reply { request, answer: Answer::Error(Errno::Io) };
            return self.replies.extend(waiting.into_iter().map(refuse));
        }
        disk.flush.running = waiting;
        if !disk.flush.running.is_empty() {
            self.start_flush(slot);
        }
    }

    /// The kernel may have dropped what it could not write: what was written since the last good
    /// flush must be read again, and no later flush of this disk can be trusted.
    fn flush_failed(&mut self, slot: usize, covered: Option<&crate::coarse::CoarseMap>) {
        let Some(disk) = self.disks.get_mut(slot) else { return };
        crash::point("flush_after_failure_before_mark");
        disk.flush.has_failed = true;
        disk.stats.errors += 1;
        let mut lost = crate::rangeset::RangeSet::new();
        for map in [covered, Some(&disk.unflushed)].into_iter().flatten() {
            map.add_to(&mut lost, disk.size);
        }
        let Some(stream) = &mut self.stream else { return };
        for range in lost.iter() {
            stream.mark_to_read(disk.number, range);
        }
        stream.disk_differs(disk.number, 0..0, Cause::DiskError);
    }
}
