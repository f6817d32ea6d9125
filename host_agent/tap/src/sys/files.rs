//! Calls on files: space, holes, locks, reads and writes with flags.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use super::{check, check_size};

/// `fallocate` of a range: what becomes of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Space {
    /// Has blocks; the file grows as needed.
    Allocate,
    /// Reads as zeroes and needs no blocks.
    Punch,
    /// Reads as zeroes and keeps or gets its blocks.
    Zero,
}

impl Space {
    /// The mode argument of `fallocate`.
    pub fn mode(self) -> i32 {
        match self {
            Space::Allocate => 0,
            Space::Punch => libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
            Space::Zero => libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE,
        }
    }
}

fn to_offset(value: u64) -> io::Result<i64> {
    i64::try_from(value).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))
}

/// Changes the space of a range. `EOPNOTSUPP` where the file system cannot.
pub fn fallocate(file: &File, space: Space, offset: u64, length: u64) -> io::Result<()> {
    let (offset, length) = (to_offset(offset)?, to_offset(length)?);
    // SAFETY: no memory is passed.
    check(unsafe { libc::fallocate(file.as_raw_fd(), space.mode(), offset, length) })?;
    Ok(())
}

/// Reads what is in memory already; `WouldBlock` when nothing is.
pub fn read_cached(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
    let vector = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let offset = to_offset(offset)?;
    // SAFETY: one vector that is `bytes`, which outlives the call.
    check_size(unsafe { libc::preadv2(file.as_raw_fd(), &vector, 1, offset, libc::RWF_NOWAIT) })
}

/// Writes, and returns when the bytes are durable.
pub fn write_durable(file: &File, bytes: &[u8], offset: u64) -> io::Result<usize> {
    let base = bytes.as_ptr().cast_mut().cast();
    let vector = libc::iovec { iov_base: base, iov_len: bytes.len() };
    let offset = to_offset(offset)?;
    // SAFETY: one vector that is `bytes`, which the kernel only reads.
    check_size(unsafe { libc::pwritev2(file.as_raw_fd(), &vector, 1, offset, libc::RWF_DSYNC) })
}

/// Goes on with `step`, which moves some bytes from `done` on and says how many, until all are.
fn until_done(length: usize, mut step: impl FnMut(usize) -> libc::c_long) -> io::Result<()> {
    let mut done = 0;
    while done < length {
        match check_size(step(done) as isize) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => done += count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Reads all of `bytes`. The bare call: a thread can be cancelled in libc's, and none is here, but
/// that is paid for with each request.
pub fn read_all(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    let (fd, from) = (file.as_raw_fd(), to_offset(offset)?);
    until_done(bytes.len(), |done| {
        let rest = &mut bytes[done..];
        let at = from + done as i64;
        // SAFETY: the kernel writes at most `rest`, which outlives the call.
        unsafe { libc::syscall(libc::SYS_pread64, fd, rest.as_mut_ptr(), rest.len(), at) }
    })
}

/// Writes all of `bytes`, by the bare call as well.
pub fn write_all(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    let (fd, from) = (file.as_raw_fd(), to_offset(offset)?);
    until_done(bytes.len(), |done| {
        let rest = &bytes[done..];
        let at = from + done as i64;
        // SAFETY: the kernel only reads `rest`, which outlives the call.
        unsafe { libc::syscall(libc::SYS_pwrite64, fd, rest.as_ptr(), rest.len(), at) }
    })
}

fn seek(file: &File, offset: u64, whence: i32) -> io::Result<Option<u64>> {
    // SAFETY: no memory is passed.
    let found = unsafe { libc::lseek(file.as_raw_fd(), to_offset(offset)?, whence) };
    match u64::try_from(found) {
        Ok(found) => Ok(Some(found)),
        Err(_) => match io::Error::last_os_error() {
            e if e.raw_os_error() == Some(libc::ENXIO) => Ok(None),
            e => Err(e),
        },
    }
}

/// The first byte of data at or after `offset`; `None`: only a hole follows.
pub fn seek_data(file: &File, offset: u64) -> io::Result<Option<u64>> {
    seek(file, offset, libc::SEEK_DATA)
}

/// The first byte of a hole at or after `offset`; `None`: past the end.
pub fn seek_hole(file: &File, offset: u64) -> io::Result<Option<u64>> {
    seek(file, offset, libc::SEEK_HOLE)
}

/// Takes the whole-file lock, or `WouldBlock`.
pub fn lock_file(file: &File) -> io::Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) })?;
    Ok(())
}

fn byte_lock(kind: i32, at: u64) -> libc::flock {
    // SAFETY: an all-zero flock is valid; l_pid must be 0 for locks of the open file.
    let mut lock = unsafe { std::mem::zeroed::<libc::flock>() };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock.l_start = at as libc::off_t;
    lock.l_len = 1;
    lock
}

/// Takes a shared lock on one byte, belonging to the open file.
pub fn lock_byte(file: &File, at: u64) -> io::Result<()> {
    let lock = byte_lock(libc::F_RDLCK, at);
    // SAFETY: the kernel only reads the struct.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) })?;
    Ok(())
}

/// Whether somebody else holds a lock on that byte.
pub fn is_byte_locked(file: &File, at: u64) -> io::Result<bool> {
    let mut lock = byte_lock(libc::F_WRLCK, at);
    // SAFETY: the kernel writes its answer into the struct that outlives the call.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &mut lock) })?;
    Ok(lock.l_type != libc::F_UNLCK as libc::c_short)
}

/// Whether the file lives in memory, so that reads, writes and syncs never wait for a device.
pub fn is_in_memory(file: &File) -> io::Result<bool> {
    const RAMFS_MAGIC: i64 = 0x8584_58f6;
    // SAFETY: an all-zero statfs is valid, and the kernel fills it.
    let kind = unsafe {
        let mut stat = std::mem::zeroed::<libc::statfs>();
        check(libc::fstatfs(file.as_raw_fd(), &mut stat))?;
        stat.f_type as i64
    };
    Ok(kind == libc::TMPFS_MAGIC || kind == RAMFS_MAGIC)
}

/// The unit of direct I/O on an open file, bytes; `None` when the kernel does not tell.
pub fn direct_unit(file: &File) -> Option<u32> {
    // SAFETY: an all-zero statx is valid, the kernel fills it; the empty path names `file`.
    let stat = unsafe {
        let mut stat = std::mem::zeroed::<libc::statx>();
        let flags = libc::AT_EMPTY_PATH;
        let path = c"".as_ptr();
        let fd = file.as_raw_fd();
        check(libc::statx(fd, path, flags, libc::STATX_DIOALIGN, &mut stat)).ok()?;
        stat
    };
    let is_told = stat.stx_mask & libc::STATX_DIOALIGN != 0 && stat.stx_dio_offset_align > 0;
    is_told.then_some(stat.stx_dio_offset_align)
}

/// The logical sector of a block device, bytes.
pub fn sector_size(device: &File) -> io::Result<u32> {
    const BLKSSZGET: libc::Ioctl = 0x1268;
    let mut size: libc::c_int = 0;
    // SAFETY: this request writes one int.
    check(unsafe { libc::ioctl(device.as_raw_fd(), BLKSSZGET, &mut size) })?;
    u32::try_from(size).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}
