//! The control clients of a group: their sockets, what they wait for, messages to them.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use serde_json::{json, Value};

use super::core::Core;
use crate::ring::Generation;
use crate::stream::{hex, Cause, State};
use crate::sys;

/// The longest message, bytes.
pub const MESSAGE_BYTES_MAX: usize = 64 << 10;
/// Messages that wait for a client to read; beyond it the client is gone.
const UNSENT_MAX: usize = 1024;
/// Requests of one client that wait for something at once.
const WAITS_MAX: usize = 64;

/// A `wait` that is not answered yet.
#[derive(Debug)]
pub struct Wait {
    /// The client's number for it.
    pub id: Value,
    /// The client has all up to this.
    pub after: u64,
    /// It wants to hear when there are so many more.
    pub records: u64,
    /// But not later than this, ns of the tap's clock.
    pub deadline_ns: u64,
}

/// What `wait` compares: news are told at once.
type Told = (Generation, State, Cause);

/// One client of `GROUP.stream`.
pub struct Ctl {
    /// Its socket.
    pub fd: OwnedFd,
    /// Tells it from a later client in the same place.
    pub number: u64,
    /// It has the ring.
    pub is_opener: bool,
    /// It fills the disks.
    pub is_provider: bool,
    waits: Vec<Wait>,
    unsent: VecDeque<Vec<u8>>,
    told: Option<Told>,
}

impl Ctl {
    /// A new client.
    pub fn new(fd: OwnedFd, number: u64) -> Ctl {
        let (waits, unsent) = (Vec::new(), VecDeque::new());
        Ctl { fd, number, is_opener: false, is_provider: false, waits, unsent, told: None }
    }

    /// Sends a message, after those that wait. An error ends the client.
    pub fn send(&mut self, message: &Value, pass: Option<OwnedFd>) -> io::Result<()> {
        let bytes = message.to_string().into_bytes();
        if let Some(fd) = pass {
            // A descriptor goes with its answer or not at all.
            return sys::send_message(&self.fd, &bytes, Some(fd.as_fd()));
        }
        if self.unsent.len() >= UNSENT_MAX {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.unsent.push_back(bytes);
        self.flush()
    }

    /// Sends what waited.
    pub fn flush(&mut self) -> io::Result<()> {
        while let Some(bytes) = self.unsent.front() {
            match sys::send_message(&self.fd, bytes, None) {
                Ok(()) => self.unsent.pop_front(),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(e),
            };
        }
        Ok(())
    }

    /// Whether it has to be told when it can read again.
    pub fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Remembers a `wait`; returns whether there was room.
    pub fn wait(&mut self, wait: Wait) -> bool {
        let is_room = self.waits.len() < WAITS_MAX;
        if is_room {
            self.waits.push(wait);
        }
        is_room
    }

    /// When the first `wait` ends by itself, ns.
    pub fn deadline_ns(&self) -> Option<u64> {
        self.waits.iter().map(|wait| wait.deadline_ns).min()
    }

    /// Answers each `wait` that is over.
    pub fn answer_waits(&mut self, core: &mut Core) -> io::Result<()> {
        let now_ns = core.clock.mono_ns;
        let Some(stream) = &core.stream else { return Ok(()) };
        let head = stream.ring.head();
        let facts = (stream.ring.positions().generation, stream.state(), stream.cause());
        let is_news = self.told != Some(facts);
        let is_over = |wait: &Wait| {
            is_news || head >= wait.after.saturating_add(wait.records) || wait.deadline_ns <= now_ns
        };
        if !self.waits.iter().any(is_over) {
            return Ok(());
        }
        let (over, still) = std::mem::take(&mut self.waits).into_iter().partition(is_over);
        self.waits = still;
        for wait in over {
            let mut answer = state_of(core);
            answer["id"] = wait.id;
            answer["ok"] = json!(true);
            self.send(&answer, None)?;
            self.told = Some(facts);
        }
        Ok(())
    }
}

/// How the stream is now, as `state` and `wait` tell it.
pub fn state_of(core: &mut Core) -> Value {
    core.clock.tick();
    let now = core.clock.wall_ns;
    let Some(stream) = &mut core.stream else { return json!({}) };
    let time = stream.time(now);
    json!({
        "generation": hex(&stream.ring.positions().generation),
        "head": stream.ring.head(),
        "state": stream.state().name(),
        "cause": stream.cause().name(),
        "time": time,
    })
}
