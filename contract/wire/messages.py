"""What travels through Redis: job_messages of job ids towards the workers, and announcements of finished jobs back.

Every Celery task name, Redis key and channel of Forebay is declared here and nowhere else. No message carries a payload.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

from forebay.contract.errors import InvalidInput
from forebay.contract.references import MAX_VERSION, check_job_id, check_name

PREDICT_TASK = "forebay.predict"
MAX_HOLD_S = 60
IDS_PER_MESSAGE = 256  # ids in one message
PRIORITY_SEPARATOR = ":"  # a queue's Redis lists are `cpu`, `cpu:3`, `cpu:6`, `cpu:9`
PRIORITY_STEPS = (0, 3, 6, 9)


def redis_keys(queue: str) -> list[str]:
    """The Redis lists that make up a queue, the most urgent first."""
    return [f"{queue}{PRIORITY_SEPARATOR}{step}" if step else queue for step in PRIORITY_STEPS]


def announce_channel(client: str) -> str:
    """The Redis channel on which the ids of a client's finished jobs are announced."""
    return f"forebay.done.{client}"


@dataclass(frozen=True, slots=True)
class RoutedJob:
    """What it takes to send a job: where it goes, what it is for, and how often a process has died with it.

    Batches and shards, each as long as many jobs, travel `alone` too.
    """

    id: str
    model: str
    version: int
    queue: str
    priority: int
    crashes: int = 0
    alone: bool = False


@dataclass(frozen=True, slots=True)
class BatchWait:
    """Keep a message back until its model has `rows` jobs waiting, for at most `seconds`: `batch_wait_timeout_s`."""

    seconds: float
    rows: int


@dataclass(frozen=True, slots=True)
class JobMessage:
    """One message: up to 256 job ids of one model version, for one queue.

    `solo` keeps a job with which a process has died away from all others: what killed one worker can kill only itself. Batches
    and shards are solo too.
    """

    model: str
    version: int
    queue: str
    priority: int
    ids: tuple[str, ...]
    solo: bool = False
    hold: BatchWait | None = None

    @property
    def args(self) -> list[Any]:
        """The Celery task's arguments."""
        hold = [] if self.hold is None else [self.hold.seconds, self.hold.rows]
        return [self.model, self.version, list(self.ids), self.solo, *hold]


def job_messages(routed_jobs: Iterable[RoutedJob], size: int = IDS_PER_MESSAGE) -> Iterator[JobMessage]:
    """Jobs merged into messages of up to `size` ids; their order is kept within a model version and priority."""

    def address(routed_job: RoutedJob) -> tuple[str, int, bool, str, int]:
        solo = routed_job.crashes > 0 or bool(routed_job.alone)
        return routed_job.queue, routed_job.priority, solo, routed_job.model, routed_job.version

    for (queue, priority, solo, model, version), group in groupby(sorted(routed_jobs, key=address), key=address):
        while ids := tuple(t.id for t in islice(group, 1 if solo else size)):
            yield JobMessage(model, version, queue, priority, ids, solo)


def check_args(args: Any) -> tuple[str, int, list[str], bool]:
    """A message's arguments as (model, version, ids, solo); InvalidInput for whatever a stranger may have put there."""
    if not isinstance(args, Sequence) or isinstance(args, str) or len(args) not in (4, 6):
        raise InvalidInput("a message holds a model, a version, a list of job ids and a flag")
    model, version, ids, solo = args[:4]
    if (
        type(version) is not int
        or not 0 <= version <= MAX_VERSION  # 0: a training job has none yet
        or not isinstance(ids, list)
        or not isinstance(solo, bool)
    ):
        raise InvalidInput("a message holds a model, a version, a list of job ids and a flag")
    if len(ids) > IDS_PER_MESSAGE:
        raise InvalidInput(f"a message holds at most {IDS_PER_MESSAGE} ids, got {len(ids)}")
    return check_name(model), version, [check_job_id(i) for i in ids], solo


def check_hold(args: Sequence[Any]) -> BatchWait | None:
    """How long the message is to be held, if it says so; InvalidInput for odd values. The rest is check_args' business."""
    if len(args) == 4:
        return None
    seconds, rows = args[4:]
    if type(seconds) not in (int, float) or not 0 < seconds <= MAX_HOLD_S or type(rows) is not int or rows < 1:
        raise InvalidInput(f"a message is held for up to {MAX_HOLD_S} s and some rows")
    return BatchWait(float(seconds), rows)
