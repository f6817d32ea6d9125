//! What is to be read: all of it, what is told to who compares, and what a comparison spares.

use std::ops::Range;

use super::{Stream, DIRTY_GRAIN};

impl Stream {
    /// The sequence of the newest BEGIN; 0 before the first of a generation.
    pub fn begin_seq(&self) -> u64 {
        self.begin_seq
    }

    /// Somebody found that the journal has `range` as the disk does: it need not be read, but for
    /// what was marked since the interval began. Returns the bytes whose mark went.
    pub fn drop_to_read(&mut self, disk: u16, range: &Range<u64>) -> u64 {
        if self.mirrors.has(disk) {
            return 0;
        }
        let Some(member) = self.members.get_mut(&disk) else { return 0 };
        let before = member.to_read.bytes();
        for part in member.again.gaps(range) {
            member.to_read.remove(part);
        }
        if member.to_read.is_empty() {
            member.grain = DIRTY_GRAIN;
        }
        let dropped = before - member.to_read.bytes();
        self.read += dropped;
        dropped
    }

    /// What is to be read of a disk from a byte on, at most `count` ranges.
    pub fn to_read_from(&self, disk: u16, from: u64, count: usize) -> Vec<Range<u64>> {
        let mut found: Vec<Range<u64>> = Vec::new();
        if self.mirrors.has(disk) {
            // Not here: QEMU brings it.
            return found;
        }
        let Some(member) = self.members.get(&disk) else { return found };
        let mut at = from;
        while found.len() < count {
            let Some(range) = member.to_read.next_covered(at) else { break };
            at = range.end;
            found.push(range);
        }
        found
    }

    /// Everything is to be read, of one disk or of all.
    pub fn mark_everything(&mut self, only: Option<u16>) {
        let wanted = |number: &u16| only.is_none_or(|only| only == *number);
        for (_, member) in self.members.iter_mut().filter(|(number, _)| wanted(number)) {
            member.to_read.insert(0..member.size);
        }
        self.mirrors.forget();
    }

    /// The next range to be read, at most `length_max` bytes.
    pub fn next_to_read(&self, length_max: u64) -> Option<(u16, Range<u64>)> {
        let mut own = self.members.iter().filter(|(number, _)| !self.mirrors.has(**number));
        own.find_map(|(number, member)| {
            let range = member.to_read.next_covered(0)?;
            Some((*number, range.start..range.end.min(range.start + length_max)))
        })
    }

    /// Takes a mark away because a read of the range begins.
    pub fn take_to_read(&mut self, disk: u16, range: Range<u64>) {
        let Some(member) = self.members.get_mut(&disk) else { return };
        member.to_read.remove(range);
        if member.to_read.is_empty() {
            member.grain = DIRTY_GRAIN;
        }
    }

    /// What is to be read of a disk comes from an earlier run.
    pub fn set_to_read(&mut self, number: u16, ranges: impl Iterator<Item = Range<u64>>) {
        let Some(member) = self.members.get_mut(&number) else { return };
        for range in ranges {
            member.to_read.insert(range.start..range.end.min(member.size));
        }
    }
}
