//! Replies, and the queue of bytes that a connection still has to send.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Write};
use std::os::unix::net::UnixStream;

use super::{Errno, CONTEXT_ID};
use crate::pool::Pool;
use crate::sys::AlignedBuf;

const SIMPLE_MAGIC: u32 = 0x6744_6698;
const CHUNK_MAGIC: u32 = 0x668e_33ef;
const CHUNK_DONE: u16 = 1;
const CHUNK_DATA: u16 = 1;
const CHUNK_STATUS: u16 = 5;
const CHUNK_ERROR: u16 = 0x8001;
/// Data from here on is sent from where it lies, below it is copied behind its header.
const COPY_BYTES_MAX: usize = 32 << 10;
const VECTORS_MAX: usize = 32;

/// Which request, and how its client wants answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReplyTo {
    /// The client's name for it.
    pub cookie: u64,
    /// Where its data begins on the disk.
    pub offset: u64,
    /// Answer in chunks (data, status, and errors of those).
    pub is_structured: bool,
}

/// Bytes to send, in memory that is used again without being cleared.
#[derive(Default)]
struct Filled {
    room: Vec<u8>,
    used: usize,
}

impl Filled {
    /// The next `length` bytes; what they hold is whatever it was.
    #[inline]
    fn take(&mut self, length: usize) -> &mut [u8] {
        let (start, end) = (self.used, self.used + length);
        if end > self.room.len() {
            self.room.resize(end.max(2 * self.room.len()), 0);
        }
        self.used = end;
        &mut self.room[start..end]
    }
}

enum Part {
    Bytes(Filled),
    Data(AlignedBuf, usize),
}

impl Part {
    fn bytes(&self) -> &[u8] {
        match self {
            Part::Bytes(filled) => &filled.room[..filled.used],
            Part::Data(buffer, length) => &buffer[..*length],
        }
    }
}

/// Bytes to send, in order.
#[derive(Default)]
pub struct OutQueue {
    parts: VecDeque<Part>,
    /// Sent of the first part.
    sent: usize,
    bytes: usize,
    /// The socket took no more: it says when it does.
    is_full: bool,
    /// Kept for its memory.
    spare: Filled,
}

impl OutQueue {
    /// Bytes not sent yet.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether all was sent.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    fn last(&mut self) -> &mut Filled {
        if !matches!(self.parts.back(), Some(Part::Bytes(_))) {
            self.parts.push_back(Part::Bytes(std::mem::take(&mut self.spare)));
        }
        match self.parts.back_mut() {
            Some(Part::Bytes(filled)) => filled,
            _ => unreachable!("such a part was just put there"),
        }
    }

    /// Adds bytes through `fill`, behind all others.
    pub fn extend(&mut self, fill: impl FnOnce(&mut Vec<u8>)) {
        let filled = self.last();
        let before = filled.used;
        filled.room.truncate(before);
        fill(&mut filled.room);
        filled.used = filled.room.len();
        self.bytes += filled.used - before;
    }

    fn put<const N: usize>(&mut self, bytes: &[u8; N]) {
        self.last().take(N).copy_from_slice(bytes);
        self.bytes += N;
    }

    /// Done, without data.
    pub fn ok(&mut self, to: ReplyTo) {
        self.put(&simple(to.cookie, 0));
    }

    /// Failed.
    pub fn error(&mut self, to: ReplyTo, error: Errno) {
        if !to.is_structured {
            return self.put(&simple(to.cookie, error as u32));
        }
        self.put(&chunk(to.cookie, CHUNK_ERROR, 6));
        self.put(&(error as u32).to_be_bytes());
        self.put(&[0, 0]);
    }

    /// Data that `read` gets straight into its place. On an error nothing is queued.
    pub fn data_from<E>(
        &mut self,
        to: ReplyTo,
        length: usize,
        read: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let head = if to.is_structured { 28 } else { 16 };
        let filled = self.last();
        let (header, place) = filled.take(head + length).split_at_mut(head);
        if to.is_structured {
            header[..20].copy_from_slice(&chunk(to.cookie, CHUNK_DATA, length as u32 + 8));
            header[20..].copy_from_slice(&to.offset.to_be_bytes());
        } else {
            header.copy_from_slice(&simple(to.cookie, 0));
        }
        let result = read(place);
        match result {
            Ok(()) => self.bytes += head + length,
            Err(_) => filled.used -= head + length,
        }
        result
    }

    /// Data that lies in a buffer.
    pub fn data(&mut self, to: ReplyTo, buffer: AlignedBuf, length: usize, pool: &mut Pool) {
        if length <= COPY_BYTES_MAX {
            let copied = self.data_from(to, length, |place| {
                place.copy_from_slice(&buffer[..length]);
                Ok::<(), std::convert::Infallible>(())
            });
            debug_assert!(copied.is_ok());
            return pool.give(buffer);
        }
        if to.is_structured {
            self.put(&chunk(to.cookie, CHUNK_DATA, length as u32 + 8));
            self.put(&to.offset.to_be_bytes());
        } else {
            self.put(&simple(to.cookie, 0));
        }
        self.bytes += length;
        self.parts.push_back(Part::Data(buffer, length));
    }

    /// Extents of a block status: lengths and flags.
    pub fn extents(&mut self, to: ReplyTo, extents: &[(u32, u32)]) {
        self.extend(|out| {
            out.extend_from_slice(&chunk(to.cookie, CHUNK_STATUS, 4 + 8 * extents.len() as u32));
            out.extend_from_slice(&CONTEXT_ID.to_be_bytes());
            for (length, flags) in extents {
                out.extend_from_slice(&length.to_be_bytes());
                out.extend_from_slice(&flags.to_be_bytes());
            }
        });
    }

    /// The socket takes more.
    pub fn unblock(&mut self) {
        self.is_full = false;
    }

    /// Sends what the socket takes now.
    pub fn send(&mut self, mut socket: &UnixStream, pool: &mut Pool) -> io::Result<()> {
        while self.bytes > 0 && !self.is_full {
            let sent = match self.parts.front() {
                Some(only) if self.parts.len() == 1 => socket.write(&only.bytes()[self.sent..]),
                _ => {
                    let mut vectors = [IoSlice::new(&[]); VECTORS_MAX];
                    let mut skip = self.sent;
                    for (vector, part) in vectors.iter_mut().zip(&self.parts) {
                        *vector = IoSlice::new(&part.bytes()[skip..]);
                        skip = 0;
                    }
                    let count = self.parts.len().min(VECTORS_MAX);
                    socket.write_vectored(&vectors[..count])
                }
            };
            match sent {
                Ok(sent) => self.advance(sent, pool),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.is_full = true,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn advance(&mut self, sent: usize, pool: &mut Pool) {
        self.bytes -= sent;
        self.sent += sent;
        while let Some(part) = self.parts.front() {
            let length = part.bytes().len();
            if self.sent < length {
                return;
            }
            self.sent -= length;
            match self.parts.pop_front() {
                Some(Part::Data(buffer, _)) => pool.give(buffer),
                Some(Part::Bytes(mut filled)) if filled.room.capacity() <= 512 << 10 => {
                    filled.used = 0;
                    self.spare = filled;
                }
                _ => {}
            }
        }
    }
}

fn simple(cookie: u64, error: u32) -> [u8; 16] {
    let mut reply = [0u8; 16];
    reply[..4].copy_from_slice(&SIMPLE_MAGIC.to_be_bytes());
    reply[4..8].copy_from_slice(&error.to_be_bytes());
    reply[8..].copy_from_slice(&cookie.to_be_bytes());
    reply
}

fn chunk(cookie: u64, kind: u16, length: u32) -> [u8; 20] {
    let mut header = [0u8; 20];
    header[..4].copy_from_slice(&CHUNK_MAGIC.to_be_bytes());
    header[4..6].copy_from_slice(&CHUNK_DONE.to_be_bytes());
    header[6..8].copy_from_slice(&kind.to_be_bytes());
    header[8..16].copy_from_slice(&cookie.to_be_bytes());
    header[16..].copy_from_slice(&length.to_be_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;
    use std::io::Read;

    #[test]
    fn bytes_arrive_in_order_through_a_small_socket() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let (mut queue, mut pool) = (OutQueue::default(), Pool::new());
        let (mut random, mut expected) = (Random::new(5), Vec::new());
        for round in 0..200u64 {
            let to = ReplyTo { cookie: round, offset: 0, is_structured: false };
            let length = 1 + random.below(100_000) as usize;
            if random.below(2) == 0 {
                let mut buffer = pool.take(length);
                buffer[..length].fill(round as u8);
                queue.data(to, buffer, length, &mut pool);
            } else {
                let fill = |bytes: &mut [u8]| -> Result<(), ()> {
                    bytes.fill(round as u8);
                    Ok(())
                };
                queue.data_from(to, length, fill).unwrap();
            }
            expected.extend_from_slice(&simple(round, 0));
            expected.resize(expected.len() + length, round as u8);
        }
        let mut got = Vec::new();
        let mut piece = vec![0; 65536];
        while got.len() < expected.len() {
            queue.unblock();
            queue.send(&ours, &mut pool).unwrap();
            let count = theirs.read(&mut piece).unwrap();
            got.extend_from_slice(&piece[..count]);
        }
        assert!(queue.is_empty());
        assert!(got == expected);
    }

    #[test]
    fn a_failed_read_leaves_nothing_behind() {
        let mut queue = OutQueue::default();
        let to = ReplyTo { cookie: 1, offset: 0, is_structured: true };
        assert_eq!(queue.data_from(to, 4096, |_| Err(5)), Err(5));
        assert!(queue.is_empty());
        queue.error(to, Errno::Io);
        assert_eq!(queue.len(), 26);
    }
}
