"""Jobs: submit one or many, list, look at one and wait for it, cancel, retry."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, cast

import msgspec
from msgspec import UNSET, Meta, UnsetType
from msgspec.structs import asdict
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from forebay.api.context import (
    MAX_WAIT_S,
    MSGPACK,
    api_of,
    body_of,
    client_of,
    decode_msgpack,
    header_key,
    json_response,
    media_type,
    needs,
    own_key,
    parse_json,
    read_body,
    read_query,
)
from forebay.api.errors import MalformedBody
from forebay.api.native.bodies import (
    Batched,
    ErrorBody,
    Form,
    JobBody,
    JobList,
    JobQuery,
    Metadata,
    Options,
    Ref,
    StateBody,
    Submit,
    SubmitMany,
    Submitted,
    SubmittedMany,
    Wait,
    job_url,
)
from forebay.api.native.data_jobs import (
    SubmitBatch,
    SubmitBenchmark,
    SubmitCompress,
    SubmitConvert,
    SubmitEvaluate,
    SubmitReference,
    SubmitTrain,
    SubmitTune,
    submit_data_job,
)
from forebay.api.native.results import as_plain, known_info, known_job
from forebay.api.native.values import inputs_from_json, result_as_json
from forebay.contract.errors import ForebayError, InvalidInput, JobFailed
from forebay.contract.job import JobState
from forebay.contract.model import ModelVersion
from forebay.contract.references import shown
from forebay.contract.requests.explain import ExplainRequest
from forebay.contract.signature import Signature
from forebay.producer.async_client import AsyncJob
from forebay.producer.inputs import InputsFor
from forebay.producer.options import PredictOptions

_WAIT = re.compile(r"(?:^|[,;\s])wait\s*=\s*(\d{1,6})(?=$|[,;\s])")


_EXPLAINED_BY = [
    (field.name, field.type | UnsetType, UNSET)
    for field in msgspec.structs.fields(ExplainRequest)
    if field.name not in ("target", "baseline")
]
SubmitExplain = msgspec.defstruct(
    "SubmitExplain",
    [
        ("kind", Literal["explain"]), ("model", Ref), ("inputs", Any), ("batched", Batched | UnsetType, UNSET),
        ("metadata", Metadata | UnsetType, UNSET), *_EXPLAINED_BY,
        ("target", Annotated[int | str, Meta(description="the class that is explained, or its number")] | UnsetType, UNSET),
        ("baseline", Annotated[Any, Meta(description="what the input is held against: a number, or a sample")], UNSET),
    ],
    bases=(Options,), kw_only=True, forbid_unknown_fields=True,
    namespace={"__doc__": "What parts of an input add to a prediction; docs/how-to/explain-predictions.md has the fields."},
)  # fmt: skip

PREDICT: Mapping[str, Any] = {"predict": Submit}
KINDS: Mapping[str, Any] = {
    **PREDICT,
    "explain": SubmitExplain,
    "batch": SubmitBatch,
    "train": SubmitTrain,
    "evaluate": SubmitEvaluate,
    "tune": SubmitTune,
    "reference": SubmitReference,
    "convert": SubmitConvert,
    "benchmark": SubmitBenchmark,
    "compress": SubmitCompress,
}


class _Kind(msgspec.Struct):
    kind: str = "predict"


@needs("submit")
async def submit(request: Request) -> Response:
    """Accept one job. `Prefer: wait=N` gives it with its result when it ends in time."""
    form = read_query(request, Form)
    job, model = await submitted(request, KINDS)
    headers = {"Location": job_url(job.id)}
    wait = _WAIT.search(request.headers.get("prefer", ""))
    if wait is None:
        return json_response(Submitted(job.id, job_url(job.id)), 202, headers)
    seconds = min(int(wait[1]), int(MAX_WAIT_S))
    ended = await api_of(request).ended(job, seconds)
    headers["Preference-Applied"] = f"wait={seconds}"
    return json_response(
        await _answer(job, model, form) if ended else Submitted(job.id, job_url(job.id)), 200 if ended else 202, headers
    )


@needs("submit")
async def submit_many(request: Request) -> Response:
    """Accept a job for each line of JSON, or each item of a MessagePack array: all or none, in one transaction."""
    query = read_query(request, SubmitMany)
    options = options_of(request, query)
    if query.metadata is not UNSET:
        options["metadata"] = parse_json(query.metadata, dict[str, Any])
    body = await body_of(request)
    if media_type(request) in MSGPACK:
        values = decode_msgpack(body)
        if not isinstance(values, list):
            raise MalformedBody("the body is not an array of inputs")
        inputs = InputsFor(lambda _: values)
    else:
        values = _lines(body)
        batched = options.get("batched", False)
        inputs = InputsFor(lambda model: [inputs_from_json(model.signature, value, batched) for value in values])
    jobs = await client_of(request).predict_many(query.model, cast(Any, inputs), **options)
    return json_response(SubmittedMany([job.id for job in jobs]), 202)


@needs("submit")
async def call(request: Request) -> Response:
    """Submit one job and wait for its result."""
    form = read_query(request, Form)
    job, model = await submitted(request)
    return json_response(_succeeded(job, model, form, await api_of(request).result(job)))


@needs("read")
async def list_jobs(request: Request) -> Response:
    """The newest jobs that meet every filter, newest first."""
    query = read_query(request, JobQuery)
    given: dict[str, Any] = {name: value for name, value in asdict(query).items() if value is not UNSET}
    if "state" in given:
        given["state"] = given["state"].split(",")
    if "metadata" in given:
        given["metadata"] = parse_json(given["metadata"], dict[str, Any])
    if "after" in given:
        given["before"] = given.pop("after")
    jobs = [JobBody.of(info) for info in await api_of(request).client.jobs(**given)]
    return json_response(JobList(jobs, jobs[-1].id if len(jobs) == query.limit else None))


@needs("read")
async def show(request: Request) -> Response:
    """One job; with `wait` once it has ended, or as it is then."""
    api, wait = api_of(request), read_query(request, Wait).wait
    if wait:
        await api.ended(await known_job(request), wait)
    return json_response(JobBody.of(await known_info(request)))


@needs("submit")
async def cancel(request: Request) -> Response:
    """Cancel a job. 202 when it runs: its worker was asked to stop."""
    job = await known_job(request)
    state = await job.cancel()
    return json_response(StateBody(job.id, state), 200 if state.final else 202)


@needs("submit")
async def retry(request: Request) -> Response:
    """Queue a failed, canceled or expired job again."""
    job = await known_job(request)
    await job.retry()
    return json_response(StateBody(job.id, await job.state()), 202, {"Location": job_url(job.id)})


async def submitted(request: Request, kinds: Mapping[str, Any] = PREDICT) -> tuple[AsyncJob, ModelVersion | None]:
    """The job of one of these kinds that the request's body asks for, durable, and the version that a prediction is for."""
    body, is_json = await read_body(request, await _kind_of(request, kinds))
    options = options_of(request, body)
    if body.metadata is not UNSET:
        options["metadata"] = cast("Mapping[str, Any]", body.metadata)
    if body.kind not in ("predict", "explain"):
        return await submit_data_job(request, body, options), None
    batched = options.get("batched", False)
    models: list[ModelVersion] = []

    def read(model: ModelVersion) -> Any:
        models.append(model)
        return inputs_from_json(model.signature, body.inputs, batched) if is_json else body.inputs

    if body.kind == "explain":
        asked = {
            name: value for name in ExplainRequest.__struct_fields__ if (value := getattr(body, name)) is not UNSET
        }
        return await client_of(request).explain(body.model, InputsFor(read), **asked, **cast(Any, options)), None
    job = await client_of(request).predict(body.model, InputsFor(read), **options)
    return job, models[0]


async def _kind_of(request: Request, kinds: Mapping[str, Any]) -> Any:
    """What the body is to be read as: what else is wrong with it is found then."""
    decode = msgspec.msgpack.decode if media_type(request) in MSGPACK else msgspec.json.decode
    try:
        kind = decode(await body_of(request), type=_Kind).kind if len(kinds) > 1 else "predict"
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        kind = "predict"
    if kind not in kinds:
        raise InvalidInput(f"kind {shown(kind)}: over HTTP there are {', '.join(kinds)} - at `$.kind`")
    return kinds[kind]


def options_of(request: Request, body: Options) -> PredictOptions:
    """The options that were given, in the body and by the header Idempotency-Key."""
    given = {name: getattr(body, name, UNSET) for name in ("batched", *Options.__struct_fields__)}
    options = {name: value for name, value in given.items() if value is not UNSET}
    key = header_key(request)
    if key is not None and options.setdefault("idempotency_key", key) != key:
        raise InvalidInput("the header Idempotency-Key and the body's idempotency_key differ - at `$.idempotency_key`")
    if "idempotency_key" in options:
        options["idempotency_key"] = own_key(request, options["idempotency_key"])
    return cast(PredictOptions, options)


async def _answer(job: AsyncJob, model: ModelVersion | None, form: Form) -> Submitted:
    """A job that has ended."""
    error = await job.exception(0)
    if error is None:
        return _succeeded(job, model, form, await job.result(0))
    kind, reason = (error.type, error.reason) if isinstance(error, JobFailed) else (type(error).__name__, str(error))
    state = job.sync.state  # known: no question to the ledger
    return Submitted(job.id, job_url(job.id), state, error=ErrorBody(kind, reason))


def _succeeded(job: AsyncJob, model: ModelVersion | None, form: Form, value: Any) -> Submitted:
    signature = Signature() if model is None else model.signature
    value = result_as_json(signature.by_class(value) if form.by_class else as_plain(value))
    classes = {field.name: field.classes for field in signature.outputs or () if field.classes}
    return Submitted(job.id, job_url(job.id), JobState.SUCCEEDED, value, classes=classes or UNSET)


def _lines(body: bytes) -> list[Any]:
    """The value of each line of JSON, empty lines left out."""
    values = []
    for number, line in enumerate(body.split(b"\n"), start=1):
        if line.strip():
            try:
                values.append(parse_json(line, cast(Any, object)))
            except ForebayError as error:
                raise type(error)(f"line {number}: {error}") from error
    return values


ROUTES = [
    Route("/api/v1/jobs", submit, methods=["POST"]),
    Route("/api/v1/jobs", list_jobs, methods=["GET"]),
    Route("/api/v1/jobs:many", submit_many, methods=["POST"]),
    Route("/api/v1/jobs/{id}", show, methods=["GET"]),
    Route("/api/v1/jobs/{id}/cancel", cancel, methods=["POST"]),
    Route("/api/v1/jobs/{id}/retry", retry, methods=["POST"]),
    Route("/call", call, methods=["POST"]),
    Route("/predict", call, methods=["POST"]),
]
