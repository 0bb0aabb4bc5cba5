"""What the native API takes and gives: a Struct for every body and every query. /openapi.json is made from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from forebay.contract.job import JobInfo, JobKind, JobState
from forebay.contract.model import ModelVersion
from forebay.storage.models.drift import DAY, KEPT_HOURS

Ref = Annotated[str, Meta(min_length=1, max_length=180, description="`name`, `name/3` or `name@alias`")]
Key = Annotated[str, Meta(min_length=1, max_length=180)]
Seconds = Annotated[float, Meta(ge=0)]
ByClass = Annotated[
    bool,
    Meta(description="JSON has the values of outputs with classes by their names, {class: value}, not as an array"),
]
Artifact = Annotated[
    str | None, Meta(description="a path or URL below what api_paths allows, or the id of an uploaded file")
]
Example = Annotated[Any, Meta(description="one sample, as a job's inputs; it is kept, and workers warm up with it")]
Batched = Annotated[bool, Meta(description="the input has a leading batch dimension")]
Metadata = dict[str, Any]
Described = dict[str, dict[str, Any]]


class Options(Struct, kw_only=True, forbid_unknown_fields=True):
    """The options of a submit; docs/how-to/call-a-model.md says what each is."""

    priority: Annotated[int, Meta(ge=0, le=9, description="0 comes first")] | UnsetType = UNSET
    queue: str | UnsetType = UNSET
    deadline: Annotated[float, Meta(gt=0, description="seconds from now")] | UnsetType = UNSET
    max_attempts: Annotated[int, Meta(ge=1, le=100)] | UnsetType = UNSET
    idempotency_key: Key | UnsetType = UNSET


class Submit(Options, kw_only=True, forbid_unknown_fields=True):
    """One job. `inputs` is one sample: a value for a model with one input, an object by name for one with several."""

    model: Ref
    inputs: Any
    kind: Literal["predict"] = "predict"
    batched: Batched | UnsetType = UNSET
    metadata: Metadata | UnsetType = UNSET


class SubmitMany(Options, kw_only=True, forbid_unknown_fields=True):
    """The query of many jobs at once; the body has their inputs."""

    model: Ref
    batched: Batched | UnsetType = UNSET
    metadata: Annotated[str, Meta(description="a JSON object")] | UnsetType = UNSET


class ErrorBody(Struct):
    """Why a job failed."""

    type: str
    message: str


class Submitted(Struct, omit_defaults=True):
    """A job that was accepted. `state`, and `result` or `error`, are there when it ended while the request waited; `classes`,
    the names of the result's values by output, when its model has classes.
    """  # fmt: skip

    id: str
    url: str
    state: JobState | UnsetType = UNSET
    result: Any = UNSET
    classes: Mapping[str, Sequence[str]] | UnsetType = UNSET
    error: ErrorBody | UnsetType = UNSET


class SubmittedMany(Struct):
    """Jobs that were accepted, in the order of their inputs."""

    ids: list[str]


class ProgressBody(Struct):
    """How far a job is: `done` of `total` rows."""

    done: int
    total: int
    message: str


class JobBody(Struct, kw_only=True):
    """A job as the ledger has it. Times are in UTC."""

    id: str
    url: str
    kind: JobKind
    state: JobState
    model: str
    queue: str
    priority: int
    attempt: int
    max_attempts: int
    worker: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    deadline_at: datetime | None
    not_before: datetime | None
    cancel_requested_at: datetime | None
    progress: ProgressBody
    error: ErrorBody | None
    metadata: Mapping[str, Any]
    submitted_by: str | None

    @classmethod
    def of(cls, job: JobInfo) -> JobBody:
        error = None if job.error is None else ErrorBody(job.error.type, job.error.message)
        return cls(
            id=job.id, url=job_url(job.id), kind=job.kind, state=job.state, model=job.ref, queue=job.queue, priority=job.priority,
            attempt=job.attempt, max_attempts=job.max_attempts, worker=job.worker, created_at=job.created_at,
            started_at=job.started_at, finished_at=job.finished_at, deadline_at=job.deadline_at, not_before=job.not_before,
            cancel_requested_at=job.cancel_requested_at, error=error, metadata=job.metadata, submitted_by=job.submitted_by,
            progress=ProgressBody(job.progress.done, job.progress.total, job.progress.message),
        )  # fmt: skip


class JobList(Struct):
    """Jobs, the newest first. `next` as `after` gives the next page; null on the last one."""

    jobs: list[JobBody]
    next: str | None


class StateBody(Struct):
    """The state that a job is in now."""

    id: str
    state: JobState


class Form(Struct, kw_only=True, forbid_unknown_fields=True):
    """How a result is told in JSON."""

    by_class: ByClass = False


class Wait(Struct, forbid_unknown_fields=True):
    """How long a request waits for a job to end."""

    wait: Annotated[Seconds, Meta(description="seconds to wait for the job to end, at most 60")] = 0.0


class ResultQuery(Wait, kw_only=True, forbid_unknown_fields=True):
    """How long to wait for a result, and how to tell it."""

    by_class: ByClass = False


class JobQuery(Struct, kw_only=True, forbid_unknown_fields=True):
    """Which jobs to list."""

    state: Annotated[str, Meta(description="one state, or several by comma")] | UnsetType = UNSET
    kind: JobKind | UnsetType = UNSET
    model: Ref | UnsetType = UNSET
    queue: str | UnsetType = UNSET
    metadata: Annotated[str, Meta(description="a JSON object: jobs that carry these values")] | UnsetType = UNSET
    since: Annotated[float, Meta(gt=0, description="submitted at most so many seconds ago")] | UnsetType = UNSET
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100
    after: Annotated[str, Meta(description="`next` of the page before")] | UnsetType = UNSET


class FieldBody(Struct, omit_defaults=True):
    """An input or output of one sample; -1 in `shape` is a free dimension."""

    name: str
    dtype: str
    shape: list[int] | UnsetType = UNSET
    nan: bool = True
    cell: bool = False
    classes: list[str] | UnsetType = UNSET


class ModelBody(Struct, kw_only=True):
    """A registered version. `inputs` and `outputs` are null where nothing is declared."""

    name: str
    version: int
    ref: str
    url: str
    runtime: str
    aliases: list[str]
    has_example: bool
    inputs: list[FieldBody] | None
    outputs: list[FieldBody] | None
    max_batch_size: int
    batch_wait_timeout_s: float
    max_batch_tokens: int | None
    dtype: str | None
    compile: bool
    timeout_s: float | None
    artifact_bytes: int
    resources: Mapping[str, float]
    options: Mapping[str, Any]
    metadata: Mapping[str, Any]
    created_at: datetime | None

    @classmethod
    def of(cls, model: ModelVersion) -> ModelBody:
        given = model.signature
        return cls(
            name=model.name, version=model.version, ref=model.ref, url=f"/api/v1/models/{model.ref}", runtime=model.runtime,
            aliases=list(model.aliases), has_example=model.has_example, inputs=_fields(given.inputs),
            outputs=_fields(given.outputs), max_batch_size=model.max_batch_size, dtype=model.dtype, compile=model.compile,
            batch_wait_timeout_s=model.batch_wait_timeout_s, max_batch_tokens=model.max_batch_tokens,
            timeout_s=model.timeout_s, artifact_bytes=model.artifact_bytes, resources=model.resources,
            options=model.options, metadata=model.metadata, created_at=model.created_at,
        )  # fmt: skip


class ModelList(Struct):
    """Versions by name, the oldest of each first. `next` as `after` gives the next page; null on the last one."""

    models: list[ModelBody]
    next: str | None


class ModelQuery(Struct, forbid_unknown_fields=True):
    """Which versions to list."""

    name: str | UnsetType = UNSET
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100
    after: Annotated[str, Meta(description="`next` of the page before")] | UnsetType = UNSET


class DriftQuery(Struct, forbid_unknown_fields=True):
    """What is held against the reference: what was served in the last hours."""

    hours: Annotated[int, Meta(ge=1, le=KEPT_HOURS)] = DAY


class Register(Struct, kw_only=True, forbid_unknown_fields=True):
    """A version to register; docs/how-to/versions.md and signatures.md have the fields. The artifact may lie beside it."""

    name: str
    artifact: Artifact = None
    example: Example = None
    runtime: str | None = None
    inputs: Described | None = None
    outputs: Described | None = None
    max_batch_size: int = 32
    batch_wait_timeout_s: float = 0.0
    max_batch_tokens: int | None = None
    dtype: Literal["bfloat16", "float16"] | None = None
    compile: bool = False
    timeout_s: float | None = None
    resources: dict[str, Any] | None = None
    options: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None
    alias: str | None = None


class Search(Struct, kw_only=True, forbid_unknown_fields=True):
    """What the versions that are looked for have: these fields, room in these resources, this metadata."""

    inputs: Described | None = None
    outputs: Described | None = None
    resources: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None


class Alias(Struct, forbid_unknown_fields=True):
    """The version that an alias is to name."""

    version: Annotated[int, Meta(ge=1, le=2**31 - 1)]


class QueueBody(Struct):
    """A queue: jobs that wait and run, and the workers that serve it."""

    name: str
    depth: int
    oldest_age_s: float | None
    running: int
    workers: list[str]
    capacity: Mapping[str, float]
    max_queue_size: int | None


class QueueList(Struct):
    """Every declared queue."""

    queues: list[QueueBody]


def job_url(id: str) -> str:
    return f"/api/v1/jobs/{id}"


def _fields(fields: Any) -> list[FieldBody] | None:
    if fields is None:
        return None
    return [FieldBody(**{"name": field.name} | field.json()) for field in fields]
