"""What can go wrong, as RFC 9457 problems: one catalogue, served by the API itself.

A problem carries its code, a sentence, what to do, and whether a repeat can help. Nothing of an
unexpected error reaches a user but the request's id.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from host_agent.wire.errors import HoldfastError

MEDIA_TYPE = "application/problem+json"


@dataclass(frozen=True)
class ProblemKind:
    """An entry of the catalogue."""

    code: str
    status: int
    title: str
    retryable: bool = False


def _catalogue(*kinds: ProblemKind) -> dict[str, ProblemKind]:
    return {kind.code: kind for kind in kinds}


CATALOGUE = _catalogue(
    ProblemKind("bad_request", 400, "The request cannot be understood."),
    ProblemKind("cursor_invalid", 400, "The cursor is not one that this list gave out."),
    ProblemKind("not_authenticated", 401, "No valid credential came with the request."),
    ProblemKind("privilege_missing", 403, "The credential does not have the privilege."),
    ProblemKind("step_up_required", 403, "The act needs a one-time code that was not used."),
    ProblemKind("not_found", 404, "There is no such object."),
    ProblemKind("method_not_allowed", 405, "This path does not have this method."),
    ProblemKind("name_taken", 409, "Another object has this name."),
    ProblemKind("secret_already_shown", 409, "The secret was shown once and is not kept."),
    ProblemKind("request_in_progress", 409, "The same request is being handled.", retryable=True),
    ProblemKind("outcome_unknown", 409, "The first request broke off: it may have had its effect."),
    ProblemKind("last_administrator", 409, "Nobody could administer the tenant any more."),
    ProblemKind("illegal_transition", 409, "The object's state does not take this."),
    ProblemKind("issuer_not_tested", 409, "The caller did not come through the issuer."),
    ProblemKind("not_cancellable", 409, "The operation cannot be cancelled any more."),
    ProblemKind("last_data_node", 409, "Some tenant would have no data node any more."),
    ProblemKind("quota_exceeded", 409, "The tenant's plan does not allow more."),
    ProblemKind("in_use", 409, "Something else still uses the object."),
    ProblemKind("checkpoint_failed", 409, "The checkpoint was not taken."),
    ProblemKind("disk_protected", 409, "A disk is in another group."),
    ProblemKind("plan_required", 409, "This change is planned before it is done."),
    ProblemKind("plan_stale", 409, "What the plan was made from has changed, or its time is over."),
    ProblemKind("nothing_to_restore", 409, "The group has no stream that could be restored."),
    ProblemKind("pool_empty", 409, "No host of the pool serves the tenant."),
    ProblemKind("no_restore_door", 409, "No data node serves restores of the tenant.", True),
    ProblemKind("not_granted", 409, "The tenant's policy does not allow it."),
    ProblemKind("jurisdiction", 409, "The tenant's data may not be there."),
    ProblemKind("key_refused", 409, "The key service refuses to open or wrap the key."),
    ProblemKind("key_missing", 409, "The key service does not have the key."),
    ProblemKind("cursor_too_old", 410, "The events after this cursor are no longer kept."),
    ProblemKind("etag_mismatch", 412, "The object has changed since it was read."),
    ProblemKind("body_too_deep", 400, "The request's JSON is nested too deeply."),
    ProblemKind("body_too_large", 413, "The request's body is too large."),
    ProblemKind("unsupported_media_type", 415, "The request's body is not JSON."),
    ProblemKind("invalid_fields", 422, "Fields of the request are not valid."),
    ProblemKind("settings_refused", 422, "The settings do not go together or with the plan."),
    ProblemKind("name_not_confirmed", 422, "The name that was typed is not the object's."),
    ProblemKind("idempotency_key_reused", 422, "The key came with another request before."),
    ProblemKind("etag_required", 428, "The request must say which version it changes."),
    ProblemKind("request_refused", 422, "The certificate request is not acceptable."),
    ProblemKind("request_timeout", 408, "The request's body did not come in time.", retryable=True),
    ProblemKind("too_many_requests", 429, "Requests come too often.", retryable=True),
    ProblemKind("too_many_streams", 429, "Too many event streams are open.", retryable=True),
    ProblemKind("internal", 500, "Something failed on our side.", retryable=True),
    ProblemKind("issuer_unavailable", 503, "The tenant's issuer cannot be used.", retryable=True),
    ProblemKind("key_service_away", 503, "The key service does not answer.", retryable=True),
    ProblemKind("database_unavailable", 503, "The database does not answer.", retryable=True),
)


class Problem(HoldfastError):
    """Ends a request with a problem of the catalogue."""

    def __init__(
        self, code: str, message: str = "", *, hint: str = "", errors: list[Any] | None = None
    ) -> None:
        self.kind = CATALOGUE[code]
        super().__init__(message or self.kind.title, hint=hint, retryable=self.kind.retryable)
        self.code = code
        self.errors = errors

    def body(self, request_id: str) -> dict[str, Any]:
        """The problem document."""
        document: dict[str, Any] = {
            "type": f"/v1/problems/{self.code}",
            "title": self.kind.title,
            "status": self.kind.status,
            "detail": self.message,
            "code": self.code,
            "hint": self.hint,
            "retryable": self.kind.retryable,
            "request_id": request_id,
        }
        if self.errors is not None:
            document["errors"] = self.errors
        return document


def not_found() -> Problem:
    """The one answer for what is absent and for what is another tenant's."""
    return Problem("not_found", hint="Check the identifier.")
