"""A store in memory, for tests that change objects under the reader's feet."""

from __future__ import annotations

from collections.abc import Iterator

from host_agent.wire.pieces import Content
from workers.storage.errors import ObjectMissing, ObjectTooShort
from workers.storage.port import Created, Listed


class MemoryStore:
    """Objects in a dictionary, open to every kind of damage."""

    def __init__(self, objects: dict[str, bytes] | None = None) -> None:
        self.objects: dict[str, bytes] = dict(objects or {})
        self.reads = 0

    @property
    def label(self) -> str:
        """How errors name it."""
        return "memory://"

    def put_if_absent(self, name: str, data: Content) -> Created:
        """Create, never replace."""
        if name in self.objects:
            return Created.EXISTS
        self.objects[name] = bytes(data)
        return Created.CREATED

    def get(self, name: str) -> bytes:
        """The whole object."""
        self.reads += 1
        try:
            return self.objects[name]
        except KeyError:
            raise ObjectMissing(self.label, name) from None

    def get_range(self, name: str, start: int, length: int) -> bytes:
        """A range of it."""
        data = self.get(name)[start : start + length]
        if len(data) != length:
            raise ObjectTooShort(f"{name} is shorter than asked for.")
        return data

    def get_tail(self, name: str, length: int) -> bytes:
        """Its end."""
        return self.get(name)[-length:] if length else b""

    def size(self, name: str) -> int:
        """Its length."""
        return len(self.get(name))

    def list(
        self, folder: str, start_after: str = "", limit: int | None = None
    ) -> Iterator[Listed]:
        """Names of a folder in order."""
        names = sorted(n for n in self.objects if n.rpartition("/")[0] + "/" == folder)
        after = [name for name in names if name > start_after]
        yield from (Listed(name, len(self.objects[name])) for name in after[:limit])

    def folders(self, folder: str) -> Iterator[str]:
        """Folders of a folder in order."""
        below = (n[len(folder) :] for n in self.objects if n.startswith(folder))
        yield from sorted({f"{folder}{n.split('/')[0]}/" for n in below if "/" in n})

    def delete(self, name: str) -> None:
        """Remove it."""
        self.objects.pop(name, None)

    def answered_at(self) -> int | None:
        """No clock."""
        return None
