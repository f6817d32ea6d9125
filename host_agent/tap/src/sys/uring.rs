//! io_uring with owned buffers: what is submitted belongs to the ring until its completion, so
//! that no buffer and no descriptor can go away under the kernel.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use io_uring::{opcode, squeue, types, IoUring};

use crate::engine::{Completion, Io, IoKind, Linked};

const QUEUE_ENTRIES: u32 = 256;

/// A submission and completion queue of one thread.
pub struct Uring {
    ring: IoUring,
    held: Vec<Option<Io>>,
    free: Vec<usize>,
    /// What found the submission queue full, oldest first.
    waiting: VecDeque<Linked>,
    unsubmitted: usize,
    /// Of what is not submitted some are linked.
    has_linked: bool,
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
        Ok(Uring { ring, held, free, waiting, unsubmitted: 0, has_linked: false })
    }

    fn in_flight(&self) -> usize {
        self.held.len() - self.free.len()
    }

    /// The completion queue has twice the entries: beyond the submission queue's size completions
    /// could overflow.
    fn has_room(&self, linked: &Linked) -> bool {
        self.in_flight() + 1 + usize::from(linked.1.is_some()) <= QUEUE_ENTRIES as usize
    }

    /// Queues one, or two that are linked; they begin at the next [`Uring::submit`].
    pub fn push(&mut self, linked: Linked) {
        if !self.has_room(&linked) {
            return self.waiting.push_back(linked);
        }
        let (io, then) = linked;
        let first = self.hold(io);
        match then {
            None => self.push_entries(&[first]),
            Some(then) => {
                let entries = [first.flags(squeue::Flags::IO_LINK), self.hold(then)];
                self.push_entries(&entries);
                self.has_linked = true;
            }
        }
    }

    /// Keeps what the kernel is going to use, and describes it.
    fn hold(&mut self, io: Io) -> squeue::Entry {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.held.push(None);
            self.held.len() - 1
        });
        let held = self.held[slot].insert(io);
        Self::entry(held).user_data(slot as u64)
    }

    fn push_entries(&mut self, entries: &[squeue::Entry]) {
        // SAFETY: descriptors and buffers are owned by `held`, where each is kept until the
        // completion of its entry was reaped (or leaked, see `drop`), and a heap buffer does not
        // move when its `Io` does.
        while unsafe { self.ring.submission().push_multiple(entries) }.is_err() {
            self.submit();
        }
        self.unsubmitted += entries.len();
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
                Ok(_) => {
                    self.unsubmitted = self.ring.submission().len();
                    if self.unsubmitted > 0 && self.has_linked {
                        self.wait_for_all();
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // Busy: completions must be reaped first; the entries stay queued.
                Err(_) => return,
            }
        }
        self.has_linked = false;
    }

    /// The kernel took only a part of the queue, as it may without memory. Two that are linked may
    /// be cut, and then the second would not wait: so all that it took must be complete first.
    fn wait_for_all(&self) {
        const GET_EVENTS: u32 = 1;
        let count = (self.in_flight() - self.unsubmitted) as u32;
        let nothing = None::<&libc::sigset_t>;
        // SAFETY: nothing is submitted and no memory is passed.
        while let Err(e) = unsafe { self.ring.submitter().enter(0, count, GET_EVENTS, nothing) } {
            if e.kind() != io::ErrorKind::Interrupted {
                return;
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
        while self.waiting.front().is_some_and(|linked| self.has_room(linked)) {
            let Some(linked) = self.waiting.pop_front() else { break };
            self.push(linked);
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
