//! A disk in memory as memory: reads and writes of what it has already are copies, without a
//! system call. Whatever is unusual (holes, a file that was cut) is left to the ordinary calls,
//! which know how to say what is wrong.

use std::ops::Range;

use crate::disk::{DiskFile, IoMode};
use crate::sys::view::FileView;

/// What is looked at, and remembered, at once, bytes.
const CHUNK: u64 = 64 << 10;
/// Larger disks are left to the ordinary calls, bytes: one byte of memory remembers a chunk.
const DISK_BYTES_MAX: u64 = 1 << 40;
/// A chunk that is wholly there.
const READY: u8 = u8::MAX;
/// More than this is not asked for early, bytes: it would push out what is worked on.
const PREFETCH_BYTES_MAX: u64 = 16 << 10;
/// How often a chunk with holes is used before it is looked at again.
const PATIENCE: u8 = 15;

/// The view of one disk.
pub struct DiskView {
    file: FileView,
    size: u64,
    /// For each chunk: [`READY`], or how often it is still passed over.
    chunks: Vec<u8>,
}

impl DiskView {
    /// A view of a disk in memory; others have none.
    pub fn of(disk: &DiskFile, size: u64) -> Option<DiskView> {
        if disk.mode != IoMode::Memory || size > DISK_BYTES_MAX {
            return None;
        }
        let file = FileView::new(&disk.file, size as usize).ok()?;
        let chunks = vec![0; size.div_ceil(CHUNK) as usize];
        Some(DiskView { file, size, chunks })
    }

    fn is_ready(&mut self, range: &Range<u64>) -> bool {
        let chunks = range.start / CHUNK..range.end.div_ceil(CHUNK);
        chunks.into_iter().all(|chunk| self.is_chunk_ready(chunk))
    }

    fn is_chunk_ready(&mut self, chunk: u64) -> bool {
        let Some(state) = self.chunks.get_mut(chunk as usize) else { return false };
        match *state {
            READY => true,
            0 => {
                let start = chunk * CHUNK;
                let length = CHUNK.min(self.size - start);
                let is_ready = self.file.prepare(start as usize, length as usize);
                *state = if is_ready { READY } else { PATIENCE };
                is_ready
            }
            _ => {
                *state -= 1;
                false
            }
        }
    }

    /// Writes; `false`: it must be done otherwise, the range may hold anything meanwhile.
    pub fn write(&mut self, bytes: &[u8], offset: u64) -> bool {
        let range = offset..offset + bytes.len() as u64;
        self.is_ready(&range) && self.file.write(offset as usize, bytes)
    }

    /// Reads; `false`: it must be done otherwise.
    pub fn read(&mut self, bytes: &mut [u8], offset: u64) -> bool {
        let range = offset..offset + bytes.len() as u64;
        self.is_ready(&range) && self.file.read(offset as usize, bytes)
    }

    /// A short range will be read soon; one outside of the disk is passed over.
    pub fn prefetch(&self, range: &Range<u64>) {
        let is_short = range.end.saturating_sub(range.start) <= PREFETCH_BYTES_MAX;
        let is_known = |at: u64| self.chunks.get((at / CHUNK) as usize) == Some(&READY);
        if range.start < range.end && range.end <= self.size && is_short && is_known(range.start) {
            self.file.prefetch(range.start as usize, (range.end - range.start) as usize);
        }
    }

    /// A range may have holes from now on.
    pub fn forget(&mut self, range: &Range<u64>) {
        let last = range.end.div_ceil(CHUNK).min(self.chunks.len() as u64) as usize;
        let first = ((range.start / CHUNK) as usize).min(last);
        self.chunks[first..last].fill(0);
    }

    /// Whether it is still of use.
    pub fn is_whole(&self) -> bool {
        self.file.is_whole()
    }
}
