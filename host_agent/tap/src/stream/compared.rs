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
        let Some(member) = self.members.get(&disk) else { return found };
        let mut at = from;
        while found.len() < count {
            let Some(range) = member.to_read.next_covered(at) else { break };
            at = range.end;
            found.push(range);
        }
        found
    }

    /// Everything of every disk is to be read.
    pub fn mark_everything(&mut self) {
        for member in self.members.values_mut() {
            member.to_read.insert(0..member.size);
        }
    }
}
