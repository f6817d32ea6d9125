//! Block status: where a disk has data.

use std::ops::Range;

use super::core::Disk;
use crate::disk;
use crate::sys::files;

const EXTENT_DATA: u32 = 0;
const EXTENT_HOLE_ZERO: u32 = 3;

/// What is allocated in `range`. Where nobody can tell, and where a recovered disk has nothing
/// yet, it is said to be data: a copy that trusted a hole would lose it.
pub fn extents(disk: &Disk, range: Range<u64>, most: usize) -> Vec<(u32, u32)> {
    let mut found: Vec<(u32, u32)> = Vec::new();
    let mut at = range.start;
    while at < range.end {
        let (end, flags) = extent_at(disk, at, range.end);
        let length = (end - at) as u32;
        let is_full = found.len() == most;
        match found.last_mut() {
            Some(last) if last.1 == flags => last.0 += length,
            _ if is_full => break,
            _ => found.push((length, flags)),
        }
        at = end;
    }
    found
}

fn extent_at(disk: &Disk, at: u64, end: u64) -> (u64, u32) {
    let mut end = end;
    if let Some(map) = &disk.recovered {
        match map.present.next_gap(at, end) {
            Some(gap) if gap.start == at => return (gap.end, EXTENT_DATA),
            Some(gap) => end = gap.start,
            None => {}
        }
    }
    if disk.io.is_device {
        return (end, EXTENT_DATA);
    }
    let unit = disk::SECTOR;
    match files::seek_data(&disk.io.file, at) {
        Ok(None) => (end, EXTENT_HOLE_ZERO),
        // Holes are cut to whole sectors.
        Ok(Some(data)) if data - data % unit > at => {
            ((data - data % unit).min(end), EXTENT_HOLE_ZERO)
        }
        Ok(Some(_)) => match files::seek_hole(&disk.io.file, at) {
            Ok(Some(hole)) => (
                hole.next_multiple_of(unit).clamp(at + unit, end.max(at + unit)).min(end),
                EXTENT_DATA,
            ),
            _ => (end, EXTENT_DATA),
        },
        Err(_) => (end, EXTENT_DATA),
    }
}
