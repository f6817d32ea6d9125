//! Disk I/O that the loop does not wait for: io_uring, or threads where it is forbidden.

mod threads;

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use crate::sys::files::Space;
use crate::sys::uring::Uring;
use crate::sys::AlignedBuf;
use threads::Threads;

/// What is asked of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IoKind {
    /// Fill the buffer's range.
    Read,
    /// Write the buffer's range; `is_durable`: as if synced.
    Write {
        /// Complete only when the bytes are durable.
        is_durable: bool,
    },
    /// `fdatasync`.
    Sync,
    /// `fallocate` of `length` bytes at `offset`.
    Space(Space),
}

/// One request to a file, with all that it needs to live.
#[derive(Debug)]
pub struct Io {
    /// The caller's number for it.
    pub token: u64,
    /// Kept open until the completion.
    pub file: Arc<File>,
    /// What to do.
    pub kind: IoKind,
    /// Data, for reads and writes.
    pub buffer: Option<AlignedBuf>,
    /// Where in the buffer the data begins.
    pub buffer_at: usize,
    /// Bytes.
    pub length: usize,
    /// Place in the file.
    pub offset: u64,
}

impl Io {
    /// The part of the buffer that is read or written; empty without one.
    pub fn buffer_range(&mut self) -> &mut [u8] {
        match &mut self.buffer {
            Some(buffer) => &mut buffer[self.buffer_at..self.buffer_at + self.length],
            None => &mut [],
        }
    }
}

/// An answer: bytes done, or an errno.
#[derive(Debug)]
pub struct Completion {
    /// The request, buffer included.
    pub io: Io,
    /// Bytes done, perhaps fewer than asked; or the error's number.
    pub result: Result<usize, i32>,
}

/// Which kind to use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Choice {
    /// io_uring where the kernel allows it.
    Auto,
    /// io_uring or nothing.
    Uring,
    /// Threads.
    Threads,
}

/// The engine of one group.
pub enum Engine {
    /// The kernel's queue.
    Uring(Box<Uring>),
    /// A few threads that block.
    Threads(Threads),
}

impl Engine {
    /// Opens the chosen engine.
    pub fn new(choice: Choice) -> io::Result<Engine> {
        match choice {
            Choice::Threads => Ok(Engine::Threads(Threads::new()?)),
            Choice::Uring => Ok(Engine::Uring(Box::new(Uring::new()?))),
            Choice::Auto => match Uring::new() {
                Ok(ring) => Ok(Engine::Uring(Box::new(ring))),
                Err(_) => Ok(Engine::Threads(Threads::new()?)),
            },
        }
    }

    /// Its name in `status`.
    pub fn name(&self) -> &'static str {
        match self {
            Engine::Uring(_) => "io_uring",
            Engine::Threads(_) => "threads",
        }
    }

    /// Queues one request.
    pub fn push(&mut self, io: Io) {
        match self {
            Engine::Uring(ring) => ring.push(io),
            Engine::Threads(threads) => threads.push(io),
        }
    }

    /// Starts all that is queued.
    pub fn submit(&mut self) {
        match self {
            Engine::Uring(ring) => ring.submit(),
            Engine::Threads(threads) => threads.submit(),
        }
    }

    /// Takes what is complete.
    pub fn reap(&mut self, out: &mut Vec<Completion>) {
        match self {
            Engine::Uring(ring) => ring.reap(out),
            Engine::Threads(threads) => threads.reap(out),
        }
    }
}

impl AsRawFd for Engine {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Engine::Uring(ring) => ring.as_raw_fd(),
            Engine::Threads(threads) => threads.as_raw_fd(),
        }
    }
}
