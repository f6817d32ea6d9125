"""A store without create-if-absent is refused by name; what the probe leaves is bounded."""

from __future__ import annotations

import os
import time

import pytest

from tests.servers.faulty_s3 import FaultyS3, running_faulty_s3
from tests.servers.seaweed import CREDENTIALS, STRANGER, WRITER
from workers.storage.errors import StoreRefused, StoreUnsuitable
from workers.storage.port import Created, ObjectStore
from workers.storage.probe import PROBE_OBJECTS_MAX, ProbeTools, probe_store
from workers.storage.s3 import S3Credentials
from workers.storage.url import open_store

TOOLS = ProbeTools(time.time_ns, os.urandom)
ANYBODY = S3Credentials("any", "body")


@pytest.mark.invariant("I7")
def test_store_that_ignores_the_condition_is_refused_by_name() -> None:
    """The negative control of the conformance suite: such a store would let two writers win."""
    with running_faulty_s3(ignores_condition=True) as service:
        store = open_store(service.url("loose"), credentials=ANYBODY)
        with pytest.raises(StoreUnsuitable, match=r"s3://loose/.*cannot keep a journal") as caught:
            probe_store(store, "t/_probe/", TOOLS)
    assert "create if absent" in caught.value.hint
    assert not caught.value.retryable


def test_the_same_store_with_the_condition_is_accepted(faulty: FaultyS3) -> None:
    probe_store(open_store(faulty.url(), credentials=ANYBODY), "t/_probe/", TOOLS)


class _Undeletable:
    """A store whose credentials may not delete, as a data node's are."""

    def __init__(self, inner: ObjectStore) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def delete(self, name: str) -> None:
        raise StoreRefused("may not delete")


class _Loose(_Undeletable):
    def put_if_absent(self, name: str, data: bytes) -> Created:
        return Created.CREATED


def test_probes_without_the_right_to_delete_are_bounded(store: ObjectStore) -> None:
    bare = _Undeletable(store)
    for number in range(PROBE_OBJECTS_MAX - 10):
        store.put_if_absent(f"t/_probe/{int(time.time()):010x}-{number:04x}", b"")
    for _ in range(5):
        probe_store(bare, "t/_probe/", TOOLS)  # type: ignore[arg-type]
    assert PROBE_OBJECTS_MAX - 4 <= len(list(store.list("t/_probe/"))) <= PROBE_OBJECTS_MAX
    with pytest.raises(StoreUnsuitable, match="created again"):
        probe_store(_Loose(store), "t/_probe/", TOOLS)  # type: ignore[arg-type]


def test_only_old_probes_of_others_are_removed(store: ObjectStore) -> None:
    young, old = (f"t/_probe/{int(time.time()) - age:010x}-00" for age in (60, 90_000))
    store.put_if_absent(young, b"")
    store.put_if_absent(old, b"")
    probe_store(store, "t/_probe/", TOOLS)
    assert [entry.name for entry in store.list("t/_probe/")] == [young]


@pytest.mark.s3
@pytest.mark.parametrize("credentials", [STRANGER, WRITER], ids=["wrong secret", "may not write"])
def test_refused_credentials_are_named(bucket_url: str, credentials: S3Credentials) -> None:
    store = open_store(bucket_url, credentials=credentials)
    with pytest.raises(StoreRefused, match="s3://contract/") as caught:
        store.put_if_absent("t/x", b"")
    assert caught.value.hint
    assert credentials.secret_access_key not in str(caught.value) + repr(credentials)


@pytest.mark.s3
def test_missing_bucket_is_named(bucket_url: str) -> None:
    store = open_store(bucket_url.replace("contract", "no-such-bucket"), credentials=CREDENTIALS)
    with pytest.raises(StoreRefused, match="no-such-bucket"):
        store.get("t/x")
