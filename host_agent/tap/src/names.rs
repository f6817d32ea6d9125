//! Names of groups and disks: they become file names and parts of URIs.

use crate::error::TapError;

/// Checks a name: `[a-z0-9][a-z0-9._-]{0,62}`.
pub fn check(what: &str, name: &str) -> Result<(), TapError> {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let mut bytes = name.bytes();
    let is_good = bytes.next().is_some_and(is_plain)
        && bytes.all(|byte| is_plain(byte) || b"._-".contains(&byte))
        && name.len() <= 63;
    if is_good {
        return Ok(());
    }
    Err(TapError::new(
        "bad_name",
        format!("{name:?} is no name for a {what}"),
        "Use up to 63 lower-case letters, digits, dots, hyphens and underscores.",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_their_folder_are_refused() {
        for good in ["a", "root", "0.1_b-c", &"x".repeat(63)] {
            assert!(check("disk", good).is_ok());
        }
        for bad in ["", ".", "..", "-a", "A", "a/b", "a b", "ä", "a\0", &"x".repeat(64)] {
            assert!(check("disk", bad).is_err(), "{bad:?}");
        }
    }
}
