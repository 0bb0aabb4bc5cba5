"""A job's result, in the form that the client asks for, and its events as they happen."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import is_dataclass, replace
from typing import Any, TypeVar

import msgspec
import numpy as np
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from forebay.api.context import MAX_WAIT_S, Api, api_of, json_response, needs, read_query
from forebay.api.errors import Gone, NotAcceptable, NotEnded
from forebay.api.native.bodies import ModelBody, ResultQuery
from forebay.api.native.values import result_as_json
from forebay.contract.errors import InvalidInput, JobNotFound, MissingExtra
from forebay.contract.history import JobEvent, history
from forebay.contract.job import JobInfo, Progress
from forebay.contract.model import ModelVersion
from forebay.contract.references import check_job_id
from forebay.contract.wire import codec
from forebay.datasets import require_pyarrow
from forebay.producer.async_client import AsyncJob

T = TypeVar("T")

PNG_SHAPES = "a PNG is made of uint8 of shape (height, width), with 3 or 4 channels behind it or none"
EVENT_POLL_S, EVENT_LAST_POLL_S = 0.5, 2.0


@needs("read")
async def result(request: Request) -> Response:
    """The result of a job that has succeeded, waited for up to `wait` seconds; how else it ended is an error."""
    api, query = api_of(request), read_query(request, ResultQuery)
    wait, write = query.wait, _writer(request)
    job = await known_job(request)
    if wait:
        value = await api.result(job, min(wait, MAX_WAIT_S))
    elif await job.wait(0):
        value = await job.result(0)
    else:
        raise NotEnded(f"job {job.id} has not ended yet; wait for it with ?wait=", job_id=job.id)
    value = as_plain(value)
    if query.by_class and write is _as_json:
        value = (await api.client.models.get((await known_info(request)).ref)).signature.by_class(value)
    if write is _as_json and job.sync.has_inline_result:
        return write(value)
    return await api.client.call(write, value)


@needs("read")
async def events(request: Request) -> Response:
    """What happens to a job, as server-sent events, until it has ended. `Last-Event-ID` goes on after that one."""
    job = await known_job(request)
    last = request.headers.get("last-event-id", "")
    seen, _, done = last.partition(".")
    if last and not (seen.isdecimal() and done.isdecimal() and len(last) < 40):
        raise InvalidInput(f"{last[:40]!a} is not the id of an event of this API")
    stream = _events(api_of(request), job, int(seen or 0), int(done or 0))
    return StreamingResponse(stream, media_type="text/event-stream", headers={"Cache-Control": "no-store"})


async def _events(api: Api, job: AsyncJob, seen: int, done: int) -> AsyncIterator[bytes]:
    """Events from the `seen`th on, and progress beyond `done` rows. An event's id is both numbers."""
    yield b"retry: 2000\n\n"
    pause, before, told = EVENT_POLL_S, None, list[JobEvent]()
    while True:
        info = await api.shared_reads.info(job.id)
        now = replace(info, progress=Progress())
        if now != before:
            before, past = now, await api.client.call(api.client.sync.session.jobs.queries.past_attempts, job.id)
            told = history(info, past)
        for event in told[seen:]:
            data = {"at": event.at, "attempt": event.attempt, "worker": event.worker, "message": event.message}
            seen += 1
            yield _event(event.event, f"{seen}.{done}", data)
        if info.progress.done > done:
            done = info.progress.done
            yield _event(
                "progress",
                f"{seen}.{done}",
                {"done": done, "total": info.progress.total, "message": info.progress.message},
            )
        if info.state.final or api.stopping:
            return
        if not await api.ended(job, pause):
            yield b": the job goes on\n\n"
        pause = min(2 * pause, EVENT_LAST_POLL_S)


def _event(name: str, id: str, data: Any) -> bytes:
    return b"id: %s\nevent: %s\ndata: %s\n\n" % (id.encode(), name.encode(), msgspec.json.encode(data))


def job_id(request: Request) -> str:
    """The id in the path; JobNotFound for what is none."""
    try:
        return check_job_id(request.path_params["id"])
    except InvalidInput as error:
        raise JobNotFound(str(error)) from error


async def known_job(request: Request) -> AsyncJob:
    """The handle of the job that the path names; Gone when it is so old that retention has deleted it."""
    return await _or_gone(request, api_of(request).client.job)


async def known_info(request: Request) -> JobInfo:
    """The row of the job that the path names, likewise."""
    client = api_of(request).client
    return await _or_gone(request, lambda id: client.call(client.sync.session.jobs.queries.get, id))


async def _or_gone(request: Request, find: Callable[[str], Awaitable[T]]) -> T:
    api, id = api_of(request), job_id(request)
    try:
        return await find(id)
    except JobNotFound as error:
        age = await api.client.call(api.client.sync.session.ledger.now) - int(id[:12], 16) / 1000
        if age > api.settings.retention_s:
            raise Gone(f"job {id} is older than this server keeps jobs and their results") from error
        raise


def as_plain(value: Any) -> Any:
    """The result of a job of any kind as plain data: a manifest or an evaluation by its fields, a version as HTTP tells it."""
    told = ModelBody.of(value) if isinstance(value, ModelVersion) else value
    return msgspec.to_builtins(told) if isinstance(told, msgspec.Struct) or is_dataclass(told) else told


def _as_json(value: Any) -> Response:
    return json_response(result_as_json(value))


def _as_msgpack(value: Any) -> Response:
    return _file(codec.encode(value), "application/msgpack")


def _as_bytes(value: Any) -> Response:
    if not isinstance(value, bytes):
        raise NotAcceptable("the result is not bytes; ask for application/json or application/msgpack")
    return _file(value, "application/octet-stream")


def _as_png(value: Any) -> Response:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtra("PNG needs Pillow", "batch") from error
    is_image = isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.size
    if not is_image or not (value.ndim == 2 or (value.ndim == 3 and value.shape[2] in (3, 4))):
        raise NotAcceptable(f"the result is not an image: {PNG_SHAPES}")
    file = io.BytesIO()
    Image.fromarray(value).save(file, "png")
    return _file(file.getvalue(), "image/png")


def _as_arrow(value: Any) -> Response:
    """A column for each output, named as in the signature (`output` for a single one); a row for each of the first dimension."""
    require_pyarrow()
    import pyarrow as pa

    from forebay.datasets.columns import from_numpy

    columns = value if isinstance(value, dict) else {"output": value}
    if not columns or not all(isinstance(column, np.ndarray) and column.ndim for column in columns.values()):
        raise NotAcceptable(
            "an Arrow stream is made of arrays with at least one dimension; ask for application/msgpack"
        )
    if len({len(column) for column in columns.values()}) > 1:
        raise NotAcceptable("the result's arrays differ in length; ask for application/msgpack")
    batch = pa.record_batch({name: from_numpy(column) for name, column in columns.items()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return _file(sink.getvalue().to_pybytes(), "application/vnd.apache.arrow.stream")


def _file(data: bytes, media: str) -> Response:
    response = Response(data)
    response.headers["content-type"] = media
    return response


Writer = Callable[[Any], Response]
WRITERS: dict[str, Writer] = {
    "application/json": _as_json,
    "application/msgpack": _as_msgpack,
    "application/vnd.apache.arrow.stream": _as_arrow,
    "application/octet-stream": _as_bytes,
    "image/png": _as_png,
}


def _writer(request: Request) -> Writer:
    """The form that is asked for most, by the quality and then the order of the media types in Accept."""
    asked: list[tuple[float, str]] = []
    for part in request.headers.get("accept", "*/*").split(","):
        media, *parameters = (piece.strip().lower() for piece in part.split(";"))
        quality = next((p[2:] for p in parameters if p.startswith("q=")), "1")
        asked.append((float(quality) if quality.replace(".", "", 1).isdecimal() else 0.0, media))
    for weight, media in sorted(asked, key=lambda one: -one[0]):
        found = next((w for m, w in WRITERS.items() if media in (m, "*/*", f"{m.partition('/')[0]}/*")), None)
        if weight and found is not None:
            return found
    raise NotAcceptable(f"a result is given as {', '.join(WRITERS)}")


ROUTES = [
    Route("/api/v1/jobs/{id}/result", result, methods=["GET"]),
    Route("/api/v1/jobs/{id}/events", events, methods=["GET"]),
]
