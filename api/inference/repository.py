"""The versions that are registered, as the protocol's repository tells of them: ready where a worker serves their queue."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from msgspec import Struct

from forebay.contract.errors import NoQueueFits
from forebay.contract.job import JobKind
from forebay.contract.model import ModelVersion
from forebay.contract.queues import QueueSpec, Resources, route
from forebay.storage.workers import WorkerInfo, lacks_runtime


class IndexRequest(Struct):
    """Which versions are asked for: all, or those that are ready."""

    ready: bool = False


class LoadRequest(Struct):
    """What a load or unload comes with."""

    parameters: Mapping[str, Any] = {}


def index(
    models: Iterable[ModelVersion], queues: Mapping[str, QueueSpec], workers: Sequence[WorkerInfo], *, ready: bool
) -> list[dict[str, str]]:
    """A line for each version, or for those that are ready."""
    lines = []
    for model in models:
        reason = why_unready(model, queues, workers)
        state = "UNAVAILABLE" if reason else "READY"
        lines.append({"name": model.name, "version": str(model.version), "state": state, "reason": reason})
    return [line for line in lines if not ready or not line["reason"]]


def why_unready(model: ModelVersion, queues: Mapping[str, QueueSpec], workers: Sequence[WorkerInfo]) -> str:
    """Why nobody would run a request for this version now; empty when somebody would."""
    try:
        queue = route(queues, Resources.parse(model.resources), JobKind.PREDICT, remote=model.remote)
    except NoQueueFits as error:
        return str(error)
    served = any(queue in worker.queues for worker in workers)
    return lacks_runtime(model.runtime, queue, workers) if served else f"no worker serves queue {queue!r}"
