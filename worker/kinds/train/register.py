"""From a finished run to what is registered: the artifact's blob, the version with its lineage, and the job's result."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec

from forebay.contract.model import ModelVersion
from forebay.contract.requests.training import ARTIFACT_FOLDER, DataSummary, Lineage, Trained, TrainRequest
from forebay.contract.signature import Signature
from forebay.contract.wire import codec
from forebay.storage.blobs.folders import pack_folder
from forebay.storage.jobs.records import ClaimedJob
from forebay.worker.execution.context import ChildContext

MAX_FILES = 100  # that a lineage names
PACKED = "artifact.tar"


def new_version(
    context: ChildContext,
    job: ClaimedJob,
    request: TrainRequest,
    trained: Trained,
    data: DataSummary | None,
    folder: Path,
    tune: str | None = None,
) -> ModelVersion:
    """The version to register, its artifact stored already; the registry gives its number.

    InvalidInput when the trainer's signature is not valid.
    """
    signature = Signature.parse(trained.inputs, trained.outputs)
    packed = folder / PACKED
    pack_folder(folder / ARTIFACT_FOLDER, packed)
    lineage = msgspec.to_builtins(_lineage(job, request, data, tune))
    importance = {"importance": dict(trained.importance)} if trained.importance else {}
    model = ModelVersion(
        job.model, 0, trained.runtime, context.blobs.put_file(packed), "folder", packed.stat().st_size, signature,
        max_batch_size=request.max_batch_size, resources=request.resources, options=trained.options,
        metadata={**request.metadata, "metrics": dict(trained.metrics), "lineage": lineage, **importance},
    )  # fmt: skip
    return model if model.base is None else _served_like(model, context.registry.get(model.base))


def _served_like(model: ModelVersion, base: ModelVersion) -> ModelVersion:
    """An adapter with the options that its base is served with."""
    return replace(
        model, options={**base.options, **model.options}, max_batch_tokens=base.max_batch_tokens, dtype=base.dtype,
        compile=base.compile, timeout_s=base.timeout_s, batch_wait_timeout_s=base.batch_wait_timeout_s,
    )  # fmt: skip


def result(model: ModelVersion, promoted: bool, verdict: str) -> bytes:
    """What the job's `result()` gives."""
    told: dict[str, Any] = {
        "model": model.name, "version": model.version, "metrics": dict(model.metadata["metrics"]), "promoted": promoted,
        "verdict": verdict,
    }  # fmt: skip
    return codec.encode(told)


def _lineage(job: ClaimedJob, request: TrainRequest, data: DataSummary | None, tune: str | None) -> Lineage:
    paths = tuple(file.path for file in request.files[:MAX_FILES])
    sha256, rows = (data.sha256, dict(data.rows)) if data is not None else ("", {})
    return Lineage(
        job.id, request.recipe, dict(request.params), paths, sha256, rows, request.seed, _code(), tune=tune
    )  # fmt: skip


def _code() -> str:
    try:
        return version("forebay")
    except PackageNotFoundError:
        return "unknown"
