"""The index object that was made once stays readable, and stands for what it stood for."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from blake3 import blake3

from host_agent.wire.names import chain_name, index_name
from tests.journal.make_golden import journal, main
from tests.model.store import MemoryStore
from tests.restore.images import Images
from tests.restore.replay import moments
from workers.journal.indexfile import parse_index
from workers.journal.moment import open_at
from workers.journal.reader import ReadOptions, open_journal

FILE = Path(__file__).parent / "golden" / "index-1.bin"
BLAKE3 = "ef58fd01ead9ea21dece990f2877fc402612c0b2c837e7c7ec71ba9d3af37493"


def cut(data: bytes, start: int, length: int) -> bytes:
    return data[start : start + length]


def test_the_file_is_never_made_again(tmp_path: Path) -> None:
    assert blake3(FILE.read_bytes()).hexdigest() == BLAKE3
    main(tmp_path)
    with pytest.raises(FileExistsError):
        main(tmp_path)


def test_what_is_written_now_is_what_was_written_then(tmp_path: Path) -> None:
    builder, store = journal()
    main(tmp_path)
    opened = []
    with open_journal(store, builder.identity, builder.tenant_key) as whole:
        for data in (FILE.read_bytes(), (tmp_path / "index-1.bin").read_bytes()):
            sealed = parse_index(data)
            key = whole.keys.data_key(sealed.head.newest.generation)
            index = sealed.open(builder.identity, key)
            count = len(index.summary.sections)
            plain = [index.open(number, partial(cut, data)) for number in range(count)]
            opened.append((sealed.head, index.summary.generations, plain))
    assert opened[0] == opened[1]
    assert (opened[0][0].first_place, opened[0][0].last_place) == (1, 256)


def test_a_journal_opens_by_it() -> None:
    builder, store = journal()
    kept = {
        name: data
        for name, data in store.objects.items()
        if "/chain/" not in name or name >= chain_name(builder.identity, 256)
    }
    # Without the segments that it stands for, what is read can only come from it.
    kept[index_name(builder.identity, 1, 1)] = FILE.read_bytes()
    short = MemoryStore(kept)
    options = ReadOptions(use_index=True)
    with open_journal(short, builder.identity, builder.tenant_key, options) as journal_:
        assert journal_.damage is None
        assert journal_.rows == len(builder.log)
    store.objects[index_name(builder.identity, 1, 1)] = FILE.read_bytes()
    chosen = [moment for moment in moments(builder) if moment.may_be_chosen][::97]
    assert len(chosen) > 5
    for moment in chosen:
        found, point = open_at(store, builder.identity, builder.tenant_key, moment.selector)
        with found:
            assert Images(found).of(point) == moment.images
