//! The kernel's calls that the standard library lacks, each behind a safe function. Only here and
//! in its parts (`sys/`) is `unsafe` allowed: every block says why it holds.

pub mod crc;
pub mod files;
mod map;
pub mod uring;

pub use map::Map;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::NonNull;

/// Page and direct-I/O alignment of every buffer, bytes.
pub const ALIGNMENT: usize = 4096;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

fn check_size(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

fn owned(result: libc::c_int) -> io::Result<OwnedFd> {
    let fd = check(result)?;
    // SAFETY: the kernel just gave us this descriptor and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Files that this process makes are its own (0600, 0700).
pub fn set_private_umask() {
    // SAFETY: umask has no memory effects and cannot fail.
    unsafe { libc::umask(0o077) };
}

/// Lets the process hold as many descriptors as its hard limit allows.
pub fn raise_descriptor_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls only read or write the struct that outlives them.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
}

/// Ends this process as `kill -9` does.
pub fn end_at_once() {
    // SAFETY: no memory is passed.
    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
}

/// Blocks SIGTERM and SIGINT in this and all later threads, and gives a descriptor that tells.
pub fn stop_signals() -> io::Result<OwnedFd> {
    // SAFETY: the set is initialised by sigemptyset before it is used, and outlives the calls.
    unsafe {
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGTERM);
        libc::sigaddset(&mut set, libc::SIGINT);
        check(libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()))?;
        owned(libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK))
    }
}

/// What to wait for on a descriptor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Interest {
    /// Wake when it can be read.
    pub read: bool,
    /// Wake when it can be written.
    pub write: bool,
}

impl Interest {
    /// Reading only.
    pub const READ: Interest = Interest { read: true, write: false };

    fn bits(self) -> u32 {
        let mut bits = 0;
        if self.read {
            bits |= libc::EPOLLIN | libc::EPOLLRDHUP;
        }
        if self.write {
            bits |= libc::EPOLLOUT;
        }
        bits as u32
    }
}

/// One descriptor's readiness.
#[derive(Clone, Copy, Debug)]
pub struct Ready {
    /// The number that it was registered with.
    pub token: u64,
    /// It can be read, or ended, or failed.
    pub read: bool,
    /// It can be written, or failed.
    pub write: bool,
}

/// Waits on many descriptors (level-triggered).
pub struct Epoll {
    fd: OwnedFd,
    events: Vec<libc::epoll_event>,
}

impl Epoll {
    /// A new set, reporting at most 64 at a time.
    pub fn new() -> io::Result<Epoll> {
        // SAFETY: no memory is passed.
        let fd = owned(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        Ok(Epoll { fd, events: vec![libc::epoll_event { events: 0, u64: 0 }; 64] })
    }

    fn control(&self, what: i32, fd: RawFd, token: u64, interest: Interest) -> io::Result<()> {
        let mut event = libc::epoll_event { events: interest.bits(), u64: token };
        // SAFETY: the event outlives the call, which copies it.
        check(unsafe { libc::epoll_ctl(self.fd.as_raw_fd(), what, fd, &mut event) })?;
        Ok(())
    }

    /// Begins to watch `fd`.
    pub fn add(&self, fd: &impl AsRawFd, token: u64, interest: Interest) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd.as_raw_fd(), token, interest)
    }

    /// Changes what `fd` is watched for.
    pub fn modify(&self, fd: &impl AsRawFd, token: u64, interest: Interest) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd.as_raw_fd(), token, interest)
    }

    /// Waits until something is ready or `timeout_ms` went by (-1: for ever).
    pub fn wait(&mut self, timeout_ms: i32, out: &mut Vec<Ready>) -> io::Result<()> {
        out.clear();
        let room = self.events.len() as i32;
        // SAFETY: the kernel writes at most `room` events into the vector's own memory.
        let count = unsafe {
            libc::epoll_wait(self.fd.as_raw_fd(), self.events.as_mut_ptr(), room, timeout_ms)
        };
        let count = match check(count) {
            Ok(count) => count as usize,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => 0,
            Err(e) => return Err(e),
        };
        let failed = (libc::EPOLLHUP | libc::EPOLLERR) as u32;
        let readable = (libc::EPOLLIN | libc::EPOLLRDHUP) as u32;
        out.extend(self.events[..count].iter().map(|event| Ready {
            token: event.u64,
            read: event.events & (readable | failed) != 0,
            write: event.events & (libc::EPOLLOUT as u32 | failed) != 0,
        }));
        Ok(())
    }
}

/// Wakes a thread that waits in [`Epoll`].
#[derive(Debug)]
pub struct EventFd {
    fd: OwnedFd,
}

impl EventFd {
    /// A new one, not signalled.
    pub fn new() -> io::Result<EventFd> {
        // SAFETY: no memory is passed.
        let fd = owned(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
        Ok(EventFd { fd })
    }

    /// Makes it readable. A counter that is full is readable already.
    pub fn signal(&self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: eight bytes are read from a local array.
        unsafe { libc::write(self.fd.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }

    /// Makes it unreadable.
    pub fn drain(&self) {
        let mut value = [0u8; 8];
        // SAFETY: at most eight bytes are written into a local array.
        unsafe { libc::read(self.fd.as_raw_fd(), value.as_mut_ptr().cast(), value.len()) };
    }
}

impl AsRawFd for EventFd {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// A listening Unix socket that keeps messages apart. An old socket file is replaced.
pub fn listen_messages(path: &Path) -> io::Result<OwnedFd> {
    let bytes = path.as_os_str().as_bytes();
    // SAFETY: an all-zero sockaddr_un is valid.
    let mut address = unsafe { std::mem::zeroed::<libc::sockaddr_un>() };
    if bytes.is_empty() || bytes.len() >= address.sun_path.len() || bytes.contains(&0) {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no memory is passed.
    let fd = owned(unsafe { libc::socket(libc::AF_UNIX, kind, 0) })?;
    let _ = std::fs::remove_file(path);
    let size = std::mem::size_of::<libc::sockaddr_un>() as libc::socklen_t;
    // SAFETY: the address is a whole, initialised sockaddr_un that outlives the call.
    check(unsafe { libc::bind(fd.as_raw_fd(), std::ptr::from_ref(&address).cast(), size) })?;
    // SAFETY: no memory is passed.
    check(unsafe { libc::listen(fd.as_raw_fd(), 16) })?;
    Ok(fd)
}

/// The next client of a listening socket; `None` when there is none now.
pub fn accept(listener: &impl AsRawFd) -> io::Result<Option<OwnedFd>> {
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    let (no_address, no_size) = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: null says that the address is not wanted.
    match owned(unsafe { libc::accept4(listener.as_raw_fd(), no_address, no_size, flags) }) {
        Ok(fd) => Ok(Some(fd)),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => Ok(None),
        Err(e) => Err(e),
    }
}

const CONTROL_BYTES: usize = 64;

#[repr(C, align(8))]
struct ControlSpace([u8; CONTROL_BYTES]);

fn message_header(
    iov: &mut libc::iovec,
    control: Option<&mut ControlSpace>,
    control_length: usize,
) -> libc::msghdr {
    // SAFETY: an all-zero msghdr is valid: no name, no vectors, no control data.
    let mut header = unsafe { std::mem::zeroed::<libc::msghdr>() };
    header.msg_iov = iov;
    header.msg_iovlen = 1;
    if let Some(space) = control {
        header.msg_control = space.0.as_mut_ptr().cast();
        header.msg_controllen = control_length as _;
    }
    header
}

/// Sends one message, and a descriptor with it.
pub fn send_message(fd: &impl AsRawFd, body: &[u8], pass: Option<BorrowedFd>) -> io::Result<()> {
    let mut iov = libc::iovec { iov_base: body.as_ptr().cast_mut().cast(), iov_len: body.len() };
    let mut space = ControlSpace([0; CONTROL_BYTES]);
    let payload = std::mem::size_of::<RawFd>() as u32;
    // SAFETY: CMSG_SPACE only computes.
    let room = unsafe { libc::CMSG_SPACE(payload) } as usize;
    let header = message_header(&mut iov, pass.is_some().then_some(&mut space), room);
    if let Some(passed) = pass {
        // SAFETY: the control space is aligned, larger than `room` and lives until sendmsg
        // returned; CMSG_FIRSTHDR points into it.
        unsafe {
            let first = libc::CMSG_FIRSTHDR(&header);
            (*first).cmsg_level = libc::SOL_SOCKET;
            (*first).cmsg_type = libc::SCM_RIGHTS;
            (*first).cmsg_len = libc::CMSG_LEN(payload) as _;
            libc::CMSG_DATA(first).cast::<RawFd>().write_unaligned(passed.as_raw_fd());
        }
    }
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    // SAFETY: vectors and control data outlive the call, which only reads them.
    check_size(unsafe { libc::sendmsg(fd.as_raw_fd(), &header, flags) })?;
    Ok(())
}

/// One received message.
pub struct Message {
    /// Bytes of the body that are in the caller's buffer; 0: the peer ended.
    pub length: usize,
    /// The body was longer than the buffer.
    pub is_truncated: bool,
    /// A descriptor that came with it.
    pub descriptor: Option<OwnedFd>,
}

/// Receives one message; `None` when there is none now.
pub fn receive_message(fd: &impl AsRawFd, body: &mut [u8]) -> io::Result<Option<Message>> {
    let mut iov = libc::iovec { iov_base: body.as_mut_ptr().cast(), iov_len: body.len() };
    let mut space = ControlSpace([0; CONTROL_BYTES]);
    let mut header = message_header(&mut iov, Some(&mut space), CONTROL_BYTES);
    let flags = libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT;
    // SAFETY: the kernel writes into `body` and the control space within the given lengths.
    let got = check_size(unsafe { libc::recvmsg(fd.as_raw_fd(), &mut header, flags) });
    let length = match got {
        Ok(length) => length,
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
        Err(e) => return Err(e),
    };
    let mut descriptor = None;
    // SAFETY: the macros walk the control data that the kernel wrote, within msg_controllen;
    // each descriptor in it is new and ours: all are owned, so those not wanted are closed.
    unsafe {
        let mut next = libc::CMSG_FIRSTHDR(&header);
        while let Some(part) = next.as_ref() {
            if part.cmsg_level == libc::SOL_SOCKET && part.cmsg_type == libc::SCM_RIGHTS {
                let bytes = part.cmsg_len - libc::CMSG_LEN(0) as usize;
                let data = libc::CMSG_DATA(next).cast::<RawFd>();
                for at in 0..bytes / std::mem::size_of::<RawFd>() {
                    descriptor = Some(OwnedFd::from_raw_fd(data.add(at).read_unaligned()));
                }
            }
            next = libc::CMSG_NXTHDR(&header, next);
        }
    }
    let is_truncated = header.msg_flags & libc::MSG_TRUNC != 0;
    Ok(Some(Message { length, is_truncated, descriptor }))
}

/// Lets a Unix socket hold more that its reader has not taken yet. Only a wish.
pub fn widen_send_buffer(socket: &impl AsRawFd, bytes: i32) {
    let size = std::mem::size_of::<i32>() as libc::socklen_t;
    let value = std::ptr::from_ref(&bytes).cast();
    // SAFETY: the kernel reads one int.
    unsafe {
        let (level, name) = (libc::SOL_SOCKET, libc::SO_SNDBUF);
        libc::setsockopt(socket.as_raw_fd(), level, name, value, size);
    }
}

/// Bytes on the heap, aligned for direct I/O and zero at first.
#[derive(Debug)]
pub struct AlignedBuf {
    start: NonNull<u8>,
    capacity: usize,
}

// SAFETY: the memory belongs to the value; it moves between threads as a whole.
unsafe impl Send for AlignedBuf {}

impl AlignedBuf {
    fn layout(capacity: usize) -> std::alloc::Layout {
        std::alloc::Layout::from_size_align(capacity, ALIGNMENT)
            .unwrap_or_else(|_| panic!("a buffer of {capacity} bytes"))
    }

    /// A buffer of `capacity` bytes (at least one).
    pub fn new(capacity: usize) -> AlignedBuf {
        let capacity = capacity.max(1).next_multiple_of(ALIGNMENT);
        let layout = Self::layout(capacity);
        // SAFETY: the layout's size is not zero.
        let start = unsafe { std::alloc::alloc_zeroed(layout) };
        let start = NonNull::new(start).unwrap_or_else(|| std::alloc::handle_alloc_error(layout));
        AlignedBuf { start, capacity }
    }

    /// Its size, bytes.
    pub fn capacity(&self) -> usize {
        self.capacity
    }
}

impl std::ops::Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `capacity` initialised bytes that live as long as `self`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.capacity) }
    }
}

impl std::ops::DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `self` is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.capacity) }
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with the same layout.
        unsafe { std::alloc::dealloc(self.start.as_ptr(), Self::layout(self.capacity)) };
    }
}
