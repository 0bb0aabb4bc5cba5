"""A claimed job on its way through a child: bytes to rows, rows to outputs, outputs to bytes. A bad one fails alone."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

from forebay.contract.errors import Transient
from forebay.contract.job import JobError, Transition
from forebay.contract.signature import Row, stack_key
from forebay.contract.wire import codec
from forebay.contract.wire.payload import join_rows, unpack_input
from forebay.storage.blobs.payloads import Payloads
from forebay.storage.jobs.records import ClaimedJob, Finished, Postponed
from forebay.worker.execution.backoff import delay_s
from forebay.worker.execution.model_cache import LoadedModel


@dataclass(slots=True)
class Work:
    """A claimed job: its decoded rows, an output for each, how many are missing, and the first error.

    `ending` is how it ends when it was stopped. A job is not `tried` when its model could not be loaded.
    """

    job: ClaimedJob
    batched: bool = False
    rows: list[Row] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)
    missing: int = 0
    error: Exception | None = None
    ending: Transition | None = None
    tried: bool = True
    lost: bool = False  # another worker has been given the job

    @property
    def begun(self) -> bool:
        """Whether a row of it has been through the model."""
        return self.missing < len(self.rows)

    @classmethod
    def decode(cls, job: ClaimedJob, payloads: Payloads, loaded: LoadedModel) -> Work:
        """The job with its rows, or with the error that reading them gave."""
        try:
            rows, batched = unpack_input(payloads.load(job.input, job.input_ref))
            preprocess = getattr(loaded.model, "preprocess", None)
            if preprocess is not None:
                rows = [preprocess(row) for row in rows]
        except Exception as error:  # noqa: BLE001 - a job that cannot be read fails alone
            return cls(job, error=error)
        return cls(job, batched, rows, [None] * len(rows), len(rows))

    def take(self, i: int, output: Any, loaded: LoadedModel) -> bool:
        """Note the output or exception of row i; whether the job is complete now."""
        self.missing -= 1
        try:
            if isinstance(output, Exception):
                raise output
            postprocess = getattr(loaded.model, "postprocess", None)
            self.outputs[i] = loaded.spec.signature.output(output if postprocess is None else postprocess(output))
        except Exception as error:  # noqa: BLE001 - this row's own error
            self.error = self.error or error
        return self.missing == 0

    def outcome(self, payloads: Payloads) -> Finished | Postponed:
        """What to write: the result, stored, or the error; or that the job is to be tried again later."""
        job, error = self.job, self.error
        if self.ending is not None:
            return Finished(job.id, job.attempt, ending=self.ending)
        if error is None:
            try:
                data = codec.encode(join_rows(self.outputs) if self.batched else self.outputs[0])
                return Finished(job.id, job.attempt, *payloads.store(data))
            except Exception as failure:  # noqa: BLE001 - an output that cannot be stored fails its job alone
                error = failure
        if isinstance(error, Transient) and (not self.tried or job.tries < job.max_attempts):
            wait = delay_s(job.tries if self.tried else job.attempt)
            return Postponed(job.id, job.attempt, wait, f"{type(error).__name__}: {error}", counted=self.tried)
        return Finished(job.id, job.attempt, error=JobError(type(error).__name__, str(error) or repr(error)))


@dataclass(frozen=True, slots=True)
class Item:
    """One row of a job: what batches are made of."""

    work: Work
    i: int

    @property
    def row(self) -> Row:
        """The row itself."""
        return self.work.rows[self.i]

    def key(self) -> Hashable:
        """Rows with equal keys can be stacked."""
        return stack_key(self.row)

    def alone(self) -> Hashable | None:
        """Only this job's rows may share a batch with a job under which a process has died before."""
        return self.work.job.id if self.work.job.crashes else None
