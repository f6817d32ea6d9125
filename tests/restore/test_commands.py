"""The commands, as a person or a program runs them: one object for programs, one sentence for
errors."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from host_agent.wire.keys import GroupKey, TenantKey
from host_agent.wire.names import Identity
from tests.model.builder import JournalBuilder
from tests.model.workload import Shape, Workload
from workers.cli import main as cli
from workers.storage.url import open_store


@dataclass
class Said:
    """What a command answered."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one object on standard output."""
        assert self.out.count("\n") == 1
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found


Run = Callable[..., Said]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def run_command(*words: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["holdfast", *map(str, words)])
        monkeypatch.delenv("HOLDFAST_DEBUG", raising=False)
        status = 0
        try:
            cli.main()
        except SystemExit as ended:
            status = int(ended.code or 0)
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return Said(status, said.out, said.err)

    return run_command


class Bucket:
    """A local store with the journals of two hosts, and the tenant's key file."""

    def __init__(self, folder: Path) -> None:
        self.url = f"file://{folder / 'store'}"
        store = open_store(self.url, create=True)
        self.key = TenantKey.make("acme")
        self.key_file = folder / "tenant.key"
        self.key_file.touch(0o600)
        self.key_file.write_bytes(self.key.dump())
        self.builders = []
        for number, (group, host) in enumerate(
            (("web", "host1"), ("db", "host1"), ("db", "host2"))
        ):
            rng = random.Random(number)
            builder = JournalBuilder(store, Identity("acme", group, host), self.key, rng)
            Workload(builder, Shape({"root": 40}, operations=20), rng).run()
            builder.mark(kind="tagged", tag="before")
            builder.segment()
            self.builders.append(builder)

    @property
    def where(self) -> tuple[object, ...]:
        """The options that every restore needs."""
        return "--store", self.url, "--tenant", "acme", "--key-file", self.key_file


@pytest.fixture
def bucket(tmp_path: Path) -> Bucket:
    return Bucket(tmp_path)


def test_version(run: Run) -> None:
    assert run("--version").out.startswith("holdfast 0.")


def test_list_shows_every_stream_to_people(run: Run, bucket: Bucket) -> None:
    said = run("restore", "list", *bucket.where)
    assert said.status == 0
    for text in ("web on host1", "db on host1", "db on host2", "disk root", "before", "tagged"):
        assert text in said.out
    newest = bucket.builders[0].model.seq
    assert f"to {newest}" in said.out


def test_list_gives_programs_one_object(run: Run, bucket: Bucket) -> None:
    said = run("restore", "list", *bucket.where, "--group", "db", "--json").json
    assert [stream["host"] for stream in said["streams"]] == ["host1", "host2"]
    stream = said["streams"][0]
    assert stream["damage"] is None
    assert stream["checkpoints"][-1]["tag"] == "before"
    assert stream["disks"][0]["name"] == "root"
    assert stream["history"][-1]["last_seq"] == bucket.builders[1].model.seq


def test_list_verifies_every_byte(run: Run, bucket: Bucket, tmp_path: Path) -> None:
    said = run("restore", "list", *bucket.where, "--group", "web", "--verify", "--json")
    assert said.status == 0
    checked = said.json["streams"][0]["verified"]
    assert checked["problems"] == []
    assert checked["segments"] == said.json["streams"][0]["segments"]
    chain = tmp_path / "store/acme/web/host1/chain"
    spoiled = max(chain.iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(spoiled.read_bytes())
    data[12] ^= 1  # of the lead, which only the hash of the whole segment covers
    spoiled.chmod(0o600)
    spoiled.write_bytes(data)
    assert run("restore", "list", *bucket.where, "--group", "web").status == 0
    said = run("restore", "list", *bucket.where, "--group", "web", "--verify", "--json")
    assert said.status == 1
    assert said.json["streams"][0]["verified"]["problems"][0]["error"] == "journal_damaged"


def test_damage_is_listed_and_told_by_the_status(run: Run, bucket: Bucket, tmp_path: Path) -> None:
    sorted((tmp_path / "store/acme/web/host1/chain").iterdir())[-2].unlink()
    said = run("restore", "list", *bucket.where, "--json")
    assert said.status == 1
    states = {(s["group"], s["host"]): s["state"] for s in said.json["streams"]}
    assert states["web", "host1"] == "damaged"
    assert states["db", "host1"] != "damaged"
    assert "damaged" in run("restore", "list", *bucket.where, "--group", "web").out


def test_export_writes_images_and_says_what(run: Run, bucket: Bucket, tmp_path: Path) -> None:
    where = (*bucket.where, "--group", "web", "--at", "before", "--output", tmp_path / "out")
    said = run("restore", "export", *where, "--json")
    assert said.status == 0
    assert said.json["verified"] is True
    assert said.json["point"]["tag"] == "before"
    disk = said.json["disks"][0]
    assert disk["digest"] is None
    assert Path(disk["path"]).read_bytes() == bucket.builders[0].model.images()["root"]
    assert "Chosen: checkpoint" in said.err
    again = run("restore", "export", *where, "--json")
    assert again.status == 1
    assert again.json["error"] == "target_exists"
    assert "--force" in again.json["hint"]
    assert run("restore", "export", *where, "--force").status == 0
    said = run("restore", "export", *where, "--force", "--digest", "--json")
    image = Path(disk["path"]).read_bytes()
    assert said.json["disks"][0]["digest"] == f"blake3:{blake3(image).hexdigest()}"
    assert said.json["verified"] is True


def test_saved_maps_are_kept_where_told(run: Run, bucket: Bucket, tmp_path: Path) -> None:
    cache = tmp_path / "maps"
    for number in range(2):
        where = ("--group", "web", "--at", "latest", "--output", tmp_path / str(number))
        said = run("restore", "export", *bucket.where, *where, "--map-cache", cache)
        assert said.status == 0
    assert len(list(cache.iterdir())) == 1
    assert (tmp_path / "0/root.raw").read_bytes() == (tmp_path / "1/root.raw").read_bytes()


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("--group", "db", "--at", "latest"), "ambiguous_stream"),
        (("--at", "latest"), "ambiguous_stream"),
        (("--group", "mail", "--at", "latest"), "no_such_stream"),
        (("--group", "db", "--host", "host9", "--at", "latest"), "no_such_stream"),
        (("--group", "web", "--at", "seq:1"), "inside_sync"),
        (("--group", "web", "--at", "time:never"), "bad_selector"),
        (("--group", "web", "--at", "tag:after"), "no_such_checkpoint"),
        (("--group", "../web", "--at", "latest"), "bad_name"),
    ],
)
def test_what_is_wrong_is_named(
    run: Run, bucket: Bucket, tmp_path: Path, words: tuple[str, ...], error: str
) -> None:
    said = run("restore", "export", *bucket.where, *words, "--output", tmp_path / "o", "--json")
    assert said.status == 1
    assert said.json["error"] == error
    assert said.json["message"]
    assert f"holdfast: {said.json['message']}" in said.err
    assert not (tmp_path / "o").exists()


def test_one_host_of_a_group_can_be_named(run: Run, bucket: Bucket, tmp_path: Path) -> None:
    where = ("--group", "db", "--host", "host2", "--at", "latest-write", "--output", tmp_path / "o")
    assert run("restore", "export", *bucket.where, *where).status == 0
    image = (tmp_path / "o/root.raw").read_bytes()
    assert image == bucket.builders[2].model.images()["root"]


@pytest.mark.invariant("I9")
def test_a_foreign_key_opens_nothing(run: Run, bucket: Bucket, tmp_path: Path) -> None:
    other = tmp_path / "other.key"
    assert run("keys", "make-tenant", "--tenant", "globex", "--output", other).status == 0
    where = ("--store", bucket.url, "--tenant", "acme", "--key-file", other, "--json")
    said = run("restore", "list", *where)
    assert (said.status, said.json["error"]) == (1, "bad_key_file")
    own = tmp_path / "own.key"
    assert run("keys", "make-tenant", "--tenant", "acme", "--output", own).status == 0
    where = ("--store", bucket.url, "--tenant", "acme", "--key-file", own, "--json")
    said = run("restore", "list", *where)
    assert (said.status, said.json["error"]) == (1, "wrong_key")


@pytest.mark.parametrize(
    ("content", "mode"),
    [(None, 0o600), (b"", 0o600), (b"{}", 0o600), (b"\xff" * 20_000, 0o600), ("own", 0o644)],
    ids=["missing", "empty", "no key", "garbage", "readable by others"],
)
def test_a_bad_key_file_is_named(
    run: Run, bucket: Bucket, tmp_path: Path, content: bytes | str | None, mode: int
) -> None:
    path = tmp_path / "bad.key"
    if content is not None:
        path.write_bytes(bucket.key.dump() if isinstance(content, str) else content)
        path.chmod(mode)
    where = ("--store", bucket.url, "--tenant", "acme", "--key-file", path, "--json")
    said = run("restore", "list", *where)
    assert (said.status, said.json["error"]) == (1, "bad_key_file")
    assert said.json["hint"]


@pytest.mark.parametrize(
    "url", ["ftp://x", "file://relative", "nonsense", "file:///nowhere/at/all"]
)
def test_a_bad_store_is_named(run: Run, bucket: Bucket, url: str) -> None:
    where = ("--store", url, "--tenant", "acme", "--key-file", bucket.key_file, "--json")
    said = run("restore", "list", *where)
    assert said.status == 1
    assert said.json["hint"]


def test_an_empty_store_says_so(run: Run, bucket: Bucket, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    where = ("--store", f"file://{tmp_path / 'empty'}", *bucket.where[2:])
    said = run("restore", "list", *where)
    assert said.status == 0
    assert "no journal" in said.out
    assert run("restore", "list", *where, "--json").json["streams"] == []


def test_keys_are_made_private_and_never_replaced(run: Run, tmp_path: Path) -> None:
    tenant, group = tmp_path / "t.key", tmp_path / "g.key"
    assert run("keys", "make-tenant", "--tenant", "acme", "--output", tenant).status == 0
    made = run("keys", "make-group", "--key-file", tenant, "--group", "web", "--output", group)
    assert made.status == 0
    for path in (tenant, group):
        assert path.stat().st_mode & 0o777 == 0o600
    key = TenantKey.parse(tenant.read_bytes())
    parsed = GroupKey.parse(group.read_bytes())
    assert (parsed.tenant, parsed.group, parsed.tenant_key_id) == ("acme", "web", key.id)
    said = run("keys", "make-tenant", "--tenant", "acme", "--output", tenant, "--json")
    assert (said.status, said.json["error"]) == (1, "bad_key_file")
    assert TenantKey.parse(tenant.read_bytes()) == key
    said = run("keys", "make-tenant", "--tenant", "Bad Name", "--output", tmp_path / "x", "--json")
    assert (said.status, said.json["error"]) == (1, "bad_name")


def test_a_missing_option_is_a_usage_error(run: Run) -> None:
    said = run("restore", "export", "--tenant", "acme")
    assert said.status == 2
    assert "--store" in said.err


def test_something_impossible_is_told_without_a_trace(
    run: Run, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    def impossible(*_: object) -> None:
        raise ZeroDivisionError("by nought")

    monkeypatch.setattr("workers.cli.restore.list_streams", impossible)
    said = run("restore", "list", *bucket.where, "--json")
    assert (said.status, said.json["error"]) == (1, "internal")
    assert "HOLDFAST_DEBUG" in said.json["hint"]


def test_the_installed_program_answers_quickly(bucket: Bucket) -> None:
    program = Path(sys.executable).parent / "holdfast"
    done = subprocess.run(
        [program, "restore", "list", *map(str, bucket.where), "--json"],
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONWARNINGS": "error"},
        timeout=30,
    )
    assert len(json.loads(done.stdout)["streams"]) == 3
