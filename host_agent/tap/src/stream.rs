//! A stream: what becomes a record, what only marks, and when the difference matters. No I/O but
//! the ring's memory; time comes from outside.

mod compared;
mod left;
mod trust;

use std::collections::BTreeMap;
use std::ops::Range;

use serde_json::{json, Value};

use crate::crash;
use crate::error::TapError;
use crate::mirrors::Mirrors;
use crate::rangeset::{align, RangeSet};
use crate::record::{Op, Record, BODY_BYTES_MAX, FLAG_MORE, FLAG_TAIL, PIECE_BYTES};
use crate::ring::{Generation, Mood, Ring};

/// Ranges to be read are kept at this grain, bytes, until they are too many.
pub const DIRTY_GRAIN: u64 = 4096;
/// Ranges of one disk to be read; beyond it the grain doubles.
const DIRTY_RANGES_MAX: usize = 65_536;
/// Ranges that could not be read and are named in END.
const UNREADABLE_MAX: usize = 512;

/// What happens to a write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// It is in the ring.
    Recording,
    /// It only marks what is to be read.
    Dirty,
    /// It is in the ring, and what was marked is being read.
    Syncing,
}

impl State {
    /// Its word.
    pub fn name(self) -> &'static str {
        match self {
            State::Recording => "recording",
            State::Dirty => "dirty",
            State::Syncing => "syncing",
        }
    }

    fn number(self) -> u8 {
        match self {
            State::Recording => 1,
            State::Dirty => 2,
            State::Syncing => 3,
        }
    }
}

/// Why a sync interval is needed; in the order of the formats.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cause {
    /// Nothing was ever recorded.
    FirstStart,
    /// The ring is gone.
    RingLost,
    /// The tap or the host ended without an orderly stop.
    UncleanStop,
    /// A disk joined.
    DiskAdded,
    /// A disk is not as it was left.
    DiskChanged,
    /// The agent did not take records fast enough.
    RingFull,
    /// A disk refused a write or a flush.
    DiskError,
    /// The agent was away too long.
    AgentAway,
    /// Journal and ring contradict each other.
    JournalDiffers,
    /// Somebody asked for it.
    Forced,
    /// The mirror of a running machine ended, or nobody confirms it.
    MirrorLost,
}

impl Cause {
    /// All of them, in the order of the formats.
    pub const ALL: [Cause; 11] = [
        Cause::FirstStart,
        Cause::RingLost,
        Cause::UncleanStop,
        Cause::DiskAdded,
        Cause::DiskChanged,
        Cause::RingFull,
        Cause::DiskError,
        Cause::AgentAway,
        Cause::JournalDiffers,
        Cause::Forced,
        Cause::MirrorLost,
    ];

    /// Its word.
    pub fn name(self) -> &'static str {
        match self {
            Cause::FirstStart => "first_start",
            Cause::RingLost => "ring_lost",
            Cause::UncleanStop => "unclean_stop",
            Cause::DiskAdded => "disk_added",
            Cause::DiskChanged => "disk_changed",
            Cause::RingFull => "ring_full",
            Cause::DiskError => "disk_error",
            Cause::AgentAway => "agent_away",
            Cause::JournalDiffers => "journal_differs",
            Cause::Forced => "forced",
            Cause::MirrorLost => "mirror_lost",
        }
    }

    /// The cause with this word.
    pub fn of(name: &str) -> Option<Cause> {
        Cause::ALL.into_iter().find(|cause| cause.name() == name)
    }
}

/// A disk of the stream.
#[derive(Clone, Debug)]
pub struct Member {
    /// Its name in the group.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// What a sync still has to read.
    pub to_read: RangeSet,
    /// Marked since the interval began: what was read or compared before says nothing of it.
    again: RangeSet,
    grain: u64,
    /// What is said of it after an unclean stop cannot be believed.
    is_untrusted: bool,
}

/// Counts since the tap started.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// Records of guests' requests.
    pub recorded: u64,
    /// Payload bytes of them.
    pub recorded_bytes: u64,
    /// Guests' requests that only marked ranges.
    pub dropped: u64,
    /// Records of syncs.
    pub synced: u64,
    /// Times that it left recording.
    pub fell: u64,
}

/// One stream.
pub struct Stream {
    /// Where records go.
    pub ring: Ring,
    /// Counts.
    pub counters: Counters,
    /// Disks that QEMU mirrors here.
    pub mirrors: Mirrors,
    state: State,
    cause: Cause,
    /// The newest position that is consistent; meant where a BEGIN needs it.
    last_good: u64,
    last_time: u64,
    members: BTreeMap<u16, Member>,
    unreadable: Vec<(u16, u64, u64)>,
    /// What this interval had to read when it began, and has read since, bytes.
    total: u64,
    read: u64,
    /// Grows whenever an interval begins or fails: reads of an older one are worth nothing.
    epoch: u64,
    /// Where the newest BEGIN of this generation is; 0: there is none.
    begin_seq: u64,
}

impl Stream {
    /// A stream over `ring` that has to be read wholly, because of `cause`.
    pub fn new(ring: Ring, cause: Cause) -> Stream {
        let mut stream = Stream {
            ring,
            counters: Counters::default(),
            mirrors: Mirrors::default(),
            state: State::Dirty,
            cause,
            last_good: 0,
            last_time: 0,
            members: BTreeMap::new(),
            unreadable: Vec::new(),
            total: 0,
            read: 0,
            epoch: 0,
            begin_seq: 0,
        };
        stream.show_mood(false);
        stream
    }

    fn show_mood(&mut self, is_clean: bool) {
        let cause = Cause::ALL.iter().position(|cause| *cause == self.cause).unwrap_or(0) as u8;
        let (state, last_good) = (self.state.number(), self.last_good);
        self.ring.set_mood(Mood { is_clean, state, cause, last_good });
    }

    /// How it is.
    pub fn state(&self) -> State {
        self.state
    }

    /// Why it last left, or has not reached, recording.
    pub fn cause(&self) -> Cause {
        self.cause
    }

    /// The newest consistent position.
    pub fn last_good(&self) -> u64 {
        match self.state {
            State::Recording => self.ring.head(),
            State::Dirty | State::Syncing => self.last_good,
        }
    }

    /// The stream's time: `now`, unless that would run back.
    pub fn time(&mut self, now: u64) -> u64 {
        self.last_time = self.last_time.max(now);
        self.last_time
    }

    /// The time of the newest record, or later.
    pub fn last_time(&self) -> u64 {
        self.last_time
    }

    /// Gives the dirty state another cause.
    pub fn set_cause(&mut self, cause: Cause) {
        self.cause = cause;
        self.show_mood(false);
    }

    /// Its disks by number.
    pub fn members(&self) -> &BTreeMap<u16, Member> {
        &self.members
    }

    /// Which interval this is.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Bytes still to be read.
    pub fn remaining(&self) -> u64 {
        self.members.values().map(|member| member.to_read.bytes()).sum()
    }

    /// Bytes that this interval had to read when it began, and what was read since.
    pub fn progress(&self) -> (u64, u64) {
        let total = self.total.max(self.read + self.remaining());
        (if self.state == State::Syncing { total } else { self.remaining() }, self.read)
    }

    /// A disk joins. While recording a sync interval begins; `is_known`: nothing is to be read.
    pub fn add_disk(&mut self, number: u16, name: &str, size: u64, is_known: bool, now: u64) {
        let (to_read, again) = (RangeSet::new(), RangeSet::new());
        let (name, grain) = (name.to_owned(), DIRTY_GRAIN);
        let mut member = Member { name, size, to_read, again, grain, is_untrusted: false };
        if !is_known {
            member.to_read.insert(0..size);
        }
        self.members.insert(number, member);
        if !is_known && self.state != State::Dirty {
            self.begin(Some(Cause::DiskAdded), now);
        }
        self.ring.set_member(number, true);
    }

    /// A disk leaves.
    pub fn remove_disk(&mut self, number: u16, now: u64) {
        let Some(member) = self.members.remove(&number) else { return };
        self.mirrors.remove(number);
        self.ring.set_member(number, false);
        self.unreadable.retain(|(disk, _, _)| *disk != number);
        if self.state == State::Dirty {
            return;
        }
        let body = json!({ "disk": number, "name": member.name }).to_string();
        let time = self.time(now);
        let record = Record::about(Op::Detach);
        if self.ring.append_kept(&record, body.as_bytes(), time).is_err() {
            self.fall(Cause::RingFull);
        }
    }

    /// Leaves recording or syncing; what comes only marks.
    pub fn fall(&mut self, cause: Cause) {
        if self.state == State::Dirty {
            return;
        }
        if self.state == State::Recording {
            self.last_good = self.ring.head();
        }
        self.fall_from(cause);
    }

    fn fall_from(&mut self, cause: Cause) {
        self.state = State::Dirty;
        self.cause = cause;
        self.epoch += 1;
        self.counters.fell += 1;
        self.show_mood(false);
    }

    /// Marks a range to be read (again).
    pub fn mark_to_read(&mut self, disk: u16, range: Range<u64>) {
        if self.mirrors.has(disk) {
            // QEMU keeps what is missing of it.
            return;
        }
        let is_late = self.state == State::Syncing;
        let Some(member) = self.members.get_mut(&disk) else { return };
        if is_late {
            member.again.insert(align(&range, DIRTY_GRAIN, member.size));
            member.again.coarsen(DIRTY_GRAIN, member.size, DIRTY_RANGES_MAX);
        }
        member.to_read.insert(align(&range, member.grain, member.size));
        if member.to_read.count() > DIRTY_RANGES_MAX {
            let half = DIRTY_RANGES_MAX / 2;
            member.grain = member.to_read.coarsen(member.grain, member.size, half);
        }
    }

    /// The disk holds something that the ring does not: `range` must be read.
    pub fn disk_differs(&mut self, disk: u16, range: Range<u64>, cause: Cause) {
        self.mark_to_read(disk, range);
        if self.state == State::Recording {
            self.fall(cause);
        }
    }

    /// A guest's data that the disk accepted.
    pub fn write(&mut self, disk: u16, offset: u64, data: &[u8], flags: u8, now: u64) {
        let pieces = data.len().div_ceil(PIECE_BYTES);
        let is_room = pieces == 1 || self.ring.has_room(pieces as u64, data.len() as u64);
        if self.state == State::Dirty || !is_room {
            return self.drop_to_dirty(disk, offset, data.len() as u64);
        }
        let time = self.time(now);
        for (at, piece) in data.chunks(PIECE_BYTES).enumerate() {
            let start = offset + (at * PIECE_BYTES) as u64;
            let mut record = Record::range(Op::Write, disk, start, piece.len() as u32);
            record.flags = flags;
            if at > 0 {
                record.flags |= FLAG_TAIL;
            }
            if at + 1 < pieces {
                record.flags |= FLAG_MORE;
            }
            if self.ring.append(&record, piece, time).is_err() {
                return self.drop_to_dirty(disk, offset, data.len() as u64);
            }
            self.counters.recorded += 1;
        }
        self.counters.recorded_bytes += data.len() as u64;
    }

    /// Data that the disk accepted and that lies in its place in the ring already.
    pub fn write_draft(&mut self, disk: u16, range: Range<u64>, flags: u8, now: u64) {
        let time = self.time(now);
        let length = (range.end - range.start) as u32;
        let record = Record { flags, ..Record::range(Op::Write, disk, range.start, length) };
        if self.ring.append_draft(&record, time).is_err() {
            return self.drop_to_dirty(disk, range.start, u64::from(length));
        }
        self.counters.recorded += 1;
        self.counters.recorded_bytes += u64::from(length);
    }

    /// A guest's zeroes, trim or flush that the disk accepted.
    pub fn note(&mut self, op: Op, disk: u16, offset: u64, length: u32, flags: u8, now: u64) {
        if self.state != State::Dirty {
            let time = self.time(now);
            let mut record = Record::range(op, disk, offset, length);
            record.flags = flags;
            if self.ring.append(&record, &[], time).is_ok() {
                self.counters.recorded += 1;
                return;
            }
        }
        self.drop_to_dirty(disk, offset, u64::from(length));
    }

    fn drop_to_dirty(&mut self, disk: u16, offset: u64, length: u64) {
        self.counters.dropped += 1;
        self.mark_to_read(disk, offset..offset + length);
        crash::point("overflow_after_mark_before_fall");
        self.fall(Cause::RingFull);
    }

    /// The disk has a new size. What it grew by is to be read if `has_news`.
    pub fn resize(&mut self, disk: u16, size: u64, has_news: bool, now: u64) {
        let Some(member) = self.members.get_mut(&disk) else { return };
        let before = std::mem::replace(&mut member.size, size);
        member.to_read.remove(size..u64::MAX);
        if self.state != State::Dirty {
            let time = self.time(now);
            let record = Record { disk, offset: size, ..Record::about(Op::Resize) };
            if self.ring.append_kept(&record, &[], time).is_err() {
                self.fall(Cause::RingFull);
            }
        }
        // While dirty nothing says when the growth came: what lies there must be read.
        if size > before && (has_news || self.state == State::Dirty) {
            self.disk_differs(disk, before..size, Cause::DiskChanged);
        }
    }

    /// Begins a sync interval. `cause`: everything that is known is kept, else the cause of the
    /// dirty state. Returns whether there was room for the record.
    pub fn begin(&mut self, cause: Option<Cause>, now: u64) -> bool {
        if self.state == State::Recording {
            self.last_good = self.ring.head();
            // A successor must not believe that all but what is in flight is recorded.
            self.state = State::Syncing;
            self.show_mood(false);
        }
        if let Some(cause) = cause {
            self.cause = cause;
        }
        let positions = self.ring.positions();
        let name = |bytes: &Generation| (*bytes != [0; 16]).then(|| hex(bytes));
        let disks: Vec<Value> = self.disks();
        let body = json!({
            "cause": self.cause.name(),
            "generation": name(&positions.generation),
            "predecessor": name(&positions.predecessor),
            "last_good": self.last_good,
            "disks": disks,
        })
        .to_string();
        let time = self.time(now);
        let record = Record { aux: self.last_good, ..Record::about(Op::Begin) };
        let Ok(seq) = self.ring.append_kept(&record, body.as_bytes(), time) else {
            self.fall(Cause::RingFull);
            return false;
        };
        crash::point("begin_after_record_before_state");
        self.state = State::Syncing;
        self.begin_seq = seq;
        self.epoch += 1;
        self.read = 0;
        for member in self.members.values_mut() {
            member.again.clear();
        }
        // What could not be read may have become readable: each interval tries once.
        for (disk, offset, length) in std::mem::take(&mut self.unreadable) {
            self.mark_to_read(disk, offset..offset + length);
        }
        self.total = self.remaining();
        self.show_mood(false);
        true
    }

    /// Data that a sync read; `before`: the position before the read began. Returns whether there
    /// was room.
    pub fn sync_data(
        &mut self,
        disk: u16,
        offset: u64,
        data: &[u8],
        before: u64,
        now: u64,
    ) -> bool {
        let record = Record::range(Op::Sync, disk, offset, data.len() as u32);
        self.sync_record(Record { aux: before, ..record }, data, now)
    }

    /// Zeroes that a sync found.
    pub fn sync_zero(
        &mut self,
        disk: u16,
        offset: u64,
        length: u32,
        before: u64,
        now: u64,
    ) -> bool {
        let record = Record::range(Op::SyncZero, disk, offset, length);
        self.sync_record(Record { aux: before, ..record }, &[], now)
    }

    fn sync_record(&mut self, record: Record, data: &[u8], now: u64) -> bool {
        let time = self.time(now);
        let is_in = self.ring.append(&record, data, time).is_ok();
        if is_in {
            self.counters.synced += 1;
            self.read += u64::from(record.length);
        }
        is_in
    }

    /// A range that the disk cannot read: END will name it.
    pub fn note_unreadable(&mut self, disk: u16, range: Range<u64>) {
        self.read += range.end - range.start;
        let is_full = self.unreadable.len() >= UNREADABLE_MAX;
        if let Some(last) = self.unreadable.last_mut() {
            let is_next = last.0 == disk && last.1 + last.2 == range.start;
            if is_next || is_full && last.0 == disk {
                last.2 = range.end - last.1;
                return;
            }
        }
        self.unreadable.push((disk, range.start, range.end - range.start));
    }

    /// Ends the interval: this position is consistent. Returns whether there was room.
    pub fn end(&mut self, now: u64) -> bool {
        if self.mirrors.is_any_open() {
            return false;
        }
        let unreadable: Vec<Value> =
            self.unreadable.iter().map(|(disk, at, length)| json!([disk, at, length])).collect();
        let body = json!({ "bytes": self.read, "unreadable": unreadable }).to_string();
        let time = self.time(now);
        if self.ring.append_kept(&Record::about(Op::End), body.as_bytes(), time).is_err() {
            return false;
        }
        crash::point("end_after_record_before_state");
        self.state = State::Recording;
        self.epoch += 1;
        self.show_mood(false);
        true
    }

    /// A record with a body: a marker (only while recording), a commit, a definition.
    pub fn say(&mut self, op: Op, body: &Value, now: u64) -> Result<(u64, u64), TapError> {
        let is_marker = op == Op::Mark || op == Op::Commit;
        if (is_marker && self.state != State::Recording) || self.state == State::Dirty {
            return Err(TapError::passing(
                "not_recording",
                format!("the stream is {} ({})", self.state.name(), self.cause.name()),
                "Wait until the sync is over; `status` shows its progress.",
            ));
        }
        let body = body.to_string();
        if body.len() > BODY_BYTES_MAX {
            return Err(TapError::bad_request("the body is longer than 48 KiB"));
        }
        let time = self.time(now);
        match self.ring.append_kept(&Record::about(op), body.as_bytes(), time) {
            Ok(seq) => Ok((seq, time)),
            Err(_) => Err(TapError::passing(
                "ring_full",
                "even the room that is kept for markers is used",
                "Let the agent take records and give them back.",
            )),
        }
    }

    /// A new numbering: the ring is emptied and everything is to be read. `predecessor`: what it
    /// follows, unless that is the generation that ends.
    pub fn restart(
        &mut self,
        name: Generation,
        predecessor: Option<Generation>,
        cause: Cause,
        now: u64,
    ) {
        self.ring.restart(name, predecessor, now);
        for number in self.members.keys() {
            self.ring.set_member(*number, true);
        }
        self.last_good = 0;
        self.begin_seq = 0;
        self.mark_everything(None);
        self.fall_from(cause);
    }
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The reverse of [`hex`].
pub fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let bytes = text.as_bytes();
    if bytes.len() != 2 * N || !bytes.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let mut out = [0; N];
    for (at, byte) in out.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(out)
}
