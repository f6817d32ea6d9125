//! A stream that begins where an earlier tap ended.

use super::{Cause, State, Stream};
use crate::ring::{Mood, Ring};

impl Stream {
    /// A stream that goes on where an orderly stop left it.
    pub fn resume(ring: Ring, mood: Mood, last_good: u64, last_time: u64) -> Stream {
        let cause = Cause::ALL.get(usize::from(mood.cause)).copied().unwrap_or(Cause::UncleanStop);
        let mut stream = Stream::new(ring, cause);
        // An interval that was cut short begins again: its reads are not worth continuing.
        stream.state = if mood.state == 1 { State::Recording } else { State::Dirty };
        stream.last_good = if mood.state == 1 { stream.ring.head() } else { last_good };
        stream.last_time = last_time;
        stream.show_mood(false);
        stream
    }

    /// A stream that goes on in the ring of a tap that was killed: what it left recorded stays.
    pub fn recover(ring: Ring, mood: Mood) -> Stream {
        let mut stream = Stream::new(ring, Cause::UncleanStop);
        stream.last_good = if mood.state == 1 { stream.ring.head() } else { mood.last_good };
        stream.last_time = stream.ring.newest_time();
        stream.show_mood(false);
        stream
    }

    /// Says in the ring that this was an orderly stop.
    pub fn leave_clean(&mut self) {
        self.show_mood(true);
    }
}
