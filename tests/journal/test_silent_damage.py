"""I10 in numbers: so many objects damaged, in every way that a store or an attacker has, and none
that stays silent. Every damage is named by a restore or by the scrub, and no restore gives a byte
that the model does not have."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import pytest

from host_agent.wire.errors import HoldfastError
from host_agent.wire.names import chain_name
from tests.journal.test_corruption import Subject
from tests.lanes import pick, tried
from tests.model.store import MemoryStore
from workers.journal.scrub import scrub

pytestmark = pytest.mark.invariant("I3", "I10")

#: Damaged objects of every run of `make test`.
DAMAGES = pick(1_000, 5_000, 100_000)
_SUBJECTS = pick(2, 10, 100)

Objects = dict[str, bytes]
Damage = Callable[[random.Random, Objects, str, Objects], bytes | None]


def _flip(rng: random.Random, objects: Objects, name: str, older: Objects) -> bytes | None:
    data = bytearray(objects[name])
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def _overwrite(rng: random.Random, objects: Objects, name: str, older: Objects) -> bytes | None:
    """Noise or zeroes over a stretch, as a sector that went bad."""
    data = objects[name]
    at, length = rng.randrange(len(data)), rng.choice([1, 16, 512])
    noise = rng.randbytes(length) if rng.random() < 0.5 else bytes(length)
    return (data[:at] + noise)[: len(data)] + data[at + length :]


def _cut(rng: random.Random, objects: Objects, name: str, older: Objects) -> bytes | None:
    data = objects[name]
    at = rng.randrange(len(data))
    return data[:at] if rng.random() < 0.7 else data[at + 1 :]


def _grow(rng: random.Random, objects: Objects, name: str, older: Objects) -> bytes | None:
    data, more = objects[name], rng.randbytes(rng.choice([1, 320, 4096]))
    return data + more if rng.random() < 0.5 else more + data


def _lose(rng: random.Random, objects: Objects, name: str, older: Objects) -> bytes | None:
    return None


def _exchange(rng: random.Random, objects: Objects, name: str, older: Objects) -> bytes | None:
    """Another object of the same journal under this name."""
    return objects[rng.choice([other for other in objects if other != name])]


def _roll_back(rng: random.Random, objects: Objects, name: str, older: Objects) -> bytes | None:
    """An object of another history of the same stream, as after a store was restored."""
    return older.get(name) or rng.choice(list(older.values()))


def _fill(rng: random.Random, objects: Objects, name: str, older: Objects) -> bytes | None:
    """Something else of the same length."""
    return rng.randbytes(len(objects[name]))


KINDS: dict[str, Damage] = {
    "flipped": _flip,
    "overwritten": _overwrite,
    "cut": _cut,
    "grown": _grow,
    "lost": _lose,
    "exchanged": _exchange,
    "rolled back": _roll_back,
    "filled": _fill,
}


def _is_named(subject: Subject, objects: Objects) -> bool:
    """Whether a restore or the scrub says so. AssertionError where a restore gives a wrong byte."""
    if subject.restore(objects) != ["right"] * len(subject.selectors):
        return True
    try:
        return bool(scrub(MemoryStore(objects), subject.identity).problems)
    except HoldfastError:
        return True


def _damaged(subject: Subject, name: str, data: bytes | None) -> Objects:
    objects = {other: value for other, value in subject.objects.items() if other != name}
    return objects if data is None else {**objects, name: data}


@pytest.mark.timeout(0)
def test_no_damaged_object_stays_silent() -> None:
    """So many, of every kind, over objects of every sort; statements apart, which are no data."""
    done: Counter[str] = Counter()
    silent = []
    for seed in range(1, _SUBJECTS + 1):
        subject, rng = Subject(seed), random.Random(seed)
        subject.selectors = ["latest-write", "tag:good"]
        older = Subject(seed + 1000).objects
        names = [name for name in subject.objects if "/asof/" not in name]
        sizes = [len(subject.objects[name]) for name in names]
        while done.total() < DAMAGES * seed // _SUBJECTS:
            kind = rng.choice(list(KINDS))
            name = rng.choices(names, sizes)[0] if rng.random() < 0.5 else rng.choice(names)
            data = KINDS[kind](rng, subject.objects, name, older)
            if data == subject.objects[name]:
                continue
            done[kind] += 1
            if not _is_named(subject, _damaged(subject, name, data)):
                silent.append((seed, kind, name))
    tried("damaged objects", done.total())
    assert silent == []
    assert done.total() >= DAMAGES
    assert min(done[kind] for kind in KINDS) > DAMAGES // 20


def test_control_the_check_sees_a_damage_that_is_silent() -> None:
    """A lost end that nobody stated is the one silent loss: the check does not name it either."""
    subject = Subject(stated=False)
    last = sum("/chain/" in name for name in subject.objects)
    objects = _damaged(subject, chain_name(subject.identity, last), None)
    whole = subject.restore(subject.objects)
    assert whole == ["right"] * len(subject.selectors)
    subject.selectors = ["tag:good"]
    assert subject.restore(objects) == ["right"]
    assert not scrub(MemoryStore(objects), subject.identity).problems
    assert not _is_named(subject, objects)
