//! The engine where io_uring is forbidden: threads that make blocking calls.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::{Completion, Io, IoKind, Linked};
use crate::sys::{files, EventFd};

/// Enough to keep a device busy, few enough to cost nothing while idle.
const THREADS: usize = 8;

struct Queue {
    todo: VecDeque<Linked>,
    done: Vec<Completion>,
    is_ending: bool,
}

struct Shared {
    queue: Mutex<Queue>,
    work: Condvar,
    done: EventFd,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        // A queue is whole between any two calls, whoever panicked.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A small pool, started at the first request.
pub struct Threads {
    shared: Arc<Shared>,
    staged: Vec<Linked>,
    in_flight: usize,
    workers: Vec<JoinHandle<()>>,
}

impl Threads {
    /// A pool without threads yet.
    pub fn new() -> io::Result<Threads> {
        let queue = Queue { todo: VecDeque::new(), done: Vec::new(), is_ending: false };
        let (queue, work, done) = (Mutex::new(queue), Condvar::new(), EventFd::new()?);
        let shared = Arc::new(Shared { queue, work, done });
        Ok(Threads { shared, staged: Vec::new(), in_flight: 0, workers: Vec::new() })
    }

    /// Queues one request, or two of which one thread does the second behind the first.
    pub fn push(&mut self, linked: Linked) {
        self.in_flight += 1 + usize::from(linked.1.is_some());
        self.staged.push(linked);
    }

    /// Starts all that is queued.
    pub fn submit(&mut self) {
        if self.staged.is_empty() {
            return;
        }
        self.start_workers();
        let count = self.staged.len();
        self.shared.lock().todo.extend(self.staged.drain(..));
        for _ in 0..count.min(THREADS) {
            self.shared.work.notify_one();
        }
    }

    fn start_workers(&mut self) {
        while self.workers.len() < THREADS.min(self.in_flight) {
            let shared = Arc::clone(&self.shared);
            let name = format!("disk-io-{}", self.workers.len());
            match std::thread::Builder::new().name(name).spawn(move || work(&shared)) {
                Ok(worker) => self.workers.push(worker),
                Err(_) if self.workers.is_empty() => return self.refuse_staged(),
                Err(_) => return,
            }
        }
    }

    /// No thread can be had: what was asked fails instead of waiting for ever.
    fn refuse_staged(&mut self) {
        let mut queue = self.shared.lock();
        for (io, then) in self.staged.drain(..) {
            queue.done.push(Completion { io, result: Err(libc::EAGAIN) });
            queue.done.extend(then.map(|io| Completion { io, result: Err(libc::ECANCELED) }));
        }
        drop(queue);
        self.shared.done.signal();
    }

    /// Takes what is complete.
    pub fn reap(&mut self, out: &mut Vec<Completion>) {
        self.shared.done.drain();
        let mut queue = self.shared.lock();
        self.in_flight -= queue.done.len();
        out.append(&mut queue.done);
    }
}

impl AsRawFd for Threads {
    fn as_raw_fd(&self) -> RawFd {
        self.shared.done.as_raw_fd()
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.shared.lock().is_ending = true;
        self.shared.work.notify_all();
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

fn work(shared: &Shared) {
    loop {
        let mut queue = shared.lock();
        let (io, then) = loop {
            if let Some(linked) = queue.todo.pop_front() {
                break linked;
            }
            if queue.is_ending {
                return;
            }
            queue = shared.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
        };
        drop(queue);
        let is_whole = finish(shared, io, perform);
        if let Some(then) = then {
            let cancel = |_: &mut Io| Err(io::Error::from_raw_os_error(libc::ECANCELED));
            finish(shared, then, if is_whole { perform } else { cancel });
        }
    }
}

/// Does one request and says what became of it. Whether all of it was done.
fn finish(shared: &Shared, mut io: Io, perform: fn(&mut Io) -> io::Result<usize>) -> bool {
    let result = perform(&mut io).map_err(|e| e.raw_os_error().unwrap_or(libc::EIO));
    let is_whole = result == Ok(io.length);
    let mut queue = shared.lock();
    let is_first = queue.done.is_empty();
    queue.done.push(Completion { io, result });
    drop(queue);
    if is_first {
        shared.done.signal();
    }
    is_whole
}

/// Does one request with blocking calls; bytes done.
pub fn perform(io: &mut Io) -> io::Result<usize> {
    let (kind, offset, length) = (io.kind, io.offset, io.length);
    let file = Arc::clone(&io.file);
    loop {
        let result = match kind {
            IoKind::Read => file.read_at(io.buffer_range(), offset),
            IoKind::Write { is_durable: false } => file.write_at(io.buffer_range(), offset),
            IoKind::Write { is_durable: true } => {
                files::write_durable(&file, io.buffer_range(), offset)
            }
            IoKind::Sync => file.sync_data().map(|()| 0),
            IoKind::Space(space) => {
                files::fallocate(&file, space, offset, length as u64).map(|()| 0)
            }
        };
        match result {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}
