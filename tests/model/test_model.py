"""The model and its sectors are held to small examples by hand: everything else trusts them."""

from __future__ import annotations

import google_crc32c
import pytest

from tests.model.model import (
    BEGIN,
    DETACH,
    RESIZE,
    SECTOR,
    SYNC,
    SYNC_ZERO,
    TRIM,
    WRITE,
    ZERO,
    Event,
    Model,
    replay,
)
from tests.model.sectors import SectorWriter, crc32c, faults, make_sector, read_sector

A, B, C = (bytes([letter]) * SECTOR for letter in b"abc")
ZEROES = bytes(SECTOR)


def begin(**sizes: int) -> Event:
    disks = [{"disk": n, "name": d, "size": s * SECTOR} for n, (d, s) in enumerate(sizes.items())]
    return Event(BEGIN, body={"disks": disks})


def write(sector: int, data: bytes, disk: int = 0) -> Event:
    return Event(WRITE, disk, sector * SECTOR, len(data), data)


def sync(sector: int, data: bytes, aux: int) -> Event:
    return Event(SYNC, 0, sector * SECTOR, len(data), data, aux)


def test_the_newest_write_wins() -> None:
    model = replay([begin(root=3), write(0, A + A), write(1, B + B), write(2, C)])
    assert model.images() == {"root": A + B + C}


def test_zero_and_trim_read_as_zeroes() -> None:
    cut = [Event(ZERO, 0, 0, SECTOR), Event(TRIM, 0, 2 * SECTOR, SECTOR)]
    model = replay([begin(root=3), write(0, A + B + C), *cut])
    assert model.images()["root"] == ZEROES + B + ZEROES


def test_a_sync_block_loses_to_what_was_written_after_its_read_began() -> None:
    model = replay([begin(root=2), write(0, B), sync(0, A + A, aux=1)])
    assert model.images()["root"] == B + A


def test_a_sync_block_wins_over_what_was_written_before_its_read_began() -> None:
    model = replay([begin(root=2), write(0, B), sync(0, A + A, aux=2)])
    assert model.images()["root"] == A + A


def test_a_hole_found_by_a_sync_orders_like_a_block() -> None:
    hole = Event(SYNC_ZERO, 0, 0, 2 * SECTOR, aux=2)
    model = replay([begin(root=2), write(0, A), write(1, B), hole])
    assert model.images()["root"] == ZEROES + B


def test_what_is_cut_off_comes_back_as_zeroes() -> None:
    shrink, grow = Event(RESIZE, 0, SECTOR), Event(RESIZE, 0, 2 * SECTOR)
    assert replay([begin(root=2), write(0, A + B), shrink]).images()["root"] == A
    assert replay([begin(root=2), write(0, A + B), shrink, grow]).images()["root"] == A + ZEROES


def test_a_late_sync_block_does_not_come_back_over_a_cut() -> None:
    shrink, grow = Event(RESIZE, 0, SECTOR), Event(RESIZE, 0, 2 * SECTOR)
    model = replay([begin(root=2), shrink, grow, sync(0, A + B, aux=1)])
    assert model.images()["root"] == A + ZEROES


def test_a_detached_disk_is_gone_and_starts_empty_if_it_comes_back() -> None:
    gone = Event(DETACH, body={"disk": 1, "name": "data"})
    model = replay([begin(root=1, data=1), write(0, A, disk=1), gone])
    assert set(model.images()) == {"root"}
    model.apply(begin(root=1, data=1))
    assert model.images()["data"] == ZEROES


def test_a_new_generation_goes_on_from_the_old_if_it_says_so() -> None:
    model = Model()
    model.start_generation(keep=False)
    for event in (begin(root=2), write(0, A + A)):
        model.apply(event)
    model.start_generation(keep=True)
    model.apply(begin(root=2))
    model.apply(sync(1, B, aux=0))
    assert model.images()["root"] == A + B
    model.start_generation(keep=False)
    model.apply(begin(root=2))
    assert model.images()["root"] == ZEROES + ZEROES


def test_crc32c_equals_the_library() -> None:
    for data in (b"", b"123456789", bytes(range(256)) * 3):
        assert crc32c(data) == google_crc32c.value(data)
    assert crc32c(b"123456789") == 0xE3069283


def test_a_sector_says_what_it_is() -> None:
    sector = make_sector(3, 77, 5, 4)
    assert len(sector) == SECTOR
    said = read_sector(sector)
    assert said is not None
    assert (said.disk, said.sector, said.counter, said.previous) == (3, 77, 5, 4)
    assert read_sector(ZEROES) is None


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda image: image, None),
        (lambda image: image[:700] + b"!" + image[701:], "torn"),
        (lambda image: image[SECTOR:] + image[:SECTOR], "belongs to"),
        (lambda image: ZEROES + image[SECTOR:], "is empty"),
        (lambda image: make_sector(0, 0, 9) + image[SECTOR:], "newer than the cut"),
        (lambda image: make_sector(0, 0, 1) + image[SECTOR:], "older than"),
        (lambda image: make_sector(1, 0, 2) + image[SECTOR:], "belongs to disk 1"),
    ],
    ids=["whole", "torn", "misplaced", "lost", "too new", "too old", "foreign"],
)
def test_the_checker_names_what_is_wrong(damage: object, reason: str | None) -> None:
    writer = SectorWriter(0)
    writer.write(0, 2)
    image = damage(writer.write(0, 2))  # type: ignore[operator]
    found = list(faults(image, 0, newest=2, oldest={0: 2, 1: 2}))
    assert bool(found) == (reason is not None)
    assert all(reason in fault.reason or reason == "belongs to" for fault in found if reason)
