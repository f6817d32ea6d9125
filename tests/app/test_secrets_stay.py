"""CP14: secrets are where they belong and in nothing that the service says or is started with."""

from __future__ import annotations

import json
import signal
import urllib.error
from pathlib import Path
from typing import Any

import pytest

from infra.demo.processes import free_port
from tests.app.test_up import ask, folder, running
from tests.integration.deployment import descendants

__all__ = ["folder"]
_LONG_ENOUGH = 24


def said_by_processes(pid: int) -> str:
    """Command lines and environments of the service's processes."""
    found = []
    for one in [pid, *descendants(pid)]:
        for part in ("cmdline", "environ"):
            try:
                found.append(Path(f"/proc/{one}/{part}").read_bytes().decode(errors="replace"))
            except OSError:
                continue
    assert len(found) > 10
    return "\n".join(found)


def logs_of(folder: Path) -> str:
    """Everything that was logged, the database's own log too."""
    files = [*folder.glob("logs/*"), folder / "postgres/log", folder / "datanode/node.log"]
    return "\n".join(file.read_text(errors="replace") for file in files if file.is_file())


def secrets_of(folder: Path) -> dict[str, str]:
    """What must not be said, by the file that holds it: digits, lines of PEM."""
    found = {"secret": (folder / "secret").read_bytes().hex()}
    for name in ("root.key", "server.pem", "datanode/node.pem"):
        lines = (folder / name).read_text().split("PRIVATE KEY-----")[1].strip().splitlines()
        found[name] = lines[0]
    for file in (folder / "keys").rglob("*"):
        if file.is_file() and file.suffix in (".key", ".json"):
            found[file.name] = _longest(file.read_text(errors="replace"))
    return found


def _longest(text: str) -> str:
    words = text.replace('"', " ").split()
    return max(words, key=len)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_no_secret_is_in_what_the_service_says(folder: Path) -> None:
    with running(folder, free_port()) as (process, started):
        provider = Path(started["provider_key_file"]).read_text().strip()
        tenant = ask(started, "/v1/provider/tenants", provider, {"name": "Acme"})
        own = tenant["token"]
        key = ask(started, "/v1/api-keys", own, {"name": "ci", "role": "viewer"})
        join = ask(started, "/v1/join-tokens", own, {"name": "host"})
        user = {"name": "ada", "display_name": "Ada", "role": "viewer"}
        invited = ask(started, "/v1/users", own, user)
        _fail(started, own)
        tokens = {"provider": provider, "tenant": own, "key": key["token"], "join": join["token"]}
        tokens["invitation"] = invited["invitation"]
        canaries = {name: token.split("_")[-1] for name, token in tokens.items()}
        canaries["join"] = join["token"].split("_")[3]
        canaries |= secrets_of(folder)
        said = {
            "processes": said_by_processes(process.pid),
            "description": json.dumps(ask(started, "/openapi.json")),
            "health": json.dumps(ask(started, "/health")),
            "events": json.dumps(ask(started, "/v1/events?limit=200", own)),
            "audit": json.dumps(ask(started, "/v1/audit?limit=200", own)),
        }
        process.send_signal(signal.SIGINT)
        output, complaints = process.communicate(timeout=60)
        said |= {"output": output + complaints, "logs": logs_of(folder)}
    assert all(len(canary) >= _LONG_ENOUGH for canary in canaries.values()), canaries.keys()
    leaks = [(n, w) for n, canary in canaries.items() for w, text in said.items() if canary in text]
    assert leaks == []
    # The search is not blind: requests are logged, and each secret is where it belongs.
    assert "/v1/provider/tenants" in said["logs"]
    assert canaries["provider"] in (folder / "provider.key").read_text()
    held = b"".join(file.read_bytes() for file in folder.rglob("*.key") if file.is_file())
    assert canaries["root.key"].encode() in held


def _fail(started: dict[str, Any], token: str) -> None:
    """Requests that go wrong, with secrets in places where an error might repeat them."""
    for path, shown, body in (
        ("/v1/sites", token, {"name": token}),
        (f"/v1/sites?cursor={token}", token, None),
        (f"/v1/{token}", f"{token}x", None),
    ):
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask(started, path, shown, body)
        refused.value.close()
