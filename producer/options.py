"""The options that every submit takes: their names, their defaults for each kind of job, and their check; those of a version."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Required, TypedDict

from msgspec import Meta, Struct

from forebay.contract.errors import InvalidInput
from forebay.contract.job import JobKind
from forebay.contract.model import ModelVersion
from forebay.contract.queues import QueueSpec, Resources, route
from forebay.contract.references import shown
from forebay.contract.requests.training import Split
from forebay.contract.values import plain_json
from forebay.contract.wire.codec import Parts
from forebay.contract.wire.messages import MAX_BATCH_WAIT_S
from forebay.storage.jobs.records import json_text

Deadline = float | dt.timedelta | dt.datetime
Since = float | dt.timedelta | dt.datetime

NEEDS_NOTHING = Resources()
MAX_METADATA = 65_536  # characters of JSON
MAX_TIMEOUT_S = 7 * 86_400
MAX_DEADLINE_S = 10 * 365 * 86400.0
MAX_TIMEOUT_S = 7 * 86_400


class SubmitOptions(TypedDict, total=False):
    """What every submit takes; Client says what each is."""

    priority: int
    queue: str | None
    deadline: Deadline | None
    max_attempts: int
    idempotency_key: str | None
    metadata: Mapping[str, Any] | None


class TrainOptions(SubmitOptions, total=False):
    """What `Client.train` takes: the fields of TrainRequest, which describe them, with `dataset` in the place of its files;
    and those of every submit.
    """  # fmt: skip

    recipe: Required[str]
    dataset: Required[str | Path | Sequence[str | Path]]
    format: str | None
    target: str | None
    features: str | Sequence[str] | None
    missing: str
    split: Split | Mapping[str, Any] | None
    seed: int
    params: Mapping[str, Any] | None
    metric: str | None
    alias: str | None
    checkpoint_steps: int | None
    checkpoint_minutes: float | None
    checkpoint_keep: int
    nproc: int
    nodes: int
    max_batch_size: int
    resources: Mapping[str, Any] | None


class BenchmarkOptions(SubmitOptions, total=False):
    max_rows: int
    seconds: float
    max_latency_ms: float | None
    threads: Sequence[int]
    dtypes: Sequence[str]
    apply: bool


class TuneOptions(TrainOptions, total=False):
    """What `Client.tune` takes: the fields of TuneRequest, which describe them, and those of `train`."""

    space: Required[Mapping[str, Any]]
    trials: int
    sampler: str
    pruner: str | None
    parallel: int


class ConvertOptions(SubmitOptions, total=False):
    tolerance: float
    rows: int
    alias: str | None


class CompressOptions(SubmitOptions, total=False):
    target: str | None
    columns: str | Sequence[str] | Mapping[str, str | Sequence[str]] | None
    format: str | None
    max_loss: float | None
    alias: str | None


class ExplainOptions(SubmitOptions, total=False):
    """What `Client.explain` takes: the fields of ExplainRequest, which describes them, and those of a submit."""

    method: str | None
    target: int | str | None
    baseline: Any
    batched: bool
    output: str | None
    steps: int
    tolerance: float
    window: int | None


class PredictOptions(SubmitOptions, total=False):
    batched: bool
    usage: bool
    stream: bool


class ServingOptions(Struct, frozen=True):
    """How a version runs its batches."""

    max_batch_size: Annotated[int, Meta(ge=1, le=65_536, description="rows in one forward pass, at most")] = 32
    batch_wait_timeout_s: Annotated[
        float, Meta(ge=0, le=MAX_BATCH_WAIT_S, description="seconds to wait for a batch to fill")
    ] = 0.0
    max_batch_tokens: Annotated[
        Annotated[int, Meta(ge=1, le=2**31 - 1)] | None, Meta(description="padded tokens in one forward pass, at most")
    ] = None
    dtype: Annotated[Literal["bfloat16", "float16"] | None, Meta(description="computes in bfloat16 or float16")] = None
    compile: Annotated[bool, Meta(description="compiles the forward pass when the model is loaded")] = False
    timeout_s: Annotated[
        Annotated[float, Meta(gt=0, le=MAX_TIMEOUT_S)] | None,
        Meta(description="seconds after which a forward pass is killed"),
    ] = None


class Defaults(NamedTuple):
    priority: int = 5
    max_attempts: int = 3


DEFAULTS = {
    JobKind.BATCH: Defaults(priority=7, max_attempts=5),
    JobKind.TRAIN: Defaults(max_attempts=10),
    JobKind.EVALUATE: Defaults(priority=7),
    JobKind.BENCHMARK: Defaults(priority=7),
    JobKind.REFERENCE: Defaults(priority=7),
    JobKind.TUNE: Defaults(max_attempts=10),
    JobKind.COMPRESS: Defaults(priority=7),
}  # all others: Defaults()


class ResolvedOptions(Struct, frozen=True):
    """The options of one submit, checked, with the version that the model's reference means now and the queue it needs."""

    kind: JobKind
    model: ModelVersion
    queue: str
    priority: int
    deadline_at: float | None
    max_attempts: int
    idempotency_key: str | None
    metadata: Mapping[str, Any]
    batched: bool
    usage: bool
    stream: bool
    explain: Mapping[str, Any] | None = None

    def request_hash(self, parts: Parts) -> str:
        """Equal for equal requests: the same model version and input, to be run in the same way."""
        about = f"{self.model.ref} {self.queue} {self.priority} {self.max_attempts} {sorted(self.metadata.items())}"
        digest = hashlib.sha256(about.encode() + b"\0")
        for part in parts:
            digest.update(part)
        return digest.hexdigest()


def resolve_options(
    kind: JobKind, model: ModelVersion, options: Mapping[str, Any], queues: Mapping[str, QueueSpec], now: float
) -> ResolvedOptions:
    """The options of a submit; TypeError for a name that does not exist, InvalidInput for a value that will not do."""
    taken = {JobKind.PREDICT: PredictOptions, JobKind.EXPLAIN: ExplainOptions}.get(kind, SubmitOptions)
    names = taken.__annotations__.keys()
    if not options.keys() <= names:
        unknown = next(name for name in options if name not in names)
        raise TypeError(f"{kind} has no option {unknown!r}; options of a submit are {', '.join(names)}")
    defaults = DEFAULTS.get(kind, Defaults())
    queue = options.get("queue")
    if queue is not None and not isinstance(queue, str):
        raise InvalidInput(f"queue {shown(queue)} is not the name of a queue")
    return ResolvedOptions(
        kind=kind,
        model=model,
        priority=whole_number("priority", options.get("priority", defaults.priority), 0, 9),
        max_attempts=whole_number("max_attempts", options.get("max_attempts", defaults.max_attempts), 1, 100),
        queue=route(
            queues,
            Resources.parse(model.resources) if model.resources else NEEDS_NOTHING,
            kind,
            queue,
            remote=model.remote,
        ),
        deadline_at=_deadline_at(options.get("deadline"), now),
        idempotency_key=_check_key(options.get("idempotency_key")),
        metadata=check_metadata(options.get("metadata")),
        batched=options.get("batched", False),
        usage=options.get("usage", False),
        stream=options.get("stream", False),
    )


def check_metadata(value: Mapping[str, Any] | None, what: str = "metadata") -> dict[str, Any]:
    """A copy of a mapping as JSON carries it: NumPy's scalars become Python's; InvalidInput for what is not JSON data."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidInput(f"{what} must be a mapping from str to JSON values, got {shown(value)}")
    try:
        given = plain_json(dict(value))
    except InvalidInput as error:
        raise InvalidInput(f"{what}: {error}") from error
    except Exception as error:
        raise InvalidInput(f"{what} cannot be read: {type(error).__name__} {shown(str(error))}") from error
    text = json_text(what, given)
    if len(text) > MAX_METADATA:
        raise InvalidInput(f"{what} has {len(text)} characters as JSON, the limit is {MAX_METADATA}")
    return dict(json.loads(text))


def whole_number(name: str, value: Any, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise InvalidInput(f"{name} {shown(value)} is not a whole number from {low} to {high}")
    return value


def _check_key(value: Any) -> str | None:
    if value is not None and (not isinstance(value, str) or not 1 <= len(value) <= 180 or not value.isprintable()):
        raise InvalidInput(f"idempotency_key {shown(value)} is not 1 to 180 printable characters")
    return value


def since_at(value: Any, now: float) -> float:
    """The time `value` ago in seconds since the epoch, by the ledger's clock, which says `now`."""
    seconds = _seconds("since", value, "ago")
    return now + seconds if isinstance(value, dt.datetime) else now - seconds


def _deadline_at(value: Any, now: float) -> float | None:
    """A deadline in seconds since the epoch, by the ledger's clock, which says `now`."""
    if value is None:
        return None
    seconds = _seconds("deadline", value, "from now")
    if seconds <= 0:
        past = f"{-seconds:.3g} s" if seconds > -60 else str(dt.timedelta(seconds=round(min(-seconds, MAX_DEADLINE_S))))
        raise InvalidInput(f"the deadline is {past} in the past; nothing could start in time")
    if seconds > MAX_DEADLINE_S:
        raise InvalidInput(f"deadline {shown(value)} s: give at most {MAX_DEADLINE_S:g} s (ten years), or none at all")
    return now + seconds


def _seconds(name: str, value: Any, direction: str) -> float:
    """A time as a user gives it, in seconds from now; a point in time is counted by this machine's clock."""
    if isinstance(value, dt.timedelta):
        return value.total_seconds()
    if isinstance(value, dt.datetime):
        if value.utcoffset() is None:
            raise InvalidInput(f"{name} {value} has no time zone; use datetime.now(UTC) ± …, or seconds {direction}")
        return value.timestamp() - time.time()
    if not isinstance(value, int | float) or isinstance(value, bool) or value != value:
        raise InvalidInput(f"{name} {shown(value)}: give seconds {direction}, a timedelta or an aware datetime")
    try:
        return float(value)
    except OverflowError as error:
        raise InvalidInput(f"{name} {shown(value)}: that is more seconds than can be counted") from error


def split_options(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of every submit among these, and those of the kind; what is None is left to its default."""
    submit = {name: value for name, value in options.items() if name in SubmitOptions.__annotations__}
    return submit, {name: value for name, value in options.items() if name not in submit and value is not None}
