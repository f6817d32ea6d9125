"""`holdfast journal fold`, `collect`, `pin` in real processes, over a real folder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.journal.folding import Site
from tests.model.model import MARK
from workers.journal.scrub import scrub


@pytest.fixture
def place(tmp_path: Path) -> tuple[Path, Site]:
    """A bucket in a folder, its key, and what wrote it."""
    site = Site.make(6)
    for name, data in site.store.objects.items():
        path = tmp_path / "store" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    key = tmp_path / "tenant.key"
    key.touch(0o600)
    key.write_bytes(site.builder.tenant_key.dump())
    return tmp_path, site


def run(folder: Path, *words: str, key: bool = True, code: int = 0) -> dict[str, Any]:
    where = ["--store", f"file://{folder / 'store'}", "--tenant", "acme"]
    keys = ["--key-file", str(folder / "tenant.key")] if key else []
    ended = subprocess.run(
        [sys.executable, "-m", "workers.cli.main", *words, *where, *keys, "--json"],
        capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    assert ended.returncode == code, ended.stderr.decode()
    assert b"Traceback" not in ended.stderr
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def test_from_fold_to_collect(place: tuple[Path, Site]) -> None:
    folder, site = place
    marks = [
        m.recorded.event.body["checkpoint"]
        for m in site.known
        if m.may_be_chosen and m.recorded.event.op == MARK and m.recorded.event.body
    ]
    pinned = run(folder, "journal", "pin", marks[0])
    assert pinned["pinned"] is True
    folded = run(folder, "journal", "fold", "--group", "web", "--window", "1")["streams"][0]
    assert folded["folded_places"] > 10
    assert folded["problems"] == []
    assert run(folder, "journal", "fold", "--window", "1")["streams"][0]["folded_places"] == 0
    listed = run(folder, "restore", "list")["streams"][0]
    assert listed["begins"]["reason"] == "window"
    assert listed["begins"]["history_from"] >= listed["history"][0]["first_time"]
    assert marks[0] in [c["id"] for c in listed["checkpoints"]]
    early = run(folder, "journal", "collect", key=False)["streams"][0]
    assert early["deleted"] == early["planned"] == 0
    refused = run(folder, "journal", "collect", "--grace", "0", key=False, code=1)
    assert refused["error"] == "grace_too_short"
    words = ("journal", "collect", "--grace", "0", "--force")
    dry = run(folder, *words, "--dry-run", key=False)["streams"][0]
    assert (dry["deleted"], dry["planned"] > 10) == (0, True)
    done = run(folder, *words, key=False)["streams"][0]
    assert done["deleted"] == dry["planned"]
    for depth in ([], ["--deep"]):
        assert run(folder, "verify", *depth)["ok"] is True
    assert run(folder, "journal", "scrub", key=False)["ok"] is True
    old = next(m.selector for m in site.known if m.may_be_chosen)
    gone = run(folder, "restore", "export", "--at", old, "--output", str(folder / "out"), code=1)
    assert gone["error"] == "moment_gone"
    kept = ("--at", f"checkpoint:{marks[0]}", "--output", str(folder / "out"))
    images = run(folder, "restore", "export", *kept)["disks"]
    wanted = next(
        m.images for m in site.known
        if m.recorded.event.body and m.recorded.event.body.get("checkpoint") == marks[0]
    )  # fmt: skip
    assert {d["name"]: Path(d["path"]).read_bytes() for d in images} == wanted
    assert run(folder, "journal", "unpin", marks[0])["pinned"] is False


@pytest.mark.parametrize("window", ["0", "721"])
def test_windows_that_no_group_can_have(place: tuple[Path, Site], window: str) -> None:
    folder, _ = place
    refused = run(folder, "journal", "fold", "--window", window, code=1)
    assert refused["error"] == "bad_policy"


@pytest.mark.invariant("I10")
def test_scrub_names_each_damaged_object_of_the_layers() -> None:
    site = Site.make(4)
    site.fold()
    whole = dict(site.store.objects)
    for name in [n for n in whole if "/parts/" in n or "/layers/" in n or "/boundary/" in n]:
        data = bytearray(whole[name])
        data[len(data) // 2] ^= 4
        site.store.objects = {**whole, name: bytes(data)}
        problems = scrub(site.store, site.builder.identity).problems
        assert any(name in problem.message for problem in problems), name
        site.store.objects = {n: d for n, d in whole.items() if n != name}
        problems = scrub(site.store, site.builder.identity).problems
        assert any(name in p.message for p in problems) or "/boundary/" in name
    site.store.objects = whole
    assert scrub(site.store, site.builder.identity).problems == []
