"""What every group of routes stands on: the client, who calls, bodies within their limit, waiting, and answers in JSON."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from forebay.api.errors import (
    BodyIncomplete,
    Dialect,
    Forbidden,
    HttpError,
    MalformedBody,
    ServerStopping,
    Unauthorized,
    WaitTimeout,
)
from forebay.api.repeated_keys import check_json_keys, check_msgpack_keys
from forebay.contract.errors import InvalidInput, JobNotFound
from forebay.contract.job import JobInfo
from forebay.contract.wire import codec
from forebay.producer.async_client import AsyncClient, AsyncJob
from forebay.storage.api_keys import SCOPES

T = TypeVar("T")
Handler = Callable[[Request], Awaitable[Response]]

GATHER_S = 0.05  # in which streams of events share a read of the ledger
MAX_WAIT_S = 60.0  # of one request for a job; a client that wants to wait longer asks again
MSGPACK = ("application/msgpack", "application/x-msgpack", "application/vnd.msgpack")


@dataclass(frozen=True, slots=True)
class RouteGroup:
    """Routes below one prefix, which speak one dialect. `limit` names the setting of how large a body may be."""

    dialect: Dialect
    prefix: str
    routes: Sequence[BaseRoute]
    limit: str = "api_max_body_bytes"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request: the API key's name, "" where none is needed, and what it may do."""

    name: str = ""
    scopes: frozenset[str] = field(default=frozenset(SCOPES))


ANYONE, NOBODY = Caller(), Caller(scopes=frozenset())


class SharedReads:
    """The rows of jobs whose events are followed: what many streams ask for within a moment is read in one query."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._asked: dict[str, asyncio.Future[JobInfo | None]] = {}
        self._reading: set[asyncio.Task[None]] = set()

    async def info(self, id: str) -> JobInfo:
        """One job; JobNotFound when there is none of this id."""
        future = self._asked.get(id)
        if future is None:
            future = self._asked[id] = asyncio.get_running_loop().create_future()
            if len(self._asked) == 1:
                task = asyncio.create_task(self._read())
                self._reading.add(task)
                task.add_done_callback(self._reading.discard)
        info = await asyncio.shield(future)  # others wait for it too
        if info is None:
            raise JobNotFound(f"no job has the id {id!r}; retention has deleted it")
        return info

    async def _read(self) -> None:
        await asyncio.sleep(GATHER_S)
        asked, self._asked = self._asked, {}
        try:
            found = await self._client.call(self._client.sync.session.jobs.queries.infos, list(asked))
        except Exception as error:  # noqa: BLE001 - handed to whoever asked
            for future in asked.values():
                future.set_exception(error)
                future.exception()  # whoever asked may be gone
        else:
            for id, future in asked.items():
                future.set_result(found.get(id))


class Api:
    """What the handlers share."""

    def __init__(self, client: AsyncClient) -> None:
        self.client = client
        self.settings = client.settings
        self.stopping = False
        self.new_batch = threading.Event()
        self.shared_reads = SharedReads(client)

    def stop_waiting(self) -> None:
        """Answer every request that waits for a job, and every later one at once: this server is being stopped."""
        self.stopping = True
        self.client.stop_waiting()

    async def ended(self, job: AsyncJob, timeout: float) -> bool:
        """Whether the job has ended within `timeout` seconds, at most MAX_WAIT_S."""
        return await job.wait(min(timeout, MAX_WAIT_S))

    async def result(self, job: AsyncJob, timeout: float = MAX_WAIT_S) -> Any:
        """The job's result; an error that names the job when it has not ended in time, or the server is being stopped."""
        if not await job.wait(timeout):
            raise self.late(job, timeout)
        return await job.result(0)

    def late(self, job: AsyncJob, timeout: float) -> HttpError:
        """What to tell who has waited so long for a job."""
        if self.stopping:
            return ServerStopping(job_id=job.id)
        return WaitTimeout(f"job {job.id} has not ended after {timeout:g} s and goes on", job_id=job.id)


def api_of(request: Request) -> Api:
    api: Api = request.scope["forebay"]
    return api


def client_of(request: Request) -> AsyncClient:
    """The client to submit with: each job keeps in which dialect it came, and by which API key."""
    return api_of(request).client.submitting_for(submitted_by(request))


def submitted_by(request: Request) -> str:
    """What a job keeps of who sent it: the dialect, and the API key's name."""
    caller: Caller = request.scope["caller"]
    dialect: Dialect = request.scope["dialect"]
    return f"{dialect}:{caller.name}" if caller.name else str(dialect)


def header_key(request: Request) -> str | None:
    """The header Idempotency-Key: a string of RFC 8941, or as it is."""
    key = request.headers.get("idempotency-key")
    return key[1:-1] if key is not None and len(key) > 1 and key[0] == key[-1] == '"' else key


def own_key(request: Request, idempotency_key: str) -> str:
    """A caller's idempotency key as the ledger has it: no other caller's is the same."""
    name = request.scope["caller"].name
    return f"{name}/{idempotency_key}" if name else idempotency_key


def check_scope(request: Request, scope: str) -> None:
    """Unauthorized or Forbidden when the caller may not do what needs this scope."""
    caller: Caller = request.scope["caller"]
    if caller is NOBODY:
        raise Unauthorized("send a valid API key as `Authorization: Bearer fb_…`")
    if scope not in caller.scopes:
        raise Forbidden(f"the API key {caller.name!r} has no scope {scope!r}")


def needs(scope: str) -> Callable[[Handler], Handler]:
    """Declare which scope a caller needs for a handler: submit, read, models or admin. Every handler declares one."""

    def declare(handler: Handler) -> Handler:
        @wraps(handler)
        async def checked(request: Request) -> Response:
            check_scope(request, scope)
            return await handler(request)

        checked.scope = scope  # type: ignore[attr-defined] # a test asks each route for it
        return checked

    return declare


async def body_of(request: Request) -> bytes:
    """The whole body, which the door keeps within the limit of the route's group."""
    try:
        return await request.body()
    except ClientDisconnect as error:
        raise BodyIncomplete from error


async def read_body(request: Request, kind: type[T]) -> tuple[T, bool]:
    """The body as `kind`, and whether it was JSON: with Content-Type application/msgpack it is the payload codec's MessagePack,
    in which arrays and bytes are themselves.
    """  # fmt: skip
    if media_type(request) not in MSGPACK:
        return await read_json(request, kind), True
    value = decode_msgpack(await body_of(request))
    try:
        return msgspec.convert(value, kind), False
    except msgspec.ValidationError as error:
        raise InvalidInput(str(error)) from error


def read_query(request: Request, kind: type[T]) -> T:
    """The query as `kind`; InvalidInput for a parameter that is not known, comes twice or has no such value."""
    given = dict(request.query_params)
    if len(given) != len(request.query_params.multi_items()):
        raise InvalidInput("a parameter of the query comes twice")
    try:
        return msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"the query: {error}") from error


def media_type(request: Request) -> str:
    """The Content-Type without its parameters, in small letters; "" without one."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_json(request: Request, kind: type[T]) -> T:
    """The body, which is JSON whatever its Content-Type says, as `kind`; MalformedBody, or InvalidInput that names the field."""
    return parse_json(await body_of(request), kind)


def parse_json(data: bytes | str, kind: type[T]) -> T:
    """JSON as `kind`. Integers of any size and floats are exact; NaN, infinity and numbers out of range are no JSON, and
    InvalidInput names a key that an object has twice.
    """  # fmt: skip
    try:
        return decode_json(data.encode() if isinstance(data, str) else data, kind)
    except msgspec.ValidationError as error:
        raise InvalidInput(str(error)) from error
    except (msgspec.DecodeError, UnicodeError) as error:
        raise MalformedBody(f"the body is not JSON: {error}") from error
    except RecursionError:
        raise MalformedBody("the body is nested too deeply") from None


def decode_msgpack(data: bytes) -> Any:
    """The payload codec's MessagePack; InvalidInput for what is not, and for a map that has a key twice."""
    value = codec.decode(data)
    check_msgpack_keys(data)
    return value


def decode_json(data: bytes, kind: type[T]) -> T:
    """The same with msgspec's own errors for what is not JSON, or not of this kind."""
    value = msgspec.json.decode(data, type=kind)
    check_json_keys(data)
    return value


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A response of plain values and Structs as JSON."""
    response = Response(msgspec.json.encode(value), status, headers)
    response.headers["content-type"] = "application/json"
    return response
