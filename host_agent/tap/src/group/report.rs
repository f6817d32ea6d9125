//! What `status` says of a group.

use serde_json::{json, Value};

use super::core::Disk;
use super::run::Group;
use crate::hotlog::MARKS_MAX;
use crate::stream::{hex, Stream};

impl Group {
    /// Everything that is counted. Bytes, microseconds, counts since the tap started.
    pub fn status(&self) -> Value {
        let core = &self.core;
        let mut status = json!({
            "group": core.name,
            "role": self.state.role,
            "engine": core.engine.name(),
            "nbd_socket": self.places.nbd_socket(&core.name),
            "stream_socket": self.places.stream_socket(&core.name),
            "clients": self.conns.len(),
            "in_flight": core.ops.len(),
            "queued_bytes": core.queued_bytes,
            "agent_connected": self.ctls.iter().any(|(_, ctl)| ctl.is_opener),
            "disks": core.disks.iter().map(|(_, disk)| self.disk(disk)).collect::<Vec<_>>(),
            "absent": self.absent(),
            "holds": {
                "count": core.holds.count,
                "by_timer": core.holds.by_timer,
                "longest_us": core.holds.longest_us,
                "withheld": core.holds.withheld(),
            },
        });
        match &core.stream {
            Some(stream) => add_stream(&mut status, stream),
            None => {
                status["fills"] = json!({
                    "provider_connected": self.ctls.iter().any(|(_, ctl)| ctl.is_provider),
                    "waiting_reads": core.needs.waiting(),
                    "needs": core.needs.asked,
                    "failed": core.needs.failed,
                    "filled_bytes": core.needs.filled_bytes,
                });
            }
        }
        status
    }

    /// Attached disks that could not be opened: they are tried again when they are attached again.
    fn absent(&self) -> Vec<&str> {
        let is_served = |name: &str| self.core.disks.iter().any(|(_, disk)| disk.name == name);
        let names = self.state.disks.iter().map(|disk| disk.name.as_str());
        names.filter(|name| !is_served(name)).collect()
    }

    fn disk(&self, disk: &Disk) -> Value {
        let stats = &disk.stats;
        let path = self.state.disk(&disk.name).map(|known| known.path.clone());
        let to_read = self.core.stream.as_ref().and_then(|stream| {
            stream.members().get(&disk.number).map(|member| member.to_read.bytes())
        });
        json!({
            "disk": disk.name,
            "number": disk.number,
            "path": path,
            "size": disk.size,
            "io": disk.io.mode.name(),
            "block_bytes": disk.io.block_bytes,
            "mirror": super::mirror::describe(&self.core, disk.number),
            "clients": disk.clients,
            "to_read_bytes": to_read,
            "missing_bytes": disk.recovered.as_ref().map(|map| map.missing_bytes()),
            "survives_tap_kill": disk.recovered.as_ref().map(|map| map.has_quick()),
            "flush_failed": disk.flush.has_failed,
            "hot": hot(disk),
            "counters": {
                "reads": stats.reads,
                "read_bytes": stats.read_bytes,
                "writes": stats.writes,
                "written_bytes": stats.written_bytes,
                "flushes": stats.flushes,
                "trims": stats.trims,
                "zeroes": stats.zeroes,
                "errors": stats.errors,
                "refused": stats.refused,
                "protocol_errors": stats.protocol_errors,
                "connections": stats.connections,
                "panics": stats.panics,
            },
            "latency": {
                "read": stats.latencies.read.summary(),
                "write": stats.latencies.write.summary(),
                "flush": stats.latencies.flush.summary(),
                "other": stats.latencies.other.summary(),
            },
        })
    }
}

fn hot(disk: &Disk) -> Value {
    let (hot, counts) = (&disk.hot, disk.hot.counts);
    json!({
        "state": hot.phase.name(),
        "reason": (!hot.reason.is_empty()).then_some(&hot.reason),
        "extents": hot.count(),
        "extents_max": MARKS_MAX,
        "waits": counts.waits,
        "wait_us": counts.wait_us,
        "wait_us_max": counts.wait_us_max,
        "marked": counts.marked,
        "given_up": counts.given_up,
        "commits": counts.commits,
        "overflows": counts.overflows,
        "errors": counts.errors,
    })
}

fn add_stream(status: &mut Value, stream: &Stream) {
    let (at, geometry, counters) =
        (stream.ring.positions(), stream.ring.geometry(), stream.counters);
    let (total, read) = stream.progress();
    status["generation"] = json!(hex(&at.generation));
    status["state"] = json!(stream.state().name());
    status["cause"] = json!(stream.cause().name());
    status["head"] = json!(at.head);
    status["freed"] = json!(at.freed);
    status["stored"] = json!(at.stored);
    status["last_good"] = json!(stream.last_good());
    status["to_read_bytes"] = json!(stream.remaining());
    status["sync"] = json!({ "total_bytes": total, "read_bytes": read });
    status["ring"] = json!({
        "payload_bytes": geometry.payload_capacity,
        "payload_used_bytes": stream.ring.payload_used(),
        "index_entries": geometry.index_capacity,
        "index_used_entries": stream.ring.index_used(),
        "is_locked": stream.ring.is_locked(),
    });
    status["counters"] = json!({
        "recorded": counters.recorded,
        "recorded_bytes": counters.recorded_bytes,
        "dropped": counters.dropped,
        "synced": counters.synced,
        "fell": counters.fell,
        "drained": stream.ring.drained(),
    });
}
