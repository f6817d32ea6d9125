//! Opens a group: its ring or its presence maps, as an earlier tap left them or new.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::core::{Core, Disk};
use super::left::Left;
use super::marks;
use crate::crash;
use crate::disk::{self, DiskFile, IoMode};
use crate::disk_record::Fingerprint;
use crate::engine::{Choice, Engine};
use crate::error::TapError;
use crate::hot::{Hot, Phase};
use crate::recovered::Recovered;
use crate::ring::{Generation, Ring};
use crate::state::{CleanState, DiskState, GroupState, Role, StateDir};
use crate::stream::{hex, unhex, Cause, Stream};

/// Where a tap keeps things.
#[derive(Clone, Debug)]
pub struct Places {
    /// Sockets.
    pub run: PathBuf,
    /// Rings.
    pub rings: PathBuf,
    /// What must be known again.
    pub state: StateDir,
    /// The engine that was asked for.
    pub engine: Choice,
    /// Whether failpoints may be set.
    pub has_failpoints: bool,
}

impl Places {
    /// The ring of a group.
    pub fn ring(&self, group: &str) -> PathBuf {
        self.rings.join(format!("{group}.ring"))
    }

    /// Marks of a recovered disk, in memory.
    pub fn quick_log(&self, group: &str, disk: &str) -> PathBuf {
        self.rings.join(format!("{group}.{disk}.quick"))
    }

    /// Where guests connect.
    pub fn nbd_socket(&self, group: &str) -> PathBuf {
        self.run.join(format!("{group}.nbd"))
    }

    /// Where the agent connects.
    pub fn stream_socket(&self, group: &str) -> PathBuf {
        self.run.join(format!("{group}.stream"))
    }
}

/// A name that nobody else has.
pub fn random_name() -> io::Result<Generation> {
    let mut name = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut name)?;
    Ok(name)
}

fn now_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

fn failed(what: &str, e: &io::Error) -> TapError {
    TapError::system(what, e)
}

/// A group without disks yet. `state` is made durable as it is from now on.
pub fn open(places: &Places, state: &mut GroupState) -> Result<(Core, Left), TapError> {
    let engine = Engine::new(places.engine).map_err(|e| failed("the I/O engine", &e))?;
    let clean = state.clean.take();
    let (stream, left) = match state.role {
        Role::Recovered => (None, Left::Unknown),
        Role::Protected => {
            let (stream, left) = open_stream(places, state, clean)
                .map_err(|e| failed(&format!("the ring of group {}", state.group), &e))?;
            (Some(stream), left)
        }
    };
    crash::point("group_after_ring_before_state");
    places.state.save(state).map_err(|e| failed("the state directory", &e))?;
    crash::point("group_after_state_before_disks");
    let mut core = Core::new(&state.group, engine, stream);
    if places.has_failpoints {
        let wanted = std::env::var("HOLDFAST_QUIET_MS").ok().and_then(|ms| ms.parse::<u64>().ok());
        core.marks.quiet_ns = wanted.map_or(core.marks.quiet_ns, |ms| ms * 1_000_000);
    }
    Ok((core, left))
}

fn open_stream(
    places: &Places,
    state: &mut GroupState,
    clean: Option<CleanState>,
) -> io::Result<(Stream, Left)> {
    let path = places.ring(&state.group);
    let before = state.generation.as_deref().and_then(unhex::<16>);
    let Some(name) = before else {
        let name = random_name()?;
        let ring = Ring::create(&path, state.ring_bytes, now_ns(), name)?;
        state.generation = Some(hex(&name));
        state.next_number = 0;
        return Ok((Stream::new(ring, Cause::FirstStart), Left::Unknown));
    };
    let found = Ring::open(&path).ok().filter(|(ring, _)| ring.positions().generation == name);
    let lost;
    let mut ring = match (found, clean) {
        (Some((ring, mood)), Some(clean)) if mood.is_clean => {
            let stream = Stream::resume(ring, mood, clean.last_good, clean.last_time);
            return Ok((stream, Left::Clean(clean)));
        }
        (Some((ring, mood)), _) => {
            let left = Left::in_ring(&ring, mood);
            return Ok((Stream::recover(ring, mood), left));
        }
        (None, clean) => {
            lost = clean;
            Ring::create(&path, state.ring_bytes, now_ns(), name)?
        }
    };
    // A new numbering follows one that the journal has: marks are kept until it has.
    let stored = state.stored_generation.as_deref().and_then(unhex::<16>);
    let name = random_name()?;
    ring.restart(name, stored, now_ns());
    state.generation = Some(hex(&name));
    let cause = if lost.is_some() { Cause::RingLost } else { Cause::UncleanStop };
    Ok((Stream::new(ring, cause), Left::Lost(lost)))
}

/// The marks of a disk's hot extents, where they are worth anything.
fn open_marks(core: &Core, disk: &mut Disk, wanted: &DiskState, left: &Left) {
    let Some(stream) = core.stream.as_ref().filter(|_| !wanted.is_mirror) else { return };
    if disk.io.mode == IoMode::Memory {
        return;
    }
    // In the ring's own numbering; in a new one what is marked is to be read in any case.
    let seq = if matches!(left, Left::Lost(_)) { 0 } else { stream.ring.head() };
    let is_believed = left.believes_logs(disk.number) && !stream.ring.is_untrusted(disk.number);
    disk.hot = marks::open(&disk.log_path, disk.size, is_believed, seq);
}

/// Makes an opened disk part of its group, as an earlier tap left it.
pub fn add_disk(
    core: &mut Core,
    places: &Places,
    wanted: &DiskState,
    file: DiskFile,
    left: &Left,
) -> Result<u64, TapError> {
    let shown = wanted.path.display().to_string();
    let size = match wanted.is_mirror {
        true => wanted.size,
        false => disk::size_of(&file.file).map_err(|e| failed(&shown, &e))?,
    };
    let fingerprint = Fingerprint::of(&file).map_err(|e| failed(&shown, &e))?;
    let mut disk = Disk::new(&wanted.name, wanted.number, file, size);
    disk.log_path = places.state.hot_log(&core.name, wanted.number);
    open_marks(core, &mut disk, wanted, left);
    let has_grown = disk.hot.size().is_some_and(|known| known != size);
    let is_edited = !wanted.is_mirror && left.is_edited(wanted.number, &fingerprint);
    let marked = disk.hot.marked().filter(|_| !has_grown);
    if has_grown || is_edited {
        disk.hot.resize(size);
        if let Err(e) = disk.hot.go_whole_now() {
            let _ = marks::remove(&disk.log_path);
            disk.hot = Hot::untrusted(e);
        }
    }
    let is_untrusted = disk.hot.phase == Phase::Untrusted;
    if core.stream.is_none() {
        let quick = places.quick_log(&core.name, &wanted.name);
        let map = Recovered::open(&wanted.path, &quick, wanted.size);
        disk.recovered = Some(map.map_err(|e| failed(&shown, &e))?);
    }
    if !matches!(left, Left::Clean(_)) {
        // What a killed tap wrote may still be lost by a flush that fails.
        disk.unflushed.mark(&(0..size));
    }
    core.clock.tick();
    let now = core.clock.wall_ns;
    core.disks.insert(disk);
    let Some(stream) = &mut core.stream else { return Ok(size) };
    if wanted.is_mirror {
        stream.mirrors.add(wanted.number);
    }
    // Of a mirror that was confirmed all that QEMU was answered is in the ring, and the rest is in
    // QEMU's own map; of any other only an orderly stop says anything.
    let is_kept = matches!(left, Left::Clean(_) | Left::Recording { .. });
    let is_told = !wanted.is_mirror || is_kept;
    let to_read = left.to_read(wanted.number, size, marked).filter(|_| is_told && !has_grown);
    let is_known = to_read.is_some();
    stream.add_disk(wanted.number, &wanted.name, size, is_known, now);
    stream.set_to_read(wanted.number, to_read.into_iter().flatten());
    if wanted.is_mirror && is_known {
        // What QEMU wrote meanwhile it has kept in mind, and brings again.
        stream.fall(Cause::MirrorLost);
    } else if is_edited {
        // Somebody changed it while nobody looked.
        stream.disk_differs(wanted.number, 0..size, Cause::DiskChanged);
        stream.set_cause(Cause::DiskChanged);
    }
    stream.ring.set_untrusted(wanted.number, false);
    if is_untrusted {
        stream.distrust(wanted.number, now);
    }
    Ok(size)
}

/// Makes the file of a recovered disk, or finds it as it was begun. Of a scratch disk nothing is made
/// durable: a guest may be waiting.
pub fn prepare_recovered(path: &Path, size: u64, is_scratch: bool) -> Result<(), TapError> {
    let shown = path.display();
    if !path.is_absolute() {
        return Err(TapError::bad_request(format!("{shown} is not absolute")));
    }
    if size == 0 || size % disk::SECTOR != 0 || size > disk::DISK_BYTES_MAX {
        return Err(TapError::bad_request(format!("a disk cannot have {size} bytes")));
    }
    let begun = Recovered::exists(path, size).map_err(|e| failed(&shown.to_string(), &e))?;
    if begun && path.exists() {
        return Ok(());
    }
    let mut options = OpenOptions::new();
    let made = options.read(true).write(true).create_new(true).mode(0o600).open(path);
    let file = made.map_err(|e| match e.kind() {
        io::ErrorKind::AlreadyExists => TapError::new(
            "file_exists",
            format!("{shown} exists and was not begun as a recovered disk of {size} bytes"),
            "Name a file that does not exist yet.",
        ),
        _ => failed(&shown.to_string(), &e),
    })?;
    let id = random_name().map_err(|e| failed("random bytes", &e))?;
    let begun = match is_scratch {
        true => file.set_len(size).and_then(|()| Recovered::create_scratch(path, size, &id)),
        false => file
            .set_len(size)
            .and_then(|()| file.sync_all())
            .and_then(|()| Recovered::create(path, size, &id)),
    };
    begun.map_err(|e| failed(&shown.to_string(), &e))
}
