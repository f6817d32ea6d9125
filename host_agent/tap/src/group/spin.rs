//! Waiting awake. A client that sends its next requests as soon as it has the answers to its last
//! ones pays for the thread's wake-up again and again. While that goes on, the thread looks a few
//! microseconds longer before it sleeps; where nothing came it soon stops doing so.

use std::io;
use std::time::{Duration, Instant};

use crate::sys::{Epoll, Ready};

/// The longest look: an answer's way to a client that sleeps, and a request's way back.
const LOOK: Duration = Duration::from_micros(8);
/// One look takes a fraction of this: longer, and somebody else had the processor meanwhile.
const GLANCE: Duration = Duration::from_micros(3);
/// More requests than this in one turn: the client keeps many in flight.
const FEW: u32 = 2;
/// From such a client several come together if they are given so long.
const GATHER: Duration = Duration::from_micros(4);
/// Trust at most: without any it sleeps at once.
const TRUST_MAX: u32 = 8;
/// What a look in vain costs of it; one that was worth it gains one.
const VAIN: u32 = 2;
/// Without trust, one turn in so many looks.
const TRY_EVERY: u32 = 256;

/// Whether looking pays.
#[derive(Debug, Default)]
pub struct Spin {
    trust: u32,
    turns: u32,
}

impl Spin {
    /// Looks, if that is worth it after a turn that answered so many requests. Whether something
    /// is `ready`.
    pub fn look(
        &mut self,
        answered: u32,
        epoll: &mut Epoll,
        ready: &mut Vec<Ready>,
    ) -> io::Result<bool> {
        if !self.is_worth_it(answered) {
            return Ok(false);
        }
        let begin = Instant::now();
        while answered > FEW && begin.elapsed() < GATHER {
            std::hint::spin_loop();
        }
        let mut before = Instant::now();
        loop {
            epoll.wait(0, ready)?;
            let now = Instant::now();
            let is_over = now - begin > LOOK || now - before > GLANCE;
            if is_over || !ready.is_empty() {
                self.learn(!ready.is_empty());
                return Ok(!ready.is_empty());
            }
            before = now;
        }
    }

    fn is_worth_it(&mut self, answered: u32) -> bool {
        if answered == 0 {
            return false;
        }
        self.turns = self.turns.wrapping_add(1);
        self.trust > 0 || self.turns % TRY_EVERY == 0
    }

    fn learn(&mut self, has_come: bool) {
        let trust = if has_come { self.trust + 1 } else { self.trust.saturating_sub(VAIN) };
        self.trust = trust.min(TRUST_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks of `turns` turns with an answer each, when requests come `is_quick`ly or not.
    fn looks(spin: &mut Spin, turns: u32, is_quick: bool) -> u32 {
        let look = |spin: &mut Spin| {
            let is_looking = spin.is_worth_it(1);
            if is_looking {
                spin.learn(is_quick);
            }
            u32::from(is_looking)
        };
        (0..turns).map(|_| look(spin)).sum()
    }

    #[test]
    fn it_looks_as_long_as_that_pays() {
        let mut spin = Spin::default();
        assert!(looks(&mut spin, 6400, false) <= 100);
        looks(&mut spin, 2 * TRY_EVERY, true);
        assert_eq!(looks(&mut spin, 1000, true), 1000);
        assert!(looks(&mut spin, 1000, false) <= TRUST_MAX + 1000 / TRY_EVERY + 1);
        assert!(!spin.is_worth_it(0), "nobody was answered");
    }
}
