"""From the error tree to HTTP: the status, the headers and, in each dialect, the body. The only place that knows either."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.responses import Response

from forebay.contract import errors
from forebay.contract.errors import ForebayError

AWAY_RETRY_S = 5  # when to ask again a ledger or a store that is away
# Of a job that failed so, the request was not the reason.
OURS = frozenset({"WorkerLost", "ModelLoadFailed", "ModelRefused", "DeviceNotFound", "BlobMissing", "BlobCorrupt"})


class Dialect(StrEnum):
    """Whose bodies a group of routes speaks."""

    NATIVE = "native"
    INFERENCE = "inference"  # the Open Inference Protocol
    OPENAI = "openai"


class HttpError(ForebayError):
    """A request that HTTP itself is the reason to refuse; `status` says why, and `code` names the error for programs."""

    status = 400
    code = "bad-request"

    def __init__(self, message: str | None = None, *, job_id: str | None = None) -> None:
        super().__init__(message)
        self.job_id = job_id  # of the job that goes on


class MalformedBody(HttpError):
    """The body is not what its format requires."""

    code = "malformed-body"


class BodyTooLarge(HttpError):
    """The body is larger than this server takes."""

    status, code = 413, "payload-too-large"


class BodyIncomplete(HttpError):
    """The client went away, or was too slow, before its request was complete."""

    status, code = 408, "request-timeout"


class NotFound(HttpError):
    """There is nothing of this id."""

    status, code = 404, "not-found"


class NotAcceptable(HttpError):
    """The answer has none of the media types that were asked for."""

    status, code = 406, "not-acceptable"


class UnsupportedMediaType(HttpError):
    """The body is of a media type that this route does not take."""

    status, code = 415, "unsupported-media-type"


class Unauthorized(HttpError):
    """No valid API key was given."""

    status, code = 401, "unauthorized"


class Forbidden(HttpError):
    """The caller may not do this."""

    status, code = 403, "forbidden"


class NotEnded(HttpError):
    """The job has not ended yet."""

    status, code = 409, "job-not-ended"


class Gone(HttpError):
    """What was here has been deleted."""

    status, code = 410, "gone"


class WaitTimeout(HttpError):
    """The job has not ended in time; it goes on."""

    status, code = 504, "wait-timeout"


class NotReady(HttpError):
    """No worker is there to do this now."""

    status, code = 503, "not-ready"


class ServerStopping(HttpError):
    """This server is being stopped; the job goes on."""

    status, code = 503, "server-stopping"


# The first class of an error's ancestry that is here decides. 422 is 400 in the dialects that do not have it.
_STATUS: Mapping[type[Exception], tuple[int, str]] = {
    errors.PayloadTooLarge: (413, "payload-too-large"),
    errors.InvalidInput: (422, "invalid-input"),
    errors.ModelNotFound: (404, "model-not-found"),
    errors.JobNotFound: (404, "job-not-found"),
    errors.NoQueueFits: (422, "no-queue-fits"),
    errors.QueueFull: (429, "queue-full"),
    errors.JobFailed: (422, "job-failed"),
    errors.JobCanceled: (409, "job-canceled"),
    errors.JobExpired: (409, "job-expired"),
    errors.IllegalTransition: (409, "illegal-transition"),
    errors.ResultTimeout: (504, "wait-timeout"),
    errors.OutcomeUnknown: (503, "outcome-unknown"),
    errors.LedgerUnavailable: (503, "ledger-unavailable"),
    errors.BrokerUnavailable: (503, "queue-unavailable"),
    errors.BlobUnavailable: (503, "blobs-unavailable"),
    errors.Transient: (503, "unavailable"),
    errors.BlobMissing: (410, "gone"),
    errors.ModelRefused: (422, "model-refused"),
    errors.MissingExtra: (501, "not-installed"),
}
_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_FIELD = re.compile(r" - at `\$\.?([^`]*)`$")


class Answer(msgspec.Struct, frozen=True):
    """An error as HTTP tells it, before a dialect gives it its form. `more` are the members of a problem of RFC 9457."""

    status: int
    code: str
    title: str
    detail: str
    field: str | None = None
    more: Mapping[str, Any] = {}
    headers: Mapping[str, str] = {}


def answer_of(error: Exception) -> Answer:
    """What to tell of an error. Of one that the client did not cause it says no more than it needs: the log has the rest."""
    if isinstance(error, HTTPException):
        words = error.detail.lower()
        return Answer(
            error.status_code, words.replace(" ", "-"), error.detail, _routing(error), headers=error.headers or {}
        )
    if isinstance(error, HttpError):
        headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
        more = {"job_id": error.job_id} if error.job_id else {}
        return Answer(error.status, error.code, _title(error), *_field(str(error)), more, headers)
    status, code = next((_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS), (500, "internal-error"))
    if isinstance(error, errors.JobFailed) and error.type in OURS:
        status, code = 502, "job-failed"
    headers, more = _retry_after(error, status), _more(error)
    if status == 500:
        return Answer(
            500, code, "Something went wrong in Forebay.", "the server's log has the reason, by the request's id"
        )
    if isinstance(error, errors.Transient):  # its text may name addresses and paths of the server
        unknown = isinstance(error, errors.OutcomeUnknown)
        detail = "look for the jobs before you send them again" if unknown else "nothing was stored; try again later"
        return Answer(status, code, _title(error), detail, None, more, headers)
    return Answer(status, code, _title(error), *_field(str(error)), more, headers)


def error_response(error: Exception, dialect: Dialect, request_id: str) -> Response:
    """The response to a request that met this error, in the words of a dialect."""
    answer = answer_of(error)
    status = 400 if answer.status == 422 and dialect is not Dialect.NATIVE else answer.status
    headers, body = dict(answer.headers), dict[str, Any]()
    if dialect is Dialect.INFERENCE:
        media, body = "application/json", {"error": f"{answer.detail}{_ids(answer)}"}
    elif dialect is Dialect.OPENAI:
        # Its client would send the request again, and so make further jobs.
        if status == 409 or answer.code in ("outcome-unknown", "job-failed", "wait-timeout"):
            headers["x-should-retry"] = "false"
        kind = _OPENAI_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
        told = {"message": f"{answer.detail}{_ids(answer)}", "type": kind, "param": answer.field}
        media, body = "application/json", {"error": told | {"code": answer.code.replace("-", "_")}}
    else:
        problem = {
            "type": f"urn:forebay:error:{answer.code}",
            "title": answer.title,
            "status": status,
            "detail": answer.detail,
        }
        field = {"field": answer.field} if answer.field else {}
        media, body = "application/problem+json", problem | field | dict(answer.more) | {"request_id": request_id}
    response = Response(msgspec.json.encode(body), status, headers)
    response.headers["content-type"] = media  # and no charset, which kserve's client would not know
    return response


def _routing(error: HTTPException) -> str:
    return {404: "there is nothing at this address", 405: "this address does not take this method"}.get(
        error.status_code, error.detail
    )


def _title(error: Exception) -> str:
    return (type(error).__doc__ or "").strip().splitlines()[0].rstrip(".").split("; ")[0]


def _field(text: str) -> tuple[str, str | None]:
    """The text, and the field it names as msgspec does: ` - at `$.priority``."""
    found = _FIELD.search(text)
    return text, (found[1] or None) if found else None


def _more(error: Exception) -> dict[str, Any]:
    more: dict[str, Any] = {}
    if isinstance(error, errors.QueueFull):
        more |= {
            "queue": error.queue,
            "depth": error.depth,
            "maximum": error.maximum,
            "retry_after_s": error.retry_after_s,
        }
    if isinstance(error, errors.JobFailed):
        more |= {"error": {"type": error.type, "message": error.reason}}
    if isinstance(error, errors.OutcomeUnknown):
        more |= {"job_ids": list(error.job_ids)}
    return more


def _ids(answer: Answer) -> str:
    """The ids that a client needs to go on, for the dialects whose errors are only a text."""
    ids = [answer.more["job_id"]] if "job_id" in answer.more else answer.more.get("job_ids", [])
    return f" (job {', '.join(ids[:100])})" if ids and ids[0] not in answer.detail else ""


def _retry_after(error: Exception, status: int) -> dict[str, str]:
    if isinstance(error, errors.OutcomeUnknown):
        return {}
    seconds = error.retry_after_s if isinstance(error, errors.QueueFull) else AWAY_RETRY_S if status == 503 else None
    return {"Retry-After": str(max(1, math.ceil(seconds)))} if seconds is not None else {}
