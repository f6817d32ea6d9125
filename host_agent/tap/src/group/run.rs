//! A group's thread: one loop over its clients, its control clients and its engine.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::sync::Arc;

use serde_json::{json, Value};

use super::control::{Ctl, MESSAGE_BYTES_MAX};
use super::core::{ConnRef, Core, Request};
use super::open::Places;
use super::orders::Order;
use super::spin::Spin;
use super::sync::SyncStep;
use crate::engine::Completion;
use crate::nbd::conn::{Conn, End, SCRATCH_BYTES};
use crate::slab::Slab;
use crate::state::GroupState;
use crate::stream::Cause;
use crate::sys::{self, Epoll, EventFd, Interest, Ready};

const WAKE: u64 = 0;
const CLIENTS: u64 = 1;
const CONTROL: u64 = 2;
const ENGINE: u64 = 3;
const KIND_CONN: u64 = 1 << 32;
const KIND_CTL: u64 = 2 << 32;
const SLOT: u64 = 0xffff_ffff;
/// Clients of a group at once.
const CONNS_MAX: usize = 256;
/// Control clients of a group at once.
const CTLS_MAX: usize = 32;
/// Longest time without a look at timers, ms.
const TICK_MS: u64 = 10_000;
/// Marks of filled ranges become durable within this, ms.
const MARK_MS: u64 = 1000;
/// Messages of one control client that are served before the guests are again.
const MESSAGES_AT_ONCE: usize = 32;

/// A client and what its socket is watched for.
pub struct Client {
    /// The connection.
    pub conn: Conn,
    watched: Interest,
}

/// A group and its sockets.
pub struct Group {
    /// Disks, stream, operations.
    pub core: Core,
    /// What is known again after a restart.
    pub state: GroupState,
    /// Where things are.
    pub places: Places,
    /// NBD clients.
    pub conns: Slab<Client>,
    /// Control clients.
    pub ctls: Slab<Ctl>,
    /// The request of the sync that runs: client, its number, id.
    pub syncing: Option<(usize, u64, Value)>,
    /// Why the thread ends, once it is to.
    pub is_ending: bool,
    epoll: Epoll,
    wake: Arc<EventFd>,
    orders: Receiver<Order>,
    clients: UnixListener,
    control: OwnedFd,
    scratch: Vec<u8>,
    message: Vec<u8>,
    touched: Vec<usize>,
    counted: u64,
    completions: Vec<Completion>,
    /// The sync can take another step at once.
    can_sync: bool,
    spin: Spin,
}

impl Group {
    /// Opens the sockets of a group.
    pub fn new(
        core: Core,
        state: GroupState,
        places: Places,
        wake: Arc<EventFd>,
        orders: Receiver<Order>,
    ) -> io::Result<Group> {
        let nbd = places.nbd_socket(&state.group);
        let _ = std::fs::remove_file(&nbd);
        let clients = UnixListener::bind(&nbd)?;
        clients.set_nonblocking(true)?;
        let control = sys::listen_messages(&places.stream_socket(&state.group))?;
        let epoll = Epoll::new()?;
        epoll.add(&*wake, WAKE, Interest::READ)?;
        epoll.add(&clients, CLIENTS, Interest::READ)?;
        epoll.add(&control, CONTROL, Interest::READ)?;
        epoll.add(&core.engine, ENGINE, Interest::READ)?;
        Ok(Group {
            core,
            state,
            places,
            conns: Slab::default(),
            ctls: Slab::default(),
            syncing: None,
            is_ending: false,
            epoll,
            wake,
            orders,
            clients,
            control,
            scratch: vec![0; SCRATCH_BYTES + 4096],
            message: vec![0; MESSAGE_BYTES_MAX],
            touched: Vec::new(),
            counted: 0,
            completions: Vec::new(),
            can_sync: false,
            spin: Spin::default(),
        })
    }

    /// Serves until an order ends it.
    pub fn run(&mut self) -> io::Result<()> {
        let mut ready = Vec::with_capacity(64);
        while !self.is_ending {
            let timeout = self.timeout_ms();
            let answered = std::mem::take(&mut self.core.answered);
            if timeout == 0 || !self.spin.look(answered, &mut self.epoll, &mut ready)? {
                self.epoll.wait(timeout, &mut ready)?;
            }
            self.core.clock.tick();
            for event in ready.drain(..) {
                self.serve(event);
            }
            self.work();
        }
        Ok(())
    }

    /// Everything that follows from what came in.
    pub fn work(&mut self) {
        self.end_cut();
        self.core.run_delayed();
        self.core.check_hold_timer();
        self.core.check_mirrors();
        self.core.check_needs();
        self.core.mark_filled();
        self.core.tend_marks();
        self.run_sync();
        self.run_ready();
        self.hand_out();
        self.go_on();
        self.end_cut();
        self.tell_control();
        self.send_touched();
    }

    fn timeout_ms(&self) -> i32 {
        // A client that was left waiting and was answered meanwhile is watched for nothing: it
        // goes on in the next round.
        let may_resume = |client: &Client| {
            client.conn.is_paused && !client.conn.is_closing && client.conn.may_go_on(&self.core)
        };
        let is_work = self.can_sync
            || !self.core.ready.is_empty()
            || self.conns.iter().any(|(_, client)| may_resume(client));
        if is_work {
            return 0;
        }
        let now = self.core.clock.mono_ns;
        let deadlines = [
            self.core.holds.deadline_ns(),
            self.core.needs.deadline_ns(),
            self.core.mirror_deadline_ns(),
            self.core.sync.deadline_ns().filter(|at| *at > now),
            self.core.delayed.iter().map(|delayed| delayed.until_ns).min(),
            self.ctls.iter().filter_map(|(_, ctl)| ctl.deadline_ns()).min(),
            self.conns.iter().filter_map(|(_, client)| client.conn.deadline_ns).min(),
            self.core.has_unmarked().then_some(now + MARK_MS * 1_000_000),
        ];
        let next = deadlines.into_iter().flatten().min();
        let Some(at) = next else { return TICK_MS as i32 };
        let left = at.saturating_sub(self.core.clock.elapsed_ns()).div_ceil(1_000_000);
        left.min(TICK_MS) as i32
    }

    fn serve(&mut self, event: Ready) {
        let slot = (event.token & SLOT) as usize;
        match event.token {
            WAKE => {
                self.wake.drain();
                self.take_orders();
            }
            CLIENTS => self.accept_clients(),
            CONTROL => self.accept_control(),
            ENGINE => self.reap(),
            token if token & KIND_CONN != 0 => self.serve_conn(slot, event),
            _ => self.serve_ctl(slot, event),
        }
    }

    fn take_orders(&mut self) {
        loop {
            match self.orders.try_recv() {
                Ok(order) => self.obey(order),
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => {
                    self.is_ending = true;
                    return;
                }
            }
        }
    }

    /// Takes completions.
    pub fn reap(&mut self) {
        let mut completions = std::mem::take(&mut self.completions);
        self.core.engine.reap(&mut completions);
        for completion in completions.drain(..) {
            self.core.complete(completion);
        }
        self.completions = completions;
    }

    // --- NBD clients

    fn accept_clients(&mut self) {
        while let Ok((socket, _)) = self.clients.accept() {
            if self.conns.len() >= CONNS_MAX || self.add_client(socket).is_none() {
                return;
            }
        }
    }

    fn add_client(&mut self, socket: UnixStream) -> Option<()> {
        socket.set_nonblocking(true).ok()?;
        self.counted += 1;
        let me = ConnRef { slot: 0, number: self.counted };
        let conn = Conn::new(socket, me, self.core.clock.mono_ns);
        let slot = self.conns.insert(Client { conn, watched: Interest::READ });
        let client = self.conns.get_mut(slot)?;
        client.conn.me.slot = slot;
        let token = KIND_CONN | slot as u64;
        if self.epoll.add(&client.conn.socket, token, Interest::READ).is_err() {
            self.conns.remove(slot);
            return None;
        }
        self.touched.push(slot);
        Some(())
    }

    fn serve_conn(&mut self, slot: usize, event: Ready) {
        let Some(client) = self.conns.get_mut(slot) else { return };
        if event.write {
            client.conn.out.unblock();
        }
        if event.read {
            if !client.watched.read {
                // Nothing is read from it now, so this says that it went away.
                return self.end_conn(slot, End::Gone);
            }
            self.input(slot, true);
        }
        self.touched.push(slot);
    }

    fn input(&mut self, slot: usize, may_read: bool) {
        let Some(client) = self.conns.get_mut(slot) else { return };
        let (core, scratch) = (&mut self.core, &mut self.scratch[..]);
        let work = AssertUnwindSafe(|| client.conn.input(core, scratch, may_read));
        match catch_unwind(work) {
            Ok(Ok(())) => {}
            Ok(Err(why)) => self.end_conn(slot, why),
            Err(_) => {
                let disk = client.conn.disk();
                self.panicked(slot, disk);
            }
        }
    }

    /// A panic while serving a client ends that client; its disk is read again.
    fn panicked(&mut self, slot: usize, disk: Option<usize>) {
        self.end_conn(slot, End::Gone);
        let Some(disk) = disk.and_then(|slot| self.core.disks.get_mut(slot)) else { return };
        disk.stats.panics += 1;
        if let Some(stream) = &mut self.core.stream {
            stream.disk_differs(disk.number, 0..disk.size, Cause::DiskError);
        }
        disk.hot.go_whole();
    }

    /// Ends a connection.
    pub fn end_conn(&mut self, slot: usize, why: End) {
        if let Some(client) = self.conns.remove(slot) {
            client.conn.end(&mut self.core, why);
        }
    }

    fn run_ready(&mut self) {
        loop {
            let work = AssertUnwindSafe(|| self.core.run_ready());
            let result = catch_unwind(work);
            let broken: Vec<Request> = std::mem::take(&mut self.core.broken);
            for request in &broken {
                let slot = self.find_conn(request.conn);
                self.panicked(slot.unwrap_or(usize::MAX), Some(request.disk));
            }
            if result.is_ok() {
                return;
            }
        }
    }

    fn find_conn(&self, who: ConnRef) -> Option<usize> {
        let client = self.conns.get(who.slot)?;
        (client.conn.me == who).then_some(who.slot)
    }

    /// Late answers go to their connections.
    fn hand_out(&mut self) {
        for reply in std::mem::take(&mut self.core.replies) {
            let Some(slot) = self.find_conn(reply.request.conn) else { continue };
            if let Some(client) = self.conns.get_mut(slot) {
                client.conn.late(&mut self.core, &reply.request, reply.answer);
                self.touched.push(slot);
            }
        }
    }

    /// Connections that were left waiting may go on when something became free.
    fn go_on(&mut self) {
        let paused: Vec<usize> = self
            .conns
            .iter()
            .filter(|(_, client)| client.conn.is_paused)
            .map(|(slot, _)| slot)
            .collect();
        for slot in paused {
            self.send(slot);
            self.input(slot, false);
            self.touched.push(slot);
        }
        let now = self.core.clock.mono_ns;
        let is_late = |client: &Client| client.conn.deadline_ns.is_some_and(|at| at <= now);
        let late: Vec<usize> =
            self.conns.iter().filter(|(_, client)| is_late(client)).map(|(slot, _)| slot).collect();
        for slot in late {
            self.end_conn(slot, End::Malformed);
        }
        self.run_ready();
        self.hand_out();
    }

    fn send_touched(&mut self) {
        let mut touched = std::mem::take(&mut self.touched);
        for slot in touched.drain(..) {
            self.send(slot);
            self.watch(slot);
        }
        self.touched = touched;
    }

    fn send(&mut self, slot: usize) {
        let Some(client) = self.conns.get_mut(slot) else { return };
        let sent = client.conn.out.send(&client.conn.socket, &mut self.core.pool);
        if sent.is_err() || client.conn.is_over() {
            self.end_conn(slot, End::Gone);
        }
    }

    fn watch(&mut self, slot: usize) {
        let Some(client) = self.conns.get_mut(slot) else { return };
        let conn = &client.conn;
        let wanted =
            Interest { read: !conn.is_paused && !conn.is_closing, write: !conn.out.is_empty() };
        if wanted != client.watched {
            client.watched = wanted;
            let token = KIND_CONN | slot as u64;
            if self.epoll.modify(&client.conn.socket, token, wanted).is_err() {
                self.end_conn(slot, End::Gone);
            }
        }
    }

    // --- control clients

    fn accept_control(&mut self) {
        while let Ok(Some(fd)) = sys::accept(&self.control) {
            if self.ctls.len() >= CTLS_MAX {
                continue;
            }
            self.counted += 1;
            let slot = self.ctls.insert(Ctl::new(fd, self.counted));
            let Some(ctl) = self.ctls.get(slot) else { continue };
            if self.epoll.add(&ctl.fd, KIND_CTL | slot as u64, Interest::READ).is_err() {
                self.ctls.remove(slot);
            }
        }
    }

    fn serve_ctl(&mut self, slot: usize, event: Ready) {
        if event.write {
            if let Some(ctl) = self.ctls.get_mut(slot) {
                if ctl.flush().is_err() {
                    return self.end_ctl(slot);
                }
            }
        }
        for _ in 0..MESSAGES_AT_ONCE {
            let Some(ctl) = self.ctls.get(slot) else { return };
            let mut message = std::mem::take(&mut self.message);
            let got = sys::receive_message(&ctl.fd, &mut message);
            let is_more = match got {
                Ok(Some(got)) if got.length > 0 && !got.is_truncated => {
                    self.request(slot, &message[..got.length], got.descriptor)
                }
                Ok(None) => false,
                _ => {
                    self.end_ctl(slot);
                    false
                }
            };
            self.message = message;
            if !is_more {
                return;
            }
        }
    }

    /// Ends a control client; what it was for ends with it.
    pub fn end_ctl(&mut self, slot: usize) {
        let Some(ctl) = self.ctls.remove(slot) else { return };
        if ctl.is_provider {
            self.core.clear_provider();
        }
        self.core.confirmer_gone(ctl.number);
        if self.syncing.as_ref().is_some_and(|(_, number, _)| *number == ctl.number) {
            self.syncing = None;
            self.core.sync.cancel();
        }
    }

    fn run_sync(&mut self) {
        self.can_sync = false;
        if !self.core.sync.is_wanted() {
            return;
        }
        let mut answer = match self.core.step_sync() {
            SyncStep::More => {
                self.can_sync = self.core.sync.is_runnable();
                return;
            }
            SyncStep::Wait => return,
            SyncStep::Done(answer) => answer,
        };
        let Some((slot, number, id)) = self.syncing.take() else { return };
        answer["id"] = id;
        answer["ok"] = json!(true);
        let is_same = self.ctls.get(slot).is_some_and(|ctl| ctl.number == number);
        if is_same {
            self.send_ctl(slot, &answer, None);
        }
    }

    /// Sends a message to a control client, or ends it.
    pub fn send_ctl(&mut self, slot: usize, message: &Value, pass: Option<OwnedFd>) {
        let Some(ctl) = self.ctls.get_mut(slot) else { return };
        let result = ctl.send(message, pass);
        let interest = Interest { read: true, write: ctl.has_unsent() };
        let is_watched = self.epoll.modify(&ctl.fd, KIND_CTL | slot as u64, interest).is_ok();
        if result.is_err() || !is_watched {
            self.end_ctl(slot);
        }
    }

    fn tell_control(&mut self) {
        let provider = self.ctls.iter().find(|(_, ctl)| ctl.is_provider).map(|(slot, _)| slot);
        if let Some(slot) = provider {
            while let Some(event) = self.core.needs.events.pop_front() {
                self.send_ctl(slot, &event, None);
            }
        }
        let waiting: Vec<usize> = self
            .ctls
            .iter()
            .filter(|(_, ctl)| ctl.deadline_ns().is_some())
            .map(|(slot, _)| slot)
            .collect();
        for slot in waiting {
            let Some(ctl) = self.ctls.get_mut(slot) else { continue };
            if ctl.answer_waits(&mut self.core).is_err() {
                self.end_ctl(slot);
            }
        }
    }
}
