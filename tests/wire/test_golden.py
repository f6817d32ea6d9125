"""Bytes that were written once stay readable, and what we write now is what was written then."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from blake3 import blake3

from host_agent.wire import keyrequest, restoring, ticket
from host_agent.wire.frame import FrameHeader, decode_index, encode_index
from host_agent.wire.hashing import RecordHash
from host_agent.wire.keys import GroupKey, TenantKey, open_with_group, open_with_tenant
from host_agent.wire.message import pack, pack_frame_head, parse_body, parse_head
from host_agent.wire.names import chain_name
from host_agent.wire.record import RECORD
from host_agent.wire.ring import RingView
from host_agent.wire.seal import FrameOpener
from host_agent.wire.segment import build_segment, check_follows, parse_tail, verify_segment
from tests.wire import fuzz_frame, test_ticket
from tests.wire.make_golden import golden_files, key_exchange, main
from tests.wire.samples import DATA_KEY, GENERATION, IDENTITY, START, RingFile, typical
from tests.wire.test_messages import MESSAGES

FOLDER = Path(__file__).parent / "golden"

# Never to be changed: these are the files that stand for the journals of format version 1. The ring
# is no journal: it lives as long as a host's memory, and is of version 2.
BLAKE3 = {
    "data-key.hex": "84053c1ab1d05f5495f8c17566d439443dde62dc36a37729fcccd1b9066103f1",
    "data-key.json": "dc90467ca7365c0262bdc8a7394a9c3efd31298c96cb7f7c2cea2c015b2b4449",
    "frame.hex": "913aefdf7257cd2d6cd02ca23fcac383cf0de272f64175a56776b1ac7f10d150",
    "group-key.json": "4ec6a05bfc79e7e8f9ff8acc026ba422892b1034e3e5150b351af9318d58ccc1",
    "index.hex": "2a32023ffca2a777013561547f6d827a9a55317cf0cae81dd07ffd940a560290",
    "key-answer.json": "f7273c5ef2ef9860b455c497bbf9e6bafbfd6308a5ac3dbad92794b4245c18fa",
    "key-request.json": "527d7b8bd3d0a89cc8c722670c18bfee4e0c5077a785517533c635d2f70dd704",
    "messages.hex": "ce94f4680471c9f1192a50a5c5ed570b5982a16be5c4619fc52ad73239d4b837",
    "restore-messages.hex": "6cdae93ff3476033e4931c7da0ff1fd953e56f9b915f948f71a1377d3799beb8",
    "ring.hex": "e94055118b667cc34658cddb69955782b07ec45b9275a5e1fa9bf489e39451e0",
    "segment-claim.hex": "cd2ba23a07dfa2f891796952095d71ecccecc10476f93af43030667f15c46616",
    "segment-data.hex": "fca4a2d603f2d4d6f6fdb7f0a3946f6efd35f5fd273245183adb5e0ca87b7fd5",
    "segment-epoch.hex": "d94c92e4189fcda06b62ce3d4e04a17e1a14ec207cc5ab30ad64ea2dd2493c98",
    "tenant-key.json": "c4fbe7f89bd93166260299f6f5ff88fdf11540040449f939875b474bc151dbfd",
    "ticket.txt": "33148c81a46f06fca590a4403b9dce88a7be61ff8791ae4c381ead39c5c1c269",
}


def golden(name: str) -> bytes:
    """A golden file's bytes."""
    data = (FOLDER / name).read_bytes()
    return bytes.fromhex(data.decode()) if name.endswith(".hex") else data


def test_golden_files_are_never_made_again() -> None:
    found = {path.name: blake3(path.read_bytes()).hexdigest() for path in FOLDER.iterdir()}
    assert found == BLAKE3


def test_the_maker_overwrites_nothing(tmp_path: Path) -> None:
    main(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(BLAKE3)
    with pytest.raises(FileExistsError):
        main(tmp_path)


@pytest.mark.parametrize("name", ["index.hex", "messages.hex", "ring.hex", "segment-epoch.hex"])
def test_what_is_written_now_is_what_was_written_then(name: str) -> None:
    assert golden_files()[name] == golden(name)


def test_index() -> None:
    plain = golden("index.hex")
    records = decode_index(plain, 17, 1)
    assert records.tobytes() == typical().records.tobytes()
    assert encode_index(records) == plain


def test_frame() -> None:
    data = golden("frame.hex")
    header = FrameHeader.unpack(data)
    assert header.pack() == data[: header.length]
    assert header.time_first == START + 1000
    index_end = header.length + header.index_sealed
    opener = FrameOpener(DATA_KEY, IDENTITY)
    head = data[: header.length]
    records = opener.open_index(header, head, data[header.length : index_end])
    assert opener.open_payload(header, head, data[index_end:]) == typical().payload
    running = RecordHash()
    running.update(records)
    assert running.digest() == header.record_hash


def test_chain() -> None:
    before = None
    for place, name in enumerate(("segment-epoch.hex", "segment-data.hex", "segment-claim.hex"), 1):
        data = golden(name)
        info = verify_segment(data)
        check_follows(before, info)
        assert info.place == place
        assert chain_name(IDENTITY, info.place).endswith(f"{place:016x}")
        before = info
    assert before is not None
    assert (before.epoch, before.last_seq, before.state) == (2, 22, 1)


def test_segments_are_built_as_they_were() -> None:
    data = golden("segment-data.hex")
    info, refs = parse_tail(data)

    class Part:
        def __init__(self, number: int) -> None:
            ref = refs[number]
            self.header_bytes = ref.header_bytes
            self.index = bytes(ref.index)
            self.payload = data[ref.payload_offset : ref.payload_offset + ref.payload_length]

    assert build_segment(info, [Part(0), Part(1)]) == (data, info)


def test_ring() -> None:
    view = RingView(memoryview(golden("ring.hex")))
    entries = view.records(1, 17)
    assert b"".join(view.payload_spans(entries)) == typical().payload
    assert entries[list(RECORD.names or ())].astype(RECORD).tobytes() == typical().records.tobytes()
    ring = RingFile(32, 16 << 10)
    ring.fill(typical())
    assert ring.data == golden("ring.hex")


def test_keys() -> None:
    tenant = TenantKey.parse(golden("tenant-key.json"))
    group = GroupKey.parse(golden("group-key.json"))
    made, data_key = golden("data-key.json"), golden("data-key.hex")
    assert open_with_tenant(made, tenant, IDENTITY, GENERATION) == data_key
    assert open_with_group(made, group, IDENTITY, GENERATION) == data_key
    assert tenant.dump() + b"\n" == golden("tenant-key.json")
    assert group.dump() + b"\n" == golden("group-key.json")
    assert json.loads(made)["version"] == 1


def test_key_request_and_answer() -> None:
    asked, _ = key_exchange()
    request = keyrequest.parse(json.loads(golden("key-request.json")), keyrequest.DataKeyRequest)
    answer = keyrequest.parse(json.loads(golden("key-answer.json")), keyrequest.DataKeyAnswer)
    leaf, _ = keyrequest.certificates_of(request)
    assert keyrequest.is_signed(request, leaf)
    assert request == asked.request
    opened = asked.open(answer)
    assert opened == (golden("data-key.hex"), golden("data-key.json").strip())


def test_a_ticket() -> None:
    made = ticket.check(golden("ticket.txt").decode().strip(), test_ticket.AUTHORITY.public_key())
    opened = ticket.open_group_key(made, [test_ticket.DOOR])
    assert opened == GroupKey.parse(golden("group-key.json"))
    assert (made.id, made.host, made.at) == (test_ticket.MADE, "host-2", "latest")


def test_messages_of_a_restore() -> None:
    data = golden("restore-messages.hex")
    for message in test_ticket.MESSAGES:
        number, length = restoring.parse_head(data[:16])
        assert restoring.parse_body(number, data[16 : 16 + length]) == message
        assert restoring.pack(message) == data[: 16 + length]
        data = data[16 + length :]
    assert data == b""


def test_messages() -> None:
    data = golden("messages.hex")
    for message in MESSAGES:
        number, length = parse_head(data[:16])
        assert parse_body(number, data[16 : 16 + length]) == message
        assert pack(message) == data[: 16 + length]
        data = data[16 + length :]
    assert data == pack_frame_head(4096)


def test_fuzzing_finds_nothing() -> None:
    """A bounded run; `python -m tests.wire.fuzz_frame` goes on for longer."""
    outcome = fuzz_frame.run(seconds=5, seed=20261122)
    assert outcome.inputs > 2_000
    assert 0 < outcome.decoded < outcome.inputs
    assert outcome.slowest < 1.0
    assert outcome.grown < 256 << 10


def test_control_fuzzing_finds_a_planted_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder that trusts a length raises something that is no named error, and the run ends."""

    def careless(data: bytes) -> None:
        bytes(data)[int.from_bytes(data[6:8], "little")]

    monkeypatch.setattr(fuzz_frame, "TARGETS", [careless, *fuzz_frame.TARGETS[1:]])
    with pytest.raises(IndexError):
        fuzz_frame.run(seconds=5, seed=1)
