"""/v1/batches: the requests of a file, each a job of its own, and their answers in files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response

from forebay.api.context import api_of, header_key, json_response, needs, own_key, read_json, read_query, submitted_by
from forebay.api.errors import NotFound
from forebay.api.openai.endpoints import BatchEndpoint
from forebay.api.openai.files import find_file, page
from forebay.contract.errors import InvalidInput
from forebay.contract.generation.openai import Metadata
from forebay.contract.job import new_ids
from forebay.contract.references import shown
from forebay.storage.request_batches import LineError, RequestBatch, RequestBatches

WINDOW_S = 86_400.0
PREFIX = "batch_"


class OutputExpiry(Struct, frozen=True):
    """How long the files that a batch makes are kept."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Meta(ge=3600, le=30 * 86_400)]


class CreateBatch(Struct, frozen=True):
    """A new batch."""

    input_file_id: str
    endpoint: BatchEndpoint
    completion_window: Literal["24h"]
    metadata: Metadata | None = None
    output_expires_after: OutputExpiry | None = None


class BatchQuery(Struct, frozen=True):
    """Which batches to list."""

    after: str = ""
    limit: Annotated[int, Meta(ge=1, le=100)] = 20


class Counts(Struct, frozen=True):
    total: int
    completed: int
    failed: int


class BatchErrors(Struct, frozen=True):
    data: Sequence[LineError]
    object: str = "list"


class BatchObject(Struct, frozen=True):
    """A batch as OpenAI tells it."""

    id: str
    endpoint: str
    input_file_id: str
    status: str
    created_at: int
    expires_at: int
    request_counts: Counts
    metadata: Any
    model: str | None
    errors: BatchErrors | None
    output_file_id: str | None
    error_file_id: str | None
    usage: dict[str, Any] | None
    in_progress_at: int | None
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    completion_window: str = "24h"
    object: str = "batch"

    @classmethod
    def of(cls, batch: RequestBatch) -> BatchObject:
        told: dict[str, Any] = {name: getattr(batch, name) for name in cls.__struct_fields__ if hasattr(batch, name)}
        told |= {name: int(at) for name, at in told.items() if name.endswith("_at") and at is not None}
        told |= {
            "id": PREFIX + batch.id, "status": batch.status.value, "model": batch.model or None,
            "errors": BatchErrors(batch.errors) if batch.errors else None, "usage": _usage(batch.tokens, batch.output_tokens),
            "request_counts": Counts(batch.total, batch.completed, batch.failed),
        }  # fmt: skip
        return cls(**told)


@needs("submit")
async def create_batch(request: Request) -> Response:
    """Run the requests of a file; what comes again is the same batch."""
    api, asked = api_of(request), await read_json(request, CreateBatch)
    file = await find_file(request, asked.input_file_id, "input_file_id")
    if file.purpose != "batch":
        raise InvalidInput(f"the file's purpose is {file.purpose}; upload it for batch - at `$.input_file_id`")
    key, now, expiry = header_key(request), api.client.sync.session.ledger.now(), asked.output_expires_after
    batch = RequestBatch(
        new_ids(1)[0], request.scope["caller"].name, submitted_by(request), file.id, file.blob, asked.endpoint, now,
        now + WINDOW_S, asked.metadata, None if expiry is None else expiry.seconds,
    )  # fmt: skip
    made = await api.client.call(_batches(request).add, batch, key and own_key(request, key))
    api.new_batch.set()
    return json_response(BatchObject.of(made))


@needs("read")
async def list_batches(request: Request) -> Response:
    """The caller's batches, the newest first."""
    query, owner = read_query(request, BatchQuery), request.scope["caller"].name
    after = query.after.removeprefix(PREFIX)
    found = await api_of(request).client.call(_batches(request).list, owner, after, query.limit + 1)
    return json_response(page([BatchObject.of(batch) for batch in found], query.limit))


@needs("read")
async def get_batch(request: Request) -> Response:
    """One batch, and how far it is."""
    return await _answer(request, _batches(request).get)


@needs("submit")
async def cancel_batch(request: Request) -> Response:
    """Cancel a batch: what has ended by then is in its files."""
    response = await _answer(request, _batches(request).cancel)
    api_of(request).new_batch.set()
    return response


async def _answer(request: Request, ask: Any) -> Response:
    id = request.path_params["id"]
    batch = None
    if id.startswith(PREFIX):
        batch = await api_of(request).client.call(ask, id.removeprefix(PREFIX), request.scope["caller"].name)
    if batch is None:
        raise NotFound(f"no batch has the id {shown(id)}; it never existed, or retention has deleted it - at `$.id`")
    return json_response(BatchObject.of(batch))


def _batches(request: Request) -> RequestBatches:
    return RequestBatches(api_of(request).client.sync.session.ledger)


def _usage(tokens: int | None, output: int) -> dict[str, Any] | None:
    if tokens is None:
        return None
    return {
        "input_tokens": tokens - output, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": output,
        "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": tokens,
    }  # fmt: skip
