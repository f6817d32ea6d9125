"""Writes the golden files of format version 1: `python -m tests.wire.make_golden FOLDER`.

They were made once. What is in `golden/` is never made again: it stands for the journals that
exist. A later version of a format gets files of its own beside these.
"""

from __future__ import annotations

import datetime as dt
import json
import random
import sys
from pathlib import Path
from unittest import mock

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from host_agent.wire import keyrequest, restoring, ticket
from host_agent.wire.frame import encode_index
from host_agent.wire.hashing import RecordHash
from host_agent.wire.keys import GroupKey, TenantKey, make_data_key
from host_agent.wire.message import pack, pack_frame_head
from host_agent.wire.record import Op
from host_agent.wire.seal import FrameSealer
from host_agent.wire.segment import build_segment
from tests.wire import test_ticket
from tests.wire.samples import DATA_KEY, GENERATION, IDENTITY, SALT, Batch, RingFile, seal, typical
from tests.wire.test_messages import MESSAGES
from tests.wire.test_segments import EMPTY, claiming, following


def _frames() -> dict[str, bytes]:
    sealer, running = FrameSealer(DATA_KEY, IDENTITY, GENERATION, SALT), RecordHash()
    first = seal(typical(), sealer, running)
    batch = Batch(first.header.time_last)
    for _ in range(5):
        batch.add(Op.WRITE, after=first.header.last_seq, offset=1 << 20, length=4096)
    second = seal(batch, sealer, running)
    epoch_data, epoch = build_segment(EMPTY, [])
    segment_data, segment = build_segment(following(epoch, [first, second]), [first, second])
    claim_data, _ = build_segment(claiming(segment), [])
    return {
        "index.hex": encode_index(typical().records),
        "frame.hex": first.header_bytes + first.index + first.payload,
        "segment-epoch.hex": epoch_data,
        "segment-data.hex": segment_data,
        "segment-claim.hex": claim_data,
    }


def _ring() -> bytes:
    ring = RingFile(32, 16 << 10)
    ring.fill(typical())
    return bytes(ring.data)


def _keys() -> dict[str, bytes]:
    source = random.Random(20260101)
    with mock.patch("os.urandom", source.randbytes):
        tenant = TenantKey.make(IDENTITY.tenant)
        group = GroupKey.make(tenant, IDENTITY.group)
        data_key, made = make_data_key(group, IDENTITY, GENERATION)
    return {
        "tenant-key.json": tenant.dump() + b"\n",
        "group-key.json": group.dump() + b"\n",
        "data-key.json": made + b"\n",
        "data-key.hex": data_key,
    }


def _certificate(subject: Ed25519PrivateKey, issuer: Ed25519PrivateKey) -> str:
    name, begin = x509.Name([]), dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).serial_number(1)
    builder = builder.not_valid_before(begin).not_valid_after(begin + dt.timedelta(days=1))
    made = builder.public_key(subject.public_key()).sign(issuer, None)
    return made.public_bytes(Encoding.PEM).decode()


def key_exchange() -> tuple[keyrequest.Asked, keyrequest.DataKeyAnswer]:
    """A host's request and its answer, from keys that are always the same."""
    leaf, intermediate = (Ed25519PrivateKey.from_private_bytes(bytes([n] * 32)) for n in (1, 2))
    chain = _certificate(leaf, intermediate) + _certificate(intermediate, intermediate)
    recipient, ephemeral = (X25519PrivateKey.from_private_bytes(bytes([n] * 32)) for n in (3, 4))
    made = _keys()
    with mock.patch.object(X25519PrivateKey, "generate", side_effect=[recipient, ephemeral]):
        host = keyrequest.HostIdentity(leaf, chain)
        asked = keyrequest.ask(host, IDENTITY, GENERATION)
        data_key, key_object = made["data-key.hex"], made["data-key.json"].strip()
        answer = keyrequest.answer_to(asked.request, data_key, key_object)
    return asked, answer


def _key_exchange() -> dict[str, bytes]:
    asked, answer = key_exchange()
    return {
        f"key-{word}.json": json.dumps(keyrequest.to_builtins(message), indent=1).encode() + b"\n"
        for word, message in (("request", asked.request), ("answer", answer))
    }


def _restores(group_key: bytes) -> dict[str, bytes]:
    made = test_ticket.make_ticket(GroupKey.parse(group_key))
    text = ticket.issue(made, test_ticket.AUTHORITY)
    messages = b"".join(map(restoring.pack, test_ticket.MESSAGES))
    return {"ticket.txt": text.encode() + b"\n", "restore-messages.hex": messages}


def golden_files() -> dict[str, bytes]:
    """Name to content, binary ones not yet in hexadecimal."""
    messages = b"".join(map(pack, MESSAGES)) + pack_frame_head(4096)
    return {
        **_frames(),
        **_keys(),
        **_key_exchange(),
        **_restores(_keys()["group-key.json"]),
        "ring.hex": _ring(),
        "messages.hex": messages,
    }


def main(folder: Path) -> None:
    """Write what is not there yet."""
    for name, content in golden_files().items():
        if name.endswith(".hex"):
            text = content.hex()
            lines = [text[at : at + 96] for at in range(0, len(text), 96)]
            content = "".join(f"{line}\n" for line in lines).encode()
        with (folder / name).open("xb") as file:
            file.write(content)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
