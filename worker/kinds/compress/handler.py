"""Compressions: a copy of the artifact in fewer bits, measured beside the version it is made from, registered if as good."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import structlog

from forebay.contract.errors import InvalidInput
from forebay.contract.model import GENERATES_TEXT, ModelVersion
from forebay.contract.references import ModelRef
from forebay.contract.requests.request import decode
from forebay.contract.requests.training import METRICS
from forebay.contract.requests.versions.compress import BFLOAT16, PRUNE, CompressRequest, parse_method
from forebay.contract.wire import codec
from forebay.storage.blobs.folders import pack_folder
from forebay.storage.jobs.records import ClaimedJob
from forebay.storage.models.derived import derived_metadata, register_derived
from forebay.storage.training.records import Evaluation
from forebay.worker.execution.attempts import Attempts
from forebay.worker.execution.context import ChildContext
from forebay.worker.execution.engine import forward
from forebay.worker.execution.model_cache import LoadedModel, release_memory
from forebay.worker.execution.progress import JobProgress
from forebay.worker.execution.summary import Fate
from forebay.worker.execution.trying.measuring import Rows, measure
from forebay.worker.execution.trying.output_difference import difference
from forebay.worker.execution.trying.rows import trial_rows
from forebay.worker.execution.work_folder import work_folder
from forebay.worker.kinds.compress.artifacts import compressed
from forebay.worker.kinds.evaluate.handler import evaluate

log = structlog.get_logger()

COMPARED_ROWS = 64
STEPS = 4
FOLDERS = "compressions"  # below the home
SPARE_BYTES = 65_536  # that a pruned file may have more: its weights are as many as before, written anew
GENERATED = "texts that are generated are not compared: perplexity on a data set tells what they lose"
PREFERRED = (
    "accuracy",
    "perplexity",  # before exact_match, which is 0 of most texts, however bad a model is
    "exact_match",
    "r2",
)  # of the metrics that an evaluation has, the first is the one that may not get worse


class CompressHandler:
    def __init__(self, context: ChildContext) -> None:
        self._context = context

    def run(self, claimed: Sequence[ClaimedJob], attempts: Attempts) -> None:
        for job in claimed:
            attempts.run(job, partial(self._run, job, attempts))

    def _run(self, job: ClaimedJob, attempts: Attempts) -> Fate:
        context = self._context
        request = decode(context.payloads.load(job.input, job.input_ref), CompressRequest)
        attempts.check()
        with work_folder(context.settings.home / FOLDERS, f"{job.id}-{job.attempt}") as folder:
            made, artifact = self._made(job, request, folder, attempts)
            stored = replace(made, artifact=attempts.retry_while_unavailable(partial(context.blobs.put_file, artifact)))
        example = attempts.retry_while_unavailable(partial(context.registry.example, job.model, job.version))
        register = partial(
            register_derived,
            context.ledger,
            job,
            stored,
            _result,
            alias=request.alias,
            replaces=request.replaces,
            example=example,
        )
        version, ended = attempts.retry_while_unavailable(register)
        log.info(
            "model_compressed", job=job.id, model=f"{job.model}/{job.version}", made=version.ref, method=request.method
        )
        return attempts.succeeded([ended])

    def _made(
        self, job: ClaimedJob, request: CompressRequest, folder: Path, attempts: Attempts
    ) -> tuple[ModelVersion, Path]:
        """The version to register, and the file to store; InvalidInput, with the figures, when it has lost too much."""
        context, progress = self._context, JobProgress(self._context.ledger, job, attempts)
        spec, source = context.models.artifact(ModelRef(job.model, job.version))
        if source is None:
            raise InvalidInput(f"{spec.ref} has no artifact that could be compressed")
        method, share = parse_method(request.method, spec.ref, spec.runtime)
        progress.step(0, STEPS, f"compressing {spec.ref}")
        path = compressed(spec, source, folder, method, share)
        artifact = path
        if path.is_dir():
            artifact = folder / "artifact.tar"
            pack_folder(path, artifact)
        size = artifact.stat().st_size
        if size >= spec.artifact_bytes and not (method == PRUNE and size <= spec.artifact_bytes + SPARE_BYTES):
            raise InvalidInput(
                f"{request.method} makes {spec.ref} no smaller: {spec.artifact_bytes:,} bytes before, {size:,} after"
            )
        draft = replace(
            spec, version=0, artifact_form="folder" if path.is_dir() else "file", artifact_bytes=size, aliases=(),
            # a batch of texts in bfloat16 would give other ones than each text alone
            dtype=BFLOAT16 if method == BFLOAT16 and spec.runtime not in GENERATES_TEXT else spec.dtype,
        )  # fmt: skip
        progress.step(1, STEPS, "comparing outputs")
        before = context.models.load(job.model, job.version)
        after = context.models.load_apart(draft, path)
        try:
            facts = self._measured(before, after, request, progress)
            if request.evaluation is not None:
                progress.step(2, STEPS, "evaluating both")
                facts |= _judged(
                    [evaluate(context, one, request.evaluation, job, attempts) for one in (before, after)],
                    request,
                    facts,
                )
        finally:
            del after
            release_memory(context.cache.device)
        metadata = derived_metadata(spec, job, "compress", method=request.method, **facts)
        return replace(draft, metadata=metadata), artifact

    def _measured(
        self, before: LoadedModel, after: LoadedModel, request: CompressRequest, progress: JobProgress
    ) -> dict[str, Any]:
        """How far outputs are apart, and size, latency and memory, before and after."""
        spec = before.spec
        generates = spec.runtime in GENERATES_TEXT
        data = request.evaluation.reading if request.evaluation is not None and not generates else None
        rows, source = trial_rows(before, COMPARED_ROWS, example=self._context.cache.example(spec), data=data)
        check = partial(progress.check, 1, STEPS, "measuring")
        both = (before, after)
        batches = [measure(one.model, Rows(one, rows).take(spec.max_batch_size), check).latency_ms for one in both]
        singles = [measure(one.model, Rows(one, rows).take(1), check).latency_ms for one in both]
        return {
            "difference": {"none": GENERATED}
            if generates
            else _difference(_outputs(before, rows), _outputs(after, rows), request.method),
            "compared_on": "nothing" if generates else source,
            "bytes": _pair([one.spec.artifact_bytes for one in both]),
            "memory_bytes": _pair([one.nbytes for one in both]),
            "ms_per_row": _pair(singles),
            "ms_per_batch": _pair(batches),
        }


def _outputs(loaded: LoadedModel, rows: Sequence[Any]) -> list[Any]:
    """What a version makes of rows; what it raises for the first that it does not take."""
    ready, most = loaded.preprocess(list(rows)), loaded.spec.max_batch_size
    made = [value for i in range(0, len(ready), most) for value in forward(loaded.model.predict, ready[i : i + most])]
    return [loaded.output(value) for value in made]


def _difference(before: Sequence[Any], after: Sequence[Any], method: str) -> dict[str, Any]:
    """How far they are apart; InvalidInput for numbers that have become none. Of a form that cannot be compared: why."""
    if any(_is_finite(one) and not _is_finite(other) for one, other in zip(before, after, strict=True)):
        raise InvalidInput(
            f"{method} loses too much: outputs are NaN or infinite that were not. Nothing was registered"
        )
    try:
        found = msgspec.to_builtins(difference(before, after))
    except InvalidInput as error:
        return {"none": str(error)}
    return {name: _finite(value) for name, value in found.items()}


def _is_finite(output: Any) -> bool:
    values = output.values() if isinstance(output, Mapping) else [output]
    return all(np.isfinite(value).all() for value in map(np.asarray, values) if value.dtype.kind == "f")


def _judged(evaluations: Sequence[Evaluation], request: CompressRequest, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The metric before and after; InvalidInput, with all figures, when it has become worse by more than was allowed, or is not
    of the same rows.
    """  # fmt: skip
    first, second = evaluations
    if first.sha256 != second.sha256:
        raise InvalidInput(f"{first.dataset} has changed between the two evaluations. Nothing was registered")
    if first.rows != second.rows:  # who fails on the difficult rows is not better on the others
        raise InvalidInput(
            f"{request.method} loses too much: {second.failed:,} rows fail, {first.failed:,} did before, so the metrics are "
            "not of the same rows. Nothing was registered"
        )
    before, after = dict(first.metrics), dict(second.metrics)
    metric = next((name for name in (*PREFERRED, *METRICS) if before.get(name) is not None), None)
    if metric is None:
        raise InvalidInput(
            f"{first.dataset} tells no metric of {first.rows:,} rows: name another. Nothing was registered"
        )
    one, other = before[metric], after.get(metric)
    loss = math.nan if one is None or other is None else (one - other if METRICS[metric] else other - one)
    if not loss <= request.max_loss:
        sizes = facts["bytes"]
        raise InvalidInput(
            f"{request.method} loses too much: {metric} {_text(one)} before, {_text(other)} after on {first.rows:,} rows, "
            f"{loss:.6g} worse, and max_loss is {request.max_loss:g}. It would have {sizes['after']:,} bytes instead of "
            f"{sizes['before']:,}. Nothing was registered"
        )
    return {
        "metric": {
            "name": metric,
            "before": one,
            "after": other,
            "rows": first.rows,
            "max_loss": request.max_loss,
        }
    }


def _text(value: float | None) -> str:
    return "none" if value is None else f"{value:.6g}"


def _pair(values: Sequence[float]) -> dict[str, float]:
    return {"before": values[0], "after": values[1]}


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _result(made: ModelVersion) -> bytes:
    lineage = made.metadata["lineage"]
    return codec.encode(
        {"model": made.name, "version": made.version} | {name: lineage[name] for name in ("method", "bytes")}
    )
