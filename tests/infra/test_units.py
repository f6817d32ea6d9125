"""The service units: what our processes are not allowed on a machine."""

from __future__ import annotations

from collections import defaultdict

import pytest

from tests.architecture.sources import ROOT

UNITS = sorted((ROOT / "infra/systemd").glob("*.service"))
_ALWAYS = {
    "NoNewPrivileges": "yes",
    "CapabilityBoundingSet": "",
    "AmbientCapabilities": "",
    "UMask": "0077",
    "PrivateTmp": "yes",
    "ProtectHome": "yes",
    "RestrictSUIDSGID": "yes",
    "RestrictNamespaces": "yes",
    "LockPersonality": "yes",
    "SystemCallArchitectures": "native",
}


def settings(name: str) -> dict[str, list[str]]:
    """What a unit says, by the setting."""
    found: dict[str, list[str]] = defaultdict(list)
    for line in (ROOT / "infra/systemd" / name).read_text().splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found[key].append(value)
    return found


@pytest.mark.parametrize("name", [unit.name for unit in UNITS])
def test_services_have_no_rights_that_they_do_not_need(name: str) -> None:
    said = settings(name)
    for key, value in _ALWAYS.items():
        assert said[key] == [value], (name, key)
    assert said["User"] not in ([], ["root"]), name
    assert said["ProtectSystem"][0] in ("strict", "full")
    assert said["SystemCallFilter"][0].startswith("@system-service")


def test_the_tap_has_no_network_and_the_agent_no_device() -> None:
    tap, agent = settings("holdfast-tap.service"), settings("holdfast-agent.service")
    assert (tap["PrivateNetwork"], tap["RestrictAddressFamilies"]) == (["yes"], ["AF_UNIX"])
    assert agent["PrivateDevices"] == ["yes"]


def test_units_are_there() -> None:
    assert {"holdfast-tap.service", "holdfast-datanode.service"} <= {one.name for one in UNITS}
