"""Work on one group's journal: a process for one job, told what to do on its standard input.

It alone opens the group's key, sealed to a key pair that it made itself, and ends with the job.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from app.keys.client import SocketKeys
from app.keys.port import JOB_CONTEXT, Recipient, WrappedKey
from host_agent.wire.envelope import open_envelope
from host_agent.wire.errors import HoldfastError
from host_agent.wire.keys import GroupKey
from host_agent.wire.names import Identity
from workers.journal.catalogue import list_streams, stored_bytes
from workers.journal.collect import CollectOptions, Collector
from workers.journal.fold import Folder, FoldTools
from workers.journal.hashlist import make_hashes
from workers.journal.indexing import write_indexes
from workers.journal.pins import pin, unpin
from workers.journal.reader import Journal
from workers.journal.retention import Policy
from workers.journal.scrub import scrub
from workers.restore.fetch import fetch_all
from workers.storage.port import ObjectStore
from workers.storage.url import open_store

#: Protection comes first: what is done about old history leaves the processor to it.
_NICE = 10


class JournalProblems(HoldfastError):
    """Something in the journal is not as it should be."""

    code = "journal_problems"


def group_key(order: dict[str, Any]) -> GroupKey:
    """The group's key, opened by the key service for this process; KeyProblem."""
    own = X25519PrivateKey.generate()
    wrapped = WrappedKey.parse(order["wrapped_key"])
    keys = SocketKeys(Path(order["keys_socket"]))
    recipient = Recipient(own.public_key().public_bytes_raw(), f"job {order['do']}")
    sealed = asyncio.run(keys.seal_group_key(wrapped, order["job"], recipient))
    context = (JOB_CONTEXT, wrapped.tenant, wrapped.vpg, order["job"])
    return GroupKey.parse(open_envelope(own, sealed, *context))


def _maintain(order: dict[str, Any], store: ObjectStore, streams: list[Identity]) -> list[Any]:
    """What people keep is said first, so that folding leaves it. Then index objects, which make
    everything after them cheap; then folding and hash lists.
    """
    key = group_key(order)
    policy = Policy(int(order["window_seconds"]), order["size_limit"])

    def hash_list(journal: Journal) -> None:
        make_hashes(journal, fetch_all)

    said = []
    for identity in streams:
        for checkpoint in order["pinned"]:
            pin(store, identity, checkpoint)
        for checkpoint in order["released"]:
            unpin(store, identity, checkpoint)
        indexed = write_indexes(store, identity, key)
        folder = Folder(
            store, (identity, key), policy, FoldTools(fetch_all, os.urandom, hashes=hash_list)
        )
        folder.run()
        said.append({**indexed.as_dict(), **folder.result.as_dict()})
    return said


def _collect(_order: dict[str, Any], store: ObjectStore, streams: list[Identity]) -> list[Any]:
    said = []
    for identity in streams:
        collector = Collector(store, identity, CollectOptions())
        plan = collector.plan()
        deque(collector.steps(plan), maxlen=0)
        said.append(plan.as_dict())
    return said


def _scrub(_order: dict[str, Any], store: ObjectStore, streams: list[Identity]) -> list[Any]:
    return [scrub(store, identity, lambda _: None).as_dict() for identity in streams]


_WORK: dict[str, Callable[[dict[str, Any], ObjectStore, list[Identity]], list[Any]]] = {
    "maintain": _maintain,
    "collect": _collect,
    "scrub": _scrub,
}


def _open(url: str, credentials: dict[str, Any] | None) -> ObjectStore:
    if credentials is None:
        return open_store(url)
    # Its library takes a tenth of a second to import.
    from workers.storage.s3 import S3Credentials

    return open_store(url, credentials=S3Credentials(**credentials))


def do(order: dict[str, Any]) -> dict[str, Any]:
    """Do what was ordered for every stream of the group; HoldfastError.

    Collection, which lists everything anyway, also says what the group keeps in the store, bytes.
    """
    store = _open(order["store"], order["credentials"])
    streams = list(list_streams(store, order["tenant"], order["vpg"]))
    said = _WORK[order["do"]](order, store, streams)
    problems = [problem for one in said for problem in one.get("problems", ())]
    if problems:
        raise JournalProblems(
            f"{len(problems)} problems, the first: {problems[0]['message']}",
            hint="`holdfast verify` says all of them.",
        )
    answer = {"streams": len(streams), "said": said}
    if order["do"] == "collect":
        answer["retained_bytes"] = stored_bytes(store, f"{order['tenant']}/{order['vpg']}/")
    return answer


def main() -> int:
    """The process."""
    os.nice(_NICE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        print(json.dumps(do(json.load(sys.stdin)), default=str))
    except HoldfastError as error:
        print(json.dumps({"error": error.code, "message": error.message, "hint": error.hint}))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
