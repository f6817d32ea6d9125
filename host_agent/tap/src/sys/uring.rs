//! io_uring with owned buffers: what is submitted belongs to the ring until its completion, so
//! that no buffer and no descriptor can go away under the kernel.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use io_uring::{opcode, squeue, types, IoUring};

use crate::engine::{Completion, Io, IoKind};

const QUEUE_ENTRIES: u32 = 256;

/// A submission and completion queue of one thread.
pub struct Uring {
    ring: IoUring,
    held: Vec<Option<Io>>,
    free: Vec<usize>,
    /// What found the submission queue full, oldest first.
    waiting: VecDeque<Io>,
    unsubmitted: usize,
}

impl Uring {
    /// A new ring; an error where the kernel or its policy forbids it.
    pub fn new() -> io::Result<Uring> {
        let ring = IoUring::builder().setup_clamp().build(QUEUE_ENTRIES)?;
        let mut probe = io_uring::Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        let needed = [opcode::Read::CODE, opcode::Write::CODE, opcode::Fsync::CODE];
        if !needed.iter().all(|code| probe.is_supported(*code)) {
            return Err(io::Error::from_raw_os_error(libc::ENOSYS));
        }
        let (held, free, waiting) = (Vec::new(), Vec::new(), VecDeque::new());
        Ok(Uring { ring, held, free, waiting, unsubmitted: 0 })
    }

    /// Queues one; it begins at the next [`Uring::submit`].
    pub fn push(&mut self, io: Io) {
        // The completion queue has twice the entries: beyond the submission queue's size
        // completions could overflow, so the rest waits here.
        if self.held.len() - self.free.len() >= QUEUE_ENTRIES as usize {
            self.waiting.push_back(io);
            return;
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            self.held.push(None);
            self.held.len() - 1
        });
        let held = self.held[slot].insert(io);
        let entry = Self::entry(held).user_data(slot as u64);
        // SAFETY: descriptor and buffer are owned by `held[slot]`, which is kept until the
        // completion of this entry was reaped (or leaked, see `drop`), and the heap buffer
        // does not move when the `Io` does.
        while unsafe { self.ring.submission().push(&entry) }.is_err() {
            self.submit();
        }
        self.unsubmitted += 1;
    }

    fn entry(io: &mut Io) -> squeue::Entry {
        let fd = types::Fd(io.file.as_raw_fd());
        let length = io.length as u32;
        match io.kind {
            IoKind::Read => {
                let bytes = io.buffer_range().as_mut_ptr();
                opcode::Read::new(fd, bytes, length).offset(io.offset).build()
            }
            IoKind::Write { is_durable } => {
                let flags = if is_durable { libc::RWF_DSYNC } else { 0 };
                let bytes = io.buffer_range().as_ptr();
                opcode::Write::new(fd, bytes, length).offset(io.offset).rw_flags(flags).build()
            }
            IoKind::Sync => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
            IoKind::Space(space) => opcode::Fallocate::new(fd, io.length as u64)
                .offset(io.offset)
                .mode(space.mode())
                .build(),
        }
    }

    /// Hands all that is queued to the kernel.
    pub fn submit(&mut self) {
        while self.unsubmitted > 0 {
            match self.ring.submit() {
                Ok(_) => self.unsubmitted = 0,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // Busy: completions must be reaped first; the entries stay queued.
                Err(_) => return,
            }
        }
    }

    /// Takes what is complete.
    pub fn reap(&mut self, out: &mut Vec<Completion>) {
        for entry in self.ring.completion() {
            let slot = entry.user_data() as usize;
            let Some(io) = self.held.get_mut(slot).and_then(Option::take) else { continue };
            self.free.push(slot);
            let result = match entry.result() {
                code if code < 0 => Err(-code),
                count => Ok(count as usize),
            };
            out.push(Completion { io, result });
        }
        while self.held.len() - self.free.len() < QUEUE_ENTRIES as usize {
            let Some(io) = self.waiting.pop_front() else { break };
            self.push(io);
        }
        self.submit();
    }
}

impl AsRawFd for Uring {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        // The kernel may still write into these: better leaked than freed.
        for io in self.held.drain(..).flatten() {
            std::mem::forget(io);
        }
    }
}
