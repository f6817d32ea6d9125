//! What a tap leaves for its successor, and what that finds: of an orderly one everything, of a
//! killed one all stores up to some store.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::{
    table, Geometry, Mood, Positions, Ring, ANCHORS_AT, CAUSE_AT, CLEAN_AT, HEADER_BYTES, INDEX_AT,
    LAST_GOOD_AT, MAGIC, MEMBERS, MEMBERS_AT, STATE_AT, STORED_AT, UNTRUSTED_AT, VERSION,
    WHICH_ANCHOR_AT,
};
use crate::record::{ENTRY_BYTES, FLAG_MORE, FLAG_TAIL};
use crate::sys::files;

/// An index entry as it lies in the ring.
struct Entry([u8; ENTRY_BYTES]);

impl Entry {
    fn number(&self, at: usize, length: usize) -> u64 {
        let mut bytes = [0u8; 8];
        bytes[..length].copy_from_slice(&self.0[at..at + length]);
        u64::from_le_bytes(bytes)
    }

    fn time(&self) -> u64 {
        self.number(8, 8)
    }

    fn flags(&self) -> u8 {
        self.0[47]
    }

    fn payload_start(&self) -> u64 {
        self.number(48, 8)
    }

    fn payload_end(&self) -> u64 {
        self.payload_start() + self.number(40, 4)
    }
}

struct Header([u8; HEADER_BYTES as usize]);

impl Header {
    fn number(&self, at: usize) -> u64 {
        let mut bytes = [0u8; 8];
        bytes.copy_from_slice(&self.0[at..at + 8]);
        u64::from_le_bytes(bytes)
    }

    /// The sizes that it names, or what is wrong with it.
    fn check(&self, file: &File) -> io::Result<Geometry> {
        let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        if self.0[..8] != MAGIC || self.number(8) as u32 != VERSION {
            return Err(bad("not a ring of this version"));
        }
        if (self.number(8) >> 32) as u32 != crc32c::crc32c(&self.0[16..128]) {
            return Err(bad("the header's checksum is wrong"));
        }
        let geometry =
            Geometry { index_capacity: self.number(32), payload_capacity: self.number(40) };
        let is_sane = geometry.index_capacity.is_power_of_two()
            && geometry.index_capacity < 1 << 32
            && geometry.payload_capacity < 1 << 40
            && geometry.file_bytes() == file.metadata()?.len()
            && self.number(48) == INDEX_AT
            && self.number(56) == geometry.payload_at();
        is_sane.then_some(geometry).ok_or_else(|| bad("the header's sizes are wrong"))
    }

    fn positions(&self) -> Positions {
        let mut at = Positions::start([0; 16], [0; 16]);
        at.generation.copy_from_slice(&self.0[16..32]);
        at.predecessor.copy_from_slice(&self.0[64..80]);
        at.head = self.number(128);
        at.payload_head = self.number(136);
        at.freed = self.number(144);
        at.payload_freed = self.number(152);
        at.stored = self.number(STORED_AT);
        let anchor = ANCHORS_AT[usize::from(self.0[WHICH_ANCHOR_AT] & 1)];
        at.anchor = self.number(anchor);
        at.anchor_hash.copy_from_slice(&self.0[anchor + 8..anchor + 40]);
        at
    }

    fn mood(&self) -> Mood {
        Mood {
            is_clean: self.0[CLEAN_AT] == 1,
            state: self.0[STATE_AT],
            cause: self.0[CAUSE_AT],
            last_good: self.number(LAST_GOOD_AT),
        }
    }
}

impl Ring {
    /// Opens what a tap before us left, if it is a whole ring.
    pub fn open(path: &Path) -> io::Result<(Ring, Mood)> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        files::lock_file(&file)?;
        let mut header = Header([0; HEADER_BYTES as usize]);
        file.read_exact_at(&mut header.0, 0)?;
        let geometry = header.check(&file)?;
        let (positions, mood) = (header.positions(), header.mood());
        let mut ring = Ring::with(file, geometry, positions)?;
        ring.anchors = usize::from(header.0[WHICH_ANCHOR_AT] & 1);
        let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        if !mood.is_clean {
            ring.finish_stores().map_err(bad)?;
        }
        ring.check_positions().map_err(bad)?;
        Ok((ring, mood))
    }

    fn entry(&self, seq: u64) -> Option<Entry> {
        let mut entry = Entry([0; ENTRY_BYTES]);
        self.map.read(self.slot(seq), &mut entry.0);
        let is_whole = entry.number(0, 8) == seq
            && entry.number(56, 4) == (seq / self.geometry.index_capacity) & 0xffff_ffff
            && entry.number(60, 4) as u32 == crc32c::crc32c(&entry.0[..60]);
        is_whole.then_some(entry)
    }

    /// The positions follow from the entries, between whichever stores the tap was killed.
    fn finish_stores(&mut self) -> Result<(), &'static str> {
        let broken = "the newest entry is broken";
        if self.at.head == 0 {
            // The first record's payload came, its entry did not.
            self.at.payload_head = 0;
        }
        while self.at.head > 0 {
            let newest = self.entry(self.at.head).ok_or(broken)?;
            self.at.payload_head = newest.payload_end();
            if newest.flags() & FLAG_MORE == 0 {
                break;
            }
            // The rest of a request is missing: nobody was told of its first pieces.
            if self.at.head <= self.at.freed {
                return Err(broken);
            }
            self.drop_request(newest)?;
        }
        if let Some(freed) = self.entry(self.at.freed).filter(|_| self.at.freed > self.at.anchor) {
            self.at.payload_freed = freed.payload_end();
        }
        self.at.payload_head = self.at.payload_head.max(self.at.payload_freed);
        self.at.stored = self.at.stored.min(self.at.head);
        Ok(())
    }

    fn drop_request(&mut self, newest: Entry) -> Result<(), &'static str> {
        let mut piece = newest;
        let missing = "a request's first piece is missing";
        loop {
            self.at.head -= 1;
            self.at.payload_head = piece.payload_start();
            if piece.flags() & FLAG_TAIL == 0 {
                return Ok(());
            }
            if self.at.head <= self.at.freed {
                return Err(missing);
            }
            piece = self.entry(self.at.head).ok_or(missing)?;
        }
    }

    fn check_positions(&self) -> Result<(), &'static str> {
        let at = &self.at;
        if at.anchor > at.freed || at.freed > at.head || at.payload_freed > at.payload_head {
            return Err("the positions contradict each other");
        }
        let used = (at.head - at.anchor, at.payload_head - at.payload_freed);
        if used.0 > self.geometry.index_capacity || used.1 > self.geometry.payload_capacity {
            return Err("the positions exceed the areas");
        }
        if at.head > 0 && self.payload_end(at.head) != Some(at.payload_head) {
            return Err("the newest entry is broken");
        }
        if (at.freed + 1..=at.head).any(|seq| self.entry(seq).is_none()) {
            return Err("an entry is broken");
        }
        Ok(())
    }

    /// Time of the newest record that is in the ring, ns; 0 without one.
    pub fn newest_time(&self) -> u64 {
        self.entry(self.at.head).map_or(0, |entry| entry.time())
    }

    /// What was being changed when the tap before us ended; `None`: too much to tell.
    pub fn left_in_flight(&self) -> Option<Vec<(u16, Range<u64>)>> {
        table::read(&self.map)
    }

    /// What was in flight is marked: the table is for new changes.
    pub fn forget_in_flight(&mut self) {
        table::clear(&mut self.map);
    }

    /// Says that records up to now, or a BEGIN that is in, name this disk; or no longer do.
    pub fn set_member(&mut self, disk: u16, is_member: bool) {
        self.set_bit(MEMBERS_AT, disk, is_member);
    }

    /// Says that no successor may believe the hot-extent log of a disk, or that it may again.
    pub fn set_untrusted(&mut self, disk: u16, is_untrusted: bool) {
        self.set_bit(UNTRUSTED_AT, disk, is_untrusted);
    }

    fn set_bit(&mut self, field: usize, disk: u16, is_set: bool) {
        if disk >= MEMBERS {
            return;
        }
        let (at, bit) = (field + usize::from(disk / 8), 1 << (disk % 8));
        let before = self.map.bytes(at, 1)[0];
        self.map.store_byte(at, if is_set { before | bit } else { before & !bit });
    }

    fn bit(&self, field: usize, disk: u16) -> bool {
        disk < MEMBERS && self.map.bytes(field + usize::from(disk / 8), 1)[0] >> (disk % 8) & 1 == 1
    }

    /// A change of a disk is about to be submitted to it. `slot`: [`INLINE`], or any number that
    /// no other change in flight has.
    pub fn flight_enter(&mut self, slot: usize, disk: u16, range: &Range<u64>) {
        self.table.enter(&mut self.map, slot, disk, range);
    }

    /// That change is recorded, or marked as to be read.
    pub fn flight_leave(&mut self, slot: usize) {
        self.table.leave(&mut self.map, slot);
    }

    /// Whether the records that are in name this disk.
    pub fn is_member(&self, disk: u16) -> bool {
        self.bit(MEMBERS_AT, disk)
    }

    /// Whether nobody may believe the hot-extent log of a disk.
    pub fn is_untrusted(&self, disk: u16) -> bool {
        self.bit(UNTRUSTED_AT, disk)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{INLINE, RING_BYTES_MIN};
    use super::*;
    use crate::record::{Op, Record};
    use crate::testing::Scratch;

    fn small(scratch: &Scratch) -> Ring {
        Ring::create(&scratch.path("g.ring"), RING_BYTES_MIN, 1, [9; 16]).unwrap()
    }

    fn write(ring: &mut Ring, flags: u8) -> u64 {
        let record = Record { flags, ..Record::range(Op::Write, 0, 0, 512) };
        ring.append(&record, &[1; 512], 77).unwrap()
    }

    #[test]
    fn what_is_in_flight_is_found_until_it_leaves() {
        let scratch = Scratch::new();
        let mut ring = small(&scratch);
        ring.flight_enter(INLINE, 3, &(4096..8192));
        ring.flight_enter(7, 255, &((64 << 40) - 512..64 << 40));
        ring.flight_enter(8, 1, &(0..512));
        ring.flight_leave(8);
        ring.set_member(255, true);
        drop(ring);
        let (mut ring, mood) = Ring::open(&scratch.path("g.ring")).unwrap();
        assert!(!mood.is_clean);
        let found = ring.left_in_flight().unwrap();
        assert_eq!(found, [(3, 4096..8192), (255, (64 << 40) - 512..64 << 40)]);
        assert!(ring.is_member(255) && !ring.is_member(254) && !ring.is_member(u16::MAX));
        ring.forget_in_flight();
        assert_eq!(ring.left_in_flight().unwrap(), []);
        ring.flight_enter(table::SLOTS, 0, &(0..512));
        ring.flight_enter(table::SLOTS, 0, &(0..512));
        assert_eq!(ring.left_in_flight(), None);
        ring.flight_leave(table::SLOTS);
        assert_eq!(ring.left_in_flight().unwrap(), []);
    }

    #[test]
    fn a_ring_is_whole_between_any_two_stores() {
        let scratch = Scratch::new();
        let mut ring = small(&scratch);
        for _ in 0..10 {
            write(&mut ring, 0);
        }
        ring.free(4, 3, 0, [0; 32]).unwrap();
        let left = ring.positions().clone();
        // The payload's head is stored before the head, what is given back in some order.
        ring.map.store(136, left.payload_head + 512);
        ring.map.store(152, left.payload_freed - 512);
        drop(ring);
        let (ring, _) = Ring::open(&scratch.path("g.ring")).unwrap();
        assert_eq!(ring.positions(), &left);
        assert_eq!(ring.newest_time(), 77);
    }

    #[test]
    fn the_first_pieces_of_a_request_go() {
        let scratch = Scratch::new();
        let mut ring = small(&scratch);
        write(&mut ring, 0);
        let left = ring.positions().clone();
        write(&mut ring, FLAG_MORE);
        write(&mut ring, FLAG_MORE | FLAG_TAIL);
        drop(ring);
        let (mut ring, _) = Ring::open(&scratch.path("g.ring")).unwrap();
        assert_eq!(ring.positions(), &left);
        assert_eq!(write(&mut ring, 0), 2);
    }

    #[test]
    fn a_numbering_that_had_only_begun_is_no_ring() {
        let scratch = Scratch::new();
        let mut ring = small(&scratch);
        write(&mut ring, 0);
        ring.map.store(0, 0);
        drop(ring);
        assert!(Ring::open(&scratch.path("g.ring")).is_err());
    }
}
