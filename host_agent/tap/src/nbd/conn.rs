//! A connection: bytes from its socket become requests, answers become bytes.

use std::io::{self, IoSliceMut, Read};
use std::os::unix::net::UnixStream;

use super::handshake::{Agreed, Exports, Handshake, Step};
use super::reply::{OutQueue, ReplyTo};
use super::request::{Command, Header, HEADER_BYTES};
use super::{Errno, REQUEST_BYTES_MAX};
use crate::group::core::{Answer, ConnRef, Core, Data, Request};
use crate::sys::{self, AlignedBuf};

/// Read at once from a socket, bytes: what a Unix socket holds by default.
pub const SCRATCH_BYTES: usize = 256 << 10;
/// Requests of one connection that are not done: more than any client keeps.
const IN_FLIGHT_MAX: usize = 1024;
/// Data of a group's requests that are not done, bytes; beyond it each connection has one.
const QUEUED_BYTES_MAX: usize = 16 << 20;
/// Replies that wait for the client to read, bytes; beyond it nothing is read from it.
const UNSENT_BYTES_MAX: usize = 1 << 20;
/// Replies of this much are sent before the next request is looked at, bytes.
const SEND_EARLY_BYTES: usize = 256 << 10;
/// What a socket is to hold for its client, bytes; the kernel allows what it allows.
const SEND_BUFFER_BYTES: i32 = 1 << 20;
/// A client has so long for the handshake, ns.
const HANDSHAKE_NS_MAX: u64 = 10_000_000_000;

/// Why a connection ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// It asked for it, or went away.
    Gone,
    /// It sent what makes no sense.
    Malformed,
}

enum Phase {
    Handshake(Handshake),
    Transmission(Agreed),
}

/// A write whose data is still arriving.
struct Body {
    header: Header,
    /// `None`: it arrives in its place in the ring.
    buffer: Option<AlignedBuf>,
    got: usize,
}

/// From here on a write's data is worth being received apart from the requests around it, bytes.
const LARGE_BYTES: usize = 64 << 10;
/// Receives in one turn of a client whose large write is arriving.
const RECEIVES_MAX: usize = 16;

/// One client.
pub struct Conn {
    /// Its socket.
    pub socket: UnixStream,
    /// Where it stands in the group.
    pub me: ConnRef,
    /// Bytes for it.
    pub out: OutQueue,
    /// Requests that are not done.
    pub in_flight: usize,
    /// It will send nothing more.
    pub is_closing: bool,
    /// Requests were left unread: something must become free first.
    pub is_paused: bool,
    /// When the handshake must be over, ns of the tap's clock.
    pub deadline_ns: Option<u64>,
    phase: Phase,
    carry: Vec<u8>,
    body: Option<Body>,
    skip: usize,
    /// The newest write was large.
    is_large: bool,
    /// Requests done in this batch: reads, writes, flushes, others.
    batch: [u32; 4],
}

impl Conn {
    /// Greets a new client.
    pub fn new(socket: UnixStream, me: ConnRef, now_ns: u64) -> Conn {
        let mut out = OutQueue::default();
        out.extend(Handshake::greet);
        sys::widen_send_buffer(&socket, SEND_BUFFER_BYTES);
        Conn {
            socket,
            me,
            out,
            in_flight: 0,
            is_closing: false,
            is_paused: false,
            deadline_ns: Some(now_ns + HANDSHAKE_NS_MAX),
            phase: Phase::Handshake(Handshake::default()),
            carry: Vec::new(),
            body: None,
            skip: 0,
            is_large: false,
            batch: [0; 4],
        }
    }

    /// The disk that it uses.
    pub fn disk(&self) -> Option<usize> {
        match &self.phase {
            Phase::Handshake(_) => None,
            Phase::Transmission(agreed) => Some(agreed.export.slot),
        }
    }

    /// Whether more requests may be read from it now.
    pub fn may_go_on(&self, core: &Core) -> bool {
        self.out.len() < UNSENT_BYTES_MAX
            && self.in_flight < IN_FLIGHT_MAX
            && (core.queued_bytes < QUEUED_BYTES_MAX || self.in_flight == 0)
    }

    /// Works on what it sent. `may_read`: its socket is readable.
    pub fn input(
        &mut self,
        core: &mut Core,
        scratch: &mut [u8],
        may_read: bool,
    ) -> Result<(), End> {
        if self.is_closing || !self.may_go_on(core) {
            self.is_paused = true;
            return Ok(());
        }
        self.is_paused = false;
        for _ in 0..RECEIVES_MAX {
            let mut filled = self.carry.len();
            scratch[..filled].copy_from_slice(&self.carry);
            self.carry.clear();
            let mut got = 0;
            if may_read {
                let at = filled;
                got = self.receive(core, &mut scratch[at..], &mut filled)?;
            }
            let taken = self.parse(core, &scratch[..filled])?;
            self.carry.extend_from_slice(&scratch[taken..filled]);
            // The rest of a large write is worth another look before anybody else has a turn.
            if got == 0 || self.body.is_none() || self.is_paused {
                break;
            }
        }
        self.count_batch(core);
        Ok(())
    }

    /// Reads once; the rest of a large write goes straight to its place, what comes behind it to
    /// `scratch` and is added to `filled`. Returns all that came.
    fn receive(
        &mut self,
        core: &mut Core,
        scratch: &mut [u8],
        filled: &mut usize,
    ) -> Result<usize, End> {
        // After a large write another is likely: its header comes alone, so that its data can be
        // received into its place.
        let room = if self.is_large { HEADER_BYTES } else { scratch.len().min(SCRATCH_BYTES) };
        let mut socket = &self.socket;
        let owner = self.me.number;
        let got = match &mut self.body {
            None => socket.read(&mut scratch[..room]),
            Some(body) => {
                let rest = match &mut body.buffer {
                    Some(buffer) => &mut buffer[body.got..body.header.length as usize],
                    None => core.draft_rest(owner).ok_or(End::Gone)?,
                };
                // The next requests come along only when this one's data is nearly there.
                let room = if rest.len() > SCRATCH_BYTES { 0 } else { room };
                let (first, second) =
                    (IoSliceMut::new(rest), IoSliceMut::new(&mut scratch[..room]));
                socket.read_vectored(&mut [first, second])
            }
        };
        let got = match got {
            Ok(0) => return Err(End::Gone),
            Ok(got) => got,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => 0,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => 0,
            Err(_) => return Err(End::Gone),
        };
        let Some(body) = &mut self.body else {
            *filled += got;
            return Ok(got);
        };
        let rest = body.header.length as usize - body.got;
        body.got += got.min(rest);
        if body.buffer.is_none() {
            core.draft_got(owner, got.min(rest));
        }
        *filled += got.saturating_sub(rest);
        Ok(got)
    }

    fn parse(&mut self, core: &mut Core, input: &[u8]) -> Result<usize, End> {
        let mut at = 0;
        if let Phase::Handshake(_) = self.phase {
            at = self.shake(core, input)?;
        }
        let Phase::Transmission(agreed) = &self.phase else { return Ok(at) };
        let agreed = agreed.clone();
        self.finish_body(core, &agreed);
        while !self.is_closing {
            let skipped = self.skip.min(input.len() - at);
            self.skip -= skipped;
            at += skipped;
            let Some(bytes) = input[at..].first_chunk::<HEADER_BYTES>() else { break };
            let header = Header::parse(bytes).ok_or(End::Malformed)?;
            if !self.may_go_on(core) {
                self.is_paused = true;
                break;
            }
            at += HEADER_BYTES;
            at += self.take(core, &agreed, header, &input[at..])?;
        }
        Ok(at)
    }

    fn shake(&mut self, core: &mut Core, input: &[u8]) -> Result<usize, End> {
        let Phase::Handshake(handshake) = &mut self.phase else { return Ok(0) };
        let mut step = Step::More;
        let mut taken = 0;
        self.out.extend(|out| (taken, step) = handshake.feed(input, core as &mut dyn Exports, out));
        match step {
            Step::More => {}
            Step::Close => self.is_closing = true,
            Step::Ready(agreed) => {
                if let Some(disk) = core.disks.get_mut(agreed.export.slot) {
                    disk.clients += 1;
                    disk.stats.connections += 1;
                }
                core.client_changed(agreed.export.slot);
                self.deadline_ns = None;
                self.phase = Phase::Transmission(agreed);
            }
        }
        Ok(taken)
    }

    /// Takes one request whose header was read; returns what it used of `input` behind it.
    fn take(
        &mut self,
        core: &mut Core,
        agreed: &Agreed,
        header: Header,
        input: &[u8],
    ) -> Result<usize, End> {
        if header.command == Command::Disconnect {
            self.is_closing = true;
            return Ok(0);
        }
        let size = core.disks.get(agreed.export.slot).map_or(0, |disk| disk.size);
        let mut checked = header.check(size, agreed.export.block_bytes);
        if header.command == Command::BlockStatus && !agreed.has_context {
            checked = Err(Errno::Invalid);
        }
        let is_write = header.command == Command::Write;
        if let Err(error) = checked {
            self.refuse(core, agreed, &header, error);
            if is_write {
                if header.length > REQUEST_BYTES_MAX {
                    return Err(End::Malformed);
                }
                self.skip = header.length as usize;
            }
            return Ok(0);
        }
        let length = header.length as usize;
        if !is_write {
            self.execute(core, agreed, header, Data::None);
            if self.out.len() >= SEND_EARLY_BYTES {
                // The client takes this while the next is read. An error shows at the next send.
                let _ = self.out.send(&self.socket, &mut core.pool);
            }
            return Ok(0);
        }
        self.is_large = length >= LARGE_BYTES;
        if let Some(data) = input.get(..length) {
            self.execute(core, agreed, header, Data::Slice(data));
            return Ok(length);
        }
        let got = input.len();
        let is_draft =
            self.is_large && core.begin_draft(agreed.export.slot, length, self.me.number);
        let buffer = if is_draft {
            if let Some(place) = core.draft_rest(self.me.number) {
                place[..got].copy_from_slice(input);
            }
            core.draft_got(self.me.number, got);
            None
        } else {
            let mut buffer = core.pool.take(length);
            buffer[..got].copy_from_slice(input);
            Some(buffer)
        };
        self.body = Some(Body { header, buffer, got });
        Ok(got)
    }

    fn finish_body(&mut self, core: &mut Core, agreed: &Agreed) {
        let is_whole =
            self.body.as_ref().is_some_and(|body| body.got == body.header.length as usize);
        if is_whole {
            match self.body.take() {
                Some(Body { header, buffer: Some(buffer), .. }) => {
                    self.execute(core, agreed, header, Data::Owned(buffer));
                }
                Some(Body { header, buffer: None, .. }) => {
                    let request = self.request(core, agreed, header);
                    let answer = core.execute_draft(request, self.me.number);
                    self.note_answer(core, &request, answer);
                }
                None => {}
            }
        }
    }

    fn refuse(&mut self, core: &mut Core, agreed: &Agreed, header: &Header, error: Errno) {
        if let Some(disk) = core.disks.get_mut(agreed.export.slot) {
            disk.stats.refused += 1;
        }
        self.out.error(reply_to(agreed, header), error);
    }

    fn execute(&mut self, core: &mut Core, agreed: &Agreed, header: Header, data: Data) {
        let request = self.request(core, agreed, header);
        if header.command == Command::Read && self.read_straight(core, agreed, &request) {
            return;
        }
        let answer = core.execute(request, data);
        self.note_answer(core, &request, answer);
    }

    fn request(&self, core: &Core, agreed: &Agreed, header: Header) -> Request {
        let (conn, disk) = (self.me, agreed.export.slot);
        Request { conn, header, disk, came_ns: core.clock.mono_ns }
    }

    fn note_answer(&mut self, core: &mut Core, request: &Request, answer: Option<Answer>) {
        match answer {
            Some(answer) => self.answer(core, request, answer),
            None => self.in_flight += 1,
        }
    }

    /// Reads into the place of the reply, without a buffer between.
    fn read_straight(&mut self, core: &mut Core, agreed: &Agreed, request: &Request) -> bool {
        const STRAIGHT_MAX: u32 = 64 << 10;
        let (to, length) = (reply_to(agreed, &request.header), request.header.length);
        if length > STRAIGHT_MAX {
            return false;
        }
        if core.can_read_now(request) {
            let read = |bytes: &mut [u8]| core.read_into(request, bytes);
            if let Err(code) = self.out.data_from(to, length as usize, read) {
                self.out.error(to, Errno::from_system(code));
            }
        } else {
            if !core.may_be_cached(request) {
                return false;
            }
            let read = |bytes: &mut [u8]| match core.read_cached(request, bytes) {
                true => Ok(()),
                false => Err(()),
            };
            if self.out.data_from(to, length as usize, read).is_err() {
                return false;
            }
        }
        self.batch[0] += 1;
        true
    }

    fn answer(&mut self, core: &mut Core, request: &Request, answer: Answer) {
        let Phase::Transmission(agreed) = &self.phase else { return };
        let to = reply_to(agreed, &request.header);
        match answer {
            Answer::Ok => self.out.ok(to),
            Answer::Error(error) => self.out.error(to, error),
            Answer::Data(buffer) => {
                self.out.data(to, buffer, request.header.length as usize, &mut core.pool);
            }
            Answer::Extents(extents) => self.out.extents(to, &extents),
        }
        let kind = match request.header.command {
            Command::Read => 0,
            Command::Write => 1,
            Command::Flush => 2,
            _ => 3,
        };
        self.batch[kind] += 1;
    }

    /// An answer that came later.
    pub fn late(&mut self, core: &mut Core, request: &Request, answer: Answer) {
        self.in_flight -= 1;
        let before = self.batch;
        self.answer(core, request, answer);
        self.batch = before;
        let ns = core.clock.elapsed_ns().saturating_sub(request.came_ns);
        if let Some(disk) = core.disks.get_mut(request.disk) {
            disk.stats.latencies.of(request.header.command).add(ns, 1);
        }
    }

    /// Requests that were answered at once took as long as their batch.
    fn count_batch(&mut self, core: &mut Core) {
        let batch = std::mem::take(&mut self.batch);
        if batch == [0; 4] {
            return;
        }
        core.answered.all += batch.iter().sum::<u32>();
        core.answered.reads += batch[0];
        let ns = core.clock.elapsed_ns() - core.clock.mono_ns;
        let Some(disk) = self.disk().and_then(|slot| core.disks.get_mut(slot)) else { return };
        let latencies = &mut disk.stats.latencies;
        let all =
            [&mut latencies.read, &mut latencies.write, &mut latencies.flush, &mut latencies.other];
        for (histogram, times) in all.into_iter().zip(batch).filter(|(_, times)| *times > 0) {
            histogram.add(ns, times);
        }
    }

    /// Whether nothing is left to do for a client that ends.
    pub fn is_over(&self) -> bool {
        self.is_closing && self.in_flight == 0 && self.out.is_empty()
    }

    /// What it held goes back.
    pub fn end(self, core: &mut Core, why: End) {
        if let Some(disk) = self.disk().and_then(|slot| core.disks.get_mut(slot)) {
            disk.clients -= 1;
            disk.stats.protocol_errors += u64::from(why == End::Malformed);
        }
        if let Some(slot) = self.disk() {
            core.client_changed(slot);
        }
        match self.body {
            Some(Body { buffer: Some(buffer), .. }) => core.pool.give(buffer),
            Some(Body { buffer: None, .. }) => core.drop_draft(self.me.number),
            None => {}
        }
    }
}

fn reply_to(agreed: &Agreed, header: &Header) -> ReplyTo {
    let has_chunks = matches!(header.command, Command::Read | Command::BlockStatus);
    let is_structured = agreed.is_structured && has_chunks;
    ReplyTo { cookie: header.cookie, offset: header.offset, is_structured }
}
