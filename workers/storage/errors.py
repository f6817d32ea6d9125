"""What can be wrong with a store, or with a request to it.

Every error names the store, so that an alert or a log line says which one. `retryable` means that
the same request may succeed later without anybody changing anything.
"""

from __future__ import annotations

from host_agent.wire.errors import HoldfastError


class StoreError(HoldfastError):
    """Base of everything that a store may answer badly."""

    code = "store_error"


class ObjectMissing(StoreError):
    """No object has that name."""

    code = "object_missing"

    def __init__(self, store: str, name: str) -> None:
        super().__init__(f"{store} has no object {name}.")
        self.name = name


class ObjectExists(StoreError):
    """The name is taken, where the caller asked for it to be an error."""

    code = "object_exists"

    def __init__(self, store: str, name: str) -> None:
        super().__init__(f"{store} has an object {name} already; objects are never changed.")
        self.name = name


class ObjectTooShort(StoreError):
    """A range reaches beyond the object's end: it was cut, or it is another object."""

    code = "object_too_short"


class ObjectTooLarge(StoreError):
    """An object is larger than anything that is stored under such a name."""

    code = "object_too_large"


class BadObjectName(StoreError):
    """A name that no store would be asked for."""

    code = "bad_object_name"


class StoreUnavailable(StoreError):
    """The store did not answer, or said that it cannot now."""

    code = "store_unavailable"

    def __init__(self, message: str, *, hint: str = "", retryable: bool = True) -> None:
        super().__init__(message, hint=hint, retryable=retryable)


class OutcomeUnknown(StoreUnavailable):
    """A create may or may not have been carried out, now or later.

    Only the same bytes under the same name, then reading back, tells which.
    """

    code = "store_outcome_unknown"


class StoreRefused(StoreError):
    """The store will not do it: permissions, credentials, a read-only or failed file system."""

    code = "store_refused"


class StoreFull(StoreError):
    """No room is left for another object. Nothing is lost; it goes on when there is room."""

    code = "store_full"

    def __init__(self, message: str, *, hint: str = "", retryable: bool = True) -> None:
        super().__init__(message, hint=hint, retryable=retryable)


class StoreUnsuitable(StoreError):
    """The store lacks what a journal stands on: create-if-absent, or reading what was written."""

    code = "store_unsuitable"


class BadStoreUrl(StoreError):
    """A store's URL that cannot be understood."""

    code = "bad_store_url"
