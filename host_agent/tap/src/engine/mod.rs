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

/// A request, and the one that is linked to it.
pub type Linked = (Io, Option<Io>);

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
            Engine::Uring(ring) => ring.push((io, None)),
            Engine::Threads(threads) => threads.push((io, None)),
        }
    }

    /// Queues two: the second begins when the first did all that it was asked for, and nobody is
    /// woken in between. If the first did not, the second ends with `ECANCELED`, not begun. The
    /// first is complete first.
    pub fn push_linked(&mut self, io: Io, then: Io) {
        match self {
            Engine::Uring(ring) => ring.push((io, Some(then))),
            Engine::Threads(threads) => threads.push((io, Some(then))),
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::testing::Scratch;

    fn io(token: u64, file: &Arc<File>, kind: IoKind, offset: u64) -> Io {
        let mut buffer = AlignedBuf::new(4096);
        buffer.fill(token as u8);
        let (file, buffer) = (file.clone(), Some(buffer));
        Io { token, file, kind, buffer, buffer_at: 0, length: 4096, offset }
    }

    /// The results of a request and of the one linked to it, in the order of their completions.
    fn run(engine: &mut Engine, first: Io, then: Io) -> Vec<(u64, Result<usize, i32>)> {
        engine.push_linked(first, then);
        engine.submit();
        let mut done = Vec::new();
        while done.len() < 2 {
            engine.reap(&mut done);
        }
        done.into_iter().map(|completion| (completion.io.token, completion.result)).collect()
    }

    #[test]
    fn what_is_linked_begins_only_behind_all_of_the_first() {
        let scratch = Scratch::new();
        let path = scratch.path("d");
        std::fs::write(&path, vec![0; 3 * 4096 + 100]).unwrap();
        let open =
            |is_writing| std::fs::OpenOptions::new().read(true).write(is_writing).open(&path);
        let (file, sealed) = (Arc::new(open(true).unwrap()), Arc::new(open(false).unwrap()));
        let (write, durable) =
            (IoKind::Write { is_durable: false }, IoKind::Write { is_durable: true });
        for choice in [Choice::Auto, Choice::Threads] {
            let mut engine = Engine::new(choice).unwrap();
            let both = run(&mut engine, io(1, &file, durable, 0), io(2, &file, write, 4096));
            assert_eq!(both, [(1, Ok(4096)), (2, Ok(4096))]);
            let refused = run(&mut engine, io(3, &sealed, durable, 0), io(4, &file, write, 8192));
            assert_eq!(refused, [(3, Err(libc::EBADF)), (4, Err(libc::ECANCELED))]);
            let short = io(5, &file, IoKind::Read, 3 * 4096);
            let cut = run(&mut engine, short, io(6, &file, write, 8192));
            assert_eq!(cut, [(5, Ok(100)), (6, Err(libc::ECANCELED))]);
            let mut found = [9; 3 * 4096];
            file.read_exact_at(&mut found, 0).unwrap();
            assert!(found.chunks(4096).map(|page| page[0]).eq([1, 2, 0]));
            file.write_all_at(&[0; 3 * 4096], 0).unwrap();
        }
    }

    #[test]
    fn more_than_fit_at_once_are_all_done() {
        let scratch = Scratch::new();
        let path = scratch.path("d");
        std::fs::write(&path, [0; 4096]).unwrap();
        let options = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let file = Arc::new(options);
        for choice in [Choice::Auto, Choice::Threads] {
            let mut engine = Engine::new(choice).unwrap();
            let write = IoKind::Write { is_durable: false };
            for token in 0..500 {
                engine.push_linked(
                    io(2 * token, &file, write, 0),
                    io(2 * token + 1, &file, write, 0),
                );
            }
            engine.submit();
            let mut done = Vec::new();
            while done.len() < 1000 {
                engine.reap(&mut done);
            }
            assert!(done.iter().all(|completion| completion.result == Ok(4096)));
        }
    }
}
