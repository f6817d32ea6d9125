//! What can be asked of a group on `GROUP.stream`.

use std::fs::File;
use std::path::PathBuf;

use serde_json::{json, Value};

use crate::args;
use crate::error::TapError;
use crate::failpoint::Wanted;
use crate::messages::Asked;
use crate::record::Op as RecordOp;
use crate::stream::{hex, unhex, Cause};

use super::control;
use super::core::Core;
use super::fill::Fill;

/// The longest wait for records, ms.
const WAIT_MS_MAX: u64 = 60_000;
/// The window of a provider, bytes.
const WINDOW_BYTES_MAX: u64 = 4 << 30;

/// What a group was told when it began.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The longest hold, ms.
    pub hold_ms_max: u64,
    /// Failpoints may be set.
    pub failpoints: bool,
    /// Where the generation is kept.
    pub generation_path: PathBuf,
}

/// What becomes of a request.
pub enum Outcome {
    /// This answer.
    Answer(Value),
    /// This answer and the ring; the client is the opener now.
    Opened(Value, File),
    /// The client is the provider now.
    Provides,
    /// An answer when there is something to tell.
    Wait {
        /// It has all up to this.
        after: u64,
        /// It wants at least so many more.
        records: u64,
        /// But not later than this, ns of the tap's clock.
        until_ns: u64,
    },
    /// An answer when the sync that began has something to tell.
    Sync,
    /// An answer when the generation is durable.
    Saving,
}

/// Serves one request.
pub fn handle(
    core: &mut Core,
    settings: &Settings,
    asked: Asked,
    is_opener: bool,
    is_provider: bool,
) -> Result<Outcome, TapError> {
    let body = &asked.body;
    if core.stream.is_none() {
        return handle_recovered(core, settings, asked, is_provider);
    }
    let answer = match asked.verb.as_str() {
        "open" => return open(core),
        "wait" => return wait(core, body),
        "free" => free(core, body, is_opener)?,
        "sync" => return sync(core, body, is_opener),
        "mark" => {
            let body = args::object(body, "body")?;
            say(core, RecordOp::Mark, body)?
        }
        "record" => {
            let op = match args::text(body, "op")? {
                "config" => RecordOp::Config,
                "commit" => RecordOp::Commit,
                "handover" => RecordOp::Handover,
                other => {
                    let message = format!("{other:?} is no record that an agent may write");
                    return Err(TapError::bad_request(message));
                }
            };
            say(core, op, args::object(body, "body")?)?
        }
        "hold" => hold(core, settings, body)?,
        "release" => release(core, body)?,
        "new_generation" => return new_generation(core, settings, body, is_opener),
        "state" => control::state(core),
        "failpoint" => failpoint(core, settings, body)?,
        other => return Err(unknown(other)),
    };
    Ok(Outcome::Answer(answer))
}

fn unknown(verb: &str) -> TapError {
    TapError::bad_request(format!("this group does not know the verb {verb:?}"))
}

fn not_opener() -> TapError {
    TapError::new(
        "not_open",
        "another connection has this stream's ring, or none has",
        "Open the stream on this connection first.",
    )
}

fn no_stream() -> TapError {
    TapError::bad_request("a group of recovered disks has no stream")
}

fn open(core: &mut Core) -> Result<Outcome, TapError> {
    let stream = core.stream.as_mut().ok_or_else(no_stream)?;
    let reader = stream.ring.reader().map_err(|e| TapError::system("open the ring", &e))?;
    let at = stream.ring.positions();
    let predecessor = (at.predecessor != [0; 16]).then(|| hex(&at.predecessor));
    let answer = json!({
        "generation": hex(&at.generation),
        "predecessor": predecessor,
        "head": at.head,
        "freed": at.freed,
        "payload_head": at.payload_head,
        "payload_freed": at.payload_freed,
        "anchor": at.anchor,
        "anchor_hash": hex(&at.anchor_hash),
        "state": stream.state().name(),
        "cause": stream.cause().name(),
        "disks": stream.disks(),
    });
    // A sync of the opener before is nobody's any more.
    core.sync.cancel();
    Ok(Outcome::Opened(answer, reader))
}

fn wait(core: &Core, body: &Value) -> Result<Outcome, TapError> {
    let after = args::number(body, "after")?;
    let ms = args::number(body, "ms")?.min(WAIT_MS_MAX);
    let records = args::number_or(body, "records", 1)?.max(1);
    let until_ns = core.clock.elapsed_ns() + ms * 1_000_000;
    Ok(Outcome::Wait { after, records, until_ns })
}

fn free(core: &mut Core, body: &Value, is_opener: bool) -> Result<Value, TapError> {
    if !is_opener {
        return Err(not_opener());
    }
    let (seq, anchor) = (args::number(body, "seq")?, args::number(body, "anchor")?);
    let hash = unhex::<32>(args::text(body, "anchor_hash")?);
    let hash = hash.ok_or_else(|| TapError::bad_request("\"anchor_hash\" has 64 hex digits"))?;
    let stream = core.stream.as_mut().ok_or_else(no_stream)?;
    let freed = stream.ring.free(seq, anchor, hash);
    freed.map_err(|e| TapError::new("bad_position", e, "Open the stream again and compare."))?;
    Ok(json!({}))
}

fn sync(core: &mut Core, body: &Value, is_opener: bool) -> Result<Outcome, TapError> {
    if !is_opener {
        return Err(not_opener());
    }
    let bytes = args::number(body, "bytes")?;
    let cause = cause_of(body)?;
    if core.sync.is_wanted() {
        return Err(TapError::passing(
            "sync_running",
            "the sync before is not answered yet",
            "Wait for its answer.",
        ));
    }
    core.begin_sync(bytes, cause);
    Ok(Outcome::Sync)
}

fn cause_of(body: &Value) -> Result<Option<Cause>, TapError> {
    let Some(name) = args::text_maybe(body, "cause")? else { return Ok(None) };
    match Cause::of(name) {
        Some(cause) => Ok(Some(cause)),
        None => Err(TapError::bad_request(format!("{name:?} is no cause of a sync"))),
    }
}

fn say(core: &mut Core, op: RecordOp, body: &Value) -> Result<Value, TapError> {
    let now = core.clock.wall_ns;
    let stream = core.stream.as_mut().ok_or_else(no_stream)?;
    let (seq, time) = stream.say(op, body, now)?;
    Ok(json!({ "seq": seq, "time": time }))
}

fn hold(core: &mut Core, settings: &Settings, body: &Value) -> Result<Value, TapError> {
    let checkpoint = args::text(body, "checkpoint")?;
    if unhex::<16>(checkpoint).is_none() {
        return Err(TapError::bad_request("\"checkpoint\" has 32 hex digits"));
    }
    let limit_ms = args::number(body, "timeout_ms")?.clamp(1, settings.hold_ms_max);
    let marker = args::object(body, "body")?;
    let (seq, time) = core.hold(checkpoint, limit_ms, marker)?;
    Ok(json!({ "seq": seq, "time": time, "timeout_ms": limit_ms }))
}

fn release(core: &mut Core, body: &Value) -> Result<Value, TapError> {
    let ended = core.release(args::text(body, "checkpoint")?)?;
    let state = core.stream.as_ref().map_or("", |stream| stream.state().name());
    Ok(json!({ "by_timer": ended.by_timer, "held_us": ended.held_us, "state": state }))
}

fn new_generation(
    core: &mut Core,
    settings: &Settings,
    body: &Value,
    is_opener: bool,
) -> Result<Outcome, TapError> {
    if !is_opener {
        return Err(not_opener());
    }
    let cause = cause_of(body)?.unwrap_or(Cause::Forced);
    let name = crate::state::random_name().map_err(|e| TapError::system("random numbers", &e))?;
    let now = core.clock.wall_ns;
    core.sync.cancel();
    let stream = core.stream.as_mut().ok_or_else(no_stream)?;
    stream.restart(name, cause, now);
    core.to_save = Some((settings.generation_path.clone(), name));
    Ok(Outcome::Saving)
}

fn failpoint(core: &mut Core, settings: &Settings, body: &Value) -> Result<Value, TapError> {
    if !settings.failpoints {
        return Err(TapError::new(
            "no_failpoints",
            "this tap was started without failpoints",
            "Start it with --failpoints, for tests only.",
        ));
    }
    let name = args::text(body, "disk")?;
    let wanted = Wanted {
        op: args::text(body, "op")?,
        error: args::text_maybe(body, "error")?,
        after: args::number_or(body, "after", 0)?,
        count: args::number_or(body, "count", 0)?,
        delay_ms: args::number_or(body, "delay_ms", 0)?,
        short: args::number_or(body, "short", 0)?,
    };
    let slot = slot_of(core, name)?;
    if let Some(disk) = core.disks.get_mut(slot) {
        disk.failpoints.set(&wanted)?;
    }
    Ok(json!({}))
}

fn slot_of(core: &Core, name: &str) -> Result<usize, TapError> {
    let found = core.disks.iter().find(|(_, disk)| disk.name == name).map(|(slot, _)| slot);
    found.ok_or_else(|| {
        TapError::new(
            "no_such_disk",
            format!("this group has no disk {name:?}"),
            "`status` lists the disks.",
        )
    })
}

fn handle_recovered(
    core: &mut Core,
    settings: &Settings,
    asked: Asked,
    is_provider: bool,
) -> Result<Outcome, TapError> {
    let body = &asked.body;
    let answer = match asked.verb.as_str() {
        "provide" => {
            let bytes = args::number(body, "window_bytes")?;
            let window = asked.descriptor.map(File::from);
            let window = window.ok_or_else(|| TapError::bad_request("the window is missing"))?;
            let length = window.metadata().map(|meta| meta.len());
            let length = length.map_err(|e| TapError::system("the window", &e))?;
            if bytes > length || bytes > WINDOW_BYTES_MAX {
                let message = "the window is shorter than that, or longer than 4 GiB";
                return Err(TapError::bad_request(message));
            }
            core.set_provider(window, bytes);
            return Ok(Outcome::Provides);
        }
        "fill" | "served" | "refuse" if !is_provider => return Err(not_provider()),
        "fill" => {
            let slot = slot_of(core, args::text(body, "disk")?)?;
            let at = match body.get("at") {
                None | Some(Value::Null) => None,
                Some(_) => Some(args::number(body, "at")?),
            };
            let (offset, length) = (args::number(body, "offset")?, args::number(body, "length")?);
            json!({ "written": core.fill(slot, Fill { offset, length, at })? })
        }
        "served" => {
            core.served(args::number(body, "ticket")?)?;
            json!({})
        }
        "refuse" => {
            core.refuse(args::number(body, "ticket")?)?;
            json!({})
        }
        "missing" => missing(core, body)?,
        "failpoint" => failpoint(core, settings, body)?,
        other => return Err(unknown(other)),
    };
    Ok(Outcome::Answer(answer))
}

fn not_provider() -> TapError {
    TapError::new(
        "not_providing",
        "another connection provides this group, or none does",
        "Send `provide` on this connection first.",
    )
}

fn missing(core: &Core, body: &Value) -> Result<Value, TapError> {
    let slot = slot_of(core, args::text(body, "disk")?)?;
    let from = args::number(body, "from")?;
    let gap = core.disks.get(slot).and_then(|disk| {
        let map = disk.recovered.as_ref()?;
        map.present.next_gap(from, disk.size)
    });
    let gap = gap.unwrap_or(0..0);
    Ok(json!({ "offset": gap.start, "length": gap.end - gap.start }))
}
