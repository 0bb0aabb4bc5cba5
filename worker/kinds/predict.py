"""What a child does with job ids: claim, decode, batch, run, finish, announce.

While a batch is on the device the next one is prepared and the last one's results are written, several jobs to a commit.
Every write is fenced by the attempt that the claim gave, so the ledger is right whenever this process may die. Knows the
ledger, the model cache and the announcer; nothing of Celery.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeVar

import structlog

from forebay.contract.errors import MissingExtra, Transient
from forebay.contract.job import JobError, JobKind
from forebay.contract.model import ModelVersion
from forebay.contract.queues import TRAINING
from forebay.contract.references import ModelRef
from forebay.storage.blobs.payloads import Payloads
from forebay.storage.jobs.records import ClaimedJob, Finished, Postponed
from forebay.storage.jobs.store import JobStore
from forebay.storage.models.registry import ModelRegistry
from forebay.worker.announcer import Announcer
from forebay.worker.execution.batcher import cut
from forebay.worker.execution.ceilings import MemoryCeilings
from forebay.worker.execution.child_metrics import ChildMetrics
from forebay.worker.execution.forward import outputs
from forebay.worker.execution.model_cache import LoadedModel, ModelCache
from forebay.worker.execution.retrying import retry_while_unavailable
from forebay.worker.execution.stops import Stops
from forebay.worker.execution.summary import Summary, summary_of
from forebay.worker.execution.work import Item, Work
from forebay.worker.shared_page import LOAD, SharedPage, Watched

if TYPE_CHECKING:
    from forebay.worker.kinds.batch.shards import ShardRunner
    from forebay.worker.kinds.evaluate.evaluator import Evaluator
    from forebay.worker.kinds.train.slot import TrainingSlot

log = structlog.get_logger()

T = TypeVar("T")
Load = Callable[[str, int], LoadedModel]

CLAIM_AT_ONCE = 1024  # all that a child gets at once: rows of like length are found among all of them
COMMIT_EVERY_S = 0.05  # finished jobs wait at most about this long for the commit they share


class Runner:
    """Runs jobs of one child process, one hand-over at a time."""

    def __init__(
        self,
        *,
        store: JobStore,
        registry: ModelRegistry,
        payloads: Payloads,
        cache: ModelCache,
        ceilings: MemoryCeilings,
        announcer: Announcer,
        worker: str,
        lease_s: float,
        page: SharedPage,
        load_timeout_s: float,
        outage_timeout_s: float,
        make_shards: Callable[[Load], ShardRunner],
        make_evaluator: Callable[[Load], Evaluator],
        make_slot: Callable[[], TrainingSlot],
        queues: Sequence[str] | None = None,
        metrics: ChildMetrics | None = None,
    ) -> None:
        """`queues` are those that this worker serves, None when it may claim from any. `make_shards` gives what runs batch
        jobs, with this way to load a model, `make_evaluator` what runs evaluations, `make_slot` what runs training jobs.
        """  # fmt: skip
        self._make_shards = make_shards
        self._make_evaluator = make_evaluator
        self._make_slot = make_slot
        self._store = store
        self._registry = registry
        self._payloads = payloads
        self._cache = cache
        self._ceilings = ceilings
        self._announcer = announcer
        self._worker = worker
        self._lease_s = lease_s
        self._metrics = metrics or ChildMetrics()
        self._claimed_at = 0.0
        self._queues = queues
        self._stops = Stops(store, worker)
        self._page = page
        self._load_timeout_s = load_timeout_s
        self._outage_timeout_s = outage_timeout_s
        self._specs: dict[tuple[str, int], ModelVersion] = {}
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="write")

    def warm(self, model: str, version: int) -> None:
        """Load a version now, so that its first job need not wait for it."""
        self._loaded(model, version)

    def report(self) -> dict[str, Any]:
        """What was counted since this was last called, and what the cache holds: Statistics as a dict."""
        return self._metrics.take(self._cache.sizes(), self._cache.budget)

    def run(self, ids: Sequence[str]) -> Summary:
        """Run those of the jobs that can be claimed; each ends in the ledger, or keeps its lease if this process dies.

        Which model a job wants is the ledger's word: what a message said of it may be forged.
        """
        total = Summary()
        for start in range(0, len(ids), CLAIM_AT_ONCE):
            if self._page.stopping:
                return total + Summary(left=tuple(ids[start:]))
            part = ids[start : start + CLAIM_AT_ONCE]
            claimed = self._retry(partial(self._store.claim, part, self._worker, self._lease_s, self._queues))
            self._claimed_at = time.perf_counter()
            self._stops.claimed(claimed)
            total += Summary(unclaimed=len(part) - len(claimed))
            by_model: dict[tuple[str, int], list[ClaimedJob]] = {}
            shards = [job for job in claimed if job.kind in (JobKind.BATCH, JobKind.SHARD)]
            for job in (job for job in claimed if job.kind is JobKind.PREDICT):
                by_model.setdefault((job.model, job.version), []).append(job)
            for (model, version), jobs in by_model.items():
                total += self._run_claimed(model, version, jobs)
            if shards:
                total += self._run_apart(shards, lambda: self._shards)
            if evaluations := [job for job in claimed if job.kind is JobKind.EVALUATE]:
                total += self._run_apart(evaluations, lambda: self._evaluator)
            total += self._run_training([job for job in claimed if job.kind in TRAINING])
        return total

    @cached_property
    def _shards(self) -> ShardRunner:
        """ModelOutputs when the first batch job comes: it needs pyarrow, which other workers may do without."""
        return self._make_shards(self._loaded)

    @cached_property
    def _evaluator(self) -> Evaluator:
        """The same for evaluations, which need torchmetrics too."""
        return self._make_evaluator(self._loaded)

    def _run_apart(self, claimed: list[ClaimedJob], runner: Callable[[], ShardRunner | Evaluator]) -> Summary:
        """Jobs that read data sets, by what runs them."""
        if self._page.stopping:
            return self._give_back(claimed)
        try:
            ran = runner().run(claimed)
        except MissingExtra as error:
            return self._without(error, claimed)
        return Summary(
            succeeded=ran.succeeded, failed=ran.failed, stopped=ran.stopped, postponed=ran.postponed, dropped=ran.dropped,
            rows=ran.rows, left=ran.left,
        )  # fmt: skip

    def _without(self, error: MissingExtra, claimed: Sequence[ClaimedJob]) -> Summary:
        failed = JobError("MissingExtra", str(error))
        outcomes = [Finished(job.id, job.attempt, error=failed) for job in claimed]
        ended = self._retry(partial(self._store.finish, outcomes))
        self._announcer.announce(ended)
        return Summary(failed=len(ended))

    @cached_property
    def _slot(self) -> TrainingSlot:
        return self._make_slot()

    def _run_training(self, claimed: list[ClaimedJob]) -> Summary:
        """One of them; each may take days, so any further ones, which only a forged message brings, go back."""
        if not claimed or self._page.stopping:
            return self._give_back(claimed)
        first, *others = claimed
        summary = self._give_back(others)
        try:
            what = self._slot.run(first)
        except MissingExtra as error:
            return summary + self._without(error, [first])
        return summary + Summary(
            succeeded=what == "succeeded", failed=what == "failed", stopped=what == "stopped",
            postponed=what == "postponed", dropped=what == "dropped", left=(first.id,) if what == "left" else (),
        )  # fmt: skip

    def _run_claimed(self, model: str, version: int, claimed: list[ClaimedJob]) -> Summary:
        if self._page.stopping:
            return self._give_back(claimed)
        started = time.perf_counter()
        self._metrics.waited((model, version), [job.waited_s for job in claimed if job.attempt == 1])
        try:
            loaded = self._loaded(model, version)
        except Exception as error:  # noqa: BLE001 - whatever a runtime raises, these jobs cannot run here
            later = isinstance(error, Transient)
            event, level = ("model_away", "warning") if later else ("model_unusable", "error")
            getattr(log, level)(event, model=f"{model}/{version}", jobs=len(claimed), error=repr(error))
            return self._finish([Work(job, error=error, tried=not later) for job in claimed])
        works = [Work.decode(job, self._payloads, loaded) for job in claimed]
        summary = self._run_works(loaded, works)
        log.info(
            "batch_done", model=f"{model}/{version}", queue=claimed[0].queue, worker=self._worker, jobs=len(claimed),
            succeeded=summary.succeeded, failed=summary.failed, stopped=summary.stopped, postponed=summary.postponed,
            dropped=summary.dropped, rows=summary.rows,
            batches=summary.batches, padding=round(summary.padding, 3), attempt=max(c.attempt for c in claimed),
            seconds=round(time.perf_counter() - started, 4),
        )  # fmt: skip
        return summary

    def _loaded(self, model: str, version: int) -> LoadedModel:
        key = (model, version)
        if key not in self._specs:
            self._specs[key] = self._retry(partial(self._registry.get, ModelRef(model, version)))
        spec = self._specs[key]
        with self._page.limit(self._load_timeout_s, LOAD):
            loaded = self._cache.get(spec)
        if spec.timeout_s is None:
            return loaded
        return replace(loaded, model=Watched(loaded.model, self._page, spec.timeout_s))

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
        total = sum((future.result() for future in written), total)
        if self._page.stopping:
            total += self._give_back([work.job for work in works if work.missing and not work.lost])
        return total

    def _batches(self, loaded: LoadedModel, works: list[Work]) -> Iterator[tuple[list[Work], Summary]]:
        """Run batch by batch; the jobs that each one completed, and its size.

        Cut anew when a batch did not fit, and when jobs are to stop.
        """
        spec, model = loaded.spec, loaded.model
        left = [Item(work, i) for work in works for i in range(work.missing)]
        cost = (lambda item: model.cost(item.row)) if hasattr(model, "cost") else None
        while left:
            if stopped := self._stops.stop(works):
                yield stopped, Summary()
                left = [item for item in left if item.work.ending is None]
            limit = self._ceilings.rows(spec)
            batches = list(cut(left, limit, key=Item.key, alone=Item.alone, cost=cost, max_cost=spec.max_batch_tokens))
            left = []
            rows = [[item.row for item in batch] for batch in batches]
            results = _timed(outputs(model, rows, partial(self._too_large, spec)))
            for number, (batch, (result, seconds)) in enumerate(zip(batches, results, strict=True), start=1):
                pairs, size = zip(batch, result, strict=True), _size(batch, cost)
                self._metrics.ran((spec.name, spec.version), size.rows, seconds, size.tokens, size.padded)
                yield [item.work for item, output in pairs if item.work.take(item.i, output, loaded)], size
                self._ceilings.fitted(spec, len(batch))
                if self._page.stopping:
                    return
                lost = self._drop_lost(works)
                cut_anew = lost or self._ceilings.rows(spec) < limit or self._stops.among(works)
                if number < len(batches) and cut_anew:
                    left = [item for rest in batches[number:] for item in rest if not item.work.lost]
                    break

    def _drop_lost(self, works: Sequence[Work]) -> int:
        """Begin no more rows of jobs that others have been given meanwhile; asks the ledger only when the parent has doubts."""
        open_ = [work for work in works if work.missing and not work.lost]
        if not open_ or not self._page.doubted():
            return 0
        held = self._retry(partial(self._store.attempts, [work.job.id for work in open_]))
        gone = [work for work in open_ if held.get(work.job.id) != work.job.attempt]
        for work in gone:
            work.lost = True
        if gone:
            log.warning("lease_lost", worker=self._worker, jobs=len(gone), first=gone[0].job.id, dropped="unrun")
        return len(gone)

    def _give_back(self, claimed: Sequence[ClaimedJob]) -> Summary:
        """This process has to stop: what it has claimed and not run goes back, its attempt uncounted."""
        ids = [job.id for job in claimed]
        if ids:
            self._retry(partial(self._store.release, ids, self._worker))
            log.info("jobs_released", worker=self._worker, jobs=len(ids))
        return Summary(left=tuple(ids))

    def _retry(self, action: Callable[[], T]) -> T:
        """Results in hand are worth some patience."""
        return retry_while_unavailable(action, self._outage_timeout_s)

    def _too_large(self, spec: ModelVersion, rows: int) -> None:
        self._metrics.out_of_memory((spec.name, spec.version))
        self._ceilings.too_large(spec, rows)

    def _finish(self, works: Sequence[Work]) -> Summary:
        outcomes = [work.outcome(self._payloads) for work in works]
        finished = [o for o in outcomes if isinstance(o, Finished)]
        later = [o for o in outcomes if isinstance(o, Postponed)]
        ended = self._retry(partial(self._store.finish, finished)) if finished else []
        queued, canceled = self._retry(partial(self._store.postpone, later)) if later else ([], [])
        self._announcer.announce([*ended, *canceled])
        if later:
            log.warning(
                "jobs_postponed", worker=self._worker, jobs=len(queued), model=works[0].job.model, reason=later[0].reason,
                longest_s=round(max(o.delay_s for o in later), 1),
            )  # fmt: skip
        self._note_lost(outcomes, {*queued, *(job.id for job in (*ended, *canceled))})
        summary = summary_of(finished, ended, len(queued), len(canceled), len(outcomes))
        of, took = works[0].job, time.perf_counter() - self._claimed_at
        counts = {"succeeded": summary.succeeded, "failed": summary.failed, "stopped": summary.stopped}
        self._metrics.ended((of.model, of.version), counts, took, postponed=summary.postponed, refused=summary.dropped)
        return summary

    def _note_lost(self, outcomes: Sequence[Finished | Postponed], written: set[str]) -> None:
        lost = {o.id: o.attempt for o in outcomes if o.id not in written}
        if lost:
            log.warning("lease_lost", worker=self._worker, jobs=len(lost), first=next(iter(lost)))
            self._retry(partial(self._store.refused, lost, self._worker))


def _timed(results: Iterator[list[Any]]) -> Iterator[tuple[list[Any], float]]:
    """Each batch's outputs with the seconds they took to come."""
    while True:
        started = time.perf_counter()
        try:
            result = next(results)
        except StopIteration:
            return
        yield result, time.perf_counter() - started


def _size(batch: Sequence[Item], cost: object) -> Summary:
    if not callable(cost):
        return Summary(rows=len(batch), batches=1)
    costs = [cost(item) for item in batch]
    return Summary(rows=len(batch), batches=1, tokens=sum(costs), padded=max(costs) * len(costs))
