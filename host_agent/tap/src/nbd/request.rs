//! Requests: the 28 bytes, and whether they make sense for a disk.

use super::{Errno, REQUEST_BYTES_MAX};

/// A request's header, bytes.
pub const HEADER_BYTES: usize = 28;
const MAGIC: u32 = 0x2560_9513;

/// Complete only when durable.
pub const FLAG_FUA: u16 = 1;
/// Zeroes must keep their blocks.
pub const FLAG_NO_HOLE: u16 = 2;
/// One chunk only.
pub const FLAG_DF: u16 = 4;
/// One extent only.
pub const FLAG_REQ_ONE: u16 = 8;
/// Zero quickly or not at all.
pub const FLAG_FAST_ZERO: u16 = 16;

/// What is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Command {
    /// Data of a range.
    Read,
    /// New data for a range.
    Write,
    /// The client ends.
    Disconnect,
    /// All completed writes become durable.
    Flush,
    /// A range is not needed.
    Trim,
    /// A range may be read soon.
    Cache,
    /// A range becomes zeroes.
    WriteZeroes,
    /// What is allocated.
    BlockStatus,
    /// Something that we do not know.
    Unknown(u16),
}

impl Command {
    fn of(number: u16) -> Command {
        match number {
            0 => Command::Read,
            1 => Command::Write,
            2 => Command::Disconnect,
            3 => Command::Flush,
            4 => Command::Trim,
            5 => Command::Cache,
            6 => Command::WriteZeroes,
            7 => Command::BlockStatus,
            other => Command::Unknown(other),
        }
    }

    fn flags(self) -> u16 {
        match self {
            Command::Read => FLAG_DF | FLAG_FUA,
            Command::Write | Command::Trim | Command::Flush => FLAG_FUA,
            Command::WriteZeroes => FLAG_FUA | FLAG_NO_HOLE | FLAG_FAST_ZERO,
            Command::BlockStatus => FLAG_REQ_ONE,
            Command::Disconnect | Command::Cache | Command::Unknown(_) => 0,
        }
    }
}

/// A parsed header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// FUA and the like.
    pub flags: u16,
    /// What is asked.
    pub command: Command,
    /// The client's name for it.
    pub cookie: u64,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u32,
}

impl Header {
    /// Reads a header; `None`: the magic is wrong, so nothing after it can be trusted.
    pub fn parse(bytes: &[u8; HEADER_BYTES]) -> Option<Header> {
        // Fixed places in a fixed array: each is one load and one swap.
        let short = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        let word = |at: usize| u32::from(short(at)) << 16 | u32::from(short(at + 2));
        let long = |at: usize| u64::from(word(at)) << 32 | u64::from(word(at + 4));
        if word(0) != MAGIC {
            return None;
        }
        Some(Header {
            flags: short(4),
            command: Command::of(short(6)),
            cookie: long(8),
            offset: long(16),
            length: word(24),
        })
    }

    /// Whether a disk of `size` bytes with units of `block_bytes` can be asked this.
    pub fn check(&self, size: u64, block_bytes: u32) -> Result<(), Errno> {
        if self.flags & !self.command.flags() != 0 {
            return Err(Errno::Invalid);
        }
        if self.command == Command::Flush {
            let is_plain = self.offset == 0 && self.length == 0;
            return if is_plain { Ok(()) } else { Err(Errno::Invalid) };
        }
        if matches!(self.command, Command::Unknown(_)) {
            return Err(Errno::Invalid);
        }
        let has_data = matches!(self.command, Command::Read | Command::Write);
        let is_too_long = has_data && self.length > REQUEST_BYTES_MAX;
        let unit = u64::from(block_bytes);
        let is_aligned = self.offset % unit == 0 && self.length % block_bytes == 0;
        if self.length == 0 || is_too_long || !is_aligned {
            return Err(Errno::Invalid);
        }
        match self.offset.checked_add(u64::from(self.length)) {
            Some(end) if end <= size => Ok(()),
            _ if matches!(self.command, Command::Write | Command::WriteZeroes) => {
                Err(Errno::NoSpace)
            }
            _ => Err(Errno::Invalid),
        }
    }

    /// Whether it changes the disk, so that its completion tells of a record.
    pub fn is_recorded(&self) -> bool {
        matches!(
            self.command,
            Command::Write | Command::Trim | Command::WriteZeroes | Command::Flush
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    fn bytes(command: u16, flags: u16, offset: u64, length: u32) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[..4].copy_from_slice(&MAGIC.to_be_bytes());
        out[4..6].copy_from_slice(&flags.to_be_bytes());
        out[6..8].copy_from_slice(&command.to_be_bytes());
        out[8..16].copy_from_slice(&77u64.to_be_bytes());
        out[16..24].copy_from_slice(&offset.to_be_bytes());
        out[24..28].copy_from_slice(&length.to_be_bytes());
        out
    }

    fn check(command: u16, flags: u16, offset: u64, length: u32) -> Result<(), Errno> {
        Header::parse(&bytes(command, flags, offset, length)).unwrap().check(1 << 20, 512)
    }

    #[test]
    fn fields_are_read() {
        let header = Header::parse(&bytes(1, FLAG_FUA, 0x1_0000_0200, 4096)).unwrap();
        assert_eq!(header.command, Command::Write);
        assert_eq!((header.flags, header.cookie), (FLAG_FUA, 77));
        assert_eq!((header.offset, header.length), (0x1_0000_0200, 4096));
        let mut wrong = bytes(1, 0, 0, 512);
        wrong[3] ^= 1;
        assert_eq!(Header::parse(&wrong), None);
    }

    #[test]
    fn what_is_wrong_has_its_error() {
        assert_eq!(check(0, 0, 0, 512), Ok(()));
        assert_eq!(check(0, 0, (1 << 20) - 512, 512), Ok(()));
        assert_eq!(check(0, 0, 1 << 20, 512), Err(Errno::Invalid));
        assert_eq!(check(1, 0, 1 << 20, 512), Err(Errno::NoSpace));
        assert_eq!(check(6, 0, u64::MAX - 511, 1024), Err(Errno::NoSpace));
        assert_eq!(check(4, 0, u64::MAX - 511, 1024), Err(Errno::Invalid));
        assert_eq!(check(1, 0, 1, 512), Err(Errno::Invalid));
        assert_eq!(check(1, 0, 0, 513), Err(Errno::Invalid));
        assert_eq!(check(1, 0, 0, 0), Err(Errno::Invalid));
        assert_eq!(check(1, FLAG_DF, 0, 512), Err(Errno::Invalid));
        assert_eq!(check(3, 0, 0, 512), Err(Errno::Invalid));
        assert_eq!(check(3, 0, 0, 0), Ok(()));
        assert_eq!(check(9, 0, 0, 512), Err(Errno::Invalid));
    }

    #[test]
    fn what_passes_lies_within_the_disk() {
        let mut random = Random::new(11);
        for _ in 0..200_000 {
            let offset = random.next() >> random.below(64);
            let length = (random.next() >> random.below(64)) as u32;
            let header = bytes(random.below(9) as u16, 1 << random.below(6), offset, length);
            let header = Header::parse(&header).unwrap();
            let (size, unit) = (random.next() >> random.below(40), 512 << random.below(4));
            if header.check(size, unit).is_ok() && header.command != Command::Flush {
                assert!(u128::from(offset) + u128::from(length) <= u128::from(size));
                assert_eq!((offset % u64::from(unit), length % unit), (0, 0));
            }
        }
    }
}
