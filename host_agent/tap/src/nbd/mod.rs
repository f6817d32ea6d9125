//! The NBD protocol: fixed newstyle, and what a block device needs of it.

pub mod conn;
pub mod handshake;
pub mod reply;
pub mod request;

/// The largest request, bytes.
pub const REQUEST_BYTES_MAX: u32 = 32 << 20;
/// What clients should prefer as a unit, bytes.
pub const BLOCK_BYTES_PREFERRED: u32 = 4096;
/// The only metadata context that is known.
pub const CONTEXT_NAME: &str = "base:allocation";
/// Its number on the wire.
pub const CONTEXT_ID: u32 = 1;

/// The error numbers that the protocol has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Errno {
    /// Not permitted.
    Perm = 1,
    /// Input or output failed.
    Io = 5,
    /// No memory.
    NoMemory = 12,
    /// The request is wrong.
    Invalid = 22,
    /// No space left, or past the end.
    NoSpace = 28,
    /// Cannot be done in the way asked for.
    NotSupported = 95,
    /// The server ends.
    Shutdown = 108,
}

impl Errno {
    /// The protocol's number for a system's error.
    pub fn from_system(code: i32) -> Errno {
        match code {
            libc::EPERM | libc::EROFS => Errno::Perm,
            libc::ENOMEM => Errno::NoMemory,
            libc::EINVAL => Errno::Invalid,
            libc::ENOSPC | libc::EDQUOT | libc::EFBIG => Errno::NoSpace,
            libc::EOPNOTSUPP => Errno::NotSupported,
            _ => Errno::Io,
        }
    }
}

/// What a connection may know of one export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// The group's own number for it.
    pub slot: usize,
    /// Bytes.
    pub size: u64,
    /// The smallest unit that it takes, bytes.
    pub block_bytes: u32,
}
