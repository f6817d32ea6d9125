"""Which journals a bucket holds of a tenant: found by listing folders."""

from __future__ import annotations

from host_agent.wire.errors import BadName
from host_agent.wire.names import Identity, check_name
from workers.journal.errors import AmbiguousStream, NoSuchStream
from workers.storage.port import ObjectStore


def list_streams(store: ObjectStore, tenant: str, group: str | None = None) -> list[Identity]:
    """The streams of a tenant, or of one of its groups, in the order of their names."""
    top = f"{check_name('tenant', tenant)}/"
    groups = [f"{top}{check_name('group', group)}/"] if group else store.folders(top)
    found = []
    for folder in groups:
        for host in store.folders(folder):
            stream = _stream(host)
            if stream is not None and f"{host}chain/" in store.folders(host):
                found.append(stream)
    return found


def stored_bytes(store: ObjectStore, folder: str) -> int:
    """The sizes of all objects in `folder` (ends with '/') and below it, together; StoreError.

    Of a listing, which may be stale: for people and for bills, never for what is deleted.
    """
    here = sum(listed.size for listed in store.list(folder))
    return here + sum(stored_bytes(store, inner) for inner in store.folders(folder))


def _stream(folder: str) -> Identity | None:
    try:
        return Identity(*folder.rstrip("/").split("/"))
    except (BadName, TypeError):
        return None


def choose_stream(store: ObjectStore, tenant: str, group: str | None, host: str | None) -> Identity:
    """The one stream that is meant; NoSuchStream, AmbiguousStream."""
    if group is not None and host is not None:
        return Identity(tenant, group, host)
    fitting = [
        stream
        for stream in list_streams(store, tenant, group)
        if host is None or stream.host == host
    ]
    if len(fitting) == 1:
        return fitting[0]
    asked = f"group {group} of tenant {tenant}" if group else f"tenant {tenant}"
    if not fitting:
        raise NoSuchStream(
            f"{store.label} holds no journal of {asked}.",
            hint="`holdfast restore list` shows what it holds.",
        )
    names = ", ".join(f"{stream.group}/{stream.host}" for stream in fitting[:8])
    missing = "--group" if group is None and len({s.group for s in fitting}) > 1 else "--host"
    raise AmbiguousStream(
        f"{store.label} holds {len(fitting)} journals of {asked}: {names}.",
        hint=f"Name one with {missing}.",
    )
