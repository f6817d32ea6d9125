"""Kinds of processes of a data node. Imports nothing: the supervisor and the zygote stay small."""

from __future__ import annotations

from host_agent.wire.names import INGEST, RESTORE

#: The process that has the listener; every other kind is a tenant's service.
ROUTER = "router"
#: A service, and the module that is it: see `port`.
SERVICES = {INGEST: "workers.ingest.door", RESTORE: "workers.restore.door"}
