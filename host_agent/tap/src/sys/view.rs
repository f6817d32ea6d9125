//! A file's bytes as memory, for copies without system calls. A page that cannot be had (the file
//! was cut, its file system is full) raises SIGBUS: the handler here puts an empty page in its
//! place and remembers it, so that the copy ends, is told to have failed, and the process lives.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{compiler_fence, AtomicBool, AtomicUsize, Ordering};
use std::sync::OnceLock;

use super::crc;

/// The unit of memory, bytes.
pub const PAGE_BYTES: usize = 4096;
/// Files that may be seen at once, by all threads.
const PLACES: usize = 128;

/// Where a file is seen. `start` is 0 while the place is free, 1 while it is being taken.
struct Place {
    start: AtomicUsize,
    length: AtomicUsize,
    is_broken: AtomicBool,
}

static SEEN: [Place; PLACES] = [const {
    Place {
        start: AtomicUsize::new(0),
        length: AtomicUsize::new(0),
        is_broken: AtomicBool::new(false),
    }
}; PLACES];

/// What was done about SIGBUS before.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

extern "C" fn on_bus(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a whole siginfo; of SIGBUS it has an address.
    let at = unsafe { (*info).si_addr() } as usize;
    let holds = |place: &&Place| {
        let start = place.start.load(Ordering::Acquire);
        start > 1 && at.wrapping_sub(start) < place.length.load(Ordering::Acquire)
    };
    if let Some(place) = SEEN.iter().find(holds) {
        place.is_broken.store(true, Ordering::Release);
        let page = (at - at % PAGE_BYTES) as *mut libc::c_void;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        // SAFETY: the page lies in a mapping of ours that nobody has a reference into: all access
        // to it is by the copies below. mmap is a system call, which a handler may make.
        let got = unsafe { libc::mmap(page, PAGE_BYTES, protection, flags, -1, 0) };
        if got != libc::MAP_FAILED {
            return;
        }
    }
    // Not ours: what was to happen before happens when the instruction is tried again.
    let before = BEFORE.get().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: a whole sigaction that the kernel gave us; sigaction may be called in a handler.
    unsafe {
        if before.is_null() {
            libc::signal(signal, libc::SIG_DFL);
        } else {
            libc::sigaction(signal, before, std::ptr::null_mut());
        }
    }
}

/// Handles SIGBUS from now on. `false`: it cannot be.
fn handle_bus() -> bool {
    static IS_HANDLED: OnceLock<bool> = OnceLock::new();
    *IS_HANDLED.get_or_init(|| {
        // SAFETY: all-zero sigactions are valid; the handler has the signature of SA_SIGINFO, and
        // both structs outlive the calls.
        unsafe {
            let mut before = std::mem::zeroed::<libc::sigaction>();
            if libc::sigaction(libc::SIGBUS, std::ptr::null(), &mut before) != 0 {
                return false;
            }
            let _ = BEFORE.set(before);
            let mut ours = std::mem::zeroed::<libc::sigaction>();
            let handler: extern "C" fn(_, _, _) = on_bus;
            ours.sa_sigaction = handler as usize;
            ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            libc::sigemptyset(&mut ours.sa_mask);
            libc::sigaction(libc::SIGBUS, &ours, std::ptr::null_mut()) == 0
        }
    })
}

/// A file as memory. Others may change the file at any time: nothing refers into it.
pub struct FileView {
    place: &'static Place,
    start: *mut u8,
    length: usize,
}

// SAFETY: the mapping belongs to the value; it moves between threads as a whole.
unsafe impl Send for FileView {}

impl FileView {
    /// Sees the first `length` bytes of a file; nothing is read or allocated by that.
    pub fn new(file: &File, length: usize) -> io::Result<FileView> {
        let full = || io::Error::from_raw_os_error(libc::ENFILE);
        if !handle_bus() {
            return Err(full());
        }
        let take = |place: &&Place| {
            place.start.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        };
        let place = SEEN.iter().find(take).ok_or_else(full)?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_NORESERVE;
        // SAFETY: the kernel picks the address; nothing of ours is replaced.
        let start = unsafe {
            libc::mmap(std::ptr::null_mut(), length, protection, flags, file.as_raw_fd(), 0)
        };
        if start == libc::MAP_FAILED {
            place.start.store(0, Ordering::Release);
            return Err(io::Error::last_os_error());
        }
        // A guest's data has no business in a dump of ours.
        // SAFETY: exactly this mapping; its content is not touched.
        unsafe { libc::madvise(start, length, libc::MADV_DONTDUMP) };
        place.is_broken.store(false, Ordering::Relaxed);
        place.length.store(length, Ordering::Release);
        place.start.store(start as usize, Ordering::Release);
        Ok(FileView { place, start: start.cast(), length })
    }

    fn at(&self, offset: usize, length: usize) -> *mut u8 {
        let end = offset.checked_add(length);
        assert!(end.is_some_and(|end| end <= self.length), "outside of the view");
        // SAFETY: checked to lie within the mapping just above.
        unsafe { self.start.add(offset) }
    }

    /// Whether no page was ever missing. Once one was, nothing here is of use any more.
    pub fn is_whole(&self) -> bool {
        // The copy before this must be done, and its signal handled, when the flag is looked at.
        compiler_fence(Ordering::SeqCst);
        !self.place.is_broken.load(Ordering::Acquire)
    }

    /// Copies bytes to the file; `false`: perhaps not all of them.
    pub fn write(&self, offset: usize, bytes: &[u8]) -> bool {
        let to = self.at(offset, bytes.len());
        // What a successor must know of this write is noted before it begins, not later.
        compiler_fence(Ordering::SeqCst);
        // SAFETY: `to` has room for them, and nothing refers to it.
        unsafe { crc::stream(to, bytes) };
        self.is_whole()
    }

    /// Copies bytes of the file; `false`: they may be wrong.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) -> bool {
        let from = self.at(offset, bytes.len());
        // SAFETY: as many bytes lie there; what somebody else writes meanwhile is read as before
        // or after, as from any file.
        unsafe { std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len()) };
        self.is_whole()
    }

    /// Asks for bytes that will be read soon.
    pub fn prefetch(&self, offset: usize, length: usize) {
        #[cfg(target_arch = "x86_64")]
        for line in (0..length).step_by(64) {
            use std::arch::x86_64::{_mm_prefetch, _MM_HINT_T0};
            let from = self.at(offset + line, 1);
            // SAFETY: a prefetch reads nothing that anybody could see, and never faults.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) };
        }
    }

    /// Whether the file has all of these whole pages in memory; then they are made quick to reach.
    pub fn prepare(&self, offset: usize, length: usize) -> bool {
        let from: *mut libc::c_void = self.at(offset, length).cast();
        let mut pages = [0u8; 64];
        if length > pages.len() * PAGE_BYTES {
            return false;
        }
        let count = length.div_ceil(PAGE_BYTES);
        // SAFETY: the kernel writes one byte a page into the array, which has room for them.
        let asked = unsafe { libc::mincore(from, length, pages.as_mut_ptr()) };
        if asked != 0 || pages[..count].iter().any(|page| page & 1 == 0) {
            return false;
        }
        // SAFETY: within the mapping; where it fails the copies find out.
        unsafe { libc::madvise(from, length, libc::MADV_POPULATE_WRITE) };
        true
    }
}

impl Drop for FileView {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nobody has a pointer into it any more.
        unsafe { libc::munmap(self.start.cast(), self.length) };
        self.place.start.store(0, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Scratch;
    use std::os::unix::fs::FileExt;

    #[test]
    fn what_is_written_is_in_the_file_and_the_other_way_round() {
        let scratch = Scratch::new();
        let file = File::create_new(scratch.path("a")).unwrap();
        file.set_len(1 << 20).unwrap();
        let file = File::options().read(true).write(true).open(scratch.path("a")).unwrap();
        let view = FileView::new(&file, 1 << 20).unwrap();
        assert!(view.write(4096, &[7; 8192]));
        let mut got = [0; 8192];
        file.read_exact_at(&mut got, 4096).unwrap();
        assert!(got == [7; 8192]);
        file.write_all_at(&[9; 512], 512).unwrap();
        assert!(view.read(512, &mut got[..512]));
        assert_eq!(got[..512], [9; 512]);
    }

    #[test]
    fn a_file_that_was_cut_is_told_and_nobody_dies() {
        let scratch = Scratch::new();
        std::fs::write(scratch.path("a"), vec![1; 1 << 16]).unwrap();
        let file = File::options().read(true).write(true).open(scratch.path("a")).unwrap();
        let view = FileView::new(&file, 1 << 16).unwrap();
        let other = FileView::new(&file, 4096).unwrap();
        let mut got = [0; 8192];
        assert!(view.read(0, &mut got) && view.is_whole());
        file.set_len(8192).unwrap();
        assert!(!view.read(4096, &mut got), "the second page is gone");
        assert_eq!(got[..4096], [1; 4096]);
        assert!(!view.write(32768, &[5; 4096]));
        assert_eq!(file.metadata().unwrap().len(), 8192);
        assert!(other.write(0, &[3; 4096]), "a view of what is there goes on");
    }

    #[test]
    fn only_pages_that_exist_are_prepared() {
        let scratch = Scratch::new();
        let file = File::create_new(scratch.path("a")).unwrap();
        file.set_len(1 << 20).unwrap();
        let file = File::options().read(true).write(true).open(scratch.path("a")).unwrap();
        let view = FileView::new(&file, 1 << 20).unwrap();
        file.write_all_at(&[1; 65536], 65536).unwrap();
        assert!(view.prepare(65536, 65536));
        assert!(!view.prepare(0, 65536) && !view.prepare(65536, 131_072));
    }
}
