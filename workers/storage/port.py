"""The port to an object store: what the data path may ask of any store, and nothing else.

Objects are created once and never changed. Calls block; who must not block runs them in a thread.
A store object may be used from several threads at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, runtime_checkable

from host_agent.wire.pieces import Content
from workers.storage.errors import BadObjectName

#: S3 allows 1,024 bytes; what a store puts before our names must fit as well.
NAME_BYTES_MAX = 512

#: Largest object that is read in one piece: a segment is at most about 25 MiB.
OBJECT_BYTES_MAX = 64 * 1024 * 1024

#: Names of one page of a listing, as S3 limits it.
LIST_PAGE_NAMES = 1000

# Components never begin with a dot: a local folder keeps its unfinished files under such names.
_PART = r"[a-z0-9_][a-z0-9._-]{0,127}"
_NAME = re.compile(rf"{_PART}(?:/{_PART}){{0,15}}")
_FOLDER = re.compile(rf"(?:{_PART}/){{0,15}}")


class Created(Enum):
    """What became of a create."""

    CREATED = "created"
    EXISTS = "exists"


@dataclass(frozen=True)
class Listed:
    """One object of a listing. `size` in bytes."""

    name: str
    size: int


@runtime_checkable
class ObjectStore(Protocol):
    """A flat space of immutable objects."""

    @property
    def label(self) -> str:
        """The store as people know it: its URL without what is secret."""
        ...

    def put_if_absent(self, name: str, data: Content) -> Created:
        """Make the object, durable when this returns, unless the name is taken.

        Never changes an object that is there. EXISTS says nothing of what it holds: read it.
        Raises StoreUnavailable (OutcomeUnknown: it may have happened), StoreFull, StoreRefused.
        """
        ...

    def get(self, name: str) -> bytes:
        """The whole object; ObjectMissing, ObjectTooLarge (over OBJECT_BYTES_MAX)."""
        ...

    def get_range(self, name: str, start: int, length: int) -> bytes:
        """Exactly `length` bytes from byte `start`; ObjectMissing, ObjectTooShort."""
        ...

    def get_tail(self, name: str, length: int) -> bytes:
        """The last `length` bytes, or the whole of a shorter object; ObjectMissing."""
        ...

    def size(self, name: str) -> int:
        """Bytes of the object; ObjectMissing."""
        ...

    def list(
        self, folder: str, start_after: str = "", limit: int | None = None
    ) -> Iterator[Listed]:
        """Objects directly in `folder` (ends with '/') after the name `start_after`, in order.

        Whole names, ordered by their bytes. Only within one folder: over several, real services
        differ in their order. A listing discovers; it may be stale and never decides what exists.
        """
        ...

    def folders(self, folder: str) -> Iterator[str]:
        """The folders directly in `folder` ('' is the top), whole names, each ending with '/'."""
        ...

    def delete(self, name: str) -> None:
        """Remove the object if it is there."""
        ...

    def answered_at(self) -> int | None:
        """The newest time that the store's own clock showed in an answer, ns since 1970.

        None before the first answer. S3 answers whole seconds.
        """
        ...


def check_object_name(name: str) -> str:
    """Return `name` if it may name an object; BadObjectName otherwise."""
    if len(name) > NAME_BYTES_MAX or not _NAME.fullmatch(name):
        raise BadObjectName(f"{name!r:.120} cannot be an object's name.")
    return name


def check_folder(folder: str) -> str:
    """Return `folder` if it is empty or ends with '/' and may hold objects; else BadObjectName."""
    if len(folder) > NAME_BYTES_MAX or not _FOLDER.fullmatch(folder):
        raise BadObjectName(f"{folder!r:.120} cannot be a folder of objects.")
    return folder


def check_range(start: int, length: int) -> None:
    """Refuse a range that no object can have."""
    if start < 0 or length < 0 or length > OBJECT_BYTES_MAX:
        raise ValueError(f"range {start}+{length} is not one of an object")
