//! The hot-extent log: a durable file for each disk that names the extents which are being written
//! (section 8 of the formats). The ring is memory; this is what survives the host.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use crate::recovered::sync_folder_of;

/// Extents are so many bytes, as a shift.
pub const EXTENT_SHIFT: u32 = 22;
/// Extents of one disk that can be marked at once.
pub const MARKS_MAX: usize = 8192;
/// Bytes of a page, which is written as a whole.
pub const PAGE: usize = 4096;
const MAGIC: [u8; 8] = *b"HFHOT\x00\x00\x01";
const PAGE_MAGIC: [u8; 4] = *b"HFHP";
const VERSION: u32 = 1;
const ENTRIES_AT: usize = 64;
/// Marks on one page.
pub const PER_PAGE: usize = (PAGE - ENTRIES_AT) / 4;
/// Pages of marks.
pub const PAGES: usize = MARKS_MAX.div_ceil(PER_PAGE);
const FILE_BYTES: usize = (2 + 2 * PAGES) * PAGE;

/// What is to be read after an unclean start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// The marked extents.
    Marked,
    /// All of the disk.
    Whole,
}

/// A page as it is to be written.
pub type Page = (u64, [u8; PAGE]);

/// An open log.
#[derive(Debug)]
pub struct Log {
    /// The file, for whoever writes pages.
    pub file: Arc<File>,
    id: [u8; 16],
    counter: u64,
    counters: [u64; PAGES],
}

/// A log as it was left.
#[derive(Debug)]
pub struct Found {
    /// To go on with.
    pub log: Log,
    /// What it says.
    pub scope: Scope,
    /// Bytes of the disk.
    pub size: u64,
    /// The extent in each slot; 0: none, else one more than its number.
    pub slots: Vec<u32>,
}

fn number(bytes: &[u8], at: usize) -> u64 {
    let mut found = [0u8; 8];
    found.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(found)
}

fn short(bytes: &[u8], at: usize) -> u32 {
    let mut found = [0u8; 4];
    found.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(found)
}

/// Of a page with its checksum taken as zero.
fn checksum(page: &[u8], at: usize) -> u32 {
    let crc = crc32c::crc32c(&page[..at]);
    crc32c::crc32c_append(crc32c::crc32c_append(crc, &[0; 4]), &page[at + 4..])
}

fn seal(page: &mut [u8; PAGE], at: usize) {
    let check = checksum(page, at);
    page[at..at + 4].copy_from_slice(&check.to_le_bytes());
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

impl Log {
    /// Makes a log that says that the whole disk is to be read; an old one is replaced.
    pub fn create(path: &Path, size: u64) -> io::Result<Log> {
        let fresh = path.with_extension("hot-new");
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(&fresh)?;
        // Written rather than reserved: a later page never needs room or a change of metadata.
        file.write_all(&[0; FILE_BYTES])?;
        let mut id = [0; 16];
        File::open("/dev/urandom")?.read_exact(&mut id)?;
        let mut log = Log { file: Arc::new(file), id, counter: 0, counters: [0; PAGES] };
        for page in 0..PAGES {
            let (at, bytes) = log.page(page, &[]);
            log.file.write_all_at(&bytes, at)?;
        }
        let (at, bytes) = log.superblock(Scope::Whole, size);
        log.file.write_all_at(&bytes, at)?;
        log.file.sync_all()?;
        std::fs::rename(&fresh, path)?;
        sync_folder_of(path)?;
        Ok(log)
    }

    /// Opens what an earlier tap left; an error unless all of it can be believed.
    pub fn open(path: &Path) -> io::Result<Found> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let mut all = vec![0; FILE_BYTES];
        file.read_exact_at(&mut all, 0)?;
        let page = |at: usize| &all[at * PAGE..(at + 1) * PAGE];
        let newest = [page(0), page(1)]
            .into_iter()
            .filter(|bytes| is_superblock(bytes))
            .max_by_key(|bytes| number(bytes, 32))
            .ok_or_else(|| bad("no superblock is whole"))?;
        let scope = match newest[48] {
            1 => Scope::Marked,
            2 => Scope::Whole,
            _ => return Err(bad("the scope is not known")),
        };
        let mut id = [0; 16];
        id.copy_from_slice(&newest[16..32]);
        let (counter, size) = (number(newest, 32), number(newest, 40));
        let (mut counters, mut slots) = ([0; PAGES], Vec::with_capacity(MARKS_MAX));
        for (which, counter) in counters.iter_mut().enumerate() {
            let copies = [page(2 + 2 * which), page(3 + 2 * which)];
            let found = copies
                .into_iter()
                .filter(|bytes| is_page(bytes, which as u32, &id))
                .max_by_key(|bytes| number(bytes, 8))
                .ok_or_else(|| bad("a page of marks is broken"))?;
            *counter = number(found, 8);
            slots.extend((0..PER_PAGE).map(|entry| short(found, ENTRIES_AT + 4 * entry)));
        }
        slots.truncate(MARKS_MAX);
        let log = Log { file: Arc::new(file), id, counter, counters };
        Ok(Found { log, scope, size, slots })
    }

    /// The next superblock, in the place of the older of the two.
    pub fn superblock(&mut self, scope: Scope, size: u64) -> Page {
        self.counter += 1;
        let mut page = [0; PAGE];
        page[..8].copy_from_slice(&MAGIC);
        page[8..12].copy_from_slice(&VERSION.to_le_bytes());
        page[16..32].copy_from_slice(&self.id);
        page[32..40].copy_from_slice(&self.counter.to_le_bytes());
        page[40..48].copy_from_slice(&size.to_le_bytes());
        page[48] = if scope == Scope::Marked { 1 } else { 2 };
        seal(&mut page, 12);
        (self.counter % 2 * PAGE as u64, page)
    }

    /// A page of marks, in the place of the older of its two copies. `slots`: all of the disk's.
    pub fn page(&mut self, which: usize, slots: &[u32]) -> Page {
        self.counters[which] += 1;
        let mut page = [0; PAGE];
        page[..4].copy_from_slice(&PAGE_MAGIC);
        page[4..8].copy_from_slice(&(which as u32).to_le_bytes());
        page[8..16].copy_from_slice(&self.counters[which].to_le_bytes());
        page[16..32].copy_from_slice(&self.id);
        let own = slots.iter().skip(which * PER_PAGE).take(PER_PAGE);
        for (entry, extent) in own.enumerate() {
            let at = ENTRIES_AT + 4 * entry;
            page[at..at + 4].copy_from_slice(&extent.to_le_bytes());
        }
        seal(&mut page, 60);
        let copy = self.counters[which] % 2;
        ((2 + 2 * which as u64 + copy) * PAGE as u64, page)
    }

    /// Writes a page and waits until it is durable.
    pub fn write_now(&self, page: &Page) -> io::Result<()> {
        self.file.write_all_at(&page.1, page.0)?;
        self.file.sync_data()
    }
}

fn is_superblock(bytes: &[u8]) -> bool {
    bytes[..8] == MAGIC
        && short(bytes, 8) == VERSION
        && short(bytes, 12) == checksum(bytes, 12)
        && bytes[49..].iter().all(|byte| *byte == 0)
}

fn is_page(bytes: &[u8], which: u32, id: &[u8; 16]) -> bool {
    bytes[..4] == PAGE_MAGIC
        && short(bytes, 4) == which
        && bytes[16..32] == *id
        && short(bytes, 60) == checksum(bytes, 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Random, Scratch};

    #[test]
    fn what_was_written_last_is_found() {
        let scratch = Scratch::new();
        let path = scratch.path("g.0.hot");
        let mut log = Log::create(&path, 77 << 20).unwrap();
        let found = Log::open(&path).unwrap();
        assert_eq!((found.scope, found.size), (Scope::Whole, 77 << 20));
        assert!(found.slots.iter().all(|slot| *slot == 0));
        let mut slots = vec![0; MARKS_MAX];
        for round in 1..9u32 {
            slots[0] = round;
            slots[MARKS_MAX - 1] = 1 << 24;
            for which in [0, PAGES - 1] {
                let page = log.page(which, &slots);
                log.write_now(&page).unwrap();
            }
            let page = log.superblock(Scope::Marked, u64::from(round));
            log.write_now(&page).unwrap();
            let found = Log::open(&path).unwrap();
            assert_eq!(
                (found.scope, found.size, found.slots),
                (Scope::Marked, round.into(), slots.clone())
            );
        }
    }

    #[test]
    fn a_torn_page_leaves_the_one_before() {
        let scratch = Scratch::new();
        let path = scratch.path("g.0.hot");
        let mut random = Random::new(5);
        let mut log = Log::create(&path, 1 << 30).unwrap();
        let mut slots = vec![0; MARKS_MAX];
        for round in 0..60u32 {
            let before = slots.clone();
            slots[random.below(PER_PAGE as u64) as usize] = round + 1;
            let (at, bytes) = log.page(0, &slots);
            let old = std::fs::read(&path).unwrap();
            let mut torn = old[at as usize..at as usize + PAGE].to_vec();
            for sector in 0..PAGE / 512 {
                if random.below(2) == 0 {
                    let part = sector * 512..(sector + 1) * 512;
                    torn[part.clone()].copy_from_slice(&bytes[part]);
                }
            }
            log.file.write_all_at(&torn, at).unwrap();
            let found = Log::open(&path).unwrap();
            assert!(found.slots == before || found.slots == slots, "round {round}");
            log.write_now(&(at, bytes)).unwrap();
            assert_eq!(Log::open(&path).unwrap().slots, slots);
        }
    }

    #[test]
    fn no_page_of_another_log_is_believed() {
        let scratch = Scratch::new();
        let (one, other) = (scratch.path("a.hot"), scratch.path("b.hot"));
        Log::create(&one, 1 << 30).unwrap();
        Log::create(&other, 1 << 30).unwrap();
        let mut bytes = std::fs::read(&one).unwrap();
        let foreign = std::fs::read(&other).unwrap();
        bytes[2 * PAGE..4 * PAGE].copy_from_slice(&foreign[2 * PAGE..4 * PAGE]);
        std::fs::write(&one, &bytes).unwrap();
        assert!(Log::open(&one).is_err());
        std::fs::write(&one, &bytes[..FILE_BYTES - 1]).unwrap();
        assert!(Log::open(&one).is_err());
    }
}
