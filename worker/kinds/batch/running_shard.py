"""One shard on its way through a child: what it is to do, and how far it is."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from enum import StrEnum

from forebay.contract.model import ModelVersion
from forebay.contract.requests.batch import BatchRequest
from forebay.contract.requests.shards import ShardWork
from forebay.datasets.reading.shard_range import ShardRange
from forebay.datasets.writing.folder import OutputFolder
from forebay.datasets.writing.parts import Part
from forebay.storage.jobs.records import ClaimedJob


class StopReason(StrEnum):
    """Why a shard is not run to its end."""

    LOST = "lost"  # another worker has been given it
    CANCELED = "canceled"  # its batch has ended
    STOPPING = "stopping"  # this process has to stop
    MEMORY = "memory"  # reading it takes more than this process may have
    DOUBTFUL = "doubtful"  # nobody knows which part of it is still its own: the ledger tells the next attempt


class ShardStopped(Exception):
    """The rest of the shard need not be run."""


@dataclass(slots=True)
class RunningShard:
    """A claimed shard. `known_error` is the error of its row when that is not to be run again; it is not `tried` when its
    model could not be loaded.
    """  # fmt: skip

    job: ClaimedJob
    work: ShardWork
    request: BatchRequest
    spec: ModelVersion
    part: Part
    folder: OutputFolder
    range: ShardRange
    known_error: Exception | None = None
    done: int = 0
    failed: int = 0
    seen: int = 0  # rows that have been through the model
    began: float = 0.0
    error: Exception | None = None
    tried: bool = True
    stop: StopReason | None = None
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def over(self) -> bool:
        return self.stop is not None or self.error is not None

    @property
    def seconds(self) -> float:
        """Since its first rows came to the device."""
        return time.monotonic() - self.began if self.began else 0.0
