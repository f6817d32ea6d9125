"""Pins: checkpoints that are kept beyond the history window, and tagged ones that no longer are.

An object for each; all that is asked is whether it is there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from host_agent.wire.keys import JournalKey
from host_agent.wire.names import Identity, pin_name, pins_prefix
from workers.journal.errors import NoSuchCheckpoint
from workers.journal.points import resolve
from workers.journal.reader import ReadOptions, open_journal
from workers.journal.timeline import Checkpoint
from workers.storage.port import ObjectStore

_NAME = re.compile(r"([0-9a-f]{32})(\.released)?")


@dataclass(frozen=True)
class Pins:
    """Ids of checkpoints."""

    pinned: frozenset[str] = frozenset()
    released: frozenset[str] = frozenset()

    def keeps(self, checkpoint: Checkpoint) -> bool:
        """Whether the checkpoint is kept whatever its age."""
        if checkpoint.id in self.released:
            return False
        return checkpoint.id in self.pinned or checkpoint.kind == "tagged"


def read_pins(store: ObjectStore, identity: Identity) -> Pins:
    """All pins of a stream. A pin beside a release of the same checkpoint counts: it is kept."""
    pinned: set[str] = set()
    released: set[str] = set()
    for listed in store.list(pins_prefix(identity)):
        match = _NAME.fullmatch(listed.name.rpartition("/")[2])
        if match:
            (released if match[2] else pinned).add(match[1])
    return Pins(frozenset(pinned), frozenset(released - pinned))


def find_checkpoint(
    store: ObjectStore, identity: Identity, key: JournalKey, selector: str
) -> Checkpoint:
    """The checkpoint that a selector names, as far as the journal still has it; SelectorError."""
    with open_journal(store, identity, key, ReadOptions(use_index=True)) as journal:
        found = resolve(journal, selector).checkpoint
    if found is None:
        raise NoSuchCheckpoint(
            f"{selector!r:.60} names a moment and no checkpoint: only checkpoints are pinned.",
            hint="`holdfast restore list` shows the checkpoints.",
        )
    return found


def pin(store: ObjectStore, identity: Identity, checkpoint: str) -> None:
    """Keep a checkpoint beyond the history window."""
    store.put_if_absent(pin_name(identity, checkpoint), b"")
    store.delete(pin_name(identity, checkpoint, released=True))


def unpin(store: ObjectStore, identity: Identity, checkpoint: str) -> None:
    """Keep a checkpoint no longer than the history window, a tagged one neither."""
    store.put_if_absent(pin_name(identity, checkpoint, released=True), b"")
    store.delete(pin_name(identity, checkpoint))
