"""`holdfast verify` and `holdfast journal scrub`: one answer, and a status that tells."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.restore.test_commands import Bucket, Run, bucket, run
from workers.journal import indexfile

__all__ = ["bucket", "run"]


def spoil(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)


def largest(folder: Path) -> Path:
    return max(folder.iterdir(), key=lambda path: path.stat().st_size)


def test_whole_journals_are_proved(run: Run, bucket: Bucket) -> None:
    for deep in ((), ("--deep",)):
        said = run("verify", *bucket.where, *deep, "--json")
        assert said.status == 0
        assert said.json["ok"] is True
        assert [s["host"] for s in said.json["streams"]] == ["host1", "host2", "host1"]
        for stream in said.json["streams"]:
            assert stream["problems"] == []
            assert min(stream[what] for what in ("records", "segments", "frames")) > 0
            assert bool(stream["bytes"]) == bool(deep)
    said = run("verify", *bucket.where, "--deep", "--group", "web")
    assert "web on host1" in said.out
    assert "no problems" in said.out


def test_data_that_changed_is_found_by_the_deep_one(
    run: Run, bucket: Bucket, tmp_path: Path
) -> None:
    spoil(
        largest(tmp_path / "store/acme/web/host1/chain"), 12
    )  # of the lead: only the hash of the whole covers it
    assert run("verify", *bucket.where, "--json").json["ok"] is True
    said = run("verify", *bucket.where, "--deep", "--json")
    assert said.status == 1
    assert said.json["ok"] is False
    by_name = {(s["group"], s["host"]): s["problems"] for s in said.json["streams"]}
    assert by_name["web", "host1"][0]["error"] in {"journal_damaged", "payload_damaged"}
    assert by_name["db", "host1"] == by_name["db", "host2"] == []
    assert "web on host1" in run("verify", *bucket.where, "--deep").out


def test_a_lost_segment_and_a_lost_key_need_no_deep_look(
    run: Run, bucket: Bucket, tmp_path: Path
) -> None:
    sorted((tmp_path / "store/acme/web/host1/chain").iterdir())[-2].unlink()
    next((tmp_path / "store/acme/db/host1/keys").iterdir()).unlink()
    said = run("verify", *bucket.where, "--json")
    assert said.status == 1
    errors = {(s["group"], s["host"]): [p["error"] for p in s["problems"]]
              for s in said.json["streams"]}  # fmt: skip
    assert errors["web", "host1"] == ["segment_lost"]
    assert errors["db", "host1"] == ["key_object_lost"]
    assert errors["db", "host2"] == []


def test_scrub_needs_no_key_and_finds_the_same(run: Run, bucket: Bucket, tmp_path: Path) -> None:
    where = ("--store", bucket.url, "--tenant", "acme")
    assert run("journal", "scrub", *where, "--json").json["ok"] is True
    spoil(
        largest(tmp_path / "store/acme/web/host1/chain"), 12
    )  # of the lead: only the hash of the whole covers it
    said = run("journal", "scrub", *where, "--group", "web", "--json")
    assert said.status == 1
    assert said.json["streams"][0]["problems"][0]["error"] == "journal_damaged"
    assert run("journal", "scrub", *where, "--group", "db").status == 0


@pytest.mark.parametrize("words", [("verify", "--key-file"), ("journal", "scrub")])
def test_a_stream_that_is_not_there(run: Run, bucket: Bucket, words: tuple[str, ...]) -> None:
    key = (bucket.key_file,) if "--key-file" in words else ()
    where = ("--store", bucket.url, "--tenant", "acme", "--group", "mail", "--json")
    said = run(*words, *key, *where)
    assert said.status == 1
    assert said.json["error"] == "no_such_stream"


def test_journals_that_are_indexed_restore_the_same(
    run: Run, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexfile, "SPAN", 3)
    listed = run("restore", "list", *bucket.where, "--json").json
    said = run("journal", "index", *bucket.where, "--json")
    assert said.status == 0
    made = [name for stream in said.json["streams"] for name in stream["made"]]
    assert made
    assert run("journal", "index", *bucket.where, "--json").json["streams"][0]["made"] == []
    assert "0 index objects made" in run("journal", "index", *bucket.where).out
    assert run("restore", "list", *bucket.where, "--json").json == listed
    for at in ("before", "latest-write"):
        where = ("--group", "web", "--at", at, "--output", tmp_path / at)
        assert run("restore", "export", *bucket.where, *where).status == 0
        image = (tmp_path / at / "root.raw").read_bytes()
        assert image == bucket.builders[0].model.images()["root"]
    assert run("verify", *bucket.where, "--deep", "--json").json["ok"] is True
    spoil(tmp_path / "store" / made[0], 700)
    assert run("journal", "scrub", "--store", bucket.url, "--tenant", "acme").status == 1
    assert run("restore", "list", *bucket.where, "--json").json == listed
