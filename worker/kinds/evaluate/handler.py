"""Evaluations: a model version's outputs for the rows of a data set, compared with what is true.

Rows are read and run as those of a batch's shard are, a chunk at a time; nothing but counts is kept of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import structlog

from forebay.contract.errors import InvalidInput
from forebay.contract.model import GENERATES_TEXT, ModelVersion
from forebay.contract.requests.batch import MEDIA
from forebay.contract.requests.evaluation import EvaluateRequest
from forebay.contract.requests.request import decode
from forebay.contract.wire import codec
from forebay.datasets.formats.files import content_hash
from forebay.datasets.formats.media import PATH
from forebay.datasets.formats.source import CHUNK_ROWS
from forebay.datasets.reading.inputs import convert
from forebay.datasets.reading.rows import Rows, all_pieces, read_pieces
from forebay.datasets.reading.shard_range import ShardRange
from forebay.storage.jobs.records import ClaimedJob
from forebay.storage.training.records import Evaluation, evaluation_value
from forebay.storage.training.store import TrainingStore
from forebay.worker.execution.attempts import Attempts
from forebay.worker.execution.chunks import CHUNK_BATCHES, run_chunk
from forebay.worker.execution.context import ChildContext
from forebay.worker.execution.model_cache import LoadedModel
from forebay.worker.execution.progress import JobProgress
from forebay.worker.execution.summary import Fate
from forebay.worker.kinds.evaluate.comparing import Comparison
from forebay.worker.kinds.evaluate.texts import TextComparison

log = structlog.get_logger()

CHECKED_ROWS = 200_000  # of the first ones it is seen whether the version was trained on them
LEAST_SEEN = 0.01  # of them; a few rows may be alike by chance


class EvaluateHandler:
    def __init__(self, context: ChildContext) -> None:
        self._context = context
        self._store = TrainingStore(context.ledger)

    def run(self, claimed: Sequence[ClaimedJob], attempts: Attempts) -> None:
        for job in claimed:
            attempts.run(job, partial(self._run, job, attempts))

    def _run(self, job: ClaimedJob, attempts: Attempts) -> Fate:
        request = decode(self._context.payloads.load(job.input, job.input_ref), EvaluateRequest)
        attempts.check()
        evaluation = evaluate(self._context, self._context.models.load(job.model, job.version), request, job, attempts)
        result = codec.encode(evaluation_value(evaluation))
        ended = attempts.retry_while_unavailable(partial(self._store.finish_evaluation, job, evaluation, result))
        log.info(
            "model_evaluated", job=job.id, model=f"{job.model}/{job.version}", rows=evaluation.rows, failed=evaluation.failed
        )  # fmt: skip
        return attempts.succeeded([ended])


def evaluate(
    context: ChildContext, loaded: LoadedModel, request: EvaluateRequest, job: ClaimedJob, attempts: Attempts
) -> Evaluation:
    """How well a loaded version does; `job` asks for it, and shows how far it is."""
    spec = loaded.spec
    pieces, rows = all_pieces(request.reading)
    progress = _Progress(JobProgress(context.ledger, job, attempts), rows)
    comparison: Comparison | TextComparison
    if spec.runtime in GENERATES_TEXT:
        comparison = TextComparison(context.engine, loaded, progress.ran, lambda: attempts.stopping)
    else:
        comparison = Comparison(request.output, _classes(context, loaded, attempts), rows, spec.ref)
    known = seen = 0
    chunk_rows = min(CHUNK_ROWS, CHUNK_BATCHES * spec.max_batch_size)
    for chunk in read_pieces(request.reading, ShardRange(pieces), chunk_rows) if pieces else ():
        if isinstance(comparison, TextComparison):
            comparison.add(chunk)
            continue
        inputs = convert(chunk, request.columns, spec.signature, request.format, oriented=spec.oriented)
        if progress.done < CHECKED_ROWS and hasattr(loaded.model, "trained_on") and len(inputs.good):
            with suppress(InvalidInput):  # a row that cannot be encoded is told of when it is run
                known, seen = np.add((known, seen), loaded.model.trained_on(inputs.values))
        made = run_chunk(context.engine, loaded, inputs, progress.ran, lambda: attempts.stopping)
        truth = _truth(chunk, request)
        comparison.add(made.outputs, [truth[i] for i in made.ok], made.errors)
    progress.show()
    if not comparison.rows:
        raise comparison.first_error or InvalidInput(f"the data set {request.dataset} holds no rows")
    sha256 = content_hash(request.files, request.format, progress.check)
    return Evaluation(
        job.id, spec.name, spec.version, request.dataset, sha256, comparison.rows,
        comparison.metrics(), comparison.confusion(), comparison.classes or None,
        1000 * progress.seconds / max(1, progress.done), comparison.failed,
        warning=_seen(spec, request, sha256) or _seen_rows(spec, seen / max(1, known)),
    )  # fmt: skip


@dataclass(slots=True)
class _Progress:
    """How far one evaluation is: rows that are done, of about `total`, and the seconds that the device took for them."""

    shown: JobProgress
    total: int
    done: int = 0
    seconds: float = 0.0

    def ran(self, rows: int, seconds: float) -> None:
        self.done, self.seconds = self.done + rows, self.seconds + seconds
        self.check()

    def check(self) -> None:
        self.shown.check(self.done, self.total, self._message())

    def show(self) -> None:
        self.shown.show(self.done, self.total, self._message())

    def _message(self) -> str:
        pace = f", {self.done / self.seconds:,.0f} rows/s" if self.seconds else ""
        return f"{self.done:,} rows{pace}"


def _classes(context: ChildContext, loaded: LoadedModel, attempts: Attempts) -> Sequence[str]:
    """The labels in the order of the outputs: as declared, from the model, or from the run that trained it."""
    classes = loaded.spec.classes or getattr(loaded.model, "classes", None)
    if isinstance(classes, list | tuple) and classes:
        return [str(label) for label in classes]
    data = attempts.retry_while_unavailable(partial(TrainingStore(context.ledger).queries.data_of, loaded.spec))
    return data.classes if data is not None else ()


def _seen(spec: ModelVersion, request: EvaluateRequest, sha256: str) -> str:
    """A warning where the version was trained on this data set, or on some of its files: it may know rows by heart."""
    lineage = spec.metadata.get("lineage")
    if not isinstance(lineage, Mapping):
        return ""
    known = lineage.get("files")
    same = sorted({file.path for file in request.files} & set(known if isinstance(known, list | tuple) else ()))
    if sha256 != lineage.get("sha256") and not same:
        return ""
    what = "this data set" if sha256 == lineage.get("sha256") else f"{same[0]}, which is among this data"
    return (
        f"{spec.ref} was trained on {what}: the metrics are too good wherever rows were in its training split; evaluate on "
        "rows that it has not seen"
    )


def _seen_rows(spec: ModelVersion, share: float) -> str:
    """A warning where rows of the data set are among those of the training split, whatever file they are in."""
    if share < LEAST_SEEN:
        return ""
    return (
        f"{spec.ref} was trained on rows with the same inputs as {share:.0%} of these: the metrics are too good there; evaluate "
        "on rows that it has not seen"
    )


def _truth(chunk: Rows, request: EvaluateRequest) -> list[Any]:
    """What is true of each row of a chunk."""
    if request.format in MEDIA and request.target not in chunk.columns:
        paths = [PurePosixPath(path.as_py()) for path in chunk.columns[PATH]]
        return [path.parent.name for path in paths]
    column = chunk.columns[request.target]
    return list(column) if isinstance(column, list) else list(column.to_pylist())
