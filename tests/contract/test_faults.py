"""Requests that fail: named, repeated within bounds, and never taken for what they were not."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.servers.faulty_s3 import Fault, FaultyS3
from workers.storage import local
from workers.storage.errors import (
    ObjectMissing,
    OutcomeUnknown,
    StoreError,
    StoreFull,
    StoreRefused,
    StoreUnavailable,
)
from workers.storage.failpoints import EXIT_STATUS
from workers.storage.local import LocalStore
from workers.storage.port import Created, ObjectStore
from workers.storage.retry import RetryingStore, RetryPolicy, RetryTools
from workers.storage.s3 import S3Credentials, S3Store
from workers.storage.url import open_store, s3_place

ANYBODY = S3Credentials("any", "body")


class _Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.naps: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.naps.append(seconds)
        self.now += seconds

    @property
    def tools(self) -> RetryTools:
        return RetryTools(self.sleep, lambda: self.now, random.Random(5))


def _bare(service: FaultyS3) -> S3Store:
    return S3Store(s3_place(service.url()), ANYBODY)


def _retrying(service: FaultyS3, time: _Time | None = None) -> RetryingStore:
    return RetryingStore(_bare(service), RetryPolicy(), (time or _Time()).tools)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault.LOST_REQUEST, OutcomeUnknown),
        (Fault.LOST_ANSWER, OutcomeUnknown),
        (Fault.ERROR_500, OutcomeUnknown),
        (Fault.BUSY_503, StoreUnavailable),
        (Fault.CONFLICT_409, StoreUnavailable),
        (Fault.FULL_507, StoreFull),
        (Fault.DENIED_403, StoreRefused),
    ],
)
def test_each_failed_create_is_named(
    faulty: FaultyS3, fault: Fault, error: type[StoreError]
) -> None:
    faulty.faults.append(("PUT", fault))
    with pytest.raises(error, match="s3://bucket/") as caught:
        _bare(faulty).put_if_absent("t/x", b"data")
    assert caught.value.code


@pytest.mark.invariant("I2")
@pytest.mark.parametrize("fault", [Fault.LOST_ANSWER, Fault.ERROR_500, Fault.LOST_REQUEST])
@pytest.mark.parametrize("times", [1, 3])
def test_unknown_outcome_of_our_own_create_is_ours(
    faulty: FaultyS3, fault: Fault, times: int
) -> None:
    """I2: carried out or not, the same bytes again tell; the object is there once."""
    faulty.faults.extend([("PUT", fault)] * times)
    assert _retrying(faulty).put_if_absent("t/x", b"data") is Created.CREATED
    assert faulty.objects == {"t/x": b"data"}


@pytest.mark.invariant("I7")
def test_unknown_outcome_under_a_name_that_another_took(faulty: FaultyS3) -> None:
    """I7: "exists" after a doubt is ours only if the bytes are."""
    faulty.objects["t/x"] = b"theirs"
    faulty.faults.append(("PUT", Fault.LOST_REQUEST))
    assert _retrying(faulty).put_if_absent("t/x", b"ours") is Created.EXISTS
    assert faulty.objects == {"t/x": b"theirs"}


def test_exists_without_a_doubt_is_not_compared(faulty: FaultyS3) -> None:
    """The negative control: the same bytes of an earlier writer are not this call's creation."""
    faulty.objects["t/x"] = b"same"
    assert _retrying(faulty).put_if_absent("t/x", b"same") is Created.EXISTS


@pytest.mark.invariant("I2")
def test_doubt_outlasts_a_later_refusal(faulty: FaultyS3) -> None:
    """I2: an earlier request may still arrive, whatever the last answer was."""
    faulty.faults.extend([("PUT", Fault.LOST_REQUEST), ("PUT", Fault.FULL_507)])
    with pytest.raises(OutcomeUnknown):
        _retrying(faulty).put_if_absent("t/x", b"data")


def test_conflict_and_busy_are_repeated(faulty: FaultyS3) -> None:
    faulty.faults.extend([("PUT", Fault.CONFLICT_409), ("PUT", Fault.BUSY_503)])
    assert _retrying(faulty).put_if_absent("t/x", b"data") is Created.CREATED


@pytest.mark.invariant("I12")
def test_retries_are_bounded_and_pauses_grow(faulty: FaultyS3) -> None:
    """I12: a store that is away does not keep a caller for ever."""
    faulty.always = Fault.BUSY_503
    time = _Time()
    with pytest.raises(StoreUnavailable):
        _retrying(faulty, time).put_if_absent("t/x", b"data")
    policy = RetryPolicy()
    assert len(faulty.requests) == policy.attempts_max
    assert len(time.naps) == policy.attempts_max - 1
    assert max(time.naps) <= policy.pause_seconds_max
    assert time.now <= policy.seconds_max


@pytest.mark.parametrize("fault", [Fault.FULL_507, Fault.DENIED_403])
def test_what_waiting_does_not_cure_is_not_repeated(faulty: FaultyS3, fault: Fault) -> None:
    faulty.always = fault
    time = _Time()
    with pytest.raises(StoreError):
        _retrying(faulty, time).put_if_absent("t/x", b"data")
    assert time.naps == []


@pytest.mark.invariant("I10")
@pytest.mark.parametrize("call", ["get", "get_range", "get_tail"])
def test_cut_answer_is_never_an_object(faulty: FaultyS3, call: str) -> None:
    """I10: fewer bytes than announced are an error, and asking again cures it."""
    faulty.objects["t/x"] = bytes(range(200))
    reads: dict[str, Callable[[ObjectStore], bytes]] = {
        "get": lambda store: store.get("t/x"),
        "get_range": lambda store: store.get_range("t/x", 0, 200),
        "get_tail": lambda store: store.get_tail("t/x", 200),
    }
    faulty.faults.append(("GET", Fault.CUT_ANSWER))
    with pytest.raises(StoreUnavailable):
        reads[call](_bare(faulty))
    faulty.faults.append(("GET", Fault.CUT_ANSWER))
    assert reads[call](_retrying(faulty)) == bytes(range(200))


def test_unreachable_store_is_named() -> None:
    url = "s3://bucket?endpoint=http://127.0.0.1:1&region=r&path_style=true"
    store = RetryingStore(S3Store(s3_place(url), ANYBODY), RetryPolicy(2), _Time().tools)
    with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1:1"):
        store.get("t/x")


class _FailingOs:
    """The `os` module, whose n-th call of the named functions fails."""

    def __init__(self, nth: int, error: int) -> None:
        self.left = nth
        self.error = error
        self.failed = ""

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in {"open", "write", "fsync", "link", "pread"}:
            return real

        def call(*arguments: Any, **options: Any) -> Any:
            self.left -= 1
            if self.left == 0:
                self.failed = name
                raise OSError(self.error, os.strerror(self.error))
            return real(*arguments, **options)

        return call


@pytest.mark.invariant("I2", "I10")
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT])
def test_every_failing_call_leaves_a_whole_object_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    """I2, I10: the i-th system call of a create fails, for every i."""
    data = os.urandom(5000)
    failures: list[tuple[str, StoreError]] = []
    for nth in range(1, 40):
        store = LocalStore(tmp_path / f"store{nth}")
        failing = _FailingOs(nth, error)
        monkeypatch.setattr(local, "os", failing)
        try:
            outcome = store.put_if_absent("t/g/h/x", data)
        except StoreError as raised:
            failures.append((failing.failed, raised))
        else:
            assert outcome is Created.CREATED
            assert not failing.failed
        finally:
            monkeypatch.setattr(local, "os", os)
        try:
            assert LocalStore(tmp_path / f"store{nth}").get("t/g/h/x") == data
        except ObjectMissing:
            assert failing.failed
        assert list((tmp_path / f"store{nth}" / ".unfinished").iterdir()) == []
    assert {name for name, _ in failures} == {"open", "write", "fsync", "link"}
    wanted = {errno.ENOSPC: StoreFull, errno.EDQUOT: StoreFull, errno.EROFS: StoreRefused}
    for name, failure in failures:
        assert str(tmp_path) in failure.message
        assert failure.hint
        if name in {"write", "link"}:
            assert isinstance(failure, wanted.get(error, StoreUnavailable))


@pytest.mark.invariant("I2")
def test_failed_sync_of_a_directory_is_never_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I2: the kernel tells a lost write once; a later sync that succeeds proves nothing."""
    store = LocalStore(tmp_path / "store")
    store.put_if_absent("t/first", b"1")

    def fail(path: Path) -> None:
        raise OSError(errno.EIO, "lost")

    with monkeypatch.context() as patch:
        patch.setattr(local, "_sync_directory", fail)
        with pytest.raises(OutcomeUnknown) as caught:
            store.put_if_absent("t/second", b"2")
        assert not caught.value.retryable
    for name in ("t/second", "t/third"):
        with pytest.raises(StoreRefused, match="failed a sync"):
            store.put_if_absent(name, b"2")
    assert store.get("t/first") == b"1"


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_full_and_read_only_file_systems_are_named(tmp_path: Path) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", mount], check=True)
    try:
        store = open_store(f"file://{mount}/store", create=True)
        assert store.put_if_absent("t/small", bytes(1000)) is Created.CREATED
        with pytest.raises(StoreFull, match="ENOSPC") as caught:
            store.put_if_absent("t/large", bytes(4 << 20))
        assert caught.value.retryable
        assert store.put_if_absent("t/after", bytes(1000)) is Created.CREATED
        with pytest.raises(ObjectMissing):
            store.get("t/large")
        subprocess.run(["mount", "-o", "remount,ro", mount], check=True)
        with pytest.raises(StoreRefused, match="EROFS"):
            store.put_if_absent("t/x", b"x")
        assert store.get("t/small") == bytes(1000)
    finally:
        subprocess.run(["umount", mount], check=True)


_CREATE = """
import sys
from workers.storage.url import open_store
store = open_store(sys.argv[1], create=True)
store.put_if_absent("t/deep/er/x", bytes(range(256)) * 4096)
"""


@pytest.mark.invariant("I10")
@pytest.mark.parametrize(
    ("window", "survives", "left"),
    [
        ("object_after_sync_before_link", False, 1),
        ("object_after_link_before_directory_sync", True, 1),
        ("object_after_directory_sync_before_answer", True, 0),
    ],
)
def test_killed_creator_leaves_nothing_or_the_whole_object(
    tmp_path: Path, window: str, survives: bool, left: int
) -> None:
    """I10: and a later start cleans up what it left, beside writers who live."""
    url = f"file://{tmp_path}/store"
    done = subprocess.run(
        [sys.executable, "-c", _CREATE, url],
        env={**os.environ, "HOLDFAST_FAILPOINT": window},
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == EXIT_STATUS
    unfinished = tmp_path / "store" / ".unfinished"
    assert len(list(unfinished.iterdir())) == left
    reader = open_store(url)
    if survives:
        assert reader.get("t/deep/er/x") == bytes(range(256)) * 4096
    else:
        with pytest.raises(ObjectMissing):
            reader.get("t/deep/er/x")
    assert [entry.name for entry in reader.list("t/deep/er/")] == ["t/deep/er/x"] * survives
    open_store(url, create=True)
    assert list(unfinished.iterdir()) == []


@pytest.mark.invariant("I15")
def test_cleaning_up_spares_living_writers(tmp_path: Path) -> None:
    """I15: what a living writer is about to commit is never collected."""
    store = LocalStore(tmp_path / "store")
    with store._unfinished_file() as (path, _):
        assert store.clean_up() == 0
        assert path.exists()
    (tmp_path / "store" / ".unfinished" / "abandoned").write_bytes(b"x")
    assert store.clean_up() == 1


def test_missing_folder_is_named_to_a_reader(tmp_path: Path) -> None:
    with pytest.raises(StoreRefused, match="nowhere"):
        open_store(f"file://{tmp_path}/nowhere")
    assert not (tmp_path / "nowhere").exists()
