//! What a tap must know again when it starts: its groups, their disks, and how they were left.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::crash;
use crate::disk::Cache;
use crate::disk_record::Fingerprint;
use crate::recovered::sync_folder_of;

/// What a group serves.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Disks whose writes are recorded.
    Protected,
    /// Disks that are filled from a checkpoint.
    Recovered,
}

/// A disk as it was attached.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DiskState {
    /// Its name in the group.
    pub name: String,
    /// Its number in the stream.
    pub number: u16,
    /// The raw file or device.
    pub path: PathBuf,
    /// How its page cache is used.
    pub cache: Cache,
    /// Bytes; only for recovered and mirrored disks, which say how large they are to be.
    pub size: u64,
    /// QEMU keeps it and mirrors it here; then it has no path.
    #[serde(default)]
    pub is_mirror: bool,
}

/// How an orderly stop left a stream.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CleanState {
    /// The newest consistent position.
    pub last_good: u64,
    /// The stream's time, ns.
    pub last_time: u64,
    /// What was to be read, by disk.
    pub to_read: BTreeMap<u16, Vec<(u64, u64)>>,
    /// What the disks looked like.
    pub disks: BTreeMap<u16, Fingerprint>,
    /// Disks whose hot-extent logs could not be written.
    #[serde(default)]
    pub untrusted: Vec<u16>,
}

/// One group.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GroupState {
    /// Version of this file.
    pub version: u32,
    /// Its name.
    pub group: String,
    /// What it serves.
    pub role: Role,
    /// Bytes of the ring.
    pub ring_bytes: u64,
    /// The longest hold, ms.
    pub hold_ms_max: u64,
    /// The stream's numbering, 32 hexadecimal digits; none before the first.
    pub generation: Option<String>,
    /// The newest numbering of which the journal has something: what a new one may follow.
    #[serde(default)]
    pub stored_generation: Option<String>,
    /// No disk gets a number twice within a generation.
    pub next_number: u16,
    /// Its disks.
    pub disks: Vec<DiskState>,
    /// Only after an orderly stop.
    pub clean: Option<CleanState>,
}

impl GroupState {
    /// The disk with this name.
    pub fn disk(&self, name: &str) -> Option<&DiskState> {
        self.disks.iter().find(|disk| disk.name == name)
    }
}

/// The folder of these files.
#[derive(Clone, Debug)]
pub struct StateDir {
    folder: PathBuf,
}

impl StateDir {
    /// The files in `folder`.
    pub fn new(folder: &Path) -> StateDir {
        StateDir { folder: folder.to_owned() }
    }

    fn path(&self, group: &str) -> PathBuf {
        self.folder.join(format!("{group}.group"))
    }

    /// The hot-extent log of a disk.
    pub fn hot_log(&self, group: &str, number: u16) -> PathBuf {
        self.folder.join(format!("{group}.{number}.hot"))
    }

    /// Makes a group's state durable; what was there stays whole until the new one is.
    pub fn save(&self, state: &GroupState) -> io::Result<()> {
        let path = self.path(&state.group);
        let fresh = path.with_extension("group-new");
        let mut options = OpenOptions::new();
        let options = options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(&fresh)?;
        file.write_all(&serde_json::to_vec(state)?)?;
        file.sync_all()?;
        crash::point("state_after_written_before_named");
        std::fs::rename(&fresh, &path)?;
        crash::point("state_after_named_before_synced");
        sync_folder_of(&path)
    }

    /// Forgets a group.
    pub fn remove(&self, group: &str) -> io::Result<()> {
        let path = self.path(group);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => sync_folder_of(&path),
        }
    }

    /// All groups, by name. A file that is no state is an error that names it.
    pub fn load(&self) -> io::Result<Vec<GroupState>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.folder)? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "group") {
                continue;
            }
            let named = |what: String| {
                let text = format!("{}: {what}", path.display());
                io::Error::new(io::ErrorKind::InvalidData, text)
            };
            let state: GroupState = serde_json::from_reader(io::BufReader::new(File::open(&path)?))
                .map_err(|e| named(e.to_string()))?;
            if state.version != 1 {
                return Err(named(format!("version {} is not known", state.version)));
            }
            found.push(state);
        }
        found.sort_by(|a, b| a.group.cmp(&b.group));
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Scratch;

    fn state(group: &str) -> GroupState {
        GroupState {
            version: 1,
            group: group.to_owned(),
            role: Role::Protected,
            ring_bytes: 8 << 20,
            hold_ms_max: 200,
            generation: None,
            stored_generation: None,
            next_number: 0,
            disks: Vec::new(),
            clean: None,
        }
    }

    #[test]
    fn groups_come_back_and_a_broken_file_is_named() {
        let scratch = Scratch::new();
        let folder = scratch.path("state");
        std::fs::create_dir(&folder).unwrap();
        let dir = StateDir::new(&folder);
        dir.save(&state("b")).unwrap();
        dir.save(&state("a")).unwrap();
        let names: Vec<_> = dir.load().unwrap().into_iter().map(|found| found.group).collect();
        assert_eq!(names, ["a", "b"]);
        dir.remove("a").unwrap();
        dir.remove("a").unwrap();
        std::fs::write(folder.join("c.group"), b"{").unwrap();
        assert!(dir.load().unwrap_err().to_string().contains("c.group"));
    }
}
