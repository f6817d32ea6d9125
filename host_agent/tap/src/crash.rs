//! Named places where a test ends the tap as a power switch would, between two steps.
//! `HOLDFAST_FAILPOINT=NAME` ends it by SIGKILL at the first arrival, `NAME:3` at the third; only
//! a tap that was started for failpoints listens. Names read `<noun>_after_<done>_before_<next>`.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::OnceLock;

use crate::sys;

static IS_ARMED: AtomicBool = AtomicBool::new(false);
static WANTED: OnceLock<(String, AtomicU64)> = OnceLock::new();

/// Listens to the environment from now on.
pub fn arm() {
    let Ok(wanted) = std::env::var("HOLDFAST_FAILPOINT") else { return };
    let (name, count) = wanted.split_once(':').unwrap_or((&wanted, "1"));
    let left = AtomicU64::new(count.parse().unwrap_or(1));
    if !name.is_empty() && WANTED.set((name.to_owned(), left)).is_ok() {
        IS_ARMED.store(true, Ordering::Release);
    }
}

/// One of those places. Costs one load where nobody armed it.
#[inline(always)]
pub fn point(name: &'static str) {
    if IS_ARMED.load(Ordering::Relaxed) {
        arrive(name);
    }
}

#[cold]
fn arrive(name: &str) {
    let Some((wanted, left)) = WANTED.get() else { return };
    if wanted == name && left.fetch_sub(1, Ordering::Relaxed) == 1 {
        sys::end_at_once();
    }
}
