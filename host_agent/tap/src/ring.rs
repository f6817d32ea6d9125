//! The ring of a stream: a file in memory with a header page, the index and the payload. The tap
//! alone writes it; the agent reads it through a descriptor of its own (section 2 of the formats).

mod left;
mod table;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::crash;
use crate::record::{encode_entry, Place, Record, ENTRY_BYTES};
use crate::sys::files::{self, Space};
use crate::sys::{crc, AlignedBuf, Map};
use table::Table;
pub use table::INLINE;

const MAGIC: [u8; 8] = *b"HFRING\x00\x01";
const VERSION: u32 = 2;
const HEADER_BYTES: u64 = 4096;
/// The in-flight table lies between the header page and the index.
const TABLE_AT: u64 = HEADER_BYTES;
const INDEX_AT: u64 = TABLE_AT + table::BYTES;
/// Places in the header, bytes; the anchor has two, so that one is whole whenever the tap ends.
const CLEAN_AT: usize = 200;
const STATE_AT: usize = 201;
const CAUSE_AT: usize = 202;
const WHICH_ANCHOR_AT: usize = 203;
const ANCHORS_AT: [usize; 2] = [160, 208];
const LAST_GOOD_AT: usize = 248;
const STORED_AT: usize = 256;
const MEMBERS_AT: usize = 264;
const UNTRUSTED_AT: usize = 296;
/// Disks of a stream at most: bits in the header.
const MEMBERS: u16 = 256;
/// Index entries kept for BEGIN, END, markers and descriptions.
const RESERVED_ENTRIES: u64 = 64;
/// Payload bytes kept for the same.
const RESERVED_BYTES: u64 = 256 << 10;
/// Payloads begin at multiples of this, bytes: what a processor stores at once.
const PAYLOAD_ALIGN: u64 = 64;
/// Anchors are multiples of this, records.
pub const ANCHOR_STEP: u64 = 4096;
/// The smallest ring, bytes: 8,192 index entries and a few of the largest pieces.
pub const RING_BYTES_MIN: u64 = 4 << 20;
/// The largest ring, bytes.
pub const RING_BYTES_MAX: u64 = 64 << 30;

/// Why a record is not in the ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RingFull;

/// A random name of 128 bits.
pub type Generation = [u8; 16];

/// Where the ring stands; all of it goes to the agent at `open`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Positions {
    /// Which numbering.
    pub generation: Generation,
    /// The generation before, or zeroes.
    pub predecessor: Generation,
    /// Newest recorded sequence.
    pub head: u64,
    /// End of the newest payload, absolute.
    pub payload_head: u64,
    /// Last sequence given back.
    pub freed: u64,
    /// End of its payload, absolute.
    pub payload_freed: u64,
    /// Where the running hash can go on from.
    pub anchor: u64,
    /// The hash there.
    pub anchor_hash: [u8; 32],
    /// Newest sequence that the journal holds for good; at most `freed`, where nothing else keeps
    /// what was given back.
    pub stored: u64,
}

impl Positions {
    fn start(generation: Generation, predecessor: Generation) -> Positions {
        let (head, payload_head, freed, payload_freed, anchor, stored) = (0, 0, 0, 0, 0, 0);
        let anchor_hash = [0; 32];
        Positions {
            generation,
            predecessor,
            head,
            payload_head,
            freed,
            payload_freed,
            anchor,
            anchor_hash,
            stored,
        }
    }
}

/// Sizes of the areas, bytes and entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Index entries, a power of two.
    pub index_capacity: u64,
    /// Payload bytes.
    pub payload_capacity: u64,
}

impl Geometry {
    /// How `ring_bytes` are divided: about an eighth is index, so that neither runs out long
    /// before the other between 512-byte and 4 KiB writes.
    pub fn of(ring_bytes: u64) -> Geometry {
        let entries = (ring_bytes / 8 / ENTRY_BYTES as u64).max(8192);
        let index_capacity =
            if entries.is_power_of_two() { entries } else { entries.next_power_of_two() / 2 };
        let index_bytes = index_capacity * ENTRY_BYTES as u64;
        let rest = ring_bytes.saturating_sub(index_bytes + INDEX_AT);
        Geometry { index_capacity, payload_capacity: rest - rest % 4096 }
    }

    fn payload_at(&self) -> u64 {
        INDEX_AT + self.index_capacity * ENTRY_BYTES as u64
    }

    fn file_bytes(&self) -> u64 {
        self.payload_at() + self.payload_capacity
    }
}

/// What the header says beside positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mood {
    /// An orderly stop was its last act.
    pub is_clean: bool,
    /// 1 recording, 2 dirty, 3 syncing.
    pub state: u8,
    /// Index into the causes.
    pub cause: u8,
    /// The newest consistent position, where it is not the head.
    pub last_good: u64,
}

/// An open ring.
pub struct Ring {
    file: File,
    map: Map,
    geometry: Geometry,
    at: Positions,
    is_locked: bool,
    drained: u64,
    draft: Option<Draft>,
    table: Table,
    anchors: usize,
}

/// A payload that arrives in its place before its record exists.
struct Draft {
    owner: u64,
    start: u64,
    length: usize,
    got: usize,
    crc: u32,
    /// Another record needed the place: what arrived is here.
    moved: Option<AlignedBuf>,
}

impl Ring {
    /// Makes a new file at `path` (an old one is replaced) for a new generation.
    pub fn create(
        path: &Path,
        ring_bytes: u64,
        made_at: u64,
        name: Generation,
    ) -> io::Result<Ring> {
        let geometry = Geometry::of(ring_bytes);
        let _ = std::fs::remove_file(path);
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create_new(true).mode(0o600).open(path)?;
        files::lock_file(&file)?;
        let reserve = files::fallocate(&file, Space::Allocate, 0, geometry.file_bytes());
        if let Err(e) = reserve {
            let _ = std::fs::remove_file(path);
            return Err(e);
        }
        let at = Positions::start(name, [0; 16]);
        let mut ring = Ring::with(file, geometry, at)?;
        ring.write_header(made_at);
        Ok(ring)
    }

    fn with(file: File, geometry: Geometry, at: Positions) -> io::Result<Ring> {
        let map = Map::new(&file, geometry.file_bytes() as usize)?;
        let is_locked = map.lock();
        let table = Table::default();
        Ok(Ring { file, map, geometry, at, is_locked, drained: 0, draft: None, table, anchors: 0 })
    }

    /// Writes all of the header. Whoever finds it half written finds no ring.
    fn write_header(&mut self, made_at: u64) {
        self.map.store(0, 0);
        self.map.barrier();
        self.store_positions();
        self.map.write(MEMBERS_AT, &[0; MEMBERS as usize / 4]);
        let mut header = [0u8; 128];
        header[8..12].copy_from_slice(&VERSION.to_le_bytes());
        header[16..32].copy_from_slice(&self.at.generation);
        header[32..40].copy_from_slice(&self.geometry.index_capacity.to_le_bytes());
        header[40..48].copy_from_slice(&self.geometry.payload_capacity.to_le_bytes());
        header[48..56].copy_from_slice(&INDEX_AT.to_le_bytes());
        header[56..64].copy_from_slice(&self.geometry.payload_at().to_le_bytes());
        header[64..80].copy_from_slice(&self.at.predecessor);
        header[80..88].copy_from_slice(&made_at.to_le_bytes());
        header[88..96].copy_from_slice(&TABLE_AT.to_le_bytes());
        header[96..100].copy_from_slice(&(table::SLOTS as u32).to_le_bytes());
        let check = crc32c::crc32c(&header[16..]);
        header[12..16].copy_from_slice(&check.to_le_bytes());
        self.map.write(8, &header[8..]);
        self.map.barrier();
        self.map.store(0, u64::from_le_bytes(MAGIC));
    }

    fn store_positions(&mut self) {
        self.map.store(128, self.at.head);
        self.map.store(136, self.at.payload_head);
        self.map.store(144, self.at.freed);
        self.map.store(152, self.at.payload_freed);
        self.map.store(STORED_AT, self.at.stored);
        self.anchors ^= 1;
        self.map.store(ANCHORS_AT[self.anchors], self.at.anchor);
        self.map.write(ANCHORS_AT[self.anchors] + 8, &self.at.anchor_hash);
        self.map.store_byte(WHICH_ANCHOR_AT, self.anchors as u8);
    }

    /// Begins an empty numbering; what the ring held is dropped.
    pub fn restart(&mut self, name: Generation, predecessor: Option<Generation>, made_at: u64) {
        self.move_draft();
        self.set_mood(Mood { is_clean: false, state: 2, cause: 0, last_good: 0 });
        // What never reached the journal is nobody's predecessor.
        let is_known = self.at.stored > 0 || self.at.predecessor == Generation::default();
        let newest = if is_known { self.at.generation } else { self.at.predecessor };
        self.at = Positions::start(name, predecessor.unwrap_or(newest));
        self.write_header(made_at);
    }

    /// Says in the header how the stream is.
    pub fn set_mood(&mut self, mood: Mood) {
        self.map.store(LAST_GOOD_AT, mood.last_good);
        self.map.store_byte(STATE_AT, mood.state);
        self.map.store_byte(CAUSE_AT, mood.cause);
        self.map.store_byte(CLEAN_AT, u8::from(mood.is_clean));
    }

    /// Where it stands.
    pub fn positions(&self) -> &Positions {
        &self.at
    }

    /// Newest recorded sequence.
    pub fn head(&self) -> u64 {
        self.at.head
    }

    /// Sizes of the areas.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Whether the kernel agreed to keep it in memory.
    pub fn is_locked(&self) -> bool {
        self.is_locked
    }

    /// Payload bytes in use, unused ends included.
    pub fn payload_used(&self) -> u64 {
        self.at.payload_head - self.at.payload_freed
    }

    /// Index entries in use.
    pub fn index_used(&self) -> u64 {
        self.at.head - self.at.anchor
    }

    /// Records given back since it was opened.
    pub fn drained(&self) -> u64 {
        self.drained
    }

    /// A descriptor for reading only.
    pub fn reader(&self) -> io::Result<File> {
        use std::os::fd::AsRawFd;
        File::open(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }

    /// Where a payload of `length` bytes would begin.
    fn payload_start(&self, length: u64) -> u64 {
        let capacity = self.geometry.payload_capacity;
        let start = self.at.payload_head.next_multiple_of(PAYLOAD_ALIGN);
        let inside = start % capacity;
        if inside + length > capacity {
            return start + (capacity - inside);
        }
        start
    }

    /// Whether `records` with `bytes` of payload together would fit, beside what is kept.
    pub fn has_room(&self, records: u64, bytes: u64) -> bool {
        let longest = bytes.min(crate::record::PIECE_BYTES as u64);
        let start = self.payload_start(longest.max(1));
        // Several pieces can lose room at the end of the area once more.
        let waste = if records > 1 { longest } else { 0 };
        self.index_used() + records <= self.geometry.index_capacity - RESERVED_ENTRIES
            && start + bytes + waste - self.at.payload_freed
                <= self.geometry.payload_capacity - RESERVED_BYTES
    }

    /// Appends a record of a guest's or a sync's data.
    pub fn append(&mut self, record: &Record, payload: &[u8], time: u64) -> Result<u64, RingFull> {
        self.append_within(record, payload, time, (RESERVED_ENTRIES, RESERVED_BYTES))
    }

    /// Appends one of those that room is kept for.
    pub fn append_kept(
        &mut self,
        record: &Record,
        body: &[u8],
        time: u64,
    ) -> Result<u64, RingFull> {
        self.append_within(record, body, time, (0, 0))
    }

    fn append_within(
        &mut self,
        record: &Record,
        payload: &[u8],
        time: u64,
        kept: (u64, u64),
    ) -> Result<u64, RingFull> {
        let length = payload.len() as u64;
        let start = if length == 0 { self.at.payload_head } else { self.payload_start(length) };
        let end = start + length;
        if self.index_used() + 1 > self.geometry.index_capacity - kept.0
            || end - self.at.payload_freed > self.geometry.payload_capacity - kept.1
        {
            return Err(RingFull);
        }
        let mut crc = 0;
        if length > 0 {
            self.move_draft();
            let place = self.payload_place(start);
            crc = crc::copy(self.map.bytes_mut(place, payload.len()), payload);
            crash::point("ring_after_payload_before_entry");
        }
        Ok(self.enter(record, (start, length, crc), time))
    }

    fn payload_place(&self, position: u64) -> usize {
        (self.geometry.payload_at() + position % self.geometry.payload_capacity) as usize
    }

    /// Writes the index entry of a payload that is in its place, and moves the head.
    fn enter(&mut self, record: &Record, payload: (u64, u64, u32), time: u64) -> u64 {
        let (start, length, crc) = payload;
        let seq = self.at.head + 1;
        let lap = (seq / self.geometry.index_capacity) as u32;
        let place = Place { seq, time, payload: start, lap };
        let entry = encode_entry(record, &place, length as u32, crc);
        self.map.write_numbers(self.slot(seq), &entry);
        crash::point("ring_after_entry_before_head");
        self.at.head = seq;
        self.at.payload_head = start + length;
        self.map.store(136, self.at.payload_head);
        crash::point("ring_after_payload_head_before_head");
        self.map.store(128, seq);
        seq
    }

    /// Keeps the next payload's place for `length` bytes that `owner` receives into it. `false`:
    /// there is no room, or somebody else has it.
    pub fn begin_draft(&mut self, owner: u64, length: usize) -> bool {
        if self.draft.is_some() || !self.has_room(1, length as u64) {
            return false;
        }
        let start = self.payload_start(length as u64);
        self.draft = Some(Draft { owner, start, length, got: 0, crc: 0, moved: None });
        true
    }

    /// Where the rest of the owner's draft goes.
    pub fn draft_rest(&mut self, owner: u64) -> Option<&mut [u8]> {
        let draft = self.draft.as_mut().filter(|draft| draft.owner == owner)?;
        let (got, length) = (draft.got, draft.length);
        if let Some(buffer) = &mut draft.moved {
            return Some(&mut buffer[got..length]);
        }
        let at =
            (self.geometry.payload_at() + draft.start % self.geometry.payload_capacity) as usize;
        Some(self.map.bytes_mut(at + got, length - got))
    }

    /// So many bytes more of the owner's draft arrived; they are still in the processor's cache.
    pub fn draft_got(&mut self, owner: u64, count: usize) {
        let Some(draft) = self.draft.as_mut().filter(|draft| draft.owner == owner) else { return };
        if draft.moved.is_none() {
            let at = self.geometry.payload_at() + draft.start % self.geometry.payload_capacity;
            let fresh = self.map.bytes(at as usize + draft.got, count);
            draft.crc = crc::append(draft.crc, fresh);
        }
        draft.got += count;
    }

    /// The whole draft, if it is still in its place.
    pub fn draft_bytes(&self, owner: u64) -> Option<&[u8]> {
        let draft = self.draft.as_ref().filter(|draft| draft.owner == owner)?;
        let is_whole = draft.moved.is_none() && draft.got == draft.length;
        is_whole.then(|| self.map.bytes(self.payload_place(draft.start), draft.length))
    }

    /// Makes a record of the whole draft.
    pub fn append_draft(&mut self, record: &Record, time: u64) -> Result<u64, RingFull> {
        let draft = self.draft.take().ok_or(RingFull)?;
        let is_room = self.index_used() < self.geometry.index_capacity - RESERVED_ENTRIES;
        if !is_room || draft.moved.is_some() {
            return Err(RingFull);
        }
        Ok(self.enter(record, (draft.start, draft.length as u64, draft.crc), time))
    }

    /// Takes the owner's draft out of the ring, into a buffer.
    pub fn take_draft(&mut self, owner: u64) -> Option<AlignedBuf> {
        self.draft.as_ref().filter(|draft| draft.owner == owner)?;
        self.move_draft();
        self.draft.take()?.moved
    }

    /// Another record takes the place that was kept: what arrived goes elsewhere.
    fn move_draft(&mut self) {
        let Some(draft) = self.draft.as_mut().filter(|draft| draft.moved.is_none()) else { return };
        let at = self.geometry.payload_at() + draft.start % self.geometry.payload_capacity;
        let mut buffer = AlignedBuf::new(draft.length);
        buffer[..draft.got].copy_from_slice(self.map.bytes(at as usize, draft.got));
        draft.moved = Some(buffer);
    }

    fn slot(&self, seq: u64) -> usize {
        let slot = seq & (self.geometry.index_capacity - 1);
        (INDEX_AT + slot * ENTRY_BYTES as u64) as usize
    }

    /// The end of the payload of `seq`, if its entry is whole.
    fn payload_end(&self, seq: u64) -> Option<u64> {
        let mut entry = [0u8; ENTRY_BYTES];
        self.map.read(self.slot(seq), &mut entry);
        let number = |at: usize, length: usize| {
            let mut bytes = [0u8; 8];
            bytes[..length].copy_from_slice(&entry[at..at + length]);
            u64::from_le_bytes(bytes)
        };
        let is_whole = number(0, 8) == seq && number(60, 4) as u32 == crc32c::crc32c(&entry[..60]);
        is_whole.then(|| number(48, 8) + number(40, 4))
    }

    /// Gives back all up to `seq`; the hash at `anchor` is kept for an agent that restarts.
    /// `stored`: up to there the journal holds it for good.
    pub fn free(
        &mut self,
        seq: u64,
        stored: u64,
        anchor: u64,
        hash: [u8; 32],
    ) -> Result<(), String> {
        let at = &self.at;
        if seq.max(stored) > at.head {
            let newest = seq.max(stored);
            return Err(format!("{newest} is not recorded yet, the newest is {}", at.head));
        }
        if anchor % ANCHOR_STEP != 0 || anchor > seq.max(at.freed) {
            return Err(format!("{anchor} is no anchor for {seq}"));
        }
        if seq > at.freed {
            let end = self.payload_end(seq).ok_or("the ring's index is damaged")?;
            self.drained += seq - self.at.freed;
            self.at.payload_freed = end;
            self.at.freed = seq;
        }
        crash::point("free_after_check_before_stored");
        if anchor > self.at.anchor {
            self.at.anchor = anchor;
            self.at.anchor_hash = hash;
        }
        self.at.stored = self.at.stored.max(stored);
        self.store_positions();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::record::Op;
    use crate::testing::{Random, Scratch};

    fn small(scratch: &Scratch) -> Ring {
        Ring::create(&scratch.path("g.ring"), RING_BYTES_MIN, 1, [9; 16]).unwrap()
    }

    fn read_payload(ring: &Ring, seq: u64) -> Vec<u8> {
        let mut entry = [0u8; ENTRY_BYTES];
        ring.map.read(ring.slot(seq), &mut entry);
        assert_eq!(entry[0..8], seq.to_le_bytes());
        let number = |at: usize| u64::from_le_bytes(entry[at..at + 8].try_into().unwrap());
        let start = number(48) % ring.geometry.payload_capacity;
        let mut bytes = vec![0; number(40) as u32 as usize];
        ring.map.read((ring.geometry.payload_at() + start) as usize, &mut bytes);
        let crc = u32::from_le_bytes(entry[36..40].try_into().unwrap());
        assert_eq!(crc, crc32c::crc32c(&bytes));
        bytes
    }

    #[test]
    fn what_is_not_freed_stays_readable_over_many_laps() {
        let scratch = Scratch::new();
        let mut ring = small(&scratch);
        let mut random = Random::new(3);
        let mut held = std::collections::VecDeque::new();
        for round in 0..40_000u64 {
            let length = if round % 97 == 0 { 300_000 } else { random.below(900) as usize };
            let bytes = random.bytes(length.min(64)).repeat(length.div_ceil(64).max(1));
            let bytes = &bytes[..length.min(bytes.len())];
            let record = Record::range(Op::Write, 1, round * 512, bytes.len() as u32);
            match ring.append(&record, bytes, round) {
                Ok(seq) => held.push_back((seq, bytes.to_vec())),
                Err(RingFull) => {
                    for (seq, bytes) in &held {
                        assert_eq!(&read_payload(&ring, *seq), bytes);
                    }
                    let half = held.len() / 2;
                    let seq = held.drain(..=half).next_back().unwrap().0;
                    ring.free(seq, 0, seq - seq % ANCHOR_STEP, [1; 32]).unwrap();
                }
            }
        }
        assert!(ring.head() > 4 * ring.geometry.index_capacity);
    }

    #[test]
    fn room_is_kept_for_markers_when_guests_filled_it() {
        let scratch = Scratch::new();
        let mut ring = small(&scratch);
        let record = Record::range(Op::Write, 0, 0, 65536);
        while ring.append(&record, &[7; 65536], 0).is_ok() {}
        for _ in 0..4 {
            ring.append_kept(&Record::about(Op::End), &[b'x'; 48 << 10], 0).unwrap();
        }
        let flush = Record::range(Op::Flush, 0, 0, 0);
        while ring.append(&flush, &[], 0).is_ok() {}
        assert!(ring.append_kept(&Record::about(Op::End), b"{}", 0).is_ok());
    }

    #[test]
    fn a_draft_becomes_a_record_or_makes_way() {
        let scratch = Scratch::new();
        let mut ring = small(&scratch);
        let mut random = Random::new(21);
        for round in 0..400u64 {
            let length = 1000 + random.below(200_000) as usize;
            let bytes = random.bytes(length);
            assert!(ring.begin_draft(7, bytes.len()));
            assert!(!ring.begin_draft(8, 10) && ring.draft_rest(8).is_none());
            let (mut at, is_disturbed) = (0, random.below(3) == 0);
            while at < bytes.len() {
                let count = (1 + random.below(70_000) as usize).min(bytes.len() - at);
                ring.draft_rest(7).unwrap()[..count].copy_from_slice(&bytes[at..at + count]);
                ring.draft_got(7, count);
                at += count;
                if is_disturbed {
                    let record = Record::range(Op::Write, 0, 0, 512);
                    let seq = ring.append(&record, &[3; 512], round).unwrap();
                    assert_eq!(read_payload(&ring, seq), [3; 512]);
                }
            }
            let record = Record::range(Op::Write, 0, 0, bytes.len() as u32);
            let seq = if is_disturbed {
                assert!(ring.draft_bytes(7).is_none());
                let moved = ring.take_draft(7).unwrap();
                assert_eq!(moved[..bytes.len()], bytes);
                ring.append(&record, &moved[..bytes.len()], round).unwrap()
            } else {
                assert_eq!(ring.draft_bytes(7).unwrap(), bytes);
                ring.append_draft(&record, round).unwrap()
            };
            assert_eq!(read_payload(&ring, seq), bytes);
            let head = ring.head();
            ring.free(head, head, 0, [0; 32]).unwrap();
        }
    }

    #[test]
    fn a_ring_is_opened_as_it_was_left() {
        let scratch = Scratch::new();
        let mut ring = small(&scratch);
        for at in 0..5000u64 {
            ring.append(&Record::range(Op::Write, 0, at * 512, 512), &[1; 512], at).unwrap();
        }
        ring.free(4500, 4400, 4096, [5; 32]).unwrap();
        ring.set_mood(Mood { is_clean: true, state: 1, cause: 0, last_good: 3 });
        let left = ring.positions().clone();
        drop(ring);
        let (again, mood) = Ring::open(&scratch.path("g.ring")).unwrap();
        assert_eq!(again.positions(), &left);
        assert_eq!(mood, Mood { is_clean: true, state: 1, cause: 0, last_good: 3 });
    }

    #[test]
    fn a_damaged_ring_is_refused() {
        let scratch = Scratch::new();
        let path = scratch.path("g.ring");
        let record = Record::range(Op::Write, 0, 0, 512);
        small(&scratch).append(&record, &[1; 512], 0).unwrap();
        for at in [0u64, 9, 17, 33, 41, 57, 129, INDEX_AT + 64, INDEX_AT + 64 + 50] {
            let whole = std::fs::read(&path).unwrap();
            let file = OpenOptions::new().write(true).open(&path).unwrap();
            file.write_all_at(&[whole[at as usize] ^ 0xff], at).unwrap();
            assert!(Ring::open(&path).is_err(), "byte {at}");
            std::fs::write(&path, whole).unwrap();
        }
        assert!(Ring::open(&path).is_ok());
    }

    #[test]
    fn freeing_checks_what_it_is_told() {
        let scratch = Scratch::new();
        let mut ring = small(&scratch);
        ring.append(&Record::range(Op::Write, 0, 0, 512), &[1; 512], 0).unwrap();
        assert!(ring.free(2, 2, 0, [0; 32]).is_err());
        assert!(ring.free(1, 1, 1, [0; 32]).is_err());
        assert!(ring.free(1, 1, 4096, [0; 32]).is_err());
        ring.free(1, 1, 0, [0; 32]).unwrap();
        ring.free(1, 1, 0, [0; 32]).unwrap();
        assert_eq!(ring.payload_used(), 0);
    }
}
