//! What a disk looked like at an orderly stop, so that a successor sees whether somebody edited it
//! while nobody looked.

use std::io;
use std::os::unix::fs::MetadataExt;

use serde::{Deserialize, Serialize};

use crate::disk::{read_all, size_of, DiskFile};
use crate::sys::AlignedBuf;

/// Places of a disk that are looked at.
const SAMPLES: u64 = 64;
/// Bytes of each.
const SAMPLE_BYTES: u64 = 4096;

/// Size, time of the last change, and samples of the content.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Fingerprint {
    /// Bytes.
    pub size: u64,
    /// Time of the last change, seconds and nanoseconds. A device has none of its own.
    pub changed: (i64, i64),
    /// CRC-32C of samples: the first and the last bytes, and evenly between.
    #[serde(default)]
    pub samples: Vec<u32>,
}

impl Fingerprint {
    /// The fingerprint of now. A sample that cannot be read counts as 0.
    pub fn of(disk: &DiskFile) -> io::Result<Fingerprint> {
        let size = size_of(&disk.file)?;
        let mut changed = (0, 0);
        if !disk.is_device {
            let meta = disk.file.metadata()?;
            changed = (meta.mtime(), meta.mtime_nsec());
        }
        let mut buffer = AlignedBuf::new(SAMPLE_BYTES as usize);
        let mut sample = |at: u64| {
            let length = SAMPLE_BYTES.min(size - at) as usize;
            let is_read = read_all(&disk.file, &mut buffer[..length], at).is_ok();
            if is_read {
                crc32c::crc32c(&buffer[..length])
            } else {
                0
            }
        };
        let samples = places(size).map(&mut sample).collect();
        Ok(Fingerprint { size, changed, samples })
    }
}

/// Where samples begin: multiples of their size, none twice.
fn places(size: u64) -> impl Iterator<Item = u64> {
    let count = size.div_ceil(SAMPLE_BYTES);
    let taken = count.min(SAMPLES);
    (0..taken).map(move |number| match number {
        _ if taken == 1 => 0,
        number => {
            (u128::from(number) * u128::from(count - 1) / u128::from(taken - 1)) as u64
                * SAMPLE_BYTES
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{open, Cache};
    use crate::testing::Scratch;

    #[test]
    fn samples_reach_from_the_first_to_the_last_byte() {
        for size in [512, 4096, 4608, 1 << 20, 64 << 40] {
            let found: Vec<u64> = places(size).collect();
            assert_eq!(found[0], 0);
            assert!(found.windows(2).all(|pair| pair[0] < pair[1]));
            let last = found[found.len() - 1];
            assert!(last < size && last + SAMPLE_BYTES >= size);
        }
    }

    #[test]
    fn an_edit_with_the_old_time_is_seen_where_a_sample_lies() {
        let scratch = Scratch::new();
        let path = scratch.path("d");
        std::fs::write(&path, vec![7; 1 << 20]).unwrap();
        let disk = open(&path, Cache::Writeback, true).ok().unwrap();
        let before = Fingerprint::of(&disk).unwrap();
        assert_eq!(Fingerprint::of(&disk).unwrap(), before);
        crate::disk::write_all(&disk.file, &[8; 512], (1 << 20) - 512).unwrap();
        let after = Fingerprint::of(&disk).unwrap();
        assert_ne!(after.samples, before.samples);
        assert_ne!(after, Fingerprint { changed: before.changed, ..before });
    }
}
