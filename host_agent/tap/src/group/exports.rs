//! The group's disks as the handshake sees them; a resized disk is followed here.

use crate::disk::{self, IoMode};
use crate::nbd::handshake::Exports;
use crate::nbd::Export;
use crate::rangeset::align;
use crate::sys::files;

use super::core::Core;

impl Exports for Core {
    fn names(&self) -> Vec<String> {
        self.disks.iter().map(|(_, disk)| disk.name.clone()).collect()
    }

    fn find(&mut self, name: &str) -> Option<Export> {
        let is_only = self.disks.len() == 1;
        let found = |disk: &super::core::Disk| disk.name == name || (name.is_empty() && is_only);
        let slot = self.disks.iter().find(|(_, disk)| found(disk)).map(|(slot, _)| slot)?;
        self.follow_size(slot);
        let disk = self.disks.get(slot)?;
        Some(Export { slot, size: disk.size, block_bytes: disk.io.block_bytes })
    }
}

impl Core {
    /// Clients learn a new size at their connect, and so does the stream.
    fn follow_size(&mut self, slot: usize) {
        let Some(disk) = self.disks.get_mut(slot) else { return };
        if disk.recovered.is_some() || disk.io.mode == IoMode::Mirror {
            return;
        }
        let Ok(size) = disk::size_of(&disk.io.file) else { return };
        let size = size - size % u64::from(disk.io.block_bytes);
        if size == disk.size {
            return;
        }
        let before = std::mem::replace(&mut disk.size, size);
        let mut unflushed = crate::coarse::CoarseMap::new(size);
        let mut written = crate::rangeset::RangeSet::new();
        disk.unflushed.add_to(&mut written, size);
        for range in written.iter() {
            unflushed.mark(&align(&range, disk::SECTOR, size));
        }
        disk.unflushed = unflushed;
        disk.hot.resize(size);
        let grown = size > before;
        let has_news = grown && !matches!(files::seek_data(&disk.io.file, before), Ok(None));
        let number = disk.number;
        if let Some(stream) = &mut self.stream {
            stream.resize(number, size, has_news, self.clock.wall_ns);
        }
    }
}
