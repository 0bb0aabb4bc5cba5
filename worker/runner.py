"""What a child does with job ids: claim, decode, batch, run, encode, finish, announce.

Every write is fenced by the attempt that the claim gave, so the ledger is right whenever this process may die. Knows the
ledger, the model cache and the announcer; nothing of Celery.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog

from forebay.contract import codec
from forebay.contract.errors import ForebayError
from forebay.contract.job import JobError
from forebay.contract.model import ModelVersion
from forebay.contract.payload import join_rows, unpack_input
from forebay.contract.references import ModelRef
from forebay.contract.signature import Row, stack_key
from forebay.storage.jobs import JobStore
from forebay.storage.models import ModelRegistry
from forebay.storage.payloads import Payloads
from forebay.storage.records import ClaimedJob, Finished
from forebay.worker.announcer import Announcer
from forebay.worker.batcher import cut
from forebay.worker.forward import forward
from forebay.worker.model_cache import LoadedModel, ModelCache

log = structlog.get_logger()

CLAIM_AT_ONCE = 256
COMMIT_EVERY_S = 0.05  # finished jobs wait at most about this long for the commit they share


@dataclass(slots=True)
class Work:
    """A claimed job while it runs: its decoded rows, and an output or an exception for each."""

    job: ClaimedJob
    batched: bool = False
    rows: list[Row] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)
    missing: int = 0
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class Summary:
    """What became of one hand-over of ids. `unclaimed` were finished, canceled or taken by others."""

    succeeded: int = 0
    failed: int = 0
    unclaimed: int = 0
    rows: int = 0
    batches: int = 0
    dropped: int = 0  # results refused because the lease was lost

    def __add__(self, other: Summary) -> Summary:
        return Summary(*(getattr(self, n) + getattr(other, n) for n in self.__slots__))

    def __str__(self) -> str:
        return f"{self.succeeded} succeeded, {self.failed} failed, {self.unclaimed} not ours"


class Runner:
    """Runs jobs of one child process, one hand-over at a time."""

    def __init__(
        self,
        *,
        store: JobStore,
        registry: ModelRegistry,
        payloads: Payloads,
        cache: ModelCache,
        announcer: Announcer,
        worker: str,
        lease_s: float,
    ) -> None:
        self._store = store
        self._registry = registry
        self._payloads = payloads
        self._cache = cache
        self._announcer = announcer
        self._worker = worker
        self._lease_s = lease_s
        self._specs: dict[tuple[str, int], ModelVersion] = {}

    def run(self, model: str, version: int, ids: Sequence[str]) -> Summary:
        """Run those of the jobs that can be claimed; each ends in the ledger, or keeps its lease if this process dies."""
        total = Summary()
        for start in range(0, len(ids), CLAIM_AT_ONCE):
            part = ids[start : start + CLAIM_AT_ONCE]
            claimed = self._store.claim(part, self._worker, self._lease_s)
            total += Summary(unclaimed=len(part) - len(claimed))
            if claimed:
                total += self._run_claimed(model, version, claimed)
        return total

    def _run_claimed(self, model: str, version: int, claimed: list[ClaimedJob]) -> Summary:
        started = time.perf_counter()
        try:
            loaded = self._loaded(model, version)
        except ForebayError as error:
            summary = self._finish([Work(job, error=error) for job in claimed])
            log.error("model_unusable", model=f"{model}/{version}", jobs=len(claimed), error=str(error))
            return summary
        summary = Summary()
        for works, batch_rows in self._completed(loaded, claimed):
            summary += self._finish(works) + batch_rows
        seconds = time.perf_counter() - started
        log.info(
            "batch_done", model=f"{model}/{version}", queue=claimed[0].queue, worker=self._worker, jobs=len(claimed),
            succeeded=summary.succeeded, failed=summary.failed, dropped=summary.dropped, rows=summary.rows,
            batches=summary.batches, attempt=max(c.attempt for c in claimed), seconds=round(seconds, 4),
        )  # fmt: skip
        return summary

    def _loaded(self, model: str, version: int) -> LoadedModel:
        key = (model, version)
        if key not in self._specs:
            self._specs[key] = self._registry.get(ModelRef(model, version))
        return self._cache.get(self._specs[key])

    def _completed(self, loaded: LoadedModel, claimed: list[ClaimedJob]) -> Iterator[tuple[list[Work], Summary]]:
        """Runs every row; yields the jobs that are complete in groups worth a commit."""
        works = [self._decode(job, loaded.model) for job in claimed]
        ready = [w for w in works if w.missing == 0]
        rows, batches, committed = 0, 0, time.perf_counter()
        pairs = [(work, i) for work in works for i in range(work.missing)]
        for batch in cut(pairs, loaded.spec.max_batch_size, key=_stackable, alone=_suspect):
            outputs = forward(loaded.model.predict, [work.rows[i] for work, i in batch])
            rows, batches = rows + len(batch), batches + 1
            for (work, i), output in zip(batch, outputs, strict=True):
                self._take_output(work, i, output, loaded)
                if work.missing == 0:
                    ready.append(work)
            if ready and time.perf_counter() - committed > COMMIT_EVERY_S:
                yield ready, Summary(rows=rows, batches=batches)
                ready, rows, batches, committed = [], 0, 0, time.perf_counter()
        if ready:
            yield ready, Summary(rows=rows, batches=batches)

    def _decode(self, job: ClaimedJob, model: Any) -> Work:
        try:
            rows, batched = unpack_input(self._payloads.load(job.input, job.input_ref))
            preprocess = getattr(model, "preprocess", None)
            if preprocess is not None:
                rows = [preprocess(row) for row in rows]
        except Exception as error:  # noqa: BLE001 - a job that cannot be read fails alone
            return Work(job, error=error)
        return Work(job, batched, rows, [None] * len(rows), len(rows))

    def _take_output(self, work: Work, i: int, output: Any, loaded: LoadedModel) -> None:
        work.missing -= 1
        try:
            if isinstance(output, Exception):
                raise output
            postprocess = getattr(loaded.model, "postprocess", None)
            work.outputs[i] = loaded.spec.signature.output(output if postprocess is None else postprocess(output))
        except Exception as error:  # noqa: BLE001 - this row's own error
            work.error = work.error or error

    def _finish(self, works: Sequence[Work]) -> Summary:
        outcomes = [self._outcome(work) for work in works]
        ended = self._store.finish(outcomes)
        self._announcer.announce(ended)
        failed = {o.id for o in outcomes if o.error is not None}
        bad = sum(job.id in failed for job in ended)
        if len(ended) < len(outcomes):
            mine = {job.id for job in ended}
            lost = [o.id for o in outcomes if o.id not in mine]
            log.warning("lease_lost", worker=self._worker, jobs=len(lost), first=lost[0])
        return Summary(succeeded=len(ended) - bad, failed=bad, dropped=len(outcomes) - len(ended))

    def _outcome(self, work: Work) -> Finished:
        job, error = work.job, work.error
        if error is None:
            try:
                data = codec.encode(join_rows(work.outputs) if work.batched else work.outputs[0])
                result, ref = self._payloads.store(data)
                return Finished(job.id, job.attempt, result, ref)
            except Exception as failure:  # noqa: BLE001 - an output that cannot be stored fails its job alone
                error = failure
        return Finished(job.id, job.attempt, error=JobError(type(error).__name__, str(error) or repr(error)))


def _stackable(pair: tuple[Work, int]) -> Any:
    work, i = pair
    return stack_key(work.rows[i])


def _suspect(pair: tuple[Work, int]) -> str | None:
    """Only this job's rows may share a batch with a job that has been tried before."""
    job = pair[0].job
    return job.id if job.attempt > 1 else None
