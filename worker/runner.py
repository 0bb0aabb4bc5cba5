"""What a child does with job ids: claim, decode, batch, run, finish, announce.

While a batch is on the device the next one is prepared and the last one's results are written, several jobs to a commit.
Every write is fenced by the attempt that the claim gave, so the ledger is right whenever this process may die. Knows the
ledger, the model cache and the announcer; nothing of Celery.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

import structlog

from forebay.contract.errors import MissingExtra
from forebay.contract.job import JobError, JobKind
from forebay.contract.model import ModelVersion
from forebay.contract.references import ModelRef
from forebay.storage.jobs import JobStore
from forebay.storage.models import ModelRegistry
from forebay.storage.payloads import Payloads
from forebay.storage.records import ClaimedJob, Finished
from forebay.worker.announcer import Announcer
from forebay.worker.batcher import cut
from forebay.worker.forward import outputs
from forebay.worker.limits import Limits
from forebay.worker.model_cache import LoadedModel, ModelCache
from forebay.worker.work import Item, Work

if TYPE_CHECKING:
    from forebay.worker.batches.shards import ShardRunner

log = structlog.get_logger()

Load = Callable[[str, int], LoadedModel]

CLAIM_AT_ONCE = 256
COMMIT_EVERY_S = 0.05  # finished jobs wait at most about this long for the commit they share


@dataclass(frozen=True, slots=True)
class Summary:
    """What became of one hand-over of ids. `unclaimed` were finished, canceled or taken by others."""

    succeeded: int = 0
    failed: int = 0
    unclaimed: int = 0
    dropped: int = 0  # results refused because the lease was lost
    rows: int = 0
    batches: int = 0
    tokens: int = 0  # of the rows themselves, where the model counts them
    padded: int = 0  # of the rows padded to the longest of their batch

    def __add__(self, other: Summary) -> Summary:
        return Summary(*(getattr(self, n) + getattr(other, n) for n in self.__slots__))

    def __str__(self) -> str:
        padding = f", padding {self.padding:.0%}" if self.padded else ""
        return f"{self.succeeded} succeeded, {self.failed} failed, {self.unclaimed} not ours, {self.batches} batches{padding}"

    @property
    def padding(self) -> float:
        """Which share of what the device computed was padding."""
        return 1 - self.tokens / self.padded if self.padded else 0.0


class Runner:
    """Runs jobs of one child process, one hand-over at a time."""

    def __init__(
        self,
        *,
        store: JobStore,
        registry: ModelRegistry,
        payloads: Payloads,
        cache: ModelCache,
        limits: Limits,
        announcer: Announcer,
        worker: str,
        lease_s: float,
        make_shards: Callable[[Load], ShardRunner],
    ) -> None:
        self._make_shards = make_shards
        self._store = store
        self._registry = registry
        self._payloads = payloads
        self._cache = cache
        self._limits = limits
        self._announcer = announcer
        self._worker = worker
        self._lease_s = lease_s
        self._specs: dict[tuple[str, int], ModelVersion] = {}
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="write")

    def warm(self, model: str, version: int) -> None:
        """Load a version now, so that its first job need not wait for it."""
        self._loaded(model, version)

    def run(self, ids: Sequence[str]) -> Summary:
        """Run those of the jobs that can be claimed; each ends in the ledger, or keeps its lease if this process dies.

        Which model a job wants is the ledger's word: what a message said of it may be forged.
        """
        total = Summary()
        for start in range(0, len(ids), CLAIM_AT_ONCE):
            part = ids[start : start + CLAIM_AT_ONCE]
            claimed = self._store.claim(part, self._worker, self._lease_s)
            total += Summary(unclaimed=len(part) - len(claimed))
            by_model: dict[tuple[str, int], list[ClaimedJob]] = {}
            shards = [job for job in claimed if job.kind in (JobKind.BATCH, JobKind.SHARD)]
            for job in (job for job in claimed if job.kind is JobKind.PREDICT):
                by_model.setdefault((job.model, job.version), []).append(job)
            for (model, version), jobs in by_model.items():
                total += self._run_claimed(model, version, jobs)
            if shards:
                total += self._run_shards(shards)
        return total

    @cached_property
    def _shards(self) -> ShardRunner:
        """Made when the first batch job comes: it needs pyarrow, which other workers may do without."""
        return self._make_shards(self._loaded)

    def _run_shards(self, claimed: list[ClaimedJob]) -> Summary:
        try:
            ran = self._shards.run(claimed)
        except MissingExtra as error:
            failed = JobError("MissingExtra", str(error))
            ended = self._store.finish([Finished(job.id, job.attempt, error=failed) for job in claimed])
            self._announcer.announce(ended)
            return Summary(failed=len(ended))
        return Summary(succeeded=ran.succeeded, failed=ran.failed, dropped=ran.dropped, rows=ran.rows)

    def _run_claimed(self, model: str, version: int, claimed: list[ClaimedJob]) -> Summary:
        started = time.perf_counter()
        try:
            loaded = self._loaded(model, version)
        except Exception as error:  # noqa: BLE001 - whatever a runtime raises, these jobs cannot run here
            log.error("model_unusable", model=f"{model}/{version}", jobs=len(claimed), error=repr(error))
            return self._finish([Work(job, error=error) for job in claimed])
        works = [Work.decode(job, self._payloads, loaded) for job in claimed]
        summary = self._run_works(loaded, works)
        log.info(
            "batch_done", model=f"{model}/{version}", queue=claimed[0].queue, worker=self._worker, jobs=len(claimed),
            succeeded=summary.succeeded, failed=summary.failed, dropped=summary.dropped, rows=summary.rows,
            batches=summary.batches, padding=round(summary.padding, 3), attempt=max(c.attempt for c in claimed),
            seconds=round(time.perf_counter() - started, 4),
        )  # fmt: skip
        return summary

    def _loaded(self, model: str, version: int) -> LoadedModel:
        key = (model, version)
        if key not in self._specs:
            self._specs[key] = self._registry.get(ModelRef(model, version))
        return self._cache.get(self._specs[key])

    def _run_works(self, loaded: LoadedModel, works: list[Work]) -> Summary:
        """Run every row; write complete jobs in a thread while the next batch runs, the last ones before returning."""
        ready = [work for work in works if work.missing == 0]
        written: list[Future[Summary]] = []
        total, committed = Summary(), time.perf_counter()
        for done, size in self._batches(loaded, works):
            total += size
            ready += done
            if ready and time.perf_counter() - committed > COMMIT_EVERY_S:
                written.append(self._writer.submit(self._finish, ready))
                ready, committed = [], time.perf_counter()
        if ready:
            total += self._finish(ready)
        return sum((future.result() for future in written), total)

    def _batches(self, loaded: LoadedModel, works: list[Work]) -> Iterator[tuple[list[Work], Summary]]:
        """Run batch by batch; the jobs that each one completed, and its size. Cut anew when a batch did not fit."""
        spec, model = loaded.spec, loaded.model
        left = [Item(work, i) for work in works for i in range(work.missing)]
        cost = (lambda item: model.cost(item.row)) if hasattr(model, "cost") else None
        while left:
            limit = self._limits.rows(spec)
            batches = list(cut(left, limit, key=Item.key, alone=Item.alone, cost=cost, max_cost=spec.max_batch_tokens))
            left = []
            rows = [[item.row for item in batch] for batch in batches]
            results = outputs(model, rows, partial(self._limits.too_large, spec))
            for number, (batch, result) in enumerate(zip(batches, results, strict=True), start=1):
                pairs = zip(batch, result, strict=True)
                yield (
                    [item.work for item, output in pairs if item.work.take(item.i, output, loaded)],
                    _size(batch, cost),
                )
                self._limits.fitted(spec, len(batch))
                if number < len(batches) and self._limits.rows(spec) < limit:
                    left = [item for rest in batches[number:] for item in rest]
                    break

    def _finish(self, works: Sequence[Work]) -> Summary:
        outcomes = [work.outcome(self._payloads) for work in works]
        ended = self._store.finish(outcomes)
        self._announcer.announce(ended)
        failed = {o.id for o in outcomes if o.error is not None}
        bad = sum(job.id in failed for job in ended)
        if len(ended) < len(outcomes):
            mine = {job.id for job in ended}
            lost = [o.id for o in outcomes if o.id not in mine]
            log.warning("lease_lost", worker=self._worker, jobs=len(lost), first=lost[0])
        return Summary(succeeded=len(ended) - bad, failed=bad, dropped=len(outcomes) - len(ended))


def _size(batch: Sequence[Item], cost: object) -> Summary:
    if not callable(cost):
        return Summary(rows=len(batch), batches=1)
    costs = [cost(item) for item in batch]
    return Summary(rows=len(batch), batches=1, tokens=sum(costs), padded=max(costs) * len(costs))
