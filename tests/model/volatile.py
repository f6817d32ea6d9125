"""A folder on a disk whose cache is lost when the power goes: what may be there afterwards.

While a `Recorder` watches, every change of a folder is carried out and written down. `survivors`
then makes the folder as a power cut after any step may leave it. The model is the strictest that a
file system may have: of a file's data only what `fsync` was called for is there for certain, and of
a folder's entries only those made before an `fsync` of the folder; of the rest any part may be
there, in any order, and data may be torn at 512 bytes.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_TORN = 512


@dataclass(frozen=True)
class Step:
    """One change: `make`, `link`, `unlink` of an entry, `write`, `sync` of a file or `tidy` of a
    folder. `file` counts files, `path` is relative to the folder."""

    kind: str
    path: str = ""
    file: int = 0
    data: bytes = b""


@dataclass
class Recorder:
    """What happened in a folder, step by step."""

    root: Path
    steps: list[Step] = field(default_factory=list)
    _open: dict[int, tuple[str, int]] = field(default_factory=dict)
    _files: dict[str, int] = field(default_factory=dict)
    _count: int = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """The calls of `os` that change the folder are written down inside this context."""
        names = ("open", "close", "write", "fsync", "link", "unlink", "mkdir")
        real = {name: getattr(os, name) for name in names}
        for name in names:
            setattr(os, name, getattr(self, f"_{name}_call")(real[name]))
        try:
            yield
        finally:
            for name in names:
                setattr(os, name, real[name])

    def _inside(self, path: object) -> str | None:
        if isinstance(path, int) or not str(os.fspath(path)).startswith(f"{self.root}/"):  # type: ignore[call-overload]
            return "" if path == self.root or str(path) == str(self.root) else None
        return str(path).removeprefix(f"{self.root}/")

    def _open_call(self, real: Any) -> Any:
        def call(path: Any, flags: int, *rest: Any, **options: Any) -> int:
            name = self._inside(path)
            is_new = name is not None and flags & os.O_CREAT and not os.path.lexists(path)  # noqa: PTH
            descriptor: int = real(path, flags, *rest, **options)
            if name is not None:
                if is_new:
                    self._count += 1
                    self._files[name] = self._count
                    self.steps.append(Step("link", name, self._count))
                self._open[descriptor] = (name, self._files.get(name, 0))
            return descriptor

        return call

    def _close_call(self, real: Any) -> Any:
        def call(descriptor: int) -> None:
            self._open.pop(descriptor, None)
            real(descriptor)

        return call

    def _write_call(self, real: Any) -> Any:
        def call(descriptor: int, data: Any) -> int:
            count: int = real(descriptor, data)
            if descriptor in self._open:
                file = self._open[descriptor][1]
                self.steps.append(Step("write", "", file, bytes(memoryview(data)[:count])))
            return count

        return call

    def _fsync_call(self, real: Any) -> Any:
        def call(descriptor: int) -> None:
            if descriptor in self._open:
                name, file = self._open[descriptor]
                self.steps.append(Step("sync", "", file) if file else Step("tidy", name))
            # The real one would only cost time: nobody cuts this machine's power.

        return call

    def _link_call(self, real: Any) -> Any:
        def call(source: Any, target: Any, **options: Any) -> None:
            real(source, target, **options)
            if (name := self._inside(target)) is not None:
                file = self._files[str(self._inside(source))]
                self._files[name] = file
                self.steps.append(Step("link", name, file))

        return call

    def _unlink_call(self, real: Any) -> Any:
        def call(path: Any, **options: Any) -> None:
            real(path, **options)
            if (name := self._inside(path)) is not None:
                self._files.pop(name, None)
                self.steps.append(Step("unlink", name))

        return call

    def _mkdir_call(self, real: Any) -> Any:
        def call(path: Any, *rest: Any, **options: Any) -> None:
            real(path, *rest, **options)
            if (name := self._inside(path)) is not None:
                self.steps.append(Step("make", name))

        return call


@dataclass
class _Entries:
    """A folder's entries by time: those that an fsync covers, and those that it does not."""

    certain: dict[str, int | None] = field(default_factory=dict)
    open: list[Step] = field(default_factory=list)


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


class _Disk:
    """What the steps up to a cut made of a disk."""

    def __init__(self, steps: list[Step]) -> None:
        self._folders: dict[str, _Entries] = {"": _Entries()}
        self._data: dict[int, bytes] = {}
        self._synced: dict[int, bytes] = {}
        for step in steps:
            self._take(step)

    def _take(self, step: Step) -> None:
        if step.kind == "write":
            self._data[step.file] = self._data.get(step.file, b"") + step.data
        elif step.kind == "sync":
            self._synced[step.file] = self._data.get(step.file, b"")
        elif step.kind == "tidy":
            folder = self._folders[step.path]
            for entry in folder.open:
                _enter(folder.certain, entry)
            folder.open = []
        else:
            self._folders[_parent(step.path)].open.append(step)
            if step.kind == "make":
                self._folders[step.path] = _Entries()

    def build(self, target: Path, rng: random.Random | None, *, everything: bool) -> None:
        """Make the folder: only what is certain, with `everything`, or a random part."""
        self._build("", target, rng, everything)

    def _build(self, path: str, target: Path, rng: random.Random | None, everything: bool) -> None:
        target.mkdir(exist_ok=True)
        folder = self._folders[path]
        entries = dict(folder.certain)
        for step in folder.open:
            if everything or (rng is not None and rng.random() < 0.5):
                _enter(entries, step)
        for name, file in entries.items():
            if file is None:
                self._build(f"{path}/{name}".lstrip("/"), target / name, rng, everything)
            else:
                (target / name).write_bytes(self._content(file, rng, everything))

    def _content(self, file: int, rng: random.Random | None, everything: bool) -> bytes:
        certain, whole = self._synced.get(file, b""), self._data.get(file, b"")
        if everything or len(certain) == len(whole):
            return whole
        if rng is None:
            return certain
        rest = whole[len(certain) :]
        pieces = [rest[at : at + _TORN] for at in range(0, len(rest), _TORN)]
        torn = [piece if rng.random() < 0.5 else bytes(len(piece)) for piece in pieces]
        return certain + b"".join(torn[: rng.randrange(len(torn) + 1)])


def _enter(entries: dict[str, int | None], step: Step) -> None:
    name = step.path.rpartition("/")[2]
    if step.kind == "unlink":
        entries.pop(name, None)
    else:
        entries[name] = None if step.kind == "make" else step.file


def cut_power(steps: list[Step], target: Path, rng: random.Random | None, everything: bool) -> None:
    """Make `target` what the power cut after `steps` left: with `everything`, or a random part of
    what is not certain, or (no `rng`) nothing of it."""
    _Disk(steps).build(target, rng, everything=everything)
