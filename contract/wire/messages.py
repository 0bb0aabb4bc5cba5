"""What travels through Redis: messages of job ids to the workers, and announcements of finished jobs back.

Every Celery task name, Redis key and channel of Forebay is declared here and nowhere else. No message carries a payload, but for
the text of jobs that still run: it is only shown, and what counts is the result in the ledger.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Annotated, Any

from msgspec import Meta, Struct, ValidationError, convert

from forebay.contract.errors import InvalidInput
from forebay.contract.references import MAX_VERSION, JobId, ModelName

PREDICT_TASK = "forebay.predict"
MAX_BATCH_WAIT_S = 60
IDS_PER_MESSAGE = 256
PRIORITY_SEPARATOR = ":"  # a queue's Redis lists are `cpu`, `cpu:3`, `cpu:6`, `cpu:9`
PRIORITY_STEPS = (0, 3, 6, 9)


def redis_keys(queue: str) -> list[str]:
    """The Redis lists that make up a queue, the most urgent first."""
    return [redis_key(queue, step) for step in PRIORITY_STEPS]


def redis_key(queue: str, priority: int) -> str:
    """The Redis list for jobs of this priority."""
    step = max(step for step in PRIORITY_STEPS if step <= priority)
    return f"{queue}{PRIORITY_SEPARATOR}{step}" if step else queue


def misplaced_key(key: str) -> str:
    """Where a key goes that has the name of one of ours, and another type."""
    return f"forebay.misplaced.{key}"


def announce_channel(client: str) -> str:
    """The Redis channel on which the ids of a client's finished jobs are announced."""
    return f"forebay.done.{client}"


def text_channel(client: str) -> str:
    """The Redis channel on which the text of a client's running jobs comes: a JSON list of TextPiece."""
    return f"forebay.text.{client}"


class TextPiece(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Text that a job has generated and will not take back: choice `choice` of its row `row`, from character `start` on."""

    job: JobId
    row: Annotated[int, Meta(ge=0)]
    choice: Annotated[int, Meta(ge=0)]
    start: Annotated[int, Meta(ge=0)]
    text: str


class RoutedJob(Struct, frozen=True, gc=False):
    """A job and where to send it. `crashes` counts the processes that have died while running it.

    An `exclusive` job shares no message, because it runs as long as many jobs do: a batch, a shard, a training job.
    """

    id: str
    model: str
    version: int
    queue: str
    priority: int
    crashes: int = 0
    exclusive: bool = False


class BatchWait(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Hold a message back until its model has `rows` jobs waiting, for at most `seconds`: `batch_wait_timeout_s`."""

    seconds: Annotated[float, Meta(gt=0, le=MAX_BATCH_WAIT_S)]
    rows: Annotated[int, Meta(ge=1)]


class TaskArgs(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The arguments of the Celery task: up to 256 job ids of one model version.

    The job of an `exclusive` message runs apart from all others. A job that was running when a process died is sent so: if
    it is the cause, it takes no other job down with it.
    """

    model: ModelName
    version: Annotated[int, Meta(ge=0, le=MAX_VERSION)]  # 0: a training job, which makes its version
    ids: Annotated[list[JobId], Meta(max_length=IDS_PER_MESSAGE)]
    exclusive: bool
    batch_wait: BatchWait | None = None


@dataclass(frozen=True, slots=True)
class JobMessage:
    queue: str
    priority: int
    args: TaskArgs


def job_messages(
    jobs: Iterable[RoutedJob], size: int = IDS_PER_MESSAGE, batch_wait: BatchWait | None = None
) -> Iterator[JobMessage]:
    """Jobs merged into messages of up to `size` ids; their order is kept within a model version and priority."""

    def address(job: RoutedJob) -> tuple[str, int, bool, str, int]:
        return job.queue, job.priority, job.crashes > 0 or bool(job.exclusive), job.model, job.version

    for (queue, priority, exclusive, model, version), group in groupby(sorted(jobs, key=address), key=address):
        while ids := [job.id for job in islice(group, 1 if exclusive else size)]:
            yield JobMessage(queue, priority, TaskArgs(model, version, ids, exclusive, batch_wait))


def parse_args(args: Any) -> TaskArgs:
    """A received message's arguments; InvalidInput for anything else, since any client of Redis can send a message."""
    try:
        return convert(args, TaskArgs)
    except (ValidationError, RecursionError) as error:
        raise InvalidInput(f"not the arguments of a {PREDICT_TASK} message: {error}") from error
