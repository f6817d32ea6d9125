"""Statements of how far each stream is safe: one object for a tenant, at most once a minute.
FORMAT.md section 5."""

from __future__ import annotations

import msgspec
from blake3 import blake3

from host_agent.wire.errors import ChecksumMismatch, WireError


class Statement(msgspec.Struct, frozen=True):
    """One stream. `time`: ingest's clock at the last probe that held, ns since 1970."""

    generation: str
    seq: int
    time: int
    state: str


class Asof(msgspec.Struct, frozen=True):
    """The object. `at`: when it was stated, ns since 1970; `check`: see `encode_asof`."""

    at: int
    writer: str
    streams: dict[str, Statement]
    check: str = ""


def encode_asof(at: int, writer: bytes, streams: dict[str, Statement]) -> bytes:
    """The object's bytes. `check` is the BLAKE3 of these bytes with an empty `check`."""
    bare = Asof(at, writer.hex(), streams)
    check = blake3(msgspec.json.encode(bare)).hexdigest()
    return msgspec.json.encode(msgspec.structs.replace(bare, check=check))


def decode_asof(data: bytes) -> Asof:
    """Read and check the object; WireError."""
    try:
        asof = msgspec.json.decode(data, type=Asof)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"This is no object of statements: {error}.") from None
    bare = data.replace(f'"check":"{asof.check}"'.encode(), b'"check":""', 1)
    if blake3(bare).hexdigest() != asof.check:
        raise ChecksumMismatch("The statements do not match their checksum.")
    return asof
