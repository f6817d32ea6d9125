"""ext4 and XFS cut at many checkpoints while files come and go: each point mounts, each is sound,
and holds every file that was made durable before it and none that was durably removed."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from host_agent.control.client import ask, socket_of
from host_agent.wire.keys import TenantKey
from infra.demo.machine import can_mount
from infra.demo.report import DemoFailed
from tests.integration.file_systems import DISK_BYTES, KINDS, check, make, mounted, mounted_nbd
from tests.integration.place import Place, made_place
from tests.integration.site import DISK, GROUP, TENANT
from tests.lanes import pick, tried
from workers.journal.catalogue import choose_stream
from workers.journal.points import resolve
from workers.journal.reader import open_journal
from workers.restore.export import ExportOptions, export
from workers.storage.url import open_store

#: Points of each file system in `make test`: together 60.
POINTS = pick(30, 150, 2_500)
_FILES_KEPT = 60

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.timeout(0),
    pytest.mark.invariant("I2", "I3", "I4"),
    pytest.mark.skipif(can_mount() is not None, reason=f"cannot mount: {can_mount()}"),
]


@dataclass
class Files:
    """Files of a file system, each written once, synced, and perhaps removed. Every name says what
    its content must be."""

    root: Path
    rng: random.Random
    durable: dict[str, int] = field(default_factory=dict)
    removed: set[str] = field(default_factory=set)
    made: int = 0

    def step(self) -> None:
        """One change, durable when this returns."""
        if len(self.durable) > _FILES_KEPT or (self.durable and self.rng.random() < 0.3):
            self._remove(self.rng.choice(list(self.durable)))
        else:
            self._make()

    def _make(self) -> None:
        self.made += 1
        data = self.rng.randbytes(self.rng.choice([1, 700, 4096, 30_000]))
        total = zlib.crc32(data)
        folder = self.root / f"d{self.made % 5}"
        folder.mkdir(exist_ok=True)
        path = folder / f"f{self.made}"
        with path.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        for above in (folder, self.root):
            _sync_folder(above)
        self.durable[str(path.relative_to(self.root))] = total

    def _remove(self, name: str) -> None:
        # From here on it may be there or not.
        total = self.durable.pop(name)
        path = self.root / name
        assert zlib.crc32(path.read_bytes()) == total
        path.unlink()
        _sync_folder(path.parent)
        self.removed.add(name)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class Cut:
    """A checkpoint, and what was durable before it and gone before it."""

    tag: str
    durable: dict[str, int]
    removed: frozenset[str]


def _cuts(place: Place, files: Files) -> Iterator[Cut]:
    """Checkpoints at random moments between and within changes."""
    socket = socket_of(place.site.setup.path("agent.toml"))
    for number in range(POINTS):
        for _ in range(files.rng.randrange(1, 6)):
            files.step()
        durable, removed, tag = dict(files.durable), frozenset(files.removed), f"cut{number}"
        request: dict[str, Any] = {"do": "checkpoint", "group": GROUP, "tag": tag}
        ask(socket, {**request, "wait": number == POINTS - 1})
        yield Cut(tag, durable, removed)


def _complaints(kind: str, cut: Cut, image: Path, folder: Path) -> list[str]:
    """What is wrong with a restored image; nothing if it is right."""
    found = []
    try:
        with mounted(kind, image, folder) as root:
            for name, total in cut.durable.items():
                path = root / name
                if not path.exists():
                    found.append(f"{cut.tag}: {name} is missing")
                elif zlib.crc32(path.read_bytes()) != total:
                    found.append(f"{cut.tag}: {name} is not what was written")
            found += [
                f"{cut.tag}: {name} is back" for name in cut.removed if (root / name).exists()
            ]
        check(kind, image)
    except (DemoFailed, OSError) as error:
        found.append(f"{cut.tag}: {error}")
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_every_point_is_a_sound_file_system_with_what_was_durable(kind: str) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="holdfast-fs-", dir="/dev/shm") as memory,
        made_place(Path(memory), DISK_BYTES[kind]) as place,
    ):
        make(kind, place.disk)
        with mounted_nbd(kind, place.protect(), place.folder / "m", place.processes) as root:
            cuts = list(_cuts(place, Files(root, random.Random(17))))
        key = TenantKey.parse((place.folder / "tenant.key").read_bytes())
        place.drain()
        place.site.stop()
        complaints: list[str] = []
        for number, cut in enumerate(cuts):
            image = _restore(place, key, cut)
            complaints += _complaints(kind, cut, image, place.folder / "look")
            if number == len(cuts) - 1:
                _control_an_older_image_is_noticed(place, key, kind, (cuts[0], cut))
            shutil.rmtree(image.parent)
        assert complaints == [], "\n".join(complaints)
        tried(f"file-system points of {kind}", len(cuts))
        assert len(cuts) >= POINTS


def _restore(place: Place, key: TenantKey, cut: Cut) -> Path:
    store = open_store(f"file://{place.bucket}")
    identity = choose_stream(store, TENANT, GROUP, None)
    with open_journal(store, identity, key) as journal:
        options = ExportOptions(place.folder / "restored", digest=False)
        done = export(journal, resolve(journal, f"tag:{cut.tag}"), options)
    (image,) = (disk.path for disk in done.disks if disk.name == DISK)
    return image


def _control_an_older_image_is_noticed(
    place: Place, key: TenantKey, kind: str, cuts: tuple[Cut, Cut]
) -> None:
    """The first point's image has not what was durable before the last."""
    first, last = cuts
    shutil.rmtree(place.folder / "restored")
    image = _restore(place, key, first)
    assert _complaints(kind, last, image, place.folder / "look") != []
