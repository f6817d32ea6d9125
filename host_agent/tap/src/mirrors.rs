//! What the tap knows of disks that QEMU keeps and mirrors into it. No I/O; time comes from outside.

use std::collections::BTreeMap;

use crate::stream::{Cause, State, Stream};

/// One mirrored disk.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mirror {
    /// Grows whenever what was known of the mirror is no longer certain.
    pub round: u64,
    /// Writes that were refused, and that QEMU has to bring again.
    pub refused: u64,
    /// Who said that QEMU has brought everything, and until when that holds, ns.
    confirmed: Option<(u64, u64)>,
}

impl Mirror {
    /// Whether QEMU is known to have brought everything.
    pub fn is_confirmed(&self) -> bool {
        self.confirmed.is_some()
    }
}

/// All mirrored disks of a stream, by number.
#[derive(Debug, Default)]
pub struct Mirrors {
    disks: BTreeMap<u16, Mirror>,
}

impl Mirrors {
    /// A mirrored disk joins.
    pub fn add(&mut self, number: u16) {
        self.disks.insert(number, Mirror::default());
    }

    /// A disk leaves.
    pub fn remove(&mut self, number: u16) {
        self.disks.remove(&number);
    }

    /// One of them.
    pub fn get(&self, number: u16) -> Option<&Mirror> {
        self.disks.get(&number)
    }

    /// Whether the disk is one of them.
    pub fn has(&self, number: u16) -> bool {
        self.disks.contains_key(&number)
    }

    /// Whether no interval may end because QEMU has not brought everything.
    pub fn is_any_open(&self) -> bool {
        self.disks.values().any(|mirror| !mirror.is_confirmed())
    }

    /// Nothing that QEMU brought counts any more.
    pub fn forget(&mut self) {
        for mirror in self.disks.values_mut() {
            mirror.round += 1;
            mirror.confirmed = None;
        }
    }

    /// When the first confirmation ends by itself.
    pub fn deadline_ns(&self) -> Option<u64> {
        self.disks.values().filter_map(|mirror| mirror.confirmed).map(|(_, until)| until).min()
    }

    /// Disks whose confirmation is over at `now_ns`.
    pub fn expired(&self, now_ns: u64) -> Vec<u16> {
        self.confirmed(|(_, until)| until <= now_ns)
    }

    /// Disks that `client` confirmed.
    pub fn confirmed_by(&self, client: u64) -> Vec<u16> {
        self.confirmed(|(by, _)| by == client)
    }

    fn confirmed(&self, is_meant: impl Fn((u64, u64)) -> bool) -> Vec<u16> {
        let found = self.disks.iter().filter(|(_, mirror)| mirror.confirmed.is_some_and(&is_meant));
        found.map(|(number, _)| *number).collect()
    }
}

impl Stream {
    /// The mirror may miss writes from now on: until it is confirmed nothing is consistent.
    pub fn mirror_lost(&mut self, number: u16, now: u64) {
        self.lose(number, Cause::MirrorLost, now);
    }

    /// A write did not fit into the ring: QEMU has to bring it again.
    pub fn mirror_refused(&mut self, number: u16, now: u64) {
        if let Some(mirror) = self.mirrors.disks.get_mut(&number) {
            mirror.refused += 1;
        }
        self.lose(number, Cause::RingFull, now);
    }

    fn lose(&mut self, number: u16, cause: Cause, now: u64) {
        let Some(mirror) = self.mirrors.disks.get_mut(&number) else { return };
        mirror.round += 1;
        mirror.confirmed = None;
        if self.state() == State::Recording {
            self.begin(Some(cause), now);
        }
    }

    /// QEMU begins to bring the whole disk.
    pub fn mirror_begins(&mut self, number: u16, size: u64, now: u64) {
        self.mirror_lost(number, now);
        self.take_to_read(number, 0..size);
    }

    /// QEMU has brought everything, if what was looked at is still so. Returns whether it is.
    pub fn confirm_mirror(&mut self, number: u16, round: u64, client: u64, until_ns: u64) -> bool {
        if self.needs_all(number) {
            return false;
        }
        match self.mirrors.disks.get_mut(&number) {
            Some(mirror) if mirror.round == round => {
                mirror.confirmed = Some((client, until_ns));
                true
            }
            _ => false,
        }
    }

    /// Whether the whole disk has to be brought (again).
    pub fn needs_all(&self, number: u16) -> bool {
        self.members().get(&number).is_some_and(|member| !member.to_read.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Op;
    use crate::ring::Ring;
    use crate::testing::Scratch;

    const SIZE: u64 = 1 << 20;

    fn stream(scratch: &Scratch) -> Stream {
        let ring = Ring::create(&scratch.path("ring"), 8 << 20, 1, [7; 16]).unwrap();
        let mut stream = Stream::new(ring, Cause::FirstStart);
        stream.mirrors.add(0);
        stream.add_disk(0, "vda", SIZE, false, 1);
        stream
    }

    #[test]
    fn an_interval_ends_only_when_the_mirror_is_confirmed() {
        let scratch = Scratch::new();
        let mut stream = stream(&scratch);
        assert!(stream.begin(None, 2));
        assert!(stream.next_to_read(SIZE).is_none(), "nothing of it can be read here");
        assert!(!stream.end(3));
        assert!(!stream.confirm_mirror(0, 0, 1, 100), "the whole disk is still missing");
        stream.mirror_begins(0, SIZE, 4);
        assert!(!stream.confirm_mirror(0, 0, 1, 100), "it was looked at too early");
        assert!(!stream.end(5));
        assert!(stream.confirm_mirror(0, 1, 1, 100));
        assert!(stream.end(6));
        assert_eq!(stream.state(), State::Recording);
    }

    fn recording(scratch: &Scratch) -> Stream {
        let mut stream = stream(scratch);
        stream.mirror_begins(0, SIZE, 2);
        stream.begin(None, 2);
        assert!(stream.confirm_mirror(0, 1, 9, 100) && stream.end(3));
        stream
    }

    #[test]
    fn what_is_lost_opens_an_interval_at_once() {
        let scratch = Scratch::new();
        let mut stream = recording(&scratch);
        assert_eq!(stream.mirrors.deadline_ns(), Some(100));
        assert!(stream.mirrors.expired(99).is_empty() && stream.mirrors.expired(100) == [0]);
        assert!(stream.mirrors.confirmed_by(8).is_empty());
        assert_eq!(stream.mirrors.confirmed_by(9), [0]);
        stream.mirror_lost(0, 4);
        assert_eq!((stream.state(), stream.cause()), (State::Syncing, Cause::MirrorLost));
        assert!(!stream.end(5) && !stream.needs_all(0));
        assert!(stream.confirm_mirror(0, 2, 9, 200) && stream.end(6));
    }

    #[test]
    fn a_new_generation_needs_the_whole_disk() {
        let scratch = Scratch::new();
        let mut stream = recording(&scratch);
        stream.restart([8; 16], None, Cause::Forced, 4);
        assert!(stream.needs_all(0) && stream.remaining() == SIZE);
        assert!(stream.begin(None, 5));
        assert!(!stream.confirm_mirror(0, 1, 9, 100) && !stream.end(6));
    }

    #[test]
    fn a_full_ring_marks_nothing_of_a_mirrored_disk() {
        let scratch = Scratch::new();
        let mut stream = recording(&scratch);
        let data = vec![1; 1 << 20];
        while stream.state() == State::Recording {
            stream.write(0, 0, &data, 0, 4);
        }
        stream.note(Op::Zero, 0, 0, 4096, 0, 5);
        assert_eq!((stream.state(), stream.remaining()), (State::Dirty, 0));
    }
}
