"""From a URL to a store: `file:///folder` or `s3://bucket/prefix?endpoint=…&region=…`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, parse_qsl, urlsplit

from workers.storage.errors import BadStoreUrl
from workers.storage.local import LocalStore
from workers.storage.port import ObjectStore, check_folder
from workers.storage.retry import RetryingStore, RetryPolicy, RetryTools

if TYPE_CHECKING:
    from workers.storage.s3 import S3Credentials, S3Place

_EXAMPLES = "Write file:///folder or s3://BUCKET/PREFIX?endpoint=https://HOST:PORT&region=R&path_style=true."
_TRUE, _FALSE = {"true", "1", "yes"}, {"false", "0", "no"}


def open_store(
    url: str,
    *,
    create: bool = False,
    credentials: S3Credentials | None = None,
    policy: RetryPolicy | None = None,
    tools: RetryTools | None = None,
) -> ObjectStore:
    """Open the store that the URL names, wrapped in the retrying one.

    `create` lets a writer make a local folder that is not there yet. Without `credentials`, S3
    takes boto3's usual sources. Raises BadStoreUrl, StoreRefused, StoreUnavailable.
    """
    return RetryingStore(_open_bare(url, create, credentials), policy, tools)


def check_store_url(url: str) -> str:
    """Return the URL if it can be understood; BadStoreUrl otherwise. Opens nothing."""
    parts = _split(url)
    if parts.scheme == "file":
        _file_path(url, parts)
    else:
        s3_place(url)
    return url


def _open_bare(url: str, create: bool, credentials: S3Credentials | None) -> ObjectStore:
    parts = _split(url)
    if parts.scheme == "file":
        return LocalStore(_file_path(url, parts), create=create)
    # boto3 takes a tenth of a second to import: who reads a folder does not wait for it.
    from workers.storage.s3 import S3Store

    return S3Store(s3_place(url), credentials)


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
    except ValueError:
        raise _bad(url, "it is not a URL") from None
    if parts.scheme not in {"file", "s3"}:
        raise _bad(url, "it begins with neither file:// nor s3://")
    if parts.username or parts.password or parts.fragment:
        raise BadStoreUrl(
            "A store's URL carries no user, password or fragment.",
            hint="Credentials belong into a file of their own, mode 0600.",
        )
    return parts


def _file_path(url: str, parts: SplitResult) -> Path:
    if parts.netloc or parts.query or not parts.path.startswith("/") or "\0" in parts.path:
        raise _bad(url, "a folder is named by its whole path and nothing else")
    return Path(parts.path)


def s3_place(url: str) -> S3Place:
    """What an s3:// URL names; BadStoreUrl says what is wrong with it."""
    from workers.storage.s3 import S3Place

    parts = _split(url)
    if parts.scheme != "s3" or not parts.netloc:
        raise _bad(url, "it names no bucket")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    prefix = parts.path.strip("/")
    place = S3Place(
        bucket=parts.netloc,
        prefix=check_folder(prefix + "/") if prefix else "",
        endpoint=options.pop("endpoint", None),
        region=options.pop("region", None),
        path_style=_boolean(url, options.pop("path_style", "false")),
        ca_file=options.pop("ca", None),
    )
    if options:
        raise _bad(url, f"it has an unknown option {sorted(options)[0]!r:.40}")
    if place.endpoint is not None and urlsplit(place.endpoint).scheme not in {"http", "https"}:
        raise _bad(url, "its endpoint begins with neither http:// nor https://")
    if place.ca_file is not None and not Path(place.ca_file).is_file():
        raise _bad(url, f"there is no file {place.ca_file!r:.120} with its CA")
    return place


def _boolean(url: str, text: str) -> bool:
    if text.lower() not in _TRUE | _FALSE:
        raise _bad(url, "path_style is true or false")
    return text.lower() in _TRUE


def _bad(url: str, why: str) -> BadStoreUrl:
    return BadStoreUrl(f"The store's URL {url!r:.200} is wrong: {why}.", hint=_EXAMPLES)
