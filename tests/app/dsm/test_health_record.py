"""C7: what goes between enterprises is the health record and nothing else, on captured traffic."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any
from uuid import UUID

import pytest

from app.database.roles import APP, SYSTEM
from app.dsm.health import CapacityClass, Health
from app.kit.ids import Kind, parse, show
from tests.app.dsm.test_managing import eventually, get
from tests.app.dsm.test_placing import Cloud
from tests.app.placing import id_of, policy, set_policy
from tests.app.protecting import machine_ids, make_vpg
from tests.servers.dsm import Site, manager
from tests.servers.pg_capture import Capture, Statement, captured

pytestmark = pytest.mark.anyio
FIELDS = {"appliance", "health", "capacity_class", "epoch", "at"}
#: What is a tenant's own: none of it may leave its scope.
SECRETS = {"tenant": "n4me-of-a-tenant", "machine": "m4chine-of-it", "group": "gr0up-of-it"}
_INSERT = re.compile(r"INSERT INTO appliance_health \(([^)]*)\) VALUES")


def records(capture: Capture) -> list[Statement]:
    """Those that write the table that is read across enterprises."""
    return [one for one in capture.statements if "INTO appliance_health" in one.text]


def check(capture: Capture) -> None:
    """AssertionError for anything but the five fields, and for a tenant's own in what is common."""
    for one in records(capture):
        assert one.role == SYSTEM
        named = _INSERT.search(one.text)
        assert named is not None, one.text
        assert {name.strip() for name in named[1].split(",")} == FIELDS
        assert len(one.parameters) % len(FIELDS) == 0
        for words in _words(one.parameters):
            assert words in {*Health, *CapacityClass}, f"a word that is no state: {words}"
    for one in capture.of(SYSTEM):
        for what, secret in SECRETS.items():
            assert secret.encode() not in one.sent, f"a {what} in {one.text}"


def _words(parameters: tuple[bytes, ...]) -> Iterator[str]:
    """Parameters that are text: neither identifiers, numbers nor times."""
    for data in parameters:
        try:
            text = data.decode("ascii")
        except UnicodeDecodeError:
            continue  # a binary number, time or UUID
        if re.fullmatch(r"[A-Za-z][ -~]*", text) and not _is_uuid(text):
            yield text


def _is_uuid(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True


async def _run(site: Site, tmp: Any) -> tuple[Capture, dict[str, Any], set[str]]:
    """Two enterprises on one host, with groups; what was sent, and what the provider then sees."""
    service = site.service
    async with AsyncExitStack() as stack:
        url, capture = await stack.enter_async_context(captured(service.url, tmp))
        shown = url.render_as_string(hide_password=False)
        process = await stack.enter_async_context(manager(site, database_url=shown))
        cloud = await Cloud(site, process, stack).join("cloud-1")
        expected = {cloud.id}
        for name in (SECRETS["tenant"], "another"):
            tenant = await service.make_tenant(name)
            await set_policy(service, tenant, policy(cloud.pool_id))
            await cloud.place(tenant, SECRETS["machine"])
            expected.add(cloud.placed[await id_of(tenant)][0])
            ids = await eventually(lambda one=tenant: machine_ids(one), bool)  # type: ignore[misc]
            await make_vpg(tenant, SECRETS["group"], *ids.values())

        async def seen() -> dict[str, Any]:
            return await get(service.provider, f"/v1/provider/hosts/{cloud.id}")

        def is_known(host: dict[str, Any]) -> bool:
            small = [a for a in host["appliances"] if a["capacity_class"] != "idle"]
            return len(host["appliances"]) == 3 and len(small) == 2

        host = await eventually(seen, is_known)
    return capture, host, expected


async def test_only_the_health_record_goes_between_enterprises(site: Site, tmp_path: Any) -> None:
    capture, host, expected = await _run(site, tmp_path)
    assert len(records(capture)) >= 3
    check(capture)
    assert {one["appliance"] for one in host["appliances"]} == expected
    for one in host["appliances"]:
        assert set(one) == {"appliance", "health", "capacity_class", "epoch", "time"}
        assert (one["health"], one["epoch"] >= 1) == ("up", True)
    assert not [secret for secret in SECRETS.values() if secret in str(host)]
    # The capture is not blind: in each tenant's own scope these words are told.
    own = b"".join(one.sent for one in capture.of(APP))
    assert SECRETS["machine"].encode() in own
    sent = b"".join(b"".join(one.parameters) for one in records(capture))
    for appliance in expected:
        key = parse(Kind.HOST, appliance)
        assert key.bytes in sent or str(key).encode() in sent or key.hex.encode() in sent
    assert show(Kind.HOST, key) == appliance


async def test_the_check_sees_a_record_that_tells_more(
    site: Site, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control: a class of capacity that names a group."""
    monkeypatch.setattr(
        "app.dsm.recorder.capacity_class", lambda groups: SECRETS["group"] if groups else "idle"
    )
    capture, _, _ = await _run(site, tmp_path)
    with pytest.raises(AssertionError, match="no state"):
        check(capture)
