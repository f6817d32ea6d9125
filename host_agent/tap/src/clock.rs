//! Time, read once for each batch of work.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// The time of the batch that is being worked on.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    started: Instant,
    /// Nanoseconds since 1970, UTC.
    pub wall_ns: u64,
    /// Nanoseconds since the tap started; never runs back.
    pub mono_ns: u64,
}

impl Clock {
    /// A clock that starts now.
    pub fn new() -> Clock {
        let mut clock = Clock { started: Instant::now(), wall_ns: 0, mono_ns: 0 };
        clock.tick();
        clock
    }

    /// Reads the time.
    pub fn tick(&mut self) {
        self.mono_ns = self.elapsed_ns();
        let wall = SystemTime::now().duration_since(UNIX_EPOCH);
        self.wall_ns = wall.map_or(0, |since| since.as_nanos() as u64);
    }

    /// Nanoseconds since the tap started, as of this very moment.
    pub fn elapsed_ns(&self) -> u64 {
        self.started.elapsed().as_nanos() as u64
    }
}
