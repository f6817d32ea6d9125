//! `holdfast-tap`: serves a host's protected and recovered disks over NBD and records each write.

#![deny(unsafe_code)]

mod clock;
mod coarse;
mod crash;
mod disk;
mod disk_record;
mod engine;
mod error;
mod failpoint;
mod group;
mod hist;
mod host;
mod hot;
mod hotlog;
mod inflight;
mod mirrors;
mod names;
mod nbd;
mod pool;
mod rangeset;
mod record;
mod recovered;
mod ring;
mod slab;
mod state;
mod stats;
mod stream;
#[allow(unsafe_code)]
mod sys;
#[cfg(test)]
mod testing;

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::{json, Value};

use engine::Choice;
use error::TapError;
use group::open::Places;
use host::Host;
use slab::Slab;
use state::StateDir;
use sys::{Epoll, Interest};

const USAGE: &str = "\
holdfast-tap: serves a host's protected disks over NBD and records each write

usage: holdfast-tap --run-dir DIR --state-dir DIR [--ring-dir DIR]
                    [--engine auto|io_uring|threads] [--failpoints]
       holdfast-tap --version

  --run-dir DIR    sockets: tap.sock, GROUP.nbd, GROUP.stream
  --state-dir DIR  what is attached, kept over restarts
  --ring-dir DIR   rings; must be in memory (default: a folder of its own in /dev/shm)
  --engine NAME    how disks are driven (default: auto)
  --failpoints     accept failpoints below the disks, for tests only
";
const CLIENTS_MAX: usize = 64;
const MESSAGE_BYTES_MAX: usize = 64 << 10;
const SIGNAL: u64 = 0;
const CONTROL: u64 = 1;
const FIRST_CLIENT: u64 = 16;

struct Options {
    run: PathBuf,
    state: PathBuf,
    rings: Option<PathBuf>,
    engine: Choice,
    has_failpoints: bool,
}

fn parse(arguments: &[String]) -> Result<Options, String> {
    let (mut run, mut state, mut rings) = (None, None, None);
    let (mut engine, mut has_failpoints) = (Choice::Auto, false);
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let mut value = || rest.next().ok_or(format!("{argument} needs a value"));
        match argument.as_str() {
            "--run-dir" => run = Some(PathBuf::from(value()?)),
            "--state-dir" => state = Some(PathBuf::from(value()?)),
            "--ring-dir" => rings = Some(PathBuf::from(value()?)),
            "--failpoints" => has_failpoints = true,
            "--engine" => {
                engine = match value()?.as_str() {
                    "auto" => Choice::Auto,
                    "io_uring" => Choice::Uring,
                    "threads" => Choice::Threads,
                    other => return Err(format!("{other:?} is no engine")),
                }
            }
            other => return Err(format!("{other:?} is not known")),
        }
    }
    let missing = |name: &str| format!("{name} is missing");
    Ok(Options {
        run: run.ok_or_else(|| missing("--run-dir"))?,
        state: state.ok_or_else(|| missing("--state-dir"))?,
        rings,
        engine,
        has_failpoints,
    })
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--version") {
        println!("holdfast-tap {}", env!("CARGO_PKG_VERSION"));
        return ExitCode::SUCCESS;
    }
    if arguments.iter().any(|argument| argument == "--help" || argument == "-h") {
        print!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    let options = match parse(&arguments) {
        Ok(options) => options,
        Err(what) => {
            eprintln!("holdfast-tap: {what}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match run(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("holdfast-tap: {e}");
            ExitCode::FAILURE
        }
    }
}

fn explain(what: &str, e: &io::Error) -> io::Error {
    io::Error::new(e.kind(), format!("{what}: {e}"))
}

fn make_folder(path: &PathBuf) -> io::Result<PathBuf> {
    let shown = path.display().to_string();
    std::fs::create_dir_all(path).map_err(|e| explain(&shown, &e))?;
    path.canonicalize().map_err(|e| explain(&shown, &e))
}

/// Rings of different taps on a host must not meet: each state folder has its own.
fn ring_folder(options: &Options, state: &std::path::Path) -> PathBuf {
    options.rings.clone().unwrap_or_else(|| {
        let name = crc32c::crc32c(state.as_os_str().as_encoded_bytes());
        PathBuf::from(format!("/dev/shm/holdfast-{name:08x}"))
    })
}

fn run(options: &Options) -> io::Result<bool> {
    sys::set_private_umask();
    sys::raise_descriptor_limit();
    if options.has_failpoints {
        crash::arm();
    }
    let signals = sys::stop_signals()?;
    let (run, state) = (make_folder(&options.run)?, make_folder(&options.state)?);
    let _lock = host::lock_state(&state).map_err(|e| {
        explain(&format!("another tap runs with the state of {}", state.display()), &e)
    })?;
    let rings = make_folder(&ring_folder(options, &state))?;
    let pid_file = run.join("tap.pid");
    std::fs::write(&pid_file, format!("{}\n", std::process::id()))?;
    let places = Places {
        run: run.clone(),
        rings: rings.clone(),
        state: StateDir::new(&state),
        engine: options.engine,
        has_failpoints: options.has_failpoints,
    };
    let host = Host::start(places)?;
    let socket = run.join("tap.sock");
    let control =
        sys::listen_messages(&socket).map_err(|e| explain(&format!("{}", socket.display()), &e))?;
    let is_clean = serve(host, &signals, &control)?;
    for path in [socket, pid_file] {
        let _ = std::fs::remove_file(path);
    }
    Ok(is_clean)
}

/// Serves `tap.sock` until a signal or `stop`.
fn serve(mut host: Host, signals: &OwnedFd, control: &OwnedFd) -> io::Result<bool> {
    let mut epoll = Epoll::new()?;
    epoll.add(signals, SIGNAL, Interest::READ)?;
    epoll.add(control, CONTROL, Interest::READ)?;
    let mut clients: Slab<OwnedFd> = Slab::default();
    let mut message = vec![0; MESSAGE_BYTES_MAX];
    let mut ready = Vec::new();
    loop {
        epoll.wait(-1, &mut ready)?;
        for event in std::mem::take(&mut ready) {
            match event.token {
                SIGNAL => return Ok(host.stop()),
                CONTROL => accept(&epoll, control, &mut clients),
                token => {
                    let slot = (token - FIRST_CLIENT) as usize;
                    let Some(client) = clients.get(slot) else { continue };
                    match answer(&mut host, client, &mut message) {
                        Next::More => {}
                        Next::Gone => drop(clients.remove(slot)),
                        Next::Stop(id) => {
                            let is_clean = host.stop();
                            let answer = json!({ "id": id, "ok": true, "clean": is_clean });
                            let _ = send(client, &answer);
                            return Ok(is_clean);
                        }
                    }
                }
            }
        }
    }
}

fn accept(epoll: &Epoll, control: &OwnedFd, clients: &mut Slab<OwnedFd>) {
    while let Ok(Some(fd)) = sys::accept(control) {
        if clients.len() >= CLIENTS_MAX {
            continue;
        }
        let raw = fd.as_raw_fd();
        let slot = clients.insert(fd);
        if epoll.add(&raw, FIRST_CLIENT + slot as u64, Interest::READ).is_err() {
            clients.remove(slot);
        }
    }
}

enum Next {
    More,
    Gone,
    Stop(Value),
}

fn send(client: &OwnedFd, message: &Value) -> io::Result<()> {
    sys::send_message(client, message.to_string().as_bytes(), None)
}

fn answer(host: &mut Host, client: &OwnedFd, message: &mut [u8]) -> Next {
    let length = match sys::receive_message(client, message) {
        Ok(Some(got)) if got.length > 0 && !got.is_truncated => got.length,
        Ok(None) => return Next::More,
        _ => return Next::Gone,
    };
    let Ok(Value::Object(fields)) = serde_json::from_slice::<Value>(&message[..length]) else {
        return Next::Gone;
    };
    let Some(id) = fields.get("id").filter(|id| id.is_u64()).cloned() else {
        let e = TapError::bad_request("\"id\" must be a whole number");
        return if send(client, &e.answer(&Value::Null)).is_ok() { Next::More } else { Next::Gone };
    };
    let reply = match host.request(&fields) {
        Ok(None) => return Next::Stop(id),
        Ok(Some(mut reply)) => {
            reply["id"] = id;
            reply["ok"] = json!(true);
            reply
        }
        Err(e) => e.answer(&id),
    };
    match send(client, &reply) {
        Ok(()) => Next::More,
        Err(_) => Next::Gone,
    }
}
