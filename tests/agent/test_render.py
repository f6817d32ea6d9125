"""What people read."""

from __future__ import annotations

from host_agent.control.render import disks


def test_an_untrusted_disk_is_said_at_once() -> None:
    trusted = {"disk": "root", "size": 1 << 30, "path": "/d", "hot": {"state": "marked"}}
    untrusted = {**trusted, "disk": "data", "hot": {"state": "untrusted", "reason": "EIO"}}
    (_, first), (name, second) = disks({"tap": {"disks": [trusted, untrusted]}})
    assert "UNTRUSTED" not in first
    assert name == "disk data"
    assert "UNTRUSTED" in second
    assert "(EIO)" in second


def test_a_disk_says_where_its_machine_reaches_it() -> None:
    tap = {"nbd_socket": "/run/g.nbd", "disks": [{"disk": "root", "size": 1 << 30, "path": "/d"}]}
    assert ("  reached at", "nbd+unix:///root?socket=/run/g.nbd") in disks({"tap": tap})
    tap["disks"][0]["mirror"] = {"round": 1}  # type: ignore[index]
    assert len(disks({"tap": tap})) == 1
