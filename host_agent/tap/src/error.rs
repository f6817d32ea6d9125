//! What is told to whoever asked for something that cannot be done.

use std::fmt;
use std::io;

use serde_json::{json, Value};

/// A named error: what happened, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TapError {
    /// A word that programs may compare.
    pub code: &'static str,
    /// What happened, for a person.
    pub message: String,
    /// What to do about it.
    pub hint: &'static str,
    /// Whether the same request may succeed later by itself.
    pub retry: bool,
}

impl TapError {
    /// An error that needs somebody to change something.
    pub fn new(code: &'static str, message: impl Into<String>, hint: &'static str) -> TapError {
        TapError { code, message: message.into(), hint, retry: false }
    }

    /// An error that may pass by itself.
    pub fn passing(code: &'static str, message: impl Into<String>, hint: &'static str) -> TapError {
        TapError { code, message: message.into(), hint, retry: true }
    }

    /// A request that is not as the formats say.
    pub fn bad_request(message: impl Into<String>) -> TapError {
        TapError::new("bad_request", message, "Send the request as FORMAT.md section 3 says.")
    }

    /// A system call failed.
    pub fn system(what: &str, e: &io::Error) -> TapError {
        TapError::new("system", format!("{what}: {e}"), "See the system's message above.")
    }

    /// As an answer to the request `id`.
    pub fn answer(&self, id: &Value) -> Value {
        json!({
            "id": id,
            "ok": false,
            "error": self.code,
            "message": self.message,
            "hint": self.hint,
            "retry": self.retry,
        })
    }
}

impl fmt::Display for TapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} {}", self.code, self.message, self.hint)
    }
}

impl std::error::Error for TapError {}
