//! Records and their index entries, byte for byte (section 1 and 2 of the formats).

/// An index entry of the ring, bytes.
pub const ENTRY_BYTES: usize = 64;
/// A request's data is recorded in pieces of at most this, bytes.
pub const PIECE_BYTES: usize = 1 << 20;
/// The longest body of a record, bytes.
pub const BODY_BYTES_MAX: usize = 48 << 10;
/// Number of no disk.
pub const NO_DISK: u16 = 0xFFFF;

/// Request was durable before it was answered.
pub const FLAG_FUA: u8 = 1;
/// The next record belongs to the same request.
pub const FLAG_MORE: u8 = 2;
/// Continues the request of the record before.
pub const FLAG_TAIL: u8 = 4;

/// What a record says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Op {
    /// The disk accepted this data.
    Write = 1,
    /// The range reads as zeroes (asked for as zeroes).
    Zero = 2,
    /// The range was discarded and reads as zeroes.
    Trim = 3,
    /// A flush succeeded.
    Flush = 4,
    /// The disk has a new size.
    Resize = 5,
    /// Data that a sync read.
    Sync = 6,
    /// Zeroes that a sync found.
    SyncZero = 7,
    /// A sync interval begins.
    Begin = 16,
    /// A sync interval is over.
    End = 17,
    /// A checkpoint's marker.
    Mark = 18,
    /// A group checkpoint's commit.
    Commit = 19,
    /// What is said of a disk changed.
    Disk = 20,
    /// A disk left.
    Detach = 21,
    /// A machine's definition.
    Config = 22,
    /// A disk handed over.
    Handover = 23,
}

/// All of a record but its place, time and checksum.
#[derive(Clone, Copy, Debug)]
pub struct Record {
    /// What it says.
    pub op: Op,
    /// Disk number, or [`NO_DISK`].
    pub disk: u16,
    /// First byte on the disk; a resize: the new size.
    pub offset: u64,
    /// Bytes of the disk covered.
    pub length: u32,
    /// Position before a sync's read; last good position of a BEGIN; else 0.
    pub aux: u64,
    /// FUA, MORE, TAIL.
    pub flags: u8,
}

impl Record {
    /// A record of a range of a disk.
    pub fn range(op: Op, disk: u16, offset: u64, length: u32) -> Record {
        Record { op, disk, offset, length, aux: 0, flags: 0 }
    }

    /// A record that covers no bytes of a disk.
    pub fn about(op: Op) -> Record {
        Record { op, disk: NO_DISK, offset: 0, length: 0, aux: 0, flags: 0 }
    }
}

/// Where a record stands.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Its sequence.
    pub seq: u64,
    /// The stream's time, ns since 1970.
    pub time: u64,
    /// Where its payload begins, absolute.
    pub payload: u64,
    /// `seq` divided by the index capacity.
    pub lap: u32,
}

/// The index entry of a record with `payload_length` bytes of payload whose CRC-32C is `crc`, as
/// its eight numbers of 64 bits.
pub fn encode_entry(
    record: &Record,
    place: &Place,
    payload_length: u32,
    crc: u32,
) -> [u64; ENTRY_BYTES / 8] {
    let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    let kind = u32::from(record.op as u8) << 16 | u32::from(record.flags) << 24;
    let numbers = [
        place.seq,
        place.time,
        record.offset,
        record.aux,
        pair(record.length, crc),
        pair(payload_length, u32::from(record.disk) | kind),
        place.payload,
    ];
    let mut bytes = [0; ENTRY_BYTES - 4];
    for (to, number) in bytes.chunks_exact_mut(8).zip(&numbers) {
        to.copy_from_slice(&number.to_le_bytes());
    }
    bytes[ENTRY_BYTES - 8..].copy_from_slice(&place.lap.to_le_bytes());
    let check = crc32c::crc32c(&bytes);
    let [seq, time, offset, aux, length, what, payload] = numbers;
    [seq, time, offset, aux, length, what, payload, pair(place.lap, check)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entry_has_the_documented_layout() {
        let record = Record {
            op: Op::Write,
            disk: 0x0102,
            offset: 0x1112_1314_1516_1718,
            length: 0x2122_2324,
            aux: 0x3132_3334_3536_3738,
            flags: FLAG_FUA | FLAG_TAIL,
        };
        let place = Place { seq: 7, time: 9, payload: 11, lap: 13 };
        let entry = encode_entry(&record, &place, 0x4142_4344, 0x5152_5354);
        let entry: Vec<u8> = entry.iter().flat_map(|number| number.to_le_bytes()).collect();
        assert_eq!(entry[0], 7);
        assert_eq!(entry[8], 9);
        assert_eq!(entry[16..24], [0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11]);
        assert_eq!(entry[24..32], [0x38, 0x37, 0x36, 0x35, 0x34, 0x33, 0x32, 0x31]);
        assert_eq!(entry[32..36], [0x24, 0x23, 0x22, 0x21]);
        assert_eq!(entry[36..40], [0x54, 0x53, 0x52, 0x51]);
        assert_eq!(entry[40..44], [0x44, 0x43, 0x42, 0x41]);
        assert_eq!(entry[44..48], [2, 1, 1, 5]);
        assert_eq!(entry[48], 11);
        assert_eq!(entry[56], 13);
        assert_eq!(entry[60..64], crc32c::crc32c(&entry[..60]).to_le_bytes());
    }
}
