//! The verbs of `GROUP.stream`: a request's fields in, an answer out.

use std::fs::File;
use std::os::fd::OwnedFd;

use serde_json::{json, Map, Value};

use super::control::state_of;
use super::core::Core;
use super::delta;
use super::fill::Fill;
use crate::error::TapError;
use crate::failpoint::Wanted;
use crate::record::Op as RecordOp;
use crate::stream::{hex, unhex, Cause, Stream};

/// The fields of a request.
pub type Fields = Map<String, Value>;

/// A whole number that must be there.
pub fn number(fields: &Fields, name: &str) -> Result<u64, TapError> {
    let found = fields.get(name).and_then(Value::as_u64);
    found.ok_or_else(|| TapError::bad_request(format!("{name} must be a whole number")))
}

/// A whole number, or `otherwise` where it is absent or null.
pub fn number_or(fields: &Fields, name: &str, otherwise: u64) -> Result<u64, TapError> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(otherwise),
        Some(_) => number(fields, name),
    }
}

/// A text that must be there.
pub fn text<'a>(fields: &'a Fields, name: &str) -> Result<&'a str, TapError> {
    let found = fields.get(name).and_then(Value::as_str);
    found.ok_or_else(|| TapError::bad_request(format!("{name} must be a text")))
}

fn body(fields: &Fields) -> Result<&Value, TapError> {
    let found = fields.get("body").filter(|body| body.is_object());
    found.ok_or_else(|| TapError::bad_request("body must be an object"))
}

/// A cause by its word.
pub fn cause(fields: &Fields) -> Result<Cause, TapError> {
    let name = text(fields, "cause")?;
    Cause::of(name).ok_or_else(|| TapError::bad_request(format!("{name:?} is no cause")))
}

/// The stream of protected disks.
pub fn stream(core: &mut Core) -> Result<&mut Stream, TapError> {
    core.stream.as_mut().ok_or_else(|| TapError::bad_request("recovered disks have no stream"))
}

/// Verbs that are answered at once and concern nothing but the core.
pub fn simple(core: &mut Core, verb: &str, fields: &Fields) -> Result<Value, TapError> {
    match verb {
        "state" => stream(core).map(|_| ()).map(|()| state_of(core)),
        "free" => free(core, fields),
        "mark" => say(core, RecordOp::Mark, fields, true),
        "record" => record(core, fields),
        "release" => release(core, fields),
        "fill" => fill(core, fields),
        "served" => core.served(number(fields, "ticket")?).map(|()| json!({})),
        "refuse" => core.refuse(number(fields, "ticket")?).map(|()| json!({})),
        "missing" => missing(core, fields),
        "to_read" => delta::to_read(core, fields),
        "same" => delta::same(core, fields),
        _ => Err(TapError::bad_request(format!("{verb:?} is no verb of a group"))),
    }
}

fn free(core: &mut Core, fields: &Fields) -> Result<Value, TapError> {
    let (seq, anchor) = (number(fields, "seq")?, number_or(fields, "anchor", 0)?);
    let hash = match fields.get("anchor_hash") {
        None | Some(Value::Null) if anchor == 0 => Some([0; 32]),
        _ => unhex::<32>(text(fields, "anchor_hash")?),
    };
    let hash =
        hash.ok_or_else(|| TapError::bad_request("anchor_hash must be 64 hexadecimal digits"))?;
    let stored = number_or(fields, "stored", seq)?;
    let result = stream(core)?.ring.free(seq, stored, anchor, hash);
    result.map(|()| json!({})).map_err(TapError::bad_request)
}

fn say(core: &mut Core, op: RecordOp, fields: &Fields, is_timed: bool) -> Result<Value, TapError> {
    core.clock.tick();
    let now = core.clock.wall_ns;
    let (seq, time) = stream(core)?.say(op, body(fields)?, now)?;
    Ok(if is_timed { json!({ "seq": seq, "time": time }) } else { json!({ "seq": seq }) })
}

fn record(core: &mut Core, fields: &Fields) -> Result<Value, TapError> {
    let op = match text(fields, "op")? {
        "config" => RecordOp::Config,
        "commit" => RecordOp::Commit,
        "handover" => RecordOp::Handover,
        other => return Err(TapError::bad_request(format!("{other:?} cannot be recorded"))),
    };
    say(core, op, fields, false)
}

/// Begins a hold of at most `limit_ms`.
pub fn hold(core: &mut Core, fields: &Fields, limit_ms: u64) -> Result<Value, TapError> {
    core.clock.tick();
    let wanted = number(fields, "timeout_ms")?;
    if wanted == 0 {
        return Err(TapError::bad_request("timeout_ms must be at least 1"));
    }
    let placed = core.hold(text(fields, "checkpoint")?, wanted.min(limit_ms), body(fields)?)?;
    Ok(json!({ "seq": placed.0, "time": placed.1 }))
}

fn release(core: &mut Core, fields: &Fields) -> Result<Value, TapError> {
    let ended = core.release(text(fields, "checkpoint")?)?;
    Ok(json!({ "by_timer": ended.by_timer, "held_us": ended.held_us }))
}

/// The slot of a disk by its name.
pub fn slot(core: &Core, fields: &Fields) -> Result<usize, TapError> {
    let name = text(fields, "disk")?;
    let found = core.disks.iter().find(|(_, disk)| disk.name == name).map(|(slot, _)| slot);
    found.ok_or_else(|| {
        let message = format!("group {} has no disk {name:?}", core.name);
        TapError::new("no_such_disk", message, "`status` lists the disks of each group.")
    })
}

/// The generation that a new one follows, where a request names it.
pub fn predecessor(fields: &Fields) -> Result<Option<[u8; 16]>, TapError> {
    match fields.get("predecessor") {
        None | Some(Value::Null) => Ok(None),
        Some(_) => unhex::<16>(text(fields, "predecessor")?)
            .map(Some)
            .ok_or_else(|| TapError::bad_request("predecessor must be 32 hexadecimal digits")),
    }
}

/// Begins a new numbering named `name`. The caller made the name durable before. It follows
/// `predecessor`, else the generation that ends.
pub fn restart(
    core: &mut Core,
    cause: Cause,
    name: [u8; 16],
    predecessor: Option<[u8; 16]>,
) -> Result<Value, TapError> {
    core.clock.tick();
    let now = core.clock.wall_ns;
    core.end_hold(false);
    stream(core)?.restart(name, predecessor, cause, now);
    Ok(json!({ "generation": hex(&name) }))
}

/// Sets a failpoint.
pub fn failpoint(core: &mut Core, fields: &Fields) -> Result<Value, TapError> {
    let at = slot(core, fields)?;
    let wanted = Wanted {
        op: text(fields, "op")?,
        error: fields.get("error").and_then(Value::as_str),
        after: number_or(fields, "after", 0)?,
        count: number_or(fields, "count", 0)?,
        delay_ms: number_or(fields, "delay_ms", 0)?,
        short: number_or(fields, "short", 0)?,
    };
    if let Some(disk) = core.disks.get_mut(at) {
        disk.failpoints.set(&wanted)?;
    }
    Ok(json!({}))
}

/// Takes a provider and its window.
pub fn provide(
    core: &mut Core,
    fields: &Fields,
    window: Option<OwnedFd>,
) -> Result<Value, TapError> {
    if core.stream.is_some() {
        return Err(TapError::bad_request("protected disks are not filled"));
    }
    let window =
        window.ok_or_else(|| TapError::bad_request("the window's descriptor is missing"))?;
    core.set_provider(File::from(window), number(fields, "window_bytes")?);
    Ok(json!({}))
}

fn fill(core: &mut Core, fields: &Fields) -> Result<Value, TapError> {
    let at = slot(core, fields)?;
    let place = match fields.get("at") {
        None | Some(Value::Null) => None,
        Some(_) => Some(number(fields, "at")?),
    };
    let fill =
        Fill { offset: number(fields, "offset")?, length: number(fields, "length")?, at: place };
    if core.stream.is_some() {
        return Err(TapError::bad_request("protected disks are not filled"));
    }
    core.fill(at, fill).map(|written| json!({ "written": written }))
}

fn missing(core: &mut Core, fields: &Fields) -> Result<Value, TapError> {
    let (at, from) = (slot(core, fields)?, number_or(fields, "from", 0)?);
    let disk = core.disks.get(at);
    let gap = disk.and_then(|disk| {
        let map = disk.recovered.as_ref()?;
        map.present.gaps(&(from.min(disk.size)..disk.size)).into_iter().next()
    });
    Ok(match gap {
        Some(gap) => json!({ "offset": gap.start, "length": gap.end - gap.start }),
        None => json!({ "offset": from, "length": 0 }),
    })
}
