"""Calls of the API as a program makes them, and every route that names an object, as the API itself
describes them."""

from __future__ import annotations

import json
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_SECONDS = 30.0
_PARAMETER = re.compile(r"\{(\w+)\}")
_ID = re.compile(r"\b[a-z]{2,8}_[0-9a-z]{26}\b")
#: So many objects of each kind are tried.
_MOST = 3
#: What a request has of its own, whoever asks for what.
_OWN_HEADERS = {"date", "request-id", "content-length"}


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def fields(self) -> dict[str, Any]:
        """The body as an object; empty if it is none."""
        try:
            content = json.loads(self.body)
        except ValueError:
            return {}
        return content if isinstance(content, dict) else {}

    @property
    def comparable(self) -> tuple[int, dict[str, str], str]:
        """All that tells one answer from another, without the identifiers that were asked with."""
        fields = {key: value for key, value in self.fields.items() if key != "request_id"}
        headers = {key: value for key, value in self.headers.items() if key not in _OWN_HEADERS}
        return self.status, headers, _ID.sub("ID", json.dumps(fields, sort_keys=True))


@dataclass
class Caller:
    """Somebody with a token. `heard` is every byte that the service ever answered."""

    api: str
    root_file: Path
    token: str = field(repr=False)
    heard: list[bytes] = field(default_factory=list, repr=False)

    def call(self, method: str, path: str, body: Any = None) -> Answer:
        """One request; OSError where the service does not answer."""
        context = ssl.create_default_context(cafile=str(self.root_file))
        headers = {"content-type": "application/json", "authorization": f"Bearer {self.token}"}
        headers["if-match"] = "*"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.api + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=_SECONDS, context=context) as got:
                status, told, text = got.status, got.headers, got.read()
        except urllib.error.HTTPError as error:
            with error:
                status, told, text = error.code, error.headers, error.read()
        self.heard.append(text)
        lowered = {name.lower(): value for name, value in told.items()}
        return Answer(status, lowered, text)


@dataclass(frozen=True)
class Probe:
    """A request that names an object by its identifier."""

    method: str
    route: str
    path: str
    body: Any

    @property
    def identifiers(self) -> list[str]:
        """Those that it names."""
        return _ID.findall(self.path)

    @property
    def of_nobody(self) -> Probe:
        """The same for an identifier of that kind that nobody has."""
        path = _ID.sub(lambda found: absent(found[0]), self.path)
        return Probe(self.method, self.route, path, self.body)


def absent(identifier: str) -> str:
    """An identifier of the same kind that was never given to anything."""
    kind, _, rest = identifier.partition("_")
    return f"{kind}_0{'z' if rest[1] != 'z' else 'y'}{rest[2:]}"


class Routes:
    """The tenants' routes, as the API describes them to its owner."""

    def __init__(self, owner: Caller) -> None:
        self._owner = owner
        document = owner.call("GET", "/openapi.json").fields
        self._schemas = document["components"]["schemas"]
        self._routes = [
            (method.upper(), path, operation)
            for path, methods in sorted(document["paths"].items())
            if not path.startswith("/v1/provider/")
            for method, operation in methods.items()
        ]

    @property
    def collections(self) -> list[str]:
        """Every route that lists objects of the tenant."""
        paths = {path for _, path, _ in self._routes}
        return sorted(
            path
            for method, path, _ in self._routes
            if method == "GET" and any(other.startswith(path + "/{") for other in paths)
        )

    def probes(self) -> Iterator[Probe]:
        """Each route that names an object, with each of the owner's newest objects of that kind."""
        for method, path, operation in self._routes:
            if _PARAMETER.search(path):
                for filled in self._filled(path):
                    yield Probe(method, f"{method} {path}", filled, self._body(operation))

    def _filled(self, path: str) -> list[str]:
        """The path with the owner's identifiers in it."""
        found = [""]
        rest = path
        while (named := _PARAMETER.search(rest)) is not None:
            before = rest[: named.start()]
            found = [
                f"{start}{before}{one}"
                for start in found
                for one in self._ids(f"{start}{before}".rstrip("/"))
            ]
            rest = rest[named.end() :]
        return [start + rest for start in found]

    def _ids(self, collection: str) -> list[str]:
        items = self._owner.call("GET", f"{collection}?limit={_MOST}").fields.get("items", [])
        return [str(one["id"]) for one in items if "id" in one][:_MOST]

    def _body(self, operation: dict[str, Any]) -> Any:
        """The example of the route's own description: valid, so that only the object decides."""
        content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
        if "example" in content:
            return content["example"]
        schema = content.get("schema", {})
        name = schema.get("$ref", "").rpartition("/")[2]
        return self._schemas.get(name, schema).get("example")
