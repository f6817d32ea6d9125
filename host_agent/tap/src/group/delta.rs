//! What the agent needs to compare a disk with the journal instead of sending it: which ranges are
//! to be read, a look at the disk itself, and a way to say what is the same on both sides.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use serde_json::{json, Value};

use super::core::Core;
use super::verbs::{number, number_or, slot, stream, text, Fields};
use crate::disk::IoMode;
use crate::error::TapError;
use crate::stream::{hex, State};

/// Ranges in one answer of `to_read`; it must fit one message.
const RANGES_ANSWERED: usize = 1000;
/// Ranges in one request of `same`.
const RANGES_MAX: usize = 4096;

/// The place before which a `sync` reads: `before: [DISK NUMBER, OFFSET]`.
pub fn frontier(fields: &Fields) -> Result<Option<(u16, u64)>, TapError> {
    let bad = || TapError::bad_request("before must be [DISK NUMBER, OFFSET]");
    match fields.get("before") {
        None | Some(Value::Null) => Ok(None),
        Some(found) => {
            let (disk, at) = pair(found).ok_or_else(bad)?;
            Ok(Some((u16::try_from(disk).map_err(|_| bad())?, at)))
        }
    }
}

/// The number of the disk that a forced `sync` names: `disk`.
pub fn only(core: &Core, fields: &Fields) -> Result<Option<u16>, TapError> {
    match fields.get("disk") {
        None | Some(Value::Null) => Ok(None),
        Some(_) => slot(core, fields).map(|at| core.disks.get(at).map(|disk| disk.number)),
    }
}

fn pair(value: &Value) -> Option<(u64, u64)> {
    match value.as_array()?.as_slice() {
        [one, other] => Some((one.as_u64()?, other.as_u64()?)),
        _ => None,
    }
}

/// Which ranges of a disk are to be read, from a byte on. `next`: where to ask on; null: no more.
pub fn to_read(core: &mut Core, fields: &Fields) -> Result<Value, TapError> {
    let (at, from) = (slot(core, fields)?, number_or(fields, "from", 0)?);
    let disk = core.disks.get(at).map_or(0, |disk| disk.number);
    let stream = stream(core)?;
    let ranges = stream.to_read_from(disk, from, RANGES_ANSWERED);
    let next = ranges.last().filter(|_| ranges.len() == RANGES_ANSWERED).map(|range| range.end);
    let told: Vec<Value> =
        ranges.iter().map(|range| json!([range.start, range.end - range.start])).collect();
    Ok(json!({
        "begin": stream.begin_seq(),
        "state": stream.state().name(),
        "ranges": told,
        "next": next,
    }))
}

/// The journal has these ranges as the disk has them: they need not be read. Only for the interval
/// that the request names, and while it lasts: an older comparison says nothing of later writes.
pub fn same(core: &mut Core, fields: &Fields) -> Result<Value, TapError> {
    let at = slot(core, fields)?;
    let disk = core.disks.get(at).map_or(0, |disk| disk.number);
    let (begin, generation) = (number(fields, "begin")?, text(fields, "generation")?.to_owned());
    let ranges = ranges(fields)?;
    let serial = core.serial;
    let stream = stream(core)?;
    let is_current = stream.state() == State::Syncing
        && stream.begin_seq() == begin
        && hex(&stream.ring.positions().generation) == generation;
    if !is_current {
        return Err(TapError::passing(
            "stale_interval",
            format!("the sync interval that began at {begin} is over"),
            "Compare again in the interval that runs now.",
        ));
    }
    let mut dropped = 0;
    for (start, length) in ranges {
        dropped += stream.drop_to_read(disk, &(start..start.saturating_add(length)));
    }
    let remaining = stream.remaining();
    core.sync.note_look(serial);
    Ok(json!({ "dropped": dropped, "remaining": remaining }))
}

fn ranges(fields: &Fields) -> Result<Vec<(u64, u64)>, TapError> {
    let bad = || TapError::bad_request("ranges must be a list of [OFFSET, LENGTH]");
    let found = fields.get("ranges").and_then(Value::as_array).ok_or_else(bad)?;
    if found.len() > RANGES_MAX {
        return Err(TapError::bad_request(format!("at most {RANGES_MAX} ranges at once")));
    }
    found.iter().map(|range| pair(range).ok_or_else(bad)).collect()
}

/// A descriptor of a disk that can only read, driven as the tap drives the disk.
pub fn look(core: &Core, fields: &Fields) -> Result<(Value, Option<OwnedFd>), TapError> {
    let at = slot(core, fields)?;
    let Some(disk) =
        core.disks.get(at).filter(|disk| core.stream.is_some() && disk.io.mode != IoMode::Mirror)
    else {
        return Err(TapError::bad_request("only protected disks are looked at"));
    };
    let mut options = OpenOptions::new();
    options.read(true);
    let is_direct = disk.io.mode == IoMode::Direct;
    if is_direct {
        options.custom_flags(libc::O_DIRECT);
    }
    let opened: std::io::Result<File> =
        options.open(format!("/proc/self/fd/{}", disk.io.file.as_raw_fd()));
    let file = opened.map_err(|e| TapError::system(&disk.name, &e))?;
    let answer = json!({
        "number": disk.number,
        "size": disk.size,
        "io": disk.io.mode.name(),
        "is_device": disk.io.is_device,
    });
    Ok((answer, Some(file.into())))
}
