//! Memory that is a file's, shared with other processes.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, AtomicU8, Ordering};

/// A file's bytes, shared with other processes.
pub struct Map {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: the mapping belongs to the value; it moves between threads as a whole.
unsafe impl Send for Map {}

impl Map {
    /// Maps `length` bytes of `file`, every page touched.
    pub fn new(file: &File, length: usize) -> io::Result<Map> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_POPULATE;
        // SAFETY: the kernel picks the address; nothing of ours is replaced.
        let start = unsafe {
            libc::mmap(std::ptr::null_mut(), length, protection, flags, file.as_raw_fd(), 0)
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(io::Error::last_os_error)?;
        Ok(Map { start, length })
    }

    /// Tries to keep the pages in memory.
    pub fn lock(&self) -> bool {
        // SAFETY: the range is exactly this mapping.
        unsafe { libc::mlock(self.start.as_ptr().cast(), self.length) == 0 }
    }

    fn place(&self, at: usize, length: usize) -> *mut u8 {
        let end = at.checked_add(length);
        assert!(end.is_some_and(|end| end <= self.length), "outside of the map");
        // SAFETY: checked to lie within the mapping just above.
        unsafe { self.start.as_ptr().add(at) }
    }

    /// A part, to be read. Only this process writes it (mode 0600, readers get descriptors for
    /// reading), and not while it is borrowed.
    pub fn bytes(&self, at: usize, length: usize) -> &[u8] {
        let from = self.place(at, length);
        // SAFETY: initialised bytes within the mapping, not written while `self` is borrowed.
        unsafe { std::slice::from_raw_parts(from, length) }
    }

    /// A part, to be filled in place.
    pub fn bytes_mut(&mut self, at: usize, length: usize) -> &mut [u8] {
        let to = self.place(at, length);
        // SAFETY: as in `bytes`, and `self` is borrowed alone; other processes only read.
        unsafe { std::slice::from_raw_parts_mut(to, length) }
    }

    /// Copies bytes in.
    pub fn write(&mut self, at: usize, bytes: &[u8]) {
        let to = self.place(at, bytes.len());
        // SAFETY: `to` has room for all bytes; a slice of ours never overlaps the mapping.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
    }

    /// Writes numbers one after another, little-endian; `at` is a multiple of eight.
    #[inline]
    pub fn write_numbers<const N: usize>(&mut self, at: usize, numbers: &[u64; N]) {
        let to = self.place(at, 8 * N).cast::<u64>();
        assert_eq!(at % 8, 0, "unaligned");
        for (index, number) in numbers.iter().enumerate() {
            // SAFETY: inside the mapping and aligned.
            unsafe { to.add(index).write(number.to_le()) };
        }
    }

    /// Copies bytes out.
    pub fn read(&self, at: usize, bytes: &mut [u8]) {
        let from = self.place(at, bytes.len());
        // SAFETY: as in `write`.
        unsafe { std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len()) };
    }

    /// Writes a number that other processes may read at any time.
    pub fn store(&mut self, at: usize, value: u64) {
        let to = self.place(at, 8);
        assert_eq!(at % 8, 0, "unaligned");
        // SAFETY: inside the mapping and aligned; all access to it is atomic.
        unsafe { AtomicU64::from_ptr(to.cast()) }.store(value.to_le(), Ordering::Release);
    }

    /// Reads a number that was stored so.
    pub fn load(&self, at: usize) -> u64 {
        let from = self.place(at, 8);
        assert_eq!(at % 8, 0, "unaligned");
        // SAFETY: inside the mapping and aligned; all access to it is atomic.
        u64::from_le(unsafe { AtomicU64::from_ptr(from.cast()) }.load(Ordering::Acquire))
    }

    /// What was written before is there before what is written after.
    pub fn barrier(&self) {
        std::sync::atomic::fence(Ordering::SeqCst);
    }

    /// Writes a byte that other processes may read at any time.
    pub fn store_byte(&mut self, at: usize, value: u8) {
        let to = self.place(at, 1);
        // SAFETY: inside the mapping; all access to it is atomic.
        unsafe { AtomicU8::from_ptr(to) }.store(value, Ordering::Release);
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nobody has a pointer into it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}
