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
    /// What to add to the second to get the first, and when that was found.
    offset_ns: u64,
    compared_ns: u64,
}

/// The wall clock is read so often, ns; between two looks it goes like the other.
const COMPARE_NS: u64 = 20_000_000;

impl Clock {
    /// A clock that starts now.
    pub fn new() -> Clock {
        let started = Instant::now();
        let mut clock = Clock { started, wall_ns: 0, mono_ns: 0, offset_ns: 0, compared_ns: 0 };
        clock.compare();
        clock
    }

    /// Reads the time.
    pub fn tick(&mut self) {
        self.mono_ns = self.elapsed_ns();
        if self.mono_ns - self.compared_ns > COMPARE_NS {
            return self.compare();
        }
        self.wall_ns = self.offset_ns.wrapping_add(self.mono_ns);
    }

    fn compare(&mut self) {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH);
        self.wall_ns = wall.map_or(0, |since| since.as_nanos() as u64);
        self.mono_ns = self.elapsed_ns();
        self.offset_ns = self.wall_ns.wrapping_sub(self.mono_ns);
        self.compared_ns = self.mono_ns;
    }

    /// Nanoseconds since the tap started, as of this very moment.
    pub fn elapsed_ns(&self) -> u64 {
        self.started.elapsed().as_nanos() as u64
    }
}
