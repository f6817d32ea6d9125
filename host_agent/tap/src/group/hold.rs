//! The write hold: a marker takes its place, and completions of what is recorded after it are
//! withheld until `release` or the tap's own timer.

use serde_json::Value;

use crate::crash;
use crate::error::TapError;
use crate::record::Op as RecordOp;

use super::core::{Answer, Core, Reply, Request};

/// A hold that is in force.
#[derive(Clone, Debug)]
struct Hold {
    checkpoint: String,
    began_ns: u64,
    deadline_ns: u64,
}

/// How a hold ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// For which checkpoint.
    pub checkpoint: String,
    /// Nobody released it in time.
    pub by_timer: bool,
    /// How long completions were withheld, microseconds.
    pub held_us: u64,
}

/// The hold in force, the one before, and counts.
#[derive(Debug, Default)]
pub struct Holds {
    now: Option<Hold>,
    withheld: Vec<Reply>,
    last: Option<Ended>,
    /// Holds that began.
    pub count: u64,
    /// Holds that the timer ended.
    pub by_timer: u64,
    /// The longest, microseconds.
    pub longest_us: u64,
}

impl Holds {
    /// Whether completions are withheld.
    pub fn is_active(&self) -> bool {
        self.now.is_some()
    }

    /// When the timer ends it, ns of the tap's clock.
    pub fn deadline_ns(&self) -> Option<u64> {
        self.now.as_ref().map(|hold| hold.deadline_ns)
    }

    /// Completions that wait for its end.
    pub fn withheld(&self) -> usize {
        self.withheld.len()
    }
}

impl Core {
    /// Arms, then lets the marker take its place.
    pub fn hold(
        &mut self,
        checkpoint: &str,
        limit_ms: u64,
        body: &Value,
    ) -> Result<(u64, u64), TapError> {
        if let Some(hold) = &self.holds.now {
            return Err(TapError::passing(
                "hold_active",
                format!("checkpoint {} holds this group", hold.checkpoint),
                "Release it, or wait for its timer.",
            ));
        }
        let Some(stream) = &mut self.stream else {
            return Err(TapError::bad_request("recovered disks cannot be held"));
        };
        let placed = stream.say(RecordOp::Mark, body, self.clock.wall_ns)?;
        crash::point("hold_after_marker_before_armed");
        let began_ns = self.clock.elapsed_ns();
        let deadline_ns = began_ns + limit_ms * 1_000_000;
        self.holds.now = Some(Hold { checkpoint: checkpoint.to_owned(), began_ns, deadline_ns });
        self.holds.count += 1;
        Ok(placed)
    }

    /// Ends the hold of `checkpoint`, or says how it ended.
    pub fn release(&mut self, checkpoint: &str) -> Result<Ended, TapError> {
        if self.holds.now.as_ref().is_some_and(|hold| hold.checkpoint == checkpoint) {
            self.end_hold(false);
        }
        match &self.holds.last {
            Some(ended) if ended.checkpoint == checkpoint => Ok(ended.clone()),
            _ => Err(TapError::new(
                "no_such_hold",
                format!("no hold of checkpoint {checkpoint} is known"),
                "Treat the checkpoint as failed.",
            )),
        }
    }

    /// Ends the hold if its time is over.
    pub fn check_hold_timer(&mut self) {
        if !self.holds.is_active() {
            return;
        }
        let now = self.clock.elapsed_ns();
        if self.holds.deadline_ns().is_some_and(|deadline| deadline <= now) {
            self.end_hold(true);
        }
    }

    /// Ends any hold, for a group that stops.
    pub fn end_hold(&mut self, by_timer: bool) {
        let Some(hold) = self.holds.now.take() else { return };
        let held_us = (self.clock.elapsed_ns() - hold.began_ns) / 1000;
        self.holds.by_timer += u64::from(by_timer);
        self.holds.longest_us = self.holds.longest_us.max(held_us);
        self.holds.last = Some(Ended { checkpoint: hold.checkpoint, by_timer, held_us });
        crash::point("hold_after_end_before_answers");
        self.replies.append(&mut self.holds.withheld);
        for (_, disk) in self.disks.iter_mut() {
            disk.flight.let_go(&mut self.ready);
        }
    }

    /// The answer to give now; `None`: it is withheld and comes with the hold's end.
    pub fn withhold_if_held(&mut self, request: Request, answer: Answer) -> Option<Answer> {
        let is_told = !self.holds.is_active() || !request.header.is_recorded();
        if is_told || matches!(answer, Answer::Error(_)) {
            return Some(answer);
        }
        if let Some(disk) = self.disks.get_mut(request.disk) {
            disk.flight.withhold(request.range());
        }
        self.holds.withheld.push(Reply { request, answer });
        None
    }
}
