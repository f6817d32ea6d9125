//! What a group is told: by its control clients, and by the tap itself.

use std::os::fd::OwnedFd;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use serde_json::{json, Value};

use super::control::Wait;
use super::core::Core;
use super::delta;
use super::left::Left;
use super::marks;
use super::open::{add_disk, random_name};
use super::run::Group;
use super::verbs::{self, Fields};
use crate::crash;
use crate::disk::DiskFile;
use crate::disk_record::Fingerprint;
use crate::error::TapError;
use crate::hot::Phase;
use crate::nbd::conn::End;
use crate::state::{CleanState, DiskState};
use crate::stream::{hex, Cause};

/// A `wait` is answered within this, ms.
const WAIT_MS_MAX: u64 = 60_000;
/// A `sync` reads at most this at once, bytes.
const SYNC_BYTES_MAX: u64 = 1 << 30;
/// What is in flight has so long to end when a disk leaves or the tap stops.
const SETTLE: Duration = Duration::from_secs(10);
/// Disks of a stream: the formats number no more.
const DISKS_MAX: u16 = 256;

/// Where an answer to the tap's thread goes.
pub type ReplyTo = Sender<Result<Value, TapError>>;

/// An order of the tap's thread.
pub enum Order {
    /// Serve a disk that was opened.
    Attach(Box<DiskState>, DiskFile, ReplyTo),
    /// Serve a disk no longer.
    Detach(String, bool, ReplyTo),
    /// Say how everything is.
    Status(ReplyTo),
    /// End in an orderly way. `true`: the group is given up.
    Stop(bool, ReplyTo),
}

impl Group {
    /// Does what the tap's thread asks for.
    pub fn obey(&mut self, order: Order) {
        let (result, reply) = match order {
            Order::Attach(disk, file, reply) => (self.attach(*disk, file), reply),
            Order::Detach(name, is_forced, reply) => (self.detach(&name, is_forced), reply),
            Order::Status(reply) => (Ok(self.status()), reply),
            Order::Stop(is_over, reply) => (self.stop(is_over), reply),
        };
        // Who asked may have gone; the order was carried out all the same.
        let _ = reply.send(result);
    }

    fn save(&self) -> Result<(), TapError> {
        let saved = self.places.state.save(&self.state);
        saved.map_err(|e| TapError::system("the state directory", &e))
    }

    /// What `attach` answers about a disk.
    pub fn attached(&self, disk: &DiskState, size: u64) -> Value {
        let nbd = self.places.nbd_socket(&self.state.group);
        json!({
            "uri": format!("nbd+unix:///{}?socket={}", disk.name, nbd.display()),
            "nbd_socket": nbd,
            "stream_socket": self.places.stream_socket(&self.state.group),
            "size": size,
            "number": disk.number,
        })
    }

    fn attach(&mut self, mut disk: DiskState, file: DiskFile) -> Result<Value, TapError> {
        let known = self.state.disk(&disk.name).map(|known| known.number);
        disk.number = match known {
            Some(number) => number,
            None if self.state.next_number >= DISKS_MAX => {
                return Err(TapError::new(
                    "too_many_disks",
                    format!("group {} has had {DISKS_MAX} disks", self.state.group),
                    "Begin a new generation (`holdfast-agent resync`), or use another group.",
                ));
            }
            None => self.state.next_number,
        };
        if known.is_none() {
            self.state.next_number += 1;
            self.state.disks.push(disk.clone());
            // One of an earlier disk of this number says nothing of this one.
            marks::remove(&self.places.state.hot_log(&self.state.group, disk.number))
                .map_err(|e| TapError::system("the state directory", &e))?;
            self.save()?;
        }
        let size = add_disk(&mut self.core, &self.places, &disk, file, &Left::Unknown)?;
        Ok(self.attached(&disk, size))
    }

    fn detach(&mut self, name: &str, is_forced: bool) -> Result<Value, TapError> {
        let found = self.core.disks.iter().find(|(_, disk)| disk.name == name);
        let (slot, clients) = match found {
            Some((slot, disk)) => (Some(slot), disk.clients),
            None => (None, 0),
        };
        if self.state.disk(name).is_none() {
            return Err(TapError::new(
                "no_such_disk",
                format!("group {} has no disk {name:?}", self.state.group),
                "`status` lists the disks of each group.",
            ));
        }
        if clients > 0 && !is_forced {
            return Err(TapError::passing(
                "disk_connected",
                format!("{clients} clients use disk {name}"),
                "Stop the VM first, or force it: its I/O fails then.",
            ));
        }
        if let Some(slot) = slot {
            self.remove_disk(slot)?;
        }
        let number = self.state.disk(name).map(|disk| disk.number);
        self.state.disks.retain(|disk| disk.name != name);
        self.save()?;
        if let Some(number) = number {
            // Nobody reads it any more: the next attachment removes it if this does not.
            let _ = marks::remove(&self.places.state.hot_log(&self.state.group, number));
        }
        Ok(json!({}))
    }

    fn remove_disk(&mut self, slot: usize) -> Result<(), TapError> {
        let uses = |client: &super::run::Client| client.conn.disk() == Some(slot);
        let users: Vec<usize> =
            self.conns.iter().filter(|(_, client)| uses(client)).map(|(at, _)| at).collect();
        for user in users {
            self.end_conn(user, End::Gone);
        }
        self.settle(Some(slot))?;
        self.core.clock.tick();
        let now = self.core.clock.wall_ns;
        let Some(disk) = self.core.disks.remove(slot) else { return Ok(()) };
        if let Some(stream) = &mut self.core.stream {
            stream.remove_disk(disk.number, now);
        }
        Ok(())
    }

    /// Waits for what is in flight, on one disk or on all.
    fn settle(&mut self, slot: Option<usize>) -> Result<(), TapError> {
        let until = Instant::now() + SETTLE;
        self.core.end_hold(false);
        let is_idle = |core: &Core| {
            let is_other = |op: &super::ops::Op| slot.is_some_and(|slot| op.disk != slot);
            core.ops.iter().all(|(_, op)| is_other(op)) && core.marks.is_idle()
        };
        while !is_idle(&self.core) {
            if Instant::now() > until {
                return Err(TapError::passing(
                    "disk_busy",
                    "the disk does not finish what it was asked to do",
                    "Look at the disk and its host's log, then try again.",
                ));
            }
            self.core.clock.tick();
            self.core.run_delayed();
            self.core.run_ready();
            self.reap();
            std::thread::sleep(Duration::from_micros(200));
        }
        Ok(())
    }

    fn stop(&mut self, is_over: bool) -> Result<Value, TapError> {
        self.is_ending = true;
        let slots: Vec<usize> = self.conns.iter().map(|(slot, _)| slot).collect();
        for slot in slots {
            self.end_conn(slot, End::Gone);
        }
        let settled = self.settle(None);
        let failed =
            |e: i32| TapError::system("a recovered disk", &std::io::Error::from_raw_os_error(e));
        for (_, disk) in self.core.disks.iter_mut() {
            let file = disk.io.file.clone();
            if let Some(map) = &mut disk.recovered {
                map.settle(&file).map_err(failed)?;
                map.forget_quick();
            }
        }
        for path in [
            self.places.nbd_socket(&self.state.group),
            self.places.stream_socket(&self.state.group),
        ] {
            let _ = std::fs::remove_file(path);
        }
        settled?;
        if is_over {
            let _ = std::fs::remove_file(self.places.ring(&self.state.group));
            self.places
                .state
                .remove(&self.state.group)
                .map_err(|e| TapError::system("the state directory", &e))?;
        } else {
            self.leave_clean()?;
        }
        Ok(json!({}))
    }

    /// The state is durable before the ring says that it may be believed.
    fn leave_clean(&mut self) -> Result<(), TapError> {
        let left = self.core.leave_marks();
        left.map_err(|(disk, e)| TapError::system(&disk, &std::io::Error::from_raw_os_error(e)))?;
        let Some(stream) = &mut self.core.stream else { return self.save() };
        let mut clean = CleanState {
            last_good: stream.last_good(),
            last_time: stream.last_time(),
            to_read: stream
                .members()
                .iter()
                .map(|(number, member)| {
                    let ranges = member.to_read.iter().map(|range| (range.start, range.end));
                    (*number, ranges.collect())
                })
                .collect(),
            disks: Default::default(),
            untrusted: Vec::new(),
        };
        for (_, disk) in self.core.disks.iter() {
            let seen = Fingerprint::of(&disk.io);
            let seen = seen.map_err(|e| TapError::system(&disk.name, &e))?;
            clean.disks.insert(disk.number, seen);
            if disk.hot.phase == Phase::Untrusted {
                clean.untrusted.push(disk.number);
            }
        }
        self.state.clean = Some(clean);
        self.places
            .state
            .save(&self.state)
            .map_err(|e| TapError::system("the state directory", &e))?;
        crash::point("stop_after_state_before_ring");
        stream.leave_clean();
        crash::point("stop_after_ring_before_end");
        Ok(())
    }

    // --- control clients

    /// Serves a request; `false`: the client is gone.
    pub fn request(&mut self, slot: usize, bytes: &[u8], descriptor: Option<OwnedFd>) -> bool {
        let Ok(Value::Object(fields)) = serde_json::from_slice::<Value>(bytes) else {
            self.end_ctl(slot);
            return false;
        };
        let Some(id) = fields.get("id").filter(|id| id.is_u64()).cloned() else {
            let e = TapError::bad_request("\"id\" must be a whole number");
            self.send_ctl(slot, &e.answer(&Value::Null), None);
            return self.ctls.get(slot).is_some();
        };
        let verb = fields.get("do").and_then(Value::as_str).unwrap_or("").to_owned();
        let result = self.answer(slot, &id, &verb, &fields, descriptor);
        match result {
            Ok(None) => {}
            Ok(Some((mut answer, pass))) => {
                answer["id"] = id;
                answer["ok"] = json!(true);
                self.send_ctl(slot, &answer, pass);
            }
            Err(e) => self.send_ctl(slot, &e.answer(&id), None),
        }
        self.ctls.get(slot).is_some()
    }

    fn answer(
        &mut self,
        slot: usize,
        id: &Value,
        verb: &str,
        fields: &Fields,
        descriptor: Option<OwnedFd>,
    ) -> Result<Option<(Value, Option<OwnedFd>)>, TapError> {
        let is_opener = self.ctls.get(slot).is_some_and(|ctl| ctl.is_opener);
        let is_for_opener =
            matches!(verb, "free" | "sync" | "new_generation" | "same" | "to_read" | "look");
        if is_for_opener && !is_opener {
            return Err(TapError::new(
                "not_open",
                "another connection has this stream's ring, or none has",
                "Open the stream on this connection first.",
            ));
        }
        let answer = match verb {
            "open" => return self.open_ring(slot).map(Some),
            "look" => return delta::look(&self.core, fields).map(Some),
            "wait" => return self.wait(slot, id, fields).map(|()| None),
            "sync" => return self.begin_sync(slot, id, fields).map(|()| None),
            "hold" => verbs::hold(&mut self.core, fields, self.state.hold_ms_max)?,
            "new_generation" => self.new_generation(fields)?,
            "free" => self.free(fields)?,
            "mirror" => self.mirror(slot, fields)?,
            "failpoint" if self.places.has_failpoints => verbs::failpoint(&mut self.core, fields)?,
            "failpoint" => {
                return Err(TapError::new(
                    "no_failpoints",
                    "this tap was not started for failpoints",
                    "Start it with --failpoints, for tests only.",
                ))
            }
            "provide" => {
                let answer = verbs::provide(&mut self.core, fields, descriptor)?;
                for (_, ctl) in self.ctls.iter_mut() {
                    ctl.is_provider = false;
                }
                if let Some(ctl) = self.ctls.get_mut(slot) {
                    ctl.is_provider = true;
                }
                answer
            }
            _ => verbs::simple(&mut self.core, verb, fields)?,
        };
        Ok(Some((answer, None)))
    }

    fn open_ring(&mut self, slot: usize) -> Result<(Value, Option<OwnedFd>), TapError> {
        let Some(stream) = &self.core.stream else {
            return Err(TapError::bad_request("recovered disks have no ring"));
        };
        let at = stream.ring.positions();
        let is_first = at.predecessor == [0; 16];
        let answer = json!({
            "generation": hex(&at.generation),
            "predecessor": (!is_first).then(|| hex(&at.predecessor)),
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
        let reader = stream.ring.reader().map_err(|e| TapError::system("the ring", &e))?;
        let others: Vec<usize> = self
            .ctls
            .iter()
            .filter(|(at, ctl)| ctl.is_opener && *at != slot)
            .map(|(at, _)| at)
            .collect();
        for other in others {
            self.end_ctl(other);
        }
        if let Some(ctl) = self.ctls.get_mut(slot) {
            ctl.is_opener = true;
        }
        Ok((answer, Some(reader.into())))
    }

    fn wait(&mut self, slot: usize, id: &Value, fields: &Fields) -> Result<(), TapError> {
        let after = verbs::number(fields, "after")?;
        let ms = verbs::number(fields, "ms")?.min(WAIT_MS_MAX);
        if self.core.stream.is_none() {
            return Err(TapError::bad_request("recovered disks have no stream"));
        }
        let deadline_ns = self.core.clock.elapsed_ns() + ms * 1_000_000;
        let records = verbs::number_or(fields, "records", 1)?.max(1);
        let wait = Wait { id: id.clone(), after, records, deadline_ns };
        let is_kept = self.ctls.get_mut(slot).is_none_or(|ctl| ctl.wait(wait));
        if is_kept {
            return Ok(());
        }
        Err(TapError::passing("too_many_waits", "too many waits at once", "Wait for one answer."))
    }

    fn begin_sync(&mut self, slot: usize, id: &Value, fields: &Fields) -> Result<(), TapError> {
        if self.core.stream.is_none() {
            return Err(TapError::bad_request("recovered disks have no stream"));
        }
        if self.core.sync.is_wanted() {
            return Err(TapError::passing(
                "sync_running",
                "another sync request is being served",
                "Wait for its answer.",
            ));
        }
        let bytes = verbs::number(fields, "bytes")?.min(SYNC_BYTES_MAX);
        let cause = match fields.get("cause") {
            None | Some(Value::Null) => None,
            Some(_) => Some(verbs::cause(fields)?),
        };
        let before = delta::frontier(fields)?;
        let only = delta::only(&self.core, fields)?;
        let number = self.ctls.get(slot).map_or(0, |ctl| ctl.number);
        self.syncing = Some((slot, number, id.clone()));
        self.core.clock.tick();
        self.core.begin_sync(bytes, before, cause.map(|cause| (cause, only)));
        Ok(())
    }

    /// Before marks are given up for what is stored, a successor knows where that is.
    fn free(&mut self, fields: &Fields) -> Result<Value, TapError> {
        let answer = verbs::simple(&mut self.core, "free", fields)?;
        let stored = self.core.stream.as_ref().is_some_and(|s| s.ring.positions().stored > 0);
        if stored && self.state.stored_generation != self.state.generation {
            self.state.stored_generation = self.state.generation.clone();
            if let Err(e) = self.places.state.save(&self.state) {
                // The stream goes on; what a successor would have to know is not known.
                eprintln!("holdfast-tap: group {}: the state directory: {e}", self.state.group);
                self.core.distrust_all(e.raw_os_error().unwrap_or(libc::EIO));
            }
        }
        self.core.marks.look_soon();
        Ok(answer)
    }

    /// The name is durable before anything is recorded under it.
    fn new_generation(&mut self, fields: &Fields) -> Result<Value, TapError> {
        let cause: Cause = verbs::cause(fields)?;
        let predecessor = verbs::predecessor(fields)?;
        if self.core.stream.is_none() {
            return Err(TapError::bad_request("recovered disks have no stream"));
        }
        self.core.distrust_marks(None);
        let name = random_name().map_err(|e| TapError::system("random bytes", &e))?;
        self.state.generation = Some(hex(&name));
        self.save()?;
        crash::point("generation_after_state_before_ring");
        verbs::restart(&mut self.core, cause, name, predecessor)
    }
}
