"""Boundaries: what a stream's journal has given up, and what stands for it. FORMAT.md section 5.

Plain JSON with its hash, no key needed: ingest, readers and collection all read them. A listing
finds the newest, reads beyond it decide.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from blake3 import blake3

from host_agent.wire.errors import ChecksumMismatch, WireError
from host_agent.wire.names import Identity, boundary_name, boundary_prefix, number_of
from host_agent.wire.segment import SegmentInfo, parse_trailer
from workers.journal.errors import BoundaryDamaged
from workers.storage.errors import ObjectMissing, ObjectTooLarge
from workers.storage.port import Created, ObjectStore

Reason = Literal["window", "size_limit"]

_TRIES_MAX = 64


class Boundary(msgspec.Struct, frozen=True):
    """Places before `first_place` are stood for by the layer list `layers`.

    `set_at`: the store's clock, ns; `history_from`: when the last given-up segment was committed,
    ns; `reason` why the history begins there.
    """

    number: int
    layers: int
    first_place: int
    trailer: str
    set_at: int
    reason: Reason
    window_seconds: int
    history_from: int

    @property
    def newest(self) -> SegmentInfo:
        """The last segment that was given up."""
        return parse_trailer(bytes.fromhex(self.trailer))


def pack_boundary(boundary: Boundary, identity: Identity) -> bytes:
    """The object's bytes."""
    line = msgspec.json.encode(boundary)
    return line + b"\n" + _hash(identity, line) + b"\n"


def _hash(identity: Identity, line: bytes) -> bytes:
    return blake3(identity.seal_bytes + line).hexdigest().encode()


def parse_boundary(data: bytes, identity: Identity, number: int) -> Boundary:
    """A boundary from its object; WireError, ChecksumMismatch."""
    line, _, rest = data.partition(b"\n")
    if rest != _hash(identity, line) + b"\n":
        raise ChecksumMismatch("The boundary does not match its hash.")
    try:
        boundary = msgspec.json.decode(line, type=Boundary)
        newest = boundary.newest
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise WireError(f"The boundary is malformed: {error}.") from None
    fits = newest.place + 1 == boundary.first_place and newest.identity_hash == identity.hash
    if boundary.number != number or not fits:
        raise WireError("The boundary is another one, or contradicts itself.")
    return boundary


def read_boundary(store: ObjectStore, identity: Identity, number: int) -> Boundary | None:
    """Boundary `number`; None if there is none. BoundaryDamaged."""
    name = boundary_name(identity, number)
    try:
        return parse_boundary(store.get(name), identity, number)
    except ObjectMissing:
        return None
    except (WireError, ObjectTooLarge) as error:
        raise BoundaryDamaged(name, error.message) from error


def list_boundaries(store: ObjectStore, identity: Identity) -> list[int]:
    """The numbers that a listing shows, ascending."""
    found = (number_of(entry.name) for entry in store.list(boundary_prefix(identity)))
    return sorted(number for number in found if number)


def newest_boundary(store: ObjectStore, identity: Identity) -> Boundary | None:
    """The newest boundary; None if nothing was ever given up. BoundaryDamaged, StoreError."""
    listed = list_boundaries(store, identity)
    number = listed[-1] if listed else 0
    newest = read_boundary(store, identity, number) if number else None
    # What a listing does not show yet may be there: the names decide.
    while (further := read_boundary(store, identity, number + 1)) is not None:
        newest, number = further, number + 1
    return newest


def set_boundary(store: ObjectStore, identity: Identity, wanted: Boundary) -> Boundary:
    """Create the next boundary with what `wanted` says; its number is found here.

    A boundary that is there already and gives up as much is as good: it is returned instead.
    """
    before = newest_boundary(store, identity)
    for _ in range(_TRIES_MAX):
        if before is not None and before.first_place >= wanted.first_place:
            return before
        number = before.number + 1 if before else 1
        boundary = msgspec.structs.replace(wanted, number=number)
        data = pack_boundary(boundary, identity)
        name = boundary_name(identity, number)
        if store.put_if_absent(name, data) is Created.CREATED or store.get(name) == data:
            return boundary
        before = read_boundary(store, identity, number)
    raise BoundaryDamaged(boundary_name(identity, number), "others set boundaries all the time.")
