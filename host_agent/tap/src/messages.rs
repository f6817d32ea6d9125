//! The control sockets: clients, one JSON object a message, answers that may wait.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use serde_json::Value;

use crate::error::TapError;
use crate::sys::{self, Epoll, Interest};

/// The longest message, bytes.
pub const MESSAGE_BYTES_MAX: usize = 64 << 10;
/// Messages that wait for a client to read; beyond it the client is gone.
const UNSENT_MAX: usize = 4096;
/// Messages taken from one client before others have their turn.
const TURN: usize = 64;

/// A client of a control socket.
#[derive(Debug)]
pub struct Client {
    socket: OwnedFd,
    token: u64,
    unsent: VecDeque<(Vec<u8>, Option<File>)>,
}

/// A request, as far as it makes sense.
#[derive(Debug)]
pub struct Asked {
    /// The client's number for it.
    pub id: Value,
    /// What is asked.
    pub verb: String,
    /// All of it.
    pub body: Value,
    /// A descriptor that came along.
    pub descriptor: Option<OwnedFd>,
}

impl Client {
    /// A client that was accepted; watched under `token`.
    pub fn new(socket: OwnedFd, token: u64, epoll: &Epoll) -> io::Result<Client> {
        epoll.add(&socket, token, Interest::READ)?;
        Ok(Client { socket, token, unsent: VecDeque::new() })
    }

    /// Takes what it asked, a turn's worth. `Err`: it is gone.
    pub fn take(&mut self, epoll: &Epoll, asked: &mut Vec<Asked>) -> Result<(), ()> {
        let mut body = vec![0; MESSAGE_BYTES_MAX + 1];
        for _ in 0..TURN {
            let message = match sys::receive_message(&self.socket, &mut body) {
                Ok(None) => return Ok(()),
                Ok(Some(message)) if message.length > 0 => message,
                Ok(Some(_)) | Err(_) => return Err(()),
            };
            let is_long = message.is_truncated || message.length > MESSAGE_BYTES_MAX;
            match understand(&body[..message.length], is_long) {
                Ok((id, verb, body)) => {
                    asked.push(Asked { id, verb, body, descriptor: message.descriptor });
                }
                Err((id, e)) => self.send(epoll, &e.answer(&id), None)?,
            }
        }
        Ok(())
    }

    /// Sends a message, at once or when the client reads. `Err`: it is gone.
    pub fn send(&mut self, epoll: &Epoll, message: &Value, pass: Option<File>) -> Result<(), ()> {
        let bytes = message.to_string().into_bytes();
        if self.unsent.len() >= UNSENT_MAX {
            return Err(());
        }
        let was_empty = self.unsent.is_empty();
        self.unsent.push_back((bytes, pass));
        if was_empty {
            self.flush(epoll)?;
        }
        Ok(())
    }

    /// Sends what waited.
    pub fn flush(&mut self, epoll: &Epoll) -> Result<(), ()> {
        while let Some((bytes, pass)) = self.unsent.front() {
            match sys::send_message(&self.socket, bytes, pass.as_ref().map(AsFd::as_fd)) {
                Ok(()) => {
                    self.unsent.pop_front();
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(()),
            }
        }
        let interest = Interest { read: true, write: !self.unsent.is_empty() };
        epoll.modify(&self.socket, self.token, interest).map_err(|_| ())
    }
}

type Understood = (Value, String, Value);

fn understand(bytes: &[u8], is_long: bool) -> Result<Understood, (Value, TapError)> {
    let bad = |id: Value, what: &str| (id, TapError::bad_request(what));
    if is_long {
        return Err(bad(Value::Null, "a message has at most 64 KiB"));
    }
    let body: Value =
        serde_json::from_slice(bytes).map_err(|_| bad(Value::Null, "a message is a JSON object"))?;
    let id = match body.get("id") {
        Some(id) if id.is_u64() => id.clone(),
        _ => return Err(bad(Value::Null, "\"id\" must be a number from 0")),
    };
    match body.get("do").and_then(Value::as_str) {
        Some(verb) => Ok((id, verb.to_owned(), body)),
        None => Err(bad(id, "\"do\" must name a verb")),
    }
}

/// `answer` with `id` and `ok`.
pub fn good(id: &Value, answer: Value) -> Value {
    let mut answer = if answer.is_object() { answer } else { serde_json::json!({}) };
    answer["id"] = id.clone();
    answer["ok"] = Value::Bool(true);
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_request_is_answered_as_far_as_it_can_be() {
        let bad: [&[u8]; 6] = [b"", b"[1]", b"{}", b"{\"id\":-1}", b"{\"id\":{}}", b"\xff"];
        for bytes in bad {
            assert_eq!(understand(bytes, false).unwrap_err().0, Value::Null);
        }
        assert_eq!(understand(b"{\"id\":7}", false).unwrap_err().0, 7);
        assert_eq!(understand(b"{\"id\":7,\"do\":\"x\"}", false).unwrap().1, "x");
        let deep = [b"[".repeat(60_000), b"{\"id\":".repeat(9000)].concat();
        assert!(understand(&deep, false).is_err());
    }
}
