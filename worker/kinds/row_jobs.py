"""Jobs of rows on their way through a child, and which of them must not go on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any, NamedTuple

import structlog

from forebay.contract.errors import LedgerUnavailable, Transient, without_frames
from forebay.contract.job import Transition
from forebay.contract.signature import Row
from forebay.contract.wire import codec
from forebay.contract.wire.payload import PackedRows, join_rows
from forebay.storage.blobs.payloads import Payloads
from forebay.storage.jobs.records import ClaimedJob, Finished, Postponed
from forebay.worker.execution.attempts import Attempts, outcome_of_error
from forebay.worker.execution.large_results import LargeResult
from forebay.worker.execution.model_cache import LoadedModel

log = structlog.get_logger()

CANCEL_CHECK_S = 0.5  # between two reads of which jobs are to be canceled


@dataclass(slots=True)
class PredictJob:
    """A claimed job on its way: its rows, as given and as the model's batches take them, an output for each, how many are
    unfinished, its usage if that is to be told, whether its client wants the text as it comes, how it is to be
    explained, and its first error.

    `ending` is how it ends when it was stopped. It is `lost` once another worker has been given it.
    """

    claimed: ClaimedJob
    batched: bool = False
    given: list[Row] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)
    unfinished: int = 0
    usage: dict[str, Any] | None = None
    stream: bool = False
    explain: Mapping[str, Any] | None = None
    error: Exception | None = None
    ending: Transition | None = None
    lost: bool = False

    @property
    def open(self) -> bool:
        return self.unfinished > 0 and not self.lost

    @property
    def begun(self) -> bool:
        return self.unfinished < len(self.rows)

    @classmethod
    def decode(
        cls, job: ClaimedJob, data: bytes | Exception, read: Callable[[bytes], PackedRows], loaded: LoadedModel
    ) -> PredictJob:
        """The job with its rows, or with the error that reading them gave."""
        if isinstance(data, Exception):
            return cls(job, error=data)
        try:
            packed = read(data)
            rows = packed.rows if packed.explain else loaded.preprocess(packed.rows)
            usage = {"usage": {"tokens": loaded.count_tokens(rows)}} if packed.usage else None
        except Exception as error:  # noqa: BLE001 - a job that cannot be read fails alone
            return cls(job, error=without_frames(error))
        return cls(
            job, packed.batched, packed.rows, rows, [None] * len(rows), len(rows), usage, packed.stream, packed.explain
        )

    def take(self, i: int, made: Any, loaded: LoadedModel) -> bool:
        """Note the output or exception of row i; whether all rows are finished now."""
        self.unfinished -= 1
        try:
            self.outputs[i] = loaded.output(made)
        except Exception as error:  # noqa: BLE001 - this row's own error
            self.error = self.error or without_frames(error)
        return self.unfinished == 0

    def stop(self, ending: Transition) -> None:
        self.ending, self.unfinished = ending, 0

    def outcome(self, payloads: Payloads) -> Finished | Postponed | LargeResult:
        """What to write: the result, or the error; or that the job is to be tried again later."""
        job, error = self.claimed, self.error
        if self.ending is not None:
            return Finished(job.id, job.attempt, ending=self.ending)
        if error is None:
            try:
                value = join_rows(self.outputs) if self.batched else self.outputs[0]
                parts = codec.encode_parts(value if self.usage is None else {"output": value} | self.usage)
                small = payloads.fits_inline(*parts)
                return Finished(job.id, job.attempt, b"".join(parts)) if small else LargeResult(job, parts)
            except Exception as failure:  # noqa: BLE001 - an output that cannot be encoded fails its job alone
                error = failure
        return outcome_of_error(job, error, passing=isinstance(error, Transient))


class JobRow(NamedTuple):
    """Row `i` of a job: what batches are made of."""

    job: PredictJob
    i: int
    row: Row


class StopRequests:
    """Which of the claimed jobs must not go on: a user asked to cancel them, or their deadline came before they were begun.

    Asked between batches. It reads the ledger at most twice a second; a claim gives no job whose cancel was asked for, so jobs
    that are done within half a second cost no read at all.
    """

    def __init__(self, attempts: Attempts, claimed: Sequence[ClaimedJob]) -> None:
        self._attempts = attempts
        self._checked = time.monotonic()
        self._canceled: set[str] = set()
        self._first_deadline = inf
        self.add(claimed)

    def add(self, claimed: Sequence[ClaimedJob]) -> None:
        """Jobs that were claimed later."""
        deadlines = [job.deadline_at for job in claimed if job.deadline_at is not None]
        self._first_deadline = min([self._first_deadline, *deadlines])

    def stop(self, jobs: Sequence[PredictJob]) -> list[PredictJob]:
        """Stop those of the jobs that must not go on; which ones these are."""
        self._check()
        now = self._attempts.now() if self._first_deadline < inf else -inf
        if not self._canceled and now < self._first_deadline:
            return []
        stopped = []
        for job in jobs:
            ending = self._ending(job, now) if job.open else None
            if ending is not None:
                job.stop(ending)
                stopped.append(job)
        return stopped

    def _ending(self, job: PredictJob, now: float) -> Transition | None:
        if job.claimed.id in self._canceled:
            return Transition.CANCEL
        deadline = job.claimed.deadline_at
        return Transition.EXPIRE if deadline is not None and not job.begun and now >= deadline else None

    def _check(self) -> None:
        if time.monotonic() - self._checked < CANCEL_CHECK_S:
            return
        self._checked = time.monotonic()
        try:
            self._canceled = self._attempts.cancel_requested()
        except LedgerUnavailable as error:  # the work itself needs no ledger
            log.warning("cancel_unknown", worker=self._attempts.worker, error=str(error))
