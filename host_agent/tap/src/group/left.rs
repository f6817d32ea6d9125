//! How an earlier tap left a group, and what of each disk follows from it.

use std::ops::Range;

use crate::disk_record::Fingerprint;
use crate::ring::{Mood, Ring};
use crate::state::CleanState;
use crate::stream::DIRTY_GRAIN;

/// How the tap before us left a stream.
pub enum Left {
    /// There was none, or nothing is known: all is to be read.
    Unknown,
    /// What the ring had is lost, and so are marks in memory: what the hot-extent logs name is to
    /// be read.
    Lost(Option<CleanState>),
    /// In order.
    Clean(CleanState),
    /// It was killed while it recorded: all but what was in flight is in the ring.
    Recording {
        /// Disk and range of each change that was in flight.
        in_flight: Vec<(u16, Range<u64>)>,
        /// The disks that the ring's records name.
        members: Vec<u16>,
    },
}

impl Left {
    /// What a killed tap left in its ring.
    pub fn in_ring(ring: &Ring, mood: Mood) -> Left {
        match ring.left_in_flight() {
            Some(in_flight) if mood.state == 1 => {
                let members = (0..=u8::MAX.into()).filter(|disk| ring.is_member(*disk)).collect();
                Left::Recording { in_flight, members }
            }
            _ => Left::Lost(None),
        }
    }

    /// Whether hot-extent logs that are there belong to this group as it was left.
    pub fn believes_logs(&self, disk: u16) -> bool {
        match self {
            Left::Unknown => false,
            Left::Clean(clean) | Left::Lost(Some(clean)) => !clean.untrusted.contains(&disk),
            Left::Lost(None) | Left::Recording { .. } => true,
        }
    }

    /// What is to be read of a disk; `None`: nothing is known of it. `marked`: what its log names.
    pub fn to_read(
        &self,
        disk: u16,
        size: u64,
        marked: Option<Vec<Range<u64>>>,
    ) -> Option<Vec<Range<u64>>> {
        match self {
            Left::Unknown => None,
            Left::Lost(_) => marked,
            Left::Clean(clean) => {
                let ranges = clean.to_read.get(&disk).into_iter().flatten();
                Some(ranges.map(|(start, end)| *start..*end).collect())
            }
            Left::Recording { in_flight, members } => {
                let whole = |range: &Range<u64>| crate::rangeset::align(range, DIRTY_GRAIN, size);
                let own = in_flight.iter().filter(|(number, _)| *number == disk);
                members.contains(&disk).then(|| own.map(|(_, range)| whole(range)).collect())
            }
        }
    }

    /// Whether somebody changed a disk that an orderly stop had left otherwise.
    pub fn is_edited(&self, disk: u16, now: &Fingerprint) -> bool {
        match self {
            Left::Clean(clean) | Left::Lost(Some(clean)) => clean.disks.get(&disk) != Some(now),
            _ => false,
        }
    }
}
