"""URLs of stores: what is understood, and what is refused with a hint."""

from __future__ import annotations

import pytest

from workers.storage.errors import BadObjectName, BadStoreUrl
from workers.storage.s3 import S3Place
from workers.storage.url import check_store_url, s3_place


def test_a_whole_s3_url() -> None:
    url = "s3://bucket/some/part/?endpoint=https://s3.example.net:9000&region=eu-1&path_style=true"
    assert s3_place(url) == S3Place(
        "bucket", "some/part/", "https://s3.example.net:9000", "eu-1", True
    )
    assert s3_place("s3://bucket") == S3Place("bucket")


@pytest.mark.parametrize("url", ["file:///var/lib/x", "s3://bucket", "s3://b?region=r"])
def test_good_urls_pass(url: str) -> None:
    assert check_store_url(url) == url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/var/lib",
        "http://x",
        "file://host/path",
        "file:relative",
        "file:///x?y=z",
        "s3://",
        "s3://bucket?endpoint=ftp://x",
        "s3://bucket?unknown=1",
        "s3://bucket?path_style=maybe",
        "s3://bucket?ca=/no/such/file",
        "s3://key:secret@bucket",
        "s3://[bad",
    ],
)
def test_bad_urls_are_refused_with_a_hint(url: str) -> None:
    with pytest.raises(BadStoreUrl) as caught:
        check_store_url(url)
    assert caught.value.hint
    assert "secret" not in str(caught.value)


def test_prefix_must_be_able_to_hold_names() -> None:
    with pytest.raises(BadObjectName):
        s3_place("s3://bucket/../x")
