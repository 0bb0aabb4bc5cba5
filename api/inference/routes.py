"""The routes under /v2. A request of n rows is one durable job, with `batched`; the answer waits for its result."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Any, NamedTuple, TypeVar

from anyio import CapacityLimiter, to_thread
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from forebay.api.context import RouteGroup, api_of, body_of, client_of, json_response, needs, parse_json
from forebay.api.errors import Dialect, NotReady, WaitTimeout
from forebay.api.inference import metadata, repository
from forebay.api.inference.compression import compressed, decompressed
from forebay.api.inference.requests import Asked, Wanted, job_input, parse
from forebay.api.inference.responses import Answer, answer, check_outputs
from forebay.contract.errors import InvalidInput, JobExpired
from forebay.contract.model import ModelVersion
from forebay.contract.references import ModelRef
from forebay.producer.async_client import AsyncJob
from forebay.producer.inputs import InputsFor
from forebay.storage.workers import WorkerInfo, WorkerRegistry

T = TypeVar("T")

HEADER_LENGTH = "Inference-Header-Content-Length"
LARGE = 64 * 1024  # bytes; what is larger is decoded in a thread, so that others need not wait for it
_large = CapacityLimiter(2)  # JSON takes many times its size while it is decoded


@needs("read")
async def server(_: Request) -> Response:
    """This server's name, its version and the extensions it has."""
    return json_response({"name": "forebay", "version": version("forebay"), "extensions": metadata.EXTENSIONS})


async def live(_: Request) -> Response:
    """200 while the process answers."""
    return json_response({"live": True})


async def ready(request: Request) -> Response:
    """Whether requests are accepted. Workers need not be there."""
    api = api_of(request)
    if not api.stopping:
        await api.client.call(api.client.sync.session.ledger.ping)
    return json_response({"ready": not api.stopping}, 503 if api.stopping else 200)


@needs("read")
async def models(request: Request) -> Response:
    """The registered models."""
    versions = await api_of(request).client.models.list()
    return json_response({"models": list(dict.fromkeys(model.name for model in versions))})


@needs("read")
async def model_metadata(request: Request) -> Response:
    """A version's inputs and outputs, with their types and shapes."""
    model = await _model(request)
    others = [model] if _is_one(_ref(request)) else await api_of(request).client.models.list(model.name)
    return json_response(metadata.metadata(model, others))


@needs("read")
async def model_config(request: Request) -> Response:
    """A version's configuration, in Triton's form."""
    return json_response(metadata.config(await _model(request)))


@needs("read")
async def model_ready(request: Request) -> Response:
    """200 when a worker serves the queue of the version, else 503. A request is accepted all the same."""
    model = await _model(request)
    reason = repository.why_unready(model, api_of(request).settings.queues, await _workers(request))
    body = {"name": model.name, "ready": not reason}
    return json_response(body | {"error": reason}, 503) if reason else json_response(body)


@needs("read")
async def statistics(request: Request) -> Response:
    """What the workers have counted of a version, or of all."""
    client, ref = api_of(request).client, _ref(request) if request.path_params else None
    versions = [await _model(request)] if _is_one(ref) else await client.models.list(ref.name if ref else None)
    reports = await client.call(WorkerRegistry(client.sync.session.ledger).reports)
    return json_response(metadata.statistics(versions, [report.statistics for report in reports]))


@needs("read")
async def index(request: Request) -> Response:
    """The registered versions and their states."""
    api, asked = api_of(request), await _optional(request, repository.IndexRequest)
    versions, workers = await api.client.models.list(), await _workers(request)
    return json_response(repository.index(versions, api.settings.queues, workers, ready=asked.ready))


@needs("models")
async def load(request: Request) -> Response:
    """Ask the workers that serve the version's queue to load it now."""
    asked = await _optional(request, repository.LoadRequest)
    if asked.parameters:
        raise InvalidInput("a load takes neither config nor files; register a version instead")
    if not await api_of(request).client.models.warm(str(_ref(request))):
        raise NotReady("no worker serves the version's queue; one that does will load it with the first request")
    return json_response({})


@needs("models")
async def unload(request: Request) -> Response:
    """Refused, because every registered version is served."""
    model = await _model(request)
    raise InvalidInput(
        f"{model.ref} cannot be unloaded: workers load the versions that requests name, and drop those that have not been "
        "used for longest when they need the memory; delete the version to end its service"
    )


@needs("submit")
async def infer(request: Request) -> Response:
    """Run a model on one request, and wait for the result."""
    job, submitted = await _submit(request)
    try:
        result = await api_of(request).result(job)
    except JobExpired as error:  # of the request's own timeout
        raise WaitTimeout(str(error), job_id=job.id) from error

    def respond() -> Response:
        made = answer(submitted.wanted, submitted.model, job.id, result, submitted.rows)
        return _response(made, request.headers.get("accept-encoding"))

    return await _in_thread_if(not job.sync.has_inline_result, respond)


class _Submitted(NamedTuple):
    """What is kept of a request while its job runs; its values may be large, and are not."""

    wanted: Wanted
    model: ModelVersion
    rows: int


async def _submit(request: Request) -> tuple[AsyncJob, _Submitted]:
    headers, body = request.headers, await body_of(request)

    def read() -> Asked:
        plain = decompressed(body, headers.get("content-encoding"), request.scope["max_body_bytes"])
        return parse(plain, headers.get(HEADER_LENGTH))

    def inputs_for(model: ModelVersion) -> dict[str, Any]:
        check_outputs(asked.wanted, model.signature)
        inputs = job_input(asked, model.signature)
        submitted.append(_Submitted(asked.wanted, model, len(next(iter(inputs.values())))))
        return inputs

    submitted: list[_Submitted] = []
    asked = await _in_thread_if(len(body) > LARGE or "content-encoding" in headers, read)
    job = await client_of(request).predict(str(_ref(request)), InputsFor(inputs_for), **asked.options)
    return job, submitted[0]


def _response(made: Answer, accepted: str | None) -> Response:
    content, encoding = compressed(made.body, accepted)
    own = {"Content-Type": "application/json"}
    if made.header_length is not None:
        own = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(made.header_length)}
    if encoding is not None:
        own["Content-Encoding"] = encoding
    return Response(content, headers=own)


def _ref(request: Request) -> ModelRef:
    name, number = request.path_params["name"], request.path_params.get("version")
    return ModelRef.parse(name if number is None else f"{name}/{number}")


def _is_one(ref: ModelRef | None) -> bool:
    return ref is not None and (ref.version is not None or ref.alias is not None)


async def _model(request: Request) -> ModelVersion:
    return await api_of(request).client.models.get(str(_ref(request)))


async def _workers(request: Request) -> list[WorkerInfo]:
    client = api_of(request).client
    return await client.call(client.sync.session.live_workers)


async def _optional(request: Request, kind: type[T]) -> T:
    """The body, which may be empty."""
    return parse_json(await body_of(request) or b"{}", kind)


async def _in_thread_if(large: bool, work: Callable[[], T]) -> T:
    return await to_thread.run_sync(work, limiter=_large) if large else work()


def _routes() -> list[Route]:
    get: dict[str, Any] = {
        "/v2": server, "/v2/health/live": live, "/v2/health/ready": ready, "/v2/models": models, "/v2/models/stats": statistics,
    }  # fmt: skip
    post: dict[str, Any] = {
        "/v2/repository/index": index,
        "/v2/repository/models/{name}/load": load,
        "/v2/repository/models/{name}/unload": unload,
    }
    for path in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        get |= {
            path: model_metadata,
            f"{path}/ready": model_ready,
            f"{path}/config": model_config,
            f"{path}/stats": statistics,
        }
        post[f"{path}/infer"] = infer
    return [Route(path, call, methods=["GET"]) for path, call in get.items()] + [
        Route(path, call, methods=["POST"]) for path, call in post.items()
    ]


INFERENCE = RouteGroup(Dialect.INFERENCE, "/v2", _routes())
