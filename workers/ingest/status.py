"""What this ingest is doing, as one JSON object for everybody who connects to its status socket."""

from __future__ import annotations

from workers.ingest.rpo import Moment
from workers.ingest.server import Server
from workers.ingest.tools import Tools


def status_of(server: Server, tools: Tools, now: Moment) -> dict[str, object]:
    """The whole status: figures of the process, then every stream."""
    counters, budget, quota = server.counters, tools.budget, tools.quota
    return {
        "at": now.wall_ns,
        "connections": server.connections,
        "sessions": len(server.sessions),
        "accepted": counters.accepted,
        "refused_full": counters.refused_full,
        "refused_handshake": counters.refused_handshake,
        "refused_peer": counters.refused_peer,
        "put_out": counters.put_out,
        "sessions_with_late_certificate": server.sessions_late,
        "defects": counters.defects,
        "memory_held_bytes": budget.held,
        "memory_held_bytes_max": budget.held_max,
        "quota_bytes_per_second": quota.rate,
        "quota_waits": quota.waits,
        "streams": [facts.as_dict(now) for facts in server.all_facts()],
    }
