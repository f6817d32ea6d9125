//! What a disk counts.

use crate::hist::Histogram;
use crate::nbd::request::Command;

/// Latencies by kind of request.
#[derive(Clone, Default)]
pub struct Latencies {
    /// Reads.
    pub read: Histogram,
    /// Writes.
    pub write: Histogram,
    /// Flushes.
    pub flush: Histogram,
    /// Trims and zeroes.
    pub other: Histogram,
}

impl Latencies {
    /// The histogram for a command.
    pub fn of(&mut self, command: Command) -> &mut Histogram {
        match command {
            Command::Read => &mut self.read,
            Command::Write => &mut self.write,
            Command::Flush => &mut self.flush,
            _ => &mut self.other,
        }
    }
}

/// Counters of one disk since the tap started.
#[derive(Clone, Default)]
pub struct DiskStats {
    /// Reads done.
    pub reads: u64,
    /// Bytes of them.
    pub read_bytes: u64,
    /// Writes done.
    pub writes: u64,
    /// Bytes of them.
    pub written_bytes: u64,
    /// Flushes done.
    pub flushes: u64,
    /// Trims done.
    pub trims: u64,
    /// Writes of zeroes done.
    pub zeroes: u64,
    /// Requests that the disk refused.
    pub errors: u64,
    /// Requests that were wrong (answered, connection kept).
    pub refused: u64,
    /// Connections that ended for a malformed message.
    pub protocol_errors: u64,
    /// Connections that were made.
    pub connections: u64,
    /// Connections that a panic ended.
    pub panics: u64,
    /// Times.
    pub latencies: Latencies,
}

impl DiskStats {
    /// A write is done.
    pub fn written(&mut self, bytes: u64) {
        self.writes += 1;
        self.written_bytes += bytes;
    }

    /// A read is done.
    pub fn was_read(&mut self, bytes: u64) {
        self.reads += 1;
        self.read_bytes += bytes;
    }
}
