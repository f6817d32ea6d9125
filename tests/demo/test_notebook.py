"""What the demonstration believes of disks and answers, without running it."""

from __future__ import annotations

import pytest

from infra.demo.asking import Answer, Probe
from infra.demo.notebook import disk_after, last_page

SECRET = "5f4dcc3b5aa765d61d8327deb882cf99"


@pytest.mark.parametrize("last", [0, 1, 63, 64, 65, 1000])
def test_a_disk_of_pages_tells_the_last_one(last: int) -> None:
    assert last_page(SECRET, disk_after(SECRET, last)) == last


def test_a_disk_that_never_was_so_is_noticed() -> None:
    disk = bytearray(disk_after(SECRET, 100))
    disk[:4096] = disk_after(SECRET, 1)[:4096]
    assert last_page(SECRET, bytes(disk)) is None
    assert last_page("another", disk_after(SECRET, 100)) is None


def test_only_identifiers_of_the_request_make_no_difference() -> None:
    probe = Probe("GET", "GET /v1/vpgs/{vpg_id}", "/v1/vpgs/vpg_01hq3v5k8m9n2p4r6s7t8w9x0z", None)
    assert probe.of_nobody.path != probe.path

    def answer(path: str, title: str) -> Answer:
        body = f'{{"instance": "{path}", "title": "{title}", "request_id": "{path}"}}'
        return Answer(404, {"date": path, "x": "y"}, body.encode())

    same = answer(probe.path, "absent"), answer(probe.of_nobody.path, "absent")
    assert same[0].comparable == same[1].comparable
    assert answer(probe.path, "not yours").comparable != same[1].comparable
