//! What the stream says of its disks, and of those whose marks cannot be trusted.

use std::ops::Range;

use serde_json::{json, Value};

use super::{Cause, Member, State, Stream};
use crate::record::{Op, Record};

impl Stream {
    /// Its disks as BEGIN and `open` tell them.
    pub fn disks(&self) -> Vec<Value> {
        self.members.iter().map(|(number, member)| tell(*number, member)).collect()
    }

    /// The next unclean start has to read all of a disk: said at once, and by every BEGIN.
    pub fn distrust(&mut self, disk: u16, now: u64) {
        let Some(member) = self.members.get_mut(&disk) else { return };
        member.is_untrusted = true;
        self.ring.set_untrusted(disk, true);
        let body = tell(disk, member).to_string();
        if self.state == State::Dirty {
            return;
        }
        let time = self.time(now);
        if self.ring.append_kept(&Record::about(Op::Disk), body.as_bytes(), time).is_err() {
            self.fall(Cause::RingFull);
        }
    }

    /// Whether anything of `range` is to be read.
    pub fn is_to_be_read(&self, disk: u16, range: &Range<u64>) -> bool {
        self.members.get(&disk).is_none_or(|member| member.to_read.overlaps(range))
    }

    /// Whether a disk has ranges that could not be read.
    pub fn has_unreadable(&self) -> bool {
        !self.unreadable.is_empty()
    }
}

fn tell(number: u16, member: &Member) -> Value {
    let mut told = json!({ "disk": number, "name": member.name, "size": member.size });
    if member.is_untrusted {
        told["trusted"] = json!(false);
    }
    told
}
