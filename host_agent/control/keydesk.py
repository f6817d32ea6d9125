"""Asks for streams' data keys over the control connection, and hands out what comes back."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from host_agent.control.errors import StateUnusable
from host_agent.stream.ports import DataKey
from host_agent.wire import control, keyrequest
from host_agent.wire.errors import HoldfastError, WireError
from host_agent.wire.names import Identity

_log = logging.getLogger("holdfast.agent")

#: Not asked for again sooner, seconds: an answer takes a round trip and an unwrapping.
_AGAIN_SECONDS = 10.0
#: Streams of one host, each with a key to come; what is beyond waits for its stream to ask again.
_ASKED_MAX = 1024

Deliver = Callable[[Identity, bytes, DataKey], None]
"""Keeps a key that came and wakes its stream; StateUnusable, WrongKey."""


@dataclass
class _Wanted:
    identity: Identity
    generation: bytes
    asked: keyrequest.Asked | None = None
    number: int = 0
    at: float = -_AGAIN_SECONDS


class KeyDesk:
    """What is asked for and has not come. For one loop."""

    def __init__(self, pem: Path, deliver: Deliver, now: Callable[[], float]) -> None:
        self._pem = pem
        self._deliver = deliver
        self._now = now
        self._wanted: dict[str, _Wanted] = {}
        self._number = 0
        self.refusal: control.Failure | None = None
        self.on_wanted: Callable[[], None] = lambda: None

    def want(self, identity: Identity, generation: bytes) -> None:
        """A stream needs this key; a group's newest generation is the only one that it wants."""
        known = self._wanted.get(identity.group)
        if known is None or known.generation != generation:
            if len(self._wanted) >= _ASKED_MAX and known is None:
                return
            self._wanted[identity.group] = _Wanted(identity, generation)
        self.on_wanted()

    def forget(self, group: str) -> None:
        """The group is gone."""
        self._wanted.pop(group, None)

    def connected(self) -> None:
        """What was asked over an earlier connection may never have arrived."""
        for wanted in self._wanted.values():
            wanted.at = -_AGAIN_SECONDS

    def due(self) -> list[control.DataKeyRequest]:
        """What is to be sent now, each request with a fresh key; StateUnusable."""
        now = self._now()
        asking = [one for one in self._wanted.values() if now - one.at >= _AGAIN_SECONDS]
        host = load_host(self._pem) if asking else None
        messages = []
        for wanted in asking:
            assert host is not None
            self._number += 1
            wanted.asked = keyrequest.ask(host, wanted.identity, wanted.generation)
            wanted.number, wanted.at = self._number, now
            body = msgspec.json.encode(keyrequest.to_builtins(wanted.asked.request))
            messages.append(control.DataKeyRequest(wanted.number, msgspec.Raw(body)))
        return messages

    def answered(self, message: control.DataKey) -> None:
        """The key service's answer. One that does not open is left: it is asked for again."""
        wanted = next((w for w in self._wanted.values() if w.number == message.request), None)
        if wanted is None or wanted.asked is None:
            return
        if message.error is not None:
            self.refusal = message.error
            _log.warning("no key for %s: %s", wanted.identity, message.error.message)
            return
        try:
            decoded = msgspec.json.decode(bytes(message.answer))
            answer = keyrequest.parse(decoded, keyrequest.DataKeyAnswer)
            key, key_object = wanted.asked.open(answer)
            self._deliver(wanted.identity, wanted.generation, DataKey(key, key_object))
        except msgspec.DecodeError as error:
            raise WireError(f"A data key's answer is malformed: {error}.") from None
        except HoldfastError as error:
            self.refusal = control.failure_of(error)
            _log.warning("the key for %s cannot be used: %s", wanted.identity, error)
            return
        self.refusal = None
        self._wanted.pop(wanted.identity.group, None)


def load_host(pem: Path) -> keyrequest.HostIdentity:
    """The host's key and certificates from its one file; StateUnusable."""
    try:
        data = pem.read_bytes()
        key = serialization.load_pem_private_key(data, None)
    except (OSError, ValueError) as error:
        raise StateUnusable(
            f"{pem} cannot be used: {error}.", hint="Restore it, or enrol this host anew."
        ) from None
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    chain = data[: data.index(b"-----BEGIN PRIVATE KEY-----")].decode()
    return keyrequest.HostIdentity(key, chain)
