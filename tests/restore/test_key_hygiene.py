"""I16: no (key, nonce) pair is used twice, over connections, writers and generations; keys stay
inside."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from host_agent.wire.frame import FrameHeader
from host_agent.wire.keys import TenantKey, open_with_tenant
from host_agent.wire.names import Identity, key_name
from host_agent.wire.seal import FrameSealer, frame_keys
from tests.journal.forging import take_apart
from tests.model.builder import JournalBuilder
from tests.model.store import MemoryStore
from tests.model.workload import Shape, Workload
from tests.restore.replay import build
from workers.journal.pitmap import get_map, map_seal
from workers.journal.points import resolve
from workers.journal.reader import open_journal

pytestmark = pytest.mark.invariant("I16")

SHAPE = Shape({"root": 24}, operations=80, frame_chance=0.5, generation_chance=0.03)


def sealed_parts(
    objects: dict[str, bytes], identity: Identity, tenant_key: TenantKey
) -> Iterator[tuple[bytes, bytes]]:
    """(AES key, nonce) of every sealed part of a stored journal."""
    for segment in take_apart(objects, identity):
        for frame in segment.frames:
            header = FrameHeader.unpack(frame.header_bytes)
            wrapped = objects[key_name(identity, header.generation)]
            data_key = open_with_tenant(wrapped, tenant_key, identity, header.generation)
            key, _ = frame_keys(data_key, header.salt)
            for part, data in enumerate((frame.index, frame.payload)):
                if data:
                    nonce = part.to_bytes(4, "little") + header.counter.to_bytes(8, "little")
                    yield key, nonce


def repeated(builder: JournalBuilder) -> int:
    """Sealed parts that share key and nonce with another."""
    assert isinstance(builder.store, MemoryStore)
    found = Counter(sealed_parts(builder.store.objects, builder.identity, builder.tenant_key))
    assert found
    return sum(count - 1 for count in found.values())


@pytest.mark.parametrize("seed", range(4))
def test_no_key_and_nonce_twice_in_a_journal(seed: int) -> None:
    rng = random.Random(seed)
    builder = JournalBuilder(MemoryStore(), rng=rng)
    Workload(builder, SHAPE, rng).run()
    assert repeated(builder) == 0


def test_a_connection_that_keeps_its_salt_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: a counter that starts again under the same salt repeats its nonces."""

    def same_salt(self: JournalBuilder) -> None:
        self.frame()
        generation = self.generations[-1]
        self._sealer = FrameSealer(self._data_key, self.identity, generation, b"s" * 32)

    monkeypatch.setattr(JournalBuilder, "connect", same_salt)
    rng = random.Random(1)
    builder = JournalBuilder(MemoryStore(), rng=rng)
    Workload(builder, SHAPE, rng).run()
    assert repeated(builder) > 0


def test_no_key_is_written_anywhere_by_a_restore(tmp_path: Path) -> None:
    builder, store = build(80)
    with open_journal(store, builder.identity, builder.tenant_key) as journal:
        point = resolve(journal, "latest-write")
        get_map(journal, point, tmp_path).close()
        secrets = [builder.tenant_key.key, builder.group_key.key, map_seal(journal, point).key]
        secrets += [journal.keys.data_key(g.name) for g in journal.timeline.generations]
    written = [path.read_bytes() for path in tmp_path.iterdir()]
    assert written
    for secret in secrets:
        assert not any(secret in data or secret.hex().encode() in data for data in written)
    assert secrets[0] not in repr(builder.tenant_key).encode()
    assert secrets[0].hex() not in repr(builder.tenant_key)
