"""Conversions: a version written in another form, held against the original over the same rows, and registered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import structlog

from forebay.contract.errors import InvalidInput
from forebay.contract.model import ModelVersion
from forebay.contract.references import ModelRef
from forebay.contract.requests.request import decode
from forebay.contract.requests.versions.convert import TOLERANCE, ConvertRequest
from forebay.contract.runtimes.folders import TRANSFORMERS
from forebay.contract.signature import Row
from forebay.contract.wire import codec
from forebay.storage.blobs.folders import pack_folder
from forebay.storage.jobs.records import ClaimedJob
from forebay.storage.models.derived import derived_metadata, register_derived
from forebay.worker.execution.attempts import Attempts
from forebay.worker.execution.context import ChildContext
from forebay.worker.execution.model_cache import LoadedModel
from forebay.worker.execution.progress import JobProgress
from forebay.worker.execution.trying.output_difference import Difference, difference, try_rows
from forebay.worker.execution.trying.rows import trial_rows
from forebay.worker.execution.work_folder import work_folder
from forebay.worker.kinds.convert.forms import Source, signature_of, write_onnx, write_pt2
from forebay.worker.shared_page import LOAD

log = structlog.get_logger()

FOLDERS = "conversions"  # below the home
RESIZED = 8  # rows that are tried longer and shorter too, where a dimension is free
STEPS = 4


class ConvertHandler:
    """Runs the conversions of one child, one after the other."""

    def __init__(self, context: ChildContext) -> None:
        self._context = context

    def run(self, claimed: Sequence[ClaimedJob], attempts: Attempts) -> None:
        for job in claimed:
            attempts.run(job, partial(self._run, job, attempts))

    def _run(self, job: ClaimedJob, attempts: Attempts) -> Any:
        context = self._context
        request = decode(context.payloads.load(job.input, job.input_ref), ConvertRequest)
        loaded = context.models.load(job.model, job.version)
        parent, path = context.models.artifact(ModelRef(job.model, job.version))
        kept = attempts.retry_while_unavailable(partial(context.registry.example, job.model, job.version))
        progress = JobProgress(context.ledger, job, attempts)
        progress.step(0, STEPS, "the rows to try it on")
        example = None if kept is None else codec.decode(kept)
        rows, of = trial_rows(loaded, request.rows, example=example, data=request.data)
        rows, before = _usable(loaded, rows, len(rows))
        with work_folder(context.settings.home / FOLDERS, f"{job.id}-{job.attempt}") as folder:
            progress.step(1, STEPS, f"writing it as {request.to}")
            inside = folder / "artifact"
            inside.mkdir()
            with context.page.limit(context.settings.load_timeout_s, LOAD):
                write = write_onnx if request.to == "onnx" else write_pt2
                source = Source(parent, path, context.settings.allowed_python_models)
                made = write(source, _largest(rows), inside)
            progress.step(2, STEPS, f"running {len(rows):,} rows through both")
            draft = _draft(parent, request.to, made)
            candidate = context.models.load_apart(replace(draft, version=parent.version), made)  # with its example
            found, speeds = _compared(loaded, before, candidate, rows)
            if not found.within(request.tolerance):
                raise InvalidInput(
                    f"{parent.ref} as {request.to} gives other outputs, so nothing was registered: {found}; the tolerance is "
                    f"{request.tolerance:g}"
                )
            progress.step(3, STEPS, "registering it")
            blob, form, size = self._stored(made, folder)
        facts = {"to": request.to, "rows_of": of, "difference": msgspec.to_builtins(found), "rows_per_s": speeds}
        metadata = derived_metadata(parent, job, "convert", tolerance=request.tolerance, **facts)
        if "metrics" in parent.metadata and keeps_metrics(found):
            metadata["metrics"] = parent.metadata["metrics"]
        model = replace(draft, artifact=blob, artifact_form=form, artifact_bytes=size, metadata=metadata)

        def result(version: ModelVersion) -> bytes:
            return codec.encode({"model": version.name, "version": version.version, **facts})

        register = partial(
            register_derived,
            context.ledger,
            job,
            model,
            result,
            alias=request.alias,
            replaces=request.replaces,
            example=kept,
        )
        version, ended = attempts.retry_while_unavailable(register)
        log.info("model_converted", job=job.id, model=parent.ref, version=version.ref, to=request.to)
        return attempts.succeeded([ended])

    def _stored(self, made: Path, folder: Path) -> tuple[str, str, int]:
        if made.is_file():
            return self._context.blobs.put_file(made), "file", made.stat().st_size
        packed = folder / "artifact.tar"
        pack_folder(made, packed)
        return self._context.blobs.put_file(packed), "folder", packed.stat().st_size


def keeps_metrics(found: Difference) -> bool:
    """Whether what was measured of the original holds of the new version: classes are the same, or numbers nearly."""
    return found.within(TOLERANCE) and found.same_argmax in (None, 1.0)


def _usable(loaded: LoadedModel, rows: Sequence[Row], count: int) -> tuple[list[Row], list[Any]]:
    """The rows, of which the first `count` must do, and what the original makes of them; after them rows of other sizes where it
    takes those.
    """  # fmt: skip
    fields = [field for field in loaded.spec.signature.inputs or () if -1 in field.shape]
    resized = [_resized(row, fields, times) for row in rows[:RESIZED] for times in (2, 3)] if fields else []
    tried = [*rows, *resized]
    outputs = try_rows(loaded, tried).outputs
    wrong = next(((i, made) for i, made in enumerate(outputs[:count]) if isinstance(made, Exception)), None)
    if wrong is not None:
        raise InvalidInput(f"{loaded.spec.ref} itself fails on row {wrong[0]}: {type(wrong[1]).__name__}: {wrong[1]}")
    good = [i for i, made in enumerate(outputs) if not isinstance(made, Exception)]
    return [tried[i] for i in good], [outputs[i] for i in good]


def _resized(row: Row, fields: Sequence[Any], times: int) -> Row:
    """The row with its free dimensions so many times as long."""
    longer = {f.name: np.tile(row[f.name], [times if length == -1 else 1 for length in f.shape]) for f in fields}
    return {**row, **longer}


def _largest(rows: Sequence[Row]) -> Row:
    return max(rows, key=lambda row: sum(getattr(value, "size", 0) for value in row.values()))


def _draft(parent: ModelVersion, to: str, made: Path) -> ModelVersion:
    """The version as it will be registered, its artifact not stored yet."""
    signature = signature_of(made, parent.signature, to)
    kept = parent.options if parent.runtime == TRANSFORMERS else ("orientation", "truncate")
    options = {name: value for name, value in parent.options.items() if name in kept}
    draft = replace(parent, version=0, runtime=to, signature=signature, options=options, aliases=(), metadata={})
    return draft if to != "onnx" else replace(draft, dtype=None, compile=False)


def _compared(
    loaded: LoadedModel, before: Sequence[Any], candidate: LoadedModel, rows: Sequence[Row]
) -> tuple[Difference, dict[str, float]]:
    """How far the outputs are apart, of the first row alone too: and the rows a second of both, once they are warm."""
    after = try_rows(candidate, rows).outputs
    alone = try_rows(candidate, rows[:1]).outputs
    wrong = next((made for made in (*after, *alone) if isinstance(made, Exception)), None)
    if wrong is not None:
        raise InvalidInput(
            f"what comes out fails on rows that {loaded.spec.ref} takes: {type(wrong).__name__}: {wrong}"
        )
    names = {field.name for field in candidate.spec.signature.outputs or ()}
    expected = [_among(made, names) for made in (*before, before[0])]
    found = difference(expected, [*after, *alone])
    speeds = {"before": try_rows(loaded, rows).rows_per_s, "after": try_rows(candidate, rows).rows_per_s}
    return found, speeds


def _among(made: Any, names: set[str]) -> Any:
    """Those outputs of a row that the new version has, in the form that it gives them."""
    if not isinstance(made, dict) or not names:
        return made
    kept = {name: value for name, value in made.items() if name in names}
    return next(iter(kept.values())) if len(kept) == 1 else kept
