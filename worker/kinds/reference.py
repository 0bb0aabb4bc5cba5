"""Reference jobs: rows of a data set through a version, and what its inputs and outputs were like kept with it, for drift."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import partial

import structlog

from forebay.contract.drift.sketch import MAX_ROWS, Reference, ReferenceBuilder
from forebay.contract.errors import InvalidInput
from forebay.contract.requests.request import decode
from forebay.contract.requests.versions.reference import ReferenceRequest
from forebay.contract.wire import codec
from forebay.datasets.formats.source import CHUNK_ROWS
from forebay.datasets.reading.inputs import convert
from forebay.datasets.reading.rows import all_pieces, read_pieces
from forebay.datasets.reading.shard_range import ShardRange
from forebay.storage.jobs.records import ClaimedJob
from forebay.storage.models.drift import DriftStore
from forebay.worker.execution.attempts import Attempts
from forebay.worker.execution.chunks import CHUNK_BATCHES, run_chunk
from forebay.worker.execution.context import ChildContext
from forebay.worker.execution.progress import JobProgress
from forebay.worker.execution.summary import Fate

log = structlog.get_logger()

MOST_SKIPPED = 10  # of a larger data set than so many times MAX_ROWS only a part is read


class ReferenceHandler:
    """Runs the reference jobs of one child, one after the other."""

    def __init__(self, context: ChildContext) -> None:
        self._context = context
        self._store = DriftStore(context.ledger)

    def run(self, claimed: Sequence[ClaimedJob], attempts: Attempts) -> None:
        for job in claimed:
            attempts.run(job, partial(self._run, job, attempts))

    def _run(self, job: ClaimedJob, attempts: Attempts) -> Fate:
        request = decode(self._context.payloads.load(job.input, job.input_ref), ReferenceRequest)
        reference, rows, failed = self._made(job, request, attempts)
        told = {
            "model": f"{job.model}/{job.version}", "rows": rows, "failed": failed,
            "columns": len(reference.columns), "unwatched": list(reference.unwatched),
        }  # fmt: skip
        ended = attempts.retry_while_unavailable(partial(self._store.finish, job, reference, codec.encode(told)))
        log.info("reference_made", job=job.id, **told)
        return attempts.succeeded([ended])

    def _made(self, job: ClaimedJob, request: ReferenceRequest, attempts: Attempts) -> tuple[Reference, int, int]:
        """The reference, of how many rows, and how many others failed. Blocks come in an order that the job's id draws, and of
        a large data set every so-manieth row is taken, until there are enough.
        """  # fmt: skip
        loaded = self._context.models.load(job.model, job.version)
        spec, signature = loaded.spec, loaded.spec.signature
        inputs, outputs = ReferenceBuilder("input", signature.inputs), ReferenceBuilder("output", signature.outputs)
        rows = failed = 0
        first_error: Exception | None = None
        chunk_rows = min(CHUNK_ROWS, CHUNK_BATCHES * spec.max_batch_size)
        pieces, many = all_pieces(request.reading)
        random.Random(job.id).shuffle(pieces)
        progress = JobProgress(self._context.ledger, job, attempts)
        step = max(1, min(many // MAX_ROWS, MOST_SKIPPED))

        def show(*_: object) -> None:
            progress.check(rows, min(many // step, MAX_ROWS), f"{rows:,} rows")

        for chunk in read_pieces(request.reading, ShardRange(pieces), chunk_rows) if pieces else ():
            given = convert(chunk, request.columns, signature, request.format, oriented=spec.oriented)
            given.values = {name: values[::step] for name, values in given.values.items()}
            given.good = given.good[::step]
            made = run_chunk(self._context.engine, loaded, given, show)
            rows, failed = rows + len(made.ok), failed + len(made.errors)
            first_error = first_error or next(iter(made.errors.values()), None)
            if len(given.good):
                inputs.add(given.values)
            if len(made.ok):
                outputs.add(_named(made.outputs, [field.name for field in signature.outputs or ()]))
            if inputs.full and outputs.full:
                break
        if not rows:
            raise first_error or InvalidInput(f"the data set {request.dataset} holds no rows")
        columns = (*inputs.columns(), *outputs.columns())
        return Reference(columns, request.dataset, (*inputs.unwatched, *outputs.unwatched)), rows, failed


def _named(outputs: object, names: Sequence[str]) -> Mapping[str, object]:
    """A chunk's outputs by name: they come so, or as the rows' values."""
    if isinstance(outputs, Mapping) or not isinstance(outputs, list):
        return outputs if isinstance(outputs, Mapping) else {}
    if len(names) == 1:
        return {names[0]: outputs}
    return {name: [row[name] for row in outputs] for name in names}
