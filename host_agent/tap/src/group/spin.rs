//! Waiting awake. A client that sends its next requests as soon as it has the answers to its last
//! ones pays for the thread's wake-up again and again. While that goes on, the thread looks a
//! little longer before it sleeps; where nothing came it soon stops doing so.

use std::io;
use std::time::{Duration, Instant};

use crate::sys::{Epoll, Ready};

/// The longest look, as long as QEMU's own threads would: a client that waits for each answer has
/// to be woken first, and its processor as well.
const LOOK_MAX: Duration = Duration::from_micros(50);
/// Requests that come so much later than usual are still looked for.
const SPARE: Duration = Duration::from_micros(4);
/// More requests than this in one turn: the client keeps many in flight.
const FEW: u32 = 2;
/// From such a client several come together if they are given so long.
const GATHER: Duration = Duration::from_micros(4);
/// Where it reads they are given more: a look between disturbs it, and several answers at once cost
/// it less. Still longer, and a client with few in flight would wait.
const GATHER_READS: Duration = Duration::from_micros(8);
/// One glance takes a fraction of this: longer, and somebody else had the processor meanwhile.
const GLANCE: Duration = Duration::from_micros(3);
/// Longer than an interrupt takes: somebody else needs the processor.
const DISPLACED: Duration = Duration::from_micros(200);
/// Trust at most: without any it sleeps at once.
const TRUST_MAX: u32 = 8;
/// What a look in vain costs of it; one that was worth it gains one.
const VAIN: u32 = 2;
/// Without trust, one turn in so many looks; in more where others need the processor.
const TRY_EVERY: u32 = 256;
const TRY_EVERY_MAX: u32 = 64 * TRY_EVERY;

/// Whether looking pays.
#[derive(Debug, Default)]
pub struct Spin {
    few: Habit,
    many: Habit,
}

/// Requests that were answered in one turn.
#[derive(Clone, Copy, Default, Debug)]
pub struct Answered {
    /// All of them.
    pub all: u32,
    /// Reads among them.
    pub reads: u32,
}

impl Answered {
    /// How long the next ones are given to come together.
    fn gather(self) -> Duration {
        match self {
            Answered { all: ..=FEW, .. } => Duration::ZERO,
            Answered { all, reads } if reads > all / 2 => GATHER_READS,
            _ => GATHER,
        }
    }
}

/// What a look came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Look {
    /// Requests came, after so long.
    Worth(Duration),
    Vain,
    Displaced,
}

impl Spin {
    /// Looks, if that is worth it after a turn that answered so many requests. Whether something
    /// is `ready`.
    pub fn look(
        &mut self,
        answered: Answered,
        epoll: &mut Epoll,
        ready: &mut Vec<Ready>,
    ) -> io::Result<bool> {
        if answered.all == 0 {
            return Ok(false);
        }
        let is_few = answered.all <= FEW;
        let habit = if is_few { &mut self.few } else { &mut self.many };
        if !habit.is_worth_it() {
            return Ok(false);
        }
        let begin = Instant::now() + answered.gather();
        while Instant::now() < begin {
            std::hint::spin_loop();
        }
        let longest = habit.longest();
        let mut before = begin;
        loop {
            epoll.wait(0, ready)?;
            let now = Instant::now();
            let (took, glance) = (now - begin, now - before);
            if took > longest || glance > GLANCE || !ready.is_empty() {
                habit.learn(match ready.is_empty() {
                    _ if glance > DISPLACED => Look::Displaced,
                    true => Look::Vain,
                    false => Look::Worth(took),
                });
                return Ok(!ready.is_empty());
            }
            before = now;
        }
    }
}

/// What is known of looks of one kind.
#[derive(Debug)]
struct Habit {
    trust: u32,
    /// How long the looks took that were worth it.
    usual: Duration,
    turns: u32,
    try_every: u32,
    /// Looks since the last one in which somebody else had the processor.
    calm: u32,
}

impl Default for Habit {
    fn default() -> Habit {
        Habit { trust: 0, usual: Duration::ZERO, turns: 0, try_every: TRY_EVERY, calm: 0 }
    }
}

impl Habit {
    fn is_worth_it(&mut self) -> bool {
        self.turns += 1;
        let is_worth_it = self.trust > 0 || self.turns >= self.try_every;
        if is_worth_it {
            self.turns = 0;
        }
        is_worth_it
    }

    fn longest(&self) -> Duration {
        if self.trust == 0 {
            return LOOK_MAX;
        }
        (2 * self.usual + SPARE).min(LOOK_MAX)
    }

    fn learn(&mut self, look: Look) {
        self.calm += 1;
        let trust = match look {
            Look::Worth(took) => {
                self.usual = took.max(self.usual - self.usual / 8);
                self.trust + 1
            }
            Look::Vain => self.trust.saturating_sub(VAIN),
            // A thread that only looks is in the way of those who work, and then has to wait its
            // turn when a request comes; one that slept has not.
            Look::Displaced => {
                let factor = if self.calm > self.try_every { 1 } else { 4 };
                self.try_every = (self.try_every * factor).min(TRY_EVERY_MAX);
                self.calm = 0;
                0
            }
        };
        if self.calm > 4 * self.try_every {
            (self.try_every, self.calm) = ((self.try_every / 4).max(TRY_EVERY), 0);
        }
        self.trust = trust.min(TRUST_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks of `turns` turns with an answer each, all of which come to `look`.
    fn looks(habit: &mut Habit, turns: u32, look: Look) -> u32 {
        let once = |habit: &mut Habit| {
            let is_looking = habit.is_worth_it();
            if is_looking {
                habit.learn(look);
            }
            u32::from(is_looking)
        };
        (0..turns).map(|_| once(habit)).sum()
    }

    #[test]
    fn it_looks_as_long_as_that_pays() {
        let mut habit = Habit::default();
        assert!(looks(&mut habit, 6400, Look::Vain) <= 100);
        looks(&mut habit, 2 * TRY_EVERY, Look::Worth(SPARE));
        assert_eq!(looks(&mut habit, 1000, Look::Worth(SPARE)), 1000);
        assert!(looks(&mut habit, 1000, Look::Vain) <= TRUST_MAX + 1000 / TRY_EVERY + 1);
    }

    #[test]
    fn who_is_displaced_looks_less_and_less_often_and_in_the_end_again() {
        let mut habit = Habit::default();
        looks(&mut habit, TRY_EVERY, Look::Worth(SPARE));
        let seldom = looks(&mut habit, 1_000_000, Look::Displaced);
        assert!(seldom < 100, "{seldom}");
        looks(&mut habit, 1_000_000, Look::Worth(SPARE));
        assert_eq!(habit.try_every, TRY_EVERY);
        assert_eq!(looks(&mut habit, 1000, Look::Worth(SPARE)), 1000);
    }
}
