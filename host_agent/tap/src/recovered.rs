//! What is present of a recovered disk, and the two logs that remember it.
//!
//! The *durable* log lies beside the file. A mark enters it only when the data that it speaks of
//! is durable, so after a power cut whatever it says is there. The *quick* log lies in memory and
//! gets every mark at once: it outlives the tap but not the host, exactly as the page cache that
//! holds the data. Without it a tap that was killed would fetch over what a guest had written.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::rangeset::RangeSet;

const MAGIC: [u8; 8] = *b"HFPRES\x00\x01";
const HEADER_BYTES: u64 = 64;
const ENTRY_BYTES: usize = 24;
/// Marks that wait for the durable log are written after so many bytes of data.
const UNMARKED_BYTES_MAX: u64 = 64 << 20;
/// Or after so long, ns.
const UNMARKED_NS_MAX: u64 = 2_000_000_000;

/// A log of ranges.
#[derive(Debug)]
struct Log {
    file: Arc<File>,
    end: u64,
}

fn header(id: &[u8; 16], size: u64) -> [u8; HEADER_BYTES as usize] {
    let mut bytes = [0; HEADER_BYTES as usize];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..16].copy_from_slice(&size.to_le_bytes());
    bytes[16..32].copy_from_slice(id);
    let check = crc32c::crc32c(&bytes[..60]);
    bytes[60..].copy_from_slice(&check.to_le_bytes());
    bytes
}

fn entry(range: &Range<u64>) -> [u8; ENTRY_BYTES] {
    let mut bytes = [0; ENTRY_BYTES];
    bytes[..8].copy_from_slice(&range.start.to_le_bytes());
    bytes[8..16].copy_from_slice(&range.end.to_le_bytes());
    let check = crc32c::crc32c(&bytes[..20]);
    bytes[20..].copy_from_slice(&check.to_le_bytes());
    bytes
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}

impl Log {
    /// Writes a whole new log in place of an old one.
    fn create(path: &Path, id: &[u8; 16], size: u64, ranges: &RangeSet) -> io::Result<Log> {
        let mut bytes = header(id, size).to_vec();
        for range in ranges.iter() {
            bytes.extend_from_slice(&entry(&range));
        }
        let fresh = path.with_extension("present-new");
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(true).mode(0o600);
        let file = options.open(&fresh)?;
        file.write_all_at(&bytes, 0)?;
        file.sync_all()?;
        std::fs::rename(&fresh, path)?;
        sync_folder_of(path)?;
        Ok(Log { file: Arc::new(file), end: bytes.len() as u64 })
    }

    /// Reads a log as far as it is whole. `None`: it is none, or of another disk.
    fn read(path: &Path, size: u64) -> io::Result<Option<([u8; 16], RangeSet)>> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let Some(start) = bytes.get(..HEADER_BYTES as usize) else { return Ok(None) };
        let mut id = [0; 16];
        id.copy_from_slice(&start[16..32]);
        if start != header(&id, size) {
            return Ok(None);
        }
        let mut ranges = RangeSet::new();
        for found in bytes[HEADER_BYTES as usize..].chunks_exact(ENTRY_BYTES) {
            let range = u64_at(found, 0)..u64_at(found, 8);
            // A torn end: what follows was never promised.
            if found != entry(&range) || range.start >= range.end || range.end > size {
                break;
            }
            ranges.insert(range);
        }
        Ok(Some((id, ranges)))
    }

    /// Goes on with a log that says what a new one would; else writes that.
    fn go_on(path: &Path, id: &[u8; 16], size: u64, ranges: &RangeSet) -> io::Result<Log> {
        let end = HEADER_BYTES + (ranges.iter().count() * ENTRY_BYTES) as u64;
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        // A torn end, or ranges that grew together, would have made it longer.
        if file.metadata()?.len() != end {
            return Log::create(path, id, size, ranges);
        }
        Ok(Log { file: Arc::new(file), end })
    }

    fn append(&mut self, ranges: impl Iterator<Item = Range<u64>>) -> io::Result<()> {
        let bytes: Vec<u8> = ranges.flat_map(|range| entry(&range)).collect();
        self.file.write_all_at(&bytes, self.end)?;
        self.end += bytes.len() as u64;
        Ok(())
    }
}

/// Makes a folder's names durable.
pub fn sync_folder_of(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

/// The presence of one recovered disk.
#[derive(Debug)]
pub struct Recovered {
    /// What the file has.
    pub present: RangeSet,
    size: u64,
    durable: Log,
    quick: Option<Log>,
    quick_path: PathBuf,
    /// Present, but not in the durable log.
    unmarked: RangeSet,
    /// What the flush that runs will mark.
    marking: RangeSet,
    marked_ns: u64,
}

/// Where the durable log of a file lies.
pub fn log_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".present");
    PathBuf::from(name)
}

impl Recovered {
    /// Whether the file at `path` was begun as a recovered disk of `size` bytes.
    pub fn exists(path: &Path, size: u64) -> io::Result<bool> {
        Ok(Log::read(&log_path(path), size)?.is_some())
    }

    /// Begins the log of a new file, with nothing present.
    pub fn create(path: &Path, size: u64, id: &[u8; 16]) -> io::Result<()> {
        Log::create(&log_path(path), id, size, &RangeSet::new()).map(|_| ())
    }

    /// The same for a disk that nobody needs after the host stopped: it is not made durable.
    pub fn create_scratch(path: &Path, size: u64, id: &[u8; 16]) -> io::Result<()> {
        std::fs::write(log_path(path), header(id, size))
    }

    /// Opens both logs. `quick_path`: in memory.
    pub fn open(path: &Path, quick_path: &Path, size: u64) -> io::Result<Recovered> {
        let log = log_path(path);
        let found = Log::read(&log, size)?;
        let none = || io::Error::new(io::ErrorKind::InvalidData, "the presence log is not whole");
        let (id, durable) = found.ok_or_else(none)?;
        let mut present = durable.clone();
        let mut unmarked = RangeSet::new();
        if let Some((quick_id, ranges)) = Log::read(quick_path, size)? {
            if quick_id == id {
                for range in ranges.iter() {
                    for gap in durable.gaps(&range) {
                        unmarked.insert(gap);
                    }
                    present.insert(range);
                }
            }
        }
        let quick = Log::create(quick_path, &id, size, &present).ok();
        Ok(Recovered {
            size,
            durable: Log::go_on(&log, &id, size, &durable)?,
            quick,
            quick_path: quick_path.to_owned(),
            present,
            unmarked,
            marking: RangeSet::new(),
            marked_ns: 0,
        })
    }

    /// A guest's or a fill's data is in the file.
    pub fn wrote(&mut self, range: Range<u64>) {
        if self.present.contains(&range) {
            return;
        }
        let gaps = self.present.gaps(&range);
        if let Some(quick) = &mut self.quick {
            if quick.append(gaps.iter().cloned()).is_err() {
                // Without it a killed tap fetches again over guests' writes: `status` says so.
                self.quick = None;
                let _ = std::fs::remove_file(&self.quick_path);
            }
        }
        for gap in gaps {
            self.unmarked.insert(gap.clone());
            self.present.insert(gap);
        }
    }

    /// Whether marks should become durable although no guest flushes.
    pub fn is_due(&self, now_ns: u64) -> bool {
        !self.unmarked.is_empty()
            && (self.unmarked.bytes() >= UNMARKED_BYTES_MAX
                || now_ns.saturating_sub(self.marked_ns) >= UNMARKED_NS_MAX)
    }

    /// Whether a mark waits for the durable log.
    pub fn has_unmarked(&self) -> bool {
        !self.unmarked.is_empty()
    }

    /// The file will be synced: what is in it now gets its marks afterwards.
    pub fn begin_flush(&mut self, now_ns: u64) {
        self.marked_ns = now_ns;
        let unmarked = std::mem::take(&mut self.unmarked);
        for range in unmarked.iter() {
            self.marking.insert(range);
        }
    }

    /// The file's data is durable: writes the marks (not yet durable).
    pub fn write_marks(&mut self) -> Result<(), i32> {
        let written = self.durable.append(self.marking.iter());
        written.map_err(|e| e.raw_os_error().unwrap_or(libc::EIO))
    }

    /// The marks are durable, or could not be made so.
    pub fn end_flush(&mut self, is_good: bool) {
        let marking = std::mem::take(&mut self.marking);
        if !is_good {
            for range in marking.iter() {
                self.unmarked.insert(range);
            }
        }
    }

    /// What a flush syncs after the marks were written.
    pub fn log_file(&self) -> &Arc<File> {
        &self.durable.file
    }

    /// Makes all that is present durable, waiting for it: for an orderly stop.
    pub fn settle(&mut self, file: &File) -> Result<(), i32> {
        let code = |e: io::Error| e.raw_os_error().unwrap_or(libc::EIO);
        self.begin_flush(self.marked_ns);
        let result = file
            .sync_data()
            .map_err(code)
            .and_then(|()| self.write_marks())
            .and_then(|()| self.durable.file.sync_data().map_err(code));
        self.end_flush(result.is_ok());
        result
    }

    /// Forgets the quick log: everything is in the durable one.
    pub fn forget_quick(&mut self) {
        self.quick = None;
        let _ = std::fs::remove_file(&self.quick_path);
    }

    /// Whether a killed tap would still know of every guest's write.
    pub fn has_quick(&self) -> bool {
        self.quick.is_some()
    }

    /// Bytes not fetched and not written yet.
    pub fn missing_bytes(&self) -> u64 {
        self.size - self.present.bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Random, Scratch};

    const SIZE: u64 = 1 << 20;

    struct Place(Scratch);

    impl Place {
        fn new() -> Place {
            let scratch = Scratch::new();
            Recovered::create(&scratch.path("d"), SIZE, &[3; 16]).unwrap();
            std::fs::write(scratch.path("d"), []).unwrap();
            Place(scratch)
        }

        fn open(&self) -> Recovered {
            Recovered::open(&self.0.path("d"), &self.0.path("quick"), SIZE).unwrap()
        }

        fn file(&self) -> File {
            OpenOptions::new().write(true).open(self.0.path("d")).unwrap()
        }
    }

    #[test]
    fn a_killed_tap_knows_all_and_a_dead_host_what_was_flushed() {
        let place = Place::new();
        let mut map = place.open();
        map.wrote(0..4096);
        map.settle(&place.file()).unwrap();
        map.wrote(8192..9216);
        drop(map);
        let map = place.open();
        assert_eq!(map.present.iter().collect::<Vec<_>>(), [0..4096, 8192..9216]);
        assert!(map.has_unmarked());
        drop(map);
        std::fs::remove_file(place.0.path("quick")).unwrap();
        let map = place.open();
        assert_eq!(map.present.iter().collect::<Vec<_>>(), [Range { start: 0, end: 4096 }]);
    }

    #[test]
    fn marks_that_failed_are_written_again() {
        let place = Place::new();
        let mut map = place.open();
        map.wrote(0..512);
        map.begin_flush(0);
        map.wrote(512..1024);
        map.end_flush(false);
        map.settle(&place.file()).unwrap();
        map.forget_quick();
        assert_eq!(place.open().present.bytes(), 1024);
    }

    #[test]
    fn a_torn_log_is_believed_up_to_the_tear() {
        let place = Place::new();
        let mut map = place.open();
        let mut random = Random::new(9);
        for at in 0..64u64 {
            map.wrote(at * 1024..at * 1024 + 512);
            map.settle(&place.file()).unwrap();
        }
        map.forget_quick();
        drop(map);
        let log = log_path(&place.0.path("d"));
        let whole = std::fs::read(&log).unwrap();
        for _ in 0..100 {
            let cut =
                HEADER_BYTES as usize + random.below(whole.len() as u64 - HEADER_BYTES) as usize;
            let mut torn = whole[..cut].to_vec();
            if random.below(2) == 0 {
                torn.extend(random.bytes(40));
            }
            std::fs::write(&log, &torn).unwrap();
            let expected = (cut as u64 - HEADER_BYTES) / ENTRY_BYTES as u64 * 512;
            let (_, ranges) = Log::read(&log, SIZE).unwrap().unwrap();
            assert_eq!(ranges.bytes(), expected);
        }
        std::fs::write(&log, &whole[..40]).unwrap();
        assert!(Log::read(&log, SIZE).unwrap().is_none());
    }

    #[test]
    fn a_whole_log_is_gone_on_with_and_another_is_written_anew() {
        let place = Place::new();
        let mut map = place.open();
        map.wrote(0..512);
        map.settle(&place.file()).unwrap();
        map.wrote(1024..1536);
        map.settle(&place.file()).unwrap();
        map.forget_quick();
        drop(map);
        let log = log_path(&place.0.path("d"));
        let whole = std::fs::read(&log).unwrap();
        let mut map = place.open();
        assert_eq!(std::fs::read(&log).unwrap(), whole);
        map.wrote(512..1024);
        map.settle(&place.file()).unwrap();
        map.forget_quick();
        assert_eq!(std::fs::metadata(&log).unwrap().len(), HEADER_BYTES + 3 * ENTRY_BYTES as u64);
        let map = place.open();
        assert_eq!(map.present.iter().collect::<Vec<_>>(), [Range { start: 0, end: 1536 }]);
        assert_eq!(std::fs::metadata(&log).unwrap().len(), HEADER_BYTES + ENTRY_BYTES as u64);
    }

    #[test]
    fn a_scratch_disk_begins_as_any_other() {
        let scratch = Scratch::new();
        Recovered::create_scratch(&scratch.path("d"), SIZE, &[3; 16]).unwrap();
        assert!(Recovered::exists(&scratch.path("d"), SIZE).unwrap());
        let map = Recovered::open(&scratch.path("d"), &scratch.path("quick"), SIZE).unwrap();
        assert!(map.present.is_empty());
    }

    #[test]
    fn a_log_of_another_disk_is_not_believed() {
        let place = Place::new();
        place.open().wrote(0..512);
        Recovered::create(&place.0.path("d"), SIZE, &[4; 16]).unwrap();
        assert!(place.open().present.is_empty());
        assert!(!Recovered::exists(&place.0.path("d"), SIZE * 2).unwrap());
    }
}
