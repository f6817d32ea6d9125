//! Disks that QEMU keeps and mirrors into the tap: nothing of theirs is stored here. A write is in
//! the ring or it is refused; QEMU remembers what was refused and brings it again.

use serde_json::{json, Value};

use super::core::{Answer, Core, Data, Request};
use super::run::Group;
use super::verbs::{self, Fields};
use crate::error::TapError;
use crate::nbd::conn::End;
use crate::nbd::request::Command;
use crate::nbd::Errno;
use crate::record::{Op as RecordOp, PIECE_BYTES};
use crate::stream::State;

const EXTENT_DATA: u32 = 0;
/// The longest time that one confirmation holds, ms.
const CONFIRM_MS_MAX: u64 = 60_000;
const CONFIRM_MS: u64 = 3000;

impl Core {
    /// Does a request of QEMU's mirror; `None`: refused, its connection ends without an answer.
    ///
    /// The end of the connection is what tells QEMU: it connects again only after every request
    /// that was in flight has failed there, so that its map of what is missing is complete then.
    pub fn mirror_request(&mut self, request: &Request, data: Data) -> Option<Answer> {
        let number = self.disks.get(request.disk)?.number;
        let header = &request.header;
        let answer = match header.command {
            // Nothing is stored, so nothing can be read, and to QEMU's mirror it is all one.
            Command::Read => Some(Answer::Error(Errno::Perm)),
            // Said to be data: a mirror that trusted a hole would leave its zeroes out.
            Command::BlockStatus => Some(Answer::Extents(vec![(header.length, EXTENT_DATA)])),
            // A mirror's flush is not the machine's: nothing follows from it.
            Command::Write | Command::Trim | Command::WriteZeroes => {
                self.record_mirrored(request, number, &data).then_some(Answer::Ok)
            }
            _ => Some(Answer::Ok),
        };
        if let Data::Owned(buffer) = data {
            self.pool.give(buffer);
        }
        if answer.is_none() {
            self.cut.push(request.disk);
        }
        answer
    }

    fn record_mirrored(&mut self, request: &Request, number: u16, data: &Data) -> bool {
        let now = self.clock.wall_ns;
        let header = &request.header;
        let Some(stream) = &mut self.stream else { return false };
        let length = header.length as usize;
        let payload = if header.command == Command::Write { length } else { 0 };
        let pieces = payload.div_ceil(PIECE_BYTES).max(1) as u64;
        // Nothing is lost here when it does not fit: the stream need not become dirty for it.
        let is_room = stream.ring.has_room(pieces, payload as u64);
        if is_room && stream.state() != State::Dirty {
            match (header.command, data) {
                (Command::Write, Data::Slice(bytes)) => {
                    stream.write(number, header.offset, bytes, 0, now);
                }
                (Command::Write, Data::Owned(buffer)) => {
                    stream.write(number, header.offset, &buffer[..length], 0, now);
                }
                (Command::Write, Data::None) => {}
                (Command::Trim, _) => {
                    stream.note(RecordOp::Trim, number, header.offset, header.length, 0, now);
                }
                _ => stream.note(RecordOp::Zero, number, header.offset, header.length, 0, now),
            }
        }
        let is_in = is_room && stream.state() != State::Dirty;
        if !is_in {
            stream.mirror_refused(number, now);
        }
        let Some(disk) = self.disks.get_mut(request.disk) else { return false };
        match header.command {
            _ if !is_in => disk.stats.refused += 1,
            Command::Write => disk.stats.written(u64::from(header.length)),
            Command::Trim => disk.stats.trims += 1,
            _ => disk.stats.zeroes += 1,
        }
        is_in
    }

    /// A client came to a disk, or went: of a mirrored one nothing is certain now.
    pub fn client_changed(&mut self, slot: usize) {
        let Some(disk) = self.disks.get(slot) else { return };
        let now = self.clock.wall_ns;
        if let Some(stream) = &mut self.stream {
            stream.mirror_lost(disk.number, now);
        }
    }

    /// Confirmations that nobody renewed are over.
    pub fn check_mirrors(&mut self) {
        let (mono, now) = (self.clock.mono_ns, self.clock.wall_ns);
        let Some(stream) = &mut self.stream else { return };
        for number in stream.mirrors.expired(mono) {
            stream.mirror_lost(number, now);
        }
    }

    /// When the first confirmation ends by itself, ns of the tap's clock.
    pub fn mirror_deadline_ns(&self) -> Option<u64> {
        self.stream.as_ref().and_then(|stream| stream.mirrors.deadline_ns())
    }

    /// Who confirmed is gone, and its confirmations with it.
    pub fn confirmer_gone(&mut self, client: u64) {
        self.clock.tick();
        let now = self.clock.wall_ns;
        let Some(stream) = &mut self.stream else { return };
        for number in stream.mirrors.confirmed_by(client) {
            stream.mirror_lost(number, now);
        }
    }
}

/// What there is to say about one mirrored disk.
pub fn describe(core: &Core, number: u16) -> Value {
    let Some(stream) = &core.stream else { return Value::Null };
    let Some(mirror) = stream.mirrors.get(number) else { return Value::Null };
    let clients =
        core.disks.iter().find(|(_, disk)| disk.number == number).map_or(0, |(_, d)| d.clients);
    let needs_all = stream.needs_all(number);
    let needs = match (needs_all, mirror.is_confirmed()) {
        (true, _) => "all",
        (false, false) => "rest",
        (false, true) => "nothing",
    };
    json!({
        "round": mirror.round,
        "clients": clients,
        "needs": needs,
        "refused": mirror.refused,
    })
}

impl Group {
    /// Ends the connections whose mirrored writes were refused.
    pub fn end_cut(&mut self) {
        for disk in std::mem::take(&mut self.core.cut) {
            let is_one = |client: &super::run::Client| client.conn.disk() == Some(disk);
            let cut: Vec<usize> =
                self.conns.iter().filter(|(_, client)| is_one(client)).map(|(at, _)| at).collect();
            for slot in cut {
                self.end_conn(slot, End::Gone);
            }
        }
    }

    /// The verb `mirror`: what the agent knows from QEMU about one disk, and what the tap knows.
    pub fn mirror(&mut self, client: usize, fields: &Fields) -> Result<Value, TapError> {
        self.core.clock.tick();
        let slot = verbs::slot(&self.core, fields)?;
        let who = self.ctls.get(client).map_or(0, |ctl| ctl.number);
        let number = self.core.disks.get(slot).map_or(0, |disk| disk.number);
        let is_mirrored =
            self.core.stream.as_ref().is_some_and(|stream| stream.mirrors.get(number).is_some());
        if !is_mirrored {
            return Err(TapError::bad_request("the disk is not mirrored by QEMU"));
        }
        match verbs::text(fields, "act")? {
            "look" => {}
            "begin" => self.mirror_begins(slot, fields)?,
            "confirm" => self.mirror_confirmed(number, who, fields)?,
            "lost" => {
                let now = self.core.clock.wall_ns;
                if let Some(stream) = &mut self.core.stream {
                    stream.mirror_lost(number, now);
                }
            }
            other => return Err(TapError::bad_request(format!("{other:?} cannot be done"))),
        }
        let mut answer = describe(&self.core, number);
        if let Some(stream) = &self.core.stream {
            answer["state"] = json!(stream.state().name());
            answer["cause"] = json!(stream.cause().name());
            answer["ring_bytes"] = json!(stream.ring.geometry().payload_capacity);
            answer["ring_used_bytes"] = json!(stream.ring.payload_used());
        }
        Ok(answer)
    }

    /// A mirror of the whole disk is about to begin, over a connection that is still to come.
    fn mirror_begins(&mut self, slot: usize, fields: &Fields) -> Result<(), TapError> {
        let size = verbs::number(fields, "size")?;
        let now = self.core.clock.wall_ns;
        let Some(disk) = self.core.disks.get_mut(slot) else { return Ok(()) };
        if disk.clients > 0 {
            return Err(TapError::passing(
                "disk_connected",
                format!("disk {} still has a client", disk.name),
                "End the mirror that runs first.",
            ));
        }
        let (number, name) = (disk.number, disk.name.clone());
        let before = std::mem::replace(&mut disk.size, size);
        let Some(stream) = &mut self.core.stream else { return Ok(()) };
        if before != size {
            stream.resize(number, size, false, now);
            for known in self.state.disks.iter_mut().filter(|known| known.name == name) {
                known.size = size;
            }
            let saved = self.places.state.save(&self.state);
            saved.map_err(|e| TapError::system("the state directory", &e))?;
        }
        stream.mirror_begins(number, size, now);
        Ok(())
    }

    fn mirror_confirmed(&mut self, number: u16, who: u64, fields: &Fields) -> Result<(), TapError> {
        let round = verbs::number(fields, "round")?;
        let ms = verbs::number_or(fields, "for_ms", CONFIRM_MS)?.min(CONFIRM_MS_MAX);
        let until = self.core.clock.mono_ns + ms * 1_000_000;
        let clients = self.core.disks.iter().find(|(_, disk)| disk.number == number);
        let is_connected = clients.is_some_and(|(_, disk)| disk.clients == 1);
        let Some(stream) = &mut self.core.stream else { return Ok(()) };
        if is_connected && stream.confirm_mirror(number, round, who, until) {
            return Ok(());
        }
        Err(TapError::passing(
            "mirror_changed",
            "the mirror's connection is not the one that was looked at",
            "Look at the mirror again, then ask QEMU again.",
        ))
    }
}
