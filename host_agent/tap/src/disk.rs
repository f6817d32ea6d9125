//! A disk: a raw file or block device, opened alone and locked.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::TapError;
use crate::sys::files::{self, Space};
use crate::sys::AlignedBuf;

/// The smallest unit of a disk, bytes.
pub const SECTOR: u64 = 512;
/// The largest disk, bytes.
pub const DISK_BYTES_MAX: u64 = 64 << 40;

/// How an attachment wants its page cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cache {
    /// Direct I/O where the file system allows it; memory files as they are.
    Auto,
    /// Direct I/O or nothing.
    None,
    /// Through the page cache.
    Writeback,
}

/// How a disk is driven.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IoMode {
    /// A file in memory: calls in line never wait for a device.
    Memory,
    /// Through the page cache: writes in line, reads in line when cached.
    Cached,
    /// Past the page cache: everything through the engine.
    Direct,
    /// Kept by QEMU, which mirrors it here: nothing is stored.
    Mirror,
}

impl IoMode {
    /// Its word in `status`.
    pub fn name(self) -> &'static str {
        match self {
            IoMode::Memory => "memory",
            IoMode::Cached => "cached",
            IoMode::Direct => "direct",
            IoMode::Mirror => "mirror",
        }
    }
}

/// An open, locked disk.
#[derive(Clone, Debug)]
pub struct DiskFile {
    /// The only descriptor: it holds the locks and does the I/O.
    pub file: Arc<File>,
    /// How it is driven.
    pub mode: IoMode,
    /// The smallest request that it takes, bytes.
    pub block_bytes: u32,
    /// A device rather than a file.
    pub is_device: bool,
}

/// Why a disk was not opened.
#[derive(Debug)]
pub enum OpenError {
    /// Somebody else has it: worth trying again for a while.
    Busy(TapError),
    /// Something must be changed first.
    Bad(TapError),
}

fn bad(code: &'static str, message: String, hint: &'static str) -> OpenError {
    OpenError::Bad(TapError::new(code, message, hint))
}

/// Opens and locks a disk. `is_new`: it was never attached, so an image format is refused.
pub fn open(path: &Path, cache: Cache, is_new: bool) -> Result<DiskFile, OpenError> {
    let kind = check_kind(path)?;
    let (file, is_direct) = open_file(path, cache, kind)?;
    let disk = describe(file, is_direct, kind == Kind::Device)
        .map_err(|e| OpenError::Bad(TapError::system(&path.display().to_string(), &e)))?;
    let disk = match (disk.block_bytes as u64 > SECTOR, cache, kind) {
        // A file can be driven in its guests' units through the page cache instead.
        (true, Cache::Auto, Kind::File) => {
            let (file, _) = open_file(path, Cache::Writeback, kind)?;
            describe(file, false, false)
                .map_err(|e| OpenError::Bad(TapError::system(&path.display().to_string(), &e)))?
        }
        _ => disk,
    };
    if is_new && kind == Kind::File {
        check_format(path, &disk)?;
    }
    check_size(path, &disk)?;
    take_locks(path, &disk.file)?;
    Ok(disk)
}

/// What stands for the file of a disk that QEMU keeps.
pub fn open_mirror() -> Result<DiskFile, TapError> {
    let file = OpenOptions::new().read(true).write(true).open("/dev/null");
    let file = file.map_err(|e| TapError::system("/dev/null", &e))?;
    let (file, mode) = (Arc::new(file), IoMode::Mirror);
    Ok(DiskFile { file, mode, block_bytes: SECTOR as u32, is_device: false })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    File,
    Device,
}

fn check_kind(path: &Path) -> Result<Kind, OpenError> {
    let shown = path.display();
    if !path.is_absolute() {
        return Err(OpenError::Bad(TapError::bad_request(format!("{shown} is not absolute"))));
    }
    let kind = std::fs::metadata(path).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => bad(
            "disk_not_found",
            format!("{shown} does not exist"),
            "Give the path of the VM's raw disk file or block device.",
        ),
        io::ErrorKind::PermissionDenied => bad(
            "disk_forbidden",
            format!("{shown} may not be looked at"),
            "Let the tap's user read and write the disk, and enter its folders.",
        ),
        _ => OpenError::Bad(TapError::system(&shown.to_string(), &e)),
    })?;
    let kind = kind.file_type();
    if kind.is_file() {
        return Ok(Kind::File);
    }
    if kind.is_block_device() {
        return Ok(Kind::Device);
    }
    Err(bad(
        "disk_unsupported",
        format!("{shown} is neither a file nor a block device"),
        "Give the path of the VM's raw disk file or block device.",
    ))
}

fn open_file(path: &Path, cache: Cache, kind: Kind) -> Result<(File, bool), OpenError> {
    let try_open = |flags: i32| {
        OpenOptions::new().read(true).write(true).custom_flags(flags | libc::O_CLOEXEC).open(path)
    };
    let file = try_open(0).map_err(|e| open_failed(path, &e))?;
    let is_memory = kind == Kind::File && files::is_in_memory(&file).unwrap_or(false);
    match cache {
        Cache::Writeback => Ok((file, false)),
        Cache::Auto if is_memory => Ok((file, false)),
        Cache::Auto | Cache::None => match try_open(libc::O_DIRECT) {
            Ok(direct) => Ok((direct, true)),
            Err(_) if cache == Cache::Auto => Ok((file, false)),
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Err(bad(
                "direct_unsupported",
                format!("{} cannot be driven past the page cache", path.display()),
                "Attach it with cache \"auto\" or \"writeback\".",
            )),
            Err(e) => Err(open_failed(path, &e)),
        },
    }
}

fn open_failed(path: &Path, e: &io::Error) -> OpenError {
    let shown = path.display();
    match e.raw_os_error() {
        Some(libc::EROFS) => bad(
            "disk_read_only",
            format!("{shown} can only be read"),
            "Make the disk and its file system writable.",
        ),
        Some(libc::EACCES | libc::EPERM) => bad(
            "disk_forbidden",
            format!("{shown} may not be read and written"),
            "Let the tap's user read and write the disk.",
        ),
        Some(libc::EBUSY) => OpenError::Busy(in_use(path, "the kernel says it is busy")),
        _ => OpenError::Bad(TapError::system(&shown.to_string(), e)),
    }
}

fn describe(file: File, is_direct: bool, is_device: bool) -> io::Result<DiskFile> {
    let is_memory = !is_device && files::is_in_memory(&file)?;
    let mode = match (is_direct, is_memory) {
        (true, _) => IoMode::Direct,
        (false, true) => IoMode::Memory,
        (false, false) => IoMode::Cached,
    };
    let mut block_bytes = SECTOR as u32;
    if is_direct {
        let told = files::direct_unit(&file);
        let sector = || if is_device { files::sector_size(&file).ok() } else { None };
        block_bytes = told.or_else(sector).unwrap_or(block_bytes).max(block_bytes);
    }
    Ok(DiskFile { file: Arc::new(file), mode, block_bytes, is_device })
}

/// The size of now, bytes.
pub fn size_of(file: &File) -> io::Result<u64> {
    let mut file = file;
    file.seek(SeekFrom::End(0))
}

fn check_size(path: &Path, disk: &DiskFile) -> Result<(), OpenError> {
    let shown = path.display();
    let size = size_of(&disk.file)
        .map_err(|e| OpenError::Bad(TapError::system(&shown.to_string(), &e)))?;
    if size == 0 {
        return Err(bad(
            "disk_empty",
            format!("{shown} has no bytes"),
            "Give the disk its size first, for example with `truncate`.",
        ));
    }
    if size % u64::from(disk.block_bytes) != 0 {
        return Err(bad(
            "disk_odd_size",
            format!("{shown} has {size} bytes, not a multiple of {}", disk.block_bytes),
            "Extend the file to a whole number of sectors.",
        ));
    }
    if size > DISK_BYTES_MAX {
        return Err(bad(
            "disk_too_large",
            format!("{shown} has {size} bytes"),
            "Disks may have up to 64 TiB.",
        ));
    }
    Ok(())
}

fn check_format(path: &Path, disk: &DiskFile) -> Result<(), OpenError> {
    let mut buffer = AlignedBuf::new(4096);
    let length = disk
        .file
        .read_at(&mut buffer, 0)
        .map_err(|e| OpenError::Bad(TapError::system(&path.display().to_string(), &e)))?;
    let Some(format) = image_format(&buffer[..length]) else { return Ok(()) };
    Err(bad(
        "image_format",
        format!("{} is a {format} image, not a raw disk", path.display()),
        "Convert it (`qemu-img convert -O raw`); images are protected by a mirror in a later release.",
    ))
}

/// The name of the image format that these first bytes belong to.
pub fn image_format(start: &[u8]) -> Option<&'static str> {
    const MAGICS: [(&str, usize, &[u8]); 7] = [
        ("qcow2", 0, b"QFI\xfb"),
        ("qed", 0, b"QED\0"),
        ("vmdk", 0, b"KDMV"),
        ("vmdk", 0, b"# Disk DescriptorFile"),
        ("vhdx", 0, b"vhdxfile"),
        ("vpc", 0, b"conectix"),
        ("vdi", 64, b"\x7f\x10\xda\xbe"),
    ];
    MAGICS
        .iter()
        .find(|(_, at, magic)| start.get(*at..at + magic.len()) == Some(magic))
        .map(|(name, _, _)| *name)
}

fn in_use(path: &Path, who: &str) -> TapError {
    TapError::passing(
        "disk_in_use",
        format!("{} is in use: {who}", path.display()),
        "Stop what writes to it (a VM, qemu-nbd, another tap), then attach again.",
    )
}

/// The byte locks of QEMU: 100 + a permission that is used, 200 + one that is not shared.
const USED: u64 = 100;
const NOT_SHARED: u64 = 200;
const READ: u64 = 0;
const WRITE: u64 = 1;
const RESIZE: u64 = 3;

fn take_locks(path: &Path, file: &File) -> Result<(), OpenError> {
    let failed = |e: io::Error, who: &str| match e.raw_os_error() {
        Some(libc::EWOULDBLOCK | libc::EACCES) => OpenError::Busy(in_use(path, who)),
        _ => OpenError::Bad(TapError::system(&format!("{}: lock", path.display()), &e)),
    };
    files::lock_file(file).map_err(|e| failed(e, "another process holds its lock"))?;
    let held = [USED + READ, USED + WRITE, USED + RESIZE, NOT_SHARED + WRITE, NOT_SHARED + RESIZE];
    for byte in held {
        files::lock_byte(file, byte).map_err(|e| failed(e, "QEMU holds it"))?;
    }
    // Taken first, checked then: of two that do so at once at least one sees the other.
    let foreign =
        [USED + WRITE, USED + RESIZE, NOT_SHARED + READ, NOT_SHARED + WRITE, NOT_SHARED + RESIZE];
    for byte in foreign {
        if files::is_byte_locked(file, byte).map_err(|e| failed(e, "QEMU holds it"))? {
            return Err(OpenError::Busy(in_use(path, "a QEMU process has it open for writing")));
        }
    }
    Ok(())
}

/// Reads exactly `bytes`; what lies behind a file's end is an error.
pub fn read_all(file: &File, bytes: &mut [u8], offset: u64) -> Result<(), i32> {
    files::read_all(file, bytes, offset).map_err(|e| e.raw_os_error().unwrap_or(libc::EIO))
}

/// Writes all of `bytes`.
pub fn write_all(file: &File, bytes: &[u8], offset: u64) -> Result<(), i32> {
    files::write_all(file, bytes, offset).map_err(|e| e.raw_os_error().unwrap_or(libc::EIO))
}

/// Makes a range zeroes; `EOPNOTSUPP` where it cannot be done without writing.
pub fn space(file: &File, space: Space, offset: u64, length: u64) -> Result<(), i32> {
    loop {
        match files::fallocate(file, space, offset, length) {
            Ok(()) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e.raw_os_error().unwrap_or(libc::EIO)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Scratch;

    fn code(result: Result<DiskFile, OpenError>) -> &'static str {
        match result {
            Ok(_) => "ok",
            Err(OpenError::Busy(e) | OpenError::Bad(e)) => e.code,
        }
    }

    #[test]
    fn what_cannot_be_a_disk_is_refused_by_name() {
        let scratch = Scratch::new();
        let path = scratch.path("d");
        assert_eq!(code(open(&path, Cache::Auto, true)), "disk_not_found");
        assert_eq!(code(open(Path::new("d"), Cache::Auto, true)), "bad_request");
        assert_eq!(code(open(Path::new("/dev/null"), Cache::Auto, true)), "disk_unsupported");
        std::fs::write(&path, b"").unwrap();
        assert_eq!(code(open(&path, Cache::Auto, true)), "disk_empty");
        std::fs::write(&path, [0; 513]).unwrap();
        assert_eq!(code(open(&path, Cache::Writeback, true)), "disk_odd_size");
        std::fs::write(&path, [0; 1024]).unwrap();
        assert_eq!(code(open(&path, Cache::Writeback, true)), "ok");
    }

    #[test]
    fn an_image_is_refused_only_when_it_is_new() {
        let scratch = Scratch::new();
        let path = scratch.path("d");
        let mut bytes = vec![0; 65536];
        bytes[..4].copy_from_slice(b"QFI\xfb");
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(code(open(&path, Cache::Auto, true)), "image_format");
        assert_eq!(code(open(&path, Cache::Auto, false)), "ok");
    }

    #[test]
    fn a_disk_has_one_owner() {
        let scratch = Scratch::new();
        let path = scratch.path("d");
        std::fs::write(&path, [0; 4096]).unwrap();
        let first = open(&path, Cache::Auto, true);
        assert!(first.is_ok());
        assert_eq!(code(open(&path, Cache::Auto, true)), "disk_in_use");
        drop(first);
        assert_eq!(code(open(&path, Cache::Auto, true)), "ok");
    }
}
