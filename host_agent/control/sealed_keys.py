"""The data keys of one stream, as its manager's key service gave them: sealed on this host's disk.

So an agent starts again without the control plane. What seals them lies beside them, in a file of
mode 0600: it protects a single file that gets into other hands, not a host that is taken over.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import msgspec

from host_agent.control.errors import DataKeyAwaited, StateUnusable
from host_agent.control.state_dir import usable, write_durably
from host_agent.stream.ports import DataKey
from host_agent.wire import keys
from host_agent.wire.errors import BadKeyFile, WrongKey
from host_agent.wire.limits import KEY_OBJECT_BYTES_MAX
from host_agent.wire.names import Identity

_WORD = "kept data key"
_PURPOSE = "kept"
_FILE_BYTES_MAX = 2 * KEY_OBJECT_BYTES_MAX
#: Keys of ended generations, with which what the journal holds can be compared after a restart.
_OLD_KEYS = 16

Ask = Callable[[Identity, bytes], None]
"""Has the key of a stream's generation asked for."""


class _Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    holdfast: str
    version: int
    sealed: str
    key_object: str


def load_seal(path: Path) -> bytes:
    """The key that seals data keys on this disk, made when there is none; StateUnusable."""
    with usable(path):
        try:
            seal = path.read_bytes()
        except FileNotFoundError:
            seal = os.urandom(keys.KEY_BYTES)
            write_durably(path, seal)
    if len(seal) != keys.KEY_BYTES:
        raise StateUnusable(
            f"{path} is damaged.",
            hint="Remove it: streams begin anew, and what the journal has stays readable.",
        )
    return seal


class SealedKeys:
    """A stream's keys; its `Keys` port."""

    def __init__(self, folder: Path, seal: bytes, identity: Identity, ask: Ask) -> None:
        self._folder = folder / "keys"
        self._seal = seal
        self._identity = identity
        self._ask = ask
        with usable(self._folder):
            self._folder.mkdir(mode=0o700, exist_ok=True)

    def find(self, generation: bytes) -> DataKey | None:
        """That generation's key, None if there is none; StateUnusable, WrongKey, BadKeyFile."""
        path = self._path(generation)
        with usable(path):
            try:
                data = path.read_bytes()[: _FILE_BYTES_MAX + 1]
            except FileNotFoundError:
                return None
        kept = _parse(path, data)
        key = keys.unwrap(self._seal, kept.sealed, _PURPOSE, *self._context(generation))
        key_object = kept.key_object.encode()
        keys.check_key_object(key_object, self._identity, generation)
        return DataKey(key, key_object)

    def make(self, generation: bytes) -> DataKey:
        """Nobody makes a key here: it is asked for, and DataKeyAwaited raised until it came."""
        self._ask(self._identity, generation)
        raise DataKeyAwaited(
            "The key service has not answered with this stream's data key yet.",
            hint="It comes over the control connection: see `holdfast-agent doctor`.",
            retryable=True,
        )

    def keep(self, generation: bytes, key: DataKey) -> None:
        """A key that came, durably; WrongKey if it is another stream's, StateUnusable."""
        keys.check_key_object(key.wrapped, self._identity, generation)
        sealed = keys.wrap(self._seal, key.key, _PURPOSE, *self._context(generation))
        kept = _Kept(_WORD, 1, sealed, key.wrapped.decode())
        write_durably(self._path(generation), msgspec.json.encode(kept))

    def unwrap(self, generation: bytes, wrapped: bytes) -> bytes:
        """The data key of an earlier generation, if this host has kept it; WrongKey."""
        keys.check_key_object(wrapped, self._identity, generation)
        found = self.find(generation)
        if found is None:
            raise WrongKey(
                "This host no longer has the key of what the journal holds.",
                hint="Nothing needs to be done: everything is sent once.",
            )
        return found.key

    def keep_only(self, generation: bytes) -> None:
        """Remove the oldest keys of ended generations; the journal has them."""
        kept = self._path(generation)
        with usable(self._folder):
            others = [path for path in self._folder.iterdir() if path != kept]
            others.sort(key=lambda path: path.stat().st_mtime_ns)
            for path in others[: max(0, len(others) - _OLD_KEYS)]:
                path.unlink(missing_ok=True)

    def _context(self, generation: bytes) -> tuple[str, ...]:
        identity = self._identity
        return identity.tenant, identity.group, identity.host, generation.hex()

    def _path(self, generation: bytes) -> Path:
        return self._folder / generation.hex()


def _parse(path: Path, data: bytes) -> _Kept:
    try:
        kept = msgspec.json.decode(data, type=_Kept)
    except (msgspec.DecodeError, UnicodeDecodeError):
        kept = None
    if kept is None or (kept.holdfast, kept.version) != (_WORD, 1):
        raise BadKeyFile(
            f"{path} is not a data key of this host.",
            hint="Remove it: the stream begins a new generation.",
        )
    return kept
