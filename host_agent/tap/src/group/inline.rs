//! Reads and writes of a disk that are done at once: as copies where the disk is memory and has
//! the place, else by the system's calls.

use std::ops::Range;

use crate::disk;
use crate::view::DiskView;

use super::core::{Core, Disk};
use crate::nbd::request::{Command, Header};

impl Core {
    /// The next request of a client is known, but its turn is later.
    pub fn expect(&self, disk: usize, next: &Header) {
        let end = next.offset.saturating_add(u64::from(next.length));
        let view = self.disks.get(disk).and_then(|disk| disk.view.as_ref());
        if let (Some(view), Command::Read) = (view, next.command) {
            view.prefetch(&(next.offset..end));
        }
    }
}

impl Disk {
    /// Writes all of `bytes`; the errno if the disk refuses.
    pub fn put(&mut self, bytes: &[u8], offset: u64) -> Result<(), i32> {
        if self.by_view(|view| view.write(bytes, offset)) {
            return Ok(());
        }
        disk::write_all(&self.io.file, bytes, offset)
    }

    /// Fills all of `bytes`; the errno if the disk cannot.
    pub fn get(&mut self, bytes: &mut [u8], offset: u64) -> Result<(), i32> {
        if self.by_view(|view| view.read(bytes, offset)) {
            return Ok(());
        }
        disk::read_all(&self.io.file, bytes, offset)
    }

    fn by_view(&mut self, act: impl FnOnce(&mut DiskView) -> bool) -> bool {
        let Some(view) = &mut self.view else { return false };
        let is_done = act(view);
        if !is_done && !view.is_whole() {
            self.view = None;
        }
        is_done
    }

    /// The disk changed its size.
    pub fn see_again(&mut self) {
        self.view = None;
        if self.recovered.is_none() {
            self.view = DiskView::of(&self.io, self.size);
        }
    }

    /// A range is given back to the file system.
    pub fn forget(&mut self, range: &Range<u64>) {
        if let Some(view) = &mut self.view {
            view.forget(range);
        }
    }

    /// As [`Disk::forget`], if `is_meant`.
    pub fn forget_if(&mut self, is_meant: bool, offset: u64, length: u64) {
        if is_meant {
            self.forget(&(offset..offset + length));
        }
    }
}
