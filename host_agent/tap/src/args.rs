//! Fields of a request, checked.

use serde_json::Value;

use crate::error::TapError;

/// A required text.
pub fn text<'a>(request: &'a Value, name: &str) -> Result<&'a str, TapError> {
    let found = request.get(name).and_then(Value::as_str);
    found.ok_or_else(|| TapError::bad_request(format!("{name:?} must be a text")))
}

/// A required number from 0.
pub fn number(request: &Value, name: &str) -> Result<u64, TapError> {
    let found = request.get(name).and_then(Value::as_u64);
    found.ok_or_else(|| TapError::bad_request(format!("{name:?} must be a number from 0")))
}

/// A number from 0, or what it is without the field.
pub fn number_or(request: &Value, name: &str, otherwise: u64) -> Result<u64, TapError> {
    match request.get(name) {
        None | Some(Value::Null) => Ok(otherwise),
        Some(_) => number(request, name),
    }
}

/// A text, if the field is there and not null.
pub fn text_maybe<'a>(request: &'a Value, name: &str) -> Result<Option<&'a str>, TapError> {
    match request.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(_) => text(request, name).map(Some),
    }
}

/// A truth, false without the field.
pub fn flag(request: &Value, name: &str) -> Result<bool, TapError> {
    match request.get(name) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(is)) => Ok(*is),
        Some(_) => Err(TapError::bad_request(format!("{name:?} must be true or false"))),
    }
}

/// A required object.
pub fn object<'a>(request: &'a Value, name: &str) -> Result<&'a Value, TapError> {
    let found = request.get(name).filter(|value| value.is_object());
    found.ok_or_else(|| TapError::bad_request(format!("{name:?} must be an object")))
}
