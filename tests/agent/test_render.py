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
