//! The tap of a host: its control socket, and the groups' threads.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{channel, Sender};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{json, Value};

use crate::disk::{self, Cache, DiskFile, OpenError};
use crate::error::TapError;
use crate::group::open::{self, Places};
use crate::group::orders::{Order, ReplyTo};
use crate::group::run::Group;
use crate::group::verbs::{self, Fields};
use crate::names;
use crate::ring::{RING_BYTES_MAX, RING_BYTES_MIN};
use crate::state::{DiskState, GroupState, Role};
use crate::sys::EventFd;

/// The protocol of the control sockets.
const VERSION: u64 = 1;
const RING_BYTES: u64 = 128 << 20;
const HOLD_MS: u64 = 200;
const HOLD_MS_MAX: u64 = 2000;
/// A disk that somebody else has is tried again for so long when it is attached.
const ATTACH_WAIT: Duration = Duration::from_secs(3);
/// And when the tap starts: the kernel keeps a killed tap's locks until its last write landed.
const START_WAIT: Duration = Duration::from_secs(15);
const TRY_AGAIN: Duration = Duration::from_millis(50);
/// An order to a group is carried out within this, or the group hangs.
const ORDER_WAIT: Duration = Duration::from_secs(30);

struct Handle {
    orders: Sender<Order>,
    wake: Arc<EventFd>,
    thread: JoinHandle<()>,
    role: Role,
}

/// All groups.
pub struct Host {
    places: Places,
    groups: BTreeMap<String, Handle>,
    engine: &'static str,
}

impl Host {
    /// Opens again what was attached. What cannot be opened is said and left out.
    pub fn start(places: Places) -> io::Result<Host> {
        let engine = crate::engine::Engine::new(places.engine)?.name();
        let states = places.state.load()?;
        let mut host = Host { places, groups: BTreeMap::new(), engine };
        for state in states {
            let name = state.group.clone();
            if let Err(e) = host.reopen(state) {
                eprintln!("holdfast-tap: group {name} is not served: {e}");
            }
        }
        Ok(host)
    }

    fn reopen(&mut self, mut state: GroupState) -> Result<(), TapError> {
        let mut opened = Vec::new();
        for disk in &state.disks {
            match open_patiently(disk, state.role, false, START_WAIT) {
                Ok(file) => opened.push((disk.clone(), file)),
                Err(e) => eprintln!("holdfast-tap: disk {}/{}: {e}", state.group, disk.name),
            }
        }
        let (mut core, left) = open::open(&self.places, &mut state)?;
        for (disk, file) in opened {
            open::add_disk(&mut core, &self.places, &disk, file, &left)?;
        }
        if let Some(stream) = &mut core.stream {
            stream.ring.forget_in_flight();
        }
        self.spawn(core, state)
    }

    fn spawn(&mut self, core: crate::group::core::Core, state: GroupState) -> Result<(), TapError> {
        let failed = |e: io::Error| TapError::system(&format!("group {}", core_name(&e)), &e);
        let wake = Arc::new(EventFd::new().map_err(failed)?);
        let (orders, inbox) = channel();
        let (name, role) = (state.group.clone(), state.role);
        let mut group = Group::new(core, state, self.places.clone(), wake.clone(), inbox)
            .map_err(|e| TapError::system(&format!("the sockets of group {name}"), &e))?;
        let shown = name.clone();
        let thread = std::thread::Builder::new().name(format!("g-{name}")).spawn(move || {
            if let Err(e) = group.run() {
                eprintln!("holdfast-tap: group {shown} ended: {e}");
            }
        });
        let thread = thread.map_err(failed)?;
        self.groups.insert(name, Handle { orders, wake, thread, role });
        Ok(())
    }

    fn order(&self, group: &str, make: impl FnOnce(ReplyTo) -> Order) -> Result<Value, TapError> {
        let Some(handle) = self.groups.get(group) else {
            return Err(TapError::new(
                "no_such_group",
                format!("there is no group {group:?}"),
                "`status` lists the groups.",
            ));
        };
        let dead = || {
            let message = format!("group {group} does not answer");
            TapError::new("group_dead", message, "See the tap's log, then restart the tap.")
        };
        let (reply, answer) = channel();
        handle.orders.send(make(reply)).map_err(|_| dead())?;
        handle.wake.signal();
        answer.recv_timeout(ORDER_WAIT).map_err(|_| dead())?
    }

    /// Serves one request of `tap.sock`. `Ok(None)`: stop, which is answered when it is done.
    pub fn request(&mut self, fields: &Fields) -> Result<Option<Value>, TapError> {
        let verb = fields.get("do").and_then(Value::as_str).unwrap_or("");
        match verb {
            "hello" => self.hello(fields).map(Some),
            "attach" => self.attach(fields).map(Some),
            "recover" => self.recover(fields).map(Some),
            "detach" => self.detach(fields).map(Some),
            "close" => self.close(fields).map(Some),
            "status" => self.status().map(Some),
            "stop" => Ok(None),
            _ => Err(TapError::bad_request(format!("{verb:?} is no verb of the tap"))),
        }
    }

    fn hello(&self, fields: &Fields) -> Result<Value, TapError> {
        let theirs = verbs::number(fields, "version")?;
        if theirs != VERSION {
            return Err(TapError::new(
                "version",
                format!("the client speaks version {theirs}, the tap {VERSION}"),
                "Update the older of the two.",
            ));
        }
        Ok(json!({
            "version": VERSION,
            "pid": std::process::id(),
            "build": env!("CARGO_PKG_VERSION"),
            "engine": self.engine,
            "failpoints": self.places.has_failpoints,
        }))
    }

    fn attach(&mut self, fields: &Fields) -> Result<Value, TapError> {
        let (group, name) = (verbs::text(fields, "group")?, verbs::text(fields, "disk")?);
        names::check("group", group)?;
        names::check("disk", name)?;
        let wanted = wanted_disk(name, fields)?;
        let ring_bytes = verbs::number_or(fields, "ring_bytes", RING_BYTES)?;
        if !(RING_BYTES_MIN..=RING_BYTES_MAX).contains(&ring_bytes) {
            return Err(TapError::bad_request(format!(
                "ring_bytes must be from {RING_BYTES_MIN} to {RING_BYTES_MAX}"
            )));
        }
        let hold_ms_max = verbs::number_or(fields, "hold_ms_max", HOLD_MS)?;
        if !(1..=HOLD_MS_MAX).contains(&hold_ms_max) {
            let message = format!("hold_ms_max must be from 1 to {HOLD_MS_MAX}");
            return Err(TapError::bad_request(message));
        }
        if let Some(answer) = self.already(group, &wanted, Role::Protected)? {
            return Ok(answer);
        }
        let is_new = !self.is_known(group, name)?;
        let file = open_patiently(&wanted, Role::Protected, is_new, ATTACH_WAIT)?;
        self.ensure_group(group, Role::Protected, ring_bytes, hold_ms_max)?;
        self.order(group, |reply| Order::Attach(Box::new(wanted), file, reply))
    }

    fn recover(&mut self, fields: &Fields) -> Result<Value, TapError> {
        let (group, name) = (verbs::text(fields, "group")?, verbs::text(fields, "disk")?);
        names::check("group", group)?;
        names::check("disk", name)?;
        let size = verbs::number(fields, "size")?;
        if verbs::number_or(fields, "block_size", disk::SECTOR)? != disk::SECTOR {
            return Err(TapError::bad_request("block_size must be 512"));
        }
        let wanted = DiskState {
            name: name.to_owned(),
            number: 0,
            path: PathBuf::from(verbs::text(fields, "path")?),
            cache: Cache::Writeback,
            size,
            is_mirror: false,
        };
        if let Some(answer) = self.already(group, &wanted, Role::Recovered)? {
            return Ok(answer);
        }
        let is_scratch = fields.get("scratch").and_then(Value::as_bool).unwrap_or(false);
        open::prepare_recovered(&wanted.path, size, is_scratch)?;
        let file = open_patiently(&wanted, Role::Recovered, false, ATTACH_WAIT)?;
        self.ensure_group(group, Role::Recovered, RING_BYTES_MIN, HOLD_MS)?;
        self.order(group, |reply| Order::Attach(Box::new(wanted), file, reply))
    }

    fn ensure_group(
        &mut self,
        group: &str,
        role: Role,
        ring_bytes: u64,
        hold_ms_max: u64,
    ) -> Result<(), TapError> {
        if self.groups.contains_key(group) {
            return Ok(());
        }
        let mut state = GroupState {
            version: 1,
            group: group.to_owned(),
            role,
            ring_bytes,
            hold_ms_max,
            generation: None,
            stored_generation: None,
            next_number: 0,
            disks: Vec::new(),
            clean: None,
        };
        let (core, _) = open::open(&self.places, &mut state)?;
        self.spawn(core, state)
    }

    /// The answer for what is attached already; an error for what is so in another way.
    fn already(
        &self,
        group: &str,
        wanted: &DiskState,
        role: Role,
    ) -> Result<Option<Value>, TapError> {
        let Some(handle) = self.groups.get(group) else { return Ok(None) };
        if handle.role != role {
            return Err(TapError::new(
                "other_role",
                format!("group {group} serves disks of the other kind"),
                "Use another name for the group.",
            ));
        }
        let status = self.order(group, Order::Status)?;
        let path = wanted.path.display().to_string();
        let disks = status["disks"].as_array().cloned().unwrap_or_default();
        let Some(found) = disks.iter().find(|disk| disk["disk"] == wanted.name.as_str()) else {
            return Ok(None);
        };
        if found["path"] != path.as_str() {
            return Err(TapError::new(
                "disk_name_taken",
                format!("group {group} has a disk {} at {}", wanted.name, found["path"]),
                "Use another name, or detach that disk first.",
            ));
        }
        let nbd = self.places.nbd_socket(group);
        Ok(Some(json!({
            "uri": format!("nbd+unix:///{}?socket={}", wanted.name, nbd.display()),
            "nbd_socket": nbd,
            "stream_socket": self.places.stream_socket(group),
            "size": found["size"],
            "number": found["number"],
        })))
    }

    fn is_known(&self, group: &str, name: &str) -> Result<bool, TapError> {
        if !self.groups.contains_key(group) {
            return Ok(false);
        }
        let status = self.order(group, Order::Status)?;
        let absent = status["absent"].as_array().cloned().unwrap_or_default();
        Ok(absent.iter().any(|absent| absent == name))
    }

    fn detach(&mut self, fields: &Fields) -> Result<Value, TapError> {
        let (group, name) = (verbs::text(fields, "group")?, verbs::text(fields, "disk")?);
        let is_forced = fields.get("force").and_then(Value::as_bool).unwrap_or(false);
        let name = name.to_owned();
        self.order(group, |reply| Order::Detach(name, is_forced, reply))
    }

    fn close(&mut self, fields: &Fields) -> Result<Value, TapError> {
        let group = verbs::text(fields, "group")?;
        if self.groups.get(group).is_some_and(|handle| handle.role == Role::Protected) {
            self.refuse_with_disks(group)?;
        }
        let answer = self.order(group, |reply| Order::Stop(true, reply));
        if let Some(handle) = self.groups.remove(group) {
            drop(handle.orders);
            handle.wake.signal();
            let _ = handle.thread.join();
        }
        answer
    }

    /// What is protected ends by `detach` alone, a disk at a time.
    fn refuse_with_disks(&self, group: &str) -> Result<(), TapError> {
        let status = self.order(group, Order::Status)?;
        let is_empty = |key: &str| status[key].as_array().is_some_and(Vec::is_empty);
        if is_empty("disks") && is_empty("absent") {
            return Ok(());
        }
        Err(TapError::new(
            "group_has_disks",
            format!("group {group} still has protected disks"),
            "Detach them first.",
        ))
    }

    fn status(&self) -> Result<Value, TapError> {
        let mut groups = Vec::new();
        for name in self.groups.keys() {
            groups.push(match self.order(name, Order::Status) {
                Ok(status) => status,
                Err(e) => {
                    json!({ "group": name, "error": e.code, "message": e.message, "disks": [] })
                }
            });
        }
        Ok(json!({ "pid": std::process::id(), "engine": self.engine, "groups": groups }))
    }

    /// An orderly stop of all groups.
    pub fn stop(mut self) -> bool {
        let mut is_clean = true;
        for name in self.groups.keys() {
            if let Err(e) = self.order(name, |reply| Order::Stop(false, reply)) {
                eprintln!("holdfast-tap: group {name} did not stop in order: {e}");
                is_clean = false;
            }
        }
        for (_, handle) in std::mem::take(&mut self.groups) {
            drop(handle.orders);
            handle.wake.signal();
            let _ = handle.thread.join();
        }
        is_clean
    }
}

fn core_name(e: &io::Error) -> String {
    e.kind().to_string()
}

fn cache_of(fields: &Fields) -> Result<Cache, TapError> {
    match fields.get("cache").and_then(Value::as_str) {
        None | Some("auto") => Ok(Cache::Auto),
        Some("none") => Ok(Cache::None),
        Some("writeback") => Ok(Cache::Writeback),
        Some(other) => Err(TapError::bad_request(format!("{other:?} is no cache mode"))),
    }
}

/// The disk that `attach` describes.
fn wanted_disk(name: &str, fields: &Fields) -> Result<DiskState, TapError> {
    let (name, cache) = (name.to_owned(), cache_of(fields)?);
    match fields.get("mode").and_then(Value::as_str) {
        None | Some("disk") => {
            let path = PathBuf::from(verbs::text(fields, "path")?);
            Ok(DiskState { name, number: 0, path, cache, size: 0, is_mirror: false })
        }
        Some("mirror") => {
            let size = verbs::number(fields, "size")?;
            if size == 0 || size % disk::SECTOR != 0 || size > disk::DISK_BYTES_MAX {
                return Err(TapError::bad_request(format!("a disk cannot have {size} bytes")));
            }
            let path = PathBuf::new();
            Ok(DiskState { name, number: 0, path, cache, size, is_mirror: true })
        }
        Some(other) => Err(TapError::bad_request(format!("{other:?} is no mode of a disk"))),
    }
}

fn open_patiently(
    disk: &DiskState,
    role: Role,
    is_new: bool,
    patience: Duration,
) -> Result<DiskFile, TapError> {
    if disk.is_mirror {
        return disk::open_mirror();
    }
    let until = Instant::now() + patience;
    loop {
        let cache = if role == Role::Recovered { Cache::Writeback } else { disk.cache };
        match disk::open(&disk.path, cache, is_new) {
            Ok(file) => return Ok(file),
            Err(OpenError::Bad(e)) => return Err(e),
            Err(OpenError::Busy(e)) if Instant::now() >= until => return Err(e),
            Err(OpenError::Busy(_)) => std::thread::sleep(TRY_AGAIN),
        }
    }
}

/// Takes the lock that keeps a second tap from the same state.
pub fn lock_state(folder: &Path) -> io::Result<OwnedFd> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = std::fs::OpenOptions::new();
    let file = options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(folder.join("lock"))?;
    crate::sys::files::lock_file(&file)?;
    Ok(file.into())
}
