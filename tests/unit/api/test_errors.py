"""The error tree as HTTP tells it: one status for each class, and each dialect's own body."""

import json
from typing import Any

import pytest
from starlette.exceptions import HTTPException

from forebay.api.errors import Dialect, NotEnded, ServerStopping, Unauthorized, WaitTimeout, error_response
from forebay.contract import errors
from forebay.contract.errors import ForebayError

EVERY = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ForebayError)]
FULL = errors.QueueFull("queue 'cpu' is full", queue="cpu", depth=9, maximum=9, retry_after_s=1.2)
FAILED = errors.JobFailed("job a failed", type="ValueError", reason="no")
ID = "a" * 32


def told(error: Exception, dialect: Dialect) -> tuple[int, dict[str, str], Any]:
    response = error_response(error, dialect, "r1")
    return response.status_code, dict(response.headers), json.loads(bytes(response.body))


@pytest.mark.parametrize("dialect", Dialect)
@pytest.mark.parametrize("kind", EVERY)
def test_every_error_of_the_tree_has_an_answer_in_every_dialect(kind: type[ForebayError], dialect: Dialect) -> None:
    status, headers, body = told(kind(), dialect)
    assert 400 <= status < 600
    assert headers["content-type"] in ("application/json", "application/problem+json")
    assert body


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.InvalidInput("x"), 422), (errors.PayloadTooLarge("x"), 413), (errors.ModelNotFound("x"), 404),
        (errors.JobNotFound("x"), 404), (errors.NoQueueFits("x"), 422), (FULL, 429), (FAILED, 422),
        (errors.JobFailed("x", type="WorkerLost"), 502), (errors.JobCanceled("x"), 409), (errors.IllegalTransition("x"), 409),
        (errors.ResultTimeout("x"), 504), (errors.LedgerOutdated("x"), 503), (errors.BlobMissing("x"), 410),
        (errors.BlobCorrupt("x"), 500), (WaitTimeout("x"), 504), (ServerStopping(), 503), (NotEnded(), 409),
        (Unauthorized(), 401), (HTTPException(404), 404), (HTTPException(405), 405), (RuntimeError("secret"), 500),
    ],
)  # fmt: skip
def test_each_error_has_its_status_and_422_is_400_elsewhere(error: Exception, status: int) -> None:
    assert told(error, Dialect.NATIVE)[0] == status
    assert told(error, Dialect.OPENAI)[0] == told(error, Dialect.INFERENCE)[0] == (400 if status == 422 else status)


def test_a_problem_has_the_members_of_rfc_9457_and_what_a_program_needs() -> None:
    status, headers, body = told(FULL, Dialect.NATIVE)
    assert headers["content-type"] == "application/problem+json"
    assert headers["retry-after"] == "2"
    assert body == {
        "type": "urn:forebay:error:queue-full", "title": "The queue holds as many jobs as it may", "status": status,
        "detail": "queue 'cpu' is full", "queue": "cpu", "depth": 9, "maximum": 9, "retry_after_s": 1.2, "request_id": "r1",
    }  # fmt: skip
    field = errors.InvalidInput("Expected `int`, got `str` - at `$.inputs[0].shape`")
    assert told(field, Dialect.NATIVE)[2]["field"] == "inputs[0].shape"
    assert told(WaitTimeout("late", job_id=ID), Dialect.NATIVE)[2]["job_id"] == ID
    assert told(FAILED, Dialect.NATIVE)[2]["error"] == {"type": "ValueError", "message": "no"}


def test_the_inference_protocols_error_is_a_text_of_exactly_json() -> None:
    _, headers, body = told(errors.ModelNotFound("no model is called 'x'"), Dialect.INFERENCE)
    assert (headers["content-type"], body) == ("application/json", {"error": "no model is called 'x'"})
    assert ID in told(ServerStopping(job_id=ID), Dialect.INFERENCE)[2]["error"]


def test_openais_error_says_which_type_and_what_must_not_be_sent_again() -> None:
    status, headers, body = told(errors.IllegalTransition("it has ended"), Dialect.OPENAI)
    assert (status, headers["x-should-retry"]) == (409, "false")
    assert body == {
        "error": {
            "message": "it has ended",
            "type": "invalid_request_error",
            "param": None,
            "code": "illegal_transition",
        }
    }
    assert told(FULL, Dialect.OPENAI)[2]["error"]["type"] == "rate_limit_error"
    unknown = errors.OutcomeUnknown("lost", job_ids=(ID,))
    status, headers, body = told(unknown, Dialect.OPENAI)
    assert (status, headers["x-should-retry"]) == (503, "false")
    assert ID in body["error"]["message"]


@pytest.mark.parametrize("dialect", Dialect)
@pytest.mark.parametrize(
    "error",
    [
        errors.LedgerUnavailable("the ledger postgresql://me@secret.example/db: refused"),
        errors.BlobUnavailable("/secret/blobs: no room"), RuntimeError("/secret/file"), errors.BlobCorrupt("/secret"),
    ],
)  # fmt: skip
def test_what_the_client_did_not_cause_tells_nothing_of_the_server(error: Exception, dialect: Dialect) -> None:
    assert "secret" not in json.dumps(told(error, dialect)[2])
