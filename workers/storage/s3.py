"""An S3 bucket, or a part of one, as a store.

Only `PutObject` with `If-None-Match: *`, ranged reads and listings are used. Checksums of requests
and responses are left to the caller's own hashes ("when_required"): many S3 services refuse
boto3's default ones. Retrying is the wrapper's work, so every call here is one request.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any

import boto3
import botocore
import botocore.config
import botocore.exceptions
import urllib3.exceptions

from host_agent.wire.pieces import Content
from workers.storage.errors import (
    ObjectMissing,
    ObjectTooLarge,
    ObjectTooShort,
    OutcomeUnknown,
    StoreError,
    StoreFull,
    StoreRefused,
    StoreUnavailable,
    StoreUnsuitable,
)
from workers.storage.port import (
    LIST_PAGE_NAMES,
    OBJECT_BYTES_MAX,
    Created,
    Listed,
    check_folder,
    check_object_name,
    check_range,
)

#: As many requests as a probe runs at once; more would only wait in the pool.
_CONNECTIONS_MAX = 16
_CONNECT_SECONDS_MAX = 5
_REGION = "us-east-1"
#: A session makes one client at a time.
_MAKING = threading.Lock()
#: Between two pieces of an answer. A large object on a slow line still trickles.
_READ_SECONDS_MAX = 20

_FULL_CODES = {
    "QuotaExceeded",
    "InsufficientStorage",
    "EntityTooLargeForQuota",
    "XMinioStorageFull",
    "XMinioAdminBucketQuotaExceeded",
}
_CLOCK_CODES = {"RequestTimeTooSkewed", "RequestExpired"}
_CREDENTIAL_CODES = {
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "InvalidToken",
    "TokenRefreshRequired",
}
#: What may happen while an answer is under way; the request may have been carried out.
_BROKEN_ANSWERS = (
    botocore.exceptions.HTTPClientError,
    botocore.exceptions.ResponseStreamingError,
    botocore.exceptions.IncompleteReadError,
    urllib3.exceptions.HTTPError,
    http.client.HTTPException,
    OSError,
)
#: What happens before a request leaves.
_NOT_SENT = (
    botocore.exceptions.EndpointConnectionError,
    botocore.exceptions.ConnectTimeoutError,
    botocore.exceptions.ProxyConnectionError,
)
_CREDENTIALS_MISSING = (
    botocore.exceptions.NoCredentialsError,
    botocore.exceptions.PartialCredentialsError,
    botocore.exceptions.CredentialRetrievalError,
)


@dataclass(frozen=True)
class S3Credentials:
    """A key pair of the store. Never shown."""

    access_key_id: str
    secret_access_key: str
    session_token: str | None = None

    def __repr__(self) -> str:
        return "S3Credentials(…)"


@dataclass(frozen=True)
class S3Place:
    """Where the objects are. `prefix` is empty or ends with '/'."""

    bucket: str
    prefix: str = ""
    endpoint: str | None = None
    region: str | None = None
    path_style: bool = False
    ca_file: str | None = None

    @property
    def label(self) -> str:
        at = f" at {self.endpoint}" if self.endpoint else ""
        return f"s3://{self.bucket}/{self.prefix}{at}"


class S3Store:
    """Objects below a prefix of a bucket. Credentials: given, or boto3's usual sources."""

    def __init__(self, place: S3Place, credentials: S3Credentials | None = None) -> None:
        self._place = place
        self._answered_at: int | None = None
        self._client = _make_client(place, credentials)

    @property
    def label(self) -> str:
        return self._place.label

    def put_if_absent(self, name: str, data: Content) -> Created:
        key = self._key(name)
        body = data if isinstance(data, bytes | bytearray) else bytes(data)
        try:
            self._call("put_object", f"create {name}", Key=key, Body=body, IfNoneMatch="*")
        except _Answered as answer:
            if answer.status == 412:
                return Created.EXISTS
            raise self._error(f"create {name}", answer, created=True) from answer.cause
        return Created.CREATED

    def get(self, name: str) -> bytes:
        return self._read(name, None, OBJECT_BYTES_MAX)

    def get_range(self, name: str, start: int, length: int) -> bytes:
        check_range(start, length)
        if length == 0:
            if start > self.size(name):
                raise ObjectTooShort(f"{name} in {self.label} ends before byte {start}.")
            return b""
        data = self._read(name, f"bytes={start}-{start + length - 1}", length)
        if len(data) != length:
            raise ObjectTooShort(
                f"{name} in {self.label} ends at byte {start + len(data)}, not {start + length}."
            )
        return data

    def get_tail(self, name: str, length: int) -> bytes:
        check_range(0, length)
        if length == 0:
            self.size(name)
            return b""
        try:
            return self._read(name, f"bytes=-{length}", length)
        except ObjectTooShort:
            return b""  # an empty object has no last byte

    def size(self, name: str) -> int:
        try:
            answer = self._call("head_object", f"look at {name}", Key=self._key(name))
        except _Answered as error:
            raise self._error(f"look at {name}", error, name=name) from error.cause
        return int(answer["ContentLength"])

    def list(
        self, folder: str, start_after: str = "", limit: int | None = None
    ) -> Iterator[Listed]:
        rest = limit
        arguments = {"StartAfter": self._place.prefix + start_after} if start_after else {}
        for page in self._pages(folder, rest, arguments):
            for entry in page.get("Contents", ()):
                name = entry["Key"].removeprefix(self._place.prefix)
                if name <= start_after or name == folder:
                    continue  # some services repeat it, or show folders as empty objects
                if rest is not None and rest <= 0:
                    return
                rest = None if rest is None else rest - 1
                yield Listed(name, int(entry["Size"]))

    def folders(self, folder: str) -> Iterator[str]:
        for page in self._pages(folder, None, {}):
            for entry in page.get("CommonPrefixes", ()):
                yield entry["Prefix"].removeprefix(self._place.prefix)

    def _pages(
        self, folder: str, limit: int | None, first: dict[str, Any]
    ) -> Iterator[dict[str, Any]]:
        arguments = {
            "Prefix": self._place.prefix + check_folder(folder),
            "Delimiter": "/",
            "MaxKeys": LIST_PAGE_NAMES if limit is None else min(limit + 1, LIST_PAGE_NAMES),
            **first,
        }
        while True:
            try:
                page = self._call("list_objects_v2", f"list {folder}", **arguments)
            except _Answered as error:
                raise self._error(f"list {folder}", error) from error.cause
            yield page
            if not page.get("IsTruncated"):
                return
            arguments["ContinuationToken"] = page["NextContinuationToken"]

    def delete(self, name: str) -> None:
        try:
            self._call("delete_object", f"delete {name}", Key=self._key(name))
        except _Answered as error:
            if error.status != 404:
                raise self._error(f"delete {name}", error) from error.cause

    def answered_at(self) -> int | None:
        return self._answered_at

    def _key(self, name: str) -> str:
        return self._place.prefix + check_object_name(name)

    def _read(self, name: str, span: str | None, length_max: int) -> bytes:
        arguments = {"Key": self._key(name)}
        if span is not None:
            arguments["Range"] = span
        try:
            answer = self._call("get_object", f"read {name}", **arguments)
        except _Answered as error:
            raise self._error(f"read {name}", error, name=name) from error.cause
        length = int(answer["ContentLength"])
        with contextlib.closing(answer["Body"]) as body:
            if length > length_max:
                if span is None:
                    raise ObjectTooLarge(f"{name} in {self.label} has {length} bytes.")
                raise StoreUnsuitable(f"{self.label} answers a range with {length} bytes.")
            with self._named(f"read {name}", created=False):
                data: bytes = body.read()
        if len(data) != length:
            raise StoreUnavailable(f"{self.label} sent {len(data)} of {length} bytes of {name}.")
        return data

    def _call(self, operation: str, what: str, **arguments: Any) -> dict[str, Any]:
        """One request. Raises _Answered for an answer that is an error, StoreError for none."""
        call: Callable[..., dict[str, Any]] = getattr(self._client, operation)
        with self._named(what, created=operation == "put_object"):
            try:
                answer = call(Bucket=self._place.bucket, **arguments)
            except botocore.exceptions.ClientError as error:
                self._note_date(error.response)
                raise _Answered(error) from error
        self._note_date(answer)
        return answer

    @contextlib.contextmanager
    def _named(self, what: str, *, created: bool) -> Iterator[None]:
        """Name what went wrong without an answer. `created`: whether it may have created."""
        try:
            yield
        except (StoreError, _Answered):
            raise
        except _CREDENTIALS_MISSING as error:
            raise StoreRefused(
                f"{self.label}: no usable credentials ({type(error).__name__}).",
                hint="Name a credentials file, or set AWS_ACCESS_KEY_ID and its secret.",
            ) from error
        except botocore.exceptions.SSLError as error:
            raise StoreRefused(
                f"{self.label}: TLS failed.", hint="Give its CA with ca=FILE in the URL."
            ) from error
        except _NOT_SENT as error:
            raise StoreUnavailable(
                f"{self.label} cannot be reached to {what}.", hint="Is it up? Is the way open?"
            ) from error
        except _BROKEN_ANSWERS as error:
            kind = OutcomeUnknown if created else StoreUnavailable
            raise kind(f"{self.label} gave no answer to {what}: {type(error).__name__}.") from error
        except botocore.exceptions.BotoCoreError as error:
            raise StoreRefused(f"{self.label} could not {what}: {error}.") from error

    def _error(
        self, what: str, answer: _Answered, *, name: str | None = None, created: bool = False
    ) -> StoreError:
        """The typed error of an answer that is one."""
        status, code = answer.status, answer.code
        message = f"{self.label} could not {what}: {status} {code}."
        if status == 404 and code not in {"NoSuchBucket"} and name is not None:
            return ObjectMissing(self.label, name)
        if status == 416:
            return ObjectTooShort(f"{name} in {self.label} is shorter than the range asked for.")
        if status == 507 or code in _FULL_CODES:
            return StoreFull(message, hint="Make room or raise the quota; it goes on by itself.")
        if status in {409, 429} or code == "SlowDown":
            return StoreUnavailable(message)  # certainly not carried out
        if status == 501:
            return StoreUnsuitable(message, hint="Use a service with conditional writes.")
        if status >= 500 or status == 408:
            return OutcomeUnknown(message) if created else StoreUnavailable(message)
        return StoreRefused(message, hint=_refused_hint(code))

    def _note_date(self, answer: Mapping[str, Any]) -> None:
        text = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
        with contextlib.suppress(TypeError, ValueError):
            date = parsedate_to_datetime(text)
            stamp = int(date.replace(tzinfo=date.tzinfo or UTC).timestamp()) * 1_000_000_000
            self._answered_at = max(stamp, self._answered_at or 0)


class _Answered(Exception):
    """The service answered with an error."""

    def __init__(self, cause: botocore.exceptions.ClientError) -> None:
        super().__init__(str(cause))
        self.cause = cause
        self.status = int(cause.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        self.code = str(cause.response.get("Error", {}).get("Code", ""))[:80]


def _refused_hint(code: str) -> str:
    if code in _CLOCK_CODES:
        return "The clocks of this machine and of the store differ too much."
    if code in _CREDENTIAL_CODES:
        return "Check the access key, its secret and whether they ran out."
    if code == "NoSuchBucket":
        return "Make the bucket, or correct its name in the URL."
    return "Check what the credentials may do: create, read and list under the prefix."


def _make_client(place: S3Place, credentials: S3Credentials | None) -> Any:
    config = botocore.config.Config(
        connect_timeout=_CONNECT_SECONDS_MAX,
        read_timeout=_READ_SECONDS_MAX,
        retries={"total_max_attempts": 1, "mode": "standard"},
        max_pool_connections=_CONNECTIONS_MAX,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": "path" if place.path_style else "auto"},
        signature_version="s3v4",
        tcp_keepalive=True,
    )
    # With credentials of its own a client takes nothing else from a session; without any, a
    # session looks for them once and keeps them, so each such client has its own.
    with _MAKING:
        session = _session() if credentials else boto3.session.Session()
        return session.client(
            "s3",
            region_name=place.region or _REGION,
            endpoint_url=place.endpoint,
            config=config,
            verify=place.ca_file or None,
            aws_access_key_id=credentials.access_key_id if credentials else None,
            aws_secret_access_key=credentials.secret_access_key if credentials else None,
            aws_session_token=credentials.session_token if credentials else None,
        )


@functools.cache
def _session() -> Any:
    """One for all clients: what it reads of the service from files it keeps."""
    return boto3.session.Session()


def warm() -> None:
    """Read what every client needs, once, before a process is forked. Holds no credentials."""
    unsigned = botocore.config.Config(signature_version=botocore.UNSIGNED)
    with _MAKING:
        _session().client("s3", region_name=_REGION, config=unsigned)
