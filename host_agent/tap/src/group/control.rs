//! The clients of `GROUP.stream`: who opened the ring, who provides, who waits.

use serde_json::{json, Value};

use crate::messages::{good, Asked, Client};
use crate::slab::Slab;
use crate::stream::hex;
use crate::sys::Epoll;

use super::core::Core;
use super::sync::SyncStep;
use super::verbs::{Outcome, Settings};

/// Clients at once; a new one is turned away beyond it.
const CLIENTS_MAX: usize = 32;

/// What `wait` compares: a change of it answers every waiter.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Told {
    state: &'static str,
    cause: &'static str,
    generation: [u8; 16],
}

#[derive(Debug)]
struct Wait {
    id: Value,
    after: u64,
    records: u64,
    until_ns: u64,
}

#[derive(Debug)]
struct Member {
    client: Client,
    waits: Vec<Wait>,
    told: Option<Told>,
}

/// All clients of one group's control socket.
#[derive(Debug, Default)]
pub struct Clients {
    members: Slab<Member>,
    /// Who has the ring.
    opener: Option<usize>,
    /// Who provides recovered disks.
    provider: Option<usize>,
    /// Who waits for the sync that runs.
    syncing: Option<(usize, Value)>,
    /// Who waits for a durable generation.
    saving: Vec<(usize, Value)>,
}

impl Clients {
    /// Takes a new client; the token is its number plus `base`.
    pub fn add(&mut self, socket: std::os::fd::OwnedFd, base: u64, epoll: &Epoll) {
        if self.members.len() >= CLIENTS_MAX {
            return;
        }
        // The number is known only when it is in: a place is made first.
        let slot = self.members.next();
        if let Ok(client) = Client::new(socket, base + slot as u64, epoll) {
            self.members.insert(Member { client, waits: Vec::new(), told: None });
        }
    }

    /// Works on what a client sent.
    pub fn ready(&mut self, slot: usize, core: &mut Core, settings: &Settings, epoll: &Epoll) {
        let Some(member) = self.members.get_mut(slot) else { return };
        let mut asked = Vec::new();
        let mut is_gone = member.client.flush(epoll).is_err();
        is_gone |= member.client.take(epoll, &mut asked).is_err();
        for one in asked {
            if self.members.get(slot).is_none() {
                return;
            }
            self.serve(slot, one, core, settings, epoll);
        }
        if is_gone {
            self.drop_client(slot, core);
        }
    }

    fn serve(
        &mut self,
        slot: usize,
        asked: Asked,
        core: &mut Core,
        settings: &Settings,
        epoll: &Epoll,
    ) {
        let is_opener = self.opener == Some(slot);
        let is_provider = self.provider == Some(slot);
        let id = asked.id.clone();
        let outcome = super::verbs::handle(core, settings, asked, is_opener, is_provider);
        match outcome {
            Ok(Outcome::Answer(answer)) => self.send(slot, &good(&id, answer), None, core, epoll),
            Ok(Outcome::Opened(answer, reader)) => {
                self.replace_opener(slot, core);
                self.note_told(slot, core);
                self.send(slot, &good(&id, answer), Some(reader), core, epoll);
            }
            Ok(Outcome::Provides) => {
                if let Some(old) = self.provider.replace(slot).filter(|old| *old != slot) {
                    self.close(old);
                }
                self.send(slot, &good(&id, json!({})), None, core, epoll);
            }
            Ok(Outcome::Wait { after, records, until_ns }) => {
                if let Some(member) = self.members.get_mut(slot) {
                    member.waits.push(Wait { id, after, records, until_ns });
                }
            }
            Ok(Outcome::Sync) => self.syncing = Some((slot, id)),
            Ok(Outcome::Saving) => self.saving.push((slot, id)),
            Err(e) => self.send(slot, &e.answer(&id), None, core, epoll),
        }
    }

    /// Whoever had the ring loses it.
    fn replace_opener(&mut self, slot: usize, core: &mut Core) {
        if let Some(old) = self.opener.replace(slot).filter(|old| *old != slot) {
            self.drop_client(old, core);
            self.opener = Some(slot);
        }
    }

    fn close(&mut self, slot: usize) {
        self.members.remove(slot);
        self.saving.retain(|(client, _)| *client != slot);
    }

    fn drop_client(&mut self, slot: usize, core: &mut Core) {
        self.close(slot);
        if self.opener == Some(slot) {
            self.opener = None;
        }
        if self.provider == Some(slot) {
            self.provider = None;
            core.clear_provider();
        }
        if self.syncing.as_ref().is_some_and(|(client, _)| *client == slot) {
            self.syncing = None;
            core.sync.cancel();
        }
    }

    fn send(
        &mut self,
        slot: usize,
        message: &Value,
        pass: Option<std::fs::File>,
        core: &mut Core,
        epoll: &Epoll,
    ) {
        let Some(member) = self.members.get_mut(slot) else { return };
        if member.client.send(epoll, message, pass).is_err() {
            self.drop_client(slot, core);
        }
    }

    fn note_told(&mut self, slot: usize, core: &Core) {
        if let Some(member) = self.members.get_mut(slot) {
            member.told = Some(told(core));
        }
    }

    /// Takes steps of the sync; returns whether it can go on at once.
    pub fn step_sync(&mut self, core: &mut Core, epoll: &Epoll) -> bool {
        if !core.sync.is_runnable() {
            return false;
        }
        match core.step_sync() {
            SyncStep::More => true,
            SyncStep::Wait => false,
            SyncStep::Done(answer) => {
                if let Some((slot, id)) = self.syncing.take() {
                    self.note_told(slot, core);
                    self.send(slot, &good(&id, answer), None, core, epoll);
                }
                false
            }
        }
    }

    /// Answers those whose wait is over, and tells the provider what is needed.
    pub fn tell(&mut self, core: &mut Core, epoll: &Epoll) {
        while let Some(event) = core.needs.events.pop_front() {
            if let Some(provider) = self.provider {
                self.send(provider, &event, None, core, epoll);
            }
        }
        if self.members.iter().all(|(_, member)| member.waits.is_empty()) {
            return;
        }
        let now = core.clock.elapsed_ns();
        let head = core.stream.as_ref().map_or(0, |stream| stream.ring.head());
        let newest = told(core);
        let mut answers = Vec::new();
        for (slot, member) in self.members.iter_mut() {
            let has_changed = member.told.as_ref() != Some(&newest);
            let is_over = |wait: &Wait| {
                has_changed || head >= wait.after.saturating_add(wait.records) || wait.until_ns <= now
            };
            for at in (0..member.waits.len()).rev().filter(|_| true) {
                if is_over(&member.waits[at]) {
                    answers.push((slot, member.waits.remove(at).id));
                    member.told = Some(newest.clone());
                }
            }
        }
        for (slot, id) in answers {
            let answer = state(core);
            self.send(slot, &good(&id, answer), None, core, epoll);
        }
    }

    /// When the next wait is over, ns.
    pub fn deadline_ns(&self) -> Option<u64> {
        self.members.iter().flat_map(|(_, m)| m.waits.iter().map(|wait| wait.until_ns)).min()
    }

    /// A generation is durable, or could not be made so.
    pub fn saved(&mut self, result: Result<(), String>, core: &mut Core, epoll: &Epoll) {
        for (slot, id) in std::mem::take(&mut self.saving) {
            let answer = match &result {
                Ok(()) => good(&id, state(core)),
                Err(e) => crate::error::TapError::passing(
                    "not_durable",
                    format!("the new generation could not be made durable: {e}"),
                    "See to the tap's state directory, then ask again.",
                )
                .answer(&id),
            };
            self.send(slot, &answer, None, core, epoll);
        }
    }
}

fn told(core: &Core) -> Told {
    core.stream.as_ref().map_or_else(Told::default, |stream| Told {
        state: stream.state().name(),
        cause: stream.cause().name(),
        generation: stream.ring.positions().generation,
    })
}

/// The stream's state as `state` and `wait` tell it.
pub fn state(core: &mut Core) -> Value {
    let now = core.clock.wall_ns;
    let Some(stream) = &mut core.stream else { return json!({}) };
    let time = stream.time(now);
    json!({
        "generation": hex(&stream.ring.positions().generation),
        "head": stream.ring.head(),
        "state": stream.state().name(),
        "cause": stream.cause().name(),
        "time": time,
    })
}
