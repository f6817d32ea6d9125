"""The whole way over a real S3 service: protect, cut, lose, recover."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import boto3
import botocore.config
import pytest

from infra.demo.report import DemoFailed
from tests.content import difference
from tests.integration.nbd import NbdClient
from tests.integration.place import MIB, Place, made_place
from tests.servers.seaweed import CREDENTIALS, Seaweed, program, running_seaweed

pytestmark = [
    pytest.mark.s3,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(program() is None, reason="SeaweedFS is not installed"),
]
_BUCKET = "journals"


@pytest.fixture
def seaweed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Seaweed]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", CREDENTIALS.access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", CREDENTIALS.secret_access_key)
    server = folder / "s3"
    server.mkdir()
    with running_seaweed(server) as running:
        yield running


@pytest.mark.invariant("I2", "I3", "I10")
def test_protect_lose_and_recover_over_s3(folder: Path, seaweed: Seaweed) -> None:
    rng = random.Random(17)
    url = seaweed.make_bucket(_BUCKET)
    with made_place(folder, store=url) as place:
        uri = place.protect()
        with NbdClient(uri) as client:
            _write_some(client, rng)
            place.site.checkpoint("good")
            good = client.read_all()
            _write_some(client, rng)
        place.drain()
        source = place.lose()
        assert difference(source, good) != ""
        assert difference(place.export("tag:good"), good) == ""
        assert difference(place.export("latest-write"), source) == ""
        served = place.safe.serve("tag:good", folder / "served")
        with NbdClient(served.uri) as client:
            assert difference(client.read_all(), good) == ""
        served.process.stop()
        _control_a_lost_object_is_named(place, seaweed)


def _write_some(client: NbdClient, rng: random.Random) -> None:
    for _ in range(300):
        client.write(rng.randrange(0, 63 * MIB, 512), rng.randbytes(rng.choice([512, 4096, 65536])))
    client.flush()


def _control_a_lost_object_is_named(place: Place, seaweed: Seaweed) -> None:
    """A chain with a hole in the middle is an error that says so, never a disk."""
    client = boto3.client(
        "s3",
        endpoint_url=seaweed.endpoint,
        region_name="us-east-1",
        aws_access_key_id=CREDENTIALS.access_key_id,
        aws_secret_access_key=CREDENTIALS.secret_access_key,
        config=botocore.config.Config(s3={"addressing_style": "path"}),
    )
    listed = client.list_objects_v2(Bucket=_BUCKET, Prefix="acme/demo/host1/chain/")["Contents"]
    names = sorted(one["Key"] for one in listed)
    client.delete_object(Bucket=_BUCKET, Key=names[len(names) // 2])
    client.close()
    with pytest.raises(DemoFailed, match=r"chain"):
        place.export("latest-write")
