"""What a child does with evaluations: a model version's outputs for the rows of a data set, held against what is true.

Rows are read and run as those of a batch's shard are, a chunk at a time; nothing but counts is kept of them. Knows the ledger,
the model cache and the scores; who trained the version does not matter.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import structlog

from forebay.contract.errors import InvalidInput, LedgerUnavailable
from forebay.contract.job import Transition
from forebay.contract.model import ModelVersion
from forebay.contract.references import ModelRef
from forebay.contract.requests.batch import IMAGES, InputFile, Piece
from forebay.contract.requests.evaluation import EvaluateRequest
from forebay.contract.wire import codec
from forebay.datasets.formats.files import open_file
from forebay.datasets.formats.images import PATH
from forebay.datasets.formats.source import CHUNK_ROWS, get_source
from forebay.datasets.reading.inputs import convert
from forebay.datasets.reading.rows import Rows, columns_read, read_pieces
from forebay.datasets.reading.shard_range import ShardRange
from forebay.storage.blobs.payloads import Payloads
from forebay.storage.jobs.records import ClaimedJob, Finished
from forebay.storage.models.registry import ModelRegistry
from forebay.storage.training.records import Evaluation, evaluation_value
from forebay.storage.training.store import LeaseLost, TrainingStore
from forebay.worker.execution.backoff import may_pass
from forebay.worker.execution.ceilings import MemoryCeilings
from forebay.worker.execution.child_metrics import ChildMetrics
from forebay.worker.execution.model_cache import LoadedModel
from forebay.worker.kinds.batch import device
from forebay.worker.kinds.batch.pipeline import CHUNK_BATCHES, Ran
from forebay.worker.kinds.evaluate.comparing import Comparison
from forebay.worker.kinds.train.outcomes import DROPPED, FAILED, LEFT, POSTPONED, STOPPED, SUCCEEDED, Outcomes
from forebay.worker.shared_page import SharedPage

log = structlog.get_logger()

SHOW_EVERY_S = 1.0  # between two looks at the ledger: whether to stop, and to say how far it is
HASH_BYTES = 1 << 20


class _Canceled(Exception):
    """A user wants the evaluation to stop."""


class _Stopping(Exception):
    """This process has to stop."""


@dataclass(slots=True)
class _Progress:
    """How far one evaluation is: rows that are done, of about so many, and the seconds that the device took for them."""

    total: int
    done: int = 0
    seconds: float = 0.0
    told_at: float = 0.0


class Evaluator:
    """Runs the evaluations of one child process, one after the other."""

    def __init__(
        self,
        *,
        store: TrainingStore,
        registry: ModelRegistry,
        payloads: Payloads,
        outcomes: Outcomes,
        ceilings: MemoryCeilings,
        load: Callable[[str, int], LoadedModel],
        worker: str,
        page: SharedPage,
        metrics: ChildMetrics,
    ) -> None:
        self._store = store
        self._registry = registry
        self._payloads = payloads
        self._outcomes = outcomes
        self._ceilings = ceilings
        self._load = load
        self._worker = worker
        self._page = page
        self._metrics = metrics

    def run(self, claimed: Sequence[ClaimedJob]) -> Ran:
        """Run these evaluations; what became of them."""
        return sum((self._run(job) for job in claimed), Ran())

    def _run(self, job: ClaimedJob) -> Ran:
        started, rows = time.perf_counter(), 0
        self._metrics.waited((job.model, job.version), [job.waited_s] if job.attempt == 1 else [])
        try:
            what, rows = self._try(job)
        except LeaseLost:
            what = self._outcomes.lost(job)
        seconds = time.perf_counter() - started
        counts = {what: 1} if what in (SUCCEEDED, FAILED, STOPPED) else {}
        self._metrics.ended(
            (job.model, job.version), counts, seconds, postponed=int(what == POSTPONED), refused=int(what == DROPPED)
        )  # fmt: skip
        log.info(
            "evaluation_done", job=job.id, model=f"{job.model}/{job.version}", queue=job.queue, worker=self._worker,
            attempt=job.attempt, state=what, rows=rows, seconds=round(seconds, 3),
        )  # fmt: skip
        if what == LEFT:
            return Ran(left=(job.id,))
        became: dict[str, Any] = {what: 1}
        return Ran(**became, rows=rows)

    def _try(self, job: ClaimedJob) -> tuple[str, int]:
        """What became of the job, and the rows that were compared."""
        try:
            evaluation = self._evaluate(job)
            result = codec.encode(evaluation_value(evaluation))
            ended = self._outcomes.retry_while_unavailable(partial(self._store.evaluated, job, evaluation, result))
            self._outcomes.announce([ended])
            return SUCCEEDED, evaluation.rows
        except _Stopping:
            return self._outcomes.give_back(job), 0
        except _Canceled:
            return self._outcomes.end(Finished(job.id, job.attempt, ending=Transition.CANCEL)), 0
        except (LeaseLost, LedgerUnavailable):  # without a ledger nothing can be written: the lease lapses
            raise
        except Exception as error:  # noqa: BLE001 - whatever a file, a runtime or a score raises, this job cannot go on
            if may_pass(error) and job.tries < job.max_attempts:
                return self._outcomes.postpone(job, f"{type(error).__name__}: {error}", counted=True), 0
            return self._outcomes.fail(job, type(error).__name__, str(error) or repr(error)), 0

    def _evaluate(self, job: ClaimedJob) -> Evaluation:
        request = EvaluateRequest.load(self._payloads.load(job.input, job.input_ref))
        spec = self._registry.get(ModelRef(job.model, job.version))
        self._stop_if_asked()
        loaded = self._load(job.model, job.version)
        pieces, rows = _pieces(request)
        comparison = Comparison(request.output, self._classes(spec, loaded), rows, spec.ref)
        progress = _Progress(rows)
        chunk_rows = min(CHUNK_ROWS, CHUNK_BATCHES * spec.max_batch_size)
        for chunk in read_pieces(request.reading, ShardRange(pieces), chunk_rows) if pieces else ():
            self._add(job, loaded, request, chunk, comparison, progress)
        self._tell(job, progress)
        if not comparison.rows:
            raise comparison.first_error or InvalidInput(f"the data set {request.dataset} holds no rows")
        return Evaluation(
            job.id, job.model, job.version, request.dataset, self._hash(job, request.files, progress), comparison.rows,
            comparison.metrics(), comparison.confusion(), comparison.classes or None,
            1000 * progress.seconds / max(1, progress.done), comparison.failed,
        )  # fmt: skip

    def _classes(self, spec: ModelVersion, loaded: LoadedModel) -> Sequence[str]:
        """The labels in the order of the outputs: as the model or its metadata tell them, or the run that trained it."""
        told = getattr(loaded.model, "classes", None) or spec.metadata.get("classes")
        if isinstance(told, list | tuple):
            return [str(label) for label in told]
        data = self._outcomes.retry_while_unavailable(partial(self._store.data_of, spec))
        return data.classes if data is not None else ()

    def _add(
        self, job: ClaimedJob, loaded: LoadedModel, request: EvaluateRequest, chunk: Rows, comparison: Comparison,
        progress: _Progress,
    ) -> None:  # fmt: skip
        def ran(rows: int, seconds: float) -> None:
            progress.done, progress.seconds = progress.done + rows, progress.seconds + seconds
            self._metrics.ran((job.model, job.version), rows, seconds)
            self._stop_if_asked()
            if time.monotonic() - progress.told_at >= SHOW_EVERY_S:
                self._tell(job, progress)

        inputs = convert(chunk, request.columns, loaded.spec.signature, request.format)
        made = device.run(loaded, inputs, self._ceilings, self._metrics, ran)
        truth = _truth(chunk, request)
        comparison.add(made.outputs, [truth[i] for i in made.ok], made.errors)

    def _tell(self, job: ClaimedJob, progress: _Progress) -> None:
        progress.told_at = time.monotonic()
        pace = f", {progress.done / progress.seconds:,.0f} rows/s" if progress.seconds else ""
        words = f"{progress.done:,} rows{pace}"
        if self._outcomes.retry_while_unavailable(
            partial(self._store.advance, job, progress.done, progress.total, words)
        ):
            raise _Canceled

    def _hash(self, job: ClaimedJob, files: Sequence[InputFile], progress: _Progress) -> str:
        """Of the files' content, in their order."""
        digest = hashlib.sha256()
        for block in _blocks(files):
            digest.update(block)
            self._stop_if_asked()
            if time.monotonic() - progress.told_at >= SHOW_EVERY_S:
                self._tell(job, progress)
        return digest.hexdigest()

    def _stop_if_asked(self) -> None:
        if self._page.stopping:
            raise _Stopping


def _pieces(request: EvaluateRequest) -> tuple[list[Piece], int]:
    """All there is to read, and about how many rows that is."""
    source, columns = get_source(request.format), columns_read(request.reading)
    blocks = [
        (number, block)
        for number, file in enumerate(request.files)
        for block in source.layout(file, columns, request.row_bytes)
    ]
    return [Piece(number, block.first, block.last) for number, block in blocks], sum(block.rows for _, block in blocks)


def _truth(chunk: Rows, request: EvaluateRequest) -> list[Any]:
    """What is true of each row of a chunk."""
    if request.format == IMAGES and request.target not in chunk.columns:
        paths = [PurePosixPath(path.as_py()) for path in chunk.columns[PATH]]
        return [path.parent.name for path in paths]
    column = chunk.columns[request.target]
    return list(column) if isinstance(column, list) else list(column.to_pylist())


def _blocks(files: Sequence[InputFile]) -> Iterator[bytes]:
    for file in files:
        with open_file(file.path) as handle:
            while block := handle.read(HASH_BYTES):
                yield block
