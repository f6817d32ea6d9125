//! Failpoints below a disk: errors, short and slow I/O at the n-th operation, for tests.

use crate::error::TapError;

/// Which operations a failpoint is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// Reads, a guest's or a sync's.
    Read,
    /// Writes.
    Write,
    /// Flushes.
    Flush,
    /// Trims.
    Trim,
    /// Writes of zeroes.
    Zero,
    /// Writes of the hot-extent log.
    Log,
}

impl Target {
    fn of(name: &str) -> Option<Target> {
        Some(match name {
            "read" => Target::Read,
            "write" => Target::Write,
            "flush" => Target::Flush,
            "trim" => Target::Trim,
            "zero" => Target::Zero,
            "log" => Target::Log,
            _ => return None,
        })
    }
}

/// What happens to an operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Effect {
    /// The system's error to return.
    pub error: Option<i32>,
    /// A panic while serving it.
    pub is_panic: bool,
    /// Wait before it, ms.
    pub delay_ms: u64,
    /// Do at most so many bytes at once.
    pub short: Option<usize>,
}

#[derive(Debug)]
struct Failpoint {
    target: Target,
    after: u64,
    count: u64,
    effect: Effect,
}

/// The failpoints of one disk.
#[derive(Debug, Default)]
pub struct Failpoints {
    all: Vec<Failpoint>,
}

/// A failpoint as it is asked for.
#[derive(Debug, Default)]
pub struct Wanted<'a> {
    /// `read`, `write`, `flush`, `trim`, `zero`, `log`.
    pub op: &'a str,
    /// Name of an errno, or `PANIC`.
    pub error: Option<&'a str>,
    /// Operations that pass first.
    pub after: u64,
    /// Operations that it is for then; 0: no end.
    pub count: u64,
    /// Delay, ms.
    pub delay_ms: u64,
    /// Bytes done at once; 0: all.
    pub short: u64,
}

impl Failpoints {
    /// Whether none is set.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Sets one in place of those of the same operation; one without effect only clears.
    pub fn set(&mut self, wanted: &Wanted) -> Result<(), TapError> {
        let target = Target::of(wanted.op);
        let target = target.ok_or_else(|| {
            TapError::bad_request(format!("{:?} is no operation of failpoints", wanted.op))
        })?;
        let mut effect = Effect { delay_ms: wanted.delay_ms, ..Effect::default() };
        effect.short = usize::try_from(wanted.short).ok().filter(|short| *short > 0);
        match wanted.error {
            None => {}
            Some("PANIC") => effect.is_panic = true,
            Some(name) => effect.error = Some(errno(name)?),
        }
        self.all.retain(|point| point.target != target);
        if effect != Effect::default() {
            let count = if wanted.count == 0 { u64::MAX } else { wanted.count };
            self.all.push(Failpoint { target, after: wanted.after, count, effect });
        }
        Ok(())
    }

    /// The error of the operation that comes now, if it is to have one.
    pub fn next_of(&mut self, target: Target) -> Option<i32> {
        if self.all.is_empty() {
            return None;
        }
        self.next(target).error
    }

    /// What happens to the operation that comes now.
    pub fn next(&mut self, target: Target) -> Effect {
        let mut effect = Effect::default();
        for point in self.all.iter_mut().filter(|point| point.target == target) {
            if point.after > 0 {
                point.after -= 1;
            } else if point.count > 0 {
                point.count -= 1;
                effect = point.effect;
            }
        }
        self.all.retain(|point| point.count > 0);
        effect
    }
}

fn errno(name: &str) -> Result<i32, TapError> {
    Ok(match name {
        "EPERM" => libc::EPERM,
        "EIO" => libc::EIO,
        "ENOMEM" => libc::ENOMEM,
        "EINVAL" => libc::EINVAL,
        "ENOSPC" => libc::ENOSPC,
        "EROFS" => libc::EROFS,
        "EDQUOT" => libc::EDQUOT,
        "ETIMEDOUT" => libc::ETIMEDOUT,
        "EOPNOTSUPP" => libc::EOPNOTSUPP,
        _ => return Err(TapError::bad_request(format!("{name:?} is no error that can be set"))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fires_at_the_nth_and_for_its_count() {
        let mut points = Failpoints::default();
        let wanted =
            Wanted { op: "write", error: Some("EIO"), after: 2, count: 2, ..Wanted::default() };
        points.set(&wanted).unwrap();
        let errors: Vec<_> = (0..6).map(|_| points.next(Target::Write).error).collect();
        assert_eq!(errors, [None, None, Some(libc::EIO), Some(libc::EIO), None, None]);
        assert!(points.is_empty());
    }

    #[test]
    fn concerns_its_operation_alone_and_can_be_cleared() {
        let mut points = Failpoints::default();
        points.set(&Wanted { op: "read", error: Some("EIO"), ..Wanted::default() }).unwrap();
        assert_eq!(points.next(Target::Write), Effect::default());
        assert_eq!(points.next(Target::Read).error, Some(libc::EIO));
        points.set(&Wanted { op: "read", ..Wanted::default() }).unwrap();
        assert!(points.is_empty());
        assert!(points.set(&Wanted { op: "swim", ..Wanted::default() }).is_err());
        assert!(points
            .set(&Wanted { op: "read", error: Some("EX"), ..Wanted::default() })
            .is_err());
    }
}
