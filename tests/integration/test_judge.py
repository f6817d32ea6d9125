"""The judge of restored disks accepts what can be and nothing else; each case is a disk of eight
sectors with a hash that is spelled out."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from tests.integration.judge import Array, Judge
from tests.integration.witness import ANSWER, REQUEST, Log, hashes_of

_SECTORS = 8


class Written:
    """A witness's folder, written by hand."""

    def __init__(self, folder: Path) -> None:
        Log(folder)
        self.folder = folder
        self._count = self._hashes = 0

    def _append(self, name: str, data: bytes) -> None:
        with (self.folder / name).open("ab") as file:
            file.write(data)

    def write(self, issued: int, answered: int | None, sector: int, *values: int) -> None:
        self._append("hashes", struct.pack(f"<{len(values)}Q", *values))
        self._append("requests", REQUEST.pack(issued, sector, self._hashes, len(values)))
        if answered is not None:
            self._append("answers", ANSWER.pack(self._count, answered))
        self._count += 1
        self._hashes += len(values)

    def judge(self) -> Judge:
        return Judge(self.folder, np.zeros(_SECTORS, np.uint64))


@pytest.fixture
def written(tmp_path: Path) -> Written:
    return Written(tmp_path / "notes")


def disk(**values: int) -> Array:
    """A disk of zeroes but for some sectors, `s3=7`."""
    found = np.zeros(_SECTORS, np.uint64)
    for name, value in values.items():
        found[int(name[1:])] = value
    return found


def wrong(judge: Judge, disk: Array, answered: int) -> list[int]:
    return [int(sector) for sector in judge.judge(disk, answered).wrong]


def test_an_answered_write_must_be_there(written: Written) -> None:
    written.write(10, 20, 2, 71, 72)
    judge = written.judge()
    judge.settle(30)
    assert wrong(judge, disk(s2=71, s3=72), 31) == []
    assert wrong(judge, disk(), 31) == [2, 3]
    assert wrong(judge, disk(s2=71), 31) == [3]
    assert wrong(judge, disk(s2=71, s3=72, s7=1), 31) == [7]


def test_what_is_in_flight_may_be_there_or_not(written: Written) -> None:
    written.write(10, 20, 2, 71)
    written.write(25, 40, 2, 81)
    written.write(26, None, 3, 82)
    judge = written.judge()
    judge.settle(30)
    for second, third in ((71, 0), (81, 0), (71, 82), (81, 82)):
        assert wrong(judge, disk(s2=second, s3=third), 31) == []
    assert judge.judge(disk(s2=71), 31).open_sectors == 2
    assert wrong(judge, disk(), 31) == [2]


def test_what_was_issued_after_the_answer_may_not(written: Written) -> None:
    written.write(10, 20, 2, 71)
    written.write(35, 40, 2, 81)
    judge = written.judge()
    judge.settle(30)
    assert wrong(judge, disk(s2=81), 34) == [2]
    assert wrong(judge, disk(s2=81), 36) == []
    judge.settle(50)
    assert wrong(judge, disk(s2=71), 51) == [2]


def test_of_two_at_once_either_may_be_the_last(written: Written) -> None:
    written.write(10, 20, 2, 71)
    written.write(15, 25, 2, 81)
    written.write(22, 28, 2, 91)
    judge = written.judge()
    judge.settle(26)
    assert wrong(judge, disk(s2=71), 27) == []  # the third is not answered, the second beside it
    assert wrong(judge, disk(s2=81), 27) == []
    judge.settle(30)
    # The third was issued after the first's answer, and beside the second.
    assert wrong(judge, disk(s2=71), 31) == [2]
    assert wrong(judge, disk(s2=81), 31) == []
    assert wrong(judge, disk(s2=91), 31) == []


def test_a_copy_stays_and_nobody_goes_back(written: Written) -> None:
    written.write(10, 20, 2, 71)
    judge = written.judge()
    judge.settle(15)
    early = judge.copy()
    judge.settle(30)
    assert wrong(early, disk(), 9) == []
    assert wrong(judge, disk(), 31) == [2]
    with pytest.raises(ValueError, match="back"):
        judge.settle(29)


def test_one_bit_is_another_hash() -> None:
    data = bytearray(1024)
    before = hashes_of(bytes(data))
    data[700] ^= 1
    after = hashes_of(bytes(data))
    assert before[:8] == after[:8]
    assert before[8:] != after[8:]
